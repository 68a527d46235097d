//! The program and its maps below a directory of the BPF file system, where they outlive the process that has loaded
//! them.
//!
//! `attach`, `set_interfaces` and `detach` need root. The other functions need only the permission of the files.
//!
//! ```text
//! turnserver/           root:group 750
//! ├── links/            root:group 750   one link for each interface: removing it detaches the program
//! │   └── 2             root:root  600   its name is the index of the interface
//! ├── maps/             root:group 750   the server that uses them locks the directory
//! │   └── to_peer …     root:group 660
//! ├── namespace/        root:group 750
//! │   └── 4026531840/   root:root  700   its name is the inode of the network namespace of the interfaces
//! └── program           root:root  600
//! ```

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aya::maps::{MapData, MapError};
use aya::programs::Xdp;
use aya::programs::links::PinnedLink;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_nametoindex;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

use super::maps::{Descriptors, Maps, NotUsable};
use super::obstacle::{NotAttached, NotLoaded, is_in_user_namespace};
use super::program::{self, Program, Sizes};
use crate::net::detach_pinned_link;

/// The directory that `turnserver offload attach` uses.
pub const DIRECTORY: &str = "/sys/fs/bpf/turnserver";
/// Where the unit shows that directory to the service: systemd lets only root enter `/sys/fs/bpf`.
pub const DIRECTORY_OF_SERVICE: &str = "/run/turnserver/offload";

const MAPS: &str = "maps";
const LINKS: &str = "links";
const NAMESPACE: &str = "namespace";
const PROGRAM: &str = "program";

/// How often, and after which pauses, [`open`] tries again if another process uses the maps.
const LOCK_ATTEMPTS: usize = 5;
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// The file of the network namespace of this thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The maps of a directory, and the right to use them.
pub struct Opened {
    /// The maps.
    pub maps: Maps,
    /// Has to be kept as long as the maps are used.
    pub lock: Lock,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("lock", &self.lock).finish_non_exhaustive()
    }
}

/// Keeps other servers from the maps of a directory. Dropping it, or the end of the process, lets them in.
#[derive(Debug)]
pub struct Lock(Flock<File>);

/// An interface and whether the program is attached to it.
#[derive(Debug)]
pub struct Interface {
    /// The name of the interface.
    pub name: String,
    /// Whether it is attached, or why not.
    pub attached: Result<(), NotAttached>,
}

/// Why nothing was attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The program is not loaded.
    #[error(transparent)]
    NotLoaded(#[from] NotLoaded),
    /// The directory cannot be used.
    #[error(transparent)]
    NotPinned(#[from] DirectoryError),
}

/// Why a directory cannot be used for the program.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It is not on a BPF file system.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpf(PathBuf),
    /// Its program is attached to interfaces of another network namespace.
    #[error(transparent)]
    OtherNamespace(#[from] OtherNamespace),
    /// A file cannot be made or removed.
    #[error("cannot use {}: {error}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// A directory belongs to the interfaces of another network namespace.
#[derive(Debug, Error)]
#[error(
    "the program of {} is attached to interfaces of another network namespace: use one directory for each namespace. If \
     that namespace has gone, run `turnserver offload detach` and then `turnserver offload attach` in this one",
    .0.display()
)]
pub struct OtherNamespace(PathBuf);

