//! The test page of the server in a real browser.

#[path = "test_page_failures.rs"]
mod failures;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use turnserver::clock::unix_seconds;

use crate::site::Version::V4;
use crate::site::{Site, on_each_site};
use crate::support::certificates::Authority;
use crate::support::{Server, TIMEOUT, TempDir, run, with_tls};
use crate::webdriver::Browser;

/// A server with a listener for each transport, HTTP and a control socket.
struct Tested {
    server: Server,
    socket: PathBuf,
    /// Where links say that the server is, and where it is.
    places: [String; 2],
}

impl Tested {
    fn start(site: &Site) -> Self {
        Self::start_at(site, site.server(V4))
    }

    /// Starts a server whose clients look for it at this address or name.
    fn start_at(site: &Site, host: &str) -> Self {
        let (authority, directory, ip) = (Authority::new(unix_seconds()), TempDir::new(), site.server(V4));
        let files = authority.write(&authority.issue(&[ip]), directory.path());
        Self::start_with(site, host, &with_tls(&site.config(&[V4], &http(site)), &[ip], &files))
    }

    /// Starts a server with a UDP listener only, whose clients look for it at this address.
    fn over_udp(site: &Site, host: &str, more: &str) -> Self {
        let config = site.config(&[V4], &format!("{}{more}", http(site)));
        let tcp = format!("tcp = [\"{}:0\"]", site.server(V4));
        assert!(config.contains(&tcp), "{config}");
        Self::start_with(site, host, &config.replace(&tcp, "tcp = []"))
    }

    fn start_with(site: &Site, host: &str, config: &str) -> Self {
        let places = [host, site.server(V4)].map(|text| format!("//{text}:"));
        let server = site.start(&format!("hostname = {host:?}\n{config}"));
        Self { server, socket: site.socket(), places }
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        let finished = run(command.arg("ctl").arg("--socket").arg(&self.socket).args(arguments), None, TIMEOUT);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout.join("\n")
    }

    fn link(&self) -> String {
        self.link_for("10m")
    }

    fn link_for(&self, lifetime: &str) -> String {
        let link: Value = serde_json::from_str(&self.ctl(&["test-link", "--ttl", lifetime, "--json"])).unwrap();
        // The page itself is not to be loaded from a place where there is no server. Over loopback, links have the address.
        let [named, real] = &self.places;
        link["urls"][0].as_str().unwrap().replacen(named, real, 1)
    }

    fn results(&self) -> Vec<Value> {
        let results: Value = serde_json::from_str(&self.ctl(&["test-results", "--json"])).unwrap();
        results["results"].as_array().unwrap().clone()
    }
}

/// The listener that serves the page, on a port that the kernel picks.
fn http(site: &Site) -> String {
    format!("[http]\nlisten = [\"{}:0\"]\n", site.server(V4))
}

/// Starts the test of the open page. Returns how it has ended, the title and the text of the verdict.
fn test(browser: &Browser) -> [String; 3] {
    let script = "const done = arguments[arguments.length - 1]; document.getElementById('start').click(); done();";
    browser.execute_async(script, &[]);
    wait_for_end(browser)
}

/// Waits for the end of a test that was started. Returns the same.
fn wait_for_end(browser: &Browser) -> [String; 3] {
    let result = browser.execute_async(
        "const done = arguments[arguments.length - 1];
         const root = document.documentElement;
         const look = () => {
             if (root.dataset.done === undefined) return;
             observer.disconnect();
             done([root.dataset.done, ...['verdict', 'status'].map((id) => document.getElementById(id).textContent)]);
         };
         const observer = new MutationObserver(look);
         observer.observe(root, { attributes: true });
         look();",
        &[],
    );
    serde_json::from_value(result).unwrap()
}

/// Keeps pictures of a page for people to look at: light and dark, narrow and wide. Checks that nothing is wider than
/// the window.
fn look(browser: &Browser, name: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-page");
    fs::create_dir_all(&directory).unwrap();
    for width in [360, 1280] {
        for scheme in ["light", "dark"] {
            let feature = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
            browser.devtools("Emulation.setEmulatedMedia", &feature);
            let script = "const done = arguments[arguments.length - 1];
                          requestAnimationFrame(() => setTimeout(() => done([
                              document.documentElement.scrollWidth, document.documentElement.scrollHeight,
                          ])));";
            let size = |height: u64| {
                let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
                browser.devtools("Emulation.setDeviceMetricsOverride", &size);
                let [width, height]: [u64; 2] = serde_json::from_value(browser.execute_async(script, &[])).unwrap();
                (width, height)
            };
            let (actual, height) = size(800);
            assert!(actual <= width, "{name}: the page is {actual} px wide in a window of {width} px");
            size(height);
            fs::write(directory.join(format!("{name}-{width}-{scheme}.png")), browser.picture()).unwrap();
        }
    }
}

on_each_site! {
    the_page_tests_every_way_and_the_operator_gets_the_report: test_every_way;
    a_way_that_does_not_work_is_explained_and_the_others_are_tested: test_with_an_untrusted_certificate;
    a_page_whose_user_was_revoked_says_so: test_as_a_revoked_user;
}

