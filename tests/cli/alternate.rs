//! `[alternate]`: redirecting clients to another server.

use turnserver::stun::Method;
use turnserver::stun::attribute::{AlternateServer, RequestedTransport};

use super::running::{failure, text_config, turnserver};
use crate::support::client::{Client, Login};
use crate::support::{Server, TempDir, config};

// RFC 8489 §10: the client repeats the request at the alternate server with the same credentials.
#[test]
fn a_redirected_client_allocates_at_the_alternate_server() {
    let other = Server::start(&config(&["127.0.0.1"], ""));
    let alternate = format!("[alternate]\nservers = [\"{}\"]\nwhen = \"always\"\n", other.udp_address());
    let first = Server::start(&config(&["127.0.0.1"], &alternate));
    let login = Login::mint("alice", 600);
    let client = Client::new(first.udp_address());
    let session = client.challenge(&login);
    let response = client.request(&session, Method::ALLOCATE, &|writer| writer.push(&RequestedTransport::UDP));
    assert_eq!(response.error(), Some(300));
    let AlternateServer(server) = response.get().unwrap();
    assert_eq!(server, other.udp_address());
    assert!(Client::new(server).allocate(&login).is_ok());
}

#[test]
fn a_full_server_logs_redirects_with_target_and_reason() {
    let more = "[alternate]\nservers = [\"203.0.113.5:3478\"]\nwhen = \"full\"\n[limits]\nallocations = 1\n";
    let server = Server::start(&config(&["127.0.0.1"], more));
    let first = Client::new(server.udp_address());
    first.allocate(&Login::mint("alice", 600)).unwrap();
    let second = Client::new(server.udp_address());
    assert_eq!(second.allocate(&Login::mint("bob", 600)).err(), Some(300));
    let line = server.wait_for_log(|line| line.message() == "allocation redirected");
    assert_eq!((line.level(), line.field("user").as_deref()), ("INFO", Some("bob")));
    assert_eq!(line.field("client"), Some(second.address().to_string()));
    assert_eq!(line.field("alternate").as_deref(), Some("203.0.113.5:3478"));
    assert!(line.field("reason").unwrap().contains("limits.allocations"), "{line:?}");
}

// The addresses of a wildcard listener are those of the interfaces. The configuration file does not contain them.
#[test]
fn a_server_that_is_its_own_alternate_does_not_start() {
    let directory = TempDir::new();
    let listen = "udp = [\"127.0.0.1:0\"]";
    let text = text_config(&["127.0.0.1"], "[alternate]\nservers = [\"127.0.0.1:9\"]\n");
    assert!(text.contains(listen), "{text}");
    directory.write("turnserver.toml", &text.replace(listen, "udp = [\"0.0.0.0:9\"]"));
    for arguments in [&["check-config"][..], &[]] {
        let finished = turnserver(&directory, arguments);
        let expected =
            "[alternate]: 127.0.0.1:9 is an address of this server, so clients would be redirected in a loop";
        assert_eq!(failure(&finished), expected);
    }
}
