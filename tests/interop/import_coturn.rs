//! The ten configurations of `tests/import_coturn`, used by coturn's own client after the import.

use std::net::SocketAddr;
use std::process::Command;

use toml::{Table, Value};
use turnserver::clock::unix_seconds;

use crate::cases::{CASES, Case, adapted};
use crate::site::Version::V4;
use crate::site::{Site, on_each_site};
use crate::support::certificates::Authority;
use crate::support::{TIMEOUT, TempDir, run};

/// Runs the client with two allocations that exchange data, and asserts that all of it arrives.
fn uclient(case: &Case, address: SocketAddr, transport: &[&str], [username, password]: [&str; 2]) {
    let mut command = Command::new("turnutils_uclient");
    command.args(["-u", username, "-w", password, "-X", "-y", "-c", "-m", "2", "-n", "20", "-l", "200", "-z", "5"]);
    command.args(transport).args(["-p", &address.port().to_string()]).arg(address.ip().to_string());
    let finished = run(&mut command, Some("coturn"), TIMEOUT);
    let output = finished.stdout.join("\n");
    let is_complete = output.contains("tot_send_msgs=40, tot_recv_msgs=40") && output.contains("Total lost packets 0");
    assert!(is_complete && finished.code == Some(0), "{}: {finished:#?}", case.name);
}

/// Imports a configuration, starts it, and uses each of its listeners.
fn use_with_uclient(site: &Site, name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let directory = TempDir::new();
    let (finished, path) = case.import(&directory, "turnserver.toml");
    assert_eq!(finished.code, Some(i32::from(!case.cannot.is_empty())), "{finished:#?}");
    let authority = Authority::new(unix_seconds());
    let files = authority.write(&authority.issue(&["localhost"]), directory.path());
    let mut table = adapted(&std::fs::read_to_string(path).unwrap(), site.server(V4), &files);
    table.extend(site.tables().parse::<Table>().unwrap());
    // The client of Debian's version uses channel numbers of RFC 5766.
    let mut compat = Table::new();
    compat.insert("rfc5766-channels".to_owned(), true.into());
    table.insert("compat".to_owned(), compat.into());
    let server = site.start(&table.to_string());
    let (username, password) = match case.login() {
        Some(login) => login.into_parts(),
        None => {
            let printed = server.printed_credential();
            (printed.username, printed.password)
        }
    };
    let login = [username.as_str(), password.as_str()];
    uclient(case, server.udp_address(), &[], login);
    let has = |transport: &str| {
        let list = table.get("listen").and_then(|listen| listen.get(transport)).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    if has("tcp") {
        uclient(case, server.tcp_address(), &["-t"], login);
    }
    if has("tls") {
        uclient(case, server.tls_address(), &["-t", "-S"], login);
    }
}

on_each_site! {
    uclient_uses_a_configuration_for_synapse: |site| use_with_uclient(site, "synapse");
    uclient_uses_a_configuration_for_jitsi: |site| use_with_uclient(site, "jitsi");
    uclient_uses_a_configuration_for_nextcloud_talk: |site| use_with_uclient(site, "nextcloud");
    uclient_uses_a_configuration_for_bigbluebutton: |site| use_with_uclient(site, "bigbluebutton");
    uclient_uses_a_configuration_for_netbird: |site| use_with_uclient(site, "netbird");
    uclient_uses_arguments_of_docker: |site| use_with_uclient(site, "docker");
    uclient_uses_a_user_with_a_key: |site| use_with_uclient(site, "keys");
    uclient_uses_a_file_with_every_form_of_lines: |site| use_with_uclient(site, "quirks");
    uclient_uses_a_configuration_with_databases: |site| use_with_uclient(site, "database");
    uclient_uses_a_configuration_with_limits_and_metrics: |site| use_with_uclient(site, "metered");
}
