//! This machine and its configuration, with or without a running server.

mod firewall;
mod fleet;
mod fronts;
mod kernel;
mod listeners;
mod names;
#[cfg(feature = "offload")]
mod offload;
mod orders;
mod redis;
mod socket_unit;
mod unit;
mod webhook;

use std::net::IpAddr;
use std::path::Path;

use super::finding::{Finding, Status};
use super::remote::Report;
use super::trust::Trust;
use crate::clock;
use crate::config::{CertificateFiles, Config};
use crate::control::{self, CheckedCertificate, Choice, Source};
use crate::net::clock_state;
use crate::net::tls::{self, Setup};
use crate::transport::Endpoint;
use socket_unit::SocketUnit;

/// What is examined.
#[derive(Clone, Debug)]
pub struct Machine<'m> {
    /// The configuration file. `None`: the defaults.
    pub path: Option<&'m Path>,
    /// The address of a STUN server elsewhere, which tells the public address.
    pub stun: Option<&'m str>,
}

/// Examines this machine. The relay path is examined on each listener of a running server.
pub(super) fn examine(machine: &Machine<'_>, trust: &Trust, report: Report<'_>) {
    let source = Source { path: machine.path.map(Path::to_owned), ..Source::default() };
    let config = match source.load() {
        Ok(config) => config,
        Err(errors) => {
            for error in errors.to_string().lines() {
                report(Finding::fault("configuration", error, "correct it; `turnserver check-config` checks it again"));
            }
            return;
        }
    };
    let named = machine.path.map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
    report(Finding::ok("configuration", "no errors").of(named));
    for warning in &config.warnings {
        report(own_words("configuration", warning.to_string()));
    }
    for unreadable in control::unreadable_files(&config, machine.path) {
        report(Finding::fault("files", unreadable, "see docs/install.md"));
    }
    report(clock());
    let Some(choice) = addresses(&config, report) else { return };
    certificate(&config, report);
    orders::examine(&config, machine.path, report);
    webhook::examine(&config, machine.path, report);
    redis::examine(&config).into_iter().for_each(&mut *report);
    redis::examine_status(&config).into_iter().for_each(&mut *report);
    fleet::examine(&config).into_iter().for_each(&mut *report);
    let sockets = SocketUnit::read(Path::new("/"));
    let found = listeners::examine(&config, sockets.as_ref(), trust, report);
    fronts::examine(&config, report);
    names::examine(Path::new("/"), &config, &choice, machine.stun, report);
    names::examine_routes(&choice, report);
    listeners::examine_hairpin(&choice, &found.running, trust, report);
    [firewall::examine(&config, &choice), unit::examine(Path::new("/"))].into_iter().flatten().for_each(&mut *report);
    if let Some(sockets) = &sockets {
        sockets.examine(&config).into_iter().for_each(&mut *report);
    }
    for finding in kernel::examine(
        Path::new("/"),
        &config.relay.ports,
        open_files(&config, &choice),
        found.running.first().copied(),
    ) {
        report(finding);
    }
    #[cfg(feature = "offload")]
    report(offload::examine(&config.offload));
    listeners::examine_relaying(&config, &choice, &found, trust, report);
}

/// A warning whose text has its own advice.
fn own_words(check: &'static str, text: String) -> Finding {
    Finding { status: Status::Warning, ..Finding::ok(check, text) }
}

fn clock() -> Finding {
    match clock_state() {
        Ok(true) => Finding::ok("clock", "the clock is synchronized"),
        Ok(false) => Finding::warning(
            "clock",
            "no time service keeps the clock right: credentials seem expired, or too new, if it is wrong",
            "enable one: timedatectl set-ntp true",
        ),
        Err(error) => Finding::warning("clock", format!("the state of the clock is unknown: {error}"), "compare it"),
    }
}

/// Returns the relay addresses and reports about them.
fn addresses(config: &Config, report: Report<'_>) -> Option<Choice> {
    let choice = match control::choose_addresses(config) {
        Ok(choice) => choice,
        Err(error) => {
            report(own_fault("relay-address", error.to_string()));
            return None;
        }
    };
    for relay in &choice.addresses {
        let advertised =
            if relay.advertised == relay.bind { String::new() } else { format!(" as {}", relay.advertised) };
        report(Finding::ok("relay-address", format!("{}{advertised}: {}", relay.bind, relay.reason)));
    }
    let missing = control::missing_listeners(config).unwrap_or_else(|error| vec![error.to_string()]);
    let denied = control::denied_own_addresses(config, &choice).ok().flatten();
    for warning in choice.warnings.iter().chain(&missing).chain(&denied) {
        report(own_words("relay-address", warning.clone()));
    }
    Some(choice)
}

/// A fault whose text has its own advice.
fn own_fault(check: &'static str, text: String) -> Finding {
    Finding { status: Status::Fault, ..Finding::ok(check, text) }
}

fn certificate(config: &Config, report: Report<'_>) {
    let Some(tls) = &config.tls else { return };
    for CheckedCertificate { file, result } in control::check_tls(tls, config.hostname.as_deref()) {
        match result {
            Ok((description, warnings)) => {
                report(Finding::ok("certificate", description).of(file.display()));
                for warning in warnings {
                    report(own_words("certificate", warning).of(file.display()));
                }
            }
            Err(error) => report(own_fault("certificate", error.to_string()).of(file.display())),
        }
    }
}

/// Returns the certificates as the server selects from them; `None` if one cannot be used.
fn certificates(config: &Config) -> Option<Vec<Setup>> {
    let now = clock::unix_seconds();
    let load = |files: &CertificateFiles| {
        let mut setup = tls::load(&files.certificate, &files.private_key).ok()?;
        setup.compare(now);
        Some(setup)
    };
    config.tls.as_ref()?.certificates.iter().map(load).collect()
}

/// Returns the files that allocations and connections can use.
fn open_files(config: &Config, choice: &Choice) -> u64 {
    let ports = config.relay.ports.len() * choice.addresses.len().max(1);
    let allocations = match config.limits.allocations {
        0 => ports as u64,
        limit => u64::from(limit).min(ports as u64),
    };
    allocations + u64::from(config.limits.connections)
}

/// Returns an address at which this machine reaches a listener.
fn reachable(endpoint: Endpoint, choice: &Choice) -> Vec<IpAddr> {
    let ip = endpoint.address.ip();
    if !ip.is_unspecified() {
        return vec![ip];
    }
    let accepts = |own: &IpAddr| own.is_ipv4() || ip.is_ipv6();
    let mut own: Vec<IpAddr> = choice.addresses.iter().map(|relay| relay.bind).filter(accepts).collect();
    own.dedup();
    own
}
