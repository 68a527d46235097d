//! How valid values are parsed, and that no input causes a panic.

use proptest::prelude::*;

use super::*;
use crate::transport::Transport;

const EVERYTHING: &str = r#"
realm = "example.org"
hostname = "2001:db8::7"
node = "fra-1"
workers = 3
drain-deadline = "10m"
state-directory = "/srv/state"

[listen]
udp = ["0.0.0.0:3478", "[2001:db8::7]:443", "127.0.0.1:0", "127.0.0.1:0"]
tcp = ["127.0.0.1:0", "0.0.0.0:3478", "127.0.0.1:0"]
tls = ["[::1]:3478", "0.0.0.0:443"]
proxies = ["10.0.0.7", "2001:db8::/64"]

[tls]
certificate = "chain.pem"
private-key = "/etc/key.pem"

[[tls.certificates]]
certificate = "/etc/web.pem"
private-key = "web-key.pem"

[relay]
addresses = ["10.0.0.5", "2001:db8::7"]
external = { "10.0.0.5" = "203.0.113.9" }
ports = "50000 - 50999"

[auth]
secrets = ["0123456789abcdef"]
nonce-lifetime = 600
expiry-grace = "0s"
users = [
    { name = "ann", password = "north wind", allocations = 40 },
    { name = "user", key = "0x8493FBC53ba582fb4c044c456bdc40eb" },
]

[peers]
allow = ["10.20.0.0/16", "192.168.1.7", "::1"]
deny = ["2001:db8:1::/48"]
nat64-prefixes = ["2001:db8:64::/96", "fd00:64::/48"]

[limits]
allocations-per-user = 0
allocations = 500
allocations-per-second-per-user = 3
permissions-per-allocation = 1
channels-per-allocation = 16_384
peers-per-second = 1
bytes-per-second-per-allocation = 125_000
bytes-per-second-per-user = 4_294_967_295
connections = 0
connections-per-source = 30
allocated-connections-per-source = 31
unverified-responses = 7
failed-authentications = 9

[timeouts]
tls-handshake = 1
first-request = "5m"
idle = "1d"
unauthenticated = "90s"

[alternate]
servers = ["203.0.113.5:3478", "[2001:db8::5]:3478"]
tls-servers = ["203.0.113.5:5349", "[2001:db8::5]:5349"]
domain = "turn2.example.org"
when = "full"

[compat]
rfc5766-channels = true
draft-dual-allocation = true
icmp-indications = "never"

[offload]
mode = "require"
interfaces = ["eth0", "bond0.7"]
channels = 1_000_000

[log]
level = "trace"
format = "json"
client-addresses = "prefix"
usernames = "none"

[control]
socket = "control.sock"

[http]
listen = ["[::]:9641", "127.0.0.1:0"]
tls = true
url = "https://turn.example.org/relay/"
metrics-from = ["10.0.0.0/8", "2001:db8::1"]

[[http.keys]]
name = "app.1"
sha256 = "BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ttl = "1h"
user-prefix = "shop:"
origins = ["https://app.example.org", "http://localhost:5173"]
requests-per-second = 50

[[front]]
listen = "[::]:8443"
web = "unix:/run/web.sock"
names = ["turn.example.org", "relay.example.org."]
without-name = "relay"
http = true
proxy-protocol = true
connections = 7
idle = "90s"

[[front]]
listen = "127.0.0.1:80"
web = "127.0.0.1:8080"

[fleet]
servers = ["tls://nats.example.org", "tls://[2001:db8::9]:4333"]
name = "calls"
region = "eu_1"
weight = 50
urls = ["turn:fra.example.org?transport=udp"]
limits = "fleet"
nodes-per-credential = 3
replicas = 5
"#;

fn endpoints(transport: Transport, addresses: &[&str]) -> Vec<Endpoint> {
    addresses.iter().map(|address| Endpoint::new(transport, address.parse().unwrap())).collect()
}

