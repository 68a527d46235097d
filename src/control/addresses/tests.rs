use std::net::SocketAddr;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Parses "eth0 10.0.0.5" per address; "down eth0 10.0.0.5" for an interface that is down; "eth0 2a01::1 temporary" for
/// an address that is not stable.
fn machine(lines: &[&str]) -> Interfaces {
    let entry = |line: &&str| {
        let (up, line) = line.strip_prefix("down ").map_or((true, *line), |rest| (false, rest));
        let mut words = line.split(' ');
        let (name, address) = (words.next().unwrap(), ip(words.next().unwrap()));
        let state = match words.next() {
            None => AddressState::Stable,
            Some("temporary") => AddressState::Temporary,
            Some("deprecated") => AddressState::Deprecated,
            Some("tentative") => AddressState::Tentative,
            Some("failed") => AddressState::Failed,
            Some(other) => panic!("{other}"),
        };
        InterfaceAddress { name: name.to_owned(), address, loopback: name == "lo", up, state }
    };
    let lo = ["lo 127.0.0.1", "lo ::1"];
    let addresses: Vec<InterfaceAddress> = lo.iter().chain(lines).map(entry).collect();
    let beyond_loopback = addresses.iter().any(|entry| !entry.loopback);
    Interfaces { addresses, beyond_loopback, ..Interfaces::default() }
}

fn mapping(pairs: &[(&str, &str)]) -> Vec<(IpAddr, IpAddr)> {
    pairs.iter().map(|(inside, outside)| (ip(inside), ip(outside))).collect()
}

fn auto(lines: &[&str], external: &[(&str, &str)], preferred: &[&str]) -> Result<Choice, AddressError> {
    let preferred: Vec<IpAddr> = preferred.iter().map(|text| ip(text)).collect();
    choose(None, &mapping(external), &machine(lines), &[], &|family| {
        preferred.iter().copied().find(|ip| Family::of(*ip) == family)
    })
}

fn given(addresses: &[&str], lines: &[&str], external: &[(&str, &str)]) -> Result<Choice, AddressError> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    choose(Some(&addresses), &mapping(external), &machine(lines), &[], &|_| None)
}

/// Formats each address for all clients as "bind" or "bind → advertised".
fn outline(choice: &Choice) -> Vec<String> {
    let line = |address: &RelayAddress| {
        let RelayAddress { bind, advertised, .. } = address;
        if bind == advertised { bind.to_string() } else { format!("{bind} → {advertised}") }
    };
    choice.for_all().map(line).collect()
}

fn reasons(choice: &Choice) -> Vec<&str> {
    choice.for_all().map(|address| address.reason.as_str()).collect()
}

#[test]
fn a_server_with_a_global_address_per_family_uses_both_without_a_warning() {
    let choice = auto(&["eth0 5.9.1.1", "eth0 2a01:4f8::1", "eth0 fe80::1"], &[], &["5.9.1.1", "2a01:4f8::1"]).unwrap();
    assert_eq!(outline(&choice), ["5.9.1.1", "2a01:4f8::1"]);
    assert_eq!(reasons(&choice), ["global address of eth0, the kernel's source address for the internet"; 2]);
    assert_eq!(choice.warnings, [""; 0]);
}

#[test]
fn the_kernels_source_address_is_preferred_among_global_addresses() {
    let lines = ["eth0 5.9.1.1", "eth0 5.9.1.2", "eth1 5.9.1.3"];
    assert_eq!(outline(&auto(&lines, &[], &["5.9.1.2"]).unwrap()), ["5.9.1.2"]);
    let choice = auto(&lines, &[], &[]).unwrap();
    assert_eq!((outline(&choice), reasons(&choice)), (vec!["5.9.1.1".to_owned()], vec!["global address of eth0"]));
}

#[test]
fn a_global_address_precedes_a_private_one_that_the_kernel_prefers() {
    let choice = auto(&["eth0 10.0.0.5", "eth1 5.9.1.1"], &[], &["10.0.0.5"]).unwrap();
    assert_eq!(outline(&choice), ["5.9.1.1"]);
    assert_eq!(choice.warnings, [""; 0]);
}

