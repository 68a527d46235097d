//! `GET /v1/certificates`, and the responses to challenges of an authority.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Api, PublishedCertificate};
use crate::http::response;

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
        let mut response = json!({ "certificates": certificates.collect::<Vec<_>>() });
        if let (Some(status), Some(response)) = (&self.acme.borrow().status, response.as_object_mut()) {
            let (at, error) = status.last_error.clone().unzip();
            response.insert(
                "acme".to_owned(),
                json!({
                    "domains": status.domains,
                    "directory": status.directory,
                    "state": status.state.as_str(),
                    "not_after": status.expires,
                    "next_try": status.next_try,
                    "last_success": status.last_success,
                    "failures": status.failures,
                    "last_error": error,
                    "last_error_time": at,
                }),
            );
        }
        response
    }

    /// Returns the key authorization of a token (RFC 8555 §8.3), which anyone may read while the challenge is pending.
    pub(super) fn challenge(&self, token: &str) -> Response<Full<Bytes>> {
        let published = self.published.borrow();
        match published.snapshot.challenges.key_authorization(token) {
            Some(authorization) => response::with(StatusCode::OK, "application/octet-stream", authorization.to_owned()),
            None => super::not_found(),
        }
    }
}
