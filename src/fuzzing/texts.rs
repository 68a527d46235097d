//! Small texts of clients and operators: nonces, usernames, session IDs, keys.

use std::net::{Ipv4Addr, SocketAddr};

use super::input::Input;
use crate::auth::{KeyHash, NonceError, NonceMint, Secret, SecurityFeatures, TestLink, time_limited};
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

    nonces(unix, client, rest, text);
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
        assert!(!shown.contains(char::is_control), "no line of the log is forged: {shown:?}");
    }
}

/// Checks that only the server makes nonces: neither a changed one is accepted, nor one for another client or time.
fn nonces(unix: u64, client: SocketAddr, choices: &[u8], text: &str) {
    const LIFETIME: u64 = 600;
    let mint = NonceMint::from_random([3; 32], LIFETIME);
    let made = mint.mint(unix, client);
    let nonce = made.as_str();
    let choice = |at: usize| usize::from(choices.get(at).copied().unwrap_or_default());
    assert_eq!(mint.check(nonce, unix, client), Ok(()));
    assert_eq!(mint.check(nonce, unix + LIFETIME - 1, client), Ok(()));
    assert_eq!(mint.check(nonce, unix + LIFETIME + choice(1) as u64, client), Err(NonceError::Expired));
    if mint.check(text, unix, client) != Err(NonceError::Invalid) {
        // The fuzzer copies what is compared with its input, so it also finds nonces of other seconds.
        let mut seconds = (unix.saturating_sub(1 << 17)..).take(1 << 18);
        assert!(seconds.any(|second| mint.mint(second, client).as_str() == text), "{text} is not of this server");
    }
    // Each place with another character of base64url, and with any other byte.
    let mut changed = nonce.as_bytes().to_vec();
    let at = choice(0) % changed.len();
    for other in
        [b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[choice(1) % 64], choice(1) as u8 & 0x7f]
    {
        let before = std::mem::replace(&mut changed[at], other);
        if before != other {
            let changed = str::from_utf8(&changed).unwrap();
            assert_eq!(mint.check(changed, unix, client), Err(NonceError::Invalid), "{nonce}, changed to {changed}");
        }
        changed[at] = before;
    }
    assert_eq!(mint.check(&nonce[..at], unix, client), Err(NonceError::Invalid));
    let mut others = [client; 2];
    others[0].set_port(client.port() ^ (1 << (choice(2) % 16)));
    others[1].set_ip(Ipv4Addr::new(192, 0, 3, choice(2) as u8).into());
    for other in others {
        assert_eq!(mint.check(nonce, unix, other), Err(NonceError::Invalid), "a nonce is for its client");
    }
    assert_eq!(NonceMint::from_random([4; 32], LIFETIME).check(nonce, unix, client), Err(NonceError::Invalid));
}
