//! Compares the quota with a naive model: each allocation counts once, until it ends.

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
    /// A new Allocate request of a client by a user.
    Allocate(u8, u8),
    /// A retransmission of a client's last Allocate request.
    Retransmit(u8),
    /// The result of opening the oldest requested socket.
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
        3 => (0..CLIENTS).prop_map(Step::Retransmit),
        8 => opened.prop_map(Step::Open),
        3 => (0..CLIENTS).prop_map(Step::Delete),
        1 => prop_oneof![0..20_u64, 595..605_u64].prop_map(Step::Pass),
    ];
    vec(step, 1..120)
}

/// An allocation of the model.
#[derive(Debug)]
struct ModelAllocation {
    user: u8,
    deadline: u64,
    open: bool,
}

struct Case {
    world: World,
    second: u64,
    allocations: BTreeMap<u8, ModelAllocation>,
    /// The last Allocate request of each client, and the client.
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
        let (allocations, requests) = (BTreeMap::new(), BTreeMap::new());
        Self { world, second: 0, allocations, requests, opening: Vec::new(), relays: Vec::new() }
    }

    fn count_of(&self, user: u8) -> usize {
        self.allocations.values().filter(|allocation| allocation.user == user).count()
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Allocate(client, user) => {
                let from = self.world.client(client + 1).with_credential(&format!("user-{user}"), UNIX + 100_000);
                let udp = RequestedTransport::UDP;
                let packet = from.request(self.world.transaction(), Method::ALLOCATE, &[&udp]);
                self.requests.insert(client, (from, packet));
                self.request(client, user);
            }
            Step::Retransmit(client) => {
                let Some((from, _)) = self.requests.get(&client) else { return };
                let user = from.username.rsplit_once('-').unwrap().1.parse().unwrap();
                self.request(client, user);
            }
            Step::Open(result) => self.report_opened(result),
            Step::Delete(client) => {
                let Some((from, _)) = self.requests.get(&client) else { return };
                let from = from.clone();
                if self.world.send_request(&from, Method::REFRESH, &[&Lifetime(0)]).code().is_none() {
                    assert!(self.allocations.remove(&client).unwrap().open);
                }
            }
            Step::Pass(time) => {
                self.second += time;
                self.world.advance(seconds(time));
                let second = self.second;
                self.allocations.retain(|_, allocation| allocation.deadline > second);
            }
        }
    }

    fn request(&mut self, client: u8, user: u8) {
        let (from, packet) = self.requests[&client].clone();
        let known = self.allocations.contains_key(&client);
        let (of_user, in_all) = (self.count_of(user), self.allocations.len());
        match self.world.client_packet(&from.tuple, &packet) {
            (FromClient::Open(open), _) => {
                assert!(!known && of_user < PER_USER && in_all < IN_ALL);
                self.allocations.insert(client, ModelAllocation { user, deadline: self.second + 600, open: false });
                self.opening.push((client, packet, open));
            }
            (FromClient::Respond(response), _) => match response.outcome {
                Outcome::RejectedByLimit(Limit::Allocations) => assert!(!known && in_all == IN_ALL),
                Outcome::RejectedByLimit(Limit::AllocationsPerUser) => {
                    assert!(!known && of_user == PER_USER && in_all < IN_ALL);
                }
                // The model does not include ports in use.
                Outcome::RejectedByLimit(Limit::PortsInUse | Limit::RelayPorts) => assert!(!known),
                Outcome::Answered(_) => assert!(self.allocations[&client].open),
                Outcome::Rejected(RejectionCode::StaleNonce) => {}
                Outcome::Rejected(RejectionCode::AllocationMismatch) => assert!(known),
                outcome => panic!("{outcome}"),
            },
            (FromClient::Drop(_), _) => assert!(!self.allocations[&client].open),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn report_opened(&mut self, result: Result<(), OpenError>) {
        if self.opening.is_empty() {
            return;
        }
        let (client, packet, open) = self.opening.remove(0);
        match self.world.socket_opened(&open, result).0 {
            Opened::Respond(_, response) if matches!(response.outcome, Outcome::Answered(_)) => {
                self.allocations.get_mut(&client).unwrap().open = true;
                self.relays.push(open);
            }
            Opened::Respond(..) => drop(self.allocations.remove(&client).unwrap()),
            Opened::Open(next) => self.opening.push((client, packet, next)),
            Opened::Abandoned if result.is_ok() => self.world.server.socket_closed(open.bind),
            Opened::Abandoned => {}
        }
    }

    /// Carries out the actions of the server, and compares it with the model.
    fn check(&mut self) {
        while let Some(action) = self.world.action() {
            let Action::Close { socket, bind } = action else { continue };
            let at = self.relays.iter().position(|open| open.socket == socket && open.bind == bind).unwrap();
            self.relays.remove(at);
            self.world.server.socket_closed(bind);
        }
        let quota = &self.world.ledger.quota;
        assert_eq!(quota.allocations() as usize, self.allocations.len());
        for user in 0..4 {
            assert_eq!(quota.of_user(&format!("user-{user}")), self.count_of(user) as u64, "user-{user}");
        }
    }
}

proptest! {
    #[test]
    fn the_quota_counts_every_allocation_once_while_it_lasts(steps in steps()) {
        let mut case = Case::new();
        for step in steps {
            case.apply(step);
            case.check();
        }
        case.world.server.stop(case.world.now);
        case.allocations.clear();
        while !case.opening.is_empty() {
            case.report_opened(Ok(()));
        }
        case.check();
        prop_assert_eq!(case.world.footprint(), EMPTY);
    }
}
