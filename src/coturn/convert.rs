//! Decides what becomes of each option.
//!
//! An option is decided once. The steps run in the order of `turnserver.toml`; the table of options decides the rest.

use std::net::IpAddr;

use super::given::{ARGUMENT, Given, What};
use super::options::{Argument, Rule};
use super::value::{self, uncommented};
use super::write::{Output, list};
use super::{Import, Verdict};

use Verdict::{Cannot, Default, Dropped, Taken};

/// The options of which coturn uses all occurrences. Of the others it uses the last one.
const REPEATABLE: [&str; 11] = [
    "allowed-peer-ip",
    "alternate-server",
    "aux-server",
    "denied-peer-ip",
    "external-ip",
    "listening-ip",
    "relay-ip",
    "static-auth-secret",
    "tcp-alternate-server",
    "tls-alternate-server",
    "udp-alternate-server",
];

/// The state of a conversion. An option is named by its index.
pub(super) struct Converter<'m> {
    pub(super) given: Vec<Given>,
    pub(super) out: Output,
    /// The addresses of this machine.
    pub(super) machine: &'m [IpAddr],
    pub(super) differences: Vec<String>,
}

/// Converts options. `origin` names their sources.
pub(super) fn convert(given: Vec<Given>, origin: &str, machine: &[IpAddr]) -> Import {
    let mut converter = Converter { given, out: Output::default(), machine, differences: Vec::new() };
    converter.decide_unusable();
    converter.general();
    converter.listen();
    converter.relay();
    converter.auth();
    converter.peers();
    converter.limits();
    converter.lifetimes();
    converter.alternate();
    converter.log();
    converter.http();
    converter.unsupported();
    for given in &mut converter.given {
        given.decide_by_rule(false);
    }
    converter.undecided();
    let Converter { given, out, differences, .. } = converter;
    Import {
        toml: out.text(origin),
        has_secrets: out.has_secrets(),
        entries: given.into_iter().map(Given::into_entry).collect(),
        differences,
    }
}

