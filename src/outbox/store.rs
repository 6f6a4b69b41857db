//! The connection that writes, with its transaction and its files.
//!
//! The journal is a write-ahead log (WAL) with `synchronous = FULL`. At a power cut, NORMAL lost commits that had been
//! acknowledged; FULL lost none. FULL costs an fsync for each commit, which the writer's thread shares among its
//! callers. SQL is written by hand: which pages a statement writes decides the speed, and an ORM would hide it.

use super::files::with_suffix;
use super::log_mark::{LogMark, Token};
use super::open_files::OpenFiles;
use super::page_gaps::PageGaps;
use super::reader::{BUSY_TIMEOUT, Reader};
use super::{OutboxError, schema};
use crate::clock::Timestamp;
use crate::disk;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{CachedStatement, Connection, FileControl, OpenFlags, Row, ffi};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The database's file grows by this many bytes at once.
const CHUNK_SIZE: i32 = 64 << 10;

/// Pages of a log that holds no more than a mark.
const MARK_PAGES: u64 = 8;

/// A database that this process may write.
pub(super) struct Store {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    /// The files that were opened. They are closed after the connection: closing any of them drops its locks.
    pub(super) files: OpenFiles,
    /// Whether the next commit may begin the log again: it writes a new mark.
    is_mark_due: Cell<bool>,
    /// Pages in the write-ahead log, as of the last commit.
    wal_pages: Arc<AtomicU64>,
    gaps: RefCell<PageGaps>,
}

/// What a transaction changes.
#[derive(Clone, Copy)]
enum Writing {
    /// Content, which is durable once it is committed.
    Rows,
    /// Unused parts of pages, without waiting for another process that writes.
    Pages,
}

/// The size of a database, free pages apart.
pub(super) struct Size {
    /// Bytes of the pages in use.
    pub(super) bytes: u64,
    /// Pages that could be given back to the file system.
    pub(super) free_pages: u64,
}

impl Store {
    /// Opens the database, and brings its schema up to date.
    pub(super) fn open(path: &Path) -> Result<Store, OutboxError> {
        Store::open_with(path, schema::migrate)
    }

    /// Opens the database that another process may own, and leaves its schema as it is.
    pub(super) fn open_as_it_is(path: &Path) -> Result<Store, OutboxError> {
        Store::open_with(path, |conn, path| schema::check(conn, path))
    }

