//! What the operator reads about a certificate: its description, and the warnings.

use super::EXPIRY_WARNING;
use crate::auth::HumanSeconds;
use crate::config::CertificateFiles;
use crate::net::tls::{Certificate, Chain, KeyType, Setup, date, weaknesses};
use crate::setting::HOSTNAME;

/// Returns the names of a certificate, its issuer and its end.
pub(super) fn describe(certificate: &Certificate) -> String {
    let Certificate { issuer, serial, not_after, .. } = certificate;
    format!("{}; issued by {issuer}, serial {serial}, valid until {}", certificate.all_names(), date(*not_after))
}

/// Returns the warnings about a usable certificate.
pub(super) fn warnings(files: &CertificateFiles, setup: &Setup, now: u64) -> Vec<String> {
    let ([key, _], file, own) = (files.settings(), files.certificate.display(), &setup.certificate);
    let mut warnings = Vec::new();
    match setup.chain {
        Chain::Ordered => {}
        Chain::Unordered => warnings.push(format!(
            "`{key}`: the certificates in `{file}` are not in the right order (each followed by its issuer), or some \
             are unrelated. The server sends the related ones in the right order"
        )),
        Chain::Incomplete => warnings.push(format!(
            "`{key}`: the certificate of the issuer ({}) is missing in `{file}`, so many clients will not trust the \
             certificate: use the file with the whole chain (fullchain.pem)",
            own.issuer
        )),
    }
    if own.is_self_signed() {
        warnings.push(format!(
            "`{key}`: the certificate in `{file}` is self-signed, so browsers reject it, and a call does not ask the \
             user: get one from an authority that browsers trust, for example Let's Encrypt, or install it on every \
             client"
        ));
    }
    if own.is_nameless() {
        warnings.push(format!(
            "`{key}`: the certificate in `{file}` has no subjectAltName, so browsers and most other clients reject it, \
             because they ignore its subject ({}): get one with the name of the server in its subjectAltName",
            own.subject
        ));
    }
    for weakness in weaknesses(std::iter::once(own).chain(&setup.issuers)) {
        warnings.push(format!(
            "`{key}`: {weakness}, so browsers reject the certificate in `{file}`: get one from an authority that signs \
             with SHA-256 and keys of at least 2048 bits (RSA) or on the curve P-256"
        ));
    }
    warnings.extend(early_warning(files, own, now));
    warnings.extend(expiry_warning(files, own, now));
    warnings
}

/// Returns the warning about a certificate that is not yet valid.
pub(super) fn early_warning(files: &CertificateFiles, certificate: &Certificate, now: u64) -> Option<String> {
    let ([key, _], file, start) = (files.settings(), files.certificate.display(), certificate.not_before);
    (start > now).then(|| {
        format!(
            "`{key}`: the certificate in `{file}` is not yet valid; it becomes valid in {}, on {}. Clients will reject \
             it until then: check the clock of this machine",
            HumanSeconds(start - now),
            date(start)
        )
    })
}

/// Returns the warning about a certificate that has expired or expires soon.
pub(super) fn expiry_warning(files: &CertificateFiles, certificate: &Certificate, now: u64) -> Option<String> {
    let ([key, _], file, end) = (files.settings(), files.certificate.display(), certificate.not_after);
    let (advice, warned) = if files.is_ordered {
        // The authority chooses the life, and a short one is renewed late. A fifth of it is after the renewal.
        let life = end.saturating_sub(certificate.not_before);
        ("the log says why the server has not renewed it (`acme-failed`)", EXPIRY_WARNING.min(life / 5))
    } else {
        ("renew it", EXPIRY_WARNING)
    };
    match end.checked_sub(now) {
        None => Some(format!(
            "`{key}`: the certificate in `{file}` expired on {}, so clients reject it: {advice}",
            date(end)
        )),
        Some(left) if left < warned => Some(format!(
            "`{key}`: the certificate in `{file}` expires in {}, on {}: {advice}",
            HumanSeconds(left),
            date(end)
        )),
        Some(_) => None,
    }
}

/// Returns the warnings that concern several certificates: each with the place of the certificate that causes it.
pub(super) fn of_all(all: &[(&CertificateFiles, &Setup)], hostname: Option<&str>, now: u64) -> Vec<(usize, String)> {
    let mut warnings = Vec::new();
    // A certificate without any name has its own warning.
    if let (Some(host), Some((files, default))) = (hostname, all.first())
        && !default.certificate.is_nameless()
        && !all.iter().any(|(_, setup)| setup.certificate.covers(host))
    {
        let ([key, _], file) = (files.settings(), files.certificate.display());
        let names = default.certificate.all_names();
        let others = if all.len() > 1 { ", and no other certificate is valid for it" } else { "" };
        warnings.push((
            0,
            format!(
                "`{key}`: the certificate in `{file}` is valid for {names}, so clients that connect to `{HOSTNAME}` \
                 {host} will reject it{others}"
            ),
        ));
    }
    for (place, (files, setup)) in all.iter().enumerate() {
        let ([key, _], file, own) = (files.settings(), files.certificate.display(), &setup.certificate);
        let is_other = |other: &Setup| {
            other.key_type() != KeyType::Ed25519 && own.names.iter().all(|name| other.certificate.covers(name))
        };
        if setup.key_type() == KeyType::Ed25519 && !all.iter().any(|(_, other)| is_other(other)) {
            warnings.push((
                place,
                format!(
                    "`{key}`: the key of the certificate in `{file}` is of Ed25519, which browsers do not support in \
                     certificates: get one with a key of ECDSA P-256, or configure such a one beside it \
                     (`[[tls.certificates]]`)"
                ),
            ));
        }
    }
    let of_default = all.first().map(|(files, _)| files.settings()[0]).unwrap_or_default();
    for (place, (files, setup)) in all.iter().enumerate().skip(1) {
        let ([key, _], file, own) = (files.settings(), files.certificate.display(), &setup.certificate);
        // A client gets a valid certificate rather than an earlier one that is not.
        let precedes = |other: &Setup| {
            other.key_type() == setup.key_type() && (other.certificate.is_valid_at(now) || !own.is_valid_at(now))
        };
        let earlier = || all.iter().take(place).filter(|(_, other)| precedes(other));
        let is_twin_of_default = all.first().is_some_and(|(_, default)| own.is_for_the_names_of(&default.certificate));
        if let Some((other, _)) = earlier().find(|(_, other)| own.is_for_the_names_of(&other.certificate)) {
            warnings.push((
                place,
                format!(
                    "`{key}`: no client gets the certificate in `{file}` while the one in `{}` is valid, which is for the \
                     same names and has the same type of key ({}){}",
                    other.certificate.display(),
                    setup.key_type().as_str(),
                    if other.is_ordered { "" } else { ": remove one of them" }
                ),
            ));
        } else if own.names.is_empty() && !is_twin_of_default {
            warnings.push((
                place,
                format!(
                    "`{key}`: no client gets the certificate in `{file}`, because it has no DNS name (subjectAltName): \
                     a client that connects to an address sends no name, and gets the certificate of `{of_default}`"
                ),
            ));
        }
    }
    warnings
}
