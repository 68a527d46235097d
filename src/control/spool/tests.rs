use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::record::{HEADER, MAX_RECORD};
use super::*;

const LIMIT: u64 = 64 << 20;

/// A directory of this test, deleted when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("turnserver-spool-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        Self(directory)
    }

    fn open(&self, limit: u64) -> Spool {
        Spool::open(&self.0, limit).unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let paths = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths.filter(|path| path.to_str().unwrap().ends_with(".records")).collect();
        paths.sort();
        paths
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(number: u64) -> Vec<u8> {
    format!("record {number} {}", "x".repeat((number % 50) as usize)).into_bytes()
}

/// Reads and acknowledges everything.
fn drain(spool: &mut Spool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let batch = spool.read(1000, 1 << 20).unwrap();
        if batch.records.is_empty() {
            return all;
        }
        all.extend(batch.records);
        spool.acknowledge(batch.last).unwrap();
    }
}

fn is_full(result: &Result<(), PushError>) -> bool {
    matches!(result, Err(PushError::Full))
}

#[test]
fn ten_thousand_records_come_back_once_and_in_order_over_restarts() {
    let place = Place::new();
    let mut spool = place.open(LIMIT);
    let mut read = Vec::new();
    for number in 0..10_000 {
        spool.push(&record(number)).unwrap();
        if number % 1000 == 999 {
            spool.sync().unwrap();
            let batch = spool.read(300, 1 << 20).unwrap();
            read.extend(batch.records);
            spool.acknowledge(batch.last).unwrap();
            drop(spool);
            spool = place.open(LIMIT);
        }
    }
    assert_eq!(spool.records(), 10_000 - read.len() as u64);
    read.extend(drain(&mut spool));
    assert_eq!(read, (0..10_000).map(record).collect::<Vec<_>>());
    assert_eq!((spool.records(), spool.bytes(), spool.damage()), (0, 0, Damage::default()));
    assert!(place.segments().is_empty());
    // The numbers go on.
    spool.push(b"next").unwrap();
    assert_eq!(spool.read(1, 1).unwrap(), Batch { records: vec![b"next".to_vec()], last: 10_001 });
}

#[test]
fn the_files_are_those_of_this_user_alone_and_of_one_process() {
    let place = Place::new();
    let mut spool = place.open(LIMIT);
    spool.push(b"a").unwrap();
    spool.push(b"b").unwrap();
    spool.acknowledge(1).unwrap();
    spool.keep_note("sums").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&place.0), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&place.0).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["00000000000000000001.records", "lock", "note.next", "position"]);
    assert!(matches!(Spool::open(&place.0, LIMIT), Err(Unusable::InUse)));
    drop(spool);
    assert_eq!(place.open(LIMIT).note().unwrap().unwrap(), "sums");
}

#[test]
fn a_full_spool_refuses_records_until_some_are_acknowledged() {
    let place = Place::new();
    for mut spool in [place.open(4000), Spool::in_memory(4000)] {
        let mut pushed = 0;
        while !is_full(&spool.push(&[b'x'; 80])) {
            pushed += 1;
        }
        assert_eq!((pushed, spool.records(), spool.bytes()), (40, 40, 4000));
        assert!(is_full(&spool.push(b"")));
        let batch = spool.read(5, 1 << 20).unwrap();
        spool.acknowledge(batch.last).unwrap();
        assert_eq!(spool.records(), 35);
        spool.push(&[b'y'; 80]).unwrap();
        assert_eq!(drain(&mut spool).last().unwrap(), &[b'y'; 80]);
        assert!(matches!(spool.push(&[0; MAX_RECORD + 1]), Err(PushError::Io(_))));
    }
}

#[test]
fn a_batch_is_bounded_in_records_and_bytes_but_never_empty() {
    let place = Place::new();
    for mut spool in [place.open(LIMIT), Spool::in_memory(LIMIT)] {
        for _ in 0..10 {
            spool.push(&[b'x'; 100]).unwrap();
        }
        assert_eq!(spool.read(3, 1 << 20).unwrap().records.len(), 3);
        assert_eq!(spool.read(100, 450).unwrap().records.len(), 4);
        assert_eq!(spool.read(100, 1).unwrap().records.len(), 1);
        // Reading alone removes nothing.
        assert_eq!(spool.read(100, 1 << 20).unwrap(), Batch { records: vec![vec![b'x'; 100]; 10], last: 10 });
        assert_eq!(spool.records(), 10);
    }
}

