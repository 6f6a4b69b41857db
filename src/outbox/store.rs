//! Every statement that changes the outbox. A [`Store`] owns the connection; the writer's thread owns it.
//!
//! Each change keeps three things true together, in one transaction: the rows, the counters, and how far the
//! spool's files have been taken.

use super::row::{Fate, NewEvent, State};
use super::{OutboxError, Settings, schema};
use crate::clock::Timestamp;
use crate::event::{Digest, MessageId};
use crate::reason::{Code, Reason};
use crate::spool::FileIdentity;
use hmac::{Hmac, KeyInit, Mac};
use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pages that a commit may leave in the WAL before it is copied back: 16 MiB keeps checkpoints rare under
/// load and the WAL small beside the backlog.
const AUTOCHECKPOINT_PAGES: u32 = 4_096;
/// What a checkpoint leaves of the WAL's file.
const JOURNAL_SIZE_LIMIT: u32 = 16 << 20;
/// Answers kept for one event: the first trouble is seldom older than this many, the last ones matter most.
const MAX_ATTEMPTS_KEPT: i64 = 16;
/// The command line commits while the daemon runs; its transactions take milliseconds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of the counter of duplicates, which are no rows.
pub(super) const DUPLICATES: &str = "duplicate";
pub(super) const PERSON_KEY: &str = "person_key";
pub(super) const KICKS: &str = "kicks";
pub(super) const NOT_BEFORE: &str = "not_before";

/// How far a file has been taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which file, as first seen.
    pub identity: FileIdentity,
    /// Its name in the spool, as bytes, as first seen.
    pub name: Vec<u8>,
    /// Bytes of the (unpacked) text that are taken.
    pub position: u64,
    /// Lines or elements that are taken.
    pub place: u64,
    /// The file's size in bytes when it was read, and its modification time then, nanoseconds since 1970.
    pub read: (u64, i64),
    /// Whether all of it is taken, so that nothing but its removal is left to do.
    pub finished: bool,
}

/// What became of the events of one [`Writer::append`](super::Writer::append).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// All are on the disk, but for duplicates, which were there before.
    Stored {
        /// How many are new.
        stored: u64,
        /// How many were there before.
        duplicates: u64,
    },
    /// Nothing is stored: these, by index, carry the id of an earlier event of other content.
    Reused(Vec<Reused>),
}

/// An id that was used before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reused {
    /// The event's index in the call.
    pub index: usize,
    /// When the first event of that id came.
    pub first_at: Timestamp,
    /// And in which file.
    pub first_file: String,
}

/// How one pending event is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The receiver accepted it.
    Delivered,
    /// There is nothing to send; whether its body is kept for a while.
    Skipped(Reason),
    /// No request can be made of it, or the receiver refused it.
    Failed(Reason),
    /// Given up by hand.
    Discarded,
}

impl Settled {
    /// The state that it leads to.
    pub fn state(&self) -> State {
        match self {
            Settled::Delivered => State::Delivered,
            Settled::Skipped(_) => State::Skipped,
            Settled::Failed(_) => State::Failed,
            Settled::Discarded => State::Discarded,
        }
    }

    fn reason(&self) -> (&str, &str) {
        match self {
            Settled::Skipped(r) | Settled::Failed(r) => (r.code.as_str(), &r.text),
            Settled::Delivered | Settled::Discarded => ("", ""),
        }
    }
}

/// The connection that writes, and what only its owner may know.
pub(super) struct Store {
    conn: Connection,
    path: PathBuf,
    file: (u64, u64),
    settings: Settings,
    next_seq: i64,
    person_key: [u8; 32],
    counted: Counted,
}

/// Changes of the counters that wait for the end of the transaction.
#[derive(Default)]
struct Counted(BTreeMap<(&'static str, &'static str), i64>);

impl Counted {
    fn add(&mut self, state: &'static str, code: &'static str, n: i64) {
        *self.0.entry((state, code)).or_default() += n;
    }
}

