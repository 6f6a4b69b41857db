//! Figures about the outbox, which the writer's thread keeps up to date and everybody can read without asking it.

use super::counters::ByteCounts;
use super::row::Settled;
use crate::clock::Timestamp;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Figures about an open outbox.
#[derive(Debug, Default)]
pub struct OutboxStats {
    pub(super) bytes: AtomicU64,
    pub(super) wal_bytes: AtomicU64,
    pub(super) wal_is_long: AtomicBool,
    pub(super) wal_held_by: Mutex<Vec<i32>>,
    pub(super) missing_reserve: AtomicU64,
    pub(super) rounds: AtomicU64,
    pub(super) ingested: AtomicU64,
    counted: Mutex<ByteCounts>,
    /// In milliseconds, as a [`Timestamp`].
    pub(super) retention_time: AtomicI64,
    delivered: AtomicU64,
    failed: AtomicU64,
}

/// Events that were stored and settled since the outbox was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throughput {
    /// Events that were stored, without duplicates.
    pub ingested: u64,
    /// Events that the receiver accepted.
    pub delivered: u64,
    /// Events that the receiver refused, or of which no request can be made.
    pub failed: u64,
}

impl OutboxStats {
    /// Bytes of the database in use, free pages apart.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// The bytes of disk of pending and failed events, which `outbox.max_bytes` limits.
    pub fn needed_bytes(&self) -> u64 {
        self.counted().needed()
    }

    /// Bytes of the write-ahead log.
    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.load(Relaxed)
    }

    /// Whether the write-ahead log is to be copied; a reader that keeps its snapshot prevents that.
    pub(super) fn wal_is_long(&self) -> bool {
        self.wal_is_long.load(Relaxed)
    }

    /// The processes that keep the write-ahead log from being emptied, once it has grown over its limit or they have done so for
    /// long.
    pub fn wal_held_by(&self) -> Vec<i32> {
        self.wal_held_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that must stay free on the disk so that a released reserve file can be created again.
    pub fn missing_reserve(&self) -> u64 {
        self.missing_reserve.load(Relaxed)
    }

    /// The time by which what is kept expires: the wall clock's, except that it passes no faster than time really does. It
    /// is a few seconds old.
    pub fn retention_time(&self) -> Timestamp {
        Timestamp(self.retention_time.load(Relaxed))
    }

    /// The number of rounds of the writer's loop, by which a writer that hangs is noticed.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Relaxed)
    }

    /// The bytes of disk that the waiting events of one owner take, a uid: about as many as the database has grown by them.
    pub fn queued_bytes(&self, owner: u32) -> u64 {
        self.counted().of(owner)
    }

    /// Whether events of other owners than this one, a uid, have come to the outbox as well.
    pub fn has_other_owner(&self, owner: u32) -> bool {
        self.counted().has_other(owner)
    }

    fn counted(&self) -> MutexGuard<'_, ByteCounts> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_counted(&self, bytes: &ByteCounts) {
        let mut known = self.counted();
        if *known != *bytes {
            known.clone_from(bytes);
        }
    }

    pub(super) fn count_settled(&self, rows: &[(i64, Settled)]) {
        for (_, settled) in rows {
            match settled {
                Settled::Delivered => self.delivered.fetch_add(1, Relaxed),
                Settled::Failed(_) => self.failed.fetch_add(1, Relaxed),
                Settled::Skipped(_) | Settled::Discarded => continue,
            };
        }
    }

    /// Events that were stored and settled since the outbox was opened.
    pub fn throughput(&self) -> Throughput {
        Throughput {
            ingested: self.ingested.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}