/// Why the maps cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// They do not exist.
    #[error("{} does not exist: `turnserver offload attach` has not run, or has failed", .0.display())]
    Missing(PathBuf),
    /// The process may not open them.
    #[error("this process may not open {}: {error}{hint}", path.display())]
    Denied {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
        /// What the operator can do.
        hint: &'static str,
    },
    /// The kernel permits no use of maps without `CAP_BPF`, or a sandbox denies the system call.
    #[error(
        "the system call `bpf` is denied: the unit needs `SystemCallFilter=bpf`, and before Linux 5.19 also \
         `AmbientCapabilities=CAP_BPF`"
    )]
    NoSystemCall,
    /// Another process uses them.
    #[error(
        "another server uses the maps in {}: one set of maps serves one server. Stop the other server, or switch the \
         offload of one of them off (`offload.mode = \"off\"`)",
        .0.display()
    )]
    InUse(PathBuf),
    /// The program is attached to interfaces of another network namespace.
    #[error(transparent)]
    OtherNamespace(#[from] OtherNamespace),
    /// They are not the maps of this program.
    #[error(transparent)]
    NotUsable(#[from] NotUsable),
    /// Another error of the kernel.
    #[error("cannot open {}: {error}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// Loads the program with new and empty maps, attaches it to these interfaces, and detaches it from all others.
///
/// `group` is the group that may open the maps. An earlier program of the same directory is replaced; its maps lose
/// their files, so a process that has opened them fills maps that nothing reads ([`is_current`]).
///
/// # Errors
/// If the program cannot be loaded or kept, or that of the directory is attached in another network namespace. An
/// interface that does not take the program is no error.
pub fn attach(
    directory: &Path,
    group: Option<u32>,
    sizes: Sizes,
    interfaces: &[String],
) -> Result<Vec<Interface>, AttachError> {
    check_file_system(directory)?;
    let namespace = own_namespace()?;
    check_namespace(directory, namespace)?;
    let mut program = Program::load(sizes)?;
    let (maps, links) = (directory.join(MAPS), directory.join(LINKS));
    make_directory(directory, group, 0o750)?;
    // It precedes the links, so that no link is without it.
    let own = directory.join(NAMESPACE);
    make_directory(&own, group, 0o750)?;
    make_directory(&own.join(namespace.to_string()), None, 0o700)?;
    make_directory(&links, group, 0o750)?;
    remove_program(directory)?;
    make_directory(&maps, group, 0o750)?;
    program.pin_maps(&maps).map_err(|error| failed(&maps, error))?;
    for file in files(&maps)? {
        let done = chown(&file, None, group).and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o660)));
        done.map_err(|error| failed(&file, error))?;
    }
    let file = directory.join(PROGRAM);
    program.pin(&file).map_err(|error| failed(&file, error))?;
    let program = program.xdp().map_err(|error| failed(&file, io::Error::other(error)))?;
    Ok(attach_to_all(program, interfaces, &links)?)
}

/// Attaches the program of a directory to these interfaces, and detaches it from all others. The maps stay.
///
/// # Errors
/// If there is no such program, or it is attached in another network namespace. An interface that does not take the
/// program is no error.
pub fn set_interfaces(directory: &Path, interfaces: &[String]) -> Result<Vec<Interface>, DirectoryError> {
    check_namespace(directory, own_namespace()?)?;
    let file = directory.join(PROGRAM);
    let mut program = program::open(&file).map_err(|error| failed(&file, error))?;
    attach_to_all(&mut program, interfaces, &directory.join(LINKS))
}

/// Detaches the program from all interfaces and removes the directory. Does nothing if there is none.
///
/// # Errors
/// If a file cannot be removed.
pub fn detach(directory: &Path) -> Result<(), DirectoryError> {
    if !exists(directory)? {
        return Ok(());
    }
    check_file_system(directory)?;
    let links = directory.join(LINKS);
    for link in files(&links)? {
        detach_link(&link)?;
    }
    remove(&links)?;
    remove(&directory.join(NAMESPACE))?;
    remove_program(directory)?;
    remove(directory)
}

/// Returns whether there is a program to which interfaces can be added.
///
/// # Errors
/// If the directory cannot be read.
pub fn is_loaded(directory: &Path) -> Result<bool, DirectoryError> {
    exists(&directory.join(PROGRAM))
}

/// Returns whether a server uses the maps.
#[must_use]
pub fn is_in_use(directory: &Path) -> bool {
    matches!(Lock::of(&directory.join(MAPS)), Err(OpenError::InUse(_)))
}

