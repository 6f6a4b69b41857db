//! Figures of the outbox, which its thread keeps up to date and everybody reads.

use super::settle::Settled;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Figures that the writer keeps up to date, readable without asking it.
#[derive(Debug, Default)]
pub struct OutboxStats {
    pub(super) bytes: AtomicU64,
    pub(super) log: AtomicU64,
    pub(super) log_is_long: AtomicBool,
    pub(super) log_held_by: Mutex<Vec<i32>>,
    pub(super) missing: AtomicU64,
    pub(super) rounds: AtomicU64,
    pub(super) ingested: AtomicU64,
    pub(super) external_commits: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicU64,
}

/// Events that have come and gone since the outbox was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throughput {
    /// Stored, duplicates aside.
    pub ingested: u64,
    /// Accepted by the receiver.
    pub delivered: u64,
    /// Refused by the receiver, or such that no request can be made of them.
    pub failed: u64,
}

impl OutboxStats {
    /// Bytes of the database in use, free pages aside.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Bytes of the write-ahead log.
    pub fn log(&self) -> u64 {
        self.log.load(Relaxed)
    }

    /// Whether the write-ahead log is to be copied, for which nobody may keep reading what it was before.
    pub(super) fn log_is_long(&self) -> bool {
        self.log_is_long.load(Relaxed)
    }

    /// Bytes that are to stay free on the disk: those of a reserve file that was given up. The write-ahead log needs none to
    /// be copied.
    pub fn reserve(&self) -> u64 {
        self.missing.load(Relaxed)
    }

    /// Grows when a commit of another process is noticed: what was read before may have been changed by it.
    pub fn external_commits(&self) -> u64 {
        self.external_commits.load(Relaxed)
    }

    /// The processes that keep a log from being emptied that has grown over its limit.
    pub fn log_held_by(&self) -> Vec<i32> {
        self.log_held_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Grows with every round of the writer's loop: a writer that hangs stands still.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Relaxed)
    }

    /// So many commits of others have been noticed.
    pub(super) fn notice(&self, external_commits: u64) -> u64 {
        self.external_commits.store(external_commits, Relaxed);
        external_commits
    }

    /// Counts what has been settled.
    pub(super) fn settled(&self, rows: &[(i64, Settled)]) {
        for (_, settled) in rows {
            match settled {
                Settled::Delivered => self.delivered.fetch_add(1, Relaxed),
                Settled::Failed(_) => self.failed.fetch_add(1, Relaxed),
                Settled::Skipped(_) | Settled::Discarded => continue,
            };
        }
    }

    /// What has come and gone.
    pub fn throughput(&self) -> Throughput {
        Throughput {
            ingested: self.ingested.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}
