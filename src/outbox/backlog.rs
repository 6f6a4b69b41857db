//! What the courier reads: whose events wait, and what they say.

use super::marks::each_mark;
use super::{OutboxError, PendingItem, Reader};
use crate::clock::Timestamp;
use crate::event::MessageId;
use crate::item::Lane;
use rusqlite::{OptionalExtension, Row, params};
use std::collections::BTreeSet;

impl Reader {
    /// Up to `limit` rows of pending events after `after`, in the order of the spool: whose they are. Those of
    /// [`Reader::marked`] are among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn discover(&self, after: i64, limit: usize) -> Result<Vec<(i64, Lane)>, OutboxError> {
        let read = || {
            self.connection()
                .prepare_cached("SELECT seq, lane FROM pending WHERE seq > ? ORDER BY seq LIMIT ?")?
                .query_map(params![after, limit as i64], |r| Ok((r.get(0)?, Lane(r.get(1)?))))?
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.error("look for pending events", e))
    }

    /// Events that are delivered, and whose rows may still stand among the pending.
    ///
    /// # Errors
    /// SQLite's.
    pub fn marked(&self) -> Result<BTreeSet<i64>, OutboxError> {
        let mut marked = BTreeSet::new();
        each_mark(self.connection(), |seq, _| {
            marked.insert(seq);
        })
        .map_err(|e| self.error("look for delivered events", e))?;
        Ok(marked)
    }

    /// Reads those of these pending items that are still there, in turn, until `each` says that it is enough. Returns
    /// those that are not there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn gather(
        &self,
        seqs: &[i64],
        mut each: impl FnMut(&PendingItem<'_>) -> bool,
    ) -> Result<Vec<i64>, OutboxError> {
        let mut read = || {
            // One transaction: each takes and gives up the locks on the file.
            let _all = self.connection().unchecked_transaction()?;
            let mut statement = self
                .connection()
                .prepare_cached("SELECT seq, event_seq IS NULL, mapping, message_id, spooled_at, body FROM pending WHERE seq = ?")?;
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
        read().map_err(|e| self.error("gather a person's events", e))
    }

    /// The bodies of the events that came last and wait, up to `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_pending(&self, limit: usize) -> Result<Vec<String>, OutboxError> {
        let read = || {
            let mut select =
                self.connection().prepare("SELECT body FROM pending ORDER BY seq DESC LIMIT ?")?;
            select.query_map([limit as i64], |r| r.get(0))?.collect::<Result<_, _>>()
        };
        read().map_err(|e| self.error("read its newest events", e))
    }
}

fn pending_item<'a>(row: &'a Row<'_>) -> Result<PendingItem<'a>, rusqlite::Error> {
    Ok(PendingItem {
        seq: row.get(0)?,
        is_alone: row.get(1)?,
        mapping: row.get_ref(2)?.as_str()?,
        message_id: MessageId::remembered(row.get(3)?),
        spooled_at: Timestamp(row.get(4)?),
        body: row.get_ref(5)?.as_str()?,
    })
}
