//! The offload of a build without the feature `offload`: nothing has a [`Plan`], so nothing is offloaded.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;

use super::Worker;
use crate::turn::{ChannelRoute, Direction, FiveTuple, Server, SocketId};

/// There are no reasons in detail.
pub(crate) const REASONS: [&str; 0] = [];

/// There is none.
#[derive(Debug)]
pub(crate) struct Plan(Infallible);

/// There is none.
#[derive(Debug)]
pub(super) struct Offload(Infallible);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) entries: [u64; 2],
    pub(super) without: [u64; 0],
}

#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) socket: SocketId,
    pub(super) direction: Direction,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Offload {
    pub(super) fn new(plan: Plan, _: Duration, _: Arc<BTreeSet<u32>>) -> Self {
        match plan.0 {}
    }

    pub(super) fn counts(&self) -> Counts {
        match self.0 {}
    }

    pub(super) fn take_relayed(&mut self) -> Vec<Relayed> {
        match self.0 {}
    }

    pub(super) fn add(&mut self, _: ChannelRoute, _: bool, _: &mut StdRng) {
        match self.0 {}
    }

    pub(super) fn remove<'r>(&mut self, _: impl Iterator<Item = &'r ChannelRoute>) {
        match self.0 {}
    }

    pub(super) fn recheck(&self, _: SocketAddr, _: SocketAddr) {
        match self.0 {}
    }

    pub(super) fn suspend(&mut self) {
        match self.0 {}
    }

    pub(super) fn reviewed(&mut self) {
        match self.0 {}
    }

    pub(super) fn set_interfaces(&mut self, _: &Arc<BTreeSet<u32>>) {
        match self.0 {}
    }

    pub(super) fn tick(&mut self) {
        match self.0 {}
    }

    pub(super) fn step(&mut self, _: &Server) -> bool {
        match self.0 {}
    }

    pub(super) fn read(&mut self, _: &FiveTuple, _: impl Iterator<Item = u16>) {
        match self.0 {}
    }

    pub(super) fn why_in_user_space(&self, _: &FiveTuple, _: u16) -> Option<[Option<String>; 2]> {
        match self.0 {}
    }

    pub(super) fn finish(&mut self) {
        match self.0 {}
    }
}

/// Returns at once, because there is nothing to do.
pub(super) async fn serve(worker: Weak<RefCell<Worker>>) {
    if let Some(worker) = worker.upgrade() {
        worker.borrow_mut().shell.step_offload();
    }
}
