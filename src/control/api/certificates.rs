//! `GET /v1/certificates`.

use serde_json::{Value, json};

use super::{Api, PublishedCertificate};

impl Api {
    /// Returns the certificates in use: one, or none without `[tls]`.
    pub(super) fn certificates(&self) -> Value {
        let published = self.published.borrow();
        let certificates = published.certificate.iter().map(|published| {
            let PublishedCertificate { file, certificate } = &**published;
            json!({
                "file": file.display().to_string(),
                "subject": certificate.subject,
                "issuer": certificate.issuer,
                "serial": certificate.serial,
                "names": certificate.names,
                "addresses": certificate.addresses,
                "not_before": certificate.not_before,
                "not_after": certificate.not_after,
            })
        });
        json!({ "certificates": certificates.collect::<Vec<_>>() })
    }
}
