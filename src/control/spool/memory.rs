//! A spool in memory.

use std::collections::VecDeque;

use super::record::HEADER;
use super::{Batch, PushError};

#[derive(Debug)]
pub(in crate::control) struct Memory {
    pub(super) limit: u64,
    records: VecDeque<Vec<u8>>,
    bytes: u64,
    /// The number of the first record.
    front: u64,
}

impl Memory {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, records: VecDeque::new(), bytes: 0, front: 1 }
    }

    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), PushError> {
        let bytes = self.bytes.saturating_add(size(record));
        if bytes > self.limit {
            return Err(PushError::Full);
        }
        self.records.push_back(record.to_vec());
        self.bytes = bytes;
        Ok(())
    }

    pub(super) fn read(&self, records: usize, bytes: usize) -> Batch {
        let mut batch = Batch { last: self.front.saturating_sub(1), ..Batch::default() };
        let mut left = bytes;
        for record in self.records.iter().take(records) {
            if !batch.records.is_empty() && record.len() > left {
                break;
            }
            left = left.saturating_sub(record.len());
            batch.records.push(record.clone());
            batch.last += 1;
        }
        batch
    }

    pub(super) fn acknowledge(&mut self, last: u64) {
        while self.front <= last
            && let Some(record) = self.records.pop_front()
        {
            self.front += 1;
            self.bytes = self.bytes.saturating_sub(size(&record));
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.records.len() as u64
    }

    pub(super) fn front(&self) -> u64 {
        self.front
    }

    pub(super) fn end(&self) -> u64 {
        self.front + self.records()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn size(record: &[u8]) -> u64 {
    (HEADER + record.len()) as u64
}
