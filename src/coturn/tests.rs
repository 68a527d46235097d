//! Whole conversions.

use proptest::prelude::*;

use super::options::{Argument, OPTIONS, Rule};
use super::*;
use crate::config::Config;

const MACHINE: [&str; 4] = ["127.0.0.1", "10.0.0.5", "::1", "fe80::1"];

fn machine() -> Vec<IpAddr> {
    MACHINE.iter().map(|address| address.parse().unwrap()).collect()
}

fn import_file(text: &str) -> Import {
    import(&[Source::File("turnserver.conf", text.as_bytes())], &machine())
}

/// Returns the new configuration without its comments, after a check that the server accepts it.
#[track_caller]
fn written(text: &str) -> String {
    let import = import_file(text);
    if let Err(errors) = Config::parse(&import.toml, "t.toml") {
        panic!("{errors}\n{}", *import.toml);
    }
    import.toml.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// Returns what became of each option.
fn verdicts(text: &str) -> Vec<Verdict> {
    import_file(text).entries.iter().map(|entry| entry.verdict).collect()
}

#[track_caller]
fn only_entry(text: &str) -> Entry {
    let [entry] = <[Entry; 1]>::try_from(import_file(text).entries).unwrap();
    entry
}

use Verdict::{Cannot, Default, Dropped, Taken};

/// Returns a value that coturn accepts.
fn example(name: &str) -> &'static str {
    match name {
        "listening-ip" | "relay-ip" => "10.0.0.5",
        "external-ip" => "203.0.113.9/10.0.0.5",
        "prometheus-address" => "127.0.0.1",
        "aux-server" | "alternate-server" | "udp-alternate-server" | "tcp-alternate-server" => "203.0.113.5:3478",
        "tls-alternate-server" => "203.0.113.5:5349",
        "allowed-peer-ip" => "10.1.0.0-10.1.255.255",
        "denied-peer-ip" => "198.51.1.0-198.51.1.255",
        "user" => "ann:a long password",
        "realm" | "server-name" => "turn.example.org",
        "cert" => "/etc/turnserver/chain.pem",
        "static-auth-secret" => "0123456789abcdef",
        "allocation-default-address-family" => "ipv4",
        "rest-api-separator" => ":",
        "log-min-level" => "warning",
        "prometheus-path" => "/metrics",
        _ => "50000",
    }
}

/// Whether an option cannot be taken over alone, even with a good value.
fn needs_more(name: &str) -> bool {
    name.ends_with("db") || ["bps-capacity", "cert", "pkey", "tls-listening-port"].contains(&name)
}

#[test]
fn every_option_is_decided_and_the_result_is_valid() {
    let tls = "cert=/c.pem\npkey=/k.pem\nprometheus\nunauthorized-ratelimit\n";
    for option in OPTIONS {
        let (name, value) = (option.name, example(option.name));
        let line =
            if option.argument == Argument::Required { format!("{name}={value}\n") } else { format!("{name}\n") };
        for text in [line.clone(), format!("{tls}{line}"), format!("{line}{line}{tls}")] {
            let import = import_file(&text);
            let is_undecided = import.toml.contains("undecided = ");
            assert_eq!(Config::parse(&import.toml, "t.toml").is_err(), is_undecided, "{text}{}", *import.toml);
            assert!(!is_undecided || import.count(Cannot) > 0);
            for entry in &import.entries {
                assert!(!entry.text.is_empty() && !entry.text.contains("cannot be taken over"), "{entry:?}");
            }
        }
        let entry = only_entry(&line);
        match option.rule {
            Rule::Convert(_) => assert!(entry.verdict != Cannot || needs_more(name), "{entry:?}"),
            Rule::Default(_) => assert_eq!(entry.verdict, Default, "{name}"),
            Rule::Dropped(_) | Rule::Admin => assert_eq!(entry.verdict, Dropped, "{name}"),
            Rule::Never(_) => assert_eq!(entry.verdict, Cannot, "{name}"),
        }
    }
}

