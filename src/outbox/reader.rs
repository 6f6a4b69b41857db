//! A connection that reads. It never blocks the writer and never changes the file.
//!
//! Types of their own read through it: [`QueueReader`](super::QueueReader) for the sender, [`EventQueries`] and
//! [`EventReference`](super::EventReference) for the commands.

use super::counters::Counts;
use super::event_queries::EventQueries;
use super::log_mark::{Pairing, connect_without_log};
use super::retention::PersonKey;
use super::{OutboxError, meta, schema};
use crate::clock::Timestamp;
use crate::status::Incident;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for which a connection waits for another one: a command is asked by a commit while the agent runs, in a
/// transaction of milliseconds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a log is looked at before it is said to be another database's, and the time between.
const OTHER_LOG_ROUNDS: usize = 4;
const OTHER_LOG_PAUSE: Duration = Duration::from_millis(15);

/// A read-only connection.
#[derive(Debug)]
pub struct Reader {
    conn: Connection,
    path: PathBuf,
}

impl Reader {
    /// Opens an outbox for reading, whether an agent runs or not; never creates one.
    ///
    /// # Errors
    /// [`OutboxError::Missing`], [`OutboxError::Denied`], [`OutboxError::OlderSchema`], [`OutboxError::NewerSchema`],
    /// and SQLite's.
    pub fn open(path: &Path) -> Result<Reader, OutboxError> {
        match std::fs::File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(OutboxError::Missing { path: path.to_owned() });
            }
            Err(e) => return Err(OutboxError::io(path, "open the database", &e)),
            // Closing this file drops SQLite's locks in this process. There are none yet: the process that writes
            // uses `Reader::open_in_process`.
            Ok(file) => {
                let meta = file.metadata().map_err(|e| OutboxError::io(path, "open the database", &e))?;
                if meta.is_file() && meta.len() == 0 {
                    // SQLite deletes the write-ahead log of an empty database even if it only reads.
                    let (path, text) = (path.to_owned(), "the database is empty".to_owned());
                    return Err(OutboxError::Damaged { path, text });
                }
            }
        }
        refuse_other_log(path)?;
        match Reader::connect(path, false) {
            // `immutable` ignores the log, without which a database of another version can look like one of ours.
            Err(e) if !e.is_not_ours() => Reader::connect(path, true),
            opened => opened,
        }
    }

    /// Opens another connection in the process that writes the outbox.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open_in_process(path: &Path) -> Result<Reader, OutboxError> {
        Reader::connect(path, false)
    }

    /// `is_immutable` is for a database that was closed cleanly in a folder that this user may not write.
    fn connect(path: &Path, is_immutable: bool) -> Result<Reader, OutboxError> {
        let sql = |e| OutboxError::sqlite(path, "open the database", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = match is_immutable {
            true => connect_without_log(path),
            false => Connection::open_with_flags(path, flags),
        }
        .map_err(sql)?;
        conn.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
        schema::check(&conn, path)?;
        Ok(Reader { conn, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }

    pub(super) fn error(&self, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(&self.path, operation, source)
    }

    /// The events, as the commands ask for them.
    pub fn events(&self) -> EventQueries<'_> {
        EventQueries { conn: &self.conn, path: &self.path }
    }

    /// The counters.
    ///
    /// # Errors
    /// SQLite's.
    pub fn counts(&self) -> Result<Counts, OutboxError> {
        Counts::read(&self.conn).map_err(|e| self.error("read the counters", e))
    }

    /// The last incident, while it is to be shown.
    ///
    /// # Errors
    /// SQLite's.
    pub fn incident(&self, now: Timestamp) -> Result<Option<Incident>, OutboxError> {
        meta::incident(&self.conn, now).map_err(|e| self.error("read the last incident", e))
    }

    /// The last step of the wall clock, while it is to be shown.
    ///
    /// # Errors
    /// SQLite's.
    pub fn clock_step(&self, now: Timestamp) -> Result<Option<Incident>, OutboxError> {
        meta::clock_step(&self.conn, now).map_err(|e| self.error("read the last step of the clock", e))
    }

    /// The hash that stands for a person once their event is delivered; `None`: the outbox has no key for such hashes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn hash_of(&self, person: &str) -> Result<Option<String>, OutboxError> {
        let key = PersonKey::read(&self.conn);
        let key = key.map_err(|e| self.error("read the key for hashes of persons", e))?;
        Ok(key.map(|key| key.hash(person)))
    }

    /// Bytes of the database in use, free pages apart.
    ///
    /// # Errors
    /// SQLite's.
    pub fn bytes(&self) -> Result<u64, OutboxError> {
        self.conn
            .query_row(
                "SELECT (page_count - freelist_count) * page_size
                   FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
                [],
                |r| r.get::<_, i64>(0),
            )
            .map(|n| n as u64)
            .map_err(|e| self.error("measure the database", e))
    }
}

/// Refuses a database beside which another's log stands: SQLite would read the one through the other.
fn refuse_other_log(path: &Path) -> Result<(), OutboxError> {
    let mut found = "";
    // An agent at work can begin the log again between the two looks of one round.
    for _ in 0..OTHER_LOG_ROUNDS {
        found = match Pairing::of(path) {
            Ok((Pairing::NotOwn(why), _)) => why,
            _ => return Ok(()),
        };
        std::thread::sleep(OTHER_LOG_PAUSE);
    }
    Err(OutboxError::Damaged { path: path.to_owned(), text: found.to_owned() })
}
