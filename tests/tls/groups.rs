//! The key exchange of clients that prefer a hybrid group with ML-KEM, as current browsers do.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup, ring};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, StreamOwned,
};

use crate::common::Fixture;
use crate::support::client::Client;
use crate::support::tls::{TLS12, TLS13, TlsStream, tcp};

/// X25519MLKEM768 of a client whose server does not select it: a share of the right length, and the one of X25519 that it
/// contains (draft-ietf-tls-ecdhe-mlkem §4.1).
#[derive(Debug)]
struct Hybrid;

struct HybridExchange {
    share: Vec<u8>,
    x25519: Box<dyn ActiveKeyExchange>,
}

impl SupportedKxGroup for Hybrid {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        let x25519 = ring::kx_group::X25519.start()?;
        let mut share = vec![7; 1_184];
        share.extend_from_slice(x25519.pub_key());
        Ok(Box::new(HybridExchange { share, x25519 }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

impl ActiveKeyExchange for HybridExchange {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, rustls::Error> {
        unreachable!("the server does not support this group")
    }

    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((NamedGroup::X25519, self.x25519.pub_key()))
    }

    fn complete_hybrid_component(self: Box<Self>, share: &[u8]) -> Result<SharedSecret, rustls::Error> {
        self.x25519.complete(share)
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

/// Connects a client with these groups, the preferred one first.
fn connect(fixture: &Fixture, groups: Vec<&'static dyn SupportedKxGroup>) -> TlsStream {
    let mut provider = ring::default_provider();
    provider.kx_groups = groups;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(fixture.authority.root().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[TLS13, TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, tcp(fixture.address()));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream
}

// RFC 8446 §4.1.4: a HelloRetryRequest would cost a round trip.
#[test]
fn a_client_that_prefers_a_hybrid_group_needs_one_round_trip() {
    let fixture = Fixture::new("");
    let stream = connect(&fixture, vec![&Hybrid, ring::kx_group::X25519, ring::kx_group::SECP256R1]);
    assert_eq!(stream.conn.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
    assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full));
    let client = Client::on_tls(stream);
    assert_eq!(client.binding(), client.address());
}
