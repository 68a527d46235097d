//! A spool in a directory: segments of records, and the number of the first record that is not acknowledged.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::record::{self, Found, HEADER, MAX_RECORD};
use super::{Batch, Damage, PushError};
use crate::control::state_directory::{self, Lock, Unusable, create, replace_soon};
use crate::file;

/// The bytes of a segment, after which the next one begins.
const SEGMENT: u64 = 1 << 20;
/// A segment is removed as a whole, so a small spool has small ones.
const SEGMENTS: u64 = 8;
/// The names of segments: the number of the first record, and this.
const SUFFIX: &str = ".records";
/// After a segment that the disk cannot read, the numbers go on at the next multiple of this, because it is not known how
/// many records it has.
const JUMP: u64 = 1 << 32;
/// Greater numbers are taken for damage.
const MAX_SEQUENCE: u64 = 1 << 60;

#[derive(Debug)]
pub(in crate::control) struct Disk {
    directory: PathBuf,
    limit: u64,
    /// In the order of their records.
    segments: VecDeque<Segment>,
    /// The last segment, if records are added to it.
    tail: Option<File>,
    /// The number of the first record that is not acknowledged, and that of the next one that is added.
    front: u64,
    next: u64,
    /// Whether a segment was created since the last synchronization.
    has_new_name: bool,
    /// Whether the note was replaced since then.
    has_new_note: bool,
    is_synced: bool,
    damage: Damage,
    _lock: Lock,
}

/// A file of records.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    /// The number of its first record.
    first: u64,
    /// Where the next record is written.
    bytes: u64,
    /// The numbers of the readable records.
    runs: Vec<RangeInclusive<u64>>,
    /// Whether the disk could not read it. It may have records all the same, so none is added.
    is_unreadable: bool,
}

impl Segment {
    fn new(path: PathBuf, first: u64) -> Self {
        Self { path, first, bytes: 0, runs: Vec::new(), is_unreadable: false }
    }

    fn last(&self) -> Option<u64> {
        self.runs.last().map(|run| *run.end())
    }

    /// Returns the number of readable records from `front` on.
    fn records(&self, front: u64) -> u64 {
        let of_run = |run: &RangeInclusive<u64>| (*run.end() + 1).saturating_sub(front.max(*run.start()));
        self.runs.iter().map(of_run).sum()
    }

    fn add(&mut self, sequence: u64) {
        match self.runs.last_mut() {
            Some(run) if run.end() + 1 == sequence => *run = *run.start()..=sequence,
            _ => self.runs.push(sequence..=sequence),
        }
    }

    /// Reads the segment. Its damaged parts are left out.
    fn read(&mut self) -> io::Result<(Vec<u8>, Vec<Found>, u64)> {
        let read = read(&self.path);
        self.is_unreadable = read.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO));
        let bytes = match read {
            Ok(bytes) => bytes,
            // What cannot be read today can hardly be read tomorrow, and must not hold up the rest.
            Err(error) if error.kind() == io::ErrorKind::NotFound || self.is_unreadable => Vec::new(),
            Err(error) => return Err(error),
        };
        let (mut found, end) = record::scan(&bytes, self.first);
        found.retain(|record| record.sequence < MAX_SEQUENCE);
        self.runs.clear();
        for record in &found {
            self.add(record.sequence);
        }
        Ok((bytes, found, end as u64))
    }
}

impl Disk {
    pub(super) fn open(directory: &Path, limit: u64) -> Result<Self, Unusable> {
        let lock = state_directory::lock(directory)?;
        let mut spool = Self {
            directory: directory.to_owned(),
            limit,
            segments: find_segments(directory)?,
            tail: None,
            front: 0,
            next: 0,
            has_new_name: false,
            has_new_note: false,
            is_synced: true,
            damage: Damage::default(),
            _lock: lock,
        };
        spool.load()?;
        // An earlier run may not have synchronized it.
        spool.has_new_note = file::read(&spool.next_note_path()).is_ok_and(|bytes| checked(&bytes).is_some());
        Ok(spool)
    }

