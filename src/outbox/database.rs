//! The connection that writes.
//!
//! The journal is a write-ahead log (WAL) with `synchronous = FULL`. At a power cut, NORMAL lost commits that had been
//! acknowledged; FULL lost none. FULL costs an fsync for each commit, which the writer's thread shares among its
//! callers. SQL is written by hand: which pages a statement writes decides the speed, and an ORM would hide it.

use super::files::{FileId, file_at, with_suffix};
use super::reader::{BUSY_TIMEOUT, Reader};
use super::{OutboxError, schema};
use crate::disk;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{CachedStatement, Connection, FileControl, OpenFlags, Row, ffi};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The database's file grows by this many bytes at once.
const CHUNK_SIZE: i32 = 64 << 10;

/// A database that this process may write.
pub(super) struct Database {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    /// The files that were opened: the database and its write-ahead log.
    pub(super) opened: [FileId; 2],
    /// Pages in the write-ahead log, as of the last commit.
    wal_pages: Arc<AtomicU64>,
}

/// The size of a database, free pages apart.
pub(super) struct Size {
    /// Bytes of the pages in use.
    pub(super) bytes: u64,
    /// Pages that could be given back to the file system.
    pub(super) free_pages: u64,
}

impl Database {
    /// Opens the database, and brings its schema up to date.
    pub(super) fn open(path: &Path) -> Result<Database, OutboxError> {
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
        schema::migrate(&mut conn, path)?;
        let wal_pages = Arc::new(AtomicU64::new(0));
        let committed_pages = wal_pages.clone();
        conn.wal_hook(Some(move |_: &mut Wal, pages| {
            committed_pages.store(u64::try_from(pages).unwrap_or(0), Relaxed);
            Ok(())
        }))
        .map_err(sql)?;
        let file = |path: &Path| match file_at(path)? {
            Some((file, _)) => Ok(file),
            None => Err(OutboxError::Missing { path: path.to_owned() }),
        };
        let opened = [file(path)?, file(&with_suffix(path, "-wal"))?];
        Ok(Database { conn, path: path.to_owned(), opened, wal_pages })
    }

    pub(super) fn error(&self, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(&self.path, operation, source)
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

    /// A number that changes when another connection has committed something.
    pub(super) fn data_version(&self) -> Result<i64, rusqlite::Error> {
        self.number("PRAGMA data_version")
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
        vacuum().map_err(|e| self.error("give space back", e))
    }

    /// Pages of the write-ahead log that are in use. A log whose pages are all copied is written from its start again,
    /// and the file keeps its size.
    pub(super) fn wal_pages(&self) -> u64 {
        self.wal_pages.load(Relaxed)
    }

    /// Copies the write-ahead log into the database as far as readers allow; the next commit begins a copied log again
    /// from its start. Returns whether all of it is copied.
    pub(super) fn copy_wal(&self) -> Result<bool, OutboxError> {
        // The columns: whether another process was at it, pages in the log, pages copied.
        let is_copied =
            |r: &Row<'_>| Ok(r.get::<_, i64>(0)? == 0 && r.get::<_, i64>(1)? == r.get::<_, i64>(2)?);
        self.cached("PRAGMA wal_checkpoint(PASSIVE)")
            .and_then(|mut copy| copy.query_row([], is_copied))
            .map_err(|e| self.error("copy the write-ahead log", e))
    }

    /// Copies the whole write-ahead log into the database and truncates it, as far as readers allow within `timeout`.
    /// Returns whether the log is empty.
    pub(super) fn checkpoint(&self, timeout: Duration) -> Result<bool, OutboxError> {
        let is_empty = self.conn.busy_timeout(timeout).and_then(|()| {
            self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| Ok(r.get::<_, i64>(0)? == 0))
        });
        self.conn
            .busy_timeout(BUSY_TIMEOUT)
            .and(is_empty)
            .map_err(|e| self.error("empty the write-ahead log", e))
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
        let allocated = self.conn.file_control(None::<&str>, FileControl::SizeHint(&mut size));
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
    conn.file_control(None::<&str>, FileControl::ChunkSize(&mut CHUNK_SIZE.clone()))?;
    // An erased body is overwritten, not only unlinked.
    conn.query_row("PRAGMA secure_delete = FAST", [], |_| Ok(()))?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // In kibibytes: the pages of one large commit need not be written before its end.
    conn.pragma_update(None, "cache_size", -6_144)?;
    // Readers without write access to the folder need the -wal and -shm files to stay.
    let mut persist = 1;
    conn.file_control(None::<&str>, FileControl::PersistWal(&mut persist))
}
