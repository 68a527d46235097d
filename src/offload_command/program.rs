//! The actions of `turnserver offload`.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::unistd::{Group, geteuid};
use turnserver::config::{self, Config, Offload, OffloadInterfaces, OffloadMode};
use turnserver::control::logging;
use turnserver::offload::ipsec;
use turnserver::offload::layout::{Direction, Outcome};
use turnserver::offload::obstacle::{Driver, NotAttached};
use turnserver::offload::pinned::{self, Interface};
use turnserver::offload::program::Sizes;
use turnserver::offload::select::{self, Candidate, NotChosen};

/// The group of the service, as `systemd/turnserver.sysusers` makes it.
const GROUP: &str = "turnserver";

/// The server of another unit, because that of this unit has ended.
const IN_USE: &str = "a running server uses the program that is attached";

/// How often [`attach_later`] looks for interfaces.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why interfaces do not have the program, and their names.
#[derive(Debug, Default)]
struct NotTaken {
    reasons: BTreeMap<String, Vec<String>>,
    /// Whether one of them may take the program later.
    is_temporary: bool,
}

impl NotTaken {
    fn add(&mut self, name: &str, reason: &impl Display, is_temporary: bool) {
        self.reasons.entry(reason.to_string()).or_default().push(name.to_owned());
        self.is_temporary |= is_temporary;
    }

    /// Writes one line for each reason to standard error.
    fn write(&self) {
        let prefix = logging::warning_prefix();
        let line = |(reason, names): (&String, &Vec<String>)| {
            format!("{prefix}turnserver: not attached to {}: {reason}\n", names.join(", "))
        };
        logging::write_directly(self.reasons.iter().map(line).collect());
    }
}

/// Attaches the program as the configuration says.
pub(super) fn attach(
    directory: &Path,
    group: Option<&str>,
    is_running: bool,
    config: Option<&Path>,
) -> Result<ExitCode, String> {
    let (Offload { mode, interfaces, .. }, channels) = read(config)?;
    let group = group_id(group)?;
    if mode == OffloadMode::Off {
        if !is_running && pinned::is_in_use(directory) {
            return print(&format!("`offload.mode` is \"off\", but {IN_USE}: it stays attached"))
                .map(|()| ExitCode::SUCCESS);
        }
        pinned::detach(directory).map_err(failure)?;
        return print("`offload.mode` is \"off\": no program is attached").map(|()| ExitCode::SUCCESS);
    }
    if !is_running && pinned::is_in_use(directory) {
        return Err(format!("{IN_USE}: stop it first, or change the interfaces with --running"));
    }
    let attach = |names: &[String]| {
        check_ipsec(directory)?;
        if is_running {
            add_interfaces(directory, names)
        } else {
            pinned::attach(directory, group, Sizes::for_channels(channels), names).map_err(failure)
        }
    };
    match attach_to(directory, &interfaces, attach) {
        Ok(names) => print(&format!("the program is attached to {}", names.join(", "))).map(|()| ExitCode::SUCCESS),
        Err(message) => failed(mode, message),
    }
}