#[test]
fn a_global_address_of_the_loopback_interface_follows_one_of_another_interface() {
    assert_eq!(outline(&auto(&["lo 5.9.1.1"], &[], &[]).unwrap()), ["5.9.1.1"]);
    assert_eq!(outline(&auto(&["lo 5.9.1.1", "eth0 5.9.1.2"], &[], &[]).unwrap()), ["5.9.1.2"]);
    assert_eq!(outline(&auto(&["lo 10.255.255.254", "eth0 172.20.1.2"], &[], &[]).unwrap()), ["172.20.1.2"]);
}

#[test]
fn a_private_address_causes_a_warning_with_advice() {
    let choice = auto(&["docker0 172.17.0.1", "eth0 10.0.0.5"], &[], &["10.0.0.5"]).unwrap();
    assert_eq!(outline(&choice), ["10.0.0.5"]);
    assert_eq!(reasons(&choice), ["private address of eth0, the kernel's source address for the internet"]);
    assert_eq!(
        choice.warnings,
        [
            "other networks cannot reach the relay address 10.0.0.5 (private). A trial on this machine or in its network \
             works all the same. To serve others, set external = { \"10.0.0.5\" = \"PUBLIC ADDRESS\" } in [relay]"
        ]
    );
}

#[test]
fn several_non_global_addresses_cause_one_warning_that_names_their_ranges() {
    let lines = ["eth0 10.0.0.5", "eth0 100.64.3.4", "eth0 fd00::2", "eth0 192.0.2.2", "eth0 2001:db8::2"];
    let all = ["10.0.0.5", "100.64.3.4", "fd00::2", "192.0.2.2", "2001:db8::2"];
    let choice = given(&all, &lines, &[]).unwrap();
    let [warning] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
    let list = "10.0.0.5 (private) and 100.64.3.4 (carrier-grade NAT) and fd00::2 (unique local) and 192.0.2.2 \
                (documentation) and 2001:db8::2 (documentation)";
    assert!(warning.contains(list), "{warning}");
    let choice = auto(&["eth0 10.0.0.5", "eth0 fd00::2"], &[], &[]).unwrap();
    assert_eq!(choice.warnings.len(), 1, "{:?}", choice.warnings);
}

#[test]
fn the_warning_about_a_private_family_suggests_omitting_it() {
    let choice = auto(&["eth0 5.9.1.1", "eth0 fd00::2"], &[], &[]).unwrap();
    assert_eq!(outline(&choice), ["5.9.1.1", "fd00::2"]);
    let [warning] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
    assert!(warning.contains("fd00::2 (unique local)"), "{warning}");
    assert!(warning.ends_with("To omit it, set addresses = [\"5.9.1.1\"] in [relay]"), "{warning}");
}

#[test]
fn a_stable_address_precedes_a_temporary_one_that_the_kernel_prefers() {
    let temporary = "eth0 2a01:4f8::7a7a temporary";
    let choice = auto(&[temporary, "eth0 2a01:4f8::1", "eth0 2a01:4f8::2"], &[], &["2a01:4f8::7a7a"]).unwrap();
    assert_eq!(outline(&choice), ["2a01:4f8::1"]);
    assert_eq!(reasons(&choice), ["global address of eth0, stable, on the kernel's interface for the internet"]);
    // Of several stable addresses, one of the interface that the kernel prefers.
    let lines = ["eth1 2a01:4f9::1", temporary, "eth0 2a01:4f8::1"];
    assert_eq!(outline(&auto(&lines, &[], &["2a01:4f8::7a7a"]).unwrap()), ["2a01:4f8::1"]);
}

#[test]
fn a_temporary_or_deprecated_address_is_used_only_without_a_better_one_of_its_reach() {
    for (worse, better) in [("deprecated", "temporary"), ("deprecated", ""), ("temporary", "")] {
        let lines = [format!("eth0 2a01:4f8::2 {worse}"), format!("eth0 2a01:4f8::1 {better}")];
        let choice = auto(&lines.each_ref().map(|line| line.trim_end()), &[], &["2a01:4f8::2"]).unwrap();
        assert_eq!(outline(&choice), ["2a01:4f8::1"], "{worse} {better}");
    }
    let choice = auto(&["eth0 2a01:4f8::2 deprecated"], &[], &[]).unwrap();
    assert_eq!(outline(&choice), ["2a01:4f8::2"]);
    assert_eq!(reasons(&choice), ["global address of eth0, deprecated, because there is no better one"]);
    // Clients elsewhere cannot reach a stable unique local address.
    let choice = auto(&["eth0 fd00::1", "eth0 2a01:4f8::2 temporary"], &[], &[]).unwrap();
    assert_eq!(outline(&choice), ["2a01:4f8::2"]);
}

