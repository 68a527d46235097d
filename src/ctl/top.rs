//! `turnserver ctl top`: rates, drops and the greatest sessions, once per second.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use turnserver::clock;

use super::client::{Client, Failure};
use super::screen::{self, Screen};
use super::text::{Table, bit_rate, counted, duration, list, number, printable, text};
use super::views::session_table;

/// The interval between two looks at the server.
const INTERVAL: Duration = Duration::from_secs(1);

/// The lines above the sessions: the summary, an empty line, and the header of the table.
const LINES_ABOVE: u16 = 7;

/// Shows the server until the user presses q or interrupts.
pub(crate) async fn run(socket: &Path) -> Result<(), Failure> {
    // The first look fails before the screen changes.
    let mut before = Sample::take(socket).await?;
    let unusable = |error: io::Error| {
        Failure::Usage(format!(
            "top cannot use the terminal: {error}. `turnserver ctl sessions --top bytes` needs none"
        ))
    };
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()] {
        signals.push(signal(kind).map_err(unusable)?);
    }
    let [interrupt, terminate, hangup, quit] = signals.as_mut_slice() else { return Ok(()) };
    let mut resized = signal(SignalKind::window_change()).map_err(unusable)?;
    let screen = Screen::enter().map_err(unusable)?;
    let mut keys = screen::keys().map_err(unusable)?;
    let mut ticks = interval(INTERVAL);
    ticks.reset();
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = before.lines(None);
    // The look at the server that has begun.
    let mut look = None;
    loop {
        screen.show(&shown).map_err(unusable)?;
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
            // Without an input there are no keys.
            Some(key) = keys.recv() => if matches!(key, b'q' | b'Q') { return Ok(()) },
            _ = resized.recv() => {}
            _ = ticks.tick(), if look.is_none() => look = Some(Box::pin(Sample::take(socket))),
            sample = under_way(&mut look) => {
                look = None;
                let sample = sample?;
                shown = sample.lines(Some(&before));
                before = sample;
            }
        }
    }
}

/// Waits for a future that has begun; forever if there is none.
async fn under_way<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// What the server says at one moment.
struct Sample {
    /// On the monotonic clock.
    at: Duration,
    status: Value,
    sessions: Vec<Value>,
}

impl Sample {
    /// Asks on a connection of its own, because the server limits the life of a connection.
    async fn take(socket: &Path) -> Result<Self, Failure> {
        let mut client = Client::connect(socket).await?;
        let room = screen::size().1.saturating_sub(LINES_ABOVE).clamp(1, 1000);
        let status = client.get("/v1/status?remaining=0").await?;
        let sessions = client.get(&format!("/v1/sessions?top=bytes&limit={room}")).await?;
        Ok(Self { at: clock::monotonic(), status, sessions: list(&sessions, "sessions").to_vec() })
    }

    /// Returns the lines of the screen. The rates are those since the sample `before`.
    fn lines(&self, before: Option<&Self>) -> Vec<String> {
        let status = &self.status;
        let state = match text(status, "not_ready_because") {
            "" => "ready",
            why => why,
        };
        let mut lines = vec![
            format!(
                "turnserver {}  {state}  up {}  {}  (q quits)",
                text(status, "version"),
                duration(number(status, "uptime")),
                counted(number(status, "workers"), "worker"),
            ),
            format!(
                "{}, {}, {}",
                counted(number(status, "allocations"), "session"),
                counted(number(status, "channels"), "channel"),
                counted(number(status, "connections"), "connection"),
            ),
        ];
        for (name, to) in [("to peers  ", "to_peers"), ("to clients", "to_clients")] {
            let rate = |what: &str| self.rate(before, |sample| number(&sample.status, &format!("{what}_{to}")));
            lines.push(format!("{name}  {}  {:.0} packets/s", bit_rate(rate("bytes")), rate("packets")));
        }
        lines.push(format!("dropped     {}", self.dropped(before)));
        lines.push(String::new());
        lines.extend(self.table(before).lines());
        lines.iter().map(|line| printable(line)).collect()
    }

    fn table(&self, before: Option<&Self>) -> Table {
        let earlier: HashMap<&str, &Value> =
            before.iter().flat_map(|before| &before.sessions).map(|session| (text(session, "id"), session)).collect();
        let relayed = |session: &Value| number(session, "bytes_to_peers") + number(session, "bytes_to_client");
        session_table(&self.sessions, &[">RATE"], |session| {
            // A session that was not among the greatest before has no rate yet.
            let rate = earlier.get(text(session, "id")).zip(before).map(|(earlier, before)| {
                bit_rate(per_second(relayed(earlier), relayed(session), self.at.saturating_sub(before.at)))
            });
            vec![rate.unwrap_or_else(|| "-".to_owned())]
        })
    }

    /// Returns the growth of a number per second.
    fn rate(&self, before: Option<&Self>, value: impl Fn(&Self) -> u64) -> f64 {
        before.map_or(0.0, |before| per_second(value(before), value(self), self.at.saturating_sub(before.at)))
    }

    /// Returns the drops per second, and the reasons that occur at present.
    fn dropped(&self, before: Option<&Self>) -> String {
        let count = |sample: &Self, reason: &str| sample.status.get("dropped").map_or(0, |drops| number(drops, reason));
        let reasons = self.status.get("dropped").and_then(Value::as_object);
        let rates = reasons.into_iter().flat_map(|reasons| reasons.keys());
        let mut rates: Vec<(f64, &str)> =
            rates.map(|reason| (self.rate(before, |sample| count(sample, reason)), reason.as_str())).collect();
        rates.retain(|(rate, _)| *rate > 0.0);
        rates.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let reasons: Vec<String> = rates.iter().map(|(rate, reason)| format!("{rate:.0}/s {reason}")).collect();
        if reasons.is_empty() { "no packets".to_owned() } else { reasons.join(", ") }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
fn per_second(before: u64, after: u64, time: Duration) -> f64 {
    // The counters of a restarted server begin at 0.
    after.saturating_sub(before) as f64 / time.as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(at: Duration, bytes: u64, dropped: u64) -> Sample {
        let status = json!({
            "version": "1.0.0", "uptime": 61, "workers": 2, "allocations": 1, "channels": 0, "connections": 0,
            "bytes_to_peers": bytes, "packets_to_peers": bytes / 100, "dropped": { "malformed": dropped, "quiet": 5 },
        });
        let session =
            json!({ "id": "0-1-2", "user": "ann\u{1b}[2J", "bytes_to_peers": bytes, "relay": ["192.0.2.1:5"] });
        Sample { at, status, sessions: vec![session] }
    }

    #[test]
    fn the_screen_shows_rates_since_the_last_look() {
        let at = Duration::from_secs;
        let (before, after) = (sample(at(5), 1_000, 3), sample(at(7), 251_000, 9));
        let lines = after.lines(Some(&before));
        assert_eq!(lines[0], "turnserver 1.0.0  ready  up 1 min 01 s  2 workers  (q quits)");
        assert_eq!(lines[1], "1 session, 0 channels, 0 connections");
        assert_eq!(lines[2], "to peers    1.00 Mbit/s  1250 packets/s");
        assert_eq!(lines[4], "dropped     3/s malformed");
        assert!(
            lines[7].contains("ann\\u{1b}[2J") && lines[7].ends_with("251 kB        0 B  1.00 Mbit/s"),
            "{lines:#?}"
        );
        let first = before.lines(None);
        assert!(first[2].ends_with("0 bit/s  0 packets/s") && first[7].ends_with("  -"), "{first:#?}");
    }
}
