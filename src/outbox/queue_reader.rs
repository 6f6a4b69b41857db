//! The sender's view of the queue: which items wait, and their events.

use super::ack_log::each_ack;
use super::destinations::KOALA;
use super::keying::KeyQueries;
use super::{OutboxError, OutboxStats, PendingItem, QueuedItem, Reader};
use crate::clock::Mono;
use crate::item::OrderingKey;
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// In kibibytes. The upper pages of a million events take two thirds of it; each event is then one page to be read,
/// wherever it stands.
const CACHE: i64 = 3_072;
/// Time for which batches are read from one snapshot. The first read in a new snapshot, after a commit, reads the upper
/// pages again; while a snapshot is open, later commits stay in the write-ahead log.
const SNAPSHOT_AGE: Duration = Duration::from_millis(10);

/// Reads the pending items. The events of many batches are read in one snapshot of the outbox. Items that are requeued
/// or stored after the snapshot began are not in it: whoever learns of them calls [`QueueReader::release`].
#[derive(Debug)]
pub struct QueueReader {
    reader: Reader,
    stats: Arc<OutboxStats>,
    /// The end of the open snapshot.
    snapshot: Option<Mono>,
}

impl QueueReader {
    /// Reads through that connection.
    ///
    /// # Errors
    /// SQLite's.
    pub fn new(reader: Reader, stats: Arc<OutboxStats>) -> Result<QueueReader, OutboxError> {
        let set = reader.connection().pragma_update(None, "cache_size", -CACHE);
        set.map_err(|e| reader.error("set the cache size", e))?;
        Ok(QueueReader { reader, stats, snapshot: None })
    }

    /// Up to `limit` pending items after `after`, in the order of the spool, and before the first whose key may be stale.
    /// Items in [`QueueReader::acked`] are among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn discover(&mut self, after: i64, limit: usize) -> Result<Vec<QueuedItem>, OutboxError> {
        self.release()?;
        let read = || {
            self.reader
                .connection()
                .prepare_cached(
                    "SELECT id, ordering_key, owner FROM queue
                      WHERE id > ?1
                        AND id < (SELECT coalesce(stale_keys_from, 1 << 62) FROM destinations WHERE id = ?3)
                      ORDER BY id LIMIT ?2",
                )?
                .query_map(params![after, limit as i64, KOALA], |r| {
                    Ok(QueuedItem { seq: r.get(0)?, key: OrderingKey(r.get(1)?), owner: r.get(2)? })
                })?
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.reader.error("look for pending events", e))
    }

    /// The queries by which ordering keys are renewed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keys(&mut self) -> Result<KeyQueries<'_>, OutboxError> {
        self.release()?;
        Ok(KeyQueries { reader: &self.reader })
    }

    /// Items that are accepted and may still stand in the queue.
    ///
    /// # Errors
    /// SQLite's.
    pub fn acked(&mut self) -> Result<BTreeSet<i64>, OutboxError> {
        self.release()?;
        let mut acked = BTreeSet::new();
        each_ack(self.reader.connection(), |seq, _| {
            acked.insert(seq);
        })
        .map_err(|e| self.reader.error("look for delivered events", e))?;
        Ok(acked)
    }

    /// Reads these items in turn until `each` returns `false`. Returns those that are not pending any more.
    ///
    /// # Errors
    /// SQLite's.
    pub fn gather(
        &mut self,
        seqs: &[i64],
        now: Mono,
        mut each: impl FnMut(&PendingItem<'_>) -> bool,
    ) -> Result<Vec<i64>, OutboxError> {
        self.open_snapshot(now)?;
        let mut read = || {
            let mut statement = self.reader.connection().prepare_cached(
                "SELECT q.id, q.seq IS NULL, q.mapping, e.message_id, e.spooled_at, b.body
                   FROM queue q
                   JOIN events e ON e.seq = coalesce(q.seq, q.id)
                   JOIN bodies b ON b.seq = e.seq
                  WHERE q.id = ?",
            )?;
            let mut gone = Vec::new();
            for seq in seqs {
                match statement.query_row([seq], |row| Ok(each(&PendingItem::from_row(row)?))).optional()? {
                    Some(true) => {}
                    Some(false) => break,
                    None => gone.push(*seq),
                }
            }
            Ok(gone)
        };
        let gone = read().map_err(|e| self.reader.error("read pending events", e))?;
        if self.stats.wal_is_long() {
            self.release()?;
        }
        Ok(gone)
    }

    /// The connection.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Begins a snapshot, unless one is open that is not too old.
    fn open_snapshot(&mut self, now: Mono) -> Result<(), OutboxError> {
        if self.snapshot.is_some_and(|until| until <= now) {
            self.release()?;
        }
        if self.snapshot.is_none() {
            let begun = self.reader.connection().execute_batch("BEGIN");
            begun.map_err(|e| self.reader.error("begin to read", e))?;
            self.snapshot = Some(now + SNAPSHOT_AGE);
        }
        Ok(())
    }

    /// When the open snapshot is to be released.
    pub fn held_until(&self) -> Option<Mono> {
        self.snapshot
    }

    /// Ends the snapshot, if one is open. The next one has all that is committed by then.
    ///
    /// # Errors
    /// SQLite's.
    pub fn release(&mut self) -> Result<(), OutboxError> {
        if self.snapshot.take().is_some() {
            let ended = self.reader.connection().execute_batch("COMMIT");
            ended.map_err(|e| self.reader.error("end reading", e))?;
        }
        Ok(())
    }
}