#[test]
fn a_tentative_or_failed_address_is_never_detected() {
    let lines = ["eth0 2a01:4f8::1 tentative", "eth0 2a01:4f8::2 failed", "eth0 5.9.1.1"];
    assert_eq!(outline(&auto(&lines, &[], &["2a01:4f8::1"]).unwrap()), ["5.9.1.1"]);
}

#[test]
fn an_outside_address_that_clients_cannot_reach_causes_a_warning() {
    for (outside, part) in [
        ("203.0.113.9", "203.0.113.9, which is an address for examples in documentation"),
        ("198.51.100.7", "198.51.100.7, which is an address for examples in documentation"),
        ("192.168.178.2", "192.168.178.2, which is a private address"),
        ("100.64.1.1", "100.64.1.1, which is a carrier-grade NAT address"),
        ("127.0.0.1", "127.0.0.1, which no other network can reach"),
        ("169.254.1.1", "169.254.1.1, which no other network can reach"),
    ] {
        let choice = auto(&["eth0 10.0.0.5"], &[("10.0.0.5", outside)], &[]).unwrap();
        let [warning] = &choice.warnings[..] else { panic!("{outside}: {:?}", choice.warnings) };
        assert!(warning.contains(part) && warning.contains("et the public address of this server"), "{warning}");
    }
    let choice = auto(&["eth0 fd00::5"], &[("fd00::5", "2001:db8::9")], &[]).unwrap();
    assert_eq!(choice.warnings.len(), 1, "{:?}", choice.warnings);
    let choice = auto(&["eth0 10.0.0.5"], &[("10.0.0.5", "5.9.1.1")], &[]).unwrap();
    assert_eq!(choice.warnings, [""; 0]);
}

#[test]
fn a_mapping_with_its_sides_exchanged_causes_a_warning_with_the_right_order() {
    let choice = auto(&["eth0 10.0.0.5"], &[("5.9.1.1", "10.0.0.5")], &[]).unwrap();
    let warning = &choice.warnings[0];
    assert!(warning.ends_with("external = { \"10.0.0.5\" = \"5.9.1.1\" }"), "{warning}");
    // Both are addresses of this machine.
    let choice = auto(&["eth0 10.0.0.5", "eth1 5.9.1.1"], &[("10.0.0.5", "5.9.1.1")], &[]).unwrap();
    assert_eq!(choice.warnings, [""; 0]);
}

#[test]
fn a_mapping_sets_the_advertised_address_and_avoids_the_warning() {
    let choice = auto(&["eth0 10.0.0.5"], &[("10.0.0.5", "5.9.1.1")], &["10.0.0.5"]).unwrap();
    assert_eq!(outline(&choice), ["10.0.0.5 → 5.9.1.1"]);
    assert_eq!(
        reasons(&choice),
        ["private address of eth0, mapped by relay.external, the kernel's source address for the internet"]
    );
    assert_eq!(choice.warnings, [""; 0]);
}

#[test]
fn a_mapped_address_precedes_all_others_of_its_family() {
    let lines = ["eth0 5.9.1.1", "eth1 10.0.0.5", "eth0 2a01:4f8::1"];
    let choice = auto(&lines, &[("10.0.0.5", "5.9.1.2")], &["5.9.1.1"]).unwrap();
    assert_eq!(outline(&choice), ["10.0.0.5 → 5.9.1.2", "2a01:4f8::1"]);
}

#[test]
fn addresses_of_interfaces_that_are_down_are_not_detected() {
    assert_eq!(outline(&auto(&["down eth0 5.9.1.1", "eth1 10.0.0.5"], &[], &[]).unwrap()), ["10.0.0.5"]);
}

#[test]
fn loopback_is_used_with_a_warning_if_there_is_no_other_interface() {
    let choice = auto(&[], &[], &[]).unwrap();
    assert_eq!(outline(&choice), ["127.0.0.1", "::1"]);
    assert_eq!(reasons(&choice), ["loopback address of lo, because the machine has no other interface"; 2]);
    let [warning] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
    assert!(warning.starts_with("only programs on this machine can use the relay"), "{warning}");
    assert!(warning.contains(": 127.0.0.1 and ::1. "), "{warning}");
    assert!(warning.ends_with("a browser on this machine gathers no candidates"), "{warning}");
}

