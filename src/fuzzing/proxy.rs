//! Headers of the PROXY protocol.

use std::net::SocketAddr;

use super::input::Input;
use crate::proxy_protocol::{Addresses, LONGEST, Parsed, begins, parse, write};

/// Parses the same bytes as they are and in pieces, and writes what was parsed.
pub fn proxy(data: &[u8]) {
    let whole = parse(data);
    if let Ok(Parsed::Header(header)) = whole {
        assert!(header.length <= data.len() && header.length <= LONGEST);
        assert!(begins(data));
        for cut in (0..header.length).chain(header.length..data.len().min(header.length + 8)) {
            match parse(&data[..cut]) {
                Ok(Parsed::Incomplete { at_least }) => assert!(cut < at_least && at_least <= header.length.max(16)),
                found => assert!(cut >= header.length && found == whole, "the header does not depend on what follows"),
            }
        }
        if let Some(addresses) = header.addresses {
            check_written(addresses);
        }
    }
    if let Ok(Parsed::Incomplete { at_least }) = whole {
        assert!(data.len() < at_least && at_least <= LONGEST, "what is kept for a header is bounded");
    }
    if whole == Ok(Parsed::NotAHeader) {
        assert!(!begins(data));
    }
    let mut input = Input::new(data);
    let mut address = || SocketAddr::from(([input.byte(), 0, 2, input.byte()], input.u16()));
    check_written(Addresses { client: address(), server: address() });
}

/// Checks that what is written is read back.
fn check_written(addresses: Addresses) {
    let mut written = Vec::new();
    write(Some(addresses), &mut written);
    let Ok(Parsed::Header(header)) = parse(&written) else { panic!("{addresses:?} is not read back") };
    assert_eq!(header.length, written.len());
    assert_eq!(header.addresses.map(Addresses::canonical), Some(addresses.canonical()));
}
