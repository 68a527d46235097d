//! How the test page ends when a part of the test fails.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Tested, look};
use crate::client::Http;
use crate::forwarder::{Drops, Forwarder};
use crate::support::blocked_ports::BLOCKED_RELAY_PORTS;
use crate::support::client::{Client, Login};
use crate::support::network::in_own_network;
use crate::support::{Server, config_for};
use crate::webdriver::Browser;

/// The address at which clients look for the server, on its ports. Only a [`Forwarder`] listens there.
const PATH: &str = "127.0.0.2";
const FAILS: &str = "The relay does not work from here";
const ENDS: &str = "The test did not come to its end";

/// A page that is being tested.
struct Page {
    browser: Browser,
    link: String,
}

impl Page {
    fn open(link: String) -> Self {
        Self::open_in(Browser::start(), link)
    }

    fn open_in(browser: Browser, link: String) -> Self {
        browser.navigate(&link);
        Self { browser, link }
    }

    fn test(&self) -> [String; 3] {
        super::test(&self.browser)
    }

    /// Starts the test and stops it before this method of `Call`.
    fn test_until(&self, method: &str) {
        let script = "const [method, done] = arguments;
            const action = Call.prototype[method];
            Call.prototype[method] = async function () {
                done(true);
                await new Promise((resolve) => { window.goOn = resolve; });
                return action.call(this);
            };
            document.getElementById('start').click();
            new MutationObserver(() => {
                if (document.documentElement.dataset.done === undefined) return;
                done(document.getElementById('status').textContent);
            }).observe(document.documentElement, { attributes: true });";
        assert_eq!(self.browser.execute_async(script, &[method.into()]), json!(true));
    }

    /// Continues after [`test_until`](Self::test_until). Returns how the test has ended.
    fn go_on(&self) -> [String; 3] {
        let script = "const done = arguments[arguments.length - 1]; window.goOn(); done();";
        self.browser.execute_async(script, &[]);
        super::wait_for_end(&self.browser)
    }

    fn http_address(&self) -> SocketAddr {
        let authority = self.link.strip_prefix("http://").unwrap().split('/').next().unwrap();
        authority.parse().unwrap()
    }

    fn text(&self, selector: &str) -> String {
        let script = "const [selector, done] = arguments;
            done([...document.querySelectorAll(selector)].map((one) => one.value ?? one.textContent).join('\\n'));";
        self.browser.execute_async(script, &[selector.into()]).as_str().unwrap().to_owned()
    }

