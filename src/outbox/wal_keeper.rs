//! The write-ahead log is kept short: copied into the database amid the work, and emptied when there is little room or
//! nothing else to do. SQLite's own checkpoints are off, because a commit does not report their errors.

use super::OutboxError;
use super::database::Database;
use super::files::with_suffix;
use super::lock::{Lock, holder_of};
use super::stats::OutboxStats;
use crate::config;
use crate::disk;
use nix::libc;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Pages of the write-ahead log (16 MiB) after which it is copied into the database: enough to keep copying rare under
/// load, and a log that is small compared with the queue.
const MAX_PAGES: u64 = 4_096;
/// A log larger than this has, or had, a reader that prevents the copying. It is emptied as soon as possible.
const MAX_BYTES: u64 = 64 << 20;

/// The upkeep of the write-ahead log.
pub(super) struct WalKeeper {
    lock: Arc<Lock>,
    stats: Arc<OutboxStats>,
    readers: WalReaders,
    /// Whether all commits are in the database and the log is empty.
    is_empty: bool,
    /// Free bytes of the disk at the last maintenance.
    free: u64,
}

impl WalKeeper {
    /// Starts with a log of that many bytes.
    pub(super) fn new(db: &Database, lock: Arc<Lock>, stats: Arc<OutboxStats>, bytes: u64) -> WalKeeper {
        lock.record_wal(bytes > 0);
        let free = free_bytes(&db.path);
        WalKeeper { lock, stats, readers: WalReaders::default(), is_empty: bytes == 0, free }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    pub(super) fn set_empty(&mut self, is_empty: bool) {
        if self.is_empty != is_empty {
            self.lock.record_wal(!is_empty);
            self.is_empty = is_empty;
        }
    }

    /// Confirms the last commit, see [`Lock::confirm_commit`].
    pub(super) fn confirm_commit(&self) -> Result<(), OutboxError> {
        self.lock.confirm_commit()
    }

    /// Reads how much room the disk has.
    pub(super) fn measure_disk(&mut self, db: &Database) {
        self.free = free_bytes(&db.path);
    }

    /// Copies the log after a commit if it is long. Returns `true` if the log is to be emptied instead: it is over its
    /// limit, or takes up room that is needed.
    pub(super) fn copy_if_long(&mut self, db: &Database) -> Result<bool, OutboxError> {
        let bytes = self.stats.wal_bytes();
        let is_long = db.wal_pages() > MAX_PAGES;
        // The disk is asked again only where there was little room at the last maintenance.
        let needs_room = bytes > self.free / 4 && bytes > free_bytes(&db.path);
        let is_too_large = bytes > MAX_BYTES || needs_room;
        self.stats.wal_is_long.store(is_long || is_too_large, Relaxed);
        if is_long && !is_too_large {
            db.copy_wal()?;
        }
        Ok(is_too_large)
    }

    /// Empties the log, unless a reader still needs it after that time.
    pub(super) fn empty(&mut self, db: &Database, timeout: Duration) -> Result<(), OutboxError> {
        let before = self.is_empty;
        if db.copy_wal()? {
            self.set_empty(true);
        }
        let emptied = db.checkpoint(timeout);
        self.set_empty(*emptied.as_ref().unwrap_or(&before));
        emptied.map(drop)
    }

    /// Publishes, and logs, which processes prevent an overlong log from being emptied.
    pub(super) fn report_readers(&mut self, db: &Database) {
        let bytes = self.stats.wal_bytes();
        let pids = if bytes > MAX_BYTES { self.readers.pids(&db.path) } else { Vec::new() };
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

/// Free bytes of that file's disk; the largest number where they cannot be read.
fn free_bytes(path: &Path) -> u64 {
    disk::space_of(path).map_or(u64::MAX, |disk| disk.free)
}

/// The bytes of the -shm file that SQLite's readers lock (<https://sqlite.org/walformat.html>).
const READ_LOCKS: std::ops::Range<libc::off_t> = 123..128;

/// Finds other processes that read, by their locks.
#[derive(Debug, Default)]
struct WalReaders {
    /// Never closed: closing any descriptor of the file would drop SQLite's own locks on it in this process.
    shm: Option<&'static File>,
}

impl WalReaders {
    /// Other processes with a transaction open, in ascending order.
    fn pids(&mut self, database: &Path) -> Vec<i32> {
        if self.shm.is_none() {
            self.shm = File::open(with_suffix(database, "-shm")).ok().map(|file| &*Box::leak(Box::new(file)));
        }
        let Some(shm) = self.shm else { return Vec::new() };
        let mut pids: Vec<i32> = READ_LOCKS.filter_map(|byte| holder_of(shm, (byte, 1))).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}
