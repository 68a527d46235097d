//! `[tls.acme]`: the certificate that the server orders and renews (RFC 8555).

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::general::check_host;
use super::problem::{Report, closest, quoted};
use super::reader::{Section, list};
use super::{CertificateFiles, Front, Http, Tls, paths, schema};
use crate::auth::Secret;
use crate::file;
use crate::transport::Endpoint;

/// The directory of Let's Encrypt.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// The directory of the state without systemd. The unit's `StateDirectory=` names the same one.
const STATE_DIRECTORY: &str = "/var/lib/turnserver";

/// The most names in one certificate. Let's Encrypt has the same limit.
const MAX_DOMAINS: usize = 100;

/// The longest key of an external account, in bytes. Authorities use 32 to 64.
const MAX_EAB_KEY: usize = 512;

/// The longest name of a profile.
const MAX_PROFILE: usize = 64;

/// The port of the challenge tls-alpn-01 (RFC 8737 §3).
const HTTPS: u16 = 443;
/// The port of the challenge http-01 (RFC 8555 §8.3).
const HTTP: u16 = 80;

/// `[tls.acme]`: how the server orders its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The DNS names of the certificate: at least one, in lower case, without duplicates and wildcards.
    pub domains: Vec<String>,
    /// The URL at which the authority reaches the operator, such as `mailto:operator@example.org`.
    pub contact: Option<String>,
    /// The URL of the directory of the authority (RFC 8555 §7.1.1). It begins with `https://`.
    pub directory: String,
    /// The certificates, in PEM, of the authorities that the certificate of the directory comes from. `None`: those that
    /// browsers trust.
    pub directory_ca: Option<PathBuf>,
    /// The profile of the certificate, one of those that the authority offers. `None`: the authority chooses.
    pub profile: Option<String>,
    /// The account that the operator already has with the authority (RFC 8555 §7.3.4).
    pub external_account: Option<ExternalAccount>,
    /// How the server proves that it has the names.
    pub challenge: AcmeChallenge,
    /// The directory of the account's key, the certificate and its key.
    pub state_directory: PathBuf,
}

#[cfg(test)]
impl Acme {
    /// Returns the settings of a test: a certificate for these names from an authority that does not exist.
    pub(crate) fn of(domains: &[&str]) -> Self {
        Self {
            domains: domains.iter().map(|name| (*name).to_owned()).collect(),
            contact: None,
            directory: "https://acme.example.org/directory".to_owned(),
            directory_ca: None,
            profile: None,
            external_account: None,
            challenge: AcmeChallenge::Auto,
            state_directory: "/nonexistent".into(),
        }
    }
}

impl Acme {
    /// Returns the file of the certificate and its key.
    #[must_use]
    pub fn files(&self) -> CertificateFiles {
        let file = self.state_directory.join("certificate.pem");
        CertificateFiles { certificate: file.clone(), private_key: file, is_further: false, is_ordered: true }
    }
}

/// An account that the operator already has with an authority (RFC 8555 §7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The identifier of the key.
    pub key_id: String,
    /// The key.
    pub key: Secret,
}

/// How the server proves that it has the names of its certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// The one that the listeners of the server can respond to.
    #[default]
    Auto,
    /// On a TLS listener that the authority reaches at port 443 (RFC 8737).
    TlsAlpn01,
    /// On an HTTP listener that the authority reaches at port 80 (RFC 8555 §8.3).
    Http01,
}

impl AcmeChallenge {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::TlsAlpn01, Self::Http01];

    /// Returns the choice as written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
        }
    }

    /// Returns the challenges that a server with these listeners tries, in this order.
    #[must_use]
    pub fn of_listeners(self, listen: &[Endpoint], http: &Http, fronts: &[Front]) -> Vec<Self> {
        if self != Self::Auto {
            return vec![self];
        }
        let has_front = !fronts.is_empty();
        let of_clients = listen.iter().any(|endpoint| endpoint.transport.is_connection());
        let tls = of_clients || (http.tls && has_any(http)) || has_front;
        let plain = (!http.tls && has_any(http)) || has_front;
        let mut found = Vec::new();
        found.extend((tls || !plain).then_some(Self::TlsAlpn01));
        found.extend(plain.then_some(Self::Http01));
        // The one at its own port: another one would need a port forward. Without both ports, there may be one.
        match reachable(listen, http, fronts) {
            [true, false] => vec![Self::TlsAlpn01],
            [false, true] => vec![Self::Http01],
            _ => found,
        }
    }
}

