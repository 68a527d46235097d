//! Directories of the server's state: files that only this user may read, each replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The mode of each file.
const MODE: u32 = 0o600;
/// The mode of a directory that the server creates.
const DIRECTORY_MODE: u32 = 0o700;

/// Keeps other processes out of a directory until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Why a directory cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// Another process uses it.
    InUse,
    /// It cannot be written.
    Io(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Creates a directory if it is missing.
///
/// # Errors
/// If it cannot be written.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)
}

/// Locks a directory, which is created if it is missing.
///
/// # Errors
/// If it cannot be written, or another process uses it.
pub(super) fn lock(directory: &Path) -> Result<Lock, Unusable> {
    make(directory)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(directory.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(Unusable::InUse),
        Err(TryLockError::Error(error)) => Err(Unusable::Io(error)),
    }
}

/// Returns the path of the file that becomes `path` when it is complete.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Creates a file that only this user may read. What an earlier run has left behind is replaced.
///
/// # Errors
/// If the file system fails.
pub(super) fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)
}

/// Replaces a file as a whole: after a crash it has the old or the new content.
///
/// # Errors
/// If the file system fails. Then the old content stays.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_by(path, |file| file.write_all(content))
}

/// Like [`replace`], with what a function writes.
///
/// # Errors
/// If the file system fails, or the function. Then the old content stays.
pub(super) fn replace_by(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    replace_with(path, write, |file, new| {
        file.sync_all()?;
        rename(new, path)
    })
}

/// Replaces a file as a whole: after a crash of the process it has the old or the new content, after one of the machine it
/// may have none.
///
/// # Errors
/// If the file system fails. Then the old content stays.
pub(super) fn replace_soon(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(content), |_, new| fs::rename(new, path))
}

fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
    end: impl FnOnce(&File, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let new = temporary(path);
    let replaced = create(&new).and_then(|mut file| {
        write(&mut file)?;
        end(&file, &new)
    });
    replaced.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Renames a file in its directory, so that the new name outlives a crash.
///
/// # Errors
/// If the file system fails.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(to.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a directory outlive a crash.
///
/// # Errors
/// If the file system fails.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Returns what to do about an error in a directory, as the end of a sentence.
pub(super) fn advice(directory: &Path, error: &io::Error) -> String {
    match error.kind() {
        // The sandbox of the unit shows every other directory like this.
        io::ErrorKind::ReadOnlyFilesystem => format!(
            "; with systemd, set StateDirectory=turnserver in the unit; for another directory than /var/lib/turnserver, \
             create it for the user of the server, and set ReadWritePaths={} in a drop-in of the unit",
            directory.display()
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => {
            "; with systemd, set StateDirectory=turnserver in the unit; otherwise create the directory for the user of the \
             server (install -d -m 700 -o turnserver)"
                .to_owned()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space".to_owned(),
        _ => String::new(),
    }
}
