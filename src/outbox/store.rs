//! The state behind the writing connection: what a transaction changes, and what is known of the tables in memory.
//!
//! Each transaction keeps three things true together: the rows, the counters, and how far the files of the spool have
//! been ingested. [`Append`](super::append::Append) and [`Transitions`](super::transitions::Transitions) change the
//! rows; the parts below have their own types and are given the connection.

use super::OutboxError;
use super::ack_log::AckLog;
use super::counters::{CounterChanges, PendingBytes};
use super::database::Database;
use super::dedup::DedupIndex;
use super::failures::FailureLog;
use super::keying::{KeyRenewal, KeyingState};
use super::meta::{self, LAST_SEQ};
use super::retention::{PersonKey, Retention};
use super::suppression::Suppression;
use crate::clock::Timestamp;
use crate::config;
use crate::event::MessageId;
use crate::reason::Reason;
use rusqlite::{CachedStatement, OptionalExtension};

/// The database, and what only its writer knows of it.
pub(super) struct Store {
    pub(super) db: Database,
    pub(super) counters: CounterChanges,
    /// The bytes that each owner's events take in `pending`, as of the last commit.
    pub(super) pending_bytes: PendingBytes,
    pub(super) acks: AckLog,
    pub(super) failures: FailureLog,
    pub(super) keying: KeyingState,
    pub(super) dedup: DedupIndex,
    pub(super) retention: Retention,
    /// The lowest number that no event has had.
    pub(super) next_seq: i64,
    /// SQLite's data version when the state in memory was read; `None`: it is to be read again.
    loaded_version: Option<i64>,
    /// The number of times that commits of other processes were noticed.
    pub(super) external_commits: u64,
}

const NEXT_SEQ: &str = "SELECT 1 + max(coalesce((SELECT max(seq) FROM pending), 0),
                                       coalesce((SELECT max(seq) FROM settled), 0),
                                       coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0),
                                       coalesce((SELECT value FROM meta WHERE name = 'last_seq'), 0))";

impl Store {
    /// Opens the database at `config.path`, and brings its schema up to date.
    pub(super) fn open(config: &config::OutboxConfig) -> Result<Store, OutboxError> {
        let db = Database::open(&config.path)?;
        let person_key = PersonKey::read_or_create(&db.conn, &db.path)?;
        let pending_bytes = PendingBytes::load(&db.conn).map_err(|e| db.error("read the counters", e))?;
        Ok(Store {
            db,
            pending_bytes,
            counters: CounterChanges::default(),
            acks: AckLog::default(),
            failures: FailureLog::default(),
            keying: KeyingState::default(),
            dedup: DedupIndex::default(),
            retention: Retention { config: config.clone(), person_key },
            next_seq: 1,
            loaded_version: None,
            external_commits: 0,
        })
    }

    /// Runs `work` in one transaction. When this returns `Ok`, all that `work` did is on the disk. When it returns an
    /// error, nothing is; after an I/O error of the commit, that is not known.
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, rusqlite::Error>,
    ) -> Result<T, OutboxError> {
        // IMMEDIATE: a transaction that upgrades later gets BUSY at once, whatever the timeout.
        let begun = self.db.run("BEGIN IMMEDIATE");
        self.dedup.begin_transaction();
        let done = begun.and_then(|()| {
            self.load_external_changes()?;
            work(self)
        });
        let done = done.and_then(|value| {
            self.acks.append(&self.db.conn)?;
            let changed = self.counters.write(&self.db.conn)?;
            self.db.allocate_pages()?;
            self.db.run("COMMIT")?;
            self.pending_bytes.apply(changed);
            Ok(value)
        });
        done.map_err(|e| {
            self.counters.clear();
            self.failures.undo_to(0);
            self.loaded_version = None;
            self.acks = AckLog::default();
            self.dedup.clear();
            if !self.db.conn.is_autocommit() {
                // If this fails as well, the error below says enough.
                let _ = self.db.conn.execute_batch("ROLLBACK");
            }
            self.db.error("commit", e)
        })
    }

    /// Reads again what another process may have changed.
    fn load_external_changes(&mut self) -> Result<(), rusqlite::Error> {
        let version = self.db.data_version()?;
        if self.loaded_version != Some(version) {
            let next_seq = self.cached(NEXT_SEQ)?.query_row([], |r| r.get(0))?;
            self.acks = AckLog::load(&self.db.conn)?;
            self.keying = KeyingState::load(&self.db.conn)?;
            // An ack must never be taken for one of a later event.
            self.next_seq = self.next_seq.max(next_seq).max(self.acks.next_seq());
            self.dedup.load(&self.db.conn)?;
            self.pending_bytes = PendingBytes::load(&self.db.conn)?;
            self.external_commits += 1;
            self.loaded_version = Some(version);
        }
        Ok(())
    }

    /// Notes for the log that the event of a pending row has failed.
    pub(super) fn note_failure(&mut self, seq: i64, reason: &Reason) -> Result<(), rusqlite::Error> {
        let id: Option<String> = self
            .cached("SELECT message_id FROM pending WHERE seq = ?")?
            .query_row([seq], |r| r.get(0))
            .optional()?;
        if let Some(id) = id {
            self.failures.add(MessageId::from_stored(id), reason);
        }
        Ok(())
    }

    /// Makes a step in the renewal of ordering keys.
    pub(super) fn renew_keys(&mut self, step: &KeyRenewal) -> Result<(), rusqlite::Error> {
        self.keying.renew(&self.db.conn, step, self.next_seq)
    }

    /// Compacts at least `rows` rows and ids, and more of them the more this transaction has added.
    pub(super) fn compact_some(&mut self, rows: usize, now: Timestamp) -> Result<(), rusqlite::Error> {
        let acks = rows.max(2 * self.acks.added());
        self.acks.compact_some(&self.db.conn, &self.retention, &mut self.counters, acks, now)?;
        let ids = rows.max(3 * self.dedup.added());
        self.dedup.index_some(&self.db.conn, self.next_seq - 1, ids)
    }

    /// Begins to compact everything; [`Store::compact_some`] goes on with it.
    pub(super) fn begin_compaction(&mut self) -> Result<(), rusqlite::Error> {
        self.acks.begin_pass(&self.db.conn)?;
        self.dedup.begin_indexing(self.next_seq - 1);
        Ok(())
    }

    /// Whether a compaction has begun and is not done.
    pub(super) fn is_compacting(&self) -> bool {
        self.acks.is_compacting() || self.dedup.is_indexing()
    }

    /// Whether every delivered row is in `settled` and every id in a table.
    pub(super) fn is_compact(&self) -> bool {
        self.acks.is_empty() && self.dedup.is_indexed()
    }

    /// Moves every delivered row.
    pub(super) fn compact_acks(&mut self) -> Result<(), rusqlite::Error> {
        self.acks.compact_all(&self.db.conn, &self.retention, &mut self.counters)
    }

    /// Compacts everything.
    pub(super) fn compact_all(&mut self) -> Result<(), rusqlite::Error> {
        self.compact_acks()?;
        self.dedup.index_all(&self.db.conn, self.next_seq - 1)
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
        meta::set(&self.db.conn, LAST_SEQ, self.next_seq - 1)
    }

    pub(super) fn suppression(&self) -> Suppression<'_> {
        Suppression { conn: &self.db.conn, person_key: &self.retention.person_key }
    }

    pub(super) fn cached(&self, sql: &str) -> Result<CachedStatement<'_>, rusqlite::Error> {
        self.db.cached(sql)
    }
}
