//! Parsing of valid and of damaged certificates.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore};

use super::*;
use crate::test_certificates::{Authority, Issued};

/// Returns the server side, and the session of a client whose only key share is of a group that the server does not support.
pub(crate) fn session_without_usable_key_share() -> (Acceptor, ClientConnection) {
    let authority = Authority::new(crate::clock::unix_seconds());
    let acceptor = Acceptor::new(vec![setup(&authority, &authority.issue(&["localhost"]))]);
    let mut provider = ring::default_provider();
    provider.kx_groups = vec![&Unsupported, ring::kx_group::X25519];
    let mut roots = RootCertStore::empty();
    roots.add(der(&authority.root())).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (acceptor, ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap())
}

fn setup(authority: &Authority, issued: &Issued) -> Setup {
    let chain = CertificateDer::pem_slice_iter(authority.chain(issued).as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let certified = Arc::new(CertifiedKey::new(chain, ring::sign::any_supported_type(&key).unwrap()));
    let certificate = Certificate::parse(&der(&issued.own)).unwrap();
    Setup { certified, certificate, issuers: Vec::new(), chain: Chain::Ordered, is_invalid: false }
}

/// A group that the server does not support.
#[derive(Debug)]
struct Unsupported;

impl SupportedKxGroup for Unsupported {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

impl ActiveKeyExchange for Unsupported {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, rustls::Error> {
        unreachable!("the server does not select this group")
    }

    fn pub_key(&self) -> &[u8] {
        &[4; 133]
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

const NOW: u64 = 1_700_000_000;
const DAY: u64 = 86_400;

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_certificate_or_a_key_that_is_no_regular_file_is_not_read() {
    let directory = std::env::temp_dir().join(format!("turnserver-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let authority = Authority::new(crate::clock::unix_seconds());
    let (chain, device) = (directory.join("chain.pem"), Path::new("/dev/null"));
    std::fs::write(&chain, authority.chain(&authority.issue(&["localhost"]))).unwrap();
    let is_refused = |error: &FileError| error.to_string().contains("it is a device, not a regular file");
    for (certificate, key) in [(device, chain.as_path()), (&chain, device)] {
        let (LoadError::Certificate(error) | LoadError::Key(error)) = load(certificate, key).unwrap_err() else {
            panic!("a mismatch needs both files")
        };
        assert!(is_refused(&error), "{error}");
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn subject_names_and_validity_are_parsed() {
    let authority = Authority::new(NOW);
    let issued = authority.issue(&["turn.example.org", "*.example.net", "192.0.2.7", "2001:db8::7"]);
    let certificate = Certificate::parse(&der(&issued.own)).unwrap();
    assert_eq!(certificate.names, ["turn.example.org", "*.example.net"]);
    assert_eq!(certificate.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.7", "2001:db8::7"]);
    assert!(certificate.subject.ends_with("CN=server"), "{certificate:?}");
    assert!(certificate.issuer.ends_with("CN=Test Intermediate"), "{certificate:?}");
    assert_eq!(certificate.serial, issued.serial);
    assert_eq!((certificate.not_before, certificate.not_after), (NOW - DAY, NOW + 90 * DAY));

    let [root, intermediate] =
        [authority.root(), authority.intermediate()].map(|pem| Certificate::parse(&der(&pem)).unwrap());
    assert!(root.is_self_signed() && !intermediate.is_self_signed() && !certificate.is_self_signed());
    assert!(certificate.is_issued_by(&intermediate) && intermediate.is_issued_by(&root));
    assert!(!certificate.is_issued_by(&root) && root.names.is_empty());
}

// RFC 5280 §4.1.2.5: times from 2050 on are encoded as GeneralizedTime.
#[test]
fn a_certificate_may_end_after_2049() {
    let end = 4_107_542_400;
    let issued = Authority::new(NOW).issue_for(&["localhost"], NOW, end);
    let certificate = Certificate::parse(&der(&issued.own)).unwrap();
    assert_eq!((certificate.not_before, certificate.not_after), (NOW, end));
    // From `date -u -d @SECONDS`.
    assert_eq!([date(NOW), date(end)], ["2023-11-14 22:13 UTC", "2100-03-01 00:00 UTC"]);
}

// RFC 9525 §6.3
#[test]
fn a_wildcard_matches_one_label_and_an_address_only_itself() {
    let issued = Authority::new(NOW).issue(&["turn.example.org", "*.example.net", "192.0.2.7", "2001:db8::7"]);
    let certificate = Certificate::parse(&der(&issued.own)).unwrap();
    for host in ["turn.example.org", "TURN.Example.org.", "a.example.net", "192.0.2.7", "[2001:db8::7]"] {
        assert!(certificate.covers(host), "{host}");
    }
    for host in ["example.org", "a.turn.example.org", "example.net", "a.b.example.net", "192.0.2.8", "[2001:db8::8]"] {
        assert!(!certificate.covers(host), "{host}");
    }
}

#[test]
fn a_certificate_that_is_not_valid_is_for_clients_that_can_use_no_other_one() {
    let authority = Authority::new(NOW);
    let expired = |names: &[&str]| authority.issue_for(names, NOW - 90 * DAY, NOW - DAY);
    let issued = [
        expired(&["turn.example.org"]),
        authority.issue_with_ed25519(&["turn.example.org"]),
        authority.issue_for(&["web.example.org"], NOW + DAY, NOW + 90 * DAY),
        authority.issue(&["*.example.org"]),
        expired(&["a.example.net"]),
    ];
    let mut all = issued.each_ref().map(|issued| setup(&authority, issued));
    assert_eq!(all.each_mut().map(|setup| setup.compare(NOW)), [true, false, true, false, true]);
    let selected = |name| for_client(&all, name).unwrap().certificate.serial.as_str();
    for (name, expected) in [
        (Some("turn.example.org"), 1),
        (Some("web.example.org"), 3),
        (Some("a.example.net"), 4),
        // The twin of the default one.
        (None, 1),
    ] {
        assert_eq!(selected(name), issued[expected].serial, "{name:?}");
    }
    let only_ecdsa = selection::select(&all, Some("turn.example.org"), |setup| setup.key_type() == KeyType::Ecdsa);
    assert_eq!(only_ecdsa.unwrap().certificate.serial, issued[3].serial);
    assert!(all.iter_mut().any(|setup| setup.compare(NOW - 2 * DAY)));
    assert_eq!(for_client(&all, Some("turn.example.org")).unwrap().certificate.serial, issued[0].serial);
}

#[test]
fn a_certificate_for_another_key_is_refused_for_that() {
    let authority = Authority::new(NOW);
    let [issued, other] = [(); 2].map(|()| authority.issue(&["localhost"]));
    let chain = authority.chain(&issued);
    assert!(check(chain.as_bytes(), issued.key.as_bytes()).is_ok());
    let refused = check(chain.as_bytes(), other.key.as_bytes()).unwrap_err();
    assert_eq!(refused.to_string(), "it is for another key");
}

proptest! {
    #[test]
    fn a_mutated_certificate_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        static ISSUED: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let issued = ISSUED.get_or_init(|| der(&Authority::new(NOW).issue(&["localhost", "::1"]).own).to_vec());
        let mut bytes = issued.clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Certificate::parse(&bytes);
        let cut = cut.index(issued.len());
        prop_assert!(Certificate::parse(&issued[..cut]).is_err());
    }
}

/// Completes the handshake of a client, and returns its end of the pipe.
async fn handshake(client: &mut ClientConnection, mut pipe: DuplexStream) -> DuplexStream {
    loop {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        pipe.write_all(&bytes).await.unwrap();
        if !client.is_handshaking() {
            return pipe;
        }
        let mut response = vec![0; 16 * 1024];
        let length = pipe.read(&mut response).await.unwrap();
        let mut response = &response[..length];
        while client.read_tls(&mut response).unwrap() > 0 {
            client.process_new_packets().unwrap();
        }
    }
}

// Old data is dropped from the queue of the connection, but not from TLS records.
#[tokio::test(flavor = "current_thread")]
async fn about_one_record_waits_for_a_client_that_does_not_read_and_no_message_is_split() {
    const PIPE: usize = 64 * 1024;
    const MESSAGE: [u8; 1_000] = [7; 1_000];
    let (acceptor, mut client) = session_without_usable_key_share();
    let (near, far) = tokio::io::duplex(PIPE);
    let served = async {
        let hello = Acceptor::hello(far).await.unwrap();
        acceptor.respond(hello).await.unwrap().0
    };
    let (mut stream, _near) = tokio::join!(served, handshake(&mut client, near));
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken = 0;
    while let Poll::Ready(count) = Pin::new(&mut stream).poll_write(&mut cx, &MESSAGE) {
        assert_eq!(count.unwrap(), MESSAGE.len());
        taken += MESSAGE.len();
    }
    assert!((PIPE..PIPE + 16 * 1024 + MESSAGE.len()).contains(&taken), "{taken}");
}
