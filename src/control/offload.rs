//! The XDP program that relays channels in the kernel: whether it is used, on which interfaces, and what it has done.
//!
//! `turnserver offload attach` usually has loaded and attached it before the start, and this process only opens its
//! maps. With `mode = "require"`, this process loads and attaches it if nobody has. It does not with `auto`, because
//! attaching may interrupt the link of an interface for a moment.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use serde_json::{Map, Value, json};

use crate::config::{Config, OffloadInterfaces, OffloadMode};
use crate::offload::ipsec;
use crate::offload::layout::Outcome;
use crate::offload::maps::Maps;
use crate::offload::next_hop::{self, Desks, Watcher};
use crate::offload::obstacle::Driver;
use crate::offload::pinned::{self, Lock, Opened};
use crate::offload::program::{Attachment, Program, Sizes};
use crate::offload::select;
use crate::worker::{OFFLOAD_REASONS, OffloadBlocks, OffloadPlan, OffloadTotals};

/// The open files of the maps: in each worker that has them, and once more in the process.
const FILES_OF_MAPS: usize = 14;

/// The other open files: the netlink sockets and the runtime of the thread that watches next hops, and the lock.
const OTHER_FILES: usize = 8;

/// The largest number of workers that have entries, because a lease has a number of one byte.
const MOST_WORKERS: usize = 256;

/// What is missing if the program is loaded and not attached.
const UNATTACHED: &str = "no interface has the XDP program yet. The unit turnserver-offload attaches it to those of \
                          `offload.interfaces` that are ready soon, and `turnserver offload attach --running` to \
                          those that are ready later";

/// What the operator can do if `turnserver offload attach` or `detach` has run since the start.
const REPLACED: &str = "the XDP program has been detached or replaced since the start, so this process relays all data \
                        itself: restart the server to use the present program";

/// The offload of this run.
#[derive(Debug)]
pub(super) struct Offload {
    mode: OffloadMode,
    /// `Err`: why there is none.
    active: Result<Active, String>,
}

#[derive(Debug)]
struct Active {
    maps: Mutex<Maps>,
    /// The directory with the links of the program; `None` if this process has attached it.
    directory: Option<PathBuf>,
    interfaces: Mutex<Interfaces>,
    /// The largest number of channels.
    channels: u32,
    /// The number of workers that have maps.
    workers: usize,
    /// The program stays attached while these exist.
    attachments: Vec<Attachment>,
    /// No other server uses the maps while this exists.
    _lock: Option<Lock>,
}

/// The interfaces of the configuration.
#[derive(Clone, Debug, Default)]
struct Interfaces {
    /// The indices of those that have the program.
    attached: Arc<BTreeSet<u32>>,
    /// Those that have it not, and why.
    others: Vec<(String, String)>,
}

/// What the workers need.
#[derive(Debug, Default)]
pub(super) struct Started {
    /// One for each worker, or none.
    pub(super) plans: Vec<OffloadPlan>,
    pub(super) interfaces: Arc<BTreeSet<u32>>,
}

impl Offload {
    /// Begins to use the program. Its maps are empty then.
    ///
    /// # Errors
    /// Why it cannot be used, if the configuration requires it.
    pub(super) fn start(config: &Config, workers: usize) -> Result<(Self, Started), String> {
        let mode = config.offload.mode;
        if mode == OffloadMode::Off {
            return Ok((Self { mode, active: Err("`offload.mode` is \"off\"".to_owned()) }, Started::default()));
        }
        match Active::start(config, workers) {
            Ok((active, started)) => {
                active.log();
                Ok((Self { mode, active: Ok(active) }, started))
            }
            Err(why) if mode == OffloadMode::Require => Err(why),
            Err(why) => {
                tracing::info!(event = "offload-unused", "this process relays all data itself: {why}");
                Ok((Self { mode, active: Err(why) }, Started::default()))
            }
        }
    }

    /// Reads again which interfaces have the program. Returns their indices if they have changed.
    pub(super) fn follow_interfaces(&self) -> Option<Arc<BTreeSet<u32>>> {
        self.active.as_ref().ok()?.follow_interfaces()
    }

    /// Returns the number of open files that it uses.
    pub(super) fn open_files(&self) -> u64 {
        let used = |active: &Active| (active.workers + 1) * FILES_OF_MAPS + OTHER_FILES + active.attachments.len();
        self.active.as_ref().map_or(0, used) as u64
    }

    /// Describes the offload.
    pub(super) fn show(&self, totals: &OffloadTotals) -> Value {
        let by_direction = |[to_peers, to_clients]: [u64; 2]| json!({ "to_peers": to_peers, "to_clients": to_clients });
        let without: Map<String, Value> = OFFLOAD_REASONS
            .iter()
            .zip(totals.without)
            .filter(|(_, count)| *count > 0)
            .map(|(label, count)| ((*label).to_owned(), count.into()))
            .collect();
        let mut shown = json!({
            "mode": self.mode.as_str(),
            "active": self.active.is_ok(),
            "why_not": self.active.as_ref().err(),
            "entries": by_direction(totals.entries),
            "packets": by_direction(totals.packets),
            "bytes": by_direction(totals.bytes),
            "in_user_space": without,
        });
        if let (Ok(active), Some(shown)) = (&self.active, shown.as_object_mut()) {
            active.show(shown);
        }
        shown
    }