/// Opens the maps for the only server that uses them. Needs no capability since Linux 5.19.
///
/// # Errors
/// Says what is missing, or that another server uses them.
pub fn open(directory: &Path) -> Result<Opened, OpenError> {
    let namespace = own_namespace().map_err(|error| match error {
        DirectoryError::Failed { path, error } => OpenError::Failed { path, error },
        error => OpenError::Failed { path: directory.to_owned(), error: io::Error::other(error) },
    })?;
    check_namespace(directory, namespace).map_err(|error| match error {
        DirectoryError::OtherNamespace(error) => error.into(),
        DirectoryError::Failed { path, error } => explain(path, error),
        error => OpenError::Failed { path: directory.to_owned(), error: io::Error::other(error) },
    })?;
    let mut attempts = 0..LOCK_ATTEMPTS;
    loop {
        let lock = match Lock::of(&directory.join(MAPS)) {
            // It may be a command that has asked whether a server uses them.
            Err(OpenError::InUse(_)) if attempts.next().is_some() => {
                thread::sleep(LOCK_INTERVAL);
                continue;
            }
            lock => lock?,
        };
        let maps = read(directory)?;
        // Otherwise, `attach` has made new maps in the meantime.
        if lock.is_of(&directory.join(MAPS)) {
            return Ok(Opened { maps, lock });
        }
    }
}

/// Opens the maps without a lock, to read them while a server uses them.
///
/// # Errors
/// Says what is missing.
pub fn read(directory: &Path) -> Result<Maps, OpenError> {
    let maps = directory.join(MAPS);
    let descriptors = Descriptors::NAMES.try_map(|name| open_map(&maps.join(name)))?;
    Ok(Maps::new(descriptors)?)
}

/// Returns whether maps are those of the program that is attached. After another [`attach`] they are not: the program
/// does not read them, and a server has to open the new ones.
///
/// # Errors
/// Those of the kernel. If the maps have no files, they are not current.
pub fn is_current(directory: &Path, maps: &Maps) -> Result<bool, OpenError> {
    let path = directory.join(MAPS).join(Descriptors::NAMES.to_peer);
    let pinned = match open_map(&path) {
        Err(OpenError::Missing(_)) => return Ok(false),
        pinned => pinned?,
    };
    let id = |fd: OwnedFd| MapData::from_fd(fd).and_then(|map| map.info()).map(|info| info.id());
    let open = maps.descriptors().to_peer.try_clone().map_err(MapError::from);
    let same = open.and_then(|open| Ok(id(open)? == id(pinned)?));
    same.map_err(|error| explain(path, io_error(error)))
}

/// Returns the indices of the interfaces to which the program was attached. One may have gone since.
///
/// # Errors
/// If the directory cannot be read.
pub fn interfaces(directory: &Path) -> Result<Vec<u32>, DirectoryError> {
    let index = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    Ok(files(&directory.join(LINKS))?.iter().filter_map(index).collect())
}

fn open_map(path: &Path) -> Result<OwnedFd, OpenError> {
    let opened = MapData::from_pin(path).and_then(|map| map.fd().as_fd().try_clone_to_owned().map_err(MapError::from));
    opened.map_err(|error| match io_error(error) {
        error if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => OpenError::NoSystemCall,
        error => explain(path.to_owned(), error),
    })
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        error => io::Error::other(error),
    }
}

fn explain(path: PathBuf, error: io::Error) -> OpenError {
    match error.raw_os_error() {
        Some(libc::ENOENT) => OpenError::Missing(path),
        Some(libc::EACCES) => {
            let hint = match is_in_user_namespace() {
                false => ": its user is not in the group, or may not enter a directory above",
                true => ": the group of the file is unknown in this container",
            };
            OpenError::Denied { path, error, hint }
        }
        _ => OpenError::Failed { path, error },
    }
}

impl Lock {
    /// Locks the directory of the maps. Each `attach` makes a new one, so that a server can open the new maps while it
    /// has the old ones.
    fn of(maps: &Path) -> Result<Self, OpenError> {
        let directory = File::open(maps).map_err(|error| explain(maps.to_owned(), error))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => Ok(Self(directory)),
            Err((_, Errno::EWOULDBLOCK)) => Err(OpenError::InUse(maps.to_owned())),
            Err((_, error)) => Err(OpenError::Failed { path: maps.to_owned(), error: error.into() }),
        }
    }

    fn is_of(&self, maps: &Path) -> bool {
        let locked = self.0.metadata().map(|status| status.ino());
        locked.is_ok_and(|locked| fs::metadata(maps).is_ok_and(|status| status.ino() == locked))
    }
}