#[test]
fn a_switch_that_is_turned_off_has_no_effect() {
    for option in OPTIONS.iter().filter(|option| option.argument == Argument::Switch) {
        for off in ["0", "no", "false", "off"] {
            let entry = only_entry(&format!("{}={off}\n", option.name));
            assert_eq!((entry.verdict, entry.text.as_str()), (Dropped, "it is turned off"), "{}", option.name);
        }
    }
    assert_eq!(written("no-tcp=0\nno-udp=off\n"), "");
    // The last line counts.
    assert_eq!(written("no-tcp\nno-tcp=0\n"), "");
    assert_eq!(written("no-tcp=0\nno-tcp\n"), "[listen]\ntcp = []");
}

#[test]
fn no_secret_is_in_the_report() {
    for option in OPTIONS.iter().filter(|option| option.is_secret) {
        for value in ["n33dle", "ann:n33dle", "host=h password=n33dle", "\"n33dle\"", "n33dle # n33dle"] {
            let text = format!("{name}={value}\n{name} {value}\n", name = option.name);
            let import = import_file(&text);
            let arguments = format!("--{}='{value}' --{0} 'n33dle'", option.name);
            let of_arguments = super::import(&[Source::Arguments(&arguments)], &[]);
            let [one, two] = [import, of_arguments].map(|import| import.to_string());
            assert!(!one.contains("n33dle") && !two.contains("n33dle"), "{one}{two}");
        }
    }
    for text in
        ["static-auth-secrt=n33dle", "n33dle", "n33dle n33dle n33dle", "--static-auth-secret=n33dle", "user:n33dle"]
    {
        let report = import_file(text).to_string();
        assert!(!report.contains("n33dle:") && !report.contains("=n33dle"), "{report}");
    }
}

#[test]
fn an_unknown_option_gets_a_suggestion() {
    let entry = only_entry("static_auth_secret=n33dle\n");
    assert_eq!((entry.verdict, entry.shown.as_str()), (Cannot, "static_auth_secret"));
    assert_eq!(entry.text, "coturn has no such option and ignores it; did you mean `static-auth-secret`?");
}

#[test]
fn listeners_have_the_addresses_and_ports_of_coturn() {
    assert_eq!(written("listening-port=3478\nfingerprint\n"), "");
    assert_eq!(written("listening-port=443\n"), "[listen]\nudp = [\"[::]:443\"]\ntcp = [\"[::]:443\"]");
    let text = "listening-ip=127.0.0.1\nlistening-ip=10.0.0.5\naux-server=10.0.0.5:80\nno-tcp\n";
    assert_eq!(
        written(text),
        "[listen]\nudp = [\"127.0.0.1:3478\", \"10.0.0.5:3478\", \"10.0.0.5:80\"]\ntcp = []\n\
         [relay]\naddresses = [\"10.0.0.5\"]"
    );
    // A wildcard includes the other addresses.
    assert_eq!(written("listening-ip=0.0.0.0\nlistening-ip=::\nlistening-ip=10.0.0.5\n"), "");
    assert_eq!(
        written("listening-ip=0.0.0.0\nlistening-ip=10.0.0.5\n"),
        "[listen]\nudp = [\"0.0.0.0:3478\"]\ntcp = [\"0.0.0.0:3478\"]"
    );
    assert_eq!(verdicts("no-udp\nno-tcp\n"), [Taken, Cannot]);
    assert_eq!(verdicts("listening-ip=turn.example.org\nlistening-port=0\n"), [Cannot, Cannot]);
}