    /// Reads all segments, and cuts off what the last one has after its last readable record.
    fn load(&mut self) -> io::Result<()> {
        let mut end_of_last = 0;
        for segment in &mut self.segments {
            let (bytes, _, end) = segment.read()?;
            segment.bytes = bytes.len() as u64;
            end_of_last = end;
        }
        let oldest = self.segments.front().map_or(1, |segment| segment.first);
        // Segments that are gone were acknowledged, even if that could not be written.
        self.front = read_position(&self.position_path()).unwrap_or(oldest).max(oldest);
        let newest = self.segments.back().map_or(1, |segment| segment.first);
        let readable = self.segments.iter().filter_map(Segment::last).max().map_or(0, |last| last + 1);
        let written = newest.max(readable);
        self.next = written.max(self.front);
        let numbers = written.saturating_sub(self.front).saturating_sub(self.unused());
        self.damage.lost = numbers.saturating_sub(self.records());
        if let Some(last) = self.segments.back_mut() {
            if last.is_unreadable {
                self.next = (self.next / JUMP + 1) * JUMP;
                self.damage.lost += 1;
            } else if last.bytes > end_of_last {
                OpenOptions::new().write(true).open(&last.path)?.set_len(end_of_last)?;
                last.bytes = end_of_last;
                self.damage.torn = 1;
            }
        }
        self.remove_acknowledged();
        Ok(())
    }

