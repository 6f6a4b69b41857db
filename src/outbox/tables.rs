//! The tables as their one writer knows them: what a transaction changes, and what of them is in memory.
//!
//! Each transaction keeps three things true together: the rows, the counters, and how far the files of the spool have
//! been ingested. [`Append`](super::append::Append) and [`Transitions`](super::transitions::Transitions) change the
//! rows; the parts below have their own types and are given the connection.

use super::OutboxError;
use super::ack_log::AckLog;
use super::counters::{ByteCounts, CounterChanges};
use super::destinations::KOALA;
use super::failures::FailureLog;
use super::id_index::IdIndex;
use super::items::EventItems;
use super::keying::{KeyRenewal, KeyingState};
use super::meta::{self, LAST_SEQ};
use super::retention::{PersonKey, Retention};
use super::row::QueuedItem;
use super::store::Store;
use super::suppression::Suppression;
use crate::clock::Timestamp;
use crate::config;
use crate::event::MessageId;
use crate::reason::Reason;
use rusqlite::{CachedStatement, OptionalExtension, params};
use std::collections::BTreeSet;

/// The connection, and what only the writer knows of the tables behind it.
pub(super) struct Tables {
    pub(super) store: Store,
    pub(super) counters: CounterChanges,
    /// The bytes that events take, as of the last commit.
    pub(super) bytes: ByteCounts,
    pub(super) acks: AckLog,
    pub(super) failures: FailureLog,
    pub(super) keying: KeyingState,
    pub(super) ids: IdIndex,
    pub(super) retention: Retention,
    /// The lowest number that no event has had.
    pub(super) next_seq: i64,
    /// What was added since the last compaction.
    added: Added,
    pub(super) suppression: Suppression,
    /// Items that were erased while a request with them was in flight: its answer finds no row.
    removed: BTreeSet<i64>,
    /// Those of them that this transaction has erased.
    removing: Vec<i64>,
    /// Whether the state in memory is that of the tables. Nobody else changes those, so it is read at first, and after a
    /// transaction that has failed.
    is_loaded: bool,
}

/// What transactions have added that is to be compacted later.
#[derive(Debug, Clone, Copy, Default)]
struct Added {
    acks: usize,
    ids: usize,
}

/// Accepted items that are settled together amid the work. A commit that settles any writes the first pages of the queue
/// and of the bodies and the last one of `settled` once more, so few commits shall.
const COMPACT_AT: usize = 1_024;

const NEXT_SEQ: &str = "SELECT 1 + max(coalesce((SELECT max(seq) FROM events), 0),
                                       coalesce((SELECT max(id) FROM queue), 0),
                                       coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0),
                                       coalesce((SELECT value FROM meta WHERE name = 'last_seq'), 0))";

impl Tables {
    /// Opens the database at `config.path`, and brings its schema up to date.
    pub(super) fn open(config: &config::OutboxConfig) -> Result<Tables, OutboxError> {
        let store = Store::open(&config.path)?;
        let person_key = PersonKey::read_or_create(&store.conn, &store.path)?;
        let bytes = ByteCounts::load(&store.conn).map_err(|e| store.error("read the counters", e))?;
        let mut suppression = Suppression::new(person_key.clone());
        suppression.load(&store.conn).map_err(|e| store.error("read who is suppressed", e))?;
        Ok(Tables {
            store,
            bytes,
            counters: CounterChanges::default(),
            acks: AckLog::default(),
            failures: FailureLog::default(),
            keying: KeyingState::default(),
            ids: IdIndex::default(),
            retention: Retention { config: config.clone(), person_key },
            next_seq: 1,
            added: Added::default(),
            suppression,
            removed: BTreeSet::new(),
            removing: Vec::new(),
            is_loaded: false,
        })
    }

    /// The number of the last event that is known; 0: there is none.
    pub(super) fn last_event(&self) -> Result<i64, OutboxError> {
        let last = "SELECT coalesce(max(seq), 0) FROM events";
        let last = self.store.conn.query_row(last, [], |r| r.get(0));
        last.map_err(|e| self.store.error("read the last event", e))
    }