impl Store {
    /// Opens the database, creates it if it is not there, and brings its schema up to date.
    pub(super) fn open(settings: &Settings) -> Result<Store, OutboxError> {
        let path = settings.path.clone();
        let sql = |e| OutboxError::sqlite(&path, "open the database", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(&path, flags).map_err(sql)?;
        configure(&mut conn).map_err(sql)?;
        schema::migrate(&mut conn, &path)?;
        let next_seq: i64 = conn
            .query_row(
                "SELECT 1 + max(coalesce((SELECT max(seq) FROM pending), 0),
                                coalesce((SELECT max(seq) FROM settled), 0))",
                [],
                |r| r.get(0),
            )
            .map_err(sql)?;
        let person_key = person_key(&conn, &path)?;
        let file = file_at(&path)?;
        Ok(Store {
            conn,
            path,
            file,
            settings: settings.clone(),
            next_seq,
            person_key,
            counted: Counted::default(),
        })
    }

    pub(super) fn set_settings(&mut self, settings: Settings) {
        self.settings = Settings { path: self.path.clone(), ..settings };
    }

    pub(super) fn error(&self, deed: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(&self.path, deed, source)
    }

    /// Runs `work` in one transaction. When this returns `Ok`, all that it did is on the disk; when it
    /// returns an error, nothing is (or, after an I/O error of the commit, nobody can know).
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, rusqlite::Error>,
    ) -> Result<T, OutboxError> {
        let next_seq = self.next_seq;
        // IMMEDIATE: a transaction that upgrades later is told BUSY at once, whatever the time-out.
        let begun = self.conn.execute_batch("BEGIN IMMEDIATE");
        let done = begun.and_then(|()| work(self)).and_then(|value| {
            self.flush_counters()?;
            self.conn.execute_batch("COMMIT")?;
            Ok(value)
        });
        let value = done.map_err(|e| {
            self.counted.0.clear();
            self.next_seq = next_seq;
            if !self.conn.is_autocommit() {
                // If this fails as well, the error below says enough.
                let _ = self.conn.execute_batch("ROLLBACK");
            }
            self.error("commit", e)
        })?;
        // SQLite goes on saying OK when its file has been deleted or another put in its place.
        if file_at(&self.path)? != self.file {
            let (path, text) = (self.path.clone(), "the file was replaced while it was open".to_owned());
            return Err(OutboxError::Io { path, deed: "commit", text });
        }
        Ok(value)
    }

    /// Adds events at the end of the spool's order and notes how far their files are taken. All or nothing:
    /// with a reused id among them nothing is added. Call it within [`Store::transaction`].
    pub(super) fn append(
        &mut self,
        events: &[NewEvent],
        progress: &[Progress],
        now: Timestamp,
    ) -> Result<Appended, rusqlite::Error> {
        let first_seq = self.next_seq;
        let before = std::mem::take(&mut self.counted);
        self.conn.execute_batch("SAVEPOINT append")?;
        let (mut duplicates, mut reused) = (0, Vec::new());
        for (index, event) in events.iter().enumerate() {
            match self.insert(event, now)? {
                Inserted::New => {}
                Inserted::Duplicate => duplicates += 1,
                Inserted::Reused { first_at, first_file } => {
                    reused.push(Reused { index, first_at, first_file });
                }
            }
        }
        if !reused.is_empty() {
            self.conn.execute_batch("ROLLBACK TO append; RELEASE append")?;
            self.next_seq = first_seq;
            self.counted = before;
            return Ok(Appended::Reused(reused));
        }
        for p in progress {
            self.note_progress(p)?;
        }
        self.conn.execute_batch("RELEASE append")?;
        for ((state, code), n) in before.0 {
            self.counted.add(state, code, n);
        }
        self.counted.add(DUPLICATES, "", duplicates as i64);
        Ok(Appended::Stored { stored: events.len() as u64 - duplicates, duplicates })
    }

    fn insert(&mut self, event: &NewEvent, now: Timestamp) -> Result<Inserted, rusqlite::Error> {
        let id = short_id(&event.message_id);
        let seq = self.next_seq;
        let added = self
            .cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?
            .execute(params![id, seq])?;
        if added == 0 {
            let (digest, first_at, first_file) = self.first_of(&id)?;
            return Ok(if digest == event.digest {
                Inserted::Duplicate
            } else {
                Inserted::Reused { first_at, first_file }
            });
        }
        self.next_seq += 1;
        let common = (event.message_id.as_str(), &event.kind, &event.name, event.digest.to_bytes());
        match &event.fate {
            Fate::Send { lane, person } => {
                self.cached(
                    "INSERT INTO pending (seq, lane, message_id, type, event, person, digest, file, place,
                                          spooled_at, received_at, body)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    seq,
                    lane.0,
                    common.0,
                    common.1,
                    common.2,
                    person,
                    common.3,
                    &*event.file,
                    event.place as i64,
                    event.spooled_at.0,
                    now.0,
                    event.body
                ])?;
                self.counted.add(State::Pending.as_str(), "", 1);
            }
            Fate::Skip(reason) | Fate::Fail(reason) => {
                let settled = match &event.fate {
                    Fate::Skip(_) => Settled::Skipped(reason.clone()),
                    _ => Settled::Failed(reason.clone()),
                };
                let state = settled.state();
                self.cached(
                    "INSERT INTO settled (seq, state, message_id, type, event, person, digest, file, place,
                                          spooled_at, received_at, settled_at, attempts, code, reason)
                     VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                )?
                .execute(params![
                    seq,
                    state.as_str(),
                    common.0,
                    common.1,
                    common.2,
                    common.3,
                    &*event.file,
                    event.place as i64,
                    event.spooled_at.0,
                    now.0,
                    now.0,
                    reason.code.as_str(),
                    reason.text
                ])?;
                self.counted.add(state.as_str(), reason.code.as_str(), 1);
                if self.keeps_body(&settled) {
                    self.cached("INSERT INTO bodies (seq, state, since, body) VALUES (?, ?, ?, ?)")?
                        .execute(params![seq, state.as_str(), now.0, event.body])?;
                }
            }
        }
        Ok(Inserted::New)
    }

    fn first_of(&self, id: &[u8; 16]) -> Result<(Digest, Timestamp, String), rusqlite::Error> {
        self.cached(
            "SELECT digest, received_at, file FROM pending WHERE seq = (SELECT seq FROM ids WHERE id = ?1)
             UNION ALL
             SELECT digest, received_at, file FROM settled WHERE seq = (SELECT seq FROM ids WHERE id = ?1)",
        )?
        .query_row([id], |r| Ok((Digest::from_bytes(r.get(0)?), Timestamp(r.get(1)?), r.get(2)?)))
    }

    /// Whether the body of an event settled like this stays for a while.
    fn keeps_body(&self, settled: &Settled) -> bool {
        match settled {
            Settled::Delivered => !self.settings.keep_bodies.is_zero(),
            Settled::Skipped(reason) => {
                // The producer has said that this event is none of Koala's business.
                reason.code != Code::IntegrationsOff && !self.settings.keep_skipped.is_zero()
            }
            Settled::Failed(_) => true,
            Settled::Discarded => false,
        }
    }

    /// Settles pending events; those that are not pending any more are left as they are.
    pub(super) fn settle(&mut self, rows: &[(i64, Settled)], now: Timestamp) -> Result<(), rusqlite::Error> {
        for (seq, settled) in rows {
            let state = settled.state();
            debug_assert!(State::Pending.may_become(state));
            let person: Option<String> = self
                .cached("SELECT person FROM pending WHERE seq = ?")?
                .query_row([seq], |r| r.get(0))
                .optional()?;
            let Some(mut person) = person else { continue };
            let keeps_body = self.keeps_body(settled);
            if !keeps_body {
                person = hashed(&self.person_key, &person);
            }
            let (code, reason) = settled.reason();
            self.cached(
                "INSERT INTO settled (seq, state, message_id, type, event, person, digest, file, place,
                                      spooled_at, received_at, settled_at, attempts, code, reason)
                 SELECT seq, ?2, message_id, type, event, ?3, digest, file, place, spooled_at, received_at, ?4,
                        (SELECT coalesce(max(n), 0) FROM attempts a WHERE a.seq = ?1) + ?5, ?6, ?7
                   FROM pending WHERE seq = ?1",
            )?
            .execute(params![
                seq, state.as_str(), person, now.0, i64::from(state == State::Delivered), code, reason
            ])?;
            if keeps_body {
                self.cached(
                    "INSERT INTO bodies (seq, state, since, body)
                     SELECT seq, ?2, ?3, body FROM pending WHERE seq = ?1",
                )?
                .execute(params![seq, state.as_str(), now.0])?;
            }
            self.cached("DELETE FROM pending WHERE seq = ?")?.execute([seq])?;
            self.counted.add(State::Pending.as_str(), "", -1);
            self.counted.add(state.as_str(), Code::parse(code).map_or("", Code::as_str), 1);
        }
        Ok(())
    }

    /// Notes an answer other than acceptance with each of these events.
    pub(super) fn note_attempts(
        &mut self,
        seqs: &[i64],
        reason: &Reason,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        for seq in seqs {
            self.cached(
                "INSERT INTO attempts (seq, n, at, code, text)
                 SELECT ?1, coalesce((SELECT max(n) FROM attempts WHERE seq = ?1), 0) + 1, ?2, ?3, ?4
                  WHERE EXISTS (SELECT 1 FROM pending WHERE seq = ?1)",
            )?
            .execute(params![seq, now.0, reason.code.as_str(), reason.text])?;
            self.cached(
                "DELETE FROM attempts
                  WHERE seq = ?1 AND n <= (SELECT max(n) FROM attempts WHERE seq = ?1) - ?2",
            )?
            .execute(params![seq, MAX_ATTEMPTS_KEPT])?;
        }
        Ok(())
    }

    /// Puts a settled event whose body was kept back among the pending.
    /// `false`: it is not settled, may not go back, or has no body any more.
    pub(super) fn readmit(&mut self, seq: i64, lane: i64, person: &str) -> Result<bool, rusqlite::Error> {
        let Some((state, code)) = self.settled_state(seq)? else { return Ok(false) };
        if !state.may_become(State::Pending) {
            return Ok(false);
        }
        let moved = self
            .cached(
                "INSERT INTO pending (seq, lane, message_id, type, event, person, digest, file, place,
                                      spooled_at, received_at, body)
                 SELECT s.seq, ?2, s.message_id, s.type, s.event, ?3, s.digest, s.file, s.place, s.spooled_at,
                        s.received_at, b.body
                   FROM settled s JOIN bodies b ON b.seq = s.seq WHERE s.seq = ?1",
            )?
            .execute(params![seq, lane, person])?;
        if moved == 0 {
            return Ok(false);
        }
        self.cached("DELETE FROM settled WHERE seq = ?")?.execute([seq])?;
        self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
        self.counted.add(state.as_str(), code, -1);
        self.counted.add(State::Pending.as_str(), "", 1);
        Ok(true)
    }

    /// Gives up an event: its body is erased and it is never sent. `false`: it may not become `discarded`.
    pub(super) fn discard(&mut self, seq: i64, now: Timestamp) -> Result<bool, rusqlite::Error> {
        if let Some((state, code)) = self.settled_state(seq)? {
            if !state.may_become(State::Discarded) {
                return Ok(false);
            }
            let person: Option<String> =
                self.cached("SELECT person FROM settled WHERE seq = ?")?.query_row([seq], |r| r.get(0))?;
            let person = person.map(|p| hashed(&self.person_key, &p));
            self.cached(
                "UPDATE settled SET state = 'discarded', person = ?2, settled_at = ?3, code = '', reason = ''
                  WHERE seq = ?1",
            )?
            .execute(params![seq, person, now.0])?;
            self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
            self.counted.add(state.as_str(), code, -1);
            self.counted.add(State::Discarded.as_str(), "", 1);
            return Ok(true);
        }
        self.settle(&[(seq, Settled::Discarded)], now)?;
        Ok(self.settled_state(seq)?.is_some())
    }

    fn settled_state(&self, seq: i64) -> Result<Option<(State, &'static str)>, rusqlite::Error> {
        let row: Option<(String, String)> = self
            .cached("SELECT state, code FROM settled WHERE seq = ?")?
            .query_row([seq], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        Ok(row.and_then(|(state, code)| {
            Some((State::parse(&state)?, Code::parse(&code).map_or("", Code::as_str)))
        }))
    }

    /// Forgets up to `limit` rows that are older than the configuration keeps them, and erases bodies whose
    /// time is up. Returns how many rows and bodies went; less than `limit` means that nothing is left to do.
    pub(super) fn expire(&mut self, now: Timestamp, limit: usize) -> Result<usize, rusqlite::Error> {
        let keep = self.settings.clone();
        let mut gone = 0;
        for (state, age) in [
            (State::Delivered, keep.keep_delivered),
            (State::Skipped, keep.keep_delivered.max(keep.keep_skipped)),
            (State::Discarded, keep.keep_delivered),
            (State::Failed, keep.keep_failed),
        ] {
            let old: Vec<(i64, String, String)> = self
                .cached(
                    "SELECT seq, message_id, code FROM settled WHERE state = ? AND settled_at < ?
                      ORDER BY settled_at LIMIT ?",
                )?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            for (seq, message_id, code) in old {
                self.cached("DELETE FROM ids WHERE id = ?")?.execute([short_hash(&message_id)])?;
                for table in ["settled", "bodies", "attempts"] {
                    self.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
                }
                self.counted.add(state.as_str(), Code::parse(&code).map_or("", Code::as_str), -1);
                gone += 1;
            }
        }
        for (state, age) in [(State::Delivered, keep.keep_bodies), (State::Skipped, keep.keep_skipped)] {
            let old: Vec<(i64, Option<String>)> = self
                .cached(
                    "SELECT b.seq, s.person FROM bodies b JOIN settled s ON s.seq = b.seq
                      WHERE b.state = ? AND b.since < ? ORDER BY b.since LIMIT ?",
                )?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok((r.get(0)?, r.get(1)?))
                })?
                .collect::<Result<_, _>>()?;
            for (seq, person) in old {
                let person = person.map(|p| hashed(&self.person_key, &p));
                self.cached("UPDATE settled SET person = ?2 WHERE seq = ?1")?
                    .execute(params![seq, person])?;
                self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    fn note_progress(&self, p: &Progress) -> Result<(), rusqlite::Error> {
        self.cached(
            "INSERT OR REPLACE INTO spool_files
                    (name, inode, born, modified, position, place, read_size, read_modified, finished)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            p.name,
            p.identity.inode as i64,
            p.identity.born,
            p.identity.modified,
            p.position as i64,
            p.place as i64,
            p.read.0 as i64,
            p.read.1,
            p.finished
        ])?;
        Ok(())
    }

    /// Forgets files that are gone from the spool.
    pub(super) fn forget_files(&self, files: &[FileIdentity]) -> Result<(), rusqlite::Error> {
        for file in files {
            self.cached("DELETE FROM spool_files WHERE inode = ? AND born = ? AND modified = ?")?
                .execute(params![file.inode as i64, file.born, file.modified])?;
        }
        Ok(())
    }

    /// Every file that is not known to be gone from the spool.
    pub(super) fn progress(&self) -> Result<Vec<Progress>, OutboxError> {
        let read = || {
            self.cached(
                "SELECT name, inode, born, modified, position, place, read_size, read_modified, finished
                   FROM spool_files",
            )?
            .query_map([], |r| {
                Ok(Progress {
                    name: r.get(0)?,
                    identity: FileIdentity {
                        inode: r.get::<_, i64>(1)? as u64,
                        born: r.get(2)?,
                        modified: r.get(3)?,
                    },
                    position: r.get::<_, i64>(4)? as u64,
                    place: r.get::<_, i64>(5)? as u64,
                    read: (r.get::<_, i64>(6)? as u64, r.get(7)?),
                    finished: r.get(8)?,
                })
            })?
            .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|e| self.error("read how far the spool is taken", e))
    }

    /// Sets a fact about this outbox.
    pub(super) fn set_meta(&self, name: &str, value: i64) -> Result<(), rusqlite::Error> {
        self.cached("INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
            .execute(params![name, value])?;
        Ok(())
    }

    /// Counts a fact about this outbox up by one.
    pub(super) fn bump(&self, name: &str) -> Result<(), rusqlite::Error> {
        self.cached(
            "INSERT INTO meta (name, value) VALUES (?1, 1) ON CONFLICT DO UPDATE SET value = value + 1",
        )?
        .execute([name])?;
        Ok(())
    }

    /// The row of a messageId, by its short hash.
    pub(super) fn seq_of(&self, id: &[u8; 16]) -> Result<i64, rusqlite::Error> {
        self.cached("SELECT seq FROM ids WHERE id = ?")?.query_row([id], |r| r.get(0))
    }

    /// A fact about this outbox.
    pub(super) fn meta(&self, name: &str) -> Result<Option<i64>, OutboxError> {
        self.cached("SELECT value FROM meta WHERE name = ?")
            .and_then(|mut s| s.query_row([name], |r| r.get(0)).optional())
            .map_err(|e| self.error("read its settings", e))
    }

    /// A number that changes when another connection has committed something.
    pub(super) fn data_version(&self) -> Result<i64, OutboxError> {
        self.conn
            .query_row("PRAGMA data_version", [], |r| r.get(0))
            .map_err(|e| self.error("look for changes", e))
    }

    /// Bytes in use, free pages aside, and pages that could be given back to the file system.
    pub(super) fn size(&self) -> Result<(u64, u64), OutboxError> {
        let pragma = |name: &str| {
            self.conn
                .query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0))
                .map(|n| n as u64)
                .map_err(|e| self.error("measure it", e))
        };
        let (pages, free, size) = (pragma("page_count")?, pragma("freelist_count")?, pragma("page_size")?);
        Ok((pages.saturating_sub(free) * size, free))
    }

    /// Gives up to `pages` free pages back to the file system.
    pub(super) fn shrink(&self, pages: u64) -> Result<(), OutboxError> {
        // It gives one page back at each step.
        let all = || {
            let mut vacuum = self.conn.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {}
            Ok(())
        };
        all().map_err(|e| self.error("give space back", e))
    }

    /// Copies the whole WAL into the database and empties it, as far as readers allow within `patience`. Returns
    /// whether it is empty.
    pub(super) fn checkpoint(&self, patience: Duration) -> Result<bool, OutboxError> {
        let emptied = self.conn.busy_timeout(patience).and_then(|()| {
            self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| Ok(r.get::<_, i64>(0)? == 0))
        });
        self.conn
            .busy_timeout(BUSY_TIMEOUT)
            .and(emptied)
            .map_err(|e| self.error("empty the write-ahead log", e))
    }

    /// Bytes of the WAL's file.
    pub(super) fn wal_size(&self) -> u64 {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        std::fs::metadata(wal).map_or(0, |meta| meta.len())
    }

    fn flush_counters(&mut self) -> Result<(), rusqlite::Error> {
        for ((state, code), n) in std::mem::take(&mut self.counted.0) {
            if n != 0 {
                // Not an upsert with the difference alone: the row to be inserted would have to pass the CHECK.
                self.cached(
                    "INSERT INTO counters (state, code, events) VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
                )?
                .execute([state, code])?;
                self.cached("UPDATE counters SET events = events + ?3 WHERE state = ?1 AND code = ?2")?
                    .execute(params![state, code, n])?;
            }
        }
        Ok(())
    }

    fn cached(&self, sql: &str) -> Result<CachedStatement<'_>, rusqlite::Error> {
        self.conn.prepare_cached(sql)
    }
}