#[test]
fn after_a_crash_at_any_byte_all_complete_records_are_there_and_the_torn_one_is_counted() {
    let place = Place::new();
    let mut spool = place.open(LIMIT);
    let mut ends = vec![0];
    for number in 0..8 {
        spool.push(&record(number)).unwrap();
        ends.push(spool.bytes());
    }
    drop(spool);
    let segment = place.segments().remove(0);
    let whole = fs::read(&segment).unwrap();
    for cut in 0..=whole.len() {
        fs::write(&segment, &whole[..cut]).unwrap();
        let mut spool = place.open(LIMIT);
        let complete = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
        let is_torn = u64::from(!ends.contains(&(cut as u64)));
        assert_eq!(spool.damage(), Damage { torn: is_torn, lost: 0 }, "{cut}");
        // What comes next follows the complete ones.
        spool.push(b"next").unwrap();
        drop(spool);
        let read = place.open(LIMIT).read(100, 1 << 20).unwrap().records;
        let expected: Vec<_> = (0..complete as u64).map(record).chain([b"next".to_vec()]).collect();
        assert_eq!(read, expected, "{cut}");
    }
}

#[test]
fn the_note_that_was_synchronized_last_outlives_a_crash_of_the_machine() {
    let place = Place::new();
    let mut spool = place.open(LIMIT);
    assert_eq!(spool.note().unwrap(), None);
    for note in ["first sums", "next sums"] {
        spool.keep_note(note).unwrap();
        assert_eq!(spool.note().unwrap().unwrap(), note);
        spool.sync().unwrap();
        assert_eq!(spool.note().unwrap().unwrap(), note);
    }
    spool.keep_note("lost sums").unwrap();
    drop(spool);
    let next = place.0.join("note.next");
    let whole = fs::read(&next).unwrap();
    assert_eq!(place.open(LIMIT).note().unwrap().unwrap(), "lost sums");
    for cut in 0..whole.len() - 1 {
        fs::write(&next, &whole[..cut]).unwrap();
        assert_eq!(place.open(LIMIT).note().unwrap().unwrap(), "next sums", "{cut}");
    }
    fs::write(place.0.join("note"), "").unwrap();
    assert!(place.open(LIMIT).note().is_err());
}

#[test]
fn a_damaged_byte_costs_one_record_which_is_counted() {
    let place = Place::new();
    let mut spool = place.open(LIMIT);
    for number in 0..8 {
        spool.push(&record(number)).unwrap();
    }
    drop(spool);
    let segment = place.segments().remove(0);
    let whole = fs::read(&segment).unwrap();
    for place_of_damage in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place_of_damage] ^= 0x40;
        fs::write(&segment, &damaged).unwrap();
        let mut spool = place.open(LIMIT);
        let Damage { torn, lost } = spool.damage();
        assert_eq!(torn + lost, 1, "{place_of_damage}");
        let read = spool.read(100, 1 << 20).unwrap().records;
        let all: Vec<_> = (0..8).map(record).collect();
        assert_eq!(read.len(), 7);
        assert!(is_subsequence(&read, &all), "{place_of_damage}");
    }
}

#[test]
fn a_segment_that_is_damaged_or_gone_while_the_server_runs_is_left_out() {
    let place = Place::new();
    let mut spool = place.open(8 * 500);
    for number in 0..40 {
        spool.push(&record(number)).unwrap();
    }
    let segments = place.segments();
    assert!(segments.len() > 3, "{segments:?}");
    fs::remove_file(&segments[1]).unwrap();
    fs::write(&segments[2], vec![0xFF; 400]).unwrap();
    let left = drain(&mut spool);
    let all: Vec<_> = (0..40).map(record).collect();
    assert!(is_subsequence(&left, &all));
    assert_eq!(spool.damage().lost, 40 - left.len() as u64);
    assert_eq!((spool.records(), spool.bytes()), (0, 0));
}

#[test]
fn a_damaged_position_repeats_records_and_loses_none() {
    let place = Place::new();
    let mut spool = place.open(LIMIT);
    for number in 0..10 {
        spool.push(&record(number)).unwrap();
    }
    spool.acknowledge(4).unwrap();
    drop(spool);
    let position = fs::read(place.0.join("position")).unwrap();
    for content in [b"".as_slice(), b"9 00000000\n", b"\xff", &position] {
        fs::write(place.0.join("position"), content).unwrap();
        let first = if content == position { 4 } else { 0 };
        let all: Vec<_> = (first..10).map(record).collect();
        assert_eq!(place.open(LIMIT).read(100, 1 << 20).unwrap().records, all);
    }
}

