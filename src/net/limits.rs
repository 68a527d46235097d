//! Resource limits of the process.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::{env, io, process};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use super::sys;

/// Raises the limit of open files to the hard limit, and returns it.
///
/// # Errors
/// Those of `getrlimit` and `setrlimit`.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Returns the hard limit of open files.
///
/// # Errors
/// Those of `getrlimit`.
pub(crate) fn hard_open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

/// Returns the present limit of open files.
///
/// # Errors
/// Those of `getrlimit`.
pub(crate) fn open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Open files that sockets of some clients do not use, so that the operator can look into a server that has reached the
/// limit of open files, and change it. Clones are the same value.
#[derive(Clone, Debug)]
pub(crate) struct SpareFiles {
    /// The number of the first spare file.
    first: Arc<AtomicI32>,
}

impl SpareFiles {
    /// Keeps `count` of `limit` open files.
    pub(crate) fn new(limit: u64, count: u64) -> Self {
        let spare = Self { first: Arc::default() };
        spare.set(limit, count);
        spare
    }

    /// Changes the value: keeps `count` of `limit` open files.
    pub(crate) fn set(&self, limit: u64, count: u64) {
        self.first.store(RawFd::try_from(limit.saturating_sub(count)).unwrap_or(RawFd::MAX), Relaxed);
    }

    /// Returns whether a client may use a file that was just opened. The number of a new file is the lowest that is
    /// free, so all files before it are open.
    pub(crate) fn permit(&self, file: &impl AsFd) -> bool {
        file.as_fd().as_raw_fd() < self.first.load(Relaxed)
    }

    /// Returns whether a client may use the next file that is opened. Opens and closes `file` once more.
    pub(crate) fn have_room(&self, file: &impl AsFd) -> bool {
        file.as_fd().try_clone_to_owned().is_ok_and(|next| self.permit(&next))
    }
}

/// Returns the error of a process that has too many open files.
pub(crate) fn too_many_open_files() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// Returns whether an error is that of a process or a system that has too many open files.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Returns the limit of address space in bytes. `None` without one.
#[must_use]
pub fn address_space() -> Option<u64> {
    getrlimit(Resource::RLIMIT_AS).ok().map(|(soft, _)| soft).filter(|limit| *limit != RLIM_INFINITY)
}

/// If the address space is limited, keeps the allocator from reserving it for each thread. Must be called before the
/// first thread starts. Otherwise the amount that remains for buffers would depend on the order of the threads.
pub fn save_address_space() {
    if address_space().is_some() {
        sys::share_arena();
    }
}

/// Returns whether `bytes` more bytes can be allocated at present.
#[must_use]
pub fn can_allocate(bytes: usize) -> bool {
    let mut memory = Vec::<u8>::new();
    let fits = memory.try_reserve_exact(bytes).is_ok();
    // The compiler may otherwise omit the allocation and assume that it succeeds.
    std::hint::black_box(memory.as_ptr());
    fits
}

/// Returns whether systemd started this process as a service. Its unit then sets the limits.
pub fn is_service() -> bool {
    static IS_SERVICE: OnceLock<bool> = OnceLock::new();
    *IS_SERVICE.get_or_init(|| {
        let [notify, exec] = ["NOTIFY_SOCKET", "SYSTEMD_EXEC_PID"].map(env::var_os);
        started_as_service(notify.as_deref(), exec.as_deref(), process::id())
    })
}

/// A service manager passes `NOTIFY_SOCKET`, or the ID of the process that it executed. A program that the service
/// starts inherits that variable, but has another ID.
fn started_as_service(notify: Option<&OsStr>, exec: Option<&OsStr>, own: u32) -> bool {
    notify.is_some() || exec.is_some_and(|id| id == OsStr::new(&own.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_recognized_by_its_environment() {
        let socket = Some(OsStr::new("/run/systemd/notify"));
        assert!(started_as_service(socket, None, 7));
        assert!(started_as_service(None, Some(OsStr::new("7")), 7));
        // A shell in a terminal that systemd started.
        assert!(!started_as_service(None, Some(OsStr::new("6")), 7));
        assert!(!started_as_service(None, None, 7));
    }

    #[test]
    fn more_than_the_address_space_cannot_be_allocated() {
        assert!(can_allocate(1 << 20));
        assert!(!can_allocate(1 << 60));
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (raised, raised));
    }
}