#[test]
fn the_server_waits_if_an_interface_has_no_usable_address_yet() {
    for lines in [&["eth0 fe80::1", "eth0 169.254.3.4"][..], &["down eth0 5.9.1.1"], &["eth0 2a01::1 tentative"]] {
        let choice = auto(lines, &[], &[]).unwrap();
        assert_eq!(choice.addresses, []);
        let [warning] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
        assert!(warning.starts_with("the server waits for a relay address"), "{warning}");
    }
}

#[test]
fn further_addresses_of_the_same_reach_are_for_the_clients_that_reach_the_server_there() {
    let further = |lines: &[&str], external: &[(&str, &str)], preferred: &[&str]| {
        let choice = auto(lines, external, preferred).unwrap();
        let further = choice.addresses.into_iter().filter(|address| !address.for_all);
        further.map(|address| address.bind.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(further(&["w0 10.1.1.1", "w1 192.168.178.1"], &[], &["192.168.178.1"]), ["10.1.1.1"]);
    assert_eq!(further(&["w0 5.9.1.1", "w1 5.9.1.2", "w1 10.0.0.5"], &[], &[]), ["5.9.1.2"]);
    assert_eq!(further(&["w0 5.9.1.1", "w1 10.0.0.5", "lo 5.9.1.2"], &[], &[]), [""; 0]);
    assert_eq!(further(&["w0 10.0.0.5", "w1 10.0.0.6"], &[("10.0.0.5", "5.9.1.1")], &[]), [""; 0]);
    assert_eq!(further(&["w0 2a01::1", "w0 2a01::2 temporary", "w0 2a01::3 deprecated"], &[], &[]), [""; 0]);
    assert_eq!(further(&[], &[], &[]), [""; 0]);
}

#[test]
fn one_loopback_family_is_enough() {
    let mut interfaces = machine(&["lo 127.0.0.53"]);
    interfaces.addresses.retain(|entry| entry.address.is_ipv4());
    interfaces.addresses.reverse();
    assert_eq!(outline(&choose(None, &[], &interfaces, &[], &|_| None).unwrap()), ["127.0.0.1"]);
}

#[test]
fn loopback_of_one_family_is_not_used_with_an_address_of_the_other() {
    assert_eq!(outline(&auto(&["eth0 2a01:4f8::1"], &[], &[]).unwrap()), ["2a01:4f8::1"]);
}

#[test]
fn a_machine_without_addresses_waits_for_one() {
    let choice = choose(None, &[], &Interfaces::default(), &[], &|_| None).unwrap();
    assert_eq!((choice.addresses.len(), choice.warnings.len()), (0, 1));
}

#[test]
fn configured_addresses_are_used_in_order_without_duplicates() {
    let lines = ["eth0 5.9.1.1", "eth0 5.9.1.2", "eth1 5.9.1.3"];
    let choice = given(&["5.9.1.3", "5.9.1.1", "::ffff:5.9.1.3"], &lines, &[]).unwrap();
    assert_eq!(outline(&choice), ["5.9.1.3", "5.9.1.1"]);
    assert_eq!(reasons(&choice)[1], "global address of eth0, configured in relay.addresses");
    assert_eq!(choice.warnings, [""; 0]);
}

#[test]
fn configured_addresses_with_limited_reachability_cause_warnings() {
    let lines = ["eth0 10.0.0.5", "eth0 169.254.3.4"];
    let choice = given(&["10.0.0.5", "169.254.3.4", "127.0.0.1"], &lines, &[]).unwrap();
    assert_eq!(choice.addresses.len(), 3);
    let [link_local, private, loopback] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
    assert!(private.contains("external = { \"10.0.0.5\" = \"PUBLIC ADDRESS\" }"), "{private}");
    assert!(link_local.contains("169.254.3.4 of eth0 is link-local"), "{link_local}");
    assert_eq!(loopback, "only programs on this machine can use the relay at its loopback address 127.0.0.1");
    let mapped =
        given(&["10.0.0.5", "127.0.0.1"], &lines, &[("10.0.0.5", "5.9.1.1"), ("127.0.0.1", "5.9.1.2")]).unwrap();
    assert_eq!(mapped.warnings, [""; 0]);
}

#[test]
fn a_configured_address_that_the_machine_does_not_have_causes_a_warning_that_explains_nat() {
    let choice = given(&["5.9.1.1"], &["eth0 10.0.0.5", "eth0 fe80::1"], &[]).unwrap();
    assert_eq!((choice.addresses.len(), choice.missing), (0, vec![(ip("5.9.1.1"), ip("5.9.1.1"))]));
    assert_eq!(
        choice.warnings,
        ["relay.addresses: 5.9.1.1 is not among the addresses of this machine: \
          127.0.0.1 (lo), ::1 (lo), 10.0.0.5 (eth0). The server waits for it. \
          Behind 1:1 NAT, set `addresses` to the inside address and map it in `external`: \
          addresses = [\"10.0.0.5\"] and external = { \"10.0.0.5\" = \"5.9.1.1\" }"]
    );
}

#[test]
fn all_configured_addresses_that_are_missing_are_reported_together() {
    let lines = ["eth0 10.0.0.5", "down eth1 5.9.1.3", "eth0 2a01:4f8::2 tentative"];
    let choice = given(&["2a01:4f8::1", "10.0.0.5", "5.9.1.3", "2a01:4f8::2"], &lines, &[]).unwrap();
    assert_eq!(outline(&choice), ["10.0.0.5"]);
    assert_eq!(
        choice.missing.iter().map(|(bind, _)| *bind).collect::<Vec<_>>(),
        ["2a01:4f8::1", "5.9.1.3", "2a01:4f8::2"].map(ip)
    );
    assert_eq!(
        choice.warnings[..2],
        [
            "relay.addresses: 2a01:4f8::1 is not among the addresses of this machine: 127.0.0.1 (lo), ::1 (lo), 10.0.0.5 \
             (eth0), 5.9.1.3 (eth1, down), 2a01:4f8::2 (eth0, being checked for duplicates). The server waits for it. \
             Behind 1:1 NAT, set `addresses` to the inside address and map it in `external`",
            "relay.addresses: 5.9.1.3 and 2a01:4f8::2 are not usable at present (eth1 is down, 2a01:4f8::2 is being \
             checked for duplicates). The server waits for them",
        ]
    );
}

#[test]
fn an_unspecified_multicast_or_link_local_address_is_an_error() {
    for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1"] {
        let error = given(&[text], &["eth0 fe80::1"], &[]).unwrap_err();
        assert!(matches!(error, AddressError::Unusable(unusable) if unusable == ip(text)), "{error}");
    }
    assert!(matches!(given(&[], &[], &[]).unwrap_err(), AddressError::Empty));
}

#[test]
fn a_mapping_between_families_is_an_error() {
    let error = auto(&["eth0 10.0.0.5"], &[("10.0.0.5", "2a01:4f8::1")], &[]).unwrap_err();
    assert!(matches!(error, AddressError::MixedFamilies(..)), "{error}");
}

#[test]
fn a_mapping_of_an_address_of_another_machine_causes_a_warning() {
    let choice = auto(&["eth0 5.9.1.1"], &[("10.0.0.6", "5.9.1.1")], &[]).unwrap();
    let [warning] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
    assert!(warning.starts_with("relay.external maps 10.0.0.6, which is not among"), "{warning}");
}

/// Returns the addresses at which clients reach a listener, with its port.
fn hosts(listener: &str, external: &[(IpAddr, IpAddr)], choice: &Choice) -> Vec<String> {
    let listener: SocketAddr = listener.parse().unwrap();
    let hosts = advertised_hosts(listener.ip(), external, choice);
    hosts.into_iter().map(|host| SocketAddr::new(host, listener.port()).to_string()).collect()
}

#[test]
fn a_specific_listener_is_advertised_as_itself_or_as_it_is_mapped() {
    let external = mapping(&[("10.0.0.5", "5.9.1.1")]);
    let choice = auto(&[], &[], &[]).unwrap();
    let hosts = |listener| hosts(listener, &external, &choice);
    assert_eq!(hosts("10.0.0.5:3478"), ["5.9.1.1:3478"]);
    assert_eq!(hosts("5.9.1.7:443"), ["5.9.1.7:443"]);
    assert_eq!(hosts("[2a01:4f8::1]:3478"), ["[2a01:4f8::1]:3478"]);
}

#[test]
fn a_wildcard_listener_is_advertised_at_the_relay_addresses_it_listens_for() {
    let lines = ["eth0 2a01:4f8::1", "eth0 10.0.0.5"];
    let choice = given(&["2a01:4f8::1", "10.0.0.5"], &lines, &[("10.0.0.5", "5.9.1.1")]).unwrap();
    let hosts = |listener| hosts(listener, &[], &choice);
    assert_eq!(hosts("[::]:3478"), ["5.9.1.1:3478", "[2a01:4f8::1]:3478"]);
    assert_eq!(hosts("0.0.0.0:3478"), ["5.9.1.1:3478"]);
}

#[test]
fn two_addresses_with_the_same_advertised_address_are_an_error() {
    let lines = ["eth0 10.0.0.5", "eth0 5.9.1.2"];
    let error = given(&["10.0.0.5", "5.9.1.2"], &lines, &[("10.0.0.5", "5.9.1.2")]).unwrap_err();
    assert!(error.to_string().contains("10.0.0.5 and 5.9.1.2 are both advertised as 5.9.1.2"), "{error}");
}

#[test]
fn the_detected_relay_addresses_can_be_bound() {
    let choice = detect(None, &[], &interfaces::read().unwrap(), &[]).unwrap();
    for address in choice.addresses {
        assert!(interfaces::is_local(address.bind).unwrap(), "{address:?}");
    }
}

#[test]
fn an_address_that_is_routed_to_this_machine_can_be_configured() {
    let configured = [ip("127.3.2.1")];
    assert_eq!(outline(&detect(Some(&configured), &[], &interfaces::read().unwrap(), &[]).unwrap()), ["127.3.2.1"]);
}

#[test]
fn the_address_in_use_precedes_an_equally_good_one() {
    let choice = |current: &[&str]| {
        let current: Vec<IpAddr> = current.iter().map(|text| ip(text)).collect();
        outline(&choose(None, &[], &machine(&["eth0 5.9.1.1", "eth1 5.9.1.2"]), &current, &|_| None).unwrap())
    };
    assert_eq!(choice(&[]), ["5.9.1.1"]);
    assert_eq!(choice(&["5.9.1.2"]), ["5.9.1.2"]);
}

// pppd gives each PPP interface the same local address.
#[test]
fn one_address_on_several_interfaces_is_one_address() {
    let lines = ["w0 10.0.0.5", "p0 10.8.0.1", "p1 10.8.0.1", "down w1 10.0.0.5"];
    let choice = auto(&lines, &[], &["10.0.0.5"]).unwrap();
    assert_eq!(outline(&choice), ["10.0.0.5"]);
    let all: Vec<String> = choice.addresses.iter().map(|address| address.bind.to_string()).collect();
    assert_eq!(all, ["10.0.0.5", "10.8.0.1"]);
    assert_eq!(outline(&auto(&["down w0 5.9.1.1", "w1 5.9.1.1"], &[], &[]).unwrap()), ["5.9.1.1"]);
}

#[test]
fn a_configured_address_that_is_not_usable_at_present_is_named_with_the_reason() {
    for (line, reason) in [
        ("down w0 5.9.1.1", "w0 is down"),
        ("w0 5.9.1.1 tentative", "5.9.1.1 is being checked for duplicates"),
        ("w0 5.9.1.1 failed", "5.9.1.1 is a duplicate of another machine's"),
    ] {
        let choice = given(&["5.9.1.1"], &[line], &[]).unwrap();
        let expected = format!("relay.addresses: 5.9.1.1 is not usable at present ({reason}). The server waits for it");
        assert_eq!((choice.warnings, choice.unusable), (vec![expected], vec![ip("5.9.1.1")]));
    }
}

#[test]
fn an_absent_and_an_unusable_address_have_a_warning_each_and_neither_is_an_example() {
    let choice = given(&["203.0.114.1", "203.0.114.2"], &["down w0 203.0.114.1"], &[]).unwrap();
    let [absent, unusable] = &choice.warnings[..] else { panic!("{:?}", choice.warnings) };
    assert!(absent.starts_with("relay.addresses: 203.0.114.2 is not among the addresses"), "{absent}");
    assert!(absent.ends_with("map it in `external`"), "{absent}");
    assert!(unusable.contains("203.0.114.1 is not usable at present (w0 is down)"), "{unusable}");
}
