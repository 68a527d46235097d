//! `[control]` and `[http]`: where the server can be seen and steered.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use toml::de::DeTable;

use super::addresses::{collide, listen_address, networks};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::secrets::{self, BadSecret};
use super::{CONTROL_SOCKET, Control, ControlSocket, Http, http_keys, paths, schema};
use crate::auth::Secret;
use crate::file;

/// The default port of an entry without one. Prometheus exporters of TURN servers use it.
const DEFAULT_PORT: u16 = 9641;

/// A shorter token could be guessed.
const MIN_TOKEN: usize = 16;

pub(super) fn control(top: &Section<'_>, report: &mut Report<'_>) -> Control {
    let Some(section) = top.section("control", &schema::CONTROL, report) else { return Control::default() };
    Control { socket: socket(&section, report) }
}

/// Returns the control socket of a document in which anything else may be wrong. Reports an error of the socket only.
pub(super) fn control_socket(document: &DeTable<'_>, report: &mut Report<'_>) -> ControlSocket {
    let top = Section::new(&schema::TOP, document, report);
    let control = top.section("control", &schema::CONTROL, report);
    report.errors.clear();
    control.map_or(ControlSocket::Default, |section| socket(&section, report))
}

/// Returns whether a text has a line that may be that of `control.socket` or the beginning of its table.
pub(super) fn mentions_control(text: &str) -> bool {
    text.lines().any(|line| line.trim_start_matches(['[', ' ', '\t', '"', '\'']).starts_with("control"))
}

fn socket(section: &Section<'_>, report: &mut Report<'_>) -> ControlSocket {
    let Some(socket) = section.string("socket", report) else { return ControlSocket::Default };
    match *socket.get_ref() {
        "" => ControlSocket::None,
        CONTROL_SOCKET => ControlSocket::Default,
        path => match paths::resolve(&report.directory, path) {
            Ok(path) => ControlSocket::At(path),
            Err(why) => {
                report.error(&socket.span(), format!("`control.socket`: {why}"));
                ControlSocket::None
            }
        },
    }
}

pub(super) fn http(top: &Section<'_>, report: &mut Report<'_>) -> Http {
    let Some(section) = top.section("http", &schema::HTTP, report) else { return Http::default() };
    let listen = listen(&section, report);
    let tls = section.boolean("tls", report).unwrap_or_default();
    if tls && top.value("tls").is_none() {
        report.error(
            &section.span("tls"),
            "`http.tls` needs a certificate: set `certificate` and `private-key` in `[tls]`, or `[tls.acme]`",
        );
    }
    let metrics_from: Vec<IpNet> =
        networks(&section, "metrics-from", report).into_iter().map(toml::Spanned::into_inner).collect();
    let metrics_token = token(&section, report);
    let keys = http_keys::keys(&section, &listen, tls, report);
    Http { listen, tls, url: url(&section, report), metrics_from, metrics_token, keys }
}

fn listen(section: &Section<'_>, report: &mut Report<'_>) -> Vec<SocketAddr> {
    let name = section.name("listen");
    let mut listen: Vec<SocketAddr> = Vec::new();
    for text in section.strings("listen", report).unwrap_or_default() {
        let (span, text) = (text.span(), *text.get_ref());
        let Some(address) = listen_address(&name, text, DEFAULT_PORT, &span, report) else { continue };
        if listen.iter().any(|other| collide(*other, address)) {
            report.error(&span, format!("{name} contains {} twice", quoted(text)));
        } else {
            listen.push(address);
        }
    }
    listen
}

/// Reads the URL at which browsers reach the listeners.
fn url(section: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = section.string("url", report)?;
    let url = text.get_ref().trim_end_matches('/');
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_plain = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\\\"<>".contains(&byte));
    if rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && is_plain(rest)) {
        return Some(url.to_owned());
    }
    report.error(
        &text.span(),
        "`http.url` must be a URL without user, query and fragment, for example \"https://turn.example.org:9641\"",
    );
    None
}

/// Reads the token of `metrics-token-file`.
fn token(section: &Section<'_>, report: &mut Report<'_>) -> Option<Secret> {
    let name = section.string("metrics-token-file", report)?;
    let (span, name) = (name.span(), *name.get_ref());
    let token = paths::resolve(&report.directory, name).and_then(|path: PathBuf| {
        let shown = quoted(&path.display().to_string());
        let text =
            file::read(&path).map_err(|error| format!("{shown} cannot be read: {}", super::read_failure(&error)))?;
        let text = text.trim_ascii();
        // Quotes or a name would become part of the token.
        if let Err(bad @ (BadSecret::Quoted | BadSecret::Assignment | BadSecret::Option)) = secrets::secret(text) {
            return Err(format!("{shown} contains {bad}"));
        }
        if text.len() < MIN_TOKEN || !text.iter().all(u8::is_ascii_graphic) {
            return Err(format!(
                "{shown} must contain one token of at least {MIN_TOKEN} printable characters, for example the output \
                 of `openssl rand -hex 32`"
            ));
        }
        Secret::new(text).map_err(|error| error.to_string())
    });
    match token {
        Ok(token) => Some(token),
        Err(why) => {
            report.error(&span, format!("`http.metrics-token-file`: {why}"));
            None
        }
    }
}
