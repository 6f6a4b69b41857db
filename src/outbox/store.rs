//! The connection that writes. A [`Store`] owns it, and the writer's thread owns the store; what it does to events
//! stands beside: `append`, `settle`, `keep`, `files`.
//!
//! Each change keeps three things true together, in one transaction: the rows, the counters, and how far the
//! spool's files have been taken.

use super::ack_log::AckLog;
use super::ids::Ids;
use super::person::PersonKey;
use super::replaced_files::{FileId, file_at};
use super::{OutboxError, Reader, Settings, beside, schema};
use crate::clock::Timestamp;
use crate::disk;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{CachedStatement, Connection, FileControl, OpenFlags, OptionalExtension, ffi, params};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The database's file grows by so much at once.
const CHUNK_SIZE: i32 = 64 << 10;
/// The command line commits while the daemon runs; its transactions take milliseconds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of the counter of duplicates, which are no rows.
pub(super) const DUPLICATES: &str = "duplicate";
pub(super) const RETRY_REQUESTS: &str = "retry_requests";
/// The last number that an event had when something was forgotten.
pub(super) const LAST_SEQ: &str = "last_seq";
/// When it was last opened without a reserve file.
pub(super) const OPENED: &str = "opened";
pub(super) const RETRY_AFTER_DEADLINE: &str = "retry_after_deadline";

/// The connection that writes, and what only its owner may know.
pub(super) struct Store {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    /// The database and its write-ahead log, as they were opened.
    pub(super) files: [FileId; 2],
    pub(super) settings: Settings,
    pub(super) next_seq: i64,
    pub(super) person_key: PersonKey,
    pub(super) counted: Counted,
    pub(super) acks: AckLog,
    pub(super) ids: Ids,
    /// Up to there delivered events have been looked at whose time may be up.
    pub(super) expired_to: i64,
    /// SQLite's number for what other connections have committed, as it was when the three above were read; `None`: they
    /// are to be read again.
    seen: Option<i64>,
    /// How often something of others was noticed.
    pub(super) external_commits: u64,
    /// Pages in the write-ahead log, as of the last commit.
    log_pages: Arc<AtomicU64>,
}

/// The first number that no event of the outbox has, and none after it.
const FREE_SEQ: &str = "SELECT 1 + max(coalesce((SELECT max(seq) FROM pending), 0),
                                       coalesce((SELECT max(seq) FROM settled), 0),
                                       coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0),
                                       coalesce((SELECT value FROM meta WHERE name = 'last_seq'), 0))";

/// Changes of the counters that wait for the end of the transaction.
#[derive(Default)]
pub(super) struct Counted(pub(super) BTreeMap<(&'static str, &'static str), i64>);

impl Counted {
    pub(super) fn add(&mut self, state: &'static str, code: &'static str, n: i64) {
        *self.0.entry((state, code)).or_default() += n;
    }
}