fn test_every_way(site: &Site) {
    let tested = Tested::start(site);
    let link = tested.link();
    let browser = Browser::start();
    browser.navigate(&link);
    look(&browser, "ready");
    let [kind, title, text] = test(&browser);
    println!("test page: {kind}: {title}: {text}\n{}", tested.ctl(&["test-results"]));
    look(&browser, "works");
    assert_eq!((kind.as_str(), title.as_str()), ("ok", "The relay works"), "{text}\n{:#?}", tested.server.logs());

    let results = tested.results();
    let report = &results[0]["report"];
    assert_eq!((results.len(), &report["verdict"]), (1, &json!("ok")));
    let ways = report["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 3);
    let text = |selector: &str| {
        let script = "const [selector, done] = arguments;
            const element = document.querySelector(selector);
            done(element.value ?? element.textContent);";
        browser.execute_async(script, &[selector.into()]).as_str().unwrap().to_owned()
    };
    // Of 720 MiB for three URLs.
    let (before, after) = (text(".way:first-child dl"), text(".way:last-child dl"));
    let left = [before, after].map(|figures| {
        let left = figures.rsplit_once("Left of the link").unwrap().1.strip_suffix(" MiB").unwrap();
        left.parse::<u64>().unwrap()
    });
    assert!(720 > left[0] && left[0] > left[1] && left[1] > 720 - 3 * 48, "{left:?}");
    let line = format!("Left of the link: {} MiB and 4 more tests", left[1]);
    assert!(text("#report").ends_with(&line), "{}", text("#report"));
    for (way, protocol) in ways.iter().zip(["udp", "tcp", "tls"]) {
        assert_eq!((&way["ok"], &way["step"], &way["protocol"]), (&json!(true), &json!("done"), &json!(protocol)));
        for figure in ["rtt_median_ms", "rtt_p95_ms", "throughput_kbps", "video_frames"] {
            assert!(way[figure].as_f64().is_some_and(|value| value > 0.0), "{figure} in {way}");
        }
        assert!(way["loss_percent"].as_f64().is_some_and(|loss| loss < 10.0), "{way}");
        let relayed: SocketAddr = way["relayed"].as_str().unwrap().parse().unwrap();
        assert_eq!(relayed.ip(), tested.server.udp_address().ip());
    }
    // The log of the server confirms that it relayed the data for the user of the link.
    let ended = |lines: &[crate::support::LogLine]| {
        let ended = lines.iter().filter(|line| line.message() == "allocation ended");
        let bytes = ended.filter(|line| line.field("user").is_some_and(|user| user.starts_with("test-link-")));
        bytes.filter_map(|line| line.field("bytes_to_client")?.parse::<f64>().ok()).sum::<f64>()
    };
    tested.server.wait_for_logs(|lines| ended(lines) > 1e6);

    // The same page can test again, after a reload of the page too. The link itself works once.
    browser.navigate(link.split('#').next().unwrap());
    assert_eq!(test(&browser)[0], "ok");
    assert_eq!(tested.results().len(), 2);
    let other = Browser::start();
    other.navigate(&link);
    let [kind, title, text] = test(&other);
    assert_eq!((kind.as_str(), title.as_str()), ("error", "The test cannot run"));
    assert!(text.contains("has been used already"), "{text}");
    look(&other, "used");
}

// The browser does not trust the certificate.
fn test_with_an_untrusted_certificate(site: &Site) {
    let tested = Tested::start(site);
    let browser = Browser::strict();
    browser.navigate(&tested.link());
    let [kind, title, text] = test(&browser);
    look(&browser, "partial");
    println!("test page, untrusted certificate: {text}\n{}", tested.ctl(&["test-results"]));
    assert_eq!((kind.as_str(), title.as_str()), ("partial", "The relay works, but not every way"), "{text}");
    assert!(text.contains("2 of 3 ways work (UDP, TCP)"), "{text}");
    let report = tested.results()[0]["report"].clone();
    let failed = &report["ways"][2];
    assert_eq!((&failed["ok"], &failed["step"]), (&json!(false), &json!("gather")), "{failed}");
    assert!(failed["reason"].as_str().unwrap().contains("does not trust the certificate"), "{failed}");
    assert!(tested.ctl(&["test-results"]).contains("does not trust the certificate"));
}

fn test_as_a_revoked_user(site: &Site) {
    let tested = Tested::start(site);
    let browser = Browser::start();
    browser.navigate(&tested.link());
    // The page starts and gets its credential, which is revoked before the test.
    let opened = browser.execute_async(
        "const done = arguments[arguments.length - 1]; openLink().then((kept) => done(kept.session.username));",
        &[],
    );
    tested.ctl(&["revoke", opened.as_str().unwrap()]);
    let [kind, title, text] = test(&browser);
    look(&browser, "revoked");
    assert_eq!((kind.as_str(), title.as_str()), ("failed", "The test did not come to its end"));
    assert!(text.starts_with("The operator has revoked this test link; ask the operator for a new one"), "{text}");
}