#[test]
fn tls_needs_both_files_and_no_option_against_it() {
    let files = "cert=/c.pem # the chain\npkey=/k.pem\n";
    let tls = "[listen]\ntls = [\"[::]:5349\"]\n[tls]\ncertificate = \"/c.pem\"\nprivate-key = \"/k.pem\"";
    assert_eq!(written(files), tls);
    assert_eq!(written(&format!("{files}tls-listening-port=443\n")), tls.replace("5349", "443"));
    assert_eq!(verdicts(&format!("{files}no-tls\ntls-listening-port=443\n")), [Dropped, Dropped, Default, Dropped]);
    assert_eq!(written(&format!("{files}no-tls\n")), "");
    assert_eq!(verdicts("cert=/c.pem\n"), [Cannot]);
    assert_eq!(verdicts("cert=/c.pem\ntls-listening-port=443\n"), [Cannot, Cannot]);
    let [_, port] = <[Entry; 2]>::try_from(import_file("cert=$CERT\ntls-listening-port=443\n").entries).unwrap();
    assert!(port.verdict == Cannot && !port.text.contains("turn_server_cert.pem"), "{port:?}");
    // coturn may have found its default files.
    let entry = only_entry("tls-listening-port=443\n");
    assert!(entry.verdict == Cannot && entry.text.contains("turn_server_cert.pem"), "{entry:?}");
    assert!(entry.text.contains("`listen.tls` with port 443"), "{entry:?}");
    assert_eq!(verdicts("no-tls\ntls-listening-port=443\n"), [Default, Dropped]);
    let differences = |text: &str| import_file(text).differences.join("\n");
    assert!(differences("fingerprint\n").contains("if /etc/turn_server_cert.pem exists"));
    assert!(!differences("no-tls\n").contains("turn_server_cert.pem"));
    assert!(import_file("cert=c.pem\npkey=/k.pem\n").entries[0].text.contains("a relative path"));
}

#[test]
fn external_addresses_are_mapped_to_internal_ones() {
    let mapping = "[relay]\nexternal = { \"10.0.0.5\" = \"203.0.113.9\" }";
    assert_eq!(written("external-ip=203.0.113.9/10.0.0.5\n").replace("{\"", "{ \""), mapping);
    // The only address of this machine.
    assert_eq!(written("external-ip=203.0.113.9\n"), mapping);
    let mapping = "[relay]\naddresses = [\"10.0.0.7\"]\nexternal = { \"10.0.0.7\" = \"203.0.113.9\" }";
    assert_eq!(written("relay-ip=10.0.0.7\nexternal-ip=203.0.113.9\n"), mapping);
    let two = "external-ip=203.0.113.9/10.0.0.5\nexternal-ip=203.0.113.10/10.0.0.6\n";
    assert!(written(two).contains("\"10.0.0.6\" = \"203.0.113.10\""));
    for (text, expected) in [
        // This machine has the address itself.
        ("external-ip=10.0.0.5\n", &[Dropped][..]),
        ("external-ip=203.0.113.9/203.0.113.9\n", &[Dropped]),
        ("relay-ip=10.0.0.7\nexternal-ip=203.0.113.9/10.0.0.5\n", &[Taken, Dropped]),
        // No address of this family, or several ones.
        ("external-ip=2001:db8::9\n", &[Cannot]),
        ("relay-ip=10.0.0.7\nrelay-ip=10.0.0.8\nexternal-ip=203.0.113.9\n", &[Taken, Taken, Cannot]),
        ("external-ip=203.0.113.9/10.0.0.5\nexternal-ip=203.0.113.9/10.0.0.6\n", &[Taken, Cannot]),
        ("external-ip=203.0.113.9/2001:db8::9\n", &[Cannot]),
        ("external-ip=203.0.113.9\nexternal-ip=203.0.113.10\n", &[Taken, Dropped]),
        ("external-ip=$PUBLIC_IP\n", &[Cannot]),
        ("external-ip=turn.example.org\n", &[Cannot]),
    ] {
        assert_eq!(verdicts(text), expected, "{text}");
    }
}

#[test]
fn users_have_passwords_or_keys_and_the_quota() {
    let key = "0x8493fbc53ba582fb4c044c456bdc40eb";
    let text = format!("realm=realm\nuser-quota=5\nuser=user:{key}\nuser=ann:first\nuser=ann:a:b #c \n");
    assert_eq!(
        written(&text),
        "realm = \"realm\"\n\
         [[auth.users]]\nname = \"user\"\nkey = \"8493fbc53ba582fb4c044c456bdc40eb\"\nallocations = 5\n\
         [[auth.users]]\nname = \"ann\"\npassword = \"a:b #c\"\nallocations = 5"
    );
    assert_eq!(verdicts(&text), [Taken, Taken, Taken, Dropped, Taken]);
    let import = import_file(&text);
    assert!(import.has_secrets);
    // A key without its realm, a short key, and no password.
    for text in [format!("user=user:{key}\n"), "realm=r\nuser=a:0x84\n".to_owned(), "user=ann\n".to_owned()] {
        assert_eq!(verdicts(&text).last(), Some(&Cannot), "{text}");
    }
    // coturn ignores static users.
    assert_eq!(verdicts("use-auth-secret\nuser=ann:password\n"), [Default, Dropped]);
    let text = "static-auth-secret=0123456789abcdef\nuser-quota=5\n";
    assert!(written(text).ends_with("[limits]\nallocations-per-user = 5"));
}

