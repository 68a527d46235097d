//! Orders to nodes over the engine.
//!
//! An order that a node carries out has the subject `FLEET.order.VERB.all` or `FLEET.order.VERB.node.NODE`. It becomes a
//! request as on the control socket, with the same checks and the same response. An order that changes the common state has
//! the subject `FLEET.order.VERB`; one node carries it out. Who may send an order is a matter of the engine's permissions.

use form_urlencoded::Serializer;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::state::{FleetRevocation, FleetSecret, MAX_SECRET, is_username};
use crate::auth::{Secret, time_limited};
use crate::config;
use crate::fleet::Heartbeat;
use crate::http::InternalRequest;

/// The longest order in bytes.
pub(super) const MAX_ORDER: usize = 16 * 1024;
/// The longest time in which a node carries out an order.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// The shortest secret that an order adds, in bytes.
const MIN_SECRET: usize = 16;

/// The orders that change the common state.
pub(super) const OF_STATE: [&str; 4] = ["revoke", "secret-add", "secret-retire", "secrets"];

/// A change of the common state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StateOrder {
    Revoke(FleetRevocation),
    EndRevocation(String),
    AddSecret(String, FleetSecret),
    RetireSecret(String, u64),
    ListSecrets,
}

/// Returns the verb of the subject of an order; `None` for another subject.
pub(super) fn verb<'s>(subject: &'s str, fleet: &str) -> Option<&'s str> {
    let rest = subject.strip_prefix(fleet)?.strip_prefix(".order.")?;
    rest.split('.').next()
}

/// Whether a reply subject is an inbox, where a message is nothing but a response. Nodes may publish more than those who send
/// orders, so a response to another subject could be a command to the engine.
pub(super) fn is_inbox(reply: &str) -> bool {
    reply.starts_with("_INBOX")
}

/// Reads the arguments of an order: an object, or nothing.
pub(super) fn arguments(payload: &[u8]) -> Result<Map<String, Value>, String> {
    if payload.len() > MAX_ORDER {
        return Err(format!("the order has more than {MAX_ORDER} bytes"));
    }
    if payload.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(payload) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        _ => Err("the order is no JSON object".to_owned()),
    }
}

/// Returns the request on the control socket that an order means.
pub(super) fn request(verb: &str, arguments: &Map<String, Value>) -> Result<Request<Bytes>, String> {
    let query = |names: &[&str]| -> Result<String, String> {
        let mut query = Serializer::new(String::new());
        for (name, value) in arguments {
            if !names.contains(&name.as_str()) {
                return Err(unknown(name, names));
            }
            match value {
                Value::Null => {}
                Value::String(text) => drop(query.append_pair(name, text)),
                Value::Number(number) => drop(query.append_pair(name, &number.to_string())),
                _ => return Err(format!("`{name}` must be a text or a number")),
            }
        }
        Ok(query.finish())
    };
    let (method, path) = match verb {
        "kick" => match arguments.get("session").and_then(Value::as_str) {
            Some(session) if arguments.len() == 1 && is_session(session) => {
                (Method::DELETE, format!("/v1/sessions/{session}"))
            }
            Some(_) => return Err("`session` must be the ID of a session, without other arguments".to_owned()),
            None => (Method::DELETE, format!("/v1/sessions?{}", query(&["user", "client", "peer"])?)),
        },
        "sessions" => {
            (Method::GET, format!("/v1/sessions?{}", query(&["user", "client", "peer", "top", "limit", "cursor"])?))
        }
        "drain" | "resume" => {
            query(&[])?;
            (Method::POST, format!("/v1/{verb}"))
        }
        "status" => {
            query(&[])?;
            (Method::GET, "/v1/status".to_owned())
        }
        _ => return Err(format!("there is no order {verb:?}")),
    };
    let request = Request::builder().method(method).uri(path).body(Bytes::new());
    request.map_err(|error| error.to_string())
}

fn unknown(name: &str, names: &[&str]) -> String {
    match names {
        [] => format!("the order has no argument `{}`", crate::printable::shown(name)),
        names => format!("unknown argument `{}`: there are {}", crate::printable::shown(name), names.join(", ")),
    }
}