    /// Returns how many packets with an entry had each outcome.
    pub(super) fn outcomes(&self) -> Vec<(&'static str, u64)> {
        let counted = self.active.as_ref().ok().and_then(|active| active.outcomes().ok());
        counted.unwrap_or_else(|| Outcome::ALL.iter().map(|outcome| (outcome.as_str(), 0)).collect())
    }

    /// Returns the names of the interfaces with the program, and their drivers.
    pub(super) fn interfaces(&self) -> Vec<(String, String)> {
        let Ok(active) = &self.active else { return Vec::new() };
        let described = |index: &u32| {
            let name = name_of(*index);
            let driver = driver_of(&name).unwrap_or_default();
            (name, driver)
        };
        active.interfaces().attached.iter().map(described).collect()
    }
}

impl Active {
    fn start(config: &Config, workers: usize) -> Result<(Self, Started), String> {
        let (mut maps, lock, directory, interfaces, attachments) = match open() {
            Ok((Opened { maps, lock }, directory)) => {
                let attached = pinned::interfaces(&directory).map_err(|error| error.to_string())?;
                let interfaces = Interfaces { attached: Arc::new(attached.into_iter().collect()), others: Vec::new() };
                (maps, Some(lock), Some(directory), interfaces, Vec::new())
            }
            Err(missing) if config.offload.mode == OffloadMode::Require => {
                let (maps, interfaces, attachments) =
                    attach(config).map_err(|error| format!("{error}; and {missing}"))?;
                (maps, None, None, interfaces, attachments)
            }
            Err(missing) => return Err(missing),
        };
        let failed = |error: io::Error| format!("the maps of the XDP program cannot be used: {error}");
        maps.clear().map_err(failed)?;
        let count = workers.min(MOST_WORKERS);
        let (askers, desks) = next_hop::desks(u16::try_from(count).unwrap_or(u16::MAX));
        let blocks = Arc::new(OffloadBlocks::new(maps.slots()));
        let mut plans = Vec::with_capacity(count);
        for (worker, asker) in (0..=u8::MAX).zip(askers) {
            let maps = maps.try_clone().map_err(failed)?;
            plans.push(OffloadPlan { worker, maps, blocks: Arc::clone(&blocks), asker });
        }
        watch(desks).map_err(|error| format!("routes and neighbours cannot be watched: {error}"))?;
        let channels = maps.entries().min(maps.slots() / 2);
        let started = Started { plans, interfaces: Arc::clone(&interfaces.attached) };
        let interfaces = Mutex::new(interfaces);
        let maps = Mutex::new(maps);
        let active = Self { maps, directory, interfaces, channels, workers: count, attachments, _lock: lock };
        Ok((active, started))
    }

    fn log(&self) {
        let Interfaces { attached, others } = self.interfaces();
        if attached.is_empty() {
            tracing::info!(event = "offload-waiting", "this process relays all data itself: {UNATTACHED}");
        } else {
            tracing::info!(
                event = "offload-started",
                interfaces = names(&attached),
                channels = self.channels,
                "the kernel relays channels between UDP clients and UDP peers: `turnserver ctl offload` shows which"
            );
        }
        for (interface, why) in others {
            tracing::warn!(event = "offload-not-attached", interface, "the XDP program is not attached: {why}");
        }
    }