#[test]
fn secrets_are_taken_over_byte_for_byte() {
    let secrets = ["a#b", "a b", "\\n \"quoted\" 'too'", "sch\u{f6}n", "x # y", "a=b="];
    let lines: String = secrets.iter().map(|secret| format!("static-auth-secret={secret}\r\n")).collect();
    let import = import_file(&lines);
    let config = Config::parse(&import.toml, "t.toml").unwrap();
    let found: Vec<&[u8]> = config.auth.secrets.iter().map(|secret| secret.as_bytes()).collect();
    assert_eq!(found, secrets.map(str::as_bytes));
    assert!(import.entries[4].text.contains("coturn takes a `#` after a value as part of it"));
}

#[test]
fn databases_cannot_be_read_and_the_report_says_how_to_move_their_users() {
    for name in ["userdb", "psql-userdb", "mysql-userdb", "mongo-userdb"] {
        let entry = only_entry(&format!("{name}=n33dle\n"));
        assert!(entry.verdict == Cannot && entry.text.contains("`[[auth.users]]`"), "{entry:?}");
    }
    let with_secret = "static-auth-secret=0123456789abcdef\nuserdb=/var/lib/turn/turndb\n";
    let [_, entry] = <[Entry; 2]>::try_from(import_file(with_secret).entries).unwrap();
    assert_eq!(entry.verdict, Cannot);
    for part in ["turn_secret", "allowed_peer_ip", "denied_peer_ip", "coturn ignores the users in it"] {
        assert!(entry.text.contains(part), "{entry:?}");
    }
    // coturn has a database without an option for it, too.
    let default = |text: &str| import_file(text).differences.iter().any(|text| text.contains("/var/lib/turn/turndb"));
    assert!(default("fingerprint\n") && default("userdb=\n"));
    assert!(!default("userdb=/t\n") && !default("redis-userdb=x\n"));
}

#[test]
fn the_redis_server_is_taken_over_and_its_password_is_not_written() {
    let text = "realm=example.org\nredis-userdb=\"ip=10.0.0.7 dbname=2 port=7000 connect_timeout=30\"\n";
    let import = import_file(text);
    let config = Config::parse(&import.toml, "t.toml").unwrap();
    let redis = config.auth.redis.unwrap();
    assert_eq!((redis.access.server.to_string().as_str(), redis.access.database), ("redis://10.0.0.7:7000", 2));
    assert_eq!(redis.time_limit.as_secs(), 10);
    assert_eq!(import.entries[1].verdict, Taken);
    // Without a host it is that of this machine.
    let config = Config::parse(&import_file("redis-userdb=dbname=0\n").toml, "t.toml").unwrap();
    assert_eq!(config.auth.redis.unwrap().access.server.to_string(), "redis://127.0.0.1:6379");

    let import = import_file("realm=example.org\nredis-userdb=\"host=::1 password=n33dle user=turn\"\n");
    let entry = &import.entries[1];
    assert!(entry.verdict == Cannot && entry.text.contains("`auth.redis.password-file`"), "{entry:?}");
    assert!(!import.toml.contains("n33dle") && !format!("{entry:?}").contains("n33dle"));
    assert!(import.toml.contains("url = \"redis://[::1]:6379\""), "{}", *import.toml);
    for bad in ["n33dle", "ip=10.0.0.7 port=n33dle", "ip=a/b", "colour=n33dle"] {
        let entry = only_entry(&format!("redis-userdb={bad}\n"));
        assert!(entry.verdict == Cannot && !format!("{entry:?}").contains("n33dle"), "{entry:?}");
    }
}

