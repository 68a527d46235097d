//! `[listen]`, `[tls]` and `[relay]`.

mod peers;
mod ranges;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use toml::Table;

use super::Verdict::{Cannot, Default, Dropped, Taken};
use super::convert::Converter;
use super::value::{self, address, uncommented};
use super::write::list;

const DEFAULT_PORT: u16 = 3478;
const DEFAULT_TLS_PORT: u16 = 5349;

/// Parses an address with a port.
pub(super) fn endpoint(value: &str) -> Result<SocketAddr, String> {
    let text = uncommented(value);
    let with_default = || Some(SocketAddr::new(address(text).ok()?, DEFAULT_PORT));
    let endpoint = text.parse().ok().or_else(with_default);
    endpoint.ok_or_else(|| format!("`{text}` is not an IP address with a port: write the address"))
}

impl Converter<'_> {
    pub(super) fn listen(&mut self) {
        let port = self.parsed("listening-port", value::port);
        let addresses = self.parsed_all("listening-ip", address);
        let further = self.parsed_all("aux-server", endpoint);
        let tls_port = self.parsed("tls-listening-port", value::port);
        let certificate = self.certificate(tls_port);

        let hosts = hosts(&addresses);
        let at_port = |port: u16| hosts.iter().map(move |host| SocketAddr::new(*host, port));
        let plain =
            distinct(at_port(port.map_or(DEFAULT_PORT, |(_, port)| port)).chain(further.iter().map(|(_, to)| *to)));
        let origins: Vec<usize> = addresses.iter().map(|(at, _)| *at).chain(port.map(|(at, _)| at)).collect();
        let all: Vec<usize> = origins.iter().copied().chain(further.iter().map(|(at, _)| *at)).collect();
        self.plain(&plain, &all, certificate.is_some());
        if let Some([certificate, key]) = certificate {
            let secure: Vec<SocketAddr> = at_port(tls_port.map_or(DEFAULT_TLS_PORT, |(_, port)| port)).collect();
            self.tls(&secure, &origins, tls_port.map(|(at, _)| at), [certificate, key]);
        }
    }

    /// Sets the listeners without TLS, which come from `origins`.
    fn plain(&mut self, listen: &[SocketAddr], origins: &[usize], has_tls: bool) {
        let is_default = listen == [SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT)];
        let [no_udp, no_tcp] = self.closed(has_tls);
        for (key, off) in [("listen.udp", no_udp), ("listen.tcp", no_tcp)] {
            match off {
                Some(at) => self.take(at, key, list::<&str>([])),
                None if is_default => {}
                None => {
                    let from = self.from(origins);
                    self.out.set(key, list(listen), from);
                }
            }
        }
        for at in origins {
            if is_default {
                self.decide(*at, Default, "the server listens on port 3478 of all addresses, IPv4 and IPv6");
            } else {
                self.decide(*at, Taken, "`listen.udp` and `listen.tcp`");
            }
        }
    }

    /// Returns the options that turn UDP and TCP off.
    fn closed(&mut self, has_tls: bool) -> [Option<usize>; 2] {
        let [no_udp, no_tcp] = ["no-udp", "no-tcp"].map(|name| self.one(name));
        if let ([Some(_), Some(tcp)], false) = ([no_udp, no_tcp], has_tls) {
            self.decide(tcp, Cannot, "with `no-udp` and without TLS, no listener would be left: set `listen`");
            return [no_udp, None];
        }
        [no_udp, no_tcp]
    }

    /// Returns the options with the certificate and its key, if coturn has TLS listeners.
    fn certificate(&mut self, tls_port: Option<(usize, u16)>) -> Option<[usize; 2]> {
        let off = self.one("no-tls");
        let files = [self.one("cert"), self.one("pkey")];
        let why = match (files, off) {
            ([Some(certificate), Some(key)], None) => return Some([certificate, key]),
            (_, Some(_)) => "`no-tls` turns TLS off",
            _ => {
                self.incomplete(files, tls_port);
                return None;
            }
        };
        for at in files.into_iter().flatten().chain(tls_port.map(|(at, _)| at)) {
            self.decide(at, Dropped, why);
        }
        if let Some(at) = off {
            self.decide(at, Default, "there is no TLS listener unless `listen.tls` has one");
        }
        None
    }

    /// Decides on TLS without both files. coturn has default names for them.
    fn incomplete(&mut self, files: [Option<usize>; 2], tls_port: Option<(usize, u16)>) {
        for at in files.into_iter().flatten() {
            let text = "a certificate needs its key: set both keys of `[tls]`, and `listen.tls`";
            self.decide(at, Cannot, text);
        }
        let is_named = self.is_given("cert") || self.is_given("pkey");
        let found = "turn_server_cert.pem and turn_server_pkey.pem in its directories, for example in /etc";
        match tls_port {
            Some((at, port)) if is_named => {
                let text =
                    format!("there is no TLS without both keys of `[tls]`: then set `listen.tls` with port {port}");
                self.decide(at, Cannot, text);
            }
            Some((at, port)) => {
                let text = format!(
                    "without `cert` and `pkey`, coturn has TLS on this port if it finds {found}: then set both keys of \
                     `[tls]`, and `listen.tls` with port {port}. Otherwise, it has no TLS either"
                );
                self.decide(at, Cannot, text);
            }
            None if is_named => {}
            None => self.differences.push(format!(
                "without `cert` and `pkey`, coturn has TLS on port {DEFAULT_TLS_PORT} if it finds {found}: if \
                 /etc/turn_server_cert.pem exists, set both keys of `[tls]`, and `listen.tls`"
            )),
        }
    }

    /// Names what coturn does by default, and this server does not.
    pub(super) fn unsupported(&mut self) {
        let has_certificate = self.is_given("cert") && self.is_given("pkey");
        for (applies, text) in [
            (
                has_certificate && !self.is_given("no-dtls") && !self.is_given("dtls"),
                "with a certificate, coturn also accepts DTLS over UDP (`turns:` with `transport=udp`) unless `no-dtls` \
                 is set; here there is none. Browsers do not use it",
            ),
            (
                !self.is_given("no-tcp-relay"),
                "coturn also relays TCP to peers (RFC 6062) unless `no-tcp-relay` is set; here only UDP is relayed. \
                 Browsers do not use it",
            ),
            (
                !self.is_given("rfc5766-channel-numbers"),
                "older versions of coturn accept the channel numbers 0x5000 to 0x7FFF; here only those of RFC 8656, to \
                 0x4FFF, are accepted. If clients use others, set `compat.rfc5766-channels = true`",
            ),
        ] {
            if applies {
                self.differences.push(text.to_owned());
            }
        }
    }

    fn tls(&mut self, listen: &[SocketAddr], addresses: &[usize], port: Option<usize>, files: [usize; 2]) {
        let from = match port {
            Some(port) => self.from(&addresses.iter().copied().chain([port]).collect::<Vec<_>>()),
            None => format!("{} (coturn listens on port {DEFAULT_TLS_PORT} for TLS)", self.from(&files)),
        };
        self.out.set("listen.tls", list(listen), from);
        if let Some(port) = port {
            self.decide(port, Taken, "`listen.tls`");
        }
        for (at, key) in files.into_iter().zip(["tls.certificate", "tls.private-key"]) {
            let path = value::path(self.value(at)).to_owned();
            let is_relative = !path.starts_with('/');
            self.take(at, key, path);
            if is_relative {
                let remark = "a relative path starts at the directory of the new file; coturn searches in several";
                self.remark(at, remark);
            }
        }
    }

    pub(super) fn relay(&mut self) {
        let relay = self.relay_addresses();
        self.external(&relay);
        self.ports();
    }

    fn relay_addresses(&mut self) -> Vec<IpAddr> {
        let given = self.parsed_all("relay-ip", address);
        let (any, mut given): (Vec<_>, Vec<_>) = given.into_iter().partition(|(_, address)| address.is_unspecified());
        for (at, _) in any {
            self.decide(at, Default, "the relay addresses are selected from the interfaces");
        }
        for (at, _) in &given {
            self.decide(*at, Taken, "`relay.addresses`");
        }
        let mut reason = "";
        if given.is_empty() && !self.is_given("relay-ip") {
            given = self.listening_addresses();
            reason = " (without `relay-ip`, coturn relays on them)";
        }
        let addresses = distinct(given.iter().map(|(_, address)| *address));
        if !addresses.is_empty() {
            let origins: Vec<usize> = given.iter().map(|(at, _)| *at).collect();
            let from = self.from(&origins) + reason;
            self.out.set("relay.addresses", list(&addresses), from);
        }
        addresses
    }

    /// Returns the listening addresses on which coturn relays: none if it listens on all.
    fn listening_addresses(&self) -> Vec<(usize, IpAddr)> {
        let listening = self.given.iter().enumerate().filter(|(_, given)| given.is("listening-ip"));
        let listening: Vec<_> = listening.filter_map(|(at, given)| Some((at, address(&given.value).ok()?))).collect();
        if listening.iter().any(|(_, address)| address.is_unspecified()) {
            return Vec::new();
        }
        // No other machine can use a loopback address, but some files list it.
        let outside: Vec<_> = listening.iter().copied().filter(|(_, address)| !address.is_loopback()).collect();
        if outside.is_empty() { listening } else { outside }
    }

    fn external(&mut self, relay: &[IpAddr]) {
        let mut mapped: Vec<(usize, IpAddr, IpAddr)> = Vec::new();
        let mut alone = false;
        for at in self.all("external-ip") {
            let text = self.value(at).split(['#', ';']).next().unwrap_or_default().to_owned();
            let pair = match text.split_once('/') {
                Some((public, private)) => self.pair(at, public.trim(), private.trim(), relay),
                None if alone => {
                    let text = "coturn uses only the first `external-ip` without the internal address";
                    self.decide(at, Dropped, text);
                    None
                }
                None => {
                    alone = true;
                    self.public_alone(at, relay)
                }
            };
            let Some((inside, outside)) = pair else { continue };
            if mapped.iter().any(|(_, one, other)| *one == inside || *other == outside) {
                self.decide(at, Cannot, "1:1 NAT needs a different address on each side: correct `relay.external`");
                continue;
            }
            mapped.push((at, inside, outside));
            self.decide(at, Taken, format!("`relay.external`: {inside} is advertised as {outside}"));
        }
        if !mapped.is_empty() {
            let pairs = mapped.iter().map(|(_, inside, outside)| (inside.to_string(), outside.to_string().into()));
            let table: Table = pairs.collect();
            let from = self.from(&mapped.iter().map(|(at, ..)| *at).collect::<Vec<_>>());
            self.out.set("relay.external", table, from);
        }
    }

    /// Returns the internal and the external address of a complete mapping.
    fn pair(&mut self, at: usize, public: &str, private: &str, relay: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
        let alone = |text: &str| match text.contains([' ', '\t']) {
            true => Err(format!("`{text}` is not an IP address: write the address")),
            false => address(text),
        };
        let outside = self.parse(at, |_| alone(public))?;
        let inside = self.parse(at, |_| alone(private))?;
        let problem = if inside.is_ipv4() != outside.is_ipv4() {
            (Cannot, format!("{inside} and {outside} are of different families: correct `relay.external`"))
        } else if inside == outside {
            (Dropped, format!("{inside} is not behind NAT"))
        } else if !relay.is_empty() && !relay.contains(&inside) {
            (Dropped, format!("{inside} is not a relay address, and the mapping applies to relay addresses only"))
        } else {
            return Some((inside, outside));
        };
        self.decide(at, problem.0, problem.1);
        None
    }

    /// Returns the mapping to a public address without an internal one. coturn applies it to all relay addresses.
    fn public_alone(&mut self, at: usize, relay: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
        let outside = self.parse(at, address)?;
        let is_candidate = |address: &&IpAddr| {
            let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            address.is_ipv4() == outside.is_ipv4() && !is_link_local
        };
        let own = self.machine.iter().filter(|address| !address.is_loopback());
        let candidates: Vec<IpAddr> = match relay {
            [] => own.filter(is_candidate).copied().collect(),
            relay => relay.iter().filter(is_candidate).copied().collect(),
        };
        if candidates.contains(&outside) {
            self.decide(at, Dropped, format!("{outside} is an address of this machine, so there is no NAT"));
            return None;
        }
        match candidates.as_slice() {
            [inside] => {
                if relay.is_empty() {
                    let note = format!(
                        "`relay.external`: {inside}, the address of this machine, is advertised as {outside}. If the \
                         server will run on another machine, write its address"
                    );
                    self.decide(at, Taken, note);
                }
                Some((*inside, outside))
            }
            found => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
                let text = format!(
                    "it does not say which address of the machine is behind NAT, and there is not exactly one \
                     ({found}): set `external = {{ \"INTERNAL\" = \"{outside}\" }}` in `[relay]`"
                );
                self.decide(at, Cannot, text);
                None
            }
        }
    }

    fn ports(&mut self) {
        let first = self.parsed("min-port", value::port);
        let last = self.parsed("max-port", value::port);
        let range = (first.map_or(49_152, |(_, port)| port), last.map_or(65_535, |(_, port)| port));
        let origins: Vec<usize> = [first, last].into_iter().flatten().map(|(at, _)| at).collect();
        let (verdict, text) = match range {
            (49_152, 65_535) => (Default, "`relay.ports` is \"49152-65535\""),
            (first, last) if first > last => (Cannot, "the range of ports is empty: set `relay.ports`"),
            (first, last) => {
                let from = self.from(&origins);
                self.out.set("relay.ports", format!("{first}-{last}"), from);
                (Taken, "`relay.ports`")
            }
        };
        for at in origins {
            self.decide(at, verdict, text);
        }
    }
}

/// Returns the addresses to listen on. A wildcard includes the others of its family; that of IPv6 includes IPv4.
fn hosts(addresses: &[(usize, IpAddr)]) -> Vec<IpAddr> {
    let all = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let has = |wanted: IpAddr| addresses.iter().any(|(_, address)| *address == wanted);
    if addresses.is_empty() || has(all) {
        return vec![all];
    }
    let has_v4 = has(Ipv4Addr::UNSPECIFIED.into());
    let is_included = |address: &IpAddr| has_v4 && address.is_ipv4() && !address.is_unspecified();
    distinct(addresses.iter().map(|(_, address)| *address).filter(|address| !is_included(address)))
}

/// Returns each value once, in the order of the first ones.
fn distinct<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}
