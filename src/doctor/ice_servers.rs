//! The servers that an application hands out to its clients, in the forms in use.

use serde_json::Value;

use crate::auth::{Secret, time_limited};
use crate::client::Credentials;
use crate::clock;

/// The name in the credentials that the diagnosis makes.
const USER: &str = "doctor";

/// Some URIs with one username and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceServer {
    /// The URIs as they were written.
    pub uris: Vec<String>,
    /// The username, if there is one.
    pub username: Option<String>,
    /// The password, if there is one.
    pub password: Option<Secret>,
    /// The secret with which the credential was just made.
    pub secret: Option<Secret>,
}

impl IceServer {
    /// Makes a credential that is valid for `lifetime` seconds.
    #[must_use]
    pub fn minted(uris: Vec<String>, secret: &Secret, lifetime: u64) -> Self {
        let expires = clock::unix_seconds().saturating_add(lifetime);
        let credential = time_limited::mint(secret, Some(USER), expires);
        let password = Secret::new(credential.password.as_bytes()).ok();
        Self { uris, username: Some(credential.username), password, secret: Some(secret.clone()) }
    }
}

/// Why a text names no servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IceServersError {
    /// It is not JSON.
    #[error("this is not JSON ({0}): pass what the application receives, for example the response of /v1/ice-servers")]
    NotJson(String),
    /// It is JSON of another form.
    #[error(
        "there is no TURN server in this JSON: expected iceServers, urls, uris or turnservers, as WebRTC, Matrix, \
         Nextcloud and Cloudflare name them"
    )]
    NoServers,
}

impl IceServer {
    /// Returns username and password, if there are both.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        let (username, password) = (self.username.clone()?, self.password.clone()?);
        Some(Credentials { username, password })
    }
}

/// Reads the servers of an `RTCConfiguration` or of its `iceServers`, and those of Cloudflare, Matrix
/// (`/voip/turnServer`), Nextcloud (the settings of Talk) and draft-uberti-behave-turn-rest.
///
/// # Errors
/// If it is not JSON, or has no server.
pub fn parse(text: &str) -> Result<Vec<IceServer>, IceServersError> {
    let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| IceServersError::NotJson(error.to_string()))?;
    let mut found = Vec::new();
    collect(&value, &mut found);
    if found.iter().flat_map(|server| &server.uris).any(|uri| !is_stun(uri)) {
        Ok(found)
    } else {
        Err(IceServersError::NoServers)
    }
}

/// Whether a URI is that of a STUN server, which relays nothing (RFC 7064).
pub(super) fn is_stun(uri: &str) -> bool {
    let scheme = uri.split(':').next().unwrap_or_default();
    ["stun", "stuns"].iter().any(|stun| scheme.eq_ignore_ascii_case(stun))
}

/// The names of what contains servers.
const CONTAINERS: [&str; 6] = ["iceServers", "ice_servers", "turnservers", "ocs", "data", "result"];

/// The names of the URIs of a server.
const URIS: [&str; 4] = ["urls", "uris", "url", "uri"];

fn collect(value: &Value, found: &mut Vec<IceServer>) {
    if let Value::Array(values) = value {
        return values.iter().for_each(|value| collect(value, found));
    }
    let uris: Vec<String> = URIS.iter().filter_map(|name| value.get(name)).flat_map(strings).collect();
    if uris.is_empty() {
        return CONTAINERS.iter().filter_map(|name| value.get(name)).for_each(|inside| collect(inside, found));
    }
    let text = |names: [&str; 2]| names.iter().find_map(|name| value.get(name)?.as_str());
    found.push(IceServer {
        uris,
        username: text(["username", "user"]).map(str::to_owned),
        password: text(["credential", "password"]).and_then(|password| Secret::new(password).ok()),
        secret: None,
    });
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_all_applications_name_the_same_server() {
        let expected = IceServer {
            uris: vec!["turn:turn.example.org:3478?transport=udp".to_owned()],
            username: Some("1700000000:ann".to_owned()),
            password: Secret::new("pw").ok(),
            secret: None,
        };
        let uri = r#"["turn:turn.example.org:3478?transport=udp"]"#;
        let webrtc = format!(r#"{{"urls": {uri}, "username": "1700000000:ann", "credential": "pw"}}"#);
        for text in [
            webrtc.clone(),
            format!("[{webrtc}]"),
            format!("\u{feff}{{\"iceServers\": [{webrtc}]}}\n"),
            // Cloudflare.
            format!(r#"{{"iceServers": {webrtc}}}"#),
            // Matrix and draft-uberti-behave-turn-rest.
            format!(r#"{{"username": "1700000000:ann", "password": "pw", "uris": {uri}, "ttl": 86400}}"#),
            // Nextcloud Talk.
            format!(r#"{{"ocs": {{"meta": {{}}, "data": {{"stunservers": [], "turnservers": [{webrtc}]}}}}}}"#),
        ] {
            assert_eq!(parse(&text).as_deref(), Ok([expected.clone()].as_slice()), "{text}");
        }
        let [bare] = parse(r#"{"url": "turn:a"}"#).unwrap().try_into().unwrap();
        let uris = vec!["turn:a".to_owned()];
        assert_eq!(bare, IceServer { uris, username: None, password: None, secret: None });
    }

    #[test]
    fn what_names_no_server_is_refused() {
        assert_eq!(parse(r#"{"servers": []}"#), Err(IceServersError::NoServers));
        assert_eq!(parse("[]"), Err(IceServersError::NoServers));
        assert_eq!(parse(r#"{"iceServers": [{"urls": ["STUN:a", "stuns:b"]}]}"#), Err(IceServersError::NoServers));
        assert!(matches!(parse("turn:a"), Err(IceServersError::NotJson(_))));
    }

    #[test]
    fn debug_shows_no_password() {
        let servers = parse(r#"{"urls": "turn:a", "username": "ann", "credential": "north wind"}"#).unwrap();
        assert!(!format!("{servers:?}").contains("north"));
    }
}
