//! `[tls]` and `[[tls.certificates]]`: the paths of the certificates and their keys. The files are read when the server
//! starts.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::problem::{Report, quoted};
use super::reader::Section;
use super::{CertificateFiles, Tls, acme, paths, schema};
use crate::transport::Endpoint;

/// `other`: HTTP listeners or fronts use the certificates. `state`: the directory of the server's state.
pub(super) fn tls(
    top: &Section<'_>,
    listen: &[Endpoint],
    other: bool,
    state: Option<&Path>,
    report: &mut Report<'_>,
) -> Option<Tls> {
    let required = listen.iter().any(|endpoint| endpoint.transport.is_encrypted());
    let Some(section) = top.section("tls", &schema::TLS, report) else {
        // A `tls` that is not a table has been reported already.
        if required && top.value("tls").is_none() {
            let span = top.value("listen").and_then(|listen| listen.get_ref().get("tls")).map(toml::Spanned::span);
            report.error(
                &span.unwrap_or_default(),
                "`listen.tls` needs a certificate: set `certificate` and `private-key` in `[tls]`, or `[tls.acme]`",
            );
        }
        return None;
    };
    let header = top.span("tls");
    let has_acme = section.value("acme").is_some();
    if let (true, Some(given)) = (has_acme, section.value("certificate").or_else(|| section.value("private-key"))) {
        report.error(
            &given.span(),
            "`[tls]` has both a certificate and `acme`: remove `certificate` and `private-key` to let the server order \
             its certificate, or remove `acme`",
        );
        return None;
    }
    let acme = acme::acme(&section, state, report);
    let default = match &acme {
        Some(acme) => Some(acme.files()),
        // Its errors have been reported.
        None if has_acme => None,
        None => files(&section, "`[tls]`", false, &header, report),
    };
    let mut certificates = vec![default];
    for table in section.tables("certificates", report) {
        let section = Section::new(&schema::TLS_CERTIFICATE, table.get_ref(), report);
        let new = files(&section, "a certificate of `[[tls.certificates]]`", true, &table.span(), report);
        let is_repeated =
            |new: &CertificateFiles| certificates.iter().flatten().any(|other| other.certificate == new.certificate);
        if let Some(new) = new.as_ref().filter(|new| is_repeated(new)) {
            let (name, file) = (section.name("certificate"), quoted(&new.certificate.display().to_string()));
            report.error(
                &section.span("certificate"),
                format!("{name}: {file} is configured already: remove one of the two certificates"),
            );
        }
        certificates.push(new);
    }
    let certificates: Option<Vec<CertificateFiles>> = certificates.into_iter().collect();
    let listed = top.value("listen").and_then(|listen| listen.get_ref().get("tls")?.get_ref().as_array());
    // If all listed addresses are invalid, they have been reported already.
    if !required && !other && listed.is_none_or(|list| list.is_empty()) {
        if listen.iter().any(|endpoint| endpoint.transport.is_connection()) {
            report.warn(
                &header,
                "`listen.tls` is empty, so TLS is served only on the ports of `listen.tcp`. Clients expect it on port \
                 5349: set for example tls = [\"[::]:5349\"]. If the ports of `listen.tcp` are intended, list them in \
                 `listen.tls` as well, which ends this warning",
            );
        } else {
            report.error(
                &header,
                "`[tls]` has no effect, because `listen.tls` and `listen.tcp` are empty: set one, for example \
                 tls = [\"[::]:5349\"], or remove `[tls]`",
            );
        }
    }
    Some(Tls { certificates: certificates?, acme })
}

/// Reads the two paths of a certificate. `what` has them.
fn files(
    section: &Section<'_>,
    what: &str,
    is_further: bool,
    header: &Range<usize>,
    report: &mut Report<'_>,
) -> Option<CertificateFiles> {
    let mut path = |key| path(section, what, key, header, report);
    let (certificate, private_key) = (path("certificate"), path("private-key"));
    Some(CertificateFiles { certificate: certificate?, private_key: private_key?, is_further, is_ordered: false })
}

fn path(
    section: &Section<'_>,
    what: &str,
    key: &str,
    header: &Range<usize>,
    report: &mut Report<'_>,
) -> Option<PathBuf> {
    let Some(value) = section.value(key) else {
        let or = if section.name(key).starts_with("`tls.certificates") { "" } else { ", or set `[tls.acme]`" };
        report.error(header, format!("{what} has no `{key}`: set the path of the PEM file{or}"));
        return None;
    };
    let path = section.string(key, report)?;
    if path.get_ref().is_empty() {
        report.error(&value.span(), format!("{} is empty: set the path of a PEM file", section.name(key)));
        return None;
    }
    paths::resolve(&report.directory, path.get_ref())
        .map_err(|why| report.error(&value.span(), format!("{}: {why}", section.name(key))))
        .ok()
}
