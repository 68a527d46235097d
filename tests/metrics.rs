//! Tests of the metrics of the real server, and of what depends on their names: docs/metrics.md and `monitoring/`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod metrics {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;

    use turnserver::clock::unix_seconds;
    use turnserver::stun::Method;
    use turnserver::stun::attribute::{
        AdditionalAddressFamily, AddressFamily, ChannelNumber, RequestedTransport, XorPeerAddress,
    };
    use turnserver::turn::DropReason;

    use crate::client::Http;
    use crate::support::certificates::Authority;
    use crate::support::client::{self, Client, Login};
    use crate::support::{Server, TempDir, config_for, has_ipv6, skip, tls, with_tls};

    /// A server with listeners for all transports, and its control socket.
    struct Fixture {
        server: Server,
        authority: Authority,
        directory: TempDir,
    }

    impl Fixture {
        fn new(relay: &[&str]) -> Self {
            let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
            let files = authority.write(&authority.issue(&["localhost"]), directory.path());
            let socket = directory.path().join("control.sock");
            let more = format!("[peers]\nallow = [\"127.0.0.1\"]\n[control]\nsocket = {socket:?}\n");
            // The end of a connection is logged at level debug.
            let config = config_for(&["127.0.0.1"], relay, &more).replace("[log]\n", "[log]\nlevel = \"debug\"\n");
            let server = Server::start(&format!("workers = 2\n{}", with_tls(&config, &["127.0.0.1"], &files)));
            Self { server, authority, directory }
        }

        fn page(&self) -> String {
            let page = Http::unix(&self.directory.path().join("control.sock")).get("/metrics");
            assert_eq!(page.status, 200, "{}", page.body);
            page.body
        }

        fn on_tls(&self) -> Client {
            Client::on_tls(tls::handshake(self.server.tls_address(), &self.authority, &tls::ANY).unwrap())
        }

        fn wait_for_end_of_connection(&self, reason: &str) {
            self.server.wait_for_log(|line| {
                line.field("event").as_deref() == Some("connection-ended")
                    && line.field("reason").as_deref() == Some(reason)
            });
        }
    }

    /// Returns the metrics of a server that orders its certificate, and has one, whose webhook has sent something, and whose
    /// fleet cannot be reached.
    fn page_with_orders() -> String {
        const AUTHORITY: &str = "https://127.0.0.1:1/directory";
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let issued = authority.issue(&["turn.example.org"]);
        let text = format!("# Ordered by turnserver from {AUTHORITY}\n{}{}", issued.key, authority.chain(&issued));
        directory.write("certificate.pem", &text);
        let (socket, state) = (directory.path().join("control.sock"), directory.path());
        let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", receiver.local_addr().unwrap());
        let secret = directory.write("webhook-secret", "whsec_d2ViaG9vayBzZWNyZXQgb2YgdGhlIHRlc3RzISEhISE=\n");
        let more = format!(
            "[tls.acme]\ndomains = [\"turn.example.org\"]\nterms-agreed = true\ndirectory = {AUTHORITY:?}\n\
             state-directory = {state:?}\n[control]\nsocket = {socket:?}\n\
             [webhook]\nurl = {url:?}\nsecret-file = {secret:?}\ninterval = 0\n\
             [fleet]\nservers = [\"nats://127.0.0.1:1\"]\n[redis-status]\nurl = \"redis://127.0.0.1:1\"\n"
        );
        let server = Server::start(&config_for(&["127.0.0.1"], &["127.0.0.1"], &more));
        server.wait_for_log(|line| line.field("event").as_deref() == Some("acme-waiting"));
        let (mut request, _) = receiver.accept().unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"]}") {
            let mut part = [0; 1024];
            let count = request.read(&mut part).unwrap();
            received.extend_from_slice(&part[..count]);
        }
        request.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        loop {
            let page = Http::unix(&socket).get("/metrics").body;
            if page.contains("turnserver_webhook_last_success_timestamp_seconds ") {
                return page;
            }
        }
    }

    /// Returns each series and its value.
    fn series(page: &str) -> BTreeMap<&str, f64> {
        let samples = page.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
        samples.map(|(series, value)| (series, value.parse().unwrap())).collect()
    }

    /// Returns the name of each family with its type and its labels.
    fn families(page: &str) -> BTreeMap<&str, (&str, BTreeSet<&str>)> {
        let (mut families, mut current) = (BTreeMap::new(), "");
        for line in page.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                families.insert(name, (kind, BTreeSet::new()));
                current = name;
            } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
                let names = labels.split(',').map(|label| label.split_once('=').unwrap().0);
                families.get_mut(current).unwrap().1.extend(names.filter(|name| *name != "le"));
            }
        }
        families
    }

    fn read(path: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    fn quoted(cell: &str) -> BTreeSet<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    /// Returns the cells of the table rows that begin with a name in backticks.
    fn rows(document: &str) -> Vec<Vec<&str>> {
        let rows = document.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
    }

    #[test]
    fn the_documentation_lists_every_family_with_its_type_and_labels() {
        let (page, document) = (page_with_orders(), read("docs/metrics.md"));
        let rows = rows(&document);
        let rows = rows.iter().filter(|row| row.len() == 4);
        let documented: BTreeMap<_, _> = rows.map(|row| (row[0].trim_matches('`'), (row[1], quoted(row[2])))).collect();
        let mut families = families(&page);
        // Without offload, there is no such interface.
        let (name, labels) = ("turnserver_offload_interfaces", ["interface", "driver"]);
        families.entry(name).and_modify(|(_, found)| found.extend(labels));
        assert_eq!(documented, families);
    }

    #[test]
    fn the_dashboard_and_the_alerts_use_families_and_keys_that_exist() {
        let (page, settings) = (page_with_orders(), read("turnserver.toml"));
        let exists = |name: &str| series(&page).keys().any(|series| series.split('{').next() == Some(name));
        for file in [
            "monitoring/alerts.yml",
            "monitoring/alerts_test.yml",
            "monitoring/grafana-dashboard.json",
            "docs/operations.md",
        ] {
            let text = read(file);
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: BTreeSet<_> = words.filter(|word| word.starts_with("turnserver_")).collect();
            assert!(names.len() > 7, "{file}: {names:?}");
            for name in names {
                assert!(exists(name), "{file}: {name} is not on the page");
            }
        }
        let is_key = |text: &str| {
            let (section, key) = text.split_once('.')?;
            let plain = text.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c == '.');
            plain.then(|| (section.to_owned(), key.to_owned()))
        };
        for file in ["monitoring/alerts.yml", "docs/metrics.md"] {
            for (section, key) in quoted(&read(file).replace("```", "")).into_iter().filter_map(is_key) {
                let from = settings.split_once(&format!("[{section}]\n")).map_or("", |(_, from)| from);
                let section = from.split("\n[").next().unwrap();
                let found = section.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{key} = ")));
                assert!(found, "{file}: {section}.{key} is not a setting");
            }
        }
    }

    /// Returns the values of labels that a page has, each with its series and its label.
    fn label_values(page: &str) -> BTreeSet<(&str, &str, &str)> {
        selectors(page).into_iter().filter(|(_, label, _)| *label != "le").collect()
    }

    /// Returns what the selectors in a text select: series, label, and each value. Labels that Prometheus adds, the index
    /// of a worker and variables of a dashboard are left out.
    fn selectors(text: &str) -> Vec<(&str, &str, &str)> {
        let mut selected = Vec::new();
        for (at, _) in text.match_indices("turnserver_") {
            let name_end = text[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or_default();
            let (name, rest) = text[at..].split_at(name_end);
            let Some((matchers, _)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
            for matcher in matchers.split(',') {
                let (label, value) = matcher.split_once('=').unwrap();
                let value = value.trim_matches(['~', '"', '\\']);
                let label = label.trim_end_matches('!');
                if !["instance", "job", "worker"].contains(&label) {
                    selected.extend(value.split('|').map(|value| (name, label, value)));
                }
            }
        }
        selected
    }

    #[test]
    fn the_alerts_and_the_dashboard_select_label_values_that_exist() {
        let page = Fixture::new(&["127.0.0.1"]).page();
        let exported = label_values(&page);
        for (file, least) in
            [("monitoring/alerts.yml", 4), ("monitoring/alerts_test.yml", 10), ("monitoring/grafana-dashboard.json", 1)]
        {
            let text = read(file);
            let selected = selectors(&text);
            assert!(selected.len() >= least, "{file}: {selected:?}");
            for one in selected {
                assert!(exported.contains(&one), "{file}: no series has {one:?}");
            }
        }
    }

    /// What an alert says in plain words: values of labels, events of the log, and keys outside of a section.
    #[test]
    fn the_actions_name_label_values_events_and_keys_that_exist() {
        let page = Fixture::new(&["127.0.0.1"]).page();
        let values: BTreeSet<&str> = label_values(&page).into_iter().map(|(_, _, value)| value).collect();
        let (log, settings) = (read("docs/logging.md"), read("turnserver.toml"));
        let keys = settings.split("\n[").next().unwrap();
        let exists = |name: &str| {
            values.contains(name)
                || log.contains(&format!("\n| `{name}` | `"))
                || keys.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{name} = ")))
        };
        let (alerts, document) = (read("monitoring/alerts.yml"), read("docs/operations.md"));
        let rows: String = document.lines().filter(|line| line.starts_with("| `Turnserver")).collect();
        for text in [alerts.split_once("- alert: ").unwrap().1, &rows] {
            let plain = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let names: Vec<&str> = quoted(text).into_iter().filter(plain).collect();
            assert!(names.len() > 5, "{names:?}");
            for name in names {
                assert!(exists(name), "`{name}` is no value of a label, no event and no key");
            }
        }
    }

    #[test]
    fn the_document_says_what_to_do_when_each_alert_fires() {
        let (alerts, document) = (read("monitoring/alerts.yml"), read("docs/operations.md"));
        let names = alerts.split("- alert: ").skip(1).map(|alert| alert.lines().next().unwrap());
        let rows = rows(&document);
        let documented = rows.iter().map(|row| row[0].trim_matches('`')).filter(|name| name.starts_with("Turnserver"));
        assert!(names.eq(documented));
    }

    #[test]
    fn the_document_lists_every_drop_reason_once() {
        let document = read("docs/operations.md");
        let (_, section) = document.split_once("\n| Reason | What was dropped |\n").unwrap();
        let section = section.split_once("\n`GET ").unwrap().0;
        let named = section.lines().flat_map(|line| match line.strip_prefix("| ") {
            Some(row) => quoted(row.split('|').next().unwrap()),
            None => quoted(line),
        });
        let mut named: Vec<&str> = named.collect();
        named.sort_unstable();
        let mut reasons: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
        reasons.sort_unstable();
        assert_eq!(named, reasons);
    }

    // Data above a limit is dropped, and 486 is due to a limit.
    #[test]
    fn no_series_is_exported_that_can_never_count() {
        let page = Fixture::new(&["127.0.0.1"]).page();
        let has = |series: &str| page.contains(&format!("turnserver_{series}}} "));
        assert!(has("limited_requests_total{limit=\"peer-rate\"") && has("rejected_requests_total{code=\"508\""));
        for limit in ["allocation-bandwidth", "user-bandwidth"] {
            assert!(!has(&format!("limited_requests_total{{limit=\"{limit}\"")), "{limit}");
            assert!(has(&format!("dropped_packets_total{{reason=\"{limit}\"")), "{limit}");
        }
        assert!(!has("rejected_requests_total{code=\"486\""));
    }

    #[test]
    fn each_alert_says_what_to_do_and_is_documented_and_tested() {
        let (alerts, tests, document) =
            (read("monitoring/alerts.yml"), read("monitoring/alerts_test.yml"), read("docs/metrics.md"));
        let rows = rows(&document);
        let documented: Vec<(&str, &str)> =
            rows.iter().filter(|row| row.len() == 3).map(|row| (row[0].trim_matches('`'), row[1])).collect();
        let mut found = Vec::new();
        for alert in alerts.split("- alert: ").skip(1) {
            let name = alert.lines().next().unwrap();
            assert!(alert.contains(" summary: \"") && alert.contains(" action: >-\n"), "{alert}");
            assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} is not tested");
            let severity = alert.split_once("severity: ").unwrap().1.split_once('}').unwrap().0;
            found.push((name, severity));
        }
        assert_eq!(found, documented);
    }

    #[test]
    fn gauges_and_histograms_follow_the_clients() {
        let fixture = Fixture::new(&["127.0.0.1"]);
        let login = Login::mint("ann", 600);
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let clients = [
            Client::new(fixture.server.udp_address()),
            Client::connect(fixture.server.tcp_address()),
            fixture.on_tls(),
        ];
        let sessions = clients.each_ref().map(|client| client.allocate(&login).unwrap().0);
        for (client, session) in clients.iter().zip(&sessions) {
            client.permit(session, peer.local_addr().unwrap());
            client.send_to_peer(peer.local_addr().unwrap(), &[7; 2_000]);
            client::receive(&peer);
        }
        let bound = clients[0].request(&sessions[0], Method::CHANNEL_BIND, &|writer| {
            writer.push(&ChannelNumber(0x4000));
            writer.push(&XorPeerAddress("127.0.0.1:9".parse().unwrap()));
        });
        assert_eq!(bound.error(), None);

        let page = fixture.page();
        let value = |name: &str| series(&page)[format!("turnserver_{name}").as_str()];
        for transport in ["udp", "tcp", "tls"] {
            assert_eq!(value(&format!("allocations{{transport=\"{transport}\",family=\"ipv4\"}}")), 1.0, "{transport}");
        }
        assert_eq!((value("permissions"), value("channels")), (3.0, 1.0));
        assert_eq!(["tcp", "tls"].map(|on| value(&format!("connections{{transport=\"{on}\"}}"))), [1.0, 1.0]);
        assert_eq!(value("tls_handshakes_total{result=\"complete\"}"), 1.0);
        assert_eq!(value("tls_handshake_duration_seconds_count"), 1.0);
        assert!(value("tls_handshake_duration_seconds_sum") > 0.0);
        assert_eq!(value("allocation_lifetime_seconds_count"), 0.0);
        assert!(value("event_loop_longest_iteration_seconds{worker=\"0\"}") > 0.0);
        let expiry = format!(
            "tls_certificate_expiry_timestamp_seconds{{file=\"{}\"}}",
            fixture.directory.path().join("fullchain.pem").display()
        );
        assert!(value(&expiry) > value("start_time_seconds"));
        assert_eq!(value("config_last_reload_timestamp_seconds"), value("start_time_seconds"));
        assert_eq!((value("config_generation"), value("config_last_reload_success")), (1.0, 1.0));

        clients[0].delete(&sessions[0]);
        drop(clients);
        // TCP and TLS: without close_notify.
        fixture.wait_for_end_of_connection("closed-by-client");
        fixture.wait_for_end_of_connection("closed-without-notify");
        let page = fixture.page();
        let value = |name: &str| series(&page)[format!("turnserver_{name}").as_str()];
        let is_gauge =
            |name: &&str| name.starts_with("turnserver_allocations{") || name.starts_with("turnserver_connections{");
        assert_eq!(series(&page).iter().filter(|(name, _)| is_gauge(name)).map(|(_, value)| value).sum::<f64>(), 0.0);
        assert_eq!((value("permissions"), value("channels")), (0.0, 0.0));
        assert_eq!(value("allocation_lifetime_seconds_count"), 3.0);
        assert_eq!((value("allocation_size_bytes_sum"), value("allocation_size_bytes_count")), (6_000.0, 3.0));
        let below = |bound| value(&format!("allocation_size_bytes_bucket{{le=\"{bound}\"}}"));
        assert_eq!((below("1000.0"), below("10000.0")), (0.0, 3.0));
    }

    #[test]
    fn an_allocation_of_both_families_counts_once() {
        if !has_ipv6() {
            return skip("this machine has no IPv6");
        }
        let fixture = Fixture::new(&["127.0.0.1", "::1"]);
        let client = Client::new(fixture.server.udp_address());
        let session = client.challenge(&Login::mint("ann", 600));
        let response = client.request(&session, Method::ALLOCATE, &|writer| {
            writer.push(&RequestedTransport::UDP);
            writer.push(&AdditionalAddressFamily(AddressFamily::V6));
        });
        assert_eq!(response.error(), None);
        let page = fixture.page();
        let counted: Vec<_> = series(&page)
            .into_iter()
            .filter(|(name, value)| name.starts_with("turnserver_allocations{") && *value > 0.0)
            .collect();
        assert_eq!(counted, [("turnserver_allocations{transport=\"udp\",family=\"both\"}", 1.0)]);
    }

    #[test]
    fn failures_are_counted_by_reason_and_nothing_adds_a_series() {
        let fixture = Fixture::new(&["127.0.0.1"]);
        let before = fixture.page();
        let client = Client::new(fixture.server.udp_address());
        let (mallory, expired) = (Login::new("1999999999:mallory", "guessed"), Login::mint("trudy", -86_400));
        assert_eq!(client.allocate(&mallory).err(), Some(401));
        assert_eq!(client.allocate(&expired).err(), Some(401));
        assert_eq!(client.allocate(&Login::new("nobody", "guessed")).err(), Some(401));
        let mut stream = TcpStream::connect(fixture.server.tls_address()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        fixture.wait_for_end_of_connection("not-tls");

        let page = fixture.page();
        let value = |name: &str| series(&page)[format!("turnserver_{name}").as_str()];
        for reason in ["wrong-secret", "expired", "unknown-user"] {
            assert_eq!(value(&format!("failed_authentications_total{{reason=\"{reason}\"}}")), 1.0, "{reason}");
        }
        assert_eq!(value("tls_handshakes_total{result=\"not-tls\"}"), 1.0);
        assert_eq!(value("tls_handshake_duration_seconds_count"), 0.0);
        assert!(series(&before).keys().eq(series(&page).keys()));
        for private in ["mallory", "trudy", "nobody", "127.0.0.1"] {
            assert!(!page.contains(private), "{private} is in {page}");
        }
    }
}
