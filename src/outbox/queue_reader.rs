//! What the sender reads: whose events wait, and what they say.

use super::ack_log::each_ack;
use super::{OutboxError, OutboxStats, PendingItem, Reader};
use crate::clock::{Mono, Timestamp};
use crate::event::MessageId;
use crate::item::OrderingKey;
use rusqlite::{OptionalExtension, Row, params};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Kibibytes: the upper pages of a million events take two thirds of it. Each event is then one page to be read, wherever
/// it stands.
const CACHE: i64 = 3_072;
/// How long requests are gathered from one view. The first look at another, after a commit, reads the upper pages again;
/// and while one is open, what was committed after it stays in the write-ahead log.
const VIEW: Duration = Duration::from_millis(10);

/// The pending events. The events of many requests are read in one view of the outbox: what is put back by hand, or
/// stored, after it began is not in it, so [`QueueReader::release`] is for whoever hears of that.
#[derive(Debug)]
pub struct QueueReader {
    reader: Reader,
    stats: Arc<OutboxStats>,
    view: Option<Snapshot>,
}

/// A transaction that reads.
#[derive(Debug, Clone, Copy)]
struct Snapshot {
    until: Mono,
    /// [`OutboxStats::external_commits`] before it began.
    read_version: u64,
}

/// What was read for a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Gathered {
    /// Those that are not there any more.
    pub gone: Vec<i64>,
    /// [`OutboxStats::external_commits`] as it was before they were read.
    pub read_version: u64,
}

impl QueueReader {
    /// The pending events, as that connection reads them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn new(reader: Reader, stats: Arc<OutboxStats>) -> Result<QueueReader, OutboxError> {
        let set = reader.connection().pragma_update(None, "cache_size", -CACHE);
        set.map_err(|e| reader.error("set its cache", e))?;
        Ok(QueueReader { reader, stats, view: None })
    }

    /// Up to `limit` rows of pending events after `after`, in the order of the spool: whose they are. Those of
    /// [`QueueReader::acked`] are among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn discover(&mut self, after: i64, limit: usize) -> Result<Vec<(i64, OrderingKey)>, OutboxError> {
        self.release()?;
        let read = || {
            self.reader
                .connection()
                .prepare_cached("SELECT seq, ordering_key FROM pending WHERE seq > ? ORDER BY seq LIMIT ?")?
                .query_map(params![after, limit as i64], |r| Ok((r.get(0)?, OrderingKey(r.get(1)?))))?
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.reader.error("look for pending events", e))
    }

    /// Events that are delivered, and whose rows may still stand among the pending.
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

    /// Reads those of these pending items that are still there, in turn, until `each` says that it is enough.
    ///
    /// # Errors
    /// SQLite's.
    pub fn gather(
        &mut self,
        seqs: &[i64],
        now: Mono,
        mut each: impl FnMut(&PendingItem<'_>) -> bool,
    ) -> Result<Gathered, OutboxError> {
        let view = self.view(now)?;
        let mut read = || {
            let mut statement = self.reader.connection().prepare_cached(
                "SELECT seq, event_seq IS NULL, mapping, message_id, spooled_at, body FROM pending WHERE seq = ?",
            )?;
            let mut gone = Vec::new();
            for seq in seqs {
                match statement.query_row([seq], |row| Ok(each(&pending_item(row)?))).optional()? {
                    Some(true) => {}
                    Some(false) => break,
                    None => gone.push(*seq),
                }
            }
            Ok(gone)
        };
        let gone = read().map_err(|e| self.reader.error("gather a person's events", e))?;
        if self.stats.log_is_long() {
            self.release()?;
        }
        Ok(Gathered { gone, read_version: view.read_version })
    }

    /// The view that is open, or one that begins now.
    fn view(&mut self, now: Mono) -> Result<Snapshot, OutboxError> {
        let read_version = self.stats.external_commits();
        if self.view.is_some_and(|view| view.until <= now || view.read_version != read_version) {
            self.release()?;
        }
        if let Some(view) = self.view {
            return Ok(view);
        }
        let begun = self.reader.connection().execute_batch("BEGIN");
        begun.map_err(|e| self.reader.error("begin to read", e))?;
        Ok(*self.view.insert(Snapshot { until: now + VIEW, read_version }))
    }

    /// When the view that is open is to be let go of.
    pub fn held_until(&self) -> Option<Mono> {
        self.view.map(|view| view.until)
    }

    /// Ends the view, if one is open: the next is of all that is committed by then.
    ///
    /// # Errors
    /// SQLite's.
    pub fn release(&mut self) -> Result<(), OutboxError> {
        if self.view.take().is_some() {
            let ended = self.reader.connection().execute_batch("COMMIT");
            ended.map_err(|e| self.reader.error("end reading", e))?;
        }
        Ok(())
    }
}

fn pending_item<'a>(row: &'a Row<'_>) -> Result<PendingItem<'a>, rusqlite::Error> {
    Ok(PendingItem {
        seq: row.get(0)?,
        is_alone: row.get(1)?,
        mapping: row.get_ref(2)?.as_str()?,
        message_id: MessageId::from_stored(row.get(3)?),
        spooled_at: Timestamp(row.get(4)?),
        body: row.get_ref(5)?.as_str()?,
    })
}