fn has_any(http: &Http) -> bool {
    !http.listen.is_empty()
}

/// Returns whether the server has TLS at port 443, and HTTP at port 80.
fn reachable(listen: &[Endpoint], http: &Http, fronts: &[Front]) -> [bool; 2] {
    // A TCP listener recognizes TLS by the first byte.
    let of_clients = listen.iter().filter(|endpoint| endpoint.transport.is_connection());
    let has = |port: u16, tls: bool| http.tls == tls && http.listen.iter().any(|address| address.port() == port);
    let mut addresses = of_clients.map(|endpoint: &Endpoint| -> SocketAddr { endpoint.address });
    // A front serves both.
    let is_front = |port: u16| fronts.iter().any(|front| front.listen.port() == port);
    [
        addresses.any(|address| address.port() == HTTPS) || has(HTTPS, true) || is_front(HTTPS),
        has(HTTP, false) || is_front(HTTP),
    ]
}

/// Warns if no listener can respond to a challenge. A port forward of a NAT may still make it possible.
pub(super) fn warn_of_unreachable(
    top: &Section<'_>,
    tls: Option<&Tls>,
    listen: &[Endpoint],
    http: &Http,
    fronts: &[Front],
    report: &mut Report<'_>,
) {
    let Some(acme) = tls.and_then(|tls| tls.acme.as_ref()) else { return };
    let [tls_port, http_port] = reachable(listen, http, fronts);
    let advice = match acme.challenge {
        AcmeChallenge::Auto if !tls_port && !http_port => {
            "to port 443 (`listen.tls`, `listen.tcp` or a `[[front]]`), or to port 80 (`http.listen` without TLS, or a \
             `[[front]]`)"
        }
        AcmeChallenge::TlsAlpn01 if !tls_port => "to port 443 (`listen.tls`, `listen.tcp` or a `[[front]]`)",
        AcmeChallenge::Http01 if !http_port => "to port 80 (`http.listen` without TLS, or a `[[front]]`)",
        _ => return,
    };
    report.warn(
        &top.span("tls"),
        format!(
            "`[tls.acme]`: the authority checks that this server has the names: it connects {advice}, and there is \
             no such listener. Add one, or make sure that a port forward leads from that port to a listener of this \
             server"
        ),
    );
}

/// Warns if clients use a name for which no certificate is ordered, unless a further certificate may be for it.
pub(super) fn warn_of_other_names(
    top: &Section<'_>,
    tls: Option<&Tls>,
    hostname: Option<&str>,
    fronts: &[Front],
    report: &mut Report<'_>,
) {
    let Some(Tls { certificates, acme: Some(acme) }) = tls else { return };
    if certificates.len() > 1 {
        return;
    }
    let is_missing = |name: &str| {
        let name = name.trim_end_matches('.');
        !acme.domains.iter().any(|domain| domain.eq_ignore_ascii_case(name))
    };
    // A front at port 80 has no URL.
    let of_fronts = fronts.iter().filter(|front| front.listen.port() != HTTP).flat_map(|front| &front.names);
    let of_fronts = of_fronts.map(|name| ("front.names", name.as_str()));
    let mut missing: Vec<&str> = Vec::new();
    for (key, name) in hostname.map(|name| ("hostname", name)).into_iter().chain(of_fronts) {
        if is_missing(name) && !missing.contains(&name) {
            missing.push(name);
            report.warn(
                &top.span("tls"),
                format!(
                    "`tls.acme.domains` does not have {}, the name in `{key}`, so clients that use it with TLS will \
                     reject the certificate: add it, or a certificate for it (`[[tls.certificates]]`)",
                    quoted(name)
                ),
            );
        }
    }
}

/// Reads `[tls.acme]`. `state` is the directory of the server's state.
pub(super) fn acme(tls: &Section<'_>, state: Option<&Path>, report: &mut Report<'_>) -> Option<Acme> {
    let header = tls.span("acme");
    let section = tls.section("acme", &schema::ACME, report)?;
    let errors = report.errors.len();
    let domains = domains(&section, &header, report);
    terms(&section, &header, report);
    let acme = Acme {
        domains,
        contact: contact(&section, report),
        directory: directory(&section, report),
        directory_ca: paths::of_authorities(&section, "directory-ca-file", report),
        profile: profile(&section, report),
        external_account: external_account(&section, report),
        challenge: challenge(&section, report),
        state_directory: paths::of_key(&section, "state-directory", report)
            .or_else(|| state.map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from(STATE_DIRECTORY)),
    };
    (report.errors.len() == errors).then_some(acme)
}

