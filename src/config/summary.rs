//! The explanation of a configuration for `turnserver check-config`.

use std::fmt;
use std::time::Duration;

use super::addresses::short;
use super::{
    AlternateWhen, CONTROL_SOCKET, Config, ControlSocket, FleetLimits, IcmpIndications, OffloadInterfaces, OffloadMode,
    RelayAddresses, StaticUser, WithoutName, format_duration,
};
use crate::privacy::{ClientAddresses, Usernames};

/// A human-readable summary of a configuration, without secrets. Returned by [`Config::summary`].
///
/// Its [`Display`](fmt::Display) form has several lines, without the warnings, and does not end with a newline.
#[derive(Clone, Copy, Debug)]
pub struct Summary<'c>(&'c Config);

impl<'c> Summary<'c> {
    pub(super) fn new(config: &'c Config) -> Self {
        Self(config)
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config {
            realm,
            hostname,
            node: _,
            workers,
            drain_deadline,
            listen,
            proxies,
            tls,
            relay,
            auth,
            peers,
            limits,
            timeouts,
            alternate,
            compat,
            offload,
            log,
            control,
            http,
            fronts,
            fleet,
            webhook,
            redis_status,
            state_directory,
            files: _,
            warnings: _,
        } = self.0;

        write!(f, "realm    {realm}")?;
        match hostname {
            Some(hostname) => write!(f, "\nhost     {hostname}")?,
            None => f.write_str("\nhost     not set: printed URLs contain an address of this machine")?,
        }
        match workers {
            0 => f.write_str("\nworkers  one per CPU")?,
            workers => write!(f, "\nworkers  {workers}")?,
        }
        match *drain_deadline {
            Duration::ZERO => f.write_str("\nstop     immediately after SIGTERM")?,
            deadline => {
                write!(
                    f,
                    "\nstop     when the last allocation ends, at most {} after SIGTERM",
                    format_duration(deadline)
                )?;
            }
        }
        for endpoint in listen {
            write!(f, "\nlisten   {endpoint}")?;
            let address = endpoint.address;
            match (address.ip().is_unspecified() && address.is_ipv6(), address.port()) {
                (true, 0) => f.write_str(" (IPv6 and IPv4, any free port)")?,
                (true, _) => f.write_str(" (IPv6 and IPv4)")?,
                (false, 0) => f.write_str(" (any free port)")?,
                (false, _) => {}
            }
        }

        if !proxies.is_empty() {
            let proxies: Vec<String> = proxies.iter().map(short).collect();
            write!(f, "\n         a PROXY header is expected from {}", proxies.join(", "))?;
        }

        if let Some(acme) = tls.as_ref().and_then(|tls| tls.acme.as_ref()) {
            write!(f, "\ntls      ordered for {} from {}", acme.domains.join(", "), acme.directory)?;
            write!(f, "\n         kept in {}", acme.state_directory.display())?;
        }
        for files in tls.iter().flat_map(|tls| &tls.certificates).filter(|files| !files.is_ordered) {
            let (certificate, key) = (files.certificate.display(), files.private_key.display());
            let label = if files.is_further { "        " } else { "tls     " };
            write!(f, "\n{label} {certificate}, with the key in {key}")?;
        }

        let (first, last) = (relay.ports.start(), relay.ports.end());
        match &relay.addresses {
            RelayAddresses::Auto => f.write_str("\nrelay    addresses from the interfaces of this machine")?,
            RelayAddresses::Given(given) => {
                let given: Vec<String> = given.iter().map(ToString::to_string).collect();
                write!(f, "\nrelay    {}", given.join(", "))?;
            }
        }
        write!(f, "; ports {first}-{last}, {} per address", relay.ports.len())?;
        for (inside, outside) in &relay.external {
            write!(f, "\n         {inside} is advertised as {outside}")?;
        }

        match (auth.secrets.len(), auth.users.len()) {
            (0, 0) if auth.redis.is_none() => {
                f.write_str("\nauth     no secret and no user: a secret is created at each start")?;
            }
            (secrets, users) => {
                write!(f, "\nauth     {}, {}", plural(secrets, "secret"), plural(users, "static user"))?;
            }
        }
        write!(f, "; nonces are valid for {}", format_duration(auth.nonce_lifetime))?;
        if let Some(redis) = &auth.redis {
            write!(f, "\n         users and secrets of {}, database {}", redis.access.server, redis.access.database)?;
        }
        match auth.expiry_grace {
            Duration::ZERO => {
                f.write_str("\n         a Refresh cannot extend an allocation past the expiry of its credential")?;
            }
            grace => {
                let grace = format_duration(grace);
                write!(
                    f,
                    "\n         a Refresh can extend an allocation up to {grace} past the expiry of its credential"
                )?;
            }
        }

        f.write_str("\npeers    special-purpose addresses are denied")?;
        for (verb, networks) in [("also allowed", &peers.allow), ("also denied", &peers.deny)] {
            if !networks.is_empty() {
                let networks: Vec<String> = networks.iter().map(short).collect();
                write!(f, "\n         {verb}: {}", networks.join(", "))?;
            }
        }

        if !peers.nat64_prefixes.is_empty() {
            let prefixes: Vec<String> =
                peers.nat64_prefixes.iter().map(|prefix| prefix.network().to_string()).collect();
            write!(f, "\n         addresses in {} are judged by their IPv4 address", prefixes.join(", "))?;
        }

        f.write_str("\nlimits   ")?;
        match (limits.allocations_per_user, auth.secrets.is_empty(), auth.users.is_empty()) {
            (_, true, true) if auth.redis.is_none() => {
                f.write_str("allocations per user are not limited: everyone uses the credential that is printed")?;
            }
            (_, true, false) if auth.redis.is_none() => f.write_str("each static user has a limit of its own")?,
            (0, ..) => f.write_str("allocations per user are not limited")?,
            (allocations, ..) => {
                let allocations = plural(allocations, "allocation");
                write!(f, "{allocations} per user, not limited for usernames without a name")?;
            }
        }
        for StaticUser { name, allocations, .. } in &auth.users {
            match allocations {
                0 => write!(f, "\n         user {name}: allocations are not limited")?,
                allocations => write!(f, "\n         user {name}: {}", plural(*allocations, "allocation"))?,
            }
        }
        match limits.allocations {
            0 => f.write_str("\n         in total as many allocations as there are relay ports")?,
            allocations => write!(f, "\n         {} in total", plural(allocations, "allocation"))?,
        }
        match limits.allocations_per_second_per_user {
            0 => {}
            _ if auth.redis.is_none()
                && auth.secrets.is_empty()
                && auth.users.iter().all(|user| user.allocations == 0) => {}
            allocations => write!(f, "\n         {} per second and user", plural(allocations, "new allocation"))?,
        }
        let (permissions, channels) = (limits.permissions_per_allocation, limits.channels_per_allocation);
        write!(f, "\n         {}", plural(permissions, "permission"))?;
        write!(f, " and {} per allocation", plural(channels, "channel"))?;
        match limits.peers_per_second {
            0 => {}
            peers => write!(f, ", {} per second", plural(peers, "new peer"))?,
        }
        for (bytes, owner) in
            [(limits.bytes_per_second_per_allocation, "allocation"), (limits.bytes_per_second_per_user, "user")]
        {
            if bytes != 0 {
                write!(f, "\n         {} per second, direction and {owner}", plural(bytes, "byte"))?;
            }
        }
        match limits.connections {
            0 => f.write_str("\n         TCP and TLS connections are not limited in total")?,
            connections => write!(f, "\n         {} in total", plural(connections, "TCP and TLS connection"))?,
        }
        match limits.connections_per_source {
            0 => f.write_str(", not limited per source")?,
            connections => write!(f, ", {connections} per source without an allocation")?,
        }
        match limits.allocated_connections_per_source {
            0 => {}
            connections => write!(f, ", {connections} per source with one")?,
        }
        match limits.unverified_responses {
            0 => f.write_str("\n         responses to unverified sources are not limited")?,
            responses => {
                write!(f, "\n         {} per second to an unverified source", plural(responses, "response"))?;
            }
        }
        match limits.failed_authentications {
            0 => f.write_str("\n         failed authentications are not limited")?,
            failures => {
                let failures = plural(failures, "failed authentication");
                write!(f, "\n         {failures} per second, source and username")?;
            }
        }
        let [handshake, first, idle, unauthenticated] =
            [timeouts.tls_handshake, timeouts.first_request, timeouts.idle, timeouts.unauthenticated]
                .map(format_duration);
        write!(
            f,
            "\ntimeouts {handshake} for the TLS handshake, {first} for the first request, \
             {unauthenticated} for the first allocation\n         \
             {idle} after a request on a connection without an allocation"
        )?;
        let other = [("UDP and TCP", &alternate.servers), ("TLS", &alternate.tls_servers)];
        for (transport, servers) in other.into_iter().filter(|(_, servers)| !servers.is_empty()) {
            let when = match alternate.when {
                AlternateWhen::Draining => "while this server drains",
                AlternateWhen::Full => "when this server is full or drains",
                AlternateWhen::Always => "always",
            };
            let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
            write!(f, "\nothers   {when}, {transport} clients are redirected to {}", servers.join(", "))?;
        }
        if let Some(domain) = &alternate.domain {
            write!(f, "\n         their certificate has the name {domain}")?;
        }
        if compat.rfc5766_channels {
            f.write_str("\ncompat   channel numbers up to 0x7FFF are accepted")?;
        }
        if compat.draft_dual_allocation {
            f.write_str("\ncompat   0x8032 is accepted for ADDITIONAL-ADDRESS-FAMILY")?;
        }
        let icmp = match compat.icmp_indications {
            IcmpIndications::Auto => "",
            IcmpIndications::Always => "\ncompat   every client gets Data indications about ICMP errors",
            IcmpIndications::Never => "\ncompat   no client gets Data indications about ICMP errors",
        };
        f.write_str(icmp)?;
        let when = match offload.mode {
            OffloadMode::Off => None,
            OffloadMode::Auto => Some("if possible"),
            OffloadMode::Require => Some("required"),
        };
        match (when, &offload.interfaces) {
            (None, _) => f.write_str("\noffload  off")?,
            (Some(when), OffloadInterfaces::Auto) => write!(f, "\noffload  {when}, on all suitable interfaces")?,
            (Some(when), OffloadInterfaces::Given(names)) => write!(f, "\noffload  {when}, on {}", names.join(", "))?,
        }
        if when.is_some() {
            write!(f, ", for {} at a time", plural(self.0.offload_channels(), "channel"))?;
        }
        write!(f, "\nlog      {} as {}", log.level, log.format)?;
        match log.client_addresses {
            ClientAddresses::Full => {}
            ClientAddresses::Prefix => f.write_str("\n         addresses of clients and peers as networks")?,
            ClientAddresses::None => f.write_str("\n         without addresses of clients and peers")?,
        }
        match log.usernames {
            Usernames::Full => {}
            Usernames::Hash => f.write_str("\n         names of users as hashes")?,
            Usernames::None => f.write_str("\n         without names of users")?,
        }
        match &control.socket {
            ControlSocket::Default => write!(f, "\ncontrol  {CONTROL_SOCKET}, if its directory exists")?,
            ControlSocket::At(path) => write!(f, "\ncontrol  {}", path.display())?,
            ControlSocket::None => f.write_str("\ncontrol  no control socket")?,
        }
        for address in &http.listen {
            write!(f, "\nhttp     {}://{address}", if http.tls { "https" } else { "http" })?;
        }
        for front in fronts {
            write!(f, "\nfront    {}: ", front.listen)?;
            if front.names.is_empty() {
                f.write_str("TURN without TLS")?;
            } else {
                write!(f, "TURN, also over TLS as {}", front.names.join(", "))?;
            }
            if front.without_name == WithoutName::Relay {
                f.write_str(" and without a server name")?;
            }
            if front.http {
                f.write_str("; browsers that use a name of it get the pages of [http]")?;
            }
            write!(f, "; everything else goes to {}", front.web)?;
            if front.proxy_protocol {
                f.write_str(" with a PROXY header")?;
            }
            let connections = plural(front.connections, "connection");
            write!(f, "\n         at most {connections}; {} without data end one", format_duration(front.idle))?;
        }
        if !http.keys.is_empty() {
            let names: Vec<&str> = http.keys.iter().map(|key| key.name.as_str()).collect();
            write!(f, "\nkeys     {}", names.join(", "))?;
        }

        if let Some(fleet) = fleet {
            let servers: Vec<String> = fleet.servers.iter().map(ToString::to_string).collect();
            write!(f, "\nfleet    {}, as the node {} of {}", servers.join(", "), self.0.node_name(), fleet.name)?;
            write!(f, "\n         region {}, weight {}", fleet.region, fleet.weight)?;
            if fleet.limits == FleetLimits::Fleet {
                f.write_str("; limits per user apply to all nodes together")?;
            }
        }
        if let Some(webhook) = webhook {
            let events: Vec<&str> = webhook.events.iter().map(|event| event.as_str()).collect();
            write!(f, "\nwebhook  {} to {}", events.join(", "), webhook.origin())?;
            let place = state_directory.as_ref().map_or("memory".to_owned(), |path| path.display().to_string());
            write!(f, "\n         at most {} bytes wait for it in {place}", webhook.spool)?;
        }
        if let Some(redis) = redis_status {
            write!(f, "\nstatus   to {}, database {}", redis.server, redis.database)?;
        }
        Ok(())
    }
}

fn plural<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    if count == N::from(1) { format!("{count} {noun}") } else { format!("{count} {noun}s") }
}