#[test]
fn the_redis_server_for_the_status_is_taken_over_and_its_password_is_not_written() {
    let import =
        import_file("realm=example.org\nredis-statsdb=\"ip=10.0.0.7 dbname=2 port=7000 connect_timeout=30\"\n");
    let status = Config::parse(&import.toml, "t.toml").unwrap().redis_status.unwrap();
    assert_eq!((status.server.to_string().as_str(), status.database), ("redis://10.0.0.7:7000", 2));
    assert_eq!(import.entries[1].verdict, Taken);
    let import = import_file("realm=example.org\nredis-statsdb=\"host=::1 password=n33dle\"\n");
    let entry = &import.entries[1];
    assert!(entry.verdict == Cannot && entry.text.contains("`redis-status.password-file`"), "{entry:?}");
    assert!(!import.toml.contains("n33dle") && !format!("{entry:?}").contains("n33dle"));
    let entry = only_entry("redis-statsdb=n33dle\n");
    assert!(entry.verdict == Cannot && !format!("{entry:?}").contains("n33dle"), "{entry:?}");
}

#[test]
fn allowed_peers_are_exceptions_from_denied_ones() {
    let text = "denied-peer-ip=0.0.0.0-255.255.255.255\nallowed-peer-ip=8.8.8.8\n\
                allowed-peer-ip=10.1.2.0-10.1.2.255\n";
    let config = Config::parse(&import_file(text).toml, "t.toml").unwrap();
    let denies = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        config.peers.deny.iter().any(|net| net.contains(&address))
    };
    // The rest of 10.0.0.0/8 is denied by default.
    assert!(denies("8.8.8.7") && denies("8.8.8.9"));
    assert!(!denies("8.8.8.8") && !denies("10.1.2.3"));
    assert_eq!(config.peers.allow, ["10.1.2.0/24".parse().unwrap()]);
    assert_eq!(verdicts(text), [Taken, Taken, Taken]);
    assert_eq!(written("denied-peer-ip=10.0.0.0-10.255.255.255\ndenied-peer-ip=::1\n"), "");
    assert_eq!(verdicts("denied-peer-ip=10.0.0.0-10.255.255.255\nallowed-peer-ip=9.9.9.9\n"), [Default, Default]);
    assert_eq!(verdicts("denied-peer-ip=10.0.0.9-10.0.0.1\n"), [Cannot]);
    // In coturn, the exception is all of it.
    assert_eq!(verdicts("denied-peer-ip=8.8.8.8\nallowed-peer-ip=8.8.8.0-8.8.8.255\n"), [Dropped, Taken]);
}

#[test]
fn loopback_peers_that_are_denied_stay_denied() {
    let on = "allow-loopback-peers\n";
    assert_eq!(written(on), "[peers]\nallow = [\"127.0.0.1\", \"::1\"]");
    let v4 = format!("{on}denied-peer-ip=127.0.0.0-127.255.255.255\n");
    assert_eq!(written(&v4), "[peers]\nallow = [\"::1\"]");
    assert_eq!(verdicts(&v4), [Taken, Default]);
    let both = format!("{v4}denied-peer-ip=::1\n");
    assert_eq!((written(&both).as_str(), verdicts(&both).as_slice()), ("", &[Dropped, Default, Default][..]));
    // The exception takes precedence, as in coturn.
    assert_eq!(written(&format!("{v4}allowed-peer-ip=127.0.0.1\n")), "[peers]\nallow = [\"127.0.0.1\", \"::1\"]");
}

#[test]
fn a_denied_range_is_written_if_an_allowed_one_opens_it_in_another_form() {
    let denied = "denied-peer-ip=10.0.0.0-10.255.255.255\n";
    assert_eq!(written(&format!("{denied}allowed-peer-ip=fd00::1\n")), "[peers]\nallow = [\"fd00::1\"]");
    // 6to4 addresses contain IPv4 addresses.
    let text = format!("{denied}allowed-peer-ip=2002::-2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff\n");
    assert_eq!(written(&text), "[peers]\nallow = [\"2002::/16\"]\ndeny = [\"10.0.0.0/8\"]");
}