fn domains(section: &Section<'_>, header: &Range<usize>, report: &mut Report<'_>) -> Vec<String> {
    let Some(texts) = section.strings("domains", report) else {
        if section.value("domains").is_none() {
            report.error(
                header,
                "`[tls.acme]` has no `domains`: set the names of this server, for example [\"turn.example.org\"]",
            );
        }
        return Vec::new();
    };
    if texts.is_empty() || texts.len() > MAX_DOMAINS {
        let count = texts.len();
        report.error(
            &section.span("domains"),
            format!("`tls.acme.domains` has {count} names; it must have 1 to {MAX_DOMAINS}"),
        );
    }
    let mut domains: Vec<String> = Vec::new();
    for text in texts {
        let (span, text) = (text.span(), *text.get_ref());
        let mut wrong = |why: &str| report.error(&span, format!("`tls.acme.domains`: {} {why}", quoted(text)));
        match check_host(text) {
            Err(why) => wrong(&why),
            Ok(host) if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() => {
                wrong("is an address: set the DNS name of this server, because certificates are ordered for names");
            }
            Ok(host) if !host.trim_end_matches('.').contains('.') => {
                wrong("has no dot: set the full name, because no authority certifies names of a local network");
            }
            Ok(host) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                if domains.contains(&host) {
                    wrong("is there twice");
                } else {
                    domains.push(host);
                }
            }
        }
    }
    domains
}

fn terms(section: &Section<'_>, header: &Range<usize>, report: &mut Report<'_>) {
    let value = section.value("terms-agreed");
    if value.is_some() && section.boolean("terms-agreed", report) != Some(false) {
        return;
    }
    let span = value.map_or_else(|| header.clone(), toml::Spanned::span);
    report.error(
        &span,
        "`tls.acme.terms-agreed` must be true: read the terms of service of the authority, and set `terms-agreed = \
         true` if you agree to them",
    );
}

fn contact(section: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let contact = section.string("contact", report)?;
    let text = *contact.get_ref();
    let is_mail = text.strip_prefix("mailto:").is_some_and(|mail| {
        mail.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
            && mail.bytes().all(|byte| byte.is_ascii_graphic() && !b"?,".contains(&byte))
    });
    if is_mail {
        return Some(text.to_owned());
    }
    report.error(
        &contact.span(),
        "`tls.acme.contact` must be one mail address, for example \"mailto:operator@example.org\"",
    );
    None
}

fn directory(section: &Section<'_>, report: &mut Report<'_>) -> String {
    let Some(directory) = section.string("directory", report) else { return LETS_ENCRYPT.to_owned() };
    let text = *directory.get_ref();
    let is_plain = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"#@\\\"<>".contains(&byte));
    let host = text.strip_prefix("https://").filter(|rest| is_plain(rest)).and_then(|rest| rest.split('/').next());
    if host.is_none_or(|host| host.is_empty() || host.starts_with(':')) {
        report.error(
            &directory.span(),
            format!("`tls.acme.directory` must be a URL that begins with https://, for example \"{LETS_ENCRYPT}\""),
        );
    }
    text.to_owned()
}

fn profile(section: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let profile = section.string("profile", report)?;
    let text = *profile.get_ref();
    if !text.is_empty() && text.len() <= MAX_PROFILE && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(text.to_owned());
    }
    report.error(
        &profile.span(),
        format!("`tls.acme.profile` {} is no name of a profile: the authority lists its profiles", quoted(text)),
    );
    None
}

fn challenge(section: &Section<'_>, report: &mut Report<'_>) -> AcmeChallenge {
    let Some(text) = section.string("challenge", report) else { return AcmeChallenge::default() };
    let (span, text) = (text.span(), *text.get_ref());
    if let Some(challenge) = AcmeChallenge::ALL.into_iter().find(|challenge| challenge.as_str() == text) {
        return challenge;
    }
    let names = AcmeChallenge::ALL.map(AcmeChallenge::as_str);
    let hint = match closest(text, names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("valid values are {}", list(&names)),
    };
    report.error(&span, format!("`tls.acme.challenge` {} is unknown; {hint}", quoted(text)));
    AcmeChallenge::default()
}