/// Returns the inode of the network namespace of this thread.
fn own_namespace() -> Result<u64, DirectoryError> {
    let path = Path::new(OWN_NAMESPACE);
    fs::metadata(path).map(|status| status.ino()).map_err(|error| failed(path, error))
}

/// Checks that a directory has no program of another network namespace.
fn check_namespace(directory: &Path, namespace: u64) -> Result<(), DirectoryError> {
    let is_other = |path: &PathBuf| path.file_name().is_none_or(|name| *name != *namespace.to_string());
    match files(&directory.join(NAMESPACE))?.iter().any(is_other) {
        false => Ok(()),
        true => Err(OtherNamespace(directory.to_owned()).into()),
    }
}

fn attach_to_all(program: &mut Xdp, interfaces: &[String], links: &Path) -> Result<Vec<Interface>, DirectoryError> {
    let mut kept = BTreeSet::new();
    let attached = interfaces
        .iter()
        .map(|name| Interface { name: name.clone(), attached: attach_to(program, name, links, &mut kept) })
        .collect();
    for link in files(links)? {
        if !kept.contains(&link) {
            detach_link(&link)?;
        }
    }
    Ok(attached)
}

fn attach_to(program: &mut Xdp, name: &str, links: &Path, kept: &mut BTreeSet<PathBuf>) -> Result<(), NotAttached> {
    let index = if_nametoindex(name).map_err(|_| NotAttached::NoInterface)?;
    // The names of this file system have no dots; those of interfaces may.
    let path = links.join(index.to_string());
    if let Ok(link) = PinnedLink::from_pin(&path) {
        if program::replace(program, link).is_ok() {
            kept.insert(path);
            return Ok(());
        }
        // The interface has gone, and its index has been given to another one.
        let _ = detach_link(&path);
    }
    program::attach(program, name)?.pin(&path)?;
    kept.insert(path);
    Ok(())
}

/// Detaches the program of a link at once. Removing the file alone detaches it a moment later.
fn detach_link(path: &Path) -> Result<(), DirectoryError> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(path, error.into()))?;
    // Removing the file suffices if this fails, such as for an interface that has gone.
    let _ = detach_pinned_link(&name);
    fs::remove_file(path).map_err(|error| failed(path, error))
}

fn check_file_system(directory: &Path) -> Result<(), DirectoryError> {
    let existing = if exists(directory)? { directory } else { directory.parent().unwrap_or(directory) };
    match statfs(existing) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(DirectoryError::NotBpf(existing.to_owned())),
        Err(error) => Err(failed(existing, error.into())),
    }
}

fn exists(path: &Path) -> Result<bool, DirectoryError> {
    path.try_exists().map_err(|error| failed(path, error))
}

fn make_directory(path: &Path, group: Option<u32>, mode: u32) -> Result<(), DirectoryError> {
    let made = match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => chown(path, None, group).and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode))),
    };
    made.map_err(|error| failed(path, error))
}

/// Returns the files of a directory; none if it does not exist.
fn files(directory: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let paths = entries.map(|entries| entries.iter().map(fs::DirEntry::path).collect());
    paths.map_err(|error| failed(directory, error))
}

/// Removes the files of the maps and of the program. Links keep both.
fn remove_program(directory: &Path) -> Result<(), DirectoryError> {
    let file = directory.join(PROGRAM);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&file, error)),
        _ => remove(&directory.join(MAPS)),
    }
}

/// Removes a directory and its files, if it exists.
fn remove(directory: &Path) -> Result<(), DirectoryError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(directory, error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: io::Error) -> DirectoryError {
    DirectoryError::Failed { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_shows_the_directory_to_the_service() {
        let unit = include_str!("../../systemd/turnserver.service");
        let line = format!("BindReadOnlyPaths=-{DIRECTORY}:{DIRECTORY_OF_SERVICE}");
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
}
