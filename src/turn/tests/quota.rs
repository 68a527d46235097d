//! The quota against a naive model: released neither too early nor never, and counted once.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::stun::Method;
use crate::stun::attribute::{Lifetime, RequestedTransport};
use crate::turn::RejectionCode;
use crate::turn::tests::support::*;
use crate::turn::{Action, FromClient, Limit, OpenError, Opened, Outcome, SocketSpec};

const PER_USER: usize = 2;
const IN_ALL: usize = 5;
const CLIENTS: u8 = 7;

#[derive(Clone, Debug)]
enum Step {
    /// A new request of a client, by a user.
    Allocate(u8, u8),
    /// A client's last Allocate request once more, whatever has become of it.
    Again(u8),
    /// The socket that has waited longest is open or is not to be had.
    Open(Result<(), OpenError>),
    Delete(u8),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let opened = prop_oneof![
        4 => Just(Ok(())),
        1 => Just(Err(OpenError::PortInUse)),
        1 => Just(Err(OpenError::Other)),
    ];
    let step = prop_oneof![
        8 => (0..CLIENTS, 0..4_u8).prop_map(|(client, user)| Step::Allocate(client, user)),
        3 => (0..CLIENTS).prop_map(Step::Again),
        8 => opened.prop_map(Step::Open),
        3 => (0..CLIENTS).prop_map(Step::Delete),
        1 => prop_oneof![0..20_u64, 595..605_u64].prop_map(Step::Pass),
    ];
    vec(step, 1..120)
}

/// An allocation of the model.
#[derive(Debug)]
struct Has {
    user: u8,
    deadline: u64,
    open: bool,
}

struct Case {
    world: World,
    second: u64,
    has: BTreeMap<u8, Has>,
    /// The last Allocate request of each client, and whose it is.
    requests: BTreeMap<u8, (Client, Vec<u8>)>,
    opening: Vec<(u8, Vec<u8>, SocketSpec)>,
    relays: Vec<SocketSpec>,
}

impl Case {
    fn new() -> Self {
        let world = World::with(|setup| {
            setup.limits.allocations_per_user = u32::try_from(PER_USER).unwrap();
            setup.limits.allocations = u32::try_from(IN_ALL).unwrap();
        });
        let (has, requests) = (BTreeMap::new(), BTreeMap::new());
        Self { world, second: 0, has, requests, opening: Vec::new(), relays: Vec::new() }
    }

    fn count_of(&self, user: u8) -> usize {
        self.has.values().filter(|has| has.user == user).count()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Allocate(client, user) => {
                let from = self.world.client(client + 1).with_credential(&format!("user-{user}"), UNIX + 100_000);
                let udp = RequestedTransport::UDP;
                let packet = from.request(self.world.transaction(), Method::ALLOCATE, &[&udp]);
                self.requests.insert(client, (from, packet));
                self.request(client, user);
            }
            Step::Again(client) => {
                let Some((from, _)) = self.requests.get(&client) else { return };
                let user = from.username.rsplit_once('-').unwrap().1.parse().unwrap();
                self.request(client, user);
            }
            Step::Open(result) => self.opens(result),
            Step::Delete(client) => {
                let Some((from, _)) = self.requests.get(&client) else { return };
                let from = from.clone();
                if self.world.ask(&from, Method::REFRESH, &[&Lifetime(0)]).code().is_none() {
                    assert!(self.has.remove(&client).unwrap().open);
                }
            }
            Step::Pass(time) => {
                self.second += time;
                self.world.advance(seconds(time));
                let second = self.second;
                self.has.retain(|_, has| has.deadline > second);
            }
        }
    }

    fn request(&mut self, client: u8, user: u8) {
        let (from, packet) = self.requests[&client].clone();
        let known = self.has.contains_key(&client);
        let (of_user, in_all) = (self.count_of(user), self.has.len());
        match self.world.client_packet(&from.tuple, &packet) {
            (FromClient::Open(open), _) => {
                assert!(!known && of_user < PER_USER && in_all < IN_ALL);
                self.has.insert(client, Has { user, deadline: self.second + 600, open: false });
                self.opening.push((client, packet, open));
            }
            (FromClient::Respond(reply), _) => match reply.outcome {
                Outcome::RejectedByLimit(Limit::Allocations) => assert!(!known && in_all == IN_ALL),
                Outcome::RejectedByLimit(Limit::AllocationsPerUser) => {
                    assert!(!known && of_user == PER_USER && in_all < IN_ALL);
                }
                // Ports that others have are none of the quota's business.
                Outcome::RejectedByLimit(Limit::PortsInUse | Limit::RelayPorts) => assert!(!known),
                Outcome::Answered(_) => assert!(self.has[&client].open),
                Outcome::Rejected(RejectionCode::StaleNonce) => {}
                Outcome::Rejected(RejectionCode::AllocationMismatch) => assert!(known),
                outcome => panic!("{outcome}"),
            },
            (FromClient::Drop(_), _) => assert!(!self.has[&client].open),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn opens(&mut self, result: Result<(), OpenError>) {
        if self.opening.is_empty() {
            return;
        }
        let (client, packet, open) = self.opening.remove(0);
        match self.world.socket_opened(&open, result).0 {
            Opened::Respond(_, reply) if matches!(reply.outcome, Outcome::Answered(_)) => {
                self.has.get_mut(&client).unwrap().open = true;
                self.relays.push(open);
            }
            Opened::Respond(..) => drop(self.has.remove(&client).unwrap()),
            Opened::Open(next) => self.opening.push((client, packet, next)),
            Opened::Abandoned if result.is_ok() => self.world.server.socket_closed(open.bind),
            Opened::Abandoned => {}
        }
    }

    /// Closes what the server wants closed, and compares.
    fn check(&mut self) {
        while let Some(action) = self.world.action() {
            let Action::Close(id) = action else { continue };
            let at = self.relays.iter().position(|open| open.socket == id).unwrap();
            let open = self.relays.remove(at);
            self.world.server.socket_closed(open.bind);
        }
        let quota = &self.world.ledger.quota;
        assert_eq!(quota.allocations() as usize, self.has.len());
        for user in 0..4 {
            assert_eq!(quota.of_user(&format!("user-{user}")), self.count_of(user) as u64, "user-{user}");
        }
    }
}

proptest! {
    #[test]
    fn the_quota_counts_every_allocation_once_and_as_long_as_it_lasts(steps in steps()) {
        let mut case = Case::new();
        for step in steps {
            case.take(step);
            case.check();
        }
        case.world.server.stop(case.world.now);
        case.has.clear();
        while !case.opening.is_empty() {
            case.opens(Ok(()));
        }
        case.check();
        prop_assert_eq!(case.world.footprint(), NOTHING);
    }
}