impl Converter<'_> {
    /// Decides options that have no effect, and those whose value coturn would not get.
    fn decide_unusable(&mut self) {
        for at in 0..self.given.len() {
            self.decide_repetition(at);
            let Some(given) = self.given.get_mut(at) else { continue };
            let (What::Option(option), None) = (&given.what, &given.outcome) else { continue };
            let is_argument = given.place.starts_with(ARGUMENT);
            match value::is_off(option, &given.value) {
                Ok(true) => given.decide_by_rule(true),
                Err(why) => given.decide(Cannot, why),
                // An empty secret is a secret.
                Ok(false) if option.name == "static-auth-secret" && given.value.is_empty() => given.decide(
                    Cannot,
                    "it has no value, so coturn accepts time-limited credentials for an empty secret: set the secret of \
                     your application in `auth.secrets`",
                ),
                Ok(false) if option.argument == Argument::Required && given.value.is_empty() => {
                    given.decide(Dropped, "it has no value, so coturn uses its default");
                }
                Ok(false) if matches!(option.rule, Rule::Convert(_)) => {
                    if let Some(why) = value::placeholder(option, &given.value, is_argument) {
                        given.decide(Cannot, why);
                    }
                }
                Ok(false) => {}
            }
        }
    }

    /// Decides an option that a later one overrides.
    fn decide_repetition(&mut self, at: usize) {
        let Some(What::Option(option)) = self.given.get(at).map(|given| &given.what) else { return };
        if REPEATABLE.contains(&option.name) || option.name == "user" {
            return;
        }
        let later = self.given.iter().skip(at + 1).rev().find(|later| later.is(option.name));
        let Some(place) = later.map(|later| later.place.clone()) else { return };
        self.decide(at, Dropped, format!("{place} sets it again, and coturn uses the last one"));
    }

    pub(super) fn decide(&mut self, at: usize, verdict: Verdict, text: impl Into<String>) {
        if let Some(given) = self.given.get_mut(at) {
            given.decide(verdict, text);
        }
    }

    pub(super) fn remark(&mut self, at: usize, remark: &str) {
        if let Some(given) = self.given.get_mut(at) {
            given.remark(remark);
        }
    }

    /// Returns the options with this name that are not decided.
    pub(super) fn all(&self, name: &str) -> Vec<usize> {
        let undecided = self.given.iter().enumerate().filter(|(_, given)| given.outcome.is_none());
        undecided.filter(|(_, given)| given.is(name)).map(|(at, _)| at).collect()
    }

    pub(super) fn one(&self, name: &str) -> Option<usize> {
        self.all(name).first().copied()
    }

    /// Whether an option is in effect, decided or not.
    pub(super) fn is_given(&self, name: &str) -> bool {
        let in_effect = |given: &&Given| given.outcome.as_ref().is_none_or(|(verdict, _)| *verdict != Dropped);
        self.given.iter().filter(in_effect).any(|given| given.is(name))
    }

    pub(super) fn value(&self, at: usize) -> &str {
        self.given.get(at).map_or("", |given| given.value.as_str())
    }

    /// Parses a value. An option whose value is wrong is decided.
    pub(super) fn parse<T>(&mut self, at: usize, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.value(at)) {
            Ok(value) => Some(value),
            Err(why) => {
                self.decide(at, Cannot, why);
                None
            }
        }
    }

    /// Returns the only option with this name, with its parsed value.
    pub(super) fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<(usize, T)> {
        let at = self.one(name)?;
        Some((at, self.parse(at, parse)?))
    }

    /// Returns all options with this name whose value can be parsed.
    pub(super) fn parsed_all<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<(usize, T)> {
        let all = self.all(name);
        all.into_iter().filter_map(|at| Some((at, self.parse(at, &parse)?))).collect()
    }

    /// Returns the comment for a value that comes from these options.
    pub(super) fn from(&self, origins: &[usize]) -> String {
        let mut origins = origins.to_vec();
        origins.sort_unstable();
        origins.dedup();
        let name = |given: &Given| match given.what {
            What::Option(option) => format!("{}: {}", given.place.escape_debug(), option.name),
            What::Other(_) => given.place.escape_debug().to_string(),
        };
        let names: Vec<String> = origins.iter().filter_map(|at| self.given.get(*at)).map(name).collect();
        names.join(", ")
    }

    /// Sets a key from one option, and decides it.
    pub(super) fn take(&mut self, at: usize, key: &'static str, value: impl Into<toml::Value>) {
        let from = self.from(&[at]);
        self.out.set(key, value, from);
        self.decide(at, Taken, format!("`{key}`"));
    }

    fn general(&mut self) {
        match self.one("realm") {
            Some(at) => {
                let realm = self.value(at).to_owned();
                let is_ambiguous = realm.contains(" #");
                self.take(at, "realm", realm);
                if is_ambiguous {
                    self.remark(at, COMMENT_IN_VALUE);
                }
            }
            None if !self.is_given("realm") => self.differences.push(
                "without `realm`, coturn uses the domain name of the machine; here the realm is `turnserver`. Set \
                 `realm` if your application names one"
                    .to_owned(),
            ),
            None => {}
        }
        if let Some(at) = self.one("server-name") {
            let name = uncommented(self.value(at)).trim_end_matches('.').to_owned();
            if is_host(&name) {
                self.take(at, "hostname", name);
                self.remark(at, "coturn uses it for OAuth only; here it is the name in printed URLs");
            } else {
                self.decide(at, Dropped, "coturn uses it for OAuth only, and it is not the name of a host");
            }
        }
        // As in coturn, no thread beside the first one is one worker.
        let threads = self.parsed("relay-threads", value::number).map(|(at, threads)| (at, threads.max(1)));
        let workers = threads.or_else(|| self.parsed("cpus", value::number));
        if let Some((at, workers)) = workers {
            self.take(at, "workers", toml_number(workers.min(1024)));
        }
        if let Some(at) = self.one("cpus") {
            self.decide(at, Dropped, "`relay-threads` is the number of workers");
        }
    }

    fn lifetimes(&mut self) {
        if let Some((at, seconds)) = self.parsed("max-allocate-timeout", value::number) {
            self.take(at, "timeouts.unauthenticated", toml_number(seconds.clamp(1, 86_400)));
            self.remark(at, "it applies to TCP and TLS connections; over UDP there is no state before an allocation");
        }
        for (name, seconds, what) in [
            ("max-allocate-lifetime", 3600, "the lifetime of an allocation is at most 3600 s (RFC 8656 §7.2)"),
            ("channel-lifetime", 600, "the lifetime of a channel is 600 s (RFC 8656 §12)"),
            ("permission-lifetime", 300, "the lifetime of a permission is 300 s (RFC 8656 §9)"),
        ] {
            let Some(at) = self.one(name) else { continue };
            let (verdict, rest) = match value::number(self.value(at)) {
                _ if self.value(at).is_empty() => (Default, ""),
                Ok(given) if given == seconds => (Default, ""),
                Ok(given) if given < seconds => (Cannot, ", and no shorter one can be set"),
                _ => (Dropped, " and cannot be changed"),
            };
            self.decide(at, verdict, format!("{what}{rest}"));
        }
        if let Some(at) = self.one("allocation-default-address-family") {
            let is_ipv4 = uncommented(self.value(at)).trim_start_matches('=') == "ipv4";
            let text = "a client gets IPv4 unless it asks for IPv6 (RFC 8656 §7.2)";
            if is_ipv4 {
                self.decide(at, Default, text);
            } else {
                self.decide(at, Cannot, format!("{text}: let clients send REQUESTED-ADDRESS-FAMILY"));
            }
        }
        if let Some(at) = self.one("rfc5766-channel-numbers") {
            self.take(at, "compat.rfc5766-channels", true);
        }
    }

    fn alternate(&mut self) {
        let mut any = Vec::new();
        for (names, key) in [
            (&["alternate-server", "udp-alternate-server", "tcp-alternate-server"][..], "alternate.servers"),
            (&["tls-alternate-server"], "alternate.tls-servers"),
        ] {
            let mut found = Vec::new();
            for name in names {
                found.extend(self.parsed_all(name, super::network::endpoint));
            }
            let mut servers = Vec::new();
            for (at, server) in &found {
                self.decide(*at, Taken, format!("`{key}`; as in coturn, this server then only redirects clients"));
                if !servers.contains(server) {
                    servers.push(*server);
                }
            }
            let origins: Vec<usize> = found.iter().map(|(at, _)| *at).collect();
            if !servers.is_empty() {
                let from = self.from(&origins);
                self.out.set(key, list(servers), from);
            }
            any.extend(origins);
        }
        if !any.is_empty() {
            let from = self.from(&any);
            self.out.set("alternate.when", "always", format!("{from} (coturn redirects every client)"));
        }
    }

    fn log(&mut self) {
        let level = if let Some(at) = self.one("Verbose") {
            Some((at, "debug"))
        } else {
            let levels =
                [("debug", "debug"), ("info", "info"), ("warning", "warn"), ("warn", "warn"), ("error", "error")];
            self.parsed("log-min-level", |value| {
                let value = uncommented(value).to_lowercase();
                let level = levels.iter().find(|(theirs, _)| *theirs == value).map(|(_, ours)| *ours);
                level.ok_or_else(|| "it is no level of the log: set `log.level`".to_owned())
            })
        };
        match level {
            Some((at, "info")) => self.decide(at, Default, "`log.level` is \"info\""),
            Some((at, level)) => self.take(at, "log.level", level),
            None => {}
        }
        for name in ["verbose", "log-min-level"] {
            let Some(at) = self.one(name) else { continue };
            self.decide(at, Default, "at the level \"info\", the log has a line for each allocation");
        }
    }

    fn http(&mut self) {
        let names = ["prometheus-port", "prometheus-address", "prometheus-path", "prometheus-tls"];
        let Some(prometheus) = self.one("prometheus") else {
            for name in names {
                let Some(at) = self.one(name) else { continue };
                self.decide(at, Dropped, "`prometheus` is not set, so coturn has no metrics either");
            }
            return;
        };
        let port = self.parsed("prometheus-port", value::port);
        let address = self.parsed("prometheus-address", value::address);
        let listen = std::net::SocketAddr::new(
            address.map_or(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), |(_, address)| address),
            port.map_or(9641, |(_, port)| port),
        );
        let mut origins = vec![prometheus];
        origins.extend(port.map(|(at, _)| at));
        origins.extend(address.map(|(at, _)| at));
        let from = self.from(&origins);
        self.out.set("http.listen", list([listen]), from);
        for at in origins {
            self.decide(at, Taken, "`http.listen`");
        }
        self.remark(
            prometheus,
            "only this machine can read the metrics until `http.metrics-from` has the address of your Prometheus; their \
             names differ from coturn's (docs/metrics.md)",
        );
        if let Some(at) = self.one("prometheus-tls") {
            if self.out.has("tls.certificate") {
                self.take(at, "http.tls", true);
            } else {
                self.decide(at, Cannot, "it needs a certificate: set `[tls]`, and then `http.tls = true`");
            }
        }
        if let Some(at) = self.one("prometheus-path") {
            let is_default = uncommented(self.value(at)) == "/metrics";
            if is_default {
                self.decide(at, Default, "the path is /metrics");
            } else {
                self.decide(at, Cannot, "the path is always /metrics: remove `metrics_path` from Prometheus");
            }
        }
    }
}

/// What a text value that may have a comment means.
pub(super) const COMMENT_IN_VALUE: &str =
    "coturn takes a `#` after a value as part of it, so it is in the new value, too: remove it if it was a comment";

/// Returns a number for the file. TOML has 64-bit integers with a sign.
pub(super) fn toml_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn is_host(name: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    name.parse::<IpAddr>().is_ok() || name.contains('.') && name.split('.').all(is_label)
}
