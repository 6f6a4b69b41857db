//! The connection that reads, and the counters. A reader never blocks the writer and never changes the file. What the
//! sender reads stands in `queue`, what the commands ask about events in `listing`.

use super::store::{self, BUSY_TIMEOUT};
use super::{OutboxError, State, schema};
use crate::clock::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A read-only connection.
#[derive(Debug)]
pub struct Reader {
    conn: Connection,
    path: PathBuf,
}

/// The counters, and the oldest event that waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events by state.
    pub states: BTreeMap<State, u64>,
    /// Settled events by state and reason code.
    pub reasons: Vec<(State, String, u64)>,
    /// Events that came again.
    pub duplicates: u64,
    /// When the oldest pending event was stored.
    pub oldest_pending: Option<Timestamp>,
}

impl Counts {
    /// How many events are in that state.
    pub fn of(&self, state: State) -> u64 {
        self.states.get(&state).copied().unwrap_or(0)
    }
}

impl Reader {
    /// Opens an outbox for reading, whether an agent runs or not; never creates one.
    ///
    /// # Errors
    /// [`OutboxError::Missing`], [`OutboxError::Denied`], [`OutboxError::NewerSchema`], and SQLite's.
    pub fn open(path: &Path) -> Result<Reader, OutboxError> {
        match std::fs::File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(OutboxError::Missing { path: path.to_owned() });
            }
            Err(e) => return Err(OutboxError::io(path, "open the database", &e)),
            // Closing it drops SQLite's locks on it in this process, of which there are none yet: the daemon
            // opens its reader through `Reader::beside`.
            Ok(file) => {
                let meta = file.metadata().map_err(|e| OutboxError::io(path, "open the database", &e))?;
                if meta.is_file() && meta.len() == 0 {
                    // SQLite would delete the log of an empty database, were it only to read it.
                    let (path, text) = (path.to_owned(), "the database is empty".to_owned());
                    return Err(OutboxError::Damaged { path, text });
                }
            }
        }
        match Reader::connect(path, false) {
            // Without its log it can look like one of ours.
            Err(e) if !e.is_not_ours() => Reader::connect(path, true),
            opened => opened,
        }
    }

    /// Opens a second connection in the process that writes the outbox.
    ///
    /// # Errors
    /// SQLite's.
    pub fn beside(path: &Path) -> Result<Reader, OutboxError> {
        Reader::connect(path, false)
    }

    /// `immutable` is for a database that was closed cleanly in a folder that this user may not write.
    fn connect(path: &Path, immutable: bool) -> Result<Reader, OutboxError> {
        let sql = |e| OutboxError::sqlite(path, "open the database", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = if immutable {
            let mut uri = String::from("file:");
            for byte in path.as_os_str().as_encoded_bytes() {
                match byte {
                    b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                        uri.push(*byte as char)
                    }
                    other => uri.push_str(&format!("%{other:02x}")),
                }
            }
            uri.push_str("?immutable=1");
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
        } else {
            Connection::open_with_flags(path, flags)
        }
        .map_err(sql)?;
        conn.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
        schema::check(&conn, path)?;
        Ok(Reader { conn, path: path.to_owned() })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }

    pub(super) fn error(&self, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(&self.path, operation, source)
    }

    /// A number that changes with every commit of another connection.
    ///
    /// # Errors
    /// SQLite's.
    pub fn data_version(&self) -> Result<i64, OutboxError> {
        self.conn
            .query_row("PRAGMA data_version", [], |r| r.get(0))
            .map_err(|e| self.error("look for changes", e))
    }

    /// The counters.
    ///
    /// # Errors
    /// SQLite's.
    pub fn counts(&self) -> Result<Counts, OutboxError> {
        let read = || {
            let mut counts = Counts {
                oldest_pending: self
                    .conn
                    .query_row("SELECT received_at FROM pending ORDER BY seq LIMIT 1", [], |r| {
                        Ok(Timestamp(r.get(0)?))
                    })
                    .optional()?,
                ..Counts::default()
            };
            let mut statement =
                self.conn.prepare_cached("SELECT state, code, events FROM counters ORDER BY state, code")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (name, code, n): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let n = n as u64;
                match State::parse(&name) {
                    Some(state) => {
                        *counts.states.entry(state).or_default() += n;
                        if !code.is_empty() && n > 0 {
                            counts.reasons.push((state, code, n));
                        }
                    }
                    None if name == store::DUPLICATES => counts.duplicates = n,
                    None => {}
                }
            }
            if counts.of(State::Pending) == 0 {
                // It is a delivered one, whose row has not moved yet.
                counts.oldest_pending = None;
            }
            Ok(counts)
        };
        read().map_err(|e| self.error("read the counters", e))
    }

    /// Bytes of the database in use, free pages aside.
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
            .map_err(|e| self.error("measure it", e))
    }
}
