//! The changes that an administrator makes by hand, from a process of its own, whether an agent runs or not.
//!
//! A command writes the database itself and counts up a fact that the agent looks at; so it also works while no agent
//! runs, and needs no socket.

use super::database::Database;
use super::dedup::hash_id_text;
use super::meta::{self, FILLER, RETRY_REQUESTS};
use super::store::Store;
use super::subject_search::ROWS_AT_ONCE;
use super::transitions::{Transitions, erase};
use super::{EventReference, NewItem, OutboxError, Reader};
use crate::clock::Timestamp;
use crate::config;
use crate::subject::Subject;
use rusqlite::params;
use std::time::Duration;

/// Time for which emptying the write-ahead log waits for readers.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that may change settled events.
pub struct Admin {
    store: Store,
    reader: Reader,
}

impl Admin {
    /// Opens the outbox for changes; never creates it.
    ///
    /// # Errors
    /// [`OutboxError::Missing`], [`OutboxError::Denied`], [`OutboxError::OlderSchema`], [`OutboxError::NewerSchema`],
    /// and SQLite's.
    pub fn open(config: &config::OutboxConfig) -> Result<Admin, OutboxError> {
        let reader = Reader::open(&config.path)?;
        let mut store = Store::open(config)?;
        // The searches below find a delivered event in `settled` alone.
        store.transaction(Store::compact_all)?;
        Ok(Admin { store, reader })
    }

    /// The connection that reads.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Makes events pending again, in their old places, and wakes a running agent. Returns how many. Delivered items of
    /// an event that failed are not sent again.
    ///
    /// # Errors
    /// SQLite's; then nothing has changed.
    pub fn requeue(&mut self, events: &[(i64, Vec<NewItem>)], now: Timestamp) -> Result<u64, OutboxError> {
        self.store.transaction(|store| {
            store.compact_all()?;
            let mut requeued = 0;
            for (seq, items) in events {
                requeued += u64::from(Transitions { store, now, status: None }.requeue(*seq, items)?);
            }
            meta::increment(&store.db.conn, RETRY_REQUESTS)?;
            Ok(requeued)
        })
    }

    /// Drops the event of that id for good; `None`: there is none; `Some(false)`: its state does not allow that.
    ///
    /// # Errors
    /// SQLite's; then nothing has changed.
    pub fn discard(&mut self, message_id: &str, now: Timestamp) -> Result<Option<bool>, OutboxError> {
        let id = hash_id_text(message_id);
        self.store.transaction(|store| {
            store.compact_all()?;
            let seq = store.dedup.find(&store.db.conn, &id)?;
            seq.map(|seq| Transitions { store, now, status: None }.discard(seq)).transpose()
        })
    }

    /// From now on events that name the person are not stored: they are skipped with code `erased`, without content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn suppress(&mut self, subject: &Subject, now: Timestamp) -> Result<(), OutboxError> {
        self.store.transaction(|store| store.suppression().add(subject, now))
    }

    /// Lets the person's events be stored again. Returns whether they were suppressed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn unsuppress(&mut self, subject: &Subject) -> Result<bool, OutboxError> {
        self.store.transaction(|store| store.suppression().remove(subject))
    }

    /// Erases events, whatever their state, and wakes a running agent. After [`Admin::overwrite`] nothing of them is in
    /// any file of the outbox.
    ///
    /// # Errors
    /// SQLite's; then some are erased.
    pub fn erase(&mut self, subject: &Subject, events: &[EventReference]) -> Result<(), OutboxError> {
        for some in events.chunks(ROWS_AT_ONCE) {
            self.store.transaction(|store| {
                store.compact_all()?;
                for event in some {
                    erase(store, event.seq)?;
                    store.dedup.remove(&store.db.conn, &hash_id_text(&event.message_id), event.seq)?;
                }
                meta::increment(&store.db.conn, RETRY_REQUESTS)
            })?;
        }
        self.store.transaction(|store| erase_file_names(&store.db, subject))
    }

    /// Writes the database again and empties the write-ahead log, so that nothing of erased rows is left in unused
    /// parts of the files either. It takes as long as copying the database, and a running agent stores nothing
    /// meanwhile. Returns `false` if somebody reads for so long that the log still has what was erased.
    ///
    /// # Errors
    /// SQLite's, for example that there is no room for the copy.
    pub fn overwrite(&mut self) -> Result<bool, OutboxError> {
        let written = self.store.db.conn.execute_batch("PRAGMA temp_store = FILE; VACUUM");
        written.map_err(|e| self.store.db.error("rewrite the database", e))?;
        Ok(self.store.db.checkpoint(CHECKPOINT_TIMEOUT)? && self.overwrite_free_space()?)
    }

    /// Writes zeros over the space that the database's file has beyond its pages. Returns `false` if somebody reads for
    /// too long.
    fn overwrite_free_space(&mut self) -> Result<bool, OutboxError> {
        let length = std::fs::metadata(&self.store.db.path).map_or(0, |file| file.len());
        let free = length.saturating_sub(self.store.db.size()?.bytes) as i64;
        self.store.transaction(|store| {
            store
                .cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?, zeroblob(?))")?
                .execute(params![FILLER, free])
        })?;
        // Until the zeros are in the file, their pages must not become free: a running agent would truncate them.
        let is_written = self.store.db.checkpoint(CHECKPOINT_TIMEOUT);
        self.store.transaction(|store| meta::remove(&store.db.conn, FILLER))?;
        Ok(is_written? && self.store.db.checkpoint(CHECKPOINT_TIMEOUT)?)
    }
}

/// Erases the names of ingested files that name the person. The files are known by their identity until they are gone
/// from the spool.
fn erase_file_names(db: &Database, subject: &Subject) -> Result<(), rusqlite::Error> {
    let mut finished = db.cached("SELECT DISTINCT name FROM spool_files WHERE finished = 1")?;
    let names = finished.query_map([], |r| r.get(0))?.collect::<Result<Vec<Vec<u8>>, _>>()?;
    for name in names.iter().filter(|name| subject.is_in_file_name(&String::from_utf8_lossy(name))) {
        db.cached("UPDATE spool_files SET name = x'' WHERE finished = 1 AND name = ?")?.execute([name])?;
    }
    Ok(())
}
