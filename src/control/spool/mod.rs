//! A bounded queue of records that outlives the process: events that wait for their receiver.
//!
//! After a crash, records may be read again, but none is lost or in another order. Without a directory, the queue is in
//! memory.

mod disk;
mod memory;
mod record;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use super::state_directory::{self, Unusable};
use crate::setting::STATE_DIRECTORY;
use disk::Disk;
use memory::Memory;

/// The queue.
#[derive(Debug)]
pub(super) enum Spool {
    /// In a directory that no other process uses.
    Disk(Disk),
    /// In memory, until the process ends.
    Memory(Memory),
}

/// Why a record was not added. Then the spool is as before.
#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    /// There is no room for it.
    #[error("the spool is full")]
    Full,
    /// The file system fails.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Records from the front of the queue, oldest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) records: Vec<Vec<u8>>,
    /// Acknowledges these records and all before them.
    pub(super) last: u64,
}

/// What could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Records whose writing a crash has interrupted. They were cut off.
    pub(super) torn: u64,
    /// Records that are damaged or missing.
    pub(super) lost: u64,
}

impl Spool {
    /// Opens the spool in a directory, which is created if it is missing. Its files have at most `limit` bytes.
    ///
    /// # Errors
    /// If it cannot be read and written, or another process uses it.
    pub(super) fn open(directory: &Path, limit: u64) -> Result<Self, Unusable> {
        Ok(Self::Disk(Disk::open(directory, limit)?))
    }

    /// Opens the spool in a directory. Without one, or if it cannot be used, the spool is in memory; in the latter case, the
    /// text says why, and what to do.
    pub(super) fn open_or_in_memory(directory: Option<&Path>, limit: u64) -> (Self, Option<String>) {
        let Some(directory) = directory else { return (Self::in_memory(limit), None) };
        let why = match Self::open(directory, limit) {
            Ok(spool) => return (spool, None),
            Err(Unusable::InUse) => {
                format!("another server uses {}: set another `{STATE_DIRECTORY}`", directory.display())
            }
            Err(Unusable::Io(error)) => {
                let advice = state_directory::advice(directory, &error);
                format!("{} cannot be written (`{STATE_DIRECTORY}`): {error}{advice}", directory.display())
            }
        };
        (Self::in_memory(limit), Some(why))
    }

    /// Creates a spool of at most `limit` bytes in memory.
    pub(super) fn in_memory(limit: u64) -> Self {
        Self::Memory(Memory::new(limit))
    }

    /// Whether the records outlive the process.
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    /// Changes the limit. What exceeds it stays.
    pub(super) fn set_limit(&mut self, limit: u64) {
        match self {
            Self::Disk(disk) => disk.set_limit(limit),
            Self::Memory(memory) => memory.limit = limit,
        }
    }

    /// Adds a record at the end. It outlives a crash of the process at once, and one of the machine after [`Self::sync`].
    ///
    /// # Errors
    /// If there is no room for it, or the file system fails. Then the spool is as before.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), PushError> {
        if record.len() > record::MAX_RECORD {
            return Err(PushError::Io(io::ErrorKind::InvalidInput.into()));
        }
        match self {
            Self::Disk(disk) => disk.push(record),
            Self::Memory(memory) => memory.push(record),
        }
    }

    /// Makes the records outlive a crash of the machine.
    ///
    /// # Errors
    /// If the file system fails.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match self {
            Self::Disk(disk) => disk.sync(),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Returns the oldest records: at most `records`, with at most `bytes` of content, but at least one if there is one.
    ///
    /// # Errors
    /// If the file system fails in a way that may pass. Damaged records are left out and counted.
    pub(super) fn read(&mut self, records: usize, bytes: usize) -> io::Result<Batch> {
        match self {
            Self::Disk(disk) => disk.read(records, bytes),
            Self::Memory(memory) => Ok(memory.read(records, bytes)),
        }
    }

    /// Removes the records up to `last`.
    ///
    /// # Errors
    /// If the file system fails. They are removed all the same, but may be there again after a restart.
    pub(super) fn acknowledge(&mut self, last: u64) -> io::Result<()> {
        match self {
            Self::Disk(disk) => disk.acknowledge(last),
            Self::Memory(memory) => {
                memory.acknowledge(last);
                Ok(())
            }
        }
    }

    /// Keeps a text beside the queue. It replaces the former one as a whole, and outlives crashes as records do.
    ///
    /// # Errors
    /// If the file system fails. Then the former one stays.
    pub(super) fn keep_note(&mut self, note: &str) -> io::Result<()> {
        match self {
            Self::Disk(disk) => disk.keep_note(note),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Returns the text that was kept beside the queue.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn note(&self) -> io::Result<Option<String>> {
        match self {
            Self::Disk(disk) => disk.note(),
            Self::Memory(_) => Ok(None),
        }
    }

    /// Returns the number of records in the queue.
    pub(super) fn records(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.records(),
            Self::Memory(memory) => memory.records(),
        }
    }

    /// Returns the number of the first record. Each further one has a greater number.
    pub(super) fn front(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.front(),
            Self::Memory(memory) => memory.front(),
        }
    }

    /// Returns the number of the record that is added next.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.end(),
            Self::Memory(memory) => memory.end(),
        }
    }

    /// Returns the bytes that count towards the limit.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.bytes(),
            Self::Memory(memory) => memory.bytes(),
        }
    }

    /// Returns what could not be read since the spool was opened.
    pub(super) fn damage(&self) -> Damage {
        match self {
            Self::Disk(disk) => disk.damage(),
            Self::Memory(_) => Damage::default(),
        }
    }
}