/// Which file is at that path: its device and inode.
fn file_at(path: &Path) -> Result<(u64, u64), OutboxError> {
    let meta = std::fs::metadata(path).map_err(|e| OutboxError::io(path, "find the database", &e))?;
    Ok((meta.dev(), meta.ino()))
}

enum Inserted {
    New,
    Duplicate,
    Reused { first_at: Timestamp, first_file: String },
}

fn configure(conn: &mut Connection) -> Result<(), rusqlite::Error> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // Only takes effect on a file that is still empty.
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // An acknowledged commit survives a power cut; NORMAL loses some.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "wal_autocheckpoint", AUTOCHECKPOINT_PAGES)?;
    conn.query_row(&format!("PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT}"), [], |_| Ok(()))?;
    // A body that is erased is overwritten, not only unlinked.
    conn.query_row("PRAGMA secure_delete = FAST", [], |_| Ok(()))?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // Readers without write access to the folder need the -wal and -shm files to stay.
    let mut persist = 1;
    conn.file_control(None::<&str>, rusqlite::FileControl::PersistWal(&mut persist))
}

/// The key under which persons are hashed once their events' bodies are gone; made with the outbox.
fn person_key(conn: &Connection, path: &std::path::Path) -> Result<[u8; 32], OutboxError> {
    let sql = |e| OutboxError::sqlite(path, "read its key for persons", e);
    if let Some(key) = read_person_key(conn).map_err(sql)? {
        return Ok(key);
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|e| OutboxError::Io {
        path: path.to_owned(),
        deed: "make a key for persons",
        text: e.to_string(),
    })?;
    let tx = rusqlite::Transaction::new_unchecked(conn, TransactionBehavior::Immediate).map_err(sql)?;
    tx.execute("INSERT INTO meta (name, value) VALUES (?, ?)", params![PERSON_KEY, key]).map_err(sql)?;
    tx.commit().map_err(sql)?;
    Ok(key)
}

pub(super) fn read_person_key(conn: &Connection) -> Result<Option<[u8; 32]>, rusqlite::Error> {
    conn.query_row("SELECT value FROM meta WHERE name = ?", [PERSON_KEY], |r| r.get(0)).optional()
}

/// How a person is remembered once the body is gone: 16 bytes of HMAC-SHA-256 in hexadecimal.
pub(super) fn hashed(key: &[u8; 32], person: &str) -> String {
    if person.starts_with(HASH_PREFIX) {
        return person.to_owned();
    }
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return HASH_PREFIX.to_owned() };
    mac.update(person.as_bytes());
    let hex: String = mac.finalize().into_bytes()[..16].iter().map(|b| format!("{b:02x}")).collect();
    format!("{HASH_PREFIX}{hex}")
}

/// Marks a person that is known by a hash alone.
const HASH_PREFIX: &str = "hash:";

fn short_id(id: &MessageId) -> [u8; 16] {
    short_hash(id.as_str())
}

pub(super) fn short_hash(id: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(id.as_bytes())[..16]);
    short
}
