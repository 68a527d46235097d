//! What a configuration means, for `turnserver check-config`.

use std::fmt;
use std::time::Duration;

use super::addresses::short;
use super::{AlternateWhen, Config, RelayAddresses, format_duration};

/// What the server will do with a configuration, in a few lines for a person. Shows no secret.
///
/// Made by [`Config::summary`]; its [`Display`](fmt::Display) form ends without a newline and has the warnings last.
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
            workers,
            drain_deadline,
            listen,
            tls,
            relay,
            auth,
            peers,
            limits,
            timeouts,
            alternate,
            compat,
            log,
            warnings,
        } = self.0;

        write!(f, "realm    {realm}")?;
        match hostname {
            Some(hostname) => write!(f, "\nhost     {hostname}")?,
            None => f.write_str("\nhost     not set: urls name an address of this machine")?,
        }
        match workers {
            0 => f.write_str("\nworkers  one for each CPU")?,
            workers => write!(f, "\nworkers  {workers}")?,
        }
        match *drain_deadline {
            Duration::ZERO => f.write_str("\nstop     at once")?,
            deadline => {
                write!(f, "\nstop     with the last allocation, at most {} after SIGTERM", format_duration(deadline))?;
            }
        }
        let of = |transport, addresses| std::iter::repeat(transport).zip(addresses);
        for (transport, address) in of("udp", &listen.udp).chain(of("tcp", &listen.tcp)).chain(of("tls", &listen.tls)) {
            write!(f, "\nlisten   {transport} {address}")?;
            match (address.ip().is_unspecified() && address.is_ipv6(), address.port()) {
                (true, 0) => f.write_str(" (IPv6 and IPv4, any free port)")?,
                (true, _) => f.write_str(" (IPv6 and IPv4)")?,
                (false, 0) => f.write_str(" (any free port)")?,
                (false, _) => {}
            }
        }

        if let Some(tls) = tls {
            write!(f, "\ntls      {}, with the key in {}", tls.certificate.display(), tls.private_key.display())?;
        }

        let (first, last) = (relay.ports.start(), relay.ports.end());
        match &relay.addresses {
            RelayAddresses::Auto => f.write_str("\nrelay    addresses from the interfaces of this machine")?,
            RelayAddresses::Given(given) => {
                let given: Vec<String> = given.iter().map(ToString::to_string).collect();
                write!(f, "\nrelay    {}", given.join(", "))?;
            }
        }
        write!(f, "; ports {first}-{last}, {} for each address", relay.ports.len())?;
        for (ours, theirs) in &relay.external {
            write!(f, "\n         {ours} is advertised as {theirs}")?;
        }

        match (auth.secrets.len(), auth.users.len()) {
            (0, 0) => f.write_str("\nauth     no secret and no user: one secret is made for each run")?,
            (secrets, users) => {
                write!(f, "\nauth     {}, {}", plural(secrets, "secret"), plural(users, "static user"))?;
            }
        }
        write!(f, "; a nonce is good for {}", format_duration(auth.nonce_lifetime))?;
        match auth.expiry_grace {
            Duration::ZERO => {
                f.write_str("\n         no Refresh extends an allocation past the expiry of its credential")?;
            }
            grace => {
                let grace = format_duration(grace);
                write!(
                    f,
                    "\n         a Refresh extends an allocation up to {grace} past the expiry of its credential"
                )?;
            }
        }

        f.write_str("\npeers    special-purpose addresses are denied")?;
        for (verb, networks) in [("allowed besides", &peers.allow), ("denied besides", &peers.deny)] {
            if !networks.is_empty() {
                let networks: Vec<String> = networks.iter().map(short).collect();
                write!(f, "\n         {verb}: {}", networks.join(", "))?;
            }
        }

        f.write_str("\nlimits   ")?;
        match limits.allocations_per_user {
            0 => f.write_str("any number of allocations for a user")?,
            allocations => write!(f, "{} for each user", plural(allocations, "allocation"))?,
        }
        match limits.allocations {
            0 => f.write_str(", in all as many as there are ports")?,
            allocations => write!(f, ", {allocations} in all")?,
        }
        match limits.allocations_per_second_per_user {
            0 => {}
            allocations => write!(f, "\n         a user makes at most {} a second", plural(allocations, "allocation"))?,
        }
        let (permissions, channels) = (limits.permissions_per_allocation, limits.channels_per_allocation);
        write!(f, "\n         an allocation has at most {}", plural(permissions, "permission"))?;
        write!(f, " and {}", plural(channels, "channel"))?;
        match limits.peers_per_second {
            0 => {}
            peers => write!(f, ", and {} a second", plural(peers, "new peer"))?,
        }
        for (bytes, whose) in [
            (limits.bytes_per_second_per_allocation, "an allocation has"),
            (limits.bytes_per_second_per_user, "all allocations of a user have"),
        ] {
            if bytes != 0 {
                write!(f, "\n         {whose} at most {} a second relayed each way", plural(bytes, "byte"))?;
            }
        }
        match limits.connections {
            0 => f.write_str("\n         any number of TCP and TLS connections")?,
            connections => write!(f, "\n         {} in all", plural(connections, "TCP and TLS connection"))?,
        }
        match limits.connections_per_source {
            0 => f.write_str(", from one source too")?,
            connections => write!(f, ", {connections} from one source")?,
        }
        match limits.unverified_replies {
            0 => f.write_str("\n         unverified sources get any number of answers")?,
            replies => write!(f, "\n         an unverified source gets {} a second", plural(replies, "answer"))?,
        }
        let [handshake, first, idle, unauthenticated] =
            [timeouts.tls_handshake, timeouts.first_request, timeouts.idle, timeouts.unauthenticated]
                .map(format_duration);
        write!(
            f,
            "\ntimeouts a connection has {handshake} for its TLS handshake, {first} for its first request\n         \
             and without an allocation {idle} after a request, {unauthenticated} in all"
        )?;
        let other = [("over UDP and TCP", &alternate.servers), ("over TLS", &alternate.tls_servers)];
        for (transport, servers) in other.into_iter().filter(|(_, servers)| !servers.is_empty()) {
            let when = match alternate.when {
                AlternateWhen::Draining => "while this server drains",
                AlternateWhen::Full => "when this server is full or drains",
                AlternateWhen::Always => "always",
            };
            let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
            write!(f, "\nothers   {when}, clients {transport} are sent to {}", servers.join(", "))?;
        }
        if let Some(domain) = &alternate.domain {
            write!(f, "\n         whose certificate has the name {domain}")?;
        }
        if compat.rfc5766_channels {
            f.write_str("\ncompat   channel numbers up to 0x7FFF are accepted")?;
        }
        if compat.draft_dual_allocation {
            f.write_str("\ncompat   0x8032 is accepted for ADDITIONAL-ADDRESS-FAMILY")?;
        }
        write!(f, "\nlog      {} as {}", log.level, log.format)?;

        for warning in warnings {
            write!(f, "\nwarning  {warning}")?;
        }
        Ok(())
    }
}

fn plural<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    if count == N::from(1) { format!("{count} {noun}") } else { format!("{count} {noun}s") }
}
