//! The configuration of a node of a fleet.

use std::path::Path;

use turnserver::auth::KeyHash;

use crate::cluster;
use crate::support::{REALM, SECRET};

/// The key of an application.
pub(crate) const KEY: &str = "a key of an application for tests";

/// A node, on an address of its own.
pub(crate) struct Node<'n> {
    pub(crate) name: &'n str,
    pub(crate) address: &'n str,
    /// The peers that it allows: addresses of this machine.
    pub(crate) peers: &'n [String],
    /// The state directory, which is made.
    pub(crate) state: &'n Path,
    /// Further keys of `[fleet]`.
    pub(crate) keys: &'n str,
    /// Further tables.
    pub(crate) more: &'n str,
}

impl Node<'_> {
    /// Returns its configuration.
    pub(crate) fn config(&self) -> String {
        let Self { name, address, peers, state, keys, more } = self;
        std::fs::create_dir_all(state).unwrap();
        let (hash, servers) = (KeyHash::of(KEY.as_bytes()).to_hex(), cluster::servers());
        format!(
            "node = {name:?}\nstate-directory = {state:?}\nrealm = {REALM:?}\n\
             workers = 1\n[listen]\nudp = [\"{address}:3478\"]\ntcp = []\n[relay]\naddresses = [\"{address}\"]\n\
             ports = \"20000-23999\"\n[auth]\nsecrets = [{SECRET:?}]\n[peers]\nallow = {peers:?}\n\
             [log]\nformat = \"json\"\n[offload]\nmode = \"off\"\n[http]\nlisten = [\"{address}:9641\"]\n\
             [[http.keys]]\nname = \"app\"\nsha256 = \"{hash}\"\n[fleet]\nservers = {servers}\n{keys}\n{more}\n"
        )
    }
}
