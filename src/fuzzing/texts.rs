//! Small texts of clients and operators: nonces, usernames, session IDs, keys.

use std::net::SocketAddr;

use super::input::Input;
use crate::auth::{KeyHash, NonceMint, Secret, SecurityFeatures, TestLink, time_limited};
use crate::config::{format_duration, is_key_name, parse_duration};
use crate::privacy::{ClientAddresses, Privacy, Usernames};
use crate::turn::AllocationId;

/// Reads the same bytes as each of these texts.
pub fn texts(data: &[u8]) {
    let mut input = Input::new(data);
    let unix = u64::from(input.u32());
    let client = SocketAddr::from(([192, 0, 2, input.byte()], input.u16()));
    let rest = input.rest();
    let _ = KeyHash::of(rest);
    let Ok(text) = str::from_utf8(rest) else { return };

    let mint = NonceMint::from_random([3; 32], 600);
    let nonce = mint.mint(unix, client);
    assert_eq!(mint.check(nonce.as_str(), unix, client), Ok(()));
    if text != nonce.as_str() {
        assert!(mint.check(text, unix, client).is_err(), "only the server makes nonces");
    }
    let _ = SecurityFeatures::of(text);

    let secret = Secret::new("north-star").unwrap();
    if let Ok(username) = time_limited::check_username(text) {
        let password = time_limited::password(&secret, text);
        assert!(!password.is_empty());
        let _ = username.is_in_milliseconds();
    }
    let minted = time_limited::mint(&secret, Some(text), unix);
    if !text.is_empty() {
        assert!(minted.username.ends_with(text));
    }
    let _ = minted.ice_servers(&[text.to_owned()]);

    if let Some(link) = TestLink::of_user(text) {
        assert_eq!(TestLink::of_user(&link.user("x")), Some(link));
    }
    if let Ok(id) = text.parse::<AllocationId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&format_duration(duration)).ok(), Some(duration));
    }
    assert!(!is_key_name(text) || text.is_ascii());
    for usernames in Usernames::ALL {
        let privacy = Privacy::new(ClientAddresses::Full, usernames, [7; 32]);
        let shown = privacy.user(text).map(|shown| shown.into_owned()).unwrap_or_default();
        let quoted = format!("{shown:?}");
        assert!(!quoted.contains(char::is_control), "no line of the log is forged");
    }
}
