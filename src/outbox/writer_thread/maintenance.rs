//! What is done between the commits: the write-ahead log kept short, rows whose time is up forgotten, room given back,
//! the figures told.

use super::WriterThread;
use crate::clock::Timestamp;
use crate::config;
use crate::disk;
use crate::outbox::OutboxError;
use crate::outbox::store::{self, Store};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Rows forgotten in one transaction, so that an append never waits long behind them.
const EXPIRE_AT_ONCE: usize = 2_000;
/// How often it looks for rows whose time is up, once there are none left; the keep_… settings are in days.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);
/// Free pages given back in one step (4 MiB), and the least that is worth a step.
const SHRINK_PAGES: u64 = 1_024;
/// Pages of the write-ahead log (16 MiB) that are copied into the database: enough to keep copying rare under load, and
/// the log small beside the queue.
const LOG_PAGES: u64 = 4_096;
/// A log of more than this has, or had, a reader that keeps it from being copied, and is emptied as soon as it can be.
const LOG_LIMIT: u64 = 64 << 20;
/// How long a full disk waits for what the sender reads at that moment, and the log with it.
pub(super) const READER_TIMEOUT: Duration = Duration::from_millis(50);

/// Free bytes of that file's disk; all there could be where nobody can tell.
pub(super) fn free_beside(path: &Path) -> u64 {
    disk::space_of(path).map_or(u64::MAX, |disk| disk.free)
}

impl WriterThread {
    /// Keeps the write-ahead log short amid the work, and gives its room back where there is little.
    pub(super) fn shorten_log(&mut self) {
        let size = self.stats.log();
        let is_long = self.store.log_pages() > LOG_PAGES;
        // Where there was little room, what there is now is asked for.
        let is_larger = size > self.free / 4 && size > free_beside(&self.store.path);
        let is_large = size > LOG_LIMIT || is_larger;
        self.stats.log_is_long.store(is_long || is_large, Relaxed);
        if is_large {
            self.empty_log(Duration::ZERO);
            if let Err(e) = self.measure(self.clock.now()) {
                self.note(e);
            }
        } else if is_long && let Err(e) = self.store.copy_log() {
            self.note(e);
        }
    }

    /// What is done once a second; an error here is no worse than not having done it yet.
    pub(super) fn maintain(&mut self, idle: bool) {
        let now = self.clock.moment();
        self.free = free_beside(&self.store.path);
        let done = (|| {
            let version = self.store.data_version()?;
            if version != self.data_version {
                self.data_version = version;
                self.set_emptied(false);
                let retry_requests = self.store.meta(store::RETRY_REQUESTS)?.unwrap_or(0);
                self.retry_requested
                    .send_if_modified(|k| std::mem::replace(k, retry_requests) != retry_requests);
            }
            if idle && !(self.store.acks.is_empty() && self.store.ids.are_indexed()) {
                self.store.transaction(Store::move_all)?;
            }
            if now.mono.saturating_sub(self.expired) >= EXPIRE_EVERY {
                let (gone, more) = self.store.transaction(|store| store.expire(now.wall, EXPIRE_AT_ONCE))?;
                if !more {
                    self.expired = now.mono;
                }
                self.set_emptied(self.emptied && gone == 0);
            }
            if idle && self.store.size()?.1 > SHRINK_PAGES {
                self.store.shrink(SHRINK_PAGES)?;
                self.set_emptied(false);
            }
            Ok::<_, OutboxError>(())
        })();
        if let Err(e) = done {
            self.note(e);
        }
        if idle && !self.emptied && !self.store.is_moving() {
            self.empty_log(Duration::ZERO);
        }
        self.reserve.make();
        let is_settled = self.emptied && !self.store.is_moving() && self.reserve.missing() == 0;
        self.is_idle = idle && is_settled && self.waiting.is_empty();
        if let Err(e) = self.measure(self.clock.now()) {
            self.note(e);
        }
        self.name_readers();
    }

    /// Says who keeps a log from being emptied that has grown too large.
    fn name_readers(&mut self) {
        let is_large = self.stats.log() > LOG_LIMIT;
        let pids = if is_large { self.readers.pids(&self.store.path) } else { Vec::new() };
        let mut known = self.stats.log_held_by.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != pids {
            if let Some(pid) = pids.first() {
                tracing::warn!(
                    "the write-ahead log of the outbox has {} and cannot be emptied: process {pid} has a transaction open",
                    config::Bytes(self.stats.log())
                );
            }
            *known = pids;
        }
    }

    /// Empties the write-ahead log, unless a reader still needs it after that time.
    pub(super) fn empty_log(&mut self, patience: Duration) {
        if let Err(e) = self.checkpoint(patience) {
            self.note(e);
        }
    }

    /// The same; an error does not end the writer.
    pub(super) fn checkpoint(&mut self, patience: Duration) -> Result<(), OutboxError> {
        let before = self.emptied;
        if self.store.copy_log()? {
            self.set_emptied(true);
        }
        let emptied = self.store.checkpoint(patience);
        self.set_emptied(*emptied.as_ref().unwrap_or(&before));
        emptied.map(drop)
    }

    pub(super) fn release_reserve(&mut self) {
        if self.reserve.release() {
            tracing::warn!(
                "the disk of the outbox {} is full: its reserve is given up, so that what is delivered can be acked",
                self.store.path.display()
            );
        }
        self.empty_log(READER_TIMEOUT);
    }

    /// # Errors
    /// [`OutboxError::FilesReplaced`]: nothing more may be committed.
    pub(super) fn measure(&self, now: Timestamp) -> Result<(), OutboxError> {
        self.stats.missing.store(self.reserve.missing(), Relaxed);
        self.stats.log.store(self.store.look_after_files(now)?, Relaxed);
        let (bytes, _) = self.store.size()?;
        self.stats.bytes.store(bytes, Relaxed);
        Ok(())
    }
}