// A file in place of the directory, or a directory in place of a file: root can write everything else.
#[test]
fn an_error_of_the_file_system_damages_nothing() {
    let place = Place::new();
    fs::write(&place.0, "").unwrap();
    assert!(matches!(Spool::open(&place.0, LIMIT), Err(Unusable::Io(_))));
    fs::remove_file(&place.0).unwrap();
    let mut spool = place.open(8 * 200);
    spool.push(&[b'a'; 150]).unwrap();
    // The next segment cannot be created.
    let next = place.0.join(format!("{:020}.records", 2));
    fs::create_dir(&next).unwrap();
    for _ in 0..2 {
        assert!(matches!(spool.push(&[b'b'; 150]), Err(PushError::Io(_))));
    }
    assert_eq!(spool.records(), 1);
    fs::remove_dir(&next).unwrap();
    spool.push(&[b'c'; 150]).unwrap();
    drop(spool);
    assert_eq!(drain(&mut place.open(LIMIT)), [vec![b'a'; 150], vec![b'c'; 150]]);
}

fn is_subsequence(part: &[Vec<u8>], all: &[Vec<u8>]) -> bool {
    let mut rest = all.iter();
    part.iter().all(|record| rest.any(|other| other == record))
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Acknowledge(usize),
    Restart,
    /// The machine loses the end of the last segment, up to so many thousandths of what was added since the last
    /// synchronization, and perhaps the last position.
    Crash(usize, bool),
    Synchronize,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_usize..300).prop_map(Step::Push),
        2 => (1_usize..30).prop_map(Step::Acknowledge),
        1 => Just(Step::Restart),
        1 => (0_usize..1000, any::<bool>()).prop_map(|(part, position)| Step::Crash(part, position)),
        1 => Just(Step::Synchronize),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_spool_is_a_queue_over_restarts_and_crashes(steps in prop::collection::vec(step(), 1..200)) {
        const SMALL: u64 = 8000;
        let place = Place::new();
        let mut spool = place.open(SMALL);
        // The records with their ends in the last segment, and whether they were synchronized.
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let mut unsynchronized = 0;
        let mut number = 0_u64;
        for step in steps {
            match step {
                Step::Push(length) => {
                    let mut record = number.to_le_bytes().to_vec();
                    record.resize(8 + length, b'x');
                    number += 1;
                    match spool.push(&record) {
                        Ok(()) => {
                            model.push_back(record);
                            unsynchronized += 1;
                        }
                        Err(PushError::Full) => prop_assert!(spool.bytes() + (HEADER + 8 + length) as u64 > SMALL),
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Acknowledge(count) => {
                    let batch = spool.read(count, 2000).unwrap();
                    prop_assert_eq!(&batch.records, &model.iter().take(batch.records.len()).cloned().collect::<Vec<_>>());
                    prop_assert_eq!(batch.records.is_empty(), model.is_empty());
                    model.drain(..batch.records.len());
                    unsynchronized = unsynchronized.min(model.len());
                    spool.acknowledge(batch.last).unwrap();
                }
                Step::Restart => {
                    drop(spool);
                    spool = place.open(SMALL);
                }
                Step::Synchronize => {
                    spool.sync().unwrap();
                    unsynchronized = 0;
                }
                Step::Crash(part, loses_position) => {
                    drop(spool);
                    if loses_position {
                        let _ = fs::remove_file(place.0.join("position"));
                    }
                    let least = model.len() - unsynchronized;
                    if let Some(last) = place.segments().last() {
                        // Not more than what was not synchronized, and not what earlier segments have.
                        let unsynced: usize = model.iter().rev().take(unsynchronized).map(|r| HEADER + r.len()).sum();
                        let bytes = fs::read(last).unwrap();
                        let lost = unsynced.min(bytes.len()) * part / 1000;
                        fs::write(last, &bytes[..bytes.len() - lost]).unwrap();
                    }
                    spool = place.open(SMALL);
                    prop_assert_eq!(spool.damage().lost, 0);
                    let read = spool.read(usize::MAX, usize::MAX).unwrap().records;
                    let before: Vec<_> = model.iter().cloned().collect();
                    // A part of the records that were acknowledged may be there again, before the others.
                    let repeated = read.iter().position(|record| Some(record) == before.first()).unwrap_or(
                        if loses_position { read.len() } else { 0 });
                    prop_assert!(loses_position || repeated == 0);
                    let kept = &read[repeated..];
                    prop_assert!(kept.len() >= least, "{} of {least}", kept.len());
                    prop_assert_eq!(kept, &before[..kept.len()]);
                    model = read.into();
                    unsynchronized = 0;
                }
            }
            prop_assert_eq!(spool.records(), model.len() as u64);
        }
        prop_assert_eq!(drain(&mut spool), model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(spool.bytes(), 0);
    }
}
