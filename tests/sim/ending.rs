//! The end of a run.

use std::net::SocketAddr;

use turnserver::auth::KeyAlgorithm;
use turnserver::stun::attribute::{AddressFamily, RequestedAddressFamily, RequestedTransport};
use turnserver::stun::{Class, Method};
use turnserver::turn::{FiveTuple, RedirectWhen, Transport};

use crate::model::PortPreference;
use crate::packet::{self, Authentication, Signed};
use crate::world::World;

impl World {
    /// Ends every allocation and checks that nothing is left.
    pub(crate) fn finish(&mut self) {
        let stopped = self.rng.percent(50);
        for worker in 0..self.setup().workers {
            if stopped {
                self.stop(worker);
            }
        }
        while !self.opens.is_empty() {
            self.socket_opens();
        }
        self.ms += 3_700_000;
        (0..self.setup().workers).for_each(|worker| self.advance(worker));
        while !self.closing.is_empty() {
            self.report_closed(0);
        }
        assert!(self.model.allocs.is_empty() && self.model.taken.is_empty() && self.sockets.is_empty());
        assert!(self.model.reservations.is_empty());
        self.check(true);
        assert!(self.no_routes(), "every route was removed");
        self.model.draining = false;
        self.ledger.set_draining(false);
        let always = self.setup().alternate.as_ref().is_some_and(|alternate| alternate.when == RedirectWhen::Always);
        let limited = self.setup().rates.user_allocations.is_some();
        if self.setup().per_user == 0 && self.setup().in_all == 0 && !always && !limited {
            self.use_every_port();
        }
    }

    /// Allocates every port once more.
    fn use_every_port(&mut self) {
        let ports = self.setup().ports.len() * self.setup().relays.len();
        for client in 0..(ports + 1) * self.setup().workers * 2 {
            let address = SocketAddr::from(([77, 0, 1, 1], 10_000 + client as u16));
            let server = self.setup().clients[0].server;
            let tuple = FiveTuple { client: address, server, transport: Transport::Udp };
            let worker = self.setup().worker_of(client);
            let family =
                if (client / self.setup().workers).is_multiple_of(2) { AddressFamily::V4 } else { AddressFamily::V6 };
            let now = self.now();
            if self.model.free_ports(now, family == AddressFamily::V6, PortPreference::Any, &[]).is_empty() {
                continue;
            }
            let id = packet::transaction(&mut self.rng);
            let none = Authentication::NONE;
            let unauthenticated = packet::message(Class::Request, Method::ALLOCATE, id, false, &none, |writer| {
                writer.push(&RequestedTransport::UDP);
            });
            self.clients[0].nonce = None;
            self.packets_from(worker, tuple, &[(unauthenticated, Signed::Invalid)], Some(0));
            let by = Authentication {
                username: Some(self.model.credentials[0].username.clone()),
                realm: true,
                nonce: self.clients[0].nonce.clone(),
                key: Some(self.model.credentials[0].key(KeyAlgorithm::Md5)),
                ..Authentication::NONE
            };
            let bytes = packet::message(Class::Request, Method::ALLOCATE, id, false, &by, |writer| {
                writer.push(&RequestedTransport::UDP);
                writer.push(&RequestedAddressFamily(family));
            });
            self.packets_from(worker, tuple, &[(bytes, Signed::With(0, KeyAlgorithm::Md5))], Some(0));
            self.report_opened(0, Ok(()));
        }
        assert_eq!(self.model.count_open_sockets(), ports, "every port is in use");
        self.check(true);
    }
}
