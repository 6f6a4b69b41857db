//! The write-ahead log is kept short: copied into the database amid the work, and emptied when there is little room or
//! nothing else to do. SQLite's own checkpoints are off, because a commit does not report their errors.

use super::OutboxError;
use super::lock::Lock;
use super::stats::OutboxStats;
use super::store::Store;
use crate::clock::Timestamp;
use crate::config;
use crate::disk::{self, DiskSpace};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Pages of the write-ahead log (16 MiB) after which it is copied into the database: enough to keep copying rare under
/// load, and a log that is small compared with the queue.
const MAX_PAGES: u64 = 4_096;
/// A log larger than this has, or had, a reader that prevents the copying. It is emptied as soon as possible.
const MAX_BYTES: u64 = 64 << 20;
/// A log that readers have kept for so long still has what was deleted before: half a minute after an event's delivery
/// nothing of it is to be left in any file.
const MAX_HELD: Duration = Duration::from_secs(20);

/// The upkeep of the write-ahead log.
pub(super) struct WalKeeper {
    lock: Arc<Lock>,
    stats: Arc<OutboxStats>,
    /// Whether all commits are in the database, and the log has nothing but its mark.
    is_empty: bool,
    /// Free bytes of the disk at the last maintenance.
    free: u64,
}

impl WalKeeper {
    pub(super) fn new(db: &Store, lock: Arc<Lock>, stats: Arc<OutboxStats>) -> WalKeeper {
        WalKeeper { lock, stats, is_empty: false, free: free_bytes(disk::space_of(&db.path)) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Notes that something was committed.
    pub(super) fn set_used(&mut self) {
        self.is_empty = false;
    }

    /// Keeps the lock where others look for it: see [`Lock::retake`].
    pub(super) fn retake_lock(&self) -> Result<bool, OutboxError> {
        self.lock.retake()
    }

    /// Confirms the last commit, see [`Lock::confirm_commit`].
    pub(super) fn confirm_commit(&self) -> Result<(), OutboxError> {
        self.lock.confirm_commit()
    }

    /// Free bytes of the disk at the last maintenance.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Reads how much room the disk has; `None`: that cannot be read.
    pub(super) fn measure_disk(&mut self, db: &Store) -> Option<DiskSpace> {
        let disk = disk::space_of(&db.path);
        self.free = free_bytes(disk);
        disk
    }

    /// Copies the log after a commit if it is long. Returns `true` if the log is to be emptied instead: it is over its
    /// limit, or takes up room that is needed.
    pub(super) fn copy_if_long(&mut self, db: &Store) -> Result<bool, OutboxError> {
        let bytes = self.stats.wal_bytes();
        let is_long = db.wal_pages() > MAX_PAGES;
        // The disk is asked again only where there was little room at the last maintenance.
        let needs_room = bytes > self.free / 4 && bytes > free_bytes(disk::space_of(&db.path));
        let is_too_large = bytes > MAX_BYTES || needs_room;
        self.stats.wal_is_long.store(is_long || is_too_large, Relaxed);
        if is_long && !is_too_large {
            db.copy_wal()?;
        }
        Ok(is_too_large)
    }

    /// Empties the log, unless a reader still needs it after that time.
    pub(super) fn empty(&mut self, db: &Store, timeout: Duration) -> Result<(), OutboxError> {
        self.is_empty = db.checkpoint(timeout)?;
        Ok(())
    }

    /// Copies the log into the database and ends the session, unless a reader still needs the log after that time.
    pub(super) fn close(&mut self, db: &Store, now: Timestamp, timeout: Duration) -> Result<(), OutboxError> {
        // All but the last mark is copied first: the end must not be in the database before the rest is.
        if db.checkpoint(timeout)? {
            db.end_session(now)?;
            db.truncate_wal(timeout)?;
        }
        Ok(())
    }

    /// Publishes, and logs, which processes prevent the log from being emptied, once it is overlong or they have prevented it
    /// for long.
    pub(super) fn report_readers(&mut self, db: &Store, held_for: Duration) {
        let bytes = self.stats.wal_bytes();
        let is_held = bytes > MAX_BYTES || held_for >= MAX_HELD;
        let pids = if is_held { db.files.log_holders() } else { Vec::new() };
        let mut reported = self.stats.wal_held_by.lock().unwrap_or_else(PoisonError::into_inner);
        if *reported != pids {
            if let Some(pid) = pids.first() {
                tracing::warn!(
                    "the write-ahead log of the outbox has {} and cannot be emptied: process {pid} has a transaction open",
                    config::Bytes(bytes)
                );
            }
            *reported = pids;
        }
    }
}

/// Free bytes of a disk; the largest number where they cannot be read.
fn free_bytes(disk: Option<DiskSpace>) -> u64 {
    disk.map_or(u64::MAX, |disk| disk.free)
}
