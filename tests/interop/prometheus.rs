//! Debian's Prometheus reads the metrics of the real server, and its `promtool` checks them and `monitoring/`. Only over
//! loopback, because no data is relayed.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use turnserver::clock::Clock;

use crate::http::Http;
use crate::support::client::{Client, Login};
use crate::support::{Process, Server, TIMEOUT, TempDir, config};

const PACKAGE: Option<&str> = Some("prometheus");

fn monitoring(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(file)
}

fn server() -> (Server, SocketAddr) {
    let server = Server::start(&config(&["127.0.0.1"], "[http]\nlisten = [\"127.0.0.1:0\"]\n"));
    let listening = server.wait_for_log(|line| line.message() == "HTTP listening");
    let address = listening.field("address").unwrap().parse().unwrap();
    (server, address)
}

/// Runs promtool and asserts that it finds nothing to complain about.
fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    let mut promtool = Process::start(command.args(arguments), PACKAGE);
    promtool.take_stdin().write_all(input.as_bytes()).unwrap();
    let finished = promtool.finish(TIMEOUT);
    println!("promtool {arguments:?}: {:?}", finished.stdout);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
}

#[test]
fn promtool_accepts_the_page_the_alerts_and_their_tests() {
    let (server, http) = server();
    let client = Client::new(server.udp_address());
    client.allocate(&Login::mint("ann", 600)).unwrap();
    promtool(&["check", "metrics"], &Http::tcp(http).get("/metrics").body);
    promtool(&["check", "rules", monitoring("alerts.yml").to_str().unwrap()], "");
    promtool(&["test", "rules", monitoring("alerts_test.yml").to_str().unwrap()], "");
}

/// A Prometheus that scrapes a server.
struct Prometheus {
    process: Process,
    address: SocketAddr,
    _directory: TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let (directory, alerts) = (TempDir::new(), monitoring("alerts.yml"));
        let config = directory.write(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
                 rule_files: [{alerts:?}]\n\
                 scrape_configs:\n\
                 - {{job_name: turnserver, static_configs: [{{targets: [{:?}]}}]}}\n",
                target.to_string()
            ),
        );
        // Prometheus does not report a port that the kernel picks.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let process = Process::start(&mut command, PACKAGE);
        let ready = process.stderr.wait_for(TIMEOUT, |lines| {
            lines.iter().any(|line| line.contains("Server is ready to receive web requests")).then_some(())
        });
        assert!(ready.is_some(), "Prometheus is not ready; its output:\n{}", process.output());
        Self { process, address, _directory: directory }
    }

    fn get(&self, path: &str) -> Value {
        // HTTP/1.0 has no chunks, in which Prometheus sends long responses otherwise.
        let response = Http::tcp(self.address).raw(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        assert_eq!(response.status, 200, "{path}: {}", response.body);
        serde_json::from_str(&response.body).unwrap()
    }

    /// Evaluates an expression. Returns the value of each series.
    fn query(&self, expression: &str) -> Vec<f64> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let result = self.get(&format!("/api/v1/query?query={encoded}"));
        let series = result["data"]["result"].as_array().unwrap();
        series.iter().map(|series| series["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Waits until Prometheus has scraped the server, and returns the state of the target.
    fn scraped(&self) -> Value {
        // Each request takes a while, and the wait has an end.
        let clock = Clock::start();
        loop {
            let target = self.get("/api/v1/targets")["data"]["activeTargets"][0].clone();
            if target["health"] != "unknown" && !self.query("up").is_empty() {
                return target;
            }
            assert!(clock.elapsed() < TIMEOUT, "no scrape: {target}\n{}", self.process.output());
            std::thread::yield_now();
        }
    }
}

/// Returns the expressions of the dashboard with values for the variables of Grafana.
fn expressions() -> Vec<String> {
    let dashboard = std::fs::read_to_string(monitoring("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let expressions = targets.chain(annotations).map(|target| target["expr"].as_str().unwrap());
    expressions.map(|text| text.replace("$__rate_interval", "5m").replace("$instance", ".*")).collect()
}

#[test]
fn prometheus_scrapes_the_server_and_evaluates_the_dashboard() {
    let (server, http) = server();
    let client = Client::new(server.udp_address());
    client.allocate(&Login::mint("ann", 600)).unwrap();
    let prometheus = Prometheus::start(http);
    let target = prometheus.scraped();
    assert_eq!((target["health"].as_str(), target["lastError"].as_str()), (Some("up"), Some("")), "{target}");
    assert_eq!(prometheus.query("up{job=\"turnserver\"}"), [1.0]);
    assert_eq!(prometheus.query("sum(turnserver_allocations)"), [1.0]);
    // The target sees OpenMetrics, in which a histogram and a counter have other rules than in the text format.
    assert_eq!(prometheus.query("turnserver_allocation_size_bytes_count"), [0.0]);
    assert_eq!(prometheus.query("turnserver_answered_requests_total{method=\"Allocate\"}"), [1.0]);
    let expressions = expressions();
    assert!(expressions.len() > 20, "{expressions:?}");
    for expression in &expressions {
        prometheus.query(expression);
    }
    let rules = prometheus.get("/api/v1/rules");
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() > 10 && rules.iter().all(|rule| rule["health"] != "err"), "{rules:#?}");
    println!(
        "prometheus: {} alerts, {} expressions, scrape took {}",
        rules.len(),
        expressions.len(),
        target["lastScrapeDuration"]
    );
}