#[test]
fn an_allowed_range_opens_nothing_that_coturn_denies_before() {
    let allowed = |text: &str| {
        let peers = Config::parse(&import_file(text).toml, "t.toml").unwrap().peers;
        move |address: &str| peers.allow.iter().any(|net| net.contains(&address.parse::<IpAddr>().unwrap()))
    };
    let all = "allowed-peer-ip=0.0.0.0-255.255.255.255\n\
               allowed-peer-ip=::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\n";
    let (loopback, multicast) =
        (["127.0.0.1", "127.8.7.6", "::1"], ["224.0.0.1", "239.9.9.9", "255.255.255.255", "ff02::1"]);
    let plain = allowed(all);
    assert!(["10.0.0.1", "fd00::1"].into_iter().all(&plain) && multicast.into_iter().all(&plain));
    assert!(!loopback.into_iter().chain(["0.0.0.0", "0.1.2.3", "::"]).any(&plain));
    let closed = allowed(&format!("{all}no-multicast-peers\n"));
    assert!(["10.0.0.1", "fd00::1"].into_iter().all(&closed));
    assert!(!loopback.into_iter().chain(multicast).any(&closed));
    let open = allowed(&format!("{all}allow-loopback-peers\n"));
    assert!(loopback.into_iter().all(&open) && !open("0.0.0.0"));

    let entries = import_file(all).entries;
    assert!(entries.iter().all(|entry| entry.text.contains("multicast or broadcast addresses")), "{entries:?}");
    assert_eq!(verdicts("allowed-peer-ip=127.0.0.1\n"), [Dropped]);
    assert_eq!(verdicts("allowed-peer-ip=224.0.0.1\nno-multicast-peers\n"), [Dropped, Default]);
}

#[test]
fn the_report_says_which_own_addresses_an_allowed_range_opens() {
    let text = |range: &str| only_entry(&format!("allowed-peer-ip={range}\n")).text;
    // The split of the first range names the address alone.
    for range in ["10.0.0.5-10.0.0.7", "10.0.0.5"] {
        let text = text(range);
        assert!(
            text.contains("the list then names 10.0.0.5 of this machine") && !text.contains("stays denied"),
            "{text}"
        );
    }
    let text = text("10.0.0.4-10.0.0.5");
    assert!(text.contains("10.0.0.5 of this machine stays denied"), "{text}");
}

#[test]
fn prefixes_and_comments_are_not_known_to_coturn() {
    let entry = only_entry("allowed-peer-ip=10.1.2.0/24\n");
    assert!(entry.verdict == Cannot && entry.text.contains("`allow = [\"10.1.2.0/24\"]`"), "{entry:?}");
    assert_eq!(verdicts("allowed-peer-ip=10.1.2.3 # the bridge\n"), [Cannot]);
    let entry = only_entry("denied-peer-ip=8.8.8.0/24\n");
    assert!(entry.verdict == Taken && entry.text.contains("coturn did not apply this line"), "{entry:?}");
    assert_eq!(written("denied-peer-ip=8.8.8.0/24 # a comment\n"), "[peers]\ndeny = [\"8.8.8.0/24\"]");
}

#[test]
fn a_mapped_range_is_its_ipv4_range() {
    assert_eq!(written("denied-peer-ip=::ffff:8.8.8.8\n"), "[peers]\ndeny = [\"8.8.8.8\"]");
    assert_eq!(verdicts("denied-peer-ip=::ffff:10.0.0.1\nallowed-peer-ip=::ffff:10.0.0.2\n"), [Default, Cannot]);
    // Guides deny the notation, and not all of IPv4.
    let all = "denied-peer-ip=::ffff:0.0.0.0-::ffff:255.255.255.255\n";
    assert_eq!((written(all).as_str(), verdicts(all).as_slice()), ("", &[Default][..]));
}