impl Store {
    /// Opens the database, creates it if it is not there, and brings its schema up to date.
    pub(super) fn open(settings: &Settings) -> Result<Store, OutboxError> {
        let path = settings.path.clone();
        let sql = |e| OutboxError::sqlite(&path, "open the database", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        // Somebody else's database is only looked at: a connection that can write changes it by opening it.
        if let Err(e) = Reader::beside(&path)
            && e.is_not_ours()
        {
            return Err(e);
        }
        let mut conn = Connection::open_with_flags(&path, flags).map_err(sql)?;
        configure(&mut conn).map_err(sql)?;
        schema::migrate(&mut conn, &path)?;
        let person_key = PersonKey::of(&conn, &path)?;
        let log_pages = Arc::new(AtomicU64::new(0));
        let count = log_pages.clone();
        conn.wal_hook(Some(move |_: &mut Wal, pages| {
            count.store(u64::try_from(pages).unwrap_or(0), Relaxed);
            Ok(())
        }))
        .map_err(sql)?;
        let file = |path: &std::path::Path| match file_at(path)? {
            Some((file, _)) => Ok(file),
            None => Err(OutboxError::Missing { path: path.to_owned() }),
        };
        let files = [file(&path)?, file(&beside(&path, "-wal"))?];
        Ok(Store {
            conn,
            path,
            files,
            settings: settings.clone(),
            next_seq: 1,
            person_key,
            counted: Counted::default(),
            acks: AckLog::default(),
            ids: Ids::default(),
            expired_to: 0,
            seen: None,
            external_commits: 0,
            log_pages,
        })
    }

    pub(super) fn set_settings(&mut self, settings: Settings) {
        self.settings = Settings { path: self.path.clone(), ..settings };
    }

    pub(super) fn error(&self, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(&self.path, operation, source)
    }

    /// Runs `work` in one transaction. When this returns `Ok`, all that it did is on the disk; when it
    /// returns an error, nothing is (or, after an I/O error of the commit, nobody can know).
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, rusqlite::Error>,
    ) -> Result<T, OutboxError> {
        // IMMEDIATE: a transaction that upgrades later is told BUSY at once, whatever the time-out.
        let begun = self.run("BEGIN IMMEDIATE");
        self.ids.made = 0;
        let done = begun.and_then(|()| {
            self.look_again()?;
            work(self)
        });
        let done = done.and_then(|value| {
            self.append_ack()?;
            self.flush_counters()?;
            self.claim_room()?;
            self.run("COMMIT")?;
            Ok(value)
        });
        let value = done.map_err(|e| {
            self.counted.0.clear();
            (self.seen, self.acks) = (None, AckLog::default());
            self.drop_ids();
            if !self.conn.is_autocommit() {
                // If this fails as well, the error below says enough.
                let _ = self.conn.execute_batch("ROLLBACK");
            }
            self.error("commit", e)
        })?;
        Ok(value)
    }

    /// Moves some of what is not yet where it belongs, and the more of it the more this transaction has added to it.
    pub(super) fn move_on(&mut self, at_least: usize, now: Timestamp) -> Result<(), rusqlite::Error> {
        self.compact(at_least.max(2 * self.acks.made()), now)?;
        self.move_ids(at_least.max(3 * self.ids.made))
    }

    /// Begins to bring everything where it belongs.
    pub(super) fn move_all(&mut self) -> Result<(), rusqlite::Error> {
        self.begin_pass()?;
        self.index_ids_now();
        Ok(())
    }

    /// Whether there is anything left to move.
    pub(super) fn is_moving(&self) -> bool {
        self.acks.are_moving() || self.ids.are_moving()
    }

    /// Brings everything where it belongs.
    pub(super) fn tidy_up(&mut self) -> Result<(), rusqlite::Error> {
        self.compact_all()?;
        self.index_all_ids()
    }