    /// Runs `work` in one transaction. When this returns `Ok`, all that `work` did is on the disk. When it returns an
    /// error, nothing is; after an I/O error of the commit, that is not known.
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Tables) -> Result<T, rusqlite::Error>,
    ) -> Result<T, OutboxError> {
        // IMMEDIATE: a transaction that upgrades later gets BUSY at once, whatever the timeout.
        let begun = self.store.run("BEGIN IMMEDIATE");
        self.ids.begin_transaction();
        let done = begun.and_then(|()| {
            self.load()?;
            work(self)
        });
        let done = done.and_then(|value| {
            let added = Added { acks: self.acks.added(), ids: self.ids.added() };
            self.acks.append(&self.store.conn)?;
            let changed = self.counters.write(&self.store.conn)?;
            self.store.allocate_pages()?;
            self.store.commit()?;
            self.bytes.add(&changed);
            self.added.acks += added.acks;
            self.added.ids += added.ids;
            self.removing.clear();
            Ok(value)
        });
        done.map_err(|e| {
            self.counters.clear();
            self.failures.undo_to(0);
            self.is_loaded = false;
            for seq in self.removing.drain(..) {
                self.removed.remove(&seq);
            }
            self.acks = AckLog::default();
            self.ids.clear();
            if !self.store.conn.is_autocommit() {
                // If this fails as well, the error below says enough.
                let _ = self.store.conn.execute_batch("ROLLBACK");
            }
            self.store.error("commit", e)
        })
    }

    /// Reads the state in memory from the tables.
    fn load(&mut self) -> Result<(), rusqlite::Error> {
        if !self.is_loaded {
            let next_seq = self.cached(NEXT_SEQ)?.query_row([], |r| r.get(0))?;
            self.acks = AckLog::load(&self.store.conn)?;
            self.keying = KeyingState::load(&self.store.conn)?;
            // An ack must never be taken for one of a later event.
            self.next_seq = self.next_seq.max(next_seq).max(self.acks.next_id());
            self.ids.load(&self.store.conn)?;
            self.bytes = ByteCounts::load(&self.store.conn)?;
            self.suppression.load(&self.store.conn)?;
            self.is_loaded = true;
        }
        Ok(())
    }

    /// Notes for the log that an event has failed.
    pub(super) fn note_failure(&mut self, seq: i64, reason: &Reason) -> Result<(), rusqlite::Error> {
        let id: Option<String> = self
            .cached("SELECT message_id FROM events WHERE seq = ?")?
            .query_row([seq], |r| r.get(0))
            .optional()?;
        if let Some(id) = id {
            self.failures.add(MessageId::from_stored(id), reason);
        }
        Ok(())
    }

    /// Makes a step in the renewal of ordering keys.
    pub(super) fn renew_keys(&mut self, step: &KeyRenewal) -> Result<(), rusqlite::Error> {
        self.keying.renew(&self.store.conn, step, self.next_seq)?;
        if let KeyRenewal::Renewed { items, .. } = step {
            // An event is shown under the person of its first item, whose number is that of the event.
            items.iter().try_for_each(|(id, addressee)| self.set_person(*id, addressee.person.as_str()))?;
        }
        Ok(())
    }

    /// Notes whom an event is about whose body is kept.
    pub(super) fn set_person(&self, seq: i64, person: &str) -> Result<(), rusqlite::Error> {
        let changed = self
            .cached("UPDATE bodies SET person = ?2 WHERE seq = ?1 AND person IS NOT ?2")?
            .execute(params![seq, person])?;
        if changed > 0 {
            self.cached("UPDATE events SET person = ?2 WHERE seq = ?1")?
                .execute(params![seq, self.retention.person_key.hash(person)])?;
        }
        Ok(())
    }

    /// Compacts at least `rows` items and ids, and more of them the more were added since the last compaction: in one
    /// transaction or in several, of which some may have given up history. `is_tight`: the disk has little room, so few items
    /// are settled, and at once.
    pub(super) fn compact_some(
        &mut self,
        rows: usize,
        is_tight: bool,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        let ids = rows.max(3 * std::mem::take(&mut self.added.ids));
        self.ids.index_some(&self.store.conn, self.next_seq - 1, ids)?;
        let is_due = is_tight || self.added.acks >= COMPACT_AT;
        let added = if is_due { std::mem::take(&mut self.added.acks) } else { 0 };
        let acks = if is_tight { rows } else { rows.max(2 * added) };
        self.acks.compact_some(&self.store.conn, &self.retention, &mut self.counters, is_due, acks, now)
    }

    /// Begins to settle every accepted item; [`Tables::compact_some`] goes on with it.
    pub(super) fn begin_compaction(&mut self) {
        self.acks.begin_pass();
    }

    /// Begins to write the ids that are only in memory into a segment; [`Tables::compact_some`] goes on with it.
    pub(super) fn begin_sealing(&mut self) -> Result<(), rusqlite::Error> {
        self.ids.begin_indexing(&self.store.conn, self.next_seq - 1)
    }

    /// Whether a compaction or a sealing has begun and is not done.
    pub(super) fn is_compacting(&self) -> bool {
        self.acks.is_compacting() || self.ids.is_indexing()
    }

    /// Whether every accepted item is settled. After a transaction that has failed, that is not known before the next.
    pub(super) fn is_compact(&self) -> bool {
        self.is_loaded && self.acks.is_empty()
    }

    /// Settles every accepted item.
    pub(super) fn compact_all(&mut self) -> Result<(), rusqlite::Error> {
        self.acks.compact_all(&self.store.conn, &self.retention, &mut self.counters)
    }

    /// Takes a number at the end for an item of an older event.
    pub(super) fn take_seq(&mut self) -> Result<i64, rusqlite::Error> {
        let seq = self.next_seq;
        self.next_seq += 1;
        // The row is deleted when the item is settled, and no row may stand behind it.
        self.reserve_seqs()?;
        Ok(seq)
    }

    /// Records that no number in use may be used again, though the rows at the end are deleted.
    pub(super) fn reserve_seqs(&self) -> Result<(), rusqlite::Error> {
        meta::set(&self.store.conn, LAST_SEQ, self.next_seq - 1)
    }

    /// The items of an event that wait.
    pub(super) fn pending_items(&self, event_seq: i64) -> Result<Vec<QueuedItem>, rusqlite::Error> {
        let mut items = EventItems { conn: &self.store.conn, seq: event_seq }.pending()?;
        items.retain(|item| !self.acks.contains(item.seq));
        Ok(items)
    }

    /// Notes items that are erased while a request with them is in flight.
    pub(super) fn note_removed(&mut self, items: Vec<i64>) {
        let new: Vec<i64> = items.into_iter().filter(|seq| self.removed.insert(*seq)).collect();
        self.removing.extend(new);
    }

    /// Whether an item was erased while a request with it was in flight.
    pub(super) fn is_removed(&self, seq: i64) -> bool {
        !self.removed.is_empty() && self.removed.contains(&seq)
    }

    /// Stores and counts an item of the queue. `event_seq` is the number of an event with several items; acks up to the number
    /// `queued_after` are of an item that had this one's number before.
    pub(super) fn enqueue(
        &mut self,
        item: &QueuedItem,
        event_seq: Option<i64>,
        mapping: &str,
        bytes: i64,
        queued_after: i64,
    ) -> Result<(), rusqlite::Error> {
        let QueuedItem { seq: id, key, owner } = item;
        self.cached(
            "INSERT INTO queue (id, seq, destination, mapping, ordering_key, owner, bytes, queued_after)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![id, event_seq, KOALA, mapping, key.0, owner, bytes, queued_after])?;
        self.counters.add_queued(*owner, bytes);
        Ok(())
    }

    pub(super) fn cached(&self, sql: &str) -> Result<CachedStatement<'_>, rusqlite::Error> {
        self.store.cached(sql)
    }
}