    fn open_with(
        path: &Path,
        prepare: impl FnOnce(&mut Connection, &Path) -> Result<(), OutboxError>,
    ) -> Result<Store, OutboxError> {
        let sql = |e| OutboxError::sqlite(path, "open the database", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        // Opening for writing would change a database that another program or version has written.
        if let Err(e) = Reader::open_in_process(path)
            && e.is_not_ours()
        {
            return Err(e);
        }
        let mut conn = Connection::open_with_flags(path, flags).map_err(sql)?;
        configure(&mut conn).map_err(sql)?;
        prepare(&mut conn, path)?;
        let wal_pages = Arc::new(AtomicU64::new(0));
        let committed_pages = wal_pages.clone();
        conn.wal_hook(Some(move |_: &mut Wal, pages| {
            committed_pages.store(u64::try_from(pages).unwrap_or(0), Relaxed);
            Ok(())
        }))
        .map_err(sql)?;
        let files = OpenFiles::of(path)?;
        let wal = with_suffix(path, "-wal");
        let log = File::open(&wal).map_err(|e| OutboxError::io(&wal, "open the write-ahead log", &e))?;
        let gaps = RefCell::new(PageGaps::new(log));
        Ok(Store { conn, path: path.to_owned(), files, is_mark_due: Cell::new(true), wal_pages, gaps })
    }

    pub(super) fn error(&self, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        match OutboxError::sqlite(&self.path, operation, source) {
            OutboxError::Locked { path, operation, .. } => {
                OutboxError::Locked { path, operation, holder: self.files.lock_holder() }
            }
            error => error,
        }
    }

    /// Commits the open transaction, with a new mark if the log may begin again with it.
    pub(super) fn commit(&self) -> Result<(), rusqlite::Error> {
        if self.is_mark_due.get() {
            LogMark::renew(&self.conn, |_| Ok(()))?;
        }
        self.run("COMMIT")?;
        self.is_mark_due.set(false);
        Ok(())
    }

    /// Begins a session: from when this returns `Ok` until the session ends, the database's own file says that its log is
    /// in use, and it is proven that the outbox can be written. Returns the session's token, and whether the session before has
    /// ended in order.
    pub(super) fn begin_session(
        &self,
        last: Option<&Token>,
        now: Timestamp,
    ) -> Result<(Token, bool), OutboxError> {
        let begin = |mark: &mut LogMark| {
            let has_ended = mark.has_ended();
            Ok((mark.begin_session(last, now)?, has_ended))
        };
        let session = self.write_mark(begin).map_err(|e| self.error("write", e))?;
        // Where a reader prevents it, a lost log goes unnoticed until it has been copied later.
        self.copy_wal()?;
        Ok(session)
    }

    /// Ends the session. All commits should be in the database's own file by now.
    pub(super) fn end_session(&self, now: Timestamp) -> Result<(), OutboxError> {
        let end = |mark: &mut LogMark| {
            mark.end_session(now);
            Ok(())
        };
        self.write_mark(end).map_err(|e| self.error("end the session", e))
    }

    /// Commits a new mark, and nothing else.
    fn write_mark<T>(
        &self,
        change: impl FnOnce(&mut LogMark) -> Result<T, rusqlite::Error>,
    ) -> Result<T, rusqlite::Error> {
        self.is_mark_due.set(false);
        let written = self.transaction(|| LogMark::renew(&self.conn, change));
        self.is_mark_due.set(self.is_mark_due.get() || written.is_err());
        written
    }

    /// Does something in a transaction of its own.
    fn transaction<T>(
        &self,
        work: impl FnOnce() -> Result<T, rusqlite::Error>,
    ) -> Result<T, rusqlite::Error> {
        self.run("BEGIN IMMEDIATE")?;
        let done = work().and_then(|done| self.commit().map(|()| done));
        if done.is_err() && !self.conn.is_autocommit() {
            // If this fails as well, the error says enough.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
        done
    }

    pub(super) fn cached(&self, sql: &str) -> Result<CachedStatement<'_>, rusqlite::Error> {
        self.conn.prepare_cached(sql)
    }

    /// Runs a statement that has neither parameters nor rows.
    pub(super) fn run(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.cached(sql)?.execute([]).map(drop)
    }

    fn number(&self, sql: &str) -> Result<i64, rusqlite::Error> {
        self.cached(sql)?.query_row([], |r| r.get(0))
    }

    pub(super) fn size(&self) -> Result<Size, OutboxError> {
        let pragma =
            |sql: &str| self.number(sql).map(|n| n as u64).map_err(|e| self.error("measure the database", e));
        let pages = pragma("PRAGMA page_count")?;
        let (free_pages, page_size) = (pragma("PRAGMA freelist_count")?, pragma("PRAGMA page_size")?);
        Ok(Size { bytes: pages.saturating_sub(free_pages) * page_size, free_pages })
    }

    /// Gives up to `pages` free pages back to the file system.
    pub(super) fn shrink(&self, pages: u64) -> Result<(), OutboxError> {
        let vacuum = || {
            let mut vacuum = self.conn.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            // Each step gives one page back.
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {}
            Ok(())
        };
        self.transaction(vacuum).map_err(|e| self.error("give space back", e))
    }

    /// Pages of the write-ahead log that are in use. A log whose pages are all copied is written from its start again,
    /// and the file keeps its size.
    pub(super) fn wal_pages(&self) -> u64 {
        self.wal_pages.load(Relaxed)
    }

    /// Copies the write-ahead log into the database as far as readers allow; the next commit begins a copied log again
    /// from its start. Returns whether all of it is copied.
    pub(super) fn copy_wal(&self) -> Result<bool, OutboxError> {
        self.overwrite_gaps()?;
        // The columns: whether another process was at it, pages in the log, pages copied.
        let is_copied =
            |r: &Row<'_>| Ok(r.get::<_, i64>(0)? == 0 && r.get::<_, i64>(1)? == r.get::<_, i64>(2)?);
        let is_copied = self
            .cached("PRAGMA wal_checkpoint(PASSIVE)")
            .and_then(|mut copy| copy.query_row([], is_copied))
            .map_err(|e| self.error("copy the write-ahead log", e))?;
        self.is_mark_due.set(self.is_mark_due.get() || is_copied);
        Ok(is_copied)
    }

    /// Copies the whole write-ahead log into the database and leaves nothing but a new mark in it, as far as readers allow
    /// within `timeout`. Returns whether that is all that the log holds.
    ///
    /// The log of an open database is never empty: see [`LogMark`].
    pub(super) fn checkpoint(&self, timeout: Duration) -> Result<bool, OutboxError> {
        // When this has succeeded, the next commit begins the log again.
        if !self.copy_whole_wal("PRAGMA wal_checkpoint(RESTART)", timeout)? {
            return Ok(false);
        }
        // SQLite cuts a log that begins again to this length, or to what is in it.
        let limit =
            |bytes: i64| self.conn.query_row(&format!("PRAGMA journal_size_limit = {bytes}"), [], |_| Ok(()));
        let written = limit(0).and_then(|()| self.write_mark(|_| Ok(())));
        limit(-1).and(written).map_err(|e| self.error("empty the write-ahead log", e))?;
        Ok(self.wal_pages() <= MARK_PAGES)
    }

    /// Copies the whole write-ahead log into the database and truncates it, as far as readers allow within `timeout`: at
    /// the end of a session. Returns whether the log is empty.
    pub(super) fn truncate_wal(&self, timeout: Duration) -> Result<bool, OutboxError> {
        self.copy_whole_wal("PRAGMA wal_checkpoint(TRUNCATE)", timeout)
    }

    fn copy_whole_wal(&self, pragma: &str, timeout: Duration) -> Result<bool, OutboxError> {
        self.overwrite_gaps()?;
        let is_done = self
            .conn
            .busy_timeout(timeout)
            .and_then(|()| self.conn.query_row(pragma, [], |r| Ok(r.get::<_, i64>(0)? == 0)));
        let is_done = self.conn.busy_timeout(BUSY_TIMEOUT).and(is_done);
        self.is_mark_due.set(true);
        is_done.map_err(|e| self.error("empty the write-ahead log", e))
    }

    /// Whether something of deleted rows may be left in the database's file, though the log is empty: there was no room to
    /// overwrite it, or another process was writing.
    pub(super) fn has_remnants(&self) -> bool {
        self.gaps.borrow().are_left()
    }

    /// Has the next call that copies the log overwrite what could not be overwritten before.
    pub(super) fn resume_overwriting(&self) {
        self.gaps.borrow_mut().resume();
    }

    /// Overwrites what deleted rows have left on the pages that are in the log, before they are copied.
    fn overwrite_gaps(&self) -> Result<(), OutboxError> {
        let mut gaps = self.gaps.borrow_mut();
        let frames = self
            .cached("PRAGMA wal_checkpoint(NOOP)")
            .and_then(|mut measure| measure.query_row([], |r| r.get::<_, i64>(1)))
            .map_err(|e| self.error("measure the write-ahead log", e))?;
        gaps.find(u64::try_from(frames).unwrap_or(0))
            .map_err(|e| OutboxError::io(&self.path, "read the write-ahead log", &e))?;
        if gaps.are_due() {
            let overwritten = self
                .set_writing(Writing::Pages)
                .and_then(|()| self.transaction(|| gaps.overwrite(&self.conn)));
            self.set_writing(Writing::Rows).map_err(|e| self.error("overwrite deleted rows", e))?;
            // The copying is not prevented: it gains the room that this may lack.
            if let Err(e) = overwritten {
                tracing::debug!("{}", self.error("overwrite deleted rows", e));
            }
        }
        Ok(())
    }

    fn set_writing(&self, what: Writing) -> Result<(), rusqlite::Error> {
        let (is_defensive, synchronous, timeout) = match what {
            Writing::Rows => (true, "FULL", BUSY_TIMEOUT),
            // The first commit of a log must be durable for its mark.
            Writing::Pages if self.is_mark_due.get() => (false, "FULL", Duration::ZERO),
            // The copying that follows syncs the log.
            Writing::Pages => (false, "NORMAL", Duration::ZERO),
        };
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, is_defensive)?;
        self.conn.pragma_update(None, "synchronous", synchronous)?;
        self.conn.busy_timeout(timeout)
    }

