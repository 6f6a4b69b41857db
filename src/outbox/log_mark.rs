//! The mark that ties a database to its write-ahead log, and to the lock file beside it.
//!
//! SQLite applies a log to whatever database stands beside it: nothing in the database's own file says which log is its
//! own, and a log that is gone is no error either. So the first commit of every log writes a new mark, which names the
//! one before:
//!
//! ```text
//!   outbox.db      mark a ─────────────────────────copied──▶ mark b
//!   outbox.db-wal         [mark b after a, rows, rows, …]          [mark c after b, …]
//! ```
//!
//! A log belongs to the database if the database has the mark that the log's first one names, or one that is in the log:
//! then part of it is copied already. While an agent has the database open, its log is never empty, since emptying it is
//! itself a commit of a new mark; the database says that it is open, in its own file, before the first event is stored.
//! So an open database without a log has lost it, and a closed one needs none.
//!
//! The mark also names the session: one opening by an agent. The lock file names the last one that opened here. A copy
//! that is put back is of another session, or of an older one.
//!
//! The salts of the log would not do: SQLite chooses them when a log begins, too late for the database to know them. A
//! note in the lock file alone would not do either: it must be changed with each emptying of the log, in step with it, and
//! a restored folder brings its own.

use super::OutboxError;
use super::files::with_suffix;
use super::meta::{self, LOG_MARK};
use super::pages::{StoredTexts, stored_texts};
use crate::clock::Timestamp;
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A random number that is written with a fixed width, so that a new one fits in the place of the old one. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token(String);