    /// Returns how many numbers from the front on were left out.
    fn unused(&self) -> u64 {
        let segments = self.segments.iter().zip(self.segments.iter().skip(1));
        let jumps = segments.filter(|(one, next)| one.first / JUMP != next.first / JUMP);
        let end = |one: &Segment| one.last().map_or(one.first, |last| last + 1).max(self.front);
        jumps.map(|(one, next)| next.first.saturating_sub(end(one))).sum()
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), PushError> {
        let size = (HEADER + record.len()) as u64;
        if self.bytes().saturating_add(size) > self.limit {
            return Err(PushError::Full);
        }
        let longest = (self.limit / SEGMENTS).min(SEGMENT);
        let is_complete = |last: &Segment| last.is_unreadable || last.bytes > 0 && last.bytes + size > longest;
        if self.segments.back().is_some_and(is_complete) {
            self.sync()?;
            self.tail = None;
            self.begin_segment()?;
        }
        if self.tail.is_none() {
            match self.segments.back() {
                Some(last) => self.tail = Some(OpenOptions::new().write(true).open(&last.path)?),
                None => self.begin_segment()?,
            }
        }
        let (Some(tail), Some(last)) = (&self.tail, self.segments.back_mut()) else {
            return Err(PushError::Io(io::ErrorKind::NotFound.into()));
        };
        let written = tail.write_all_at(&record::encode(self.next, record), last.bytes);
        // The next record is written to the same place, so a part of this one may stay if it cannot be cut off.
        written.inspect_err(|_| drop(tail.set_len(last.bytes)))?;
        last.bytes += size;
        last.add(self.next);
        self.next += 1;
        self.is_synced = false;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let path = self.directory.join(format!("{:020}{SUFFIX}", self.next));
        self.tail = Some(create(&path)?);
        self.has_new_name = true;
        self.segments.push_back(Segment::new(path, self.next));
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let Some(tail) = &self.tail
            && !self.is_synced
        {
            tail.sync_data()?;
            self.is_synced = true;
        }
        if self.has_new_note {
            File::open(self.next_note_path())?.sync_all()?;
            fs::rename(self.next_note_path(), self.note_path())?;
            (self.has_new_note, self.has_new_name) = (false, true);
        }
        if self.has_new_name {
            state_directory::sync_directory(&self.directory)?;
            self.has_new_name = false;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, records: usize, bytes: usize) -> io::Result<Batch> {
        let mut batch = Batch { last: self.front.saturating_sub(1), ..Batch::default() };
        let mut left = bytes;
        for segment in &mut self.segments {
            let before = segment.records(self.front);
            if before == 0 {
                continue;
            }
            let (content, found, _) = segment.read()?;
            self.damage.lost += before.saturating_sub(segment.records(self.front));
            for record in found.iter().filter(|record| record.sequence >= self.front) {
                let record_bytes = content.get(record.content.clone()).unwrap_or_default();
                let is_full = !batch.records.is_empty() && record_bytes.len() > left;
                if is_full || batch.records.len() >= records {
                    return Ok(batch);
                }
                left = left.saturating_sub(record_bytes.len());
                batch.records.push(record_bytes.to_vec());
                batch.last = record.sequence;
            }
        }
        if batch.records.is_empty() {
            // Nothing that is left can be read.
            self.acknowledge(self.next.saturating_sub(1))?;
        }
        Ok(batch)
    }

    pub(super) fn acknowledge(&mut self, last: u64) -> io::Result<()> {
        let front = last.saturating_add(1).min(self.next);
        if front <= self.front {
            return Ok(());
        }
        self.front = front;
        let position = with_checksum(&front.to_string());
        // If the machine loses it, records are repeated.
        let written = replace_soon(&self.position_path(), position.as_bytes());
        // A full disk gets room by this.
        self.remove_acknowledged();
        written
    }

    fn remove_acknowledged(&mut self) {
        while let Some(segment) = self.segments.front()
            && segment.records(self.front) == 0
            && self.segments.get(1).map_or(self.next, |next| next.first) <= self.front
        {
            if self.segments.len() == 1 {
                if segment.bytes == 0 {
                    return;
                }
                self.tail = None;
            }
            // If it stays, the next start removes it.
            let _ = fs::remove_file(&segment.path);
            self.segments.pop_front();
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.segments.iter().map(|segment| segment.records(self.front)).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub(super) fn front(&self) -> u64 {
        self.front
    }

    pub(super) fn end(&self) -> u64 {
        self.next
    }

    pub(super) fn damage(&self) -> Damage {
        self.damage
    }

    pub(super) fn keep_note(&mut self, note: &str) -> io::Result<()> {
        // If the machine loses it, the former one is still there.
        replace_soon(&self.next_note_path(), with_checksum(note).as_bytes())?;
        self.has_new_note = true;
        Ok(())
    }

    pub(super) fn note(&self) -> io::Result<Option<String>> {
        match file::read(&self.next_note_path()) {
            // One that is damaged was not synchronized.
            Ok(bytes) => {
                if let Some(note) = checked(&bytes) {
                    return Ok(Some(note));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match file::read(&self.note_path()) {
            Ok(bytes) => checked(&bytes).map(Some).ok_or(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn position_path(&self) -> PathBuf {
        self.directory.join("position")
    }

    fn note_path(&self) -> PathBuf {
        self.directory.join("note")
    }

    /// The path of a note until it is synchronized.
    fn next_note_path(&self) -> PathBuf {
        self.directory.join("note.next")
    }
}

fn find_segments(directory: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|first| first.parse().ok());
        if let Some(first) = first.filter(|first| *first < MAX_SEQUENCE)
            && entry.file_type()?.is_file()
        {
            segments.push(Segment::new(entry.path(), first));
        }
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments.into())
}

/// Reads a segment, or as much of a file as a segment can have.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SEGMENT + (HEADER + MAX_RECORD) as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the number of the first record that is not acknowledged; `None` if there is no such file, or it is damaged.
fn read_position(path: &Path) -> Option<u64> {
    let bytes = file::read(path).ok()?;
    checked(&bytes)?.parse().ok().filter(|number| *number < MAX_SEQUENCE)
}

fn with_checksum(text: &str) -> String {
    format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// Returns the text of a file without its checksum; `None` if it is damaged.
fn checked(bytes: &[u8]) -> Option<String> {
    let (text, sum) = str::from_utf8(bytes).ok()?.trim_end().rsplit_once(' ')?;
    (u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(text.as_bytes()))).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_over_a_segment_that_the_disk_cannot_read() {
        let directory = std::env::temp_dir().join(format!("turnserver-spool-unreadable-{}", std::process::id()));
        let mut spool = Disk::open(&directory, 1 << 20).unwrap();
        for record in [b"a", b"b"] {
            spool.push(record).unwrap();
        }
        let path = spool.segments.front().unwrap().path.clone();
        let before = fs::read(&path).unwrap();
        // To read the memory at address 0 is an input/output error.
        let unreadable = Path::new("/proc/self/mem");
        assert_eq!(read(unreadable).unwrap_err().raw_os_error(), Some(libc::EIO));
        (spool.tail, spool.segments.front_mut().unwrap().path) = (None, unreadable.to_owned());
        spool.load().unwrap();
        assert_eq!(spool.damage, Damage { torn: 0, lost: 1 });
        spool.push(b"c").unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
        drop(spool);
        let mut spool = Disk::open(&directory, 1 << 20).unwrap();
        let batch = spool.read(10, 1 << 20).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(batch, Batch { records: [b"a", b"b", b"c"].map(|record| record.to_vec()).into(), last: JUMP });
        assert_eq!(spool.damage, Damage::default());
    }
}