    /// Allocates room in the database's file for all its pages before they are committed to the write-ahead log, so
    /// that the log can always be copied and emptied, however full the disk has become.
    pub(super) fn allocate_pages(&self) -> Result<(), rusqlite::Error> {
        let mut size = self.number("PRAGMA page_count")? * self.number("PRAGMA page_size")?;
        let missing =
            (size as u64).saturating_sub(std::fs::metadata(&self.path).map_or(0, |file| file.len()));
        if missing == 0 {
            return Ok(());
        }
        // As much again goes into the log.
        let is_full = || disk::space_of(&self.path).is_some_and(|disk| disk.free < 2 * missing);
        let full = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None);
        if is_full() {
            return Err(full());
        }
        // The chunk size counts for this alone: with one, a file that is truncated would keep deleted rows behind its end.
        let set_chunk = |mut bytes| self.conn.file_control(None::<&str>, FileControl::ChunkSize(&mut bytes));
        set_chunk(CHUNK_SIZE)?;
        let allocated = self.conn.file_control(None::<&str>, FileControl::SizeHint(&mut size));
        set_chunk(0)?;
        // SQLite does not say why it failed, and another program may have taken the room just now.
        allocated.map_err(|e| if is_full() { full() } else { e })
    }
}

fn configure(conn: &mut Connection) -> Result<(), rusqlite::Error> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // A damaged database must be closed as it was found; the log of a sound one is emptied explicitly.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The setting takes effect on an empty file alone, and would write to any other, even a damaged one.
    if conn.query_row("PRAGMA page_count", [], |r| r.get::<_, i64>(0))? == 0 {
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    // The writer copies the log explicitly: a commit that copies on its way does not report errors of the copying.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    // What is deleted is overwritten, also on pages that become free; `page_gaps` does what this leaves. Pages that are used
    // again in the same commit cost nothing, which is why a commit compacts before it appends.
    conn.query_row("PRAGMA secure_delete = ON", [], |_| Ok(()))?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // In kibibytes: the pages of one large commit need not be written before its end.
    conn.pragma_update(None, "cache_size", -6_144)?;
    // Readers without write access to the folder need the -wal and -shm files to stay.
    let mut persist = 1;
    conn.file_control(None::<&str>, FileControl::PersistWal(&mut persist))
}