    /// Returns the key of the page, and its credential.
    fn secrets(&self) -> (String, Login) {
        let script = "const done = arguments[arguments.length - 1]; done(memory.read());";
        let kept = self.browser.execute_async(script, &[]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let session = &kept["session"];
        (text(&kept["key"]), Login::new(&text(&session["username"]), &text(&session["credential"])))
    }

    /// Checks that every way fails at a step with this reason, and that page, report and operator say so.
    fn assert_fails(&self, tested: &Tested, ended: &[String; 3], name: &str, step: &str, reason: &str) {
        self.assert_ends(tested, ended, FAILS, name, step, reason);
        assert!(self.text(".badge").lines().all(|badge| badge == "does not work"), "{}", self.text(".badge"));
    }

    /// Checks that every tested way fails at a step with this reason, and that page, report and operator say so.
    fn assert_ends(&self, tested: &Tested, ended: &[String; 3], title: &str, name: &str, step: &str, reason: &str) {
        look(&self.browser, name);
        println!("test page, {name}: {ended:?}\n{}\n{}", self.text("#report"), tested.ctl(&["test-results"]));
        assert_eq!((ended[0].as_str(), ended[1].as_str()), ("failed", title), "{ended:?}");
        let report = tested.results().pop().unwrap()["report"].clone();
        assert_eq!(report["verdict"], json!("failed"));
        for way in report["ways"].as_array().unwrap() {
            assert_eq!((&way["ok"], &way["step"]), (&json!(false), &json!(step)), "{way}");
            let said = way["reason"].as_str().unwrap();
            assert!(said.contains(reason), "{said}");
            assert!(self.text(".explanation").contains(said), "{said}");
            let url = way["url"].as_str().unwrap();
            assert!(self.text("#report").contains(&format!("FAILS: {url}\n  at step {step}: {said}")), "{said}");
            assert!(tested.ctl(&["test-results"]).contains(&format!("{url}: {said}")), "{said}");
        }
        assert_eq!(self.text("#sent"), "The operator of the server has received it, too.");
    }
}

/// Starts a server that clients reach over UDP and only through the path.
fn behind_a_path(drops: Drops) -> (Tested, Forwarder) {
    let tested = Tested::over_udp(PATH, "");
    let forwarder = Forwarder::start(PATH.parse::<IpAddr>().unwrap(), tested.server.udp_address(), drops);
    (tested, forwarder)
}

/// Tests over a path that drops something from the beginning.
fn fails_over(drops: Drops, name: &str, step: &str, reason: &str) -> Page {
    let (tested, _forwarder) = behind_a_path(drops);
    let page = Page::open(tested.link());
    page.assert_fails(&tested, &page.test(), name, step, reason);
    page
}

/// Tests over a path that drops something from a step on.
fn fails_over_from(method: &str, drops: Drops, name: &str, step: &str, reason: &str) {
    let (tested, forwarder) = behind_a_path(Drops::Nothing);
    let page = Page::open(tested.link());
    page.test_until(method);
    forwarder.drop_from_now_on(drops);
    page.assert_fails(&tested, &page.go_on(), name, step, reason);
}

#[test]
fn a_path_that_drops_all_relayed_data_fails_at_the_connection() {
    fails_over(Drops::Data, "no-connection", "connect", "no data passes from one to another");
}

#[test]
fn a_path_that_drops_dtls_fails_at_the_connection() {
    fails_over(Drops::Dtls, "no-handshake", "connect", "the call does not begin");
}

#[test]
fn a_path_that_drops_messages_fails_at_the_data_channel() {
    fails_over_from("probe", Drops::Dtls, "no-data", "data", "no message came back through the relay");
}

#[test]
fn a_path_that_drops_video_fails_at_the_picture() {
    let page = fails_over(Drops::Rtp, "no-video", "video", "the picture does not arrive");
    // What was measured stays, and parts without data are hidden.
    assert!(page.text("#report").contains("\n  latency "), "{}", page.text("#report"));
    assert_eq!(page.text("figure:not([hidden]) figcaption"), "Latency in ms over time; a red mark is a lost message.");
}

#[test]
fn a_path_that_drops_large_messages_fails_at_the_throughput() {
    fails_over_from(
        "fill",
        Drops::LargeDtls,
        "no-throughput",
        "throughput",
        "Small messages pass the relay, but large ones",
    );
}

#[test]
fn a_path_that_ends_in_the_middle_fails_with_a_broken_connection() {
    fails_over_from("probe", Drops::Everything, "broken", "data", "was made and then broke off");
}

#[test]
fn blocked_relay_ports_fail_at_the_connection() {
    // A browser needs an interface that is not the loopback interface.
    let network: [&str; 4] =
        ["link add w0 type veth peer name w1", "addr add 203.0.114.1/24 dev w0", "link set w0 up", "link set w1 up"];
    in_own_network(&[&BLOCKED_RELAY_PORTS[..], &network].concat(), || {
        let tested = Tested::over_udp("127.0.0.1", "");
        let page = Page::open(tested.link());
        page.assert_fails(&tested, &page.test(), "blocked", "connect", "A firewall on the server may drop it");
    });
}

#[test]
fn a_path_that_loses_some_messages_works_poorly() {
    let (tested, _forwarder) = behind_a_path(Drops::SomeDtls);
    let page = Page::open(tested.link());
    let [kind, title, text] = page.test();
    look(&page.browser, "loss");
    println!("test page, loss: {title}: {text}\n{}", tested.ctl(&["test-results"]));
    assert_eq!((kind.as_str(), title.as_str()), ("ok", "The relay works, but poorly"), "{text}");
    assert_eq!(page.text(".badge"), "works poorly");
    assert!(page.text(".explanation").contains("% of the messages were lost"), "{}", page.text(".explanation"));
    assert!(tested.ctl(&["test-results"]).contains("% of the messages were lost"));
}

#[test]
fn a_limit_of_the_server_on_the_rate_is_too_little_for_video() {
    let tested = Tested::over_udp("127.0.0.1", "[limits]\nbytes-per-second-per-allocation = 60000\n");
    let page = Page::open(tested.link());
    let [kind, title, text] = page.test();
    look(&page.browser, "slow");
    println!("test page, slow: {title}: {text}\n{}", tested.ctl(&["test-results"]));
    assert_eq!((kind.as_str(), title.as_str()), ("ok", "The relay works, but poorly"), "{text}");
    assert!(page.text(".explanation").contains("is too little for good video"), "{}", page.text(".explanation"));
    assert!(page.text("#report").contains("is too little for good video"));

    let weaknesses = |loss: f64, latency: f64, kbps: f64| {
        let script = "const [loss_percent, rtt_median_ms, throughput_kbps, done] = arguments;
            done(weaknesses({ loss_percent, rtt_median_ms, throughput_kbps }));";
        page.browser.execute_async(script, &[loss.into(), latency.into(), kbps.into()])
    };
    assert_eq!(weaknesses(3.0, 400.0, 1_000.0), json!(""));
    assert_eq!(
        weaknesses(3.1, 400.1, 999.0),
        json!(
            "3.1 % of the messages were lost; a latency of 400.1 ms disturbs a conversation; \
             a throughput of 999 kbit/s is too little for good video"
        )
    );
}

// Nothing listens at the address.
#[test]
fn an_address_without_a_server_fails_with_the_errors_of_ice() {
    let tested = Tested::start_at(PATH);
    let page = Page::open(tested.link());
    page.assert_fails(&tested, &page.test(), "unreachable", "gather", "the port is closed");
    let report = tested.results()[0]["report"].clone();
    let ways = report["ways"].as_array().unwrap();
    let reasons: Vec<&str> = ways.iter().map(|way| way["reason"].as_str().unwrap()).collect();
    for (reason, part) in
        reasons.iter().zip(["No response from UDP port", "No TCP connection to port", "No TLS connection to"])
    {
        assert!(reason.starts_with(part), "{reason}");
    }
    // Over UDP, Chromium reports the error after 40 s only, and the page does not wait for it.
    for way in &ways[1..] {
        assert_eq!(way["errors"][0]["code"], json!(701), "{way}");
        assert!(!way["errors"][0]["text"].as_str().unwrap().is_empty(), "{way}");
    }
    assert!(page.text("#report").contains("ICE error 701: "), "{}", page.text("#report"));
}

#[test]
fn a_name_without_an_address_is_named() {
    let tested = Tested::start_at("turn.invalid");
    let page = Page::open(tested.link());
    page.assert_fails(&tested, &page.test(), "no-name", "gather", "The name turn.invalid cannot be resolved");
}

// Browsers report that the name has no IPv6 address, whatever else is wrong.
#[test]
fn a_name_with_an_ipv4_address_only_is_not_blamed() {
    in_own_network(&["link set lo up", "address add 192.0.2.9/32 dev lo", "route add default dev lo"], || {
        let tested = Tested::start_at("v4.test");
        // Nothing listens there.
        let browser = Browser::with_hosts("127.0.0.1 localhost\n192.0.2.9 v4.test\n");
        let page = Page::open_in(browser, tested.link());
        let ended = page.test();
        println!("a name with an IPv4 address: {ended:?}\n{}", page.text("#report"));
        let report = tested.results()[0]["report"].clone();
        let reasons = ["from UDP", "No TCP connection", "No TLS connection"];
        for (way, reason) in report["ways"].as_array().unwrap().iter().zip(reasons) {
            assert!(way["reason"].as_str().unwrap().contains(reason), "{way}");
        }
    });
}

#[test]
fn a_link_that_has_relayed_its_bytes_in_the_middle_says_so() {
    let tested = Tested::start();
    let page = Page::open(tested.link());
    page.test_until("fill");
    let (key, login) = page.secrets();
    let http = page.http_address();
    let remaining = || {
        let body = json!({ "key": key }).to_string();
        let response = Http::tcp(http).request("POST", "/test/remaining", "", body.as_bytes());
        let response: Value = serde_json::from_str(&response.body).unwrap();
        response["bytes"].as_u64().unwrap()
    };
    let [caller, callee] = [0, 1].map(|_| Client::new(tested.server.udp_address()));
    let [(session, _), (_, relayed)] = [&caller, &callee].map(|client| client.allocate(&login).unwrap());
    caller.permit(&session, relayed);
    // Some get lost if the server is slower.
    while remaining() >= 10_000 {
        (0..200).for_each(|_| caller.send_to_peer(relayed, &[0; 1_900]));
    }
    let ended = page.go_on();
    page.assert_ends(&tested, &ended, ENDS, "spent", "throughput", "This link has relayed as much as it may");
    assert!(page.text("dl").contains("Left of the link0.0 MiB"), "{}", page.text("dl"));
    // The link would end the tests of the other ways, too.
    assert_eq!(page.text(".badge"), "not finished\nnot tested\nnot tested");
    assert_eq!(ended[2], "This link has relayed as much as it may. Ask the operator for a new one.");
}

#[test]
fn a_link_that_expires_in_the_middle_says_so() {
    let tested = Tested::over_udp("127.0.0.1", "");
    let browser = Browser::start();
    let link = tested.link_for("1m");
    browser.navigate(&link);
    let page = Page { browser, link };
    page.test_until("probe");
    let script = "const done = arguments[arguments.length - 1];
        const look = async () => {
            const { cause } = await remaining(memory.read().key);
            if (cause) done(cause); else setTimeout(look, 500);
        };
        look();";
    let cause = page.browser.execute_async(script, &[]);
    assert!(cause.as_str().unwrap().starts_with("This test link has expired"), "{cause}");
    // Both ends of the call.
    tested.server.wait_for_logs(|lines| lines.iter().filter(|line| line.message() == "allocation ended").count() >= 2);
    page.assert_ends(&tested, &page.go_on(), ENDS, "expired", "data", "This test link has expired");
    let [kind, title, text] = page.test();
    assert_eq!((kind.as_str(), title.as_str()), ("error", "The test cannot run"));
    assert!(text.contains("has expired"), "{text}");
    look(&page.browser, "expired-before");
}

#[test]
fn a_server_that_ends_in_the_middle_is_noticed() {
    let tested = Tested::over_udp("127.0.0.1", "");
    let page = Page::open(tested.link());
    page.test_until("probe");
    tested.server.signal(Signal::SIGKILL);
    let [kind, title, _] = page.go_on();
    look(&page.browser, "killed");
    assert_eq!((kind.as_str(), title.as_str()), ("failed", FAILS));
    let reason = page.text(".explanation");
    assert!(reason.ends_with("The server of this page does not respond. Is this browser still online?"), "{reason}");
    assert!(page.text("#sent").starts_with("The operator did not receive it"), "{}", page.text("#sent"));
}

#[test]
fn a_server_that_starts_again_does_not_know_the_link() {
    let tested = Tested::over_udp("127.0.0.1", "");
    let page = Page::open(tested.link());
    page.test_until("probe");
    let (udp, http) = (tested.server.udp_address(), page.http_address());
    drop(tested);
    let config = config_for(&["127.0.0.1"], &["127.0.0.1"], &format!("[http]\nlisten = [\"{http}\"]\n"));
    let _server = Server::start(&config.replacen("127.0.0.1:0", &udp.to_string(), 1));
    let [kind, title, text] = page.go_on();
    assert_eq!((kind.as_str(), title.as_str()), ("failed", ENDS), "{text}");
    assert_eq!(text, "The server does not know this link: it was started again.");
    assert!(page.text("#sent").starts_with("The operator did not receive it"), "{}", page.text("#sent"));
}