fn external_account(section: &Section<'_>, report: &mut Report<'_>) -> Option<ExternalAccount> {
    let id = section.string("eab-key-id", report);
    let file = paths::of_key(section, "eab-key-file", report);
    match (id, file) {
        (Some(id), Some(file)) => {
            let span = section.span("eab-key-file");
            if id.get_ref().is_empty() {
                report.error(&id.span(), "`tls.acme.eab-key-id` is empty: set the identifier that the authority shows");
            }
            let key = read_key(&file).map_err(|why| report.error(&span, format!("`tls.acme.eab-key-file`: {why}")));
            Some(ExternalAccount { key_id: (*id.get_ref()).to_owned(), key: key.ok()? })
        }
        (None, None) => None,
        (id, _) => {
            let (there, missing) =
                if id.is_some() { ("eab-key-id", "eab-key-file") } else { ("eab-key-file", "eab-key-id") };
            if section.value(missing).is_none() {
                report.error(
                    &section.span(there),
                    format!("`tls.acme.{there}` needs `tls.acme.{missing}`: the authority shows both"),
                );
            }
            None
        }
    }
}

/// Reads the key of an external account, which authorities show in base64url (RFC 8555 §7.3.4).
fn read_key(path: &Path) -> Result<Secret, String> {
    let shown = quoted(&path.display().to_string());
    let text = file::read(path).map_err(|error| format!("{shown} cannot be read: {}", super::read_failure(&error)))?;
    // Some authorities show it in base64, with padding.
    let text = Zeroizing::new(
        text.trim_ascii()
            .iter()
            .map(|byte| match byte {
                b'+' => b'-',
                b'/' => b'_',
                other => *other,
            })
            .collect::<Vec<u8>>(),
    );
    let trimmed = text.split(|byte| *byte == b'=').next().unwrap_or_default();
    let key = URL_SAFE_NO_PAD.decode(trimmed).ok().filter(|key| key.len() <= MAX_EAB_KEY);
    key.and_then(|key| Secret::new(key).ok()).ok_or_else(|| {
        format!("{shown} must contain the key as the authority shows it, in base64url, and nothing else")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::transport::Transport;

    #[test]
    fn the_challenge_is_one_that_the_listeners_can_respond_to_and_only_at_its_own_port_if_there_is_one() {
        use AcmeChallenge::{Auto, Http01, TlsAlpn01};
        let at = |transport, port| Endpoint::new(transport, SocketAddr::from(([0; 4], port)));
        let http = |port: Option<u16>, tls| Http {
            listen: port.map(|port| SocketAddr::from(([0; 4], port))).into_iter().collect(),
            tls,
            ..Http::default()
        };
        let udp = [at(Transport::Udp, 443)];
        let tls = [at(Transport::Tls, 5349)];
        let tcp = [at(Transport::Tcp, 443)];
        assert_eq!(Auto.of_listeners(&tls, &http(None, false), &[]), [TlsAlpn01]);
        assert_eq!(Auto.of_listeners(&tls, &http(Some(80), false), &[]), [Http01]);
        assert_eq!(Auto.of_listeners(&tls, &http(Some(8080), false), &[]), [TlsAlpn01, Http01]);
        assert_eq!(Auto.of_listeners(&tcp, &http(Some(80), false), &[]), [TlsAlpn01, Http01]);
        assert_eq!(Auto.of_listeners(&udp, &http(Some(443), true), &[]), [TlsAlpn01]);
        assert_eq!(Auto.of_listeners(&udp, &http(Some(80), false), &[]), [Http01]);
        assert_eq!(Http01.of_listeners(&tls, &http(None, false), &[]), [Http01]);
        // A front serves both: at the usual port of one, that one.
        let front = |port: u16| {
            let text =
                format!("[[front]]\nlisten = \"[::]:{port}\"\nweb = \"127.0.0.1:1\"\nwithout-name = \"relay\"\n");
            Config::parse(&text, "t.toml").unwrap().fronts
        };
        assert_eq!(Auto.of_listeners(&udp, &http(None, false), &front(443)), [TlsAlpn01]);
        assert_eq!(Auto.of_listeners(&udp, &http(None, false), &front(80)), [Http01]);
        assert_eq!(Auto.of_listeners(&udp, &http(None, false), &front(8443)), [TlsAlpn01, Http01]);
        assert_eq!(Auto.of_listeners(&tls, &http(Some(8080), false), &front(443)), [TlsAlpn01]);
        // A listener for TCP at port 443 only, and metrics at their usual port.
        assert_eq!(Auto.of_listeners(&tcp, &http(Some(9641), false), &[]), [TlsAlpn01]);
    }
}