#[test]
fn a_restriction_that_cannot_be_taken_over_keeps_the_server_from_starting() {
    for (text, effect) in [
        ("listening-device=eth0\n", "the server listens on port 3478 of all addresses"),
        ("listening-ip=bad.example.org\nlistening-port=443\n", "the server listens on [\"[::]:443\"]"),
        ("relay-device=eth0\n", "from addresses that it selects from all interfaces"),
        ("relay-ip=$ADDRESS\n", "from addresses that it selects from all interfaces"),
        ("denied-peer-ip=8.8.8.0-8.8.8.2x\n", "only the peers that other lines deny"),
        ("user-quota=ten\n", "a user has at most 32 allocations"),
        ("total-quota=$MAX\n", "as many allocations as relay ports"),
        ("max-bps=1M\n", "the data of an allocation is not limited"),
        ("no-udp\nno-tcp\n", "clients can use TCP"),
        ("no-tcp=maybe\n", "clients can use TCP"),
        ("prometheus\nprometheus-address=localhost\n", "the metrics are at [\"[::]:9641\"]"),
        ("stun-only\n", "clients with a credential can allocate"),
    ] {
        let import = import_file(text);
        let errors = Config::parse(&import.toml, "t.toml").unwrap_err();
        let [problem] = errors.problems() else { panic!("{errors}") };
        assert!(problem.message.contains("`undecided`") && problem.message.contains("remove this line"), "{problem}");
        let entry = import.entries.iter().find(|entry| entry.verdict == Cannot).unwrap();
        assert!(entry.text.contains(effect), "{entry:?}");
        let named = format!("undecided = [\"{}: {}\"]", entry.place, entry.shown);
        assert!(import.toml.contains(&named), "{named}\n{}", *import.toml);
    }
    let import = import_file("denied-peer-ip=8.8.8.8 # caf\u{e9}\nexternal-ip=turn.example.org\n");
    assert!(!import.toml.contains("undecided"), "{}", *import.toml);
    let latin = super::import(&[Source::File("t", b"denied-peer-ip=8.8.8.8 # caf\xe9\n")], &[]);
    assert!(latin.toml.contains("undecided = [\"line 1: denied-peer-ip\"]"), "{}", *latin.toml);
}

#[test]
fn options_whose_value_coturn_ignores_are_on() {
    for option in OPTIONS.iter().filter(|option| option.argument == Argument::Presence) {
        let entry = only_entry(&format!("{}=0\n", option.name));
        assert!(entry.text != "it is turned off" && entry.text.contains("coturn ignores its value"), "{entry:?}");
        assert!(!only_entry(&format!("{}\n", option.name)).text.contains("ignores its value"), "{}", option.name);
    }
    for text in ["use-auth-secret=0\nuser=ann:password\n", "static-auth-secret=\nuser=ann:password\n"] {
        let import = import_file(text);
        assert_eq!(import.entries[1].verdict, Dropped, "{text}");
        assert!(!import.toml.contains("auth.users"), "{}", *import.toml);
    }
    let entry = only_entry("static-auth-secret=\n");
    assert!(entry.verdict == Cannot && entry.text.contains("an empty secret"), "{entry:?}");
    assert_eq!(written("prometheus=no\n"), "[http]\nlisten = [\"[::]:9641\"]");
}

#[test]
fn no_control_character_is_in_the_report() {
    let file = "static-auth-secret\u{1b}[2J=x\nrealm\u{1b}[2J\nrealm=\u{1b}[2Jx\nuser=\u{1b}[2J:x\n\
                listening-ip=\u{9b}2J\n\u{202e}=x\nexternal-ip=\u{1b}[2J\n";
    let arguments = "-c '\u{1b}[2J' -\u{1b} --\u{1b}=x 'realm\u{1b}' --denied-peer-ip='\u{7f}'";
    let sources = [Source::File("a\u{1b}", file.as_bytes()), Source::Arguments(arguments)];
    let import = import(&sources, &machine());
    let report = import.to_string();
    assert!(report.lines().all(|line| line.chars().all(crate::printable::is_printable)), "{report:?}");
    assert!(report.contains("\\u{1b}"), "{report}");
    assert!(import.toml.lines().all(|line| !line.contains(char::is_control)), "{:?}", *import.toml);
}

