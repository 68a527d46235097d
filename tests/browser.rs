//! A headless Chromium makes a call to itself through the real server, and through nothing else.

// `cfg(test)` tells clippy that helpers in a test binary are test code too.
#[cfg(test)]
mod support;
#[cfg(test)]
#[path = "browser/webdriver.rs"]
mod webdriver;

#[cfg(test)]
mod browser {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread;

    use serde_json::{Value, json};

    use crate::support::{Credential, Server, config, config_without_secret};
    use crate::webdriver::Browser;

    const PAGE: &str = include_str!("browser/page.html");
    const BYTES: usize = 10 << 20;

    /// Serves the page for as long as the test process lives. From 127.0.0.1 it is a secure context, which
    /// `crypto.subtle` needs.
    fn serve_page() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A browser opens connections that it does not use; each has its own thread.
                thread::spawn(|| stream.and_then(answer));
            }
        });
        address
    }

    fn answer(mut stream: TcpStream) -> std::io::Result<()> {
        let request: Vec<String> =
            BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let (status, body) = match request.first() {
            Some(line) if line.starts_with("GET / ") => ("200 OK", PAGE),
            Some(_) => ("404 Not Found", ""),
            None => return Ok(()),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    /// The configuration of a page that knows only the urls of one transport.
    fn only(transport: &str, credential: &Credential) -> Value {
        let mut configuration = credential.configuration.clone();
        let urls = configuration["iceServers"][0]["urls"].as_array_mut().unwrap();
        urls.retain(|url| url.as_str().unwrap().ends_with(&format!("transport={transport}")));
        assert_eq!(urls.len(), 1);
        configuration
    }

    /// Makes a call with `configuration` and checks that all of it went through the relay, and over `transport` to it.
    fn call(case: &str, server: &Server, configuration: &Value, transport: &str) {
        let browser = Browser::start();
        browser.navigate(&format!("http://{}/", serve_page()));
        let report = browser.execute_async(
            "const [configuration, bytes, done] = arguments;
             call(configuration, bytes).then(done, (error) => done({ error: error.message }));",
            &[configuration.clone(), BYTES.into()],
        );
        println!("browser, {case}: {report}");
        assert_eq!(report["error"], Value::Null, "the server said:\n{:#?}", server.logs());

        assert_eq!(report["receivedBytes"], json!(BYTES));
        assert_eq!(report["receivedHash"], report["sentHash"]);
        assert_eq!(report["sentHash"].as_str().map(str::len), Some(64));

        let frames: Vec<u64> = serde_json::from_value(report["framesDecoded"].clone()).unwrap();
        assert!(frames[0] > 0 && frames[1] > frames[0], "{frames:?}");

        // The server's own account: what the receiver got came from it.
        server.wait_for_log(|line| {
            let bytes = line.field("bytes_to_client").and_then(|bytes| bytes.parse().ok());
            line.message() == "allocation ended" && bytes.is_some_and(|bytes: usize| bytes > BYTES)
        });

        let relay_ip = server.udp_address().ip().to_string();
        for pair in report["pairs"].as_array().unwrap() {
            for side in ["local", "remote"] {
                assert_eq!(pair[side]["candidateType"], "relay", "{report}");
                assert_eq!(pair[side]["address"].as_str(), Some(relay_ip.as_str()), "{report}");
            }
            assert_eq!(pair["local"]["relayProtocol"], transport, "{report}");
        }
        assert_eq!(report["pairs"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_call_runs_through_the_relay_with_a_minted_credential() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        call("minted credential, udp", &server, &only("udp", &server.credential("alice")), "udp");
    }

    #[test]
    fn a_call_runs_over_tcp_where_udp_is_blocked() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        call("minted credential, tcp", &server, &only("tcp", &server.credential("alice")), "tcp");
    }

    #[test]
    fn a_call_runs_through_the_relay_with_the_line_that_a_server_without_secret_prints() {
        let server = Server::start(&config_without_secret(&["127.0.0.1"], ""));
        // A browser that can use UDP prefers it.
        call("printed credential", &server, &server.printed_credential().configuration, "udp");
    }
}
