//! The certificate of a server, as its clients judge it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, RootCertStore,
    SignatureScheme, StreamOwned,
};

use super::timed::TimedStream;
use crate::clock;
use crate::net::tls::{Certificate, date, weaknesses};

/// The authorities that clients trust.
#[derive(Clone)]
pub(super) struct Trust {
    verifier: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

/// What a client would say about the certificate of a server.
#[derive(Debug)]
pub(super) struct Judgement {
    /// The certificates that the server sent, its own first.
    pub(super) chain: Vec<Certificate>,
    /// Why clients reject the certificate.
    pub(super) verdict: Result<(), rustls::Error>,
    /// The version of TLS.
    pub(super) version: Option<ProtocolVersion>,
    /// When it was judged, in seconds since the Unix epoch.
    time: u64,
}

impl Trust {
    /// Trusts the authorities of Mozilla, and those in a file.
    ///
    /// # Errors
    /// If the file cannot be read or has no certificate.
    pub(super) fn new(authorities: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = authorities {
            let shown = path.display();
            let read = CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown}: {error}"))?;
            let before = roots.len();
            for certificate in read {
                let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
                roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
            }
            if roots.len() == before {
                return Err(format!("{shown}: there is no certificate in this file"));
            }
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { verifier, provider })
    }

    /// Performs a TLS handshake, whatever the certificate is.
    ///
    /// # Errors
    /// Those of the connection and of the handshake.
    pub(super) fn handshake(
        &self,
        mut stream: TimedStream,
        name: &str,
    ) -> io::Result<(StreamOwned<ClientConnection, TimedStream>, Judgement)> {
        let recorder = Arc::new(Recorder { inner: Arc::clone(&self.verifier), seen: Mutex::new(None) });
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let seen = recorder.seen.lock().ok().and_then(|mut seen| seen.take());
        let (chain, verdict) = seen.unwrap_or_else(|| (Vec::new(), Ok(())));
        let judgement =
            Judgement { chain, verdict, version: connection.protocol_version(), time: clock::unix_seconds() };
        Ok((StreamOwned::new(connection, stream), judgement))
    }
}

/// The certificates of a server, and what the real verifier says.
type Seen = (Vec<Certificate>, Result<(), rustls::Error>);

