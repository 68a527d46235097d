//! Certificates generated during the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    SerialNumber, date_time_ymd,
};

const DAY: u64 = 86_400;

/// A root and an intermediate certificate authority.
pub(crate) struct Authority {
    /// Seconds since the Unix epoch.
    now: u64,
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate and its key, in PEM.
pub(crate) struct Issued {
    /// The certificate alone.
    pub(crate) own: String,
    pub(crate) key: String,
    /// In hexadecimal.
    pub(crate) serial: String,
}

fn params(name: &str, names: &[&str], from: u64, to: u64) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = date_time_ymd(1970, 1, 1);
    (params.not_before, params.not_after) = (epoch + Duration::from_secs(from), epoch + Duration::from_secs(to));
    params
}

fn authority(name: &str, from: u64, to: u64) -> CertificateParams {
    let mut params = params(name, &[], from, to);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Returns a certificate that its own key has signed, valid at `now`, in seconds since the Unix epoch.
pub(crate) fn self_signed(names: &[&str], now: u64) -> Issued {
    let key = KeyPair::generate().unwrap();
    let certificate = params("server", names, now - DAY, now + 90 * DAY).self_signed(&key).unwrap();
    Issued { own: certificate.pem(), key: key.serialize_pem(), serial: String::new() }
}

impl Authority {
    /// Creates an authority that is valid at `now`, in seconds since the Unix epoch.
    pub(crate) fn new(now: u64) -> Self {
        Self::with_intermediate_until(now, now + 3650 * DAY)
    }

    /// The same, with an intermediate that is valid until a time.
    pub(crate) fn with_intermediate_until(now: u64, to: u64) -> Self {
        let key = || KeyPair::generate().unwrap();
        let from = now.min(to) - DAY;
        let root = CertifiedIssuer::self_signed(authority("Test Root", from, now + 3650 * DAY), key()).unwrap();
        let intermediate = authority("Test Intermediate", from, to);
        let intermediate = CertifiedIssuer::signed_by(intermediate, key(), &root).unwrap();
        Self { now, root, intermediate }
    }

    /// Issues a certificate for `names` that is valid for 90 days.
    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_for(names, self.now - DAY, self.now + 90 * DAY)
    }

    /// The same, with a key of Ed25519 rather than ECDSA.
    pub(crate) fn issue_with_ed25519(&self, names: &[&str]) -> Issued {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        self.issue_with(key, names, self.now - DAY, self.now + 90 * DAY)
    }

    /// Issues a certificate that is valid between two times, in seconds since the Unix epoch.
    pub(crate) fn issue_for(&self, names: &[&str], from: u64, to: u64) -> Issued {
        self.issue_with(KeyPair::generate().unwrap(), names, from, to)
    }

    /// Issues a certificate for a key.
    pub(crate) fn issue_with(&self, key: KeyPair, names: &[&str], from: u64, to: u64) -> Issued {
        static SERIAL: AtomicU64 = AtomicU64::new(0x10);
        let serial = [0x5e, u8::try_from(SERIAL.fetch_add(1, Ordering::Relaxed) % 256).unwrap()];
        let mut params = params("server", names, from, to);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.intermediate).unwrap();
        let serial = format!("{:02x}{:02x}", serial[0], serial[1]);
        Issued { own: certificate.pem(), key: key.serialize_pem(), serial }
    }

    pub(crate) fn intermediate(&self) -> String {
        self.intermediate.pem()
    }

    pub(crate) fn root(&self) -> String {
        self.root.pem()
    }

    /// Returns a certificate followed by its issuer's, as an ACME client writes them.
    pub(crate) fn chain(&self, issued: &Issued) -> String {
        issued.own.clone() + &self.intermediate()
    }

    /// Writes the two files of a certificate into `directory`.
    pub(crate) fn write(&self, issued: &Issued, directory: &Path) -> [PathBuf; 2] {
        let paths = ["fullchain.pem", "privkey.pem"].map(|name| directory.join(name));
        fs::write(&paths[0], self.chain(issued)).unwrap();
        fs::write(&paths[1], &issued.key).unwrap();
        paths
    }
}
