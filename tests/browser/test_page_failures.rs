//! How the test page ends when a part of the test fails.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Tested, look};
use crate::forwarder::{Drops, Forwarder};
use crate::http::Http;
use crate::site::Version::V4;
use crate::site::{Site, on_each_site, over_loopback};
use crate::support::blocked_ports::BLOCKED_RELAY_PORTS;
use crate::support::client::{Client, Login, socket};
use crate::support::network::in_own_network;
use crate::webdriver::Browser;

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

/// Starts a server that clients reach over UDP and only through the path. The path has an address at which only it
/// listens, and the port of the server.
fn behind_a_path(site: &Site, drops: Drops) -> (Tested, Forwarder) {
    let tested = Tested::over_udp(site, site.other, "");
    let [own, to_server] = [site.other, site.host(V4)].map(|ip| ip.parse().unwrap());
    let forwarder = Forwarder::start(own, to_server, tested.server.udp_address(), drops);
    (tested, forwarder)
}

/// Tests over a path that drops something from the beginning.
fn fails_over(site: &Site, drops: Drops, name: &str, step: &str, reason: &str) -> Page {
    let (tested, _forwarder) = behind_a_path(site, drops);
    let page = Page::open(tested.link());
    page.assert_fails(&tested, &page.test(), name, step, reason);
    page
}

/// Tests over a path that drops something from a step on.
fn fails_over_from(site: &Site, method: &str, drops: Drops, name: &str, step: &str, reason: &str) {
    let (tested, forwarder) = behind_a_path(site, Drops::Nothing);
    let page = Page::open(tested.link());
    page.test_until(method);
    forwarder.drop_from_now_on(drops);
    page.assert_fails(&tested, &page.go_on(), name, step, reason);
}

fn drop_video(site: &Site) {
    let page = fails_over(site, Drops::Rtp, "no-video", "video", "the picture does not arrive");
    // What was measured stays, and parts without data are hidden.
    assert!(page.text("#report").contains("\n  latency "), "{}", page.text("#report"));
    assert_eq!(page.text("figure:not([hidden]) figcaption"), "Latency in ms over time; a red mark is a lost message.");
}

on_each_site! {
    a_path_that_drops_all_relayed_data_fails_at_the_connection:
        |site| { fails_over(site, Drops::Data, "no-connection", "connect", "no data passes from one to another"); };
    a_path_that_drops_dtls_fails_at_the_connection:
        |site| { fails_over(site, Drops::Dtls, "no-handshake", "connect", "the call does not begin"); };
    a_path_that_drops_messages_fails_at_the_data_channel:
        |site| fails_over_from(site, "probe", Drops::Dtls, "no-data", "data", "no message came back through the relay");
    a_path_that_drops_video_fails_at_the_picture: drop_video;
    a_path_that_drops_large_messages_fails_at_the_throughput:
        |site| {
            let reason = "Small messages pass the relay, but large ones";
            fails_over_from(site, "fill", Drops::LargeDtls, "no-throughput", "throughput", reason);
        };
    a_path_that_ends_in_the_middle_fails_with_a_broken_connection:
        |site| fails_over_from(site, "probe", Drops::Everything, "broken", "data", "was made and then broke off");
    a_path_that_loses_some_messages_works_poorly: lose_some_messages;
    a_limit_of_the_server_on_the_rate_is_too_little_for_video: limit_the_rate;
    an_address_without_a_server_fails_with_the_errors_of_ice: look_where_nothing_listens;
    a_link_that_has_relayed_its_bytes_in_the_middle_says_so: spend_the_bytes_of_a_link;
    a_link_that_expires_in_the_middle_says_so: wait_for_the_end_of_a_link;
    a_server_that_ends_in_the_middle_is_noticed: kill_the_server;
    a_server_that_starts_again_does_not_know_the_link: start_the_server_again;
}

// It has a network of its own.
#[test]
fn blocked_relay_ports_fail_at_the_connection() {
    // A browser needs an interface that is not the loopback interface.
    let network: [&str; 4] =
        ["link add w0 type veth peer name w1", "addr add 203.0.114.1/24 dev w0", "link set w0 up", "link set w1 up"];
    in_own_network(&[&BLOCKED_RELAY_PORTS[..], &network].concat(), || {
        over_loopback(|site| {
            let tested = Tested::over_udp(site, site.server(V4), "");
            let page = Page::open(tested.link());
            page.assert_fails(&tested, &page.test(), "blocked", "connect", "A firewall on the server may drop it");
        });
    });
}

fn lose_some_messages(site: &Site) {
    let (tested, _forwarder) = behind_a_path(site, Drops::SomeDtls);
    let page = Page::open(tested.link());
    let [kind, title, text] = page.test();
    look(&page.browser, "loss");
    println!("test page, loss: {title}: {text}\n{}", tested.ctl(&["test-results"]));
    assert_eq!((kind.as_str(), title.as_str()), ("ok", "The relay works, but poorly"), "{text}");
    assert_eq!(page.text(".badge"), "works poorly");
    assert!(page.text(".explanation").contains("% of the messages were lost"), "{}", page.text(".explanation"));
    assert!(tested.ctl(&["test-results"]).contains("% of the messages were lost"));
}

fn limit_the_rate(site: &Site) {
    let tested = Tested::over_udp(site, site.server(V4), "[limits]\nbytes-per-second-per-allocation = 60000\n");
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
fn look_where_nothing_listens(site: &Site) {
    let tested = Tested::start_at(site, site.other);
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

// The network of the offload has no name server.
#[test]
fn a_name_without_an_address_is_named() {
    over_loopback(|site| {
        let tested = Tested::start_at(site, "turn.invalid");
        let page = Page::open(tested.link());
        page.assert_fails(&tested, &page.test(), "no-name", "gather", "The name turn.invalid cannot be resolved");
    });
}

// Browsers report that the name has no IPv6 address, whatever else is wrong. The machine has no other network.
#[test]
fn a_name_with_an_ipv4_address_only_is_not_blamed() {
    in_own_network(&["link set lo up", "address add 192.0.2.9/32 dev lo", "route add default dev lo"], || {
        over_loopback(|site| {
            let tested = Tested::start_at(site, "v4.test");
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
    });
}

fn spend_the_bytes_of_a_link(site: &Site) {
    let tested = Tested::start(site);
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
    let [caller, callee] = [0, 1]
        .map(|_| Client::on(socket((site.host(V4).parse::<IpAddr>().unwrap(), 0).into()), tested.server.udp_address()));
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

fn wait_for_the_end_of_a_link(site: &Site) {
    let tested = Tested::over_udp(site, site.server(V4), "");
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

fn kill_the_server(site: &Site) {
    let tested = Tested::over_udp(site, site.server(V4), "");
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

fn start_the_server_again(site: &Site) {
    let tested = Tested::over_udp(site, site.server(V4), "");
    let page = Page::open(tested.link());
    page.test_until("probe");
    let (udp, http) = (tested.server.udp_address(), page.http_address());
    drop(tested);
    let config = site.config(&[V4], &format!("[http]\nlisten = [\"{http}\"]\n"));
    let _server = site.start(&config.replacen(&format!("{}:0", site.server(V4)), &udp.to_string(), 1));
    let [kind, title, text] = page.go_on();
    assert_eq!((kind.as_str(), title.as_str()), ("failed", ENDS), "{text}");
    assert_eq!(text, "The server does not know this link: it was started again.");
    assert!(page.text("#sent").starts_with("The operator did not receive it"), "{}", page.text("#sent"));
}
