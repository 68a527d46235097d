//! Why a certificate could not be ordered.

use std::fmt::{self, Write as _};

use instant_acme::Problem;

pub(super) use crate::printable::shown as text;

/// Why a certificate could not be ordered: one line with what happened and advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) message: String,
    /// How long the authority wants the server to wait, in seconds.
    pub(super) wait: Option<u64>,
    pub(super) kind: Kind,
}

/// What the server does about a failure, besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Other,
    /// If it is the failure of a new order: the authority does not know the account, or has deactivated it.
    AccountGone,
    /// The authority has refused several nonces, one after the other (RFC 8555 §6.5). Another order has others.
    BadNonce,
    /// Nothing can be written to the state directory.
    Unwritable,
}

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), wait: None, kind: Kind::Other }
    }

    /// Puts a text before the message.
    pub(super) fn context(mut self, text: &str) -> Self {
        self.message = format!("{text}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The prefix of the types of errors (RFC 8555 §6.7).
const TYPE: &str = "urn:ietf:params:acme:error:";

/// Returns the failure that a problem document (RFC 7807) describes. `wait` is what the response demands.
pub(super) fn of_problem(problem: &Problem, wait: Option<u64>) -> Failure {
    described(problem, wait, advice)
}

/// Returns the failure that the problem document of a challenge describes.
pub(super) fn of_challenge(problem: &Problem) -> Failure {
    // RFC 8555 §8: a wrong response to a challenge gets `unauthorized`, too. It is not about the account.
    let advice = |kind: &str| advice(if kind == "unauthorized" { "incorrectResponse" } else { kind });
    // A time in the response that has it says when to look again (§7.5.1), not when to order.
    Failure { kind: Kind::Other, ..described(problem, None, advice) }
}

fn described(problem: &Problem, wait: Option<u64>, advice: impl Fn(&str) -> Option<&'static str>) -> Failure {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind.strip_prefix(TYPE).unwrap_or(kind);
    let mut message = String::new();
    if let Some(advice) = advice(kind) {
        let _ = write!(message, "{advice}: ");
    }
    message += &text(problem.detail.as_deref().unwrap_or("the authority gives no reason"));
    for sub in problem.subproblems.iter().take(3) {
        let _ = write!(message, "; {}", text(&sub.to_string()));
    }
    let _ = write!(message, " ({})", text(kind));
    let is_limited = kind == "rateLimited";
    let wait = wait.or_else(|| is_limited.then_some(super::schedule::RATE_LIMITED));
    // RFC 8555 §7.3.6: a deactivated account gets `unauthorized`.
    let is_gone = matches!(kind, "accountDoesNotExist" | "unauthorized");
    let kind = match kind {
        _ if is_gone => Kind::AccountGone,
        "badNonce" => Kind::BadNonce,
        _ => Kind::Other,
    };
    Failure { message, wait, kind }
}

/// Returns what an error of RFC 8555 §6.7 means for the operator.
fn advice(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "accountDoesNotExist" => "the authority does not know the account of this server",
        "caa" => "a CAA record in the DNS forbids the authority to issue this certificate",
        "connection" => {
            "the authority could not connect to this server. Check that the name leads to this server in the DNS, and that \
             port 443 (tls-alpn-01) or 80 (http-01) is open"
        }
        "dns" => "the authority could not find the name in the DNS. Check its A and AAAA records",
        "externalAccountRequired" => {
            "the authority requires an account that it already has. Set tls.acme.eab-key-id and tls.acme.eab-key-file"
        }
        "incorrectResponse" | "tls" => {
            "the authority got something other than the response of this server. Check that the name leads to this server \
             in the DNS, that no proxy terminates TLS in front of it, and that a port forward leads to the right port"
        }
        "invalidProfile" => "the authority does not offer tls.acme.profile",
        "rateLimited" => "the authority limits the rate of orders",
        "rejectedIdentifier" => "the authority issues no certificate for this name",
        "unsupportedContact" | "invalidContact" => "the authority does not accept tls.acme.contact",
        "userActionRequired" => "the authority has new terms of service, which have to be accepted on its web site",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_problem_becomes_one_line_with_advice_and_without_control_characters() {
        let json = r#"{"type":"urn:ietf:params:acme:error:dns","detail":"NXDOMAIN \u001b[2J\n looking up x"}"#;
        let failure = of_problem(&problem(json), None);
        assert!(failure.message.starts_with("the authority could not find the name in the DNS"), "{failure}");
        assert!(failure.message.ends_with("NXDOMAIN  [2J  looking up x (dns)"), "{failure}");
        let long = format!(r#"{{"detail":"{}"}}"#, "x".repeat(100_000));
        assert!(of_problem(&problem(&long), None).message.chars().count() < 520);
        assert_eq!(of_problem(&problem("{}"), None).message, "the authority gives no reason ()");
    }

    #[test]
    fn a_rate_limit_has_a_wait_even_if_the_authority_names_none() {
        let json = problem(r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}"#);
        assert_eq!(of_problem(&json, None).wait, Some(super::super::schedule::RATE_LIMITED));
        assert_eq!(of_problem(&json, Some(90_000)).wait, Some(90_000));
    }

    #[test]
    fn an_account_that_is_unknown_or_deactivated_is_gone() {
        let kind = |json: &str| of_problem(&problem(json), None).kind;
        assert_eq!(kind(r#"{"type":"urn:ietf:params:acme:error:accountDoesNotExist"}"#), Kind::AccountGone);
        assert_eq!(kind(r#"{"type":"urn:ietf:params:acme:error:unauthorized","status":401}"#), Kind::AccountGone);
        assert_eq!(kind(r#"{"type":"urn:ietf:params:acme:error:connection"}"#), Kind::Other);
    }

    // Let's Encrypt sends this if a proxy in front terminates TLS, for example.
    #[test]
    fn a_wrong_response_to_a_challenge_is_not_about_the_account() {
        let json = r#"{"type":"urn:ietf:params:acme:error:unauthorized","detail":"Incorrect validation certificate"}"#;
        let failure = of_challenge(&problem(json));
        assert_eq!(failure.kind, Kind::Other);
        assert!(failure.message.starts_with("the authority got something other than the response"), "{failure}");
        assert!(!of_problem(&problem(json), None).message.contains("response"));
    }
}
