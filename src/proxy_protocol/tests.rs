use proptest::prelude::*;

use super::*;

fn header(bytes: &[u8]) -> Header {
    match parse(bytes) {
        Ok(Parsed::Header(header)) => header,
        other => panic!("{other:?} instead of a header"),
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Returns a binary header with these bytes after the signature.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend(rest);
    bytes
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xDC, 0x04, 0x01, 0xBB];

// §2.1: the examples of the specification.
#[test]
fn a_line_of_version_1_names_client_and_server() {
    let line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n";
    let expected = Addresses { client: address("192.168.0.1:56324"), server: address("192.168.0.11:443") };
    assert_eq!(header(line), Header { length: 47, addresses: Some(expected) });
    let line = b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.7 0 65535\r\n";
    let expected = Addresses { client: address("[2001:db8::1]:0"), server: address("[::ffff:192.0.2.7]:65535") };
    assert_eq!(header(line), Header { length: line.len(), addresses: Some(expected) });
}

// §2.1: the worst cases of the specification, of 56, 104 and 107 bytes.
#[test]
fn the_longest_lines_of_version_1_are_read() {
    let v4 = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
    let v6 =
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    let unknown =
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!([v4.len(), v6.len(), unknown.len()], [56, 104, V1_LONGEST]);
    assert!(header(v4).addresses.is_some() && header(v6).addresses.is_some());
    assert_eq!(header(unknown), Header { length: 107, addresses: None });
    let mut longer = unknown.to_vec();
    longer.insert(14, b'f');
    assert_eq!(parse(&longer), Err(Malformed::TooLong));
    assert_eq!(parse(longer.get(..107).unwrap()), Err(Malformed::TooLong));
    assert_eq!(parse(longer.get(..106).unwrap()), Err(Malformed::TooLong));
    assert_eq!(parse(longer.get(..105).unwrap()), Ok(Parsed::Incomplete { at_least: 107 }));
}

#[test]
fn an_unknown_client_has_the_address_of_the_connection() {
    assert_eq!(header(b"PROXY UNKNOWN\r\n"), Header { length: 15, addresses: None });
    assert_eq!(header(b"PROXY UNKNOWN what ever\r\n\r\n"), Header { length: 25, addresses: None });
}

#[test]
fn a_bad_line_of_version_1_is_malformed() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        "PROXY TCP4 192.0.02.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP6 fe80::1%1 2001:db8::2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 \u{fc}\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(Malformed::Line), "{line:?}");
    }
}

// §2.2
#[test]
fn a_binary_header_names_client_and_server() {
    let bytes = [
        0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, // signature
        0x21, 0x11, 0x00, 0x0C, // version 2, PROXY; AF_INET, STREAM; 12 bytes
        0xC0, 0x00, 0x02, 0x01, 0xC6, 0x33, 0x64, 0x02, 0xDC, 0x04, 0x01, 0xBB, // addresses, ports
    ];
    let expected = Addresses { client: address("192.0.2.1:56324"), server: address("198.51.100.2:443") };
    assert_eq!(header(&bytes), Header { length: 28, addresses: Some(expected) });
    assert_eq!(header(&binary(0x21, 0x12, &IPV4)).addresses, Some(expected), "DGRAM");
    let mut v6 = [0; 36];
    v6[15] = 1;
    v6[31] = 2;
    v6[33] = 3;
    v6[35] = 4;
    let expected = Addresses { client: address("[::1]:3"), server: address("[::2]:4") };
    assert_eq!(header(&binary(0x21, 0x21, &v6)), Header { length: 52, addresses: Some(expected) });
}

#[test]
fn local_unspecified_and_unix_headers_have_no_addresses() {
    for (command, family, rest) in [
        (0x20, 0x00, [].as_slice()),
        (0x20, 0x11, &IPV4),
        (0x20, 0xFF, &[1, 2, 3]),
        (0x21, 0x00, &[]),
        (0x21, 0x31, &[7; 216]),
        (0x21, 0x32, &[7; 216]),
    ] {
        let bytes = binary(command, family, rest);
        assert_eq!(header(&bytes), Header { length: bytes.len(), addresses: None });
    }
}