    /// Reads again what another process may have changed.
    fn look_again(&mut self) -> Result<(), rusqlite::Error> {
        let version = self.cached("PRAGMA data_version")?.query_row([], |r| r.get(0))?;
        if self.seen != Some(version) {
            let free = self.cached(FREE_SEQ)?.query_row([], |r| r.get(0))?;
            self.read_acks()?;
            self.next_seq = self.next_seq.max(free).max(self.acks.free_seq());
            self.read_ids()?;
            self.external_commits += 1;
            self.seen = Some(version);
        }
        Ok(())
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

    /// A fact about this outbox.
    pub(super) fn meta(&self, name: &str) -> Result<Option<i64>, OutboxError> {
        self.read_meta(name).map_err(|e| self.error("read its settings", e))
    }

    /// The same within a transaction.
    pub(super) fn read_meta(&self, name: &str) -> Result<Option<i64>, rusqlite::Error> {
        self.cached("SELECT value FROM meta WHERE name = ?")?.query_row([name], |r| r.get(0)).optional()
    }

    /// A number that changes when another connection has committed something.
    pub(super) fn data_version(&self) -> Result<i64, OutboxError> {
        self.conn
            .query_row("PRAGMA data_version", [], |r| r.get(0))
            .map_err(|e| self.error("look for changes", e))
    }

    /// Bytes in use, free pages aside, and pages that could be given back to the file system.
    pub(super) fn size(&self) -> Result<(u64, u64), OutboxError> {
        let pragma = |sql: &str| {
            self.cached(sql)
                .and_then(|mut s| s.query_row([], |r| r.get::<_, i64>(0)))
                .map(|n| n as u64)
                .map_err(|e| self.error("measure it", e))
        };
        let pages = pragma("PRAGMA page_count")?;
        let (free, size) = (pragma("PRAGMA freelist_count")?, pragma("PRAGMA page_size")?);
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

    /// Pages of the WAL that are in use. A log that was copied is written from its start again, and keeps its size.
    pub(super) fn log_pages(&self) -> u64 {
        self.log_pages.load(Relaxed)
    }

    /// Copies the WAL into the database, as far as readers allow: with what is committed next it begins anew. Returns
    /// whether all of it stands there.
    pub(super) fn copy_log(&self) -> Result<bool, OutboxError> {
        // Whether another one was at it, pages in the log, pages copied.
        let is_copied = |r: &rusqlite::Row<'_>| {
            Ok(r.get::<_, i64>(0)? == 0 && r.get::<_, i64>(1)? == r.get::<_, i64>(2)?)
        };
        self.cached("PRAGMA wal_checkpoint(PASSIVE)")
            .and_then(|mut copy| copy.query_row([], is_copied))
            .map_err(|e| self.error("copy the write-ahead log", e))
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

    /// Gives the database's file room for all its pages before they are committed to the WAL: so the WAL can always
    /// be copied and emptied, however full the disk has become.
    fn claim_room(&self) -> Result<(), rusqlite::Error> {
        let number = |sql: &str| self.cached(sql)?.query_row([], |r| r.get::<_, i64>(0));
        let mut size = number("PRAGMA page_count")? * number("PRAGMA page_size")?;
        let lacking =
            (size as u64).saturating_sub(std::fs::metadata(&self.path).map_or(0, |file| file.len()));
        if lacking == 0 {
            return Ok(());
        }
        // As much again goes into the WAL.
        let full = || disk::space_of(&self.path).is_some_and(|disk| disk.free < 2 * lacking);
        let no_room = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None);
        if full() {
            return Err(no_room());
        }
        let claimed = self.conn.file_control(None::<&str>, FileControl::SizeHint(&mut size));
        // SQLite does not tell why it failed, and somebody else may have taken the room just now.
        claimed.map_err(|e| if full() { no_room() } else { e })
    }

    fn flush_counters(&mut self) -> Result<(), rusqlite::Error> {
        for ((state, code), n) in std::mem::take(&mut self.counted.0) {
            let mut count =
                self.cached("UPDATE counters SET events = events + ?3 WHERE state = ?1 AND code = ?2")?;
            if n != 0 && count.execute(params![state, code, n])? == 0 {
                self.cached("INSERT INTO counters (state, code, events) VALUES (?, ?, ?)")?
                    .execute(params![state, code, n])?;
            }
        }
        Ok(())
    }

    /// Runs a statement that has neither parameters nor rows.
    pub(super) fn run(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.cached(sql)?.execute([]).map(drop)
    }

    pub(super) fn cached(&self, sql: &str) -> Result<CachedStatement<'_>, rusqlite::Error> {
        self.conn.prepare_cached(sql)
    }
}

fn configure(conn: &mut Connection) -> Result<(), rusqlite::Error> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // A damaged database is closed as it was found; the log of a sound one is emptied on purpose.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // It takes effect on an empty file alone; any other it would write to, even a damaged one.
    if conn.query_row("PRAGMA page_count", [], |r| r.get::<_, i64>(0))? == 0 {
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // An acknowledged commit survives a power cut; NORMAL loses some.
    conn.pragma_update(None, "synchronous", "FULL")?;
    // The writer copies the WAL by itself: a commit says nothing of what befalls the copying.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.file_control(None::<&str>, FileControl::ChunkSize(&mut CHUNK_SIZE.clone()))?;
    // A body that is erased is overwritten, not only unlinked.
    conn.query_row("PRAGMA secure_delete = FAST", [], |_| Ok(()))?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // Kibibytes: what is added by one large commit need not be written before its end.
    conn.pragma_update(None, "cache_size", -6_144)?;
    // Readers without write access to the folder need the -wal and -shm files to stay.
    let mut persist = 1;
    conn.file_control(None::<&str>, FileControl::PersistWal(&mut persist))
}