fn is_session(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// Lets the HTTP server carry out a request. Returns the result, or the message of a refusal.
pub(super) async fn carry_out(
    internal: &mpsc::Sender<InternalRequest>,
    request: Request<Bytes>,
) -> Result<Value, String> {
    const GONE: &str = "the server is stopping";
    let (sender, response) = oneshot::channel();
    internal.send((request, sender)).await.map_err(|_| GONE.to_owned())?;
    let response = timeout(PATIENCE, response).await.map_err(|_| "the node did not respond in time".to_owned())?;
    let response: Response<Full<Bytes>> = response.map_err(|_| GONE.to_owned())?;
    let status = response.status();
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok(value);
    }
    let message = value.get("error").and_then(Value::as_str).map(str::to_owned);
    Err(message.unwrap_or_else(|| status.to_string()))
}

/// Reads an order that changes the common state. `grace` is how long after its expiry a credential may still be used, in
/// seconds.
pub(super) fn state_order(
    verb: &str,
    arguments: &Map<String, Value>,
    unix_now: u64,
    grace: u64,
) -> Result<StateOrder, String> {
    let known = |names: &[&str]| match arguments.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(unknown(name, names)),
        None => Ok(()),
    };
    let text = |name: &str| match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("`{name}` must be a text")),
    };
    let time = |name: &str| match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(at) if time_limited::is_plausible_time(at) => Ok(Some(at)),
            _ => Err(format!("`{name}` must be a time in seconds since the Unix epoch; now is {unix_now}")),
        },
    };
    let id = || {
        let id = text("id")?.ok_or("the order needs `id`, the name of the secret".to_owned())?;
        if Heartbeat::is_node_name(id) {
            Ok(id.to_owned())
        } else {
            Err("`id` must have 1 to 64 letters, digits, hyphens and underscores".to_owned())
        }
    };
    match verb {
        "revoke" => {
            known(&["username", "until", "end"])?;
            let username = text("username")?
                .filter(|name| is_username(name))
                .ok_or_else(|| "the order needs `username`, of 1 to 763 bytes without control characters".to_owned())?;
            let username = username.to_owned();
            if arguments.get("end") == Some(&Value::Bool(true)) {
                return Ok(StateOrder::EndRevocation(username));
            }
            let until = match time("until")? {
                Some(until) => until,
                None => {
                    let parsed = time_limited::check_username(&username)
                        .map_err(|error| format!("{error}. To revoke another username, say until when"))?;
                    parsed.expires.saturating_add(grace)
                }
            };
            if until <= unix_now {
                return Err("the time is over, so there is nothing to revoke".to_owned());
            }
            Ok(StateOrder::Revoke(FleetRevocation { username, until, is_shortened: false, changed: 0 }))
        }
        "secret-add" => {
            known(&["id", "secret", "from"])?;
            let secret = text("secret")?.ok_or("the order needs `secret`".to_owned())?;
            config::secrets::secret(secret.as_bytes()).map_err(|bad| format!("`secret` is {bad}"))?;
            if secret.len() < MIN_SECRET {
                return Err(format!(
                    "the secret has less than {MIN_SECRET} bytes, so it can be guessed: create one with `openssl rand \
                     -hex 32`"
                ));
            }
            if secret.len() > MAX_SECRET {
                return Err(format!("the secret has more than {MAX_SECRET} bytes"));
            }
            let secret = Secret::new(secret).map_err(|error| error.to_string())?;
            Ok(StateOrder::AddSecret(
                id()?,
                FleetSecret { secret, from: time("from")?.unwrap_or(unix_now), until: None, changed: 0 },
            ))
        }
        "secret-retire" => {
            known(&["id", "at"])?;
            // Not earlier, or the entry would be forgotten at once, and could come back from a node that was away.
            Ok(StateOrder::RetireSecret(id()?, time("at")?.unwrap_or(unix_now).max(unix_now)))
        }
        "secrets" => {
            known(&[])?;
            Ok(StateOrder::ListSecrets)
        }
        _ => Err(format!("there is no order {verb:?}")),
    }
}

