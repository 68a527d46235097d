//! `GET /v1/certificates`.

use serde_json::{Value, json};

use super::{Api, PublishedCertificate};

impl Api {
    /// Returns the certificates in use, the default one first; none without `[tls]`.
    pub(super) fn certificates(&self) -> Value {
        let published = self.published.borrow();
        let certificates = published.certificates.iter().map(|published| {
            let PublishedCertificate { file, certificate, key_type, is_default } = published;
            json!({
                "file": file.display().to_string(),
                "default": is_default,
                "key": key_type.as_str(),
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
