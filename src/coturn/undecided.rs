//! Restrictions that cannot be taken over.
//!
//! Without them, the new server would do more than the old one. So the new file has a key on which the server does not
//! start, until the operator has decided. Lifetimes, versions of TLS and credentials for Binding requests are not among
//! them: they restrict neither who can use the relay nor for what.

use super::Verdict;
use super::convert::Converter;
use super::given::What;
use super::write::list;
use crate::printable::Escaped;

/// The key of the new configuration. The server knows it only as an error.
pub const KEY: &str = "undecided";

/// The comment above the key.
const COMMENT: &str = "These restrictions could not be taken over. The server does not start until you have set the keys\n\
                       # that the report of the import names, and removed this line.";

impl Converter<'_> {
    /// Names the restrictions that cannot be taken over in the new configuration, and their effect in the report.
    pub(super) fn undecided(&mut self) {
        let mut origins = Vec::new();
        for at in 0..self.given.len() {
            let Some(given) = self.given.get(at) else { continue };
            let (What::Option(option), Some((Verdict::Cannot, _))) = (&given.what, &given.outcome) else { continue };
            let Some(effect) = self.without(option.name) else { continue };
            origins.push(Escaped(&format!("{}: {}", given.place, given.shown())).to_string());
            self.remark(
                at,
                &format!("without a decision, {effect}, so the new file has it in `{KEY}` and does not start"),
            );
        }
        if !origins.is_empty() {
            self.out.set(KEY, list(origins), COMMENT.to_owned());
        }
    }

    /// Returns what the server does without an option, if that is more than coturn does with it.
    fn without(&self, name: &str) -> Option<String> {
        let value = |key: &str, default: &str| self.out.get(key).map_or(default.to_owned(), ToString::to_string);
        let effect = match name {
            "listening-device" | "listening-ip" => {
                format!("the server listens on {}", value("listen.udp", "port 3478 of all addresses"))
            }
            "relay-device" | "relay-ip" => {
                format!("it relays from {}", value("relay.addresses", "addresses that it selects from all interfaces"))
            }
            "prometheus-address" => format!("the metrics are at {}", value("http.listen", "no address")),
            "denied-peer-ip" => "only the peers that other lines deny, and special-purpose ones, are denied".to_owned(),
            "user-quota" => "a user has at most 32 allocations, and a static user any number".to_owned(),
            "total-quota" => "there are as many allocations as relay ports".to_owned(),
            "max-bps" => "the data of an allocation is not limited".to_owned(),
            "bps-capacity" => "the data of all allocations together is not limited".to_owned(),
            "no-udp" => "clients can use UDP".to_owned(),
            "no-tcp" => "clients can use TCP".to_owned(),
            "no-tls" => "clients can use TLS if there is a certificate".to_owned(),
            "no-udp-relay" => "the server relays UDP".to_owned(),
            "CA-file" => "clients need no certificate".to_owned(),
            "stun-only" => "clients with a credential can allocate".to_owned(),
            _ => return None,
        };
        Some(effect)
    }
}