impl Token {
    fn random() -> Result<Token, rusqlite::Error> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
        Ok(Token(format!("{:016x}", u64::from_ne_bytes(bytes))))
    }

    /// The token that a text consists of, if it is one.
    pub(super) fn parse(text: &str) -> Option<Token> {
        let is_token = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_token.then(|| Token(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

/// The mark of a log, and the session in which it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogMark {
    current: Token,
    previous: Token,
    pub(super) session: Token,
    session_before: Token,
    /// Given to the outbox when it was created.
    outbox: Token,
    /// When the session began or ended.
    pub(super) at: Timestamp,
    /// Whether the session has not ended.
    pub(super) is_open: bool,
}

impl LogMark {
    /// Reads the mark in a row of the table `meta`.
    pub(super) fn parse(json: &str) -> Option<LogMark> {
        serde_json::from_str(json).ok()
    }

    /// Writes a new mark within the open transaction, which names the one before.
    pub(super) fn renew<T>(
        conn: &Connection,
        change: impl FnOnce(&mut LogMark) -> Result<T, rusqlite::Error>,
    ) -> Result<T, rusqlite::Error> {
        let before: Option<String> = meta::get(conn, LOG_MARK)?;
        let mut mark = before.and_then(|json| LogMark::parse(&json)).unwrap_or_default();
        mark.previous = std::mem::replace(&mut mark.current, Token::random()?);
        if mark.outbox.is_none() {
            mark.outbox = Token::random()?;
        }
        let made = change(&mut mark)?;
        meta::set(conn, LOG_MARK, serde_json::to_string(&mark).unwrap_or_default())?;
        Ok(made)
    }

    /// Begins a session after the last one here, which the lock file names until it names the new one. Returns its token.
    pub(super) fn begin_session(
        &mut self,
        last: Option<&Token>,
        now: Timestamp,
    ) -> Result<Token, rusqlite::Error> {
        let session = Token::random()?;
        self.session.clone_from(&session);
        self.session_before = last.cloned().unwrap_or_default();
        (self.at, self.is_open) = (now, true);
        Ok(session)
    }

    /// Whether the last session has ended in order.
    pub(super) fn has_ended(&self) -> bool {
        !self.session.is_none() && !self.is_open
    }

    /// Ends the session.
    pub(super) fn end_session(&mut self, now: Timestamp) {
        (self.at, self.is_open) = (now, false);
    }

    /// The mark in the database's own file, whatever is in its log. `None`: it has none, or cannot be read.
    fn in_file(database: &Path) -> Option<LogMark> {
        let conn = connect_without_log(database).ok()?;
        let json: Option<String> = meta::get(&conn, LOG_MARK).ok()?;
        LogMark::parse(&json?)
    }

    /// Whether the database is another one than that of the last session here, by the token in the lock file: a copy of an
    /// earlier state, or of another outbox.
    pub(super) fn is_of_another_session(&self, last: Option<&Token>) -> bool {
        let Some(last) = last.filter(|_| !self.session.is_none()) else { return false };
        // The lock file is written after the database.
        *last != self.session && *last != self.session_before
    }

    /// How a database with this mark stands to a log with these marks, from its first to its last.
    fn pairing(&self, marks: &[LogMark]) -> Pairing {
        let Some(first) = marks.first() else { return Pairing::Whole };
        let is_own = first.previous == self.current || marks.iter().any(|mark| mark.current == self.current);
        match is_own {
            true => Pairing::Whole,
            false if first.outbox == self.outbox => Pairing::NotOwn(OTHER_LOG),
            false => Pairing::NotOwn(FOREIGN_LOG),
        }
    }
}

/// How a database and the log beside it stand to each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pairing {
    /// The log is the database's, as far as can be known, or is not needed.
    Whole,
    /// The database was open, and its log is missing, empty, or none.
    LogLost,
    /// The log is not the database's: [`OTHER_LOG`] or [`FOREIGN_LOG`].
    NotOwn(&'static str),
}

/// The log is that of another state of the same outbox, whose events are wanted.
pub(super) const OTHER_LOG: &str =
    "its write-ahead log is of another state of it, as when an older copy is put back beside a newer log";
/// The log is another outbox's, whose events are not this one's.
pub(super) const FOREIGN_LOG: &str = "a write-ahead log of another outbox stood beside it, which is left out";

impl Pairing {
    /// Looks at the files, without letting SQLite do so. Returns with it the mark of the database, as it is with its own
    /// log.
    ///
    /// Must not be called while this process has the database open: see [`Reader::open`](super::Reader::open).
    ///
    /// # Errors
    /// The system's.
    pub(super) fn of(database: &Path) -> Result<(Pairing, Option<LogMark>), OutboxError> {
        let wal = with_suffix(database, "-wal");
        let Some(mark) = LogMark::in_file(database) else { return Ok((Pairing::Whole, None)) };
        let stored = stored_texts(&wal, LOG_MARK).map_err(|e| OutboxError::io(&wal, "read the log", &e))?;
        Ok(match stored {
            StoredTexts::NoLog if mark.is_open => (Pairing::LogLost, Some(mark)),
            StoredTexts::NoLog => (Pairing::Whole, Some(mark)),
            // A log that has just begun again has no commit for a moment, and needs none.
            StoredTexts::Log(texts) => {
                let mut marks: Vec<LogMark> = texts.iter().filter_map(|text| LogMark::parse(text)).collect();
                match mark.pairing(&marks) {
                    Pairing::Whole => (Pairing::Whole, Some(marks.pop().unwrap_or(mark))),
                    pairing => (pairing, Some(mark)),
                }
            }
        })
    }
}

/// Opens the database's own file to read it, whatever is in its log.
pub(super) fn connect_without_log(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(immutable_uri(path), flags | OpenFlags::SQLITE_OPEN_URI)
}

fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(*byte as char),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(previous: &str, current: &str) -> LogMark {
        let token = |text: &str| Token(text.to_owned());
        LogMark { previous: token(previous), current: token(current), ..LogMark::default() }
    }

    #[test]
    fn a_log_belongs_to_the_database_whose_mark_it_names_or_has() {
        let log = [mark("a", "b"), mark("b", "c")];
        for (database, pairing) in [
            (mark("", "a"), Pairing::Whole),
            (mark("a", "b"), Pairing::Whole),
            (mark("b", "c"), Pairing::Whole),
            // An older database, and a newer one.
            (mark("", "x"), Pairing::NotOwn(OTHER_LOG)),
            (mark("c", "d"), Pairing::NotOwn(OTHER_LOG)),
            (LogMark { outbox: Token("other".to_owned()), ..mark("c", "d") }, Pairing::NotOwn(FOREIGN_LOG)),
        ] {
            assert_eq!(database.pairing(&log), pairing, "{database:?}");
        }
        // Nothing is known of a log without a mark.
        assert_eq!(mark("x", "y").pairing(&[]), Pairing::Whole);
    }

    #[test]
    fn a_database_is_of_another_session_if_the_lock_file_names_neither_its_own_nor_the_one_before() {
        let token = |text: &str| Token(text.to_owned());
        let mark = LogMark { session: token("b"), session_before: token("a"), ..LogMark::default() };
        for (last, is_other) in [(None, false), (Some("b"), false), (Some("a"), false), (Some("c"), true)] {
            assert_eq!(mark.is_of_another_session(last.map(token).as_ref()), is_other, "{last:?}");
        }
        // A database that was just created or recovered.
        assert!(!LogMark::default().is_of_another_session(Some(&token("c"))));
    }

    #[test]
    fn a_token_has_a_fixed_width() {
        let tokens: Vec<Token> = (0..50).map(|_| Token::random().unwrap()).collect();
        assert!(tokens.iter().all(|token| Token::parse(token.as_str()).as_ref() == Some(token)));
        for text in ["", "12", "0123456789abcdeg", "0123456789abcdef\n"] {
            assert_eq!(Token::parse(text), None, "{text:?}");
        }
    }
}