    fn interfaces(&self) -> Interfaces {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn follow_interfaces(&self) -> Option<Arc<BTreeSet<u32>>> {
        let attached = match pinned::interfaces(self.directory.as_ref()?) {
            Ok(_) if self.is_replaced() => BTreeSet::new(),
            Ok(attached) => attached.into_iter().collect(),
            Err(error) => {
                tracing::debug!(event = "offload-interfaces-unknown", %error, "the interfaces stay as they were");
                return None;
            }
        };
        let mut interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        if attached == *interfaces.attached {
            return None;
        }
        if self.is_replaced() {
            tracing::warn!(event = "offload-replaced", "{REPLACED}");
        } else {
            let effect =
                if attached.is_empty() { UNATTACHED } else { "the kernel relays channels on these interfaces" };
            let interfaces = names(&attached);
            tracing::info!(event = "offload-interfaces-changed", interfaces, "the interfaces have changed: {effect}");
        }
        interfaces.attached = Arc::new(attached);
        Some(Arc::clone(&interfaces.attached))
    }

    /// Whether the maps are no longer those of the attached program.
    fn is_replaced(&self) -> bool {
        let Some(directory) = &self.directory else { return false };
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        // If it is not known, the entries are harmless: at worst nothing reads them.
        matches!(pinned::is_current(directory, &maps), Ok(false))
    }

    fn outcomes(&self) -> io::Result<Vec<(&'static str, u64)>> {
        let outcomes = self.maps.lock().unwrap_or_else(PoisonError::into_inner).read_outcomes()?;
        Ok(Outcome::ALL.iter().map(|outcome| outcome.as_str()).zip(outcomes).collect())
    }

    fn show(&self, shown: &mut Map<String, Value>) {
        let Interfaces { attached, others } = self.interfaces();
        let attached = attached.iter().map(|index| {
            let name = name_of(*index);
            let driver = driver_of(&name);
            json!({ "name": name, "index": index, "driver": driver, "attached": true, "why_not": null })
        });
        let others = others.iter().map(|(name, why)| {
            json!({ "name": name, "index": null, "driver": driver_of(name), "attached": false, "why_not": why })
        });
        shown.insert("interfaces".to_owned(), attached.chain(others).collect());
        shown.insert("channels".to_owned(), self.channels.into());
        if self.is_replaced() {
            shown.insert("active".to_owned(), false.into());
            shown.insert("why_not".to_owned(), REPLACED.into());
        }
        shown.insert("directory".to_owned(), self.directory.as_ref().map(|path| path.display().to_string()).into());
        let outcomes = self.outcomes().unwrap_or_default().into_iter().filter(|(_, packets)| *packets > 0);
        let outcomes = outcomes.map(|(label, packets)| (label.to_owned(), Value::from(packets))).collect();
        shown.insert("outcomes".to_owned(), Value::Object(outcomes));
    }
}

/// Opens the maps of a program that is attached already.
fn open() -> Result<(Opened, PathBuf), String> {
    let of_service = Path::new(pinned::DIRECTORY_OF_SERVICE);
    let directory = if of_service.join("maps").exists() { of_service } else { Path::new(pinned::DIRECTORY) };
    let opened = pinned::open(directory).map_err(|error| error.to_string())?;
    Ok((opened, directory.to_owned()))
}

/// Loads the program, and attaches it to the interfaces of the configuration until this process ends.
fn attach(config: &Config) -> Result<(Maps, Interfaces, Vec<Attachment>), String> {
    ipsec::check().map_err(|error| error.to_string())?;
    let mut program =
        Program::load(Sizes::for_channels(config.offload_channels())).map_err(|error| error.to_string())?;
    let (mut attached, mut others, mut attachments) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (name, selected) in selected(&config.offload.interfaces)? {
        let index = nix::net::if_::if_nametoindex(name.as_str());
        match selected.and_then(|()| program.attach(&name).map_err(|error| error.to_string())).map(|done| (done, index))
        {
            Ok((attachment, Ok(index))) => {
                attached.insert(index);
                attachments.push(attachment);
            }
            Ok((_, Err(error))) => others.push((name, error.to_string())),
            Err(why) => others.push((name, why)),
        }
    }
    if attached.is_empty() {
        let others: Vec<String> = others.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        return Err(format!("the XDP program is attached to no interface ({})", others.join("; ")));
    }
    let maps = program.descriptors().map_err(|error| error.to_string())?;
    let maps = Maps::new(maps).map_err(|error| error.to_string())?;
    Ok((maps, Interfaces { attached: Arc::new(attached), others }, attachments))
}

/// The name of an interface, and why it is not selected.
type Selected = (String, Result<(), String>);

/// Returns the interfaces that the configuration names, or all with a verdict.
fn selected(interfaces: &OffloadInterfaces) -> Result<Vec<Selected>, String> {
    match interfaces {
        OffloadInterfaces::Given(names) => Ok(names.iter().map(|name| (name.clone(), Ok(()))).collect()),
        OffloadInterfaces::Auto => {
            let candidates = select::automatic().map_err(|error| format!("the interfaces cannot be read: {error}"))?;
            let verdict =
                |candidate: select::Candidate| (candidate.name, candidate.verdict.map_err(|why| why.to_string()));
            Ok(candidates.into_iter().map(verdict).collect())
        }
    }
}

/// Watches next hops in a thread of its own, until the workers have ended.
fn watch(desks: Desks) -> io::Result<()> {
    let (sender, opened) = mpsc::sync_channel(1);
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let watcher = runtime.and_then(|runtime| {
            let entered = runtime.enter();
            let watcher = Watcher::open()?;
            drop(entered);
            Ok((runtime, watcher))
        });
        // The receiver waits for it.
        match watcher {
            Ok((runtime, watcher)) => {
                let _ = sender.send(Ok(()));
                runtime.block_on(desks.serve(watcher, |error| {
                    tracing::warn!(
                        event = "offload-unwatched",
                        %error,
                        "routes and neighbours cannot be watched, so this process relays all data itself until they can"
                    );
                }));
            }
            Err(error) => drop(sender.send(Err(error))),
        }
    };
    thread::Builder::new().name("next-hops".to_owned()).spawn(serve)?;
    opened.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))
}

fn names(indices: &BTreeSet<u32>) -> String {
    indices.iter().map(|index| name_of(*index)).collect::<Vec<_>>().join(", ")
}

fn name_of(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index);
    name.map_or_else(|_| format!("(index {index})"), |name| name.to_string_lossy().into_owned())
}

fn driver_of(interface: &str) -> Option<String> {
    Driver::of(interface).0
}