#[test]
fn a_secret_after_a_wrong_separator_is_not_shown() {
    for text in ["static-auth-secret:abc\n", "static-auth-secret:1\n"] {
        let report = import_file(text).to_string();
        let (name, secret) = text.trim_end().split_once(':').unwrap();
        assert!(report.contains(&format!("line 1: {name}…: coturn has no such option")), "{report}");
        assert!(!report.contains(&format!(":{secret}")), "{report}");
    }
}

#[test]
fn a_line_without_a_name_is_reported() {
    for text in ["=1\n", " \t= abc\n"] {
        let report = import_file(text).to_string();
        assert!(report.contains("line 1: …: coturn has no such option"), "{report}");
    }
}

#[test]
fn options_of_older_versions_are_known() {
    let text = "dh2066\nno-sslv2\nno-sslv3\nsha256\nst-cred-mech\nsecret-ts-exp-time=600\n";
    assert_eq!(verdicts(text), [Dropped, Default, Default, Dropped, Dropped, Dropped]);
}

#[test]
fn limits_have_the_units_of_coturn() {
    let text = "max-bps=262144\ntotal-quota=100\nuser-quota=0\nmax-allocate-timeout=20\nstale-nonce=0\n";
    assert_eq!(
        written(text),
        "[auth]\nnonce-lifetime = \"1d\"\n\
         [limits]\nallocations-per-user = 0\nallocations = 100\nbytes-per-second-per-allocation = 262144\n\
         [timeouts]\nunauthenticated = 20"
    );
    assert!(import_file("max-bps=100\nbps-capacity=1000\n").entries[1].text.contains("`limits.allocations = 10`"));
    assert_eq!(verdicts("max-bps=0\ntotal-quota=0\nbps-capacity=0\n"), [Default, Default, Default]);
    assert_eq!(verdicts("max-allocate-lifetime=3600\nchannel-lifetime=300\n"), [Default, Cannot]);
    assert_eq!(verdicts("max-allocate-lifetime=7200\npermission-lifetime=60\n"), [Dropped, Cannot]);
    assert_eq!(
        written("external-ip=9.9.9.1 / 10.0.0.1\nrelay-ip=10.0.0.1\n").lines().last(),
        Some("external = { \"10.0.0.1\" = \"9.9.9.1\" }")
    );
    assert_eq!(verdicts("external-ip=9.9.9.1 / 10.0.0.1 extra\n"), [Cannot]);
    assert_eq!(written("denied-peer-ip=8.8.4.0 - 8.8.4.255\n"), "[peers]\ndeny = [\"8.8.4.0/24\"]");
}

#[test]
fn differences_without_an_option_are_named() {
    let differences = |text: &str| import_file(text).differences.join("\n");
    let all = differences("fingerprint\n");
    for part in ["`realm`", "private addresses", "`limits.allocations-per-user` is 32", "neither a secret nor a user"] {
        assert!(all.contains(part), "{all}");
    }
    let none = "realm=a\nstatic-auth-secret=0123456789abcdef\nuser-quota=9\ndenied-peer-ip=0.0.0.0-255.255.255.255\n\
                userdb=/none\nno-tls\nno-tcp-relay\nrfc5766-channel-numbers\n";
    assert_eq!(differences(none), "");
    let with_files = "cert=/c.pem\npkey=/k.pem\n";
    assert!(differences(with_files).contains("DTLS"));
    assert!(!differences(&format!("{with_files}no-dtls\n")).contains("DTLS") && !all.contains("DTLS"));
    for part in ["RFC 6062", "compat.rfc5766-channels"] {
        assert!(all.contains(part) && !differences(none).contains(part), "{all}");
    }
}

proptest! {
    #[test]
    fn no_input_causes_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
        let import = import(&[Source::File("a", &bytes), Source::Arguments(&text)], &machine());
        let _ = import.to_string();
    }

    #[test]
    fn no_value_causes_a_panic_or_invalid_toml(at in 0..OPTIONS.len(), value in ".{0,60}") {
        let import = import_file(&format!("{}={value}", OPTIONS[at].name));
        prop_assert!(import.toml.parse::<toml::Table>().is_ok(), "{}", *import.toml);
    }
}
