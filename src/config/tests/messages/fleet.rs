//! `node`, `[fleet]`, and `alternate.servers = "fleet"`.

use super::*;

fn fleet(keys: &str) -> String {
    format!("[fleet]\nservers = [\"nats://127.0.0.1\"]\n{keys}")
}

#[test]
fn a_fleet_needs_the_servers_of_its_engine() {
    assert_eq!(
        error("[fleet]\nregion = \"eu\""),
        "1:1: `[fleet]` has no `servers`: set the addresses of the NATS servers, for example servers = \
         [\"tls://nats.example.org:4222\"]"
    );
    let with_password = error("[fleet]\nservers = [\"nats://ann:opensesame@10.0.0.1\"]");
    assert!(with_password.contains("set `fleet.user` and `fleet.password-file`"), "{with_password}");
    assert!(!with_password.contains("opensesame"), "{with_password}");
}

#[test]
fn names_have_letters_digits_hyphens_and_underscores() {
    for (text, key) in [("node = \"fra.1\"".to_owned(), "`node`"), (fleet("name = \"a b\""), "`fleet.name`")] {
        let error = error(&text);
        assert!(error.contains(&format!("{key} must have 1 to 64 letters, digits")), "{error}");
    }
    assert!(error(&fleet("region = \"\"")).contains("`fleet.region` must have 1 to 32 letters, digits"));
}

#[test]
fn a_user_needs_a_password_and_a_password_a_user() {
    assert!(error(&fleet("user = \"a\"")).ends_with("`fleet.user` needs `fleet.password-file`"));
    assert!(error(&fleet("password-file = \"Cargo.toml\"")).ends_with("`fleet.password-file` needs `fleet.user`"));
}

#[test]
fn a_server_without_tls_on_another_machine_is_a_warning() {
    let of = |server: &str| warnings(&format!("[fleet]\nservers = [\"{server}\"]"));
    for quiet in ["tls://10.0.0.1", "nats://127.0.0.1", "nats://[::1]:4222", "nats://localhost"] {
        assert_eq!(of(quiet), [""; 0], "{quiet}");
    }
    let [warning] = &of("nats://10.0.0.1")[..] else { panic!() };
    assert!(warning.contains("the connection to 10.0.0.1:4222 has no TLS unless the server demands it"), "{warning}");
}

#[test]
fn alternate_servers_come_from_a_fleet_if_there_is_one() {
    let alternate = "[alternate]\nservers = \"fleet\"\n";
    assert!(error(alternate).contains("there is no `[fleet]`"));
    assert!(parse(&format!("{alternate}{}", fleet(""))).alternate.from_fleet);
    for (more, part) in [
        ("when = \"always\"\n", "redirect clients to each other"),
        ("tls-servers = []\n", "`alternate.tls-servers` cannot be set"),
    ] {
        let error = error(&format!("{alternate}{more}{}", fleet("")));
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_number_of_copies_is_odd() {
    assert!(error(&fleet("replicas = 2")).contains("must be 1, 3 or 5, not 2"));
}