/// Attaches the program that is loaded to interfaces that become ready within this number of seconds. Reports only
/// changes and failures, because `attach` has reported the rest.
pub(super) fn attach_later(directory: &Path, seconds: u16, config: Option<&Path>) -> Result<ExitCode, String> {
    let (Offload { mode, interfaces, .. }, _) = read(config)?;
    if mode == OffloadMode::Off {
        return Ok(ExitCode::SUCCESS);
    }
    let mut tried = BTreeSet::new();
    for second in 0..=seconds {
        if second > 0 {
            thread::sleep(INTERVAL);
        }
        match attach_ready(directory, &interfaces, &mut tried) {
            Ok(true) => {}
            Ok(false) => break,
            Err(message) => return failed(mode, message),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Attaches the program to the interfaces that are ready and were not `tried`, by their indices. Returns whether others
/// may be ready later.
fn attach_ready(directory: &Path, interfaces: &OffloadInterfaces, tried: &mut BTreeSet<u32>) -> Result<bool, String> {
    // `attach` has said why, or the program has been detached since.
    if !pinned::is_loaded(directory).map_err(failure)? {
        return Ok(false);
    }
    let (mut names, NotTaken { mut is_temporary, .. }) = wanted(directory, interfaces)?;
    let mut indices = Vec::new();
    names.retain(|name| match if_nametoindex(name.as_str()) {
        Ok(index) => {
            indices.push(index);
            true
        }
        Err(_) => {
            is_temporary = true;
            false
        }
    });
    if indices.iter().all(|index| tried.contains(index)) {
        return Ok(is_temporary);
    }
    check_ipsec(directory)?;
    let before = pinned::interfaces(directory).map_err(failure)?;
    let (mut added, mut not_taken) = (Vec::new(), NotTaken::default());
    for (interface, index) in pinned::set_interfaces(directory, &names).map_err(failure)?.into_iter().zip(indices) {
        let is_first = tried.insert(index);
        match interface.attached {
            Ok(()) if !before.contains(&index) => added.push(interface.name),
            Err(reason) if is_first => not_taken.add(&interface.name, &reason, false),
            _ => {}
        }
    }
    not_taken.write();
    if !added.is_empty() {
        print(&format!("the program is attached to {}", added.join(", ")))?;
    }
    Ok(is_temporary)
}

/// Returns the exit code for an error, or the error if the configuration requires the offload.
fn failed(mode: OffloadMode, message: String) -> Result<ExitCode, String> {
    if mode != OffloadMode::Auto {
        return Err(message);
    }
    // The server works without it.
    logging::write_directly(format!("{}turnserver: {message}\n", logging::warning_prefix()));
    Ok(ExitCode::FAILURE)
}

/// Detaches the program if it would relay past IPsec policies.
fn check_ipsec(directory: &Path) -> Result<(), String> {
    if let Err(error) = ipsec::check() {
        match pinned::detach(directory) {
            // The second unit may not remove the directory itself. It is empty.
            Err(_) if matches!(pinned::is_loaded(directory), Ok(false)) => {}
            detached => detached.map_err(failure)?,
        }
        return Err(error.to_string());
    }
    Ok(())
}

/// Attaches the program to the interfaces of the configuration. Returns the names of those that have it.
fn attach_to(
    directory: &Path,
    interfaces: &OffloadInterfaces,
    attach: impl FnOnce(&[String]) -> Result<Vec<Interface>, String>,
) -> Result<Vec<String>, String> {
    let (names, mut not_taken) = wanted(directory, interfaces)?;
    // Without an interface that could take it now or later, the program need not be loaded.
    let attached = if names.is_empty() && !not_taken.is_temporary { Vec::new() } else { attach(&names)? };
    let mut taken = Vec::new();
    for interface in attached {
        match interface.attached {
            Ok(()) => taken.push(interface.name),
            Err(reason) => not_taken.add(&interface.name, &reason, matches!(reason, NotAttached::NoInterface)),
        }
    }
    not_taken.write();
    if !taken.is_empty() {
        return Ok(taken);
    }
    if not_taken.is_temporary {
        return Err("no interface has the program yet: the unit turnserver-offload adds one that is ready soon, and \
             `turnserver offload attach --running` one that is ready later"
            .to_owned());
    }
    pinned::detach(directory).map_err(failure)?;
    Err("no interface takes the program: the server relays everything itself".to_owned())
}

/// Changes the interfaces of the program that is loaded.
fn add_interfaces(directory: &Path, names: &[String]) -> Result<Vec<Interface>, String> {
    if !pinned::is_loaded(directory).map_err(failure)? {
        return Err(
            "no program is loaded whose interfaces could change: `turnserver offload attach` without --running \
                    loads it, and the server uses it after a restart"
                .to_owned(),
        );
    }
    pinned::set_interfaces(directory, names).map_err(failure)
}

/// Detaches the program, unless systemd runs the command after a failure of the service.
pub(super) fn detach(directory: &Path) -> Result<(), String> {
    match env::var("SERVICE_RESULT") {
        Ok(result) if result != "success" => {
            // The next start replaces the program without a moment in which an interface has none.
            return print(&format!(
                "the service has failed ({result}): the program stays attached, and relays nothing"
            ));
        }
        _ => {}
    }
    if env::var_os("SERVICE_RESULT").is_some() && pinned::is_in_use(directory) {
        return print(&format!("{IN_USE}: it stays attached"));
    }
    pinned::detach(directory).map_err(failure)?;
    print("no program is attached")
}

/// Shows the program.
pub(super) fn status(directory: &Path) -> Result<(), String> {
    let interfaces = pinned::interfaces(directory).map_err(failure)?;
    let mut lines = Vec::new();
    for index in &interfaces {
        lines.push(match if_indextoname(*index) {
            Ok(name) => {
                let name = name.to_string_lossy();
                let driver = Driver::of(&name).0.unwrap_or_else(|| "unknown".to_owned());
                format!("attached    {name} (index {index}, driver {driver})")
            }
            Err(_) => format!("attached    an interface that has gone (index {index})"),
        });
    }
    if interfaces.is_empty() {
        lines.push("attached    to no interface: the server relays everything itself".to_owned());
    }
    if pinned::is_loaded(directory).map_err(failure)? {
        lines.extend(maps(directory)?);
    } else {
        lines.push("loaded      no: `turnserver offload attach` loads and attaches the program".to_owned());
    }
    print(&lines.join("\n"))
}

/// Describes the maps and the outcomes that packets had.
fn maps(directory: &Path) -> Result<Vec<String>, String> {
    let mut maps = pinned::read(directory).map_err(failure)?;
    let mut lines = Vec::new();
    for (direction, name) in [(Direction::ToPeer, "to peers"), (Direction::ToClient, "to clients")] {
        let count = maps.count(direction).map_err(|error| format!("cannot read the entries {name}: {error}"))?;
        lines.push(format!("{name:<11} {count} of {} entries", maps.entries()));
    }
    lines.push(format!("counters    {}", maps.slots()));
    let outcomes = maps.read_outcomes().map_err(|error| format!("cannot read the outcomes: {error}"))?;
    let seen = Outcome::ALL.into_iter().zip(outcomes).filter(|(_, packets)| *packets > 0);
    let seen: Vec<String> = seen.map(|(outcome, packets)| format!("{} {packets}", outcome.as_str())).collect();
    lines.push(format!("packets     {}", if seen.is_empty() { "none".to_owned() } else { seen.join(", ") }));
    Ok(lines)
}

/// Reads the configuration: `[offload]` and the number of channels.
fn read(config: Option<&Path>) -> Result<(Offload, u32), String> {
    let path: Option<PathBuf> = config.map(Path::to_owned).or_else(config::default_path);
    match path {
        Some(path) => Config::load_offload(&path).map_err(|errors| errors.to_string()),
        None => {
            let default = Config::default();
            let channels = default.offload_channels();
            Ok((default.offload, channels))
        }
    }
}

/// Returns the interfaces that are to get the program, and why others are not.
fn wanted(directory: &Path, interfaces: &OffloadInterfaces) -> Result<(Vec<String>, NotTaken), String> {
    match interfaces {
        OffloadInterfaces::Given(names) => Ok((names.clone(), NotTaken::default())),
        OffloadInterfaces::Auto => {
            let candidates = select::automatic().map_err(|error| format!("cannot list the interfaces: {error}"))?;
            Ok(choose(candidates, &pinned::interfaces(directory).map_err(failure)?))
        }
    }
}

/// Chooses from all interfaces. `attached` are the indices of those that have the program.
fn choose(candidates: Vec<Candidate>, attached: &[u32]) -> (Vec<String>, NotTaken) {
    // At boot, the kernel may not have found any network card yet, and only virtual interfaces are there.
    let is_virtual = |candidate: &Candidate| matches!(candidate.verdict, Err(NotChosen::Kind { .. }));
    let mut not_taken = NotTaken { is_temporary: candidates.iter().all(is_virtual), ..NotTaken::default() };
    let mut names = Vec::new();
    for Candidate { name, index, verdict } in candidates {
        match verdict {
            Ok(()) => names.push(name),
            // It keeps the program: with some drivers, attaching takes the link, and with it the address, for a moment.
            Err(reason) if reason.is_temporary() && attached.contains(&index) => names.push(name),
            Err(reason) => not_taken.add(&name, &reason, reason.is_temporary()),
        }
    }
    (names, not_taken)
}

/// Returns the number of the group that may use the maps.
fn group_id(group: Option<&str>) -> Result<Option<u32>, String> {
    let find = |name: &str| Group::from_name(name).map_err(|error| format!("cannot read the groups: {error}"));
    let Some(group) = group else { return Ok(find(GROUP)?.map(|group| group.gid.as_raw())) };
    if let Ok(number) = group.parse() {
        return Ok(Some(number));
    }
    match find(group)? {
        Some(group) => Ok(Some(group.gid.as_raw())),
        None => Err(format!("--group: this machine has no group {group:?}")),
    }
}

/// Describes an error, and that the command needs root if it does not have it.
fn failure(error: impl Display) -> String {
    let hint = if geteuid().is_root() { "" } else { ". The command needs root" };
    format!("{error}{hint}")
}

fn print(text: &str) -> Result<(), String> {
    match writeln!(io::stdout().lock(), "{text}") {
        // A closed pipe means that the reader has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot write: {error}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: u32, verdict: Result<(), NotChosen>) -> Candidate {
        Candidate { name: format!("eth{index}"), index, verdict }
    }

    #[test]
    fn an_interface_that_is_not_ready_may_get_the_program_later() {
        for (candidates, is_temporary) in [
            (vec![], true),
            (vec![candidate(2, Err(NotChosen::NoAddress))], true),
            (vec![candidate(2, Err(NotChosen::Veth)), candidate(3, Err(NotChosen::Down))], true),
            (vec![candidate(2, Err(NotChosen::Kind { kind: "bridge".to_owned() }))], true),
            (vec![candidate(2, Err(NotChosen::Veth)), candidate(3, Err(NotChosen::Bond))], false),
        ] {
            let (names, not_taken) = choose(candidates.clone(), &[]);
            assert_eq!((names, not_taken.is_temporary), (vec![], is_temporary), "{candidates:?}");
        }
    }

    #[test]
    fn an_interface_with_the_program_keeps_it_while_it_is_not_ready() {
        let candidates = [Ok(()), Err(NotChosen::Down), Err(NotChosen::NoAddress), Err(NotChosen::Veth)];
        let candidates: Vec<_> = (2..).zip(candidates).map(|(index, verdict)| candidate(index, verdict)).collect();
        let (names, not_taken) = choose(candidates.clone(), &[2, 3, 5]);
        assert_eq!((names, not_taken.is_temporary), (vec!["eth2".to_owned(), "eth3".to_owned()], true));
        let (names, not_taken) = choose(candidates, &[2, 3, 4]);
        assert_eq!((names.len(), not_taken.is_temporary), (3, false));
    }
}