#[test]
fn every_value_is_parsed() {
    let secret = |text: &str| Secret::new(text).unwrap();
    let expected = Config {
        realm: "example.org".to_owned(),
        hostname: Some("[2001:db8::7]".to_owned()),
        node: Some("fra-1".to_owned()),
        workers: 3,
        drain_deadline: Duration::from_secs(600),
        listen: [
            endpoints(Transport::Udp, &["0.0.0.0:3478", "[2001:db8::7]:443", "127.0.0.1:0", "127.0.0.1:0"]),
            endpoints(Transport::Tcp, &["127.0.0.1:0", "0.0.0.0:3478", "127.0.0.1:0"]),
            endpoints(Transport::Tls, &["[::1]:3478", "0.0.0.0:443"]),
        ]
        .concat(),
        proxies: vec!["10.0.0.7/32".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
        tls: Some(Tls {
            certificates: vec![
                CertificateFiles {
                    certificate: "chain.pem".into(),
                    private_key: "/etc/key.pem".into(),
                    is_further: false,
                    is_ordered: false,
                },
                CertificateFiles {
                    certificate: "/etc/web.pem".into(),
                    private_key: "web-key.pem".into(),
                    is_further: true,
                    is_ordered: false,
                },
            ],
            acme: None,
        }),
        relay: Relay {
            addresses: RelayAddresses::Given(["10.0.0.5", "2001:db8::7"].map(|a| a.parse().unwrap()).to_vec()),
            external: vec![("10.0.0.5".parse().unwrap(), "203.0.113.9".parse().unwrap())],
            ports: 50_000..=50_999,
        },
        auth: Auth {
            secrets: vec![secret("0123456789abcdef")],
            users: vec![
                StaticUser {
                    name: "ann".to_owned(),
                    credential: StaticCredential::Password(secret("north wind")),
                    allocations: 40,
                },
                StaticUser {
                    name: "user".to_owned(),
                    credential: StaticCredential::Key(LongTermKey::derive("user", "realm", b"pass")),
                    allocations: 0,
                },
            ],
            nonce_lifetime: Duration::from_secs(600),
            expiry_grace: Duration::ZERO,
            redis: None,
        },
        peers: Peers {
            allow: ["10.20.0.0/16", "192.168.1.7/32", "::1/128"].map(|n| n.parse().unwrap()).to_vec(),
            deny: vec!["2001:db8:1::/48".parse().unwrap()],
            nat64_prefixes: ["2001:db8:64::/96", "fd00:64::/48"]
                .map(|prefix| Nat64Prefix::new(prefix.parse().unwrap()).unwrap())
                .to_vec(),
        },
        limits: Limits {
            allocations_per_user: 0,
            allocations: 500,
            allocations_per_second_per_user: 3,
            permissions_per_allocation: 1,
            channels_per_allocation: 16_384,
            peers_per_second: 1,
            bytes_per_second_per_allocation: 125_000,
            bytes_per_second_per_user: 4_294_967_295,
            connections: 0,
            connections_per_source: 30,
            allocated_connections_per_source: 31,
            unverified_responses: 7,
            failed_authentications: 9,
        },
        timeouts: Timeouts {
            tls_handshake: Duration::from_secs(1),
            first_request: Duration::from_secs(300),
            idle: Duration::from_secs(86_400),
            unauthenticated: Duration::from_secs(90),
        },
        alternate: Alternate {
            servers: ["203.0.113.5:3478", "[2001:db8::5]:3478"].map(|a| a.parse().unwrap()).to_vec(),
            tls_servers: ["203.0.113.5:5349", "[2001:db8::5]:5349"].map(|a| a.parse().unwrap()).to_vec(),
            domain: Some("turn2.example.org".to_owned()),
            from_fleet: false,
            when: AlternateWhen::Full,
        },
        compat: Compat {
            rfc5766_channels: true,
            draft_dual_allocation: true,
            icmp_indications: IcmpIndications::Never,
        },
        offload: Offload {
            mode: OffloadMode::Require,
            interfaces: OffloadInterfaces::Given(["eth0", "bond0.7"].map(str::to_owned).to_vec()),
            channels: Some(1_000_000),
        },
        log: Log {
            level: LogLevel::Trace,
            format: LogFormat::Json,
            client_addresses: ClientAddresses::Prefix,
            usernames: Usernames::None,
        },
        control: Control { socket: ControlSocket::At("control.sock".into()) },
        http: Http {
            listen: vec!["[::]:9641".parse().unwrap(), "127.0.0.1:0".parse().unwrap()],
            tls: true,
            url: Some("https://turn.example.org/relay".to_owned()),
            metrics_from: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::1/128".parse().unwrap()],
            metrics_token: None,
            keys: vec![HttpKey {
                name: "app.1".to_owned(),
                hash: KeyHash::of(b"abc"),
                ttl: Duration::from_secs(3_600),
                user_prefix: "shop:".to_owned(),
                origins: ["https://app.example.org", "http://localhost:5173"].map(str::to_owned).to_vec(),
                requests_per_second: 50,
            }],
        },
        fronts: vec![
            Front {
                listen: "[::]:8443".parse().unwrap(),
                web: WebSite::Unix("/run/web.sock".into()),
                names: ["turn.example.org", "relay.example.org."].map(str::to_owned).to_vec(),
                without_name: WithoutName::Relay,
                http: true,
                proxy_protocol: true,
                connections: 7,
                idle: Duration::from_secs(90),
            },
            Front {
                listen: "127.0.0.1:80".parse().unwrap(),
                web: WebSite::Tcp("127.0.0.1:8080".parse().unwrap()),
                names: Vec::new(),
                without_name: WithoutName::Web,
                http: false,
                proxy_protocol: false,
                connections: 10_000,
                idle: Duration::from_secs(3_600),
            },
        ],
        fleet: Some(Fleet {
            servers: vec![
                FleetServer { tls: true, host: "nats.example.org".to_owned(), port: 4222 },
                FleetServer { tls: true, host: "[2001:db8::9]".to_owned(), port: 4333 },
            ],
            access: FleetAccess::Open,
            ca_file: None,
            name: "calls".to_owned(),
            region: "eu_1".to_owned(),
            weight: 50,
            urls: vec!["turn:fra.example.org:3478?transport=udp".to_owned()],
            limits: FleetLimits::Fleet,
            regions: Arc::default(),
            nodes_per_credential: 3,
            replicas: Some(5),
        }),
        // It needs files.
        webhook: None,
        redis_status: None,
        state_directory: Some("/srv/state".into()),
        files: vec![
            ("tls.certificate", "chain.pem".into()),
            ("tls.private-key", "/etc/key.pem".into()),
            ("tls.certificates.certificate", "/etc/web.pem".into()),
            ("tls.certificates.private-key", "web-key.pem".into()),
        ],
        warnings: Vec::new(),
    };
    assert_eq!(parse(EVERYTHING), expected);
}

#[test]
fn an_empty_list_disables_a_transport_and_a_missing_key_does_not() {
    let everywhere = |transport| endpoints(transport, &["[::]:3478"]);
    assert_eq!(parse("[listen]\ntcp = []").listen, everywhere(Transport::Udp));
    assert_eq!(parse("[listen]\nudp = []").listen, everywhere(Transport::Tcp));
    let specific = endpoints(Transport::Tcp, &["127.0.0.1:443"]);
    let udp = everywhere(Transport::Udp);
    assert_eq!(parse("[listen]\ntcp = [\"127.0.0.1:443\"]").listen, [udp, specific].concat());
}

// Without a limit on their allocations, users may be many people each.
#[test]
fn the_default_rate_of_allocations_applies_only_with_a_limit_on_allocations() {
    let rate = |text: &str| parse(text).limits.allocations_per_second_per_user;
    assert_eq!(rate(""), 8);
    assert_eq!(rate("[limits]\nallocations-per-user = 64"), 8);
    assert_eq!(rate("[limits]\nallocations-per-user = 0"), 0);
    assert_eq!(rate("[limits]\nallocations-per-user = 0\nallocations-per-second-per-user = 5"), 5);
}

#[test]
fn the_kernel_relays_four_channels_of_each_allocation_by_default() {
    let channels = |text: &str| parse(text).offload_channels();
    assert_eq!(channels(""), 16_384);
    assert_eq!(channels("[limits]\nallocations = 4_000_000_000"), 16_384);
    assert_eq!(channels("[limits]\nallocations = 1"), 4);
    assert_eq!(channels("[limits]\nallocations = 500\n[offload]\nchannels = 7"), 7);
    let ports = "[relay]\nports = \"50000-50099\"\n";
    assert_eq!(channels(ports), 400);
    assert_eq!(channels(&format!("{ports}addresses = [\"10.0.0.5\", \"2001:db8::7\"]")), 800);
    assert_eq!(channels("[relay]\nports = \"50000-50000\""), 4);
    let summary = |text: &str| parse(text).summary().to_string();
    assert!(summary("[offload]\nmode = \"off\"").contains("\noffload  off\nlog"));
}

#[test]
fn the_summary_says_to_whom_limits_per_user_apply() {
    let limits = |auth: &str| {
        let summary = parse(auth).summary().to_string();
        let lines = summary.lines().skip_while(|line| !line.starts_with("limits"));
        lines.take_while(|line| !line.contains("permissions")).map(|line| line[9..].to_owned()).collect::<Vec<_>>()
    };
    let total = "in total as many allocations as there are relay ports";
    assert_eq!(
        limits("[auth]\nsecrets = [\"0123456789abcdef\"]"),
        [
            "32 allocations per user, not limited for usernames without a name",
            total,
            "8 new allocations per second and user"
        ]
    );
    assert_eq!(
        limits("[[auth.users]]\nname = \"site\"\npassword = \"north wind\""),
        ["each static user has a limit of its own", "user site: allocations are not limited", total]
    );
}

#[test]
fn hostnames_are_formatted_for_urls() {
    for (host, expected) in [
        ("turn.example.org", "turn.example.org"),
        ("turn.example.org.", "turn.example.org."),
        ("localhost", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "[2001:db8::7]"),
        ("[2001:db8::7]", "[2001:db8::7]"),
    ] {
        assert_eq!(parse(&format!("hostname = \"{host}\"")).hostname.as_deref(), Some(expected));
    }
}

#[test]
fn the_summary_describes_every_setting() {
    assert_eq!(
        Config::default().summary().to_string(),
        "\
realm    turnserver
host     not set: printed URLs contain an address of this machine
workers  one per CPU
stop     when the last allocation ends, at most 1s after SIGTERM
listen   udp [::]:3478 (IPv6 and IPv4)
listen   tcp [::]:3478 (IPv6 and IPv4)
relay    addresses from the interfaces of this machine; ports 49152-65535, 16384 per address
auth     no secret and no user: a secret is created at each start; nonces are valid for 1h
         a Refresh can extend an allocation up to 1h past the expiry of its credential
peers    special-purpose addresses are denied
limits   allocations per user are not limited: everyone uses the credential that is printed
         in total as many allocations as there are relay ports
         256 permissions and 256 channels per allocation
         10000 TCP and TLS connections in total, 500 per source without an allocation
         50 responses per second to an unverified source
         5 failed authentications per second, source and username
timeouts 10s for the TLS handshake, 10s for the first request, 5m for the first allocation
         1m after a request on a connection without an allocation
offload  if possible, on all suitable interfaces, for 16384 channels at a time
log      info as text
control  /run/turnserver/control.sock, if its directory exists"
    );
    assert_eq!(
        Config::parse(&EVERYTHING.replace("cdef", ""), "t.toml").unwrap().summary().to_string(),
        "\
realm    example.org
host     [2001:db8::7]
workers  3
stop     when the last allocation ends, at most 10m after SIGTERM
listen   udp 0.0.0.0:3478
listen   udp [2001:db8::7]:443
listen   udp 127.0.0.1:0 (any free port)
listen   udp 127.0.0.1:0 (any free port)
listen   tcp 127.0.0.1:0 (any free port)
listen   tcp 0.0.0.0:3478
listen   tcp 127.0.0.1:0 (any free port)
listen   tls [::1]:3478
listen   tls 0.0.0.0:443
         a PROXY header is expected from 10.0.0.7, 2001:db8::/64
tls      chain.pem, with the key in /etc/key.pem
         /etc/web.pem, with the key in web-key.pem
relay    10.0.0.5, 2001:db8::7; ports 50000-50999, 1000 per address
         10.0.0.5 is advertised as 203.0.113.9
auth     1 secret, 2 static users; nonces are valid for 10m
         a Refresh cannot extend an allocation past the expiry of its credential
peers    special-purpose addresses are denied
         also allowed: 10.20.0.0/16, 192.168.1.7, ::1
         also denied: 2001:db8:1::/48
         addresses in 2001:db8:64::/96, fd00:64::/48 are judged by their IPv4 address
limits   allocations per user are not limited
         user ann: 40 allocations
         user user: allocations are not limited
         500 allocations in total
         3 new allocations per second and user
         1 permission and 16384 channels per allocation, 1 new peer per second
         125000 bytes per second, direction and allocation
         4294967295 bytes per second, direction and user
         TCP and TLS connections are not limited in total, 30 per source without an allocation, 31 per source with one
         7 responses per second to an unverified source
         9 failed authentications per second, source and username
timeouts 1s for the TLS handshake, 5m for the first request, 90s for the first allocation
         1d after a request on a connection without an allocation
others   when this server is full or drains, UDP and TCP clients are redirected to 203.0.113.5:3478, [2001:db8::5]:3478
others   when this server is full or drains, TLS clients are redirected to 203.0.113.5:5349, [2001:db8::5]:5349
         their certificate has the name turn2.example.org
compat   channel numbers up to 0x7FFF are accepted
compat   0x8032 is accepted for ADDITIONAL-ADDRESS-FAMILY
compat   no client gets Data indications about ICMP errors
offload  required, on eth0, bond0.7, for 1000000 channels at a time
log      trace as json
         addresses of clients and peers as networks
         without names of users
control  control.sock
http     https://[::]:9641
http     https://127.0.0.1:0
front    [::]:8443: TURN, also over TLS as turn.example.org, relay.example.org. and without a server name; browsers that use a name of it get the pages of [http]; everything else goes to unix:/run/web.sock with a PROXY header
         at most 7 connections; 90s without data end one
front    127.0.0.1:80: TURN without TLS; everything else goes to 127.0.0.1:8080
         at most 10000 connections; 1h without data end one
keys     app.1
fleet    tls://nats.example.org:4222, tls://[2001:db8::9]:4333, as the node fra-1 of calls
         region eu_1, weight 50; limits per user apply to all nodes together"
    );
}

/// Any printable text, or TOML syntax.
const REPLACEMENT: &str = "\\PC{0,6}|[\"'\\[\\]{}=.,\\n#\\\\:0-9/-]{0,4}";

proptest! {
    #[test]
    fn formatted_durations_parse_to_the_same_value(seconds in any::<u64>()) {
        let duration = Duration::from_secs(seconds);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn a_mutated_file_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..24, REPLACEMENT), 1..8),
    ) {
        let mut text = EVERYTHING.to_owned();
        for (at, length, replacement) in edits {
            let start = at.index(text.len() + 1);
            let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.replace_range(boundary(start)..boundary(start + length), &replacement);
        }
        match Config::parse(&text, "t.toml") {
            Ok(config) => prop_assert!(!config.summary().to_string().is_empty()),
            Err(errors) => {
                prop_assert!(!errors.problems().is_empty());
                prop_assert_eq!(errors.to_string().lines().count(), errors.problems().len());
            }
        }
    }

    #[test]
    fn a_random_text_never_panics(text in "\\PC{0,200}") {
        let _ = Config::parse(&text, "t.toml");
    }
}