/// Records what the real verifier says, and accepts every certificate, so that the rest can be examined.
struct Recorder {
    inner: Arc<WebPkiServerVerifier>,
    seen: Mutex<Option<Seen>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.inner.verify_server_cert(own, others, name, ocsp, now).map(drop);
        let chain = std::iter::once(own).chain(others).filter_map(|der| Certificate::parse(der).ok()).collect();
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some((chain, verdict));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl Judgement {
    /// Returns what is wrong with the certificate, and what to do. `None` if clients accept it. `name`: of the server.
    /// Without it, the names of the certificate are not judged.
    pub(super) fn complaint(&self, name: Option<&str>) -> Option<(String, String)> {
        let Err(error) = &self.verdict else { return None };
        let Some(own) = self.chain.first() else {
            return Some((format!("clients reject the certificate: {error}"), "use another certificate".to_owned()));
        };
        let rustls::Error::InvalidCertificate(error) = error else {
            return Some((format!("clients reject the certificate: {error}"), "use another certificate".to_owned()));
        };
        let weakness = weaknesses(&self.chain).into_iter().next();
        Some(match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                match self.chain.iter().find(|certificate| certificate.not_after < self.time) {
                    Some(issuer) if issuer != own => (
                        format!(
                            "the certificate of the issuer, {}, expired on {}",
                            issuer.subject,
                            date(issuer.not_after)
                        ),
                        "serve the chain that the authority issues now: with certbot, fullchain.pem after a renewal"
                            .to_owned(),
                    ),
                    _ => (
                        format!("the certificate expired on {}", date(own.not_after)),
                        "renew it; if it was renewed already, the server still uses the old one: reload it".to_owned(),
                    ),
                }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                let early = self.chain.iter().find(|certificate| certificate.not_before > self.time).unwrap_or(own);
                (
                    format!("the certificate of {} is not valid before {}", early.all_names(), date(early.not_before)),
                    "check the clock of this machine and that of the authority".to_owned(),
                )
            }
            // This error is the last one that is looked for.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let name = name?;
                if own.is_nameless() {
                    return Some((
                        format!(
                            "the certificate has no subjectAltName, and clients ignore its subject ({}), so they accept \
                             it for no name",
                            own.subject
                        ),
                        format!("get a certificate with {name} in its subjectAltName"),
                    ));
                }
                (
                    format!("the certificate is not for {name}, but for {}", own.all_names()),
                    format!("use one of these names in the URI, or get a certificate for {name}"),
                )
            }
            _ if weakness.is_some() => (
                weakness.map_or_else(String::new, |weakness| format!("{weakness}, so clients reject it")),
                "get one from an authority that signs with SHA-256 and keys of at least 2048 bits (RSA) or on the curve \
                 P-256"
                    .to_owned(),
            ),
            CertificateError::UnknownIssuer if own.is_self_signed() => (
                "the certificate is self-signed: browsers reject it".to_owned(),
                "get one from an authority that browsers trust, for example Let's Encrypt".to_owned(),
            ),
            CertificateError::UnknownIssuer if self.lacks_intermediate() => (
                format!("the server does not send the certificate of its issuer, {}", self.missing_issuer()),
                "serve the whole chain: with certbot, fullchain.pem in place of cert.pem".to_owned(),
            ),
            CertificateError::UnknownIssuer => (
                format!("browsers do not trust the issuer of the certificate, {}", self.missing_issuer()),
                "get a certificate from an authority that browsers trust, or name the authority with --ca-file"
                    .to_owned(),
            ),
            other => (format!("clients reject the certificate: {other}"), "use another certificate".to_owned()),
        })
    }

    /// Describes a certificate that clients accept.
    pub(super) fn description(&self) -> String {
        let Some(own) = self.chain.first() else { return "accepted".to_owned() };
        let version = self.version.and_then(|version| version.as_str()).unwrap_or("TLS");
        format!(
            "{version}, for {}, valid until {}, {} certificate{}",
            own.all_names(),
            date(own.not_after),
            self.chain.len(),
            if self.chain.len() == 1 { "" } else { "s" }
        )
    }

    /// Returns whether the chain ends before an authority that signs itself, so that one may be missing.
    fn lacks_intermediate(&self) -> bool {
        let linked = self.chain.windows(2).all(|two| matches!(two, [one, next] if one.is_issued_by(next)));
        let ends_open = self.chain.last().is_some_and(|last| !last.is_self_signed());
        !linked || (ends_open && self.chain.len() == 1)
    }

    /// Returns the first issuer that the server does not send.
    fn missing_issuer(&self) -> &str {
        let has = |certificate: &&Certificate| !self.chain.iter().any(|other| certificate.is_issued_by(other));
        self.chain.iter().find(has).map_or("which is unknown", |certificate| certificate.issuer.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{ServerConfig, ServerConnection};

    use super::*;
    use crate::clock::{monotonic, unix_seconds};
    use crate::test_certificates::{Authority, Issued};

    const NAME: &str = "localhost";
    const DAY: u64 = 86_400;

    /// Returns what is wrong with a server that sends `chain` and trusts `root`, if there is one.
    fn complaint(chain: &str, issued: &Issued, root: Option<&str>) -> Option<(String, String)> {
        complaint_about(Some(NAME), chain, issued, root)
    }

    fn complaint_about(
        name: Option<&str>,
        chain: &str,
        issued: &Issued,
        root: Option<&str>,
    ) -> Option<(String, String)> {
        let certificates = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(certificates, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = root.map(|root| {
            let file = std::env::temp_dir().join(format!("turnserver-root-{}-{}", std::process::id(), issued.serial));
            std::fs::write(&file, root).unwrap();
            file
        });
        let judgement = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut connection = ServerConnection::new(config).unwrap();
                while connection.is_handshaking() {
                    connection.complete_io(&mut stream).unwrap();
                }
            });
            let trust = Trust::new(file.as_deref()).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            trust.handshake(TimedStream::new(stream, monotonic() + Duration::from_secs(60)), NAME).unwrap().1
        });
        if let Some(file) = file {
            std::fs::remove_file(file).unwrap();
        }
        assert_eq!(judgement.version, Some(ProtocolVersion::TLSv1_3));
        judgement.complaint(name)
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_apart() {
        let now = unix_seconds();
        let authority = Authority::new(now);
        let (root, good) = (authority.root(), authority.issue(&[NAME]));
        let chain = authority.chain(&good);
        assert_eq!(complaint(&chain, &good, Some(&root)), None);
        let what = |chain: &str, issued: &Issued, root: Option<&str>| complaint(chain, issued, root).unwrap().0;
        let missing = complaint(&good.own, &good, Some(&root)).unwrap();
        assert_eq!(missing.0, "the server does not send the certificate of its issuer, CN=Test Intermediate");
        assert!(missing.1.contains("fullchain.pem"));
        let unknown = what(&chain, &good, None);
        assert_eq!(unknown, "browsers do not trust the issuer of the certificate, CN=Test Root");
        let other = authority.issue(&["turn.example.org", "192.0.2.7"]);
        assert_eq!(
            what(&authority.chain(&other), &other, Some(&root)),
            "the certificate is not for localhost, but for turn.example.org, 192.0.2.7"
        );
        // Without a name, only the rest is judged.
        let unnamed = |chain: &str, issued| complaint_about(None, chain, issued, Some(&root));
        assert_eq!(unnamed(&authority.chain(&other), &other), None);
        assert!(unnamed(&other.own, &other).unwrap().0.starts_with("the server does not send the certificate"));
        let old = authority.issue_for(&[NAME], now - 3 * DAY, now - DAY);
        assert!(what(&authority.chain(&old), &old, Some(&root)).starts_with("the certificate expired on "));
        let early = authority.issue_for(&[NAME], now + DAY, now + 3 * DAY);
        assert!(
            what(&authority.chain(&early), &early, Some(&root))
                .starts_with("the certificate of localhost is not valid before ")
        );
    }

    #[test]
    fn the_certificate_of_the_chain_that_is_out_of_date_is_named() {
        let now = unix_seconds();
        let authority = Authority::with_intermediate_until(now, now - DAY);
        let issued = authority.issue(&[NAME]);
        let (what, advice) = complaint(&authority.chain(&issued), &issued, Some(&authority.root())).unwrap();
        let expected = format!("the certificate of the issuer, CN=Test Intermediate, expired on {}", date(now - DAY));
        assert_eq!(what, expected);
        assert!(advice.starts_with("serve the chain"), "{advice}");
    }

    #[test]
    fn a_self_signed_certificate_is_called_so() {
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let issued = Issued { own: own.clone(), key: key.serialize_pem(), serial: "self".to_owned() };
        assert_eq!(complaint(&own, &issued, None).unwrap().0, "the certificate is self-signed: browsers reject it");
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(Trust::new(Some(&file)).err().unwrap().ends_with("there is no certificate in this file"));
        assert!(Trust::new(Some(Path::new("/nowhere.pem"))).is_err());
    }
}
