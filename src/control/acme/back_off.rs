//! The wait after failures. It outlives the process, so that a server which is restarted again and again does not order
//! again and again.

use serde_json::{Value, json};

use super::failure::Failure;
use super::same_names;
use super::schedule::{self, MINUTE};
use crate::config::Acme;
use crate::printable::is_printable;

/// The version of the file.
const VERSION: u64 = 1;

/// The most characters of a message that is read.
const MAX_MESSAGE: usize = 2_000;

/// The failures since the last success, and when the next order is made. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BackOff {
    pub(super) failures: u32,
    /// When the next order is made, since the Unix epoch.
    pub(super) retry_at: u64,
    /// The time from the last failure to the next order.
    pub(super) wait: u64,
    /// The part of that time that the authority has demanded.
    pub(super) demanded: u64,
    /// When the last order failed, since the Unix epoch, and why.
    pub(super) last_error: Option<(u64, String)>,
}

impl BackOff {
    /// Adds a failure. `left` is the life that the present certificate has left, `fraction` spreads the orders.
    pub(super) fn add(&mut self, failure: &Failure, now: u64, left: Option<u64>, fraction: f64) {
        self.failures = self.failures.saturating_add(1);
        self.wait = schedule::wait(self.failures, failure.wait, left, fraction);
        self.demanded = Some(schedule::demand(failure.wait, left)).filter(|time| *time > MINUTE).unwrap_or_default();
        self.retry_at = now + self.wait;
        self.last_error = Some((now, failure.message.clone()));
    }

    /// Makes the next order at once, or as soon as the authority permits it.
    pub(super) fn end(&mut self) {
        let failed_at = self.last_error.as_ref().map_or(0, |(at, _)| *at);
        let earliest = if self.demanded > 0 { failed_at.saturating_add(self.demanded) } else { 0 };
        self.retry_at = self.retry_at.min(earliest);
    }

    /// Whether the authority has demanded all of the wait.
    pub(super) fn is_demanded(&self) -> bool {
        self.demanded >= self.wait
    }

    /// Brings the next order into reach, in case that the clock was ahead at the last failure.
    pub(super) fn follow_clock(&mut self, now: u64) {
        self.retry_at = self.retry_at.min(now + self.wait);
    }

    /// Returns the file with the wait, which is for the certificate that `acme` wants.
    pub(super) fn to_file(&self, acme: &Acme) -> String {
        let (at, error) = self.last_error.clone().unzip();
        let value = json!({
            "version": VERSION,
            "directory": acme.directory,
            "domains": acme.domains,
            "failures": self.failures,
            "retry_at": self.retry_at,
            "wait": self.wait,
            "demanded": self.demanded,
            "failed_at": at,
            "error": error,
        });
        format!("{value}\n")
    }

    /// Returns the wait of a file; `None` if it is for another certificate.
    ///
    /// A demanded wait is for these names only, although it may concern the whole account: most limits of authorities count
    /// the orders of a set of names or of a domain, so other names may get a certificate at once. If not, it costs one
    /// request to find out.
    ///
    /// # Errors
    /// If the file is damaged, or of a later version.
    pub(super) fn from_file(bytes: &[u8], acme: &Acme) -> Result<Option<Self>, &'static str> {
        let value: Value = serde_json::from_slice(bytes).map_err(|_| "it is damaged")?;
        if value.get("version").and_then(Value::as_u64) != Some(VERSION) {
            return Err("another version of the server has written it");
        }
        let parse = || {
            let number = |key: &str| value.get(key).and_then(Value::as_u64);
            let domains = value.get("domains")?.as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
            let domains: Vec<String> = domains.collect::<Option<_>>()?;
            let is_wanted = value.get("directory")?.as_str()? == acme.directory && same_names(&domains, &acme.domains);
            let error = value
                .get("error")
                .and_then(Value::as_str)
                .map(|text| text.chars().filter(|c| is_printable(*c)).take(MAX_MESSAGE).collect::<String>());
            let back_off = Self {
                failures: number("failures")?.try_into().ok()?,
                retry_at: number("retry_at")?,
                // No wait is longer.
                wait: number("wait").filter(|wait| *wait <= schedule::LONGEST_DEMAND)?,
                demanded: number("demanded").filter(|demanded| *demanded <= schedule::LONGEST_DEMAND)?,
                last_error: number("failed_at").zip(error),
            };
            Some((is_wanted && back_off.failures > 0).then_some(back_off))
        };
        parse().ok_or("it is damaged")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn acme(domains: &[&str]) -> Acme {
        Acme::of(domains)
    }

    fn limited() -> BackOff {
        let mut back_off = BackOff::default();
        back_off.add(&Failure { wait: Some(7_200), ..Failure::new("too many") }, NOW, None, 0.0);
        back_off
    }

    #[test]
    fn a_wait_is_read_as_it_was_written_if_it_is_for_the_same_names_and_directory() {
        let (own, back_off) = (acme(&["a.example.org", "b.example.org"]), limited());
        let file = back_off.to_file(&own);
        let read = |acme: &Acme| BackOff::from_file(file.as_bytes(), acme).unwrap();
        assert_eq!(read(&own).as_ref(), Some(&back_off));
        assert_eq!(read(&acme(&["b.example.org", "a.example.org"])).as_ref(), Some(&back_off));
        assert_eq!(read(&acme(&["a.example.org"])), None);
        assert_eq!(read(&Acme { directory: "https://other.example.org/".to_owned(), ..own }), None);
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_version_is_an_error() {
        let own = acme(&["a.example.org"]);
        let file = limited().to_file(&own);
        let read = |text: &str| BackOff::from_file(text.as_bytes(), &own);
        for length in 0..file.len() - 2 {
            assert_eq!(read(&file[..length]), Err("it is damaged"), "{length}");
        }
        let later = read(&file.replace("\"version\":1", "\"version\":2"));
        assert_eq!(later, Err("another version of the server has written it"));
        for (from, to) in [
            ("\"wait\":7200", "\"wait\":18446744073709551615"),
            ("\"failures\":1", "\"failures\":-1"),
            ("\"demanded\":7200", "\"demanded\":true"),
            ("[\"a.example.org\"]", "[1]"),
        ] {
            assert!(file.contains(from), "{file}");
            assert_eq!(read(&file.replace(from, to)), Err("it is damaged"), "{to}");
        }
    }

    // RFC 8555 §6.6
    #[test]
    fn the_operator_ends_a_wait_that_the_authority_has_not_demanded() {
        let mut back_off = limited();
        back_off.end();
        assert_eq!((back_off.retry_at, back_off.is_demanded()), (NOW + 7_200, true));
        back_off.add(&Failure::new("refused"), NOW + 7_200, None, 0.0);
        assert_eq!((back_off.retry_at, back_off.failures), (NOW + 7_380, 2));
        assert!(!back_off.is_demanded());
        back_off.end();
        assert_eq!(back_off.retry_at, 0);
        // The server's own wait is longer.
        for _ in 3..=7 {
            back_off.add(&Failure { wait: Some(120), ..Failure::new("later") }, NOW, None, 0.0);
        }
        assert_eq!((back_off.retry_at, back_off.is_demanded()), (NOW + 21_600, false));
        back_off.end();
        assert_eq!(back_off.retry_at, NOW + 120);
    }

    #[test]
    fn a_clock_that_was_ahead_at_the_failure_does_not_put_off_the_next_order() {
        let mut back_off = limited();
        back_off.follow_clock(NOW - 90 * 86_400);
        assert_eq!(back_off.retry_at, NOW - 90 * 86_400 + 7_200);
    }
}
