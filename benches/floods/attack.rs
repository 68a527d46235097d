//! The floods, and the attacker, a process that is controlled as the roles of the load generator are.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::load::{Commands, Job, Outcome};
use crate::output::print;
use crate::{clients, forged, load, measure, priority, roles, streams};

/// Packets per second of the paced floods.
pub(crate) const RATE: u64 = 100_000;

/// A flood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Attack {
    /// The call alone.
    None,
    /// Random bytes from random sources, 100 000 packets/s.
    Junk,
    /// The same as fast as one CPU sends.
    JunkUnpaced,
    /// Allocate requests from random sources, 100 000 packets/s.
    Allocate,
    /// Binding requests from random sources, 100 000 packets/s.
    Binding,
    /// Binding requests from random sources, as fast as one CPU sends.
    BindingUnpaced,
    /// Binding requests of one source as fast as one CPU sends.
    OneSource,
    /// The same in segmented datagrams, which arrive as after the GRO of a network card.
    OneSourceMerged,
    /// Empty ChannelData of one source without an allocation, in segmented datagrams.
    EmptyMerged,
    /// ChannelData without an allocation from random sources, 100 000 packets/s.
    ChannelData,
    /// Allocate requests with a valid nonce and a wrong password, from random ports of one source, 100 000 packets/s.
    WrongCredentials,
    /// ICMP errors about the packets of the call, 100 000 packets/s.
    Icmp,
    /// Complete ClientHellos of many sources, whose connections end early.
    TlsAbandoned,
    /// Complete TLS handshakes of many sources.
    TlsCompleted,
    /// 2 000 connections, each of which sends a byte of a request every second.
    SlowTcp,
    /// 32 clients of one user that allocate and delete the allocation as fast as possible.
    Churn,
    /// An allocation at line rate to a peer that does not read.
    LineRate,
    /// Two allocations that relay to each other, and whose clients send back what they receive.
    Circle,
}

impl Attack {
    /// Returns the selected floods, or all.
    pub(crate) fn selected(wanted: &[Self]) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|one| wanted.is_empty() || wanted.contains(one)).collect()
    }

    /// Returns the name for the table.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns whether the sources have proved nothing, so that what they receive is limited.
    pub(crate) fn is_unverified(self) -> bool {
        use Attack::*;
        matches!(
            self,
            Junk | JunkUnpaced
                | Allocate
                | Binding
                | BindingUnpaced
                | OneSource
                | OneSourceMerged
                | EmptyMerged
                | ChannelData
                | WrongCredentials
                | Icmp
        )
    }

    /// Returns whether each unit of the flood is a connection.
    pub(crate) fn connects(self) -> bool {
        matches!(self, Self::TlsAbandoned | Self::TlsCompleted)
    }
}

/// What the attacker knows.
#[derive(Args, Clone)]
pub(crate) struct AttackArguments {
    #[arg(long, value_enum)]
    pub(crate) flood: Attack,
    #[arg(long)]
    pub(crate) own: IpAddr,
    #[arg(long)]
    pub(crate) server: SocketAddr,
    #[arg(long)]
    pub(crate) tls: SocketAddr,
    #[arg(long)]
    pub(crate) relay: IpAddr,
    /// The peer of the call, and its ports.
    #[arg(long)]
    pub(crate) peer: IpAddr,
    #[arg(long, value_delimiter = ',')]
    pub(crate) peer_ports: Vec<u16>,
    /// The address of the clients of the call.
    #[arg(long)]
    pub(crate) client: IpAddr,
    #[arg(long)]
    pub(crate) certificate: PathBuf,
}

impl AttackArguments {
    /// Floods for the time of a window. Reports `ready`, and the number of packets or connections within the window. Then
    /// it waits until it is killed, because its counters are read through its process.
    pub(crate) fn run(&self) -> Outcome<()> {
        roles::die_with_parent()?;
        priority::set_attacker()?;
        turnserver::net::limits::raise_open_files()?;
        load::clock::sleep_precisely();
        let commands = roles::commands();
        let result = self.flood(&commands)?;
        print(&format!("result {result}"));
        loop {
            std::thread::park();
        }
    }

    fn flood(&self, commands: &Commands) -> Outcome<Value> {
        let sent = match self.flood {
            Attack::None => {
                print("ready");
                commands.window()?;
                0
            }
            Attack::Churn => {
                let job = Job {
                    scenario: measure::call(),
                    load: 0,
                    own: self.own,
                    server: self.server,
                    peer: self.server,
                    feedback: PathBuf::new(),
                    certificate: PathBuf::new(),
                    forwarded: false,
                    unsent: false,
                };
                return load::churn::run(&job, 32, commands, &mut print);
            }
            Attack::OneSource | Attack::OneSourceMerged | Attack::EmptyMerged => clients::one_source(self, commands)?,
            Attack::LineRate => clients::line_rate(self, commands)?,
            Attack::Circle => clients::circle(self, commands)?,
            Attack::TlsAbandoned => streams::tls(self, commands, streams::Handshake::Abandoned)?,
            Attack::TlsCompleted => streams::tls(self, commands, streams::Handshake::Completed)?,
            Attack::SlowTcp => streams::slow(self, commands)?,
            _ => forged::run(self, commands)?,
        };
        Ok(json!({ "sent": sent }))
    }
}
