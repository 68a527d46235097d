//! The ten configurations of `tests/import_coturn`, used by coturn's own client after the import.

use std::net::SocketAddr;
use std::process::Command;

use toml::{Table, Value};
use turnserver::clock::unix_seconds;

use crate::cases::{CASES, Case, adapted};
use crate::support::certificates::Authority;
use crate::support::{Server, TIMEOUT, TempDir, run};

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
fn use_with_uclient(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let directory = TempDir::new();
    let (finished, path) = case.import(&directory, "turnserver.toml");
    assert_eq!(finished.code, Some(i32::from(!case.cannot.is_empty())), "{finished:#?}");
    let authority = Authority::new(unix_seconds());
    let files = authority.write(&authority.issue(&["localhost"]), directory.path());
    let mut table = adapted(&std::fs::read_to_string(path).unwrap(), &files);
    // The client of Debian's version uses channel numbers of RFC 5766.
    let mut compat = Table::new();
    compat.insert("rfc5766-channels".to_owned(), true.into());
    table.insert("compat".to_owned(), compat.into());
    let server = Server::start(&table.to_string());
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

macro_rules! cases {
    ($($test:ident: $name:literal;)+) => {
        $(
            #[test]
            fn $test() {
                use_with_uclient($name);
            }
        )+
    };
}

cases! {
    uclient_uses_a_configuration_for_synapse: "synapse";
    uclient_uses_a_configuration_for_jitsi: "jitsi";
    uclient_uses_a_configuration_for_nextcloud_talk: "nextcloud";
    uclient_uses_a_configuration_for_bigbluebutton: "bigbluebutton";
    uclient_uses_a_configuration_for_netbird: "netbird";
    uclient_uses_arguments_of_docker: "docker";
    uclient_uses_a_user_with_a_key: "keys";
    uclient_uses_a_file_with_every_form_of_lines: "quirks";
    uclient_uses_a_configuration_with_databases: "database";
    uclient_uses_a_configuration_with_limits_and_metrics: "metered";
}