/// Returns the response of a node to an order.
pub(super) fn response(node: &str, result: &Result<Value, String>) -> Value {
    match result {
        Ok(value) => json!({ "node": node, "ok": true, "result": value }),
        Err(why) => json!({ "node": node, "ok": false, "error": why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_of(text: &str) -> Map<String, Value> {
        arguments(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_order_becomes_a_request_on_the_control_socket() {
        for (verb, text, method, uri) in [
            ("kick", r#"{"user":"a b"}"#, "DELETE", "/v1/sessions?user=a+b"),
            ("kick", r#"{"session":"0-1-2"}"#, "DELETE", "/v1/sessions/0-1-2"),
            ("sessions", r#"{"top":"bytes","limit":5}"#, "GET", "/v1/sessions?limit=5&top=bytes"),
            ("drain", "", "POST", "/v1/drain"),
            ("resume", "{}", "POST", "/v1/resume"),
            ("status", "", "GET", "/v1/status"),
        ] {
            let request = request(verb, &arguments_of(text)).unwrap();
            assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), (method, uri));
        }
    }

    #[test]
    fn a_wrong_order_is_refused_with_its_reason() {
        for (verb, text, part) in [
            ("kick", r#"{"usr":"a"}"#, "unknown argument `usr`"),
            ("kick", r#"{"session":"../status"}"#, "must be the ID of a session"),
            ("drain", r#"{"now":true}"#, "has no argument"),
            ("reload", "", "there is no order"),
        ] {
            let error = request(verb, &arguments_of(text)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(arguments(b"[]").unwrap_err().contains("no JSON object"));
        assert!(arguments(&vec![b' '; MAX_ORDER + 1]).is_err());
    }

    #[test]
    fn the_subject_names_the_order() {
        assert_eq!(verb("turn.order.kick.node.fra-1", "turn"), Some("kick"));
        assert_eq!(verb("turn.order.drain.all", "turn"), Some("drain"));
        assert_eq!(verb("other.order.drain.all", "turn"), None);
    }

    #[test]
    fn a_response_goes_to_an_inbox_only() {
        assert!(["_INBOX.a", "_INBOX_turn_operator.a.b"].into_iter().all(is_inbox));
        let others =
            ["$JS.API.STREAM.PURGE.turn_events", "$KV.turn_state.secret.2026", "turn.order.drain.all", "", "a._INBOX"];
        assert!(!others.into_iter().any(is_inbox));
    }

    #[test]
    fn a_request_of_the_operator_does_not_print_its_secret() {
        let order = json!({ "order": "secret-add", "with": { "id": "a", "secret": "0123456789abcdef" } });
        let text = format!("{:?}", super::super::Request { order, response: oneshot::channel().0 });
        assert!(text.contains("secret-add") && !text.contains("0123456789abcdef"), "{text}");
    }

    #[test]
    fn an_order_for_the_state_is_checked() {
        const NOW: u64 = 1_767_225_600;
        let order = |verb: &str, text: &str| state_order(verb, &arguments_of(text), NOW, 60);
        let ann = format!("{}:ann", NOW + 100);
        assert_eq!(
            order("revoke", &format!(r#"{{"username":"{ann}"}}"#)),
            Ok(StateOrder::Revoke(FleetRevocation {
                username: ann.clone(),
                until: NOW + 160,
                is_shortened: false,
                changed: 0
            }))
        );
        assert_eq!(
            order("revoke", &format!(r#"{{"username":"{ann}","end":true}}"#)),
            Ok(StateOrder::EndRevocation(ann))
        );
        let id = "b";
        let Ok(StateOrder::AddSecret(name, added)) = order("secret-add", r#"{"id":"b","secret":"0123456789abcdef"}"#)
        else {
            panic!()
        };
        assert_eq!((name.as_str(), added.from, added.until), (id, NOW, None));
        for (verb, text, part) in [
            ("revoke", r#"{"username":"ann"}"#, "say until when"),
            ("revoke", r#"{"username":"1000000000:ann"}"#, "nothing to revoke"),
            ("secret-add", r#"{"id":"b","secret":"short"}"#, "less than 16 bytes"),
            (
                "secret-add",
                &format!(r#"{{"id":"b","secret":"{}"}}"#, "s".repeat(MAX_SECRET + 1)),
                "more than 1024 bytes",
            ),
            ("secret-add", r#"{"id":"b.c","secret":"0123456789abcdef"}"#, "`id` must have"),
            ("secret-add", r#"{"id":"b","secret":"0123456789abcdef","from":5}"#, "`from` must be a time"),
            ("secret-retire", "{}", "needs `id`"),
        ] {
            let error = order(verb, text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