#[test]
fn a_bad_binary_header_is_malformed() {
    for (command, family, rest, expected) in [
        (0x11, 0x11, IPV4.as_slice(), Malformed::Version),
        (0x31, 0x11, &IPV4, Malformed::Version),
        (0x22, 0x11, &IPV4, Malformed::Command),
        (0x21, 0x10, &IPV4, Malformed::Family),
        (0x21, 0x13, &IPV4, Malformed::Family),
        (0x21, 0x41, &IPV4, Malformed::Family),
        (0x21, 0x01, &IPV4, Malformed::Family),
        (0x21, 0x11, &IPV4[..11], Malformed::Length),
        (0x21, 0x21, &[0; 35], Malformed::Length),
        (0x21, 0x31, &[0; 215], Malformed::Length),
        (0x21, 0x11, &[0; 14], Malformed::Field),
        (0x21, 0x00, &[0x04, 0, 2, 0], Malformed::Field),
        (0x21, 0x00, &[TYPE_CRC32C, 0, 2, 0, 0], Malformed::Field),
        (0x21, 0x00, &[TYPE_CRC32C, 0, 4, 0, 0, 0, 0], Malformed::Checksum),
        (0x21, 0x00, &[0; 4_097], Malformed::TooLong),
    ] {
        assert_eq!(parse(&binary(command, family, rest)), Err(expected), "{command:x} {family:x}");
    }
    assert!(matches!(parse(&binary(0x20, 0, &[0; 4_096])), Ok(Parsed::Header(_))));
}

#[test]
fn the_fields_after_the_addresses_are_skipped_and_the_checksum_is_checked() {
    // RFC 3720 appendix B.4
    assert_eq!(crc32c([0; 32].into_iter()), 0x8A91_36AA);
    assert_eq!(crc32c(0..32), 0x46DD_794E);
    let mut rest = IPV4.to_vec();
    // PP2_TYPE_ALPN with `h2`, the checksum, PP2_TYPE_NOOP.
    rest.extend([0x01, 0, 2, b'h', b'2', TYPE_CRC32C, 0, 4, 0, 0, 0, 0, 0x04, 0, 1, 0]);
    let mut bytes = binary(0x21, 0x11, &rest);
    let place = V2_FIXED + IPV4.len() + 8;
    let checksum = crc32c(bytes.iter().copied());
    bytes[place..place + 4].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(header(&bytes).length, bytes.len());
    for index in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[index] ^= 1;
        let accepted = matches!(parse(&changed), Ok(Parsed::Header(Header { addresses: Some(_), .. })));
        // With another type, the checksum is a field of which nothing is known.
        assert_eq!(accepted, index == place - 3, "byte {index}");
    }
}

#[test]
fn other_protocols_are_not_headers() {
    let stun = [0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42];
    let tls = [0x16, 3, 1, 0, 5];
    let channel_data = [0x40, 0, 0, 4];
    for bytes in [&stun[..], &tls, &channel_data, b"GET / HTTP/1.1\r\n", b"PROXY\r\n", b"\r\n\r\n\r\n", b"PROXYTCP4"] {
        assert_eq!(parse(bytes), Ok(Parsed::NotAHeader), "{bytes:?}");
    }
    assert_eq!(parse(&[]), Ok(Parsed::Incomplete { at_least: V2_FIXED }));
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

/// Returns a whole header of one of the versions.
fn any_header() -> impl Strategy<Value = (Vec<u8>, Option<Addresses>)> {
    let addresses = (any_address(), any_address()).prop_map(|(client, server)| Addresses { client, server });
    (proptest::option::of(addresses), any::<bool>()).prop_map(|(addresses, text)| {
        let mut bytes = Vec::new();
        match addresses {
            _ if !text => write(addresses, &mut bytes),
            None => bytes.extend(b"PROXY UNKNOWN\r\n"),
            Some(Addresses { client, server }) => {
                let is_v4 = client.is_ipv4() && server.is_ipv4();
                let ip = |of: SocketAddr| if is_v4 { of.ip() } else { mapped(of.ip()).into() };
                let (family, ports) = (if is_v4 { 4 } else { 6 }, (client.port(), server.port()));
                let line = format!("PROXY TCP{family} {} {} {} {}\r\n", ip(client), ip(server), ports.0, ports.1);
                bytes.extend(line.bytes());
            }
        }
        (bytes, addresses)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_parsed_whatever_follows((bytes, expected) in any_header(), more: Vec<u8>) {
        let canonical = |of: SocketAddr| SocketAddr::new(of.ip().to_canonical(), of.port());
        let canonical = |of: Addresses| Addresses { client: canonical(of.client), server: canonical(of.server) };
        let parsed = header(&[bytes.as_slice(), &more].concat());
        prop_assert_eq!(parsed.length, bytes.len());
        prop_assert_eq!(parsed.addresses.map(canonical), expected.map(canonical));
    }

    #[test]
    fn every_start_of_a_header_is_incomplete((bytes, _) in any_header()) {
        for length in 0..bytes.len() {
            let parsed = parse(&bytes[..length]);
            let Ok(Parsed::Incomplete { at_least }) = parsed else { panic!("{parsed:?} of {length} bytes") };
            prop_assert!(at_least > length && at_least <= bytes.len().max(V2_FIXED));
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(prefix in 0..3_usize, bytes: Vec<u8>) {
        let prefix = [&[], SIGNATURE.as_slice(), V1_PREFIX][prefix];
        let bytes = [prefix, &bytes].concat();
        if let Ok(Parsed::Header(header)) = parse(&bytes) {
            prop_assert!(header.length <= bytes.len());
        }
    }
}
