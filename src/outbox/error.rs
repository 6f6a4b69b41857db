//! What can go wrong with the outbox, each error with its object.

use std::path::{Path, PathBuf};

/// An error of the outbox.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Another agent owns it.
    #[error("the outbox {path} is held by another agent, pid {pid}: stop that one first")]
    Held {
        /// The database.
        path: PathBuf,
        /// The holder.
        pid: i32,
    },
    /// It is not there, and this caller does not create it.
    #[error("there is no outbox at {path}: the agent creates it when it first runs")]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// A version of the agent has written it from before the first release.
    #[error(
        "the outbox {path} has schema {found}, and this agent reads {first} and later: drain it with the version that \
         made it, then move it away"
    )]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// The schema's version in the file.
        found: i64,
        /// The oldest version that this agent can read.
        first: i64,
    },
    /// A later version of the agent has written it.
    #[error(
        "the outbox {path} has schema {found}, and this agent knows {newest}: install the newer agent again"
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The schema's version in the file.
        found: i64,
        /// The newest version that this agent knows.
        newest: i64,
    },
    /// It is there and is no outbox, and too good to be moved out of the way.
    #[error("{path} is {what}, not an outbox: set outbox.path to another file, or move that one away")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What stands there.
        what: &'static str,
    },
    /// Its files were taken away while it was open.
    #[error("the outbox {path} was {what} while it was open; {saved}")]
    FilesReplaced {
        /// The database.
        path: PathBuf,
        /// What was done to them.
        what: &'static str,
        /// Where its content is now.
        saved: String,
    },
    /// Locks and shared memory cannot be trusted there.
    #[error("the outbox {path} is on a network file system ({kind}): set outbox.path to a local disk")]
    NetworkFileSystem {
        /// The database.
        path: PathBuf,
        /// The file system's name.
        kind: &'static str,
    },
    /// The linked SQLite has a bug that can corrupt a WAL database.
    #[error("SQLite {found} can corrupt an outbox: 3.51.3 or later is needed")]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
    /// The file system has no room; nothing has changed.
    #[error("no room left to {operation} in the outbox {path}")]
    Full {
        /// The database.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
    },
    /// The file system refuses writes; nothing has changed.
    #[error("cannot {operation} in the outbox {path}: it cannot be written ({text})")]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What SQLite said.
        text: String,
    },
    /// Permission is missing.
    #[error("cannot open the outbox {path}: permission denied")]
    Denied {
        /// The database.
        path: PathBuf,
    },
    /// The device failed: what was last written may or may not be there.
    #[error("cannot {operation} in the outbox {path}: {text}")]
    Io {
        /// The database.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        text: String,
    },
    /// A look through it has found what cannot be.
    #[error("the outbox {path} is damaged: {text}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        text: String,
    },
    /// Anything else that SQLite reports.
    #[error("cannot {operation} in the outbox {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The thread that owns the connection has ended.
    #[error("the outbox is closed")]
    Closed,
}

impl OutboxError {
    /// Classifies what SQLite reports, once, so that nobody downstream looks at its codes.
    pub(super) fn sqlite(path: &Path, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        use rusqlite::ErrorCode::*;
        let path = path.to_owned();
        let text = source.to_string();
        match source.sqlite_error_code() {
            Some(DiskFull) => OutboxError::Full { path, operation },
            Some(ReadOnly) => OutboxError::ReadOnly { path, operation, text },
            Some(SystemIoFailure) => OutboxError::Io { path, operation, text },
            Some(PermissionDenied) => OutboxError::Denied { path },
            _ => OutboxError::Sqlite { path, operation, source },
        }
    }

    /// The same for the operating system's errors.
    pub(super) fn io(path: &Path, operation: &'static str, source: &std::io::Error) -> OutboxError {
        use std::io::ErrorKind::*;
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded => OutboxError::Full { path, operation },
            ReadOnlyFilesystem => OutboxError::ReadOnly { path, operation, text: source.to_string() },
            PermissionDenied => OutboxError::Denied { path },
            _ => OutboxError::Io { path, operation, text: source.to_string() },
        }
    }

    /// Whether the files do not hold what they must: a new start recovers what can be read.
    pub fn is_damage(&self) -> bool {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
        };
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            OutboxError::Damaged { .. } => true,
            // SQLite hands out what stands in a sound page as it stands there.
            OutboxError::Sqlite {
                source:
                    Utf8Error(..)
                    | InvalidColumnType(..)
                    | FromSqlConversionFailure(..)
                    | IntegralValueOutOfRange(..),
                ..
            } => true,
            OutboxError::Sqlite { source, .. } => {
                matches!(source.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
            }
            _ => false,
        }
    }

    /// Whether another version of the agent or another program has written the file, which is then left as it is.
    pub(super) fn is_not_ours(&self) -> bool {
        matches!(
            self,
            OutboxError::OlderSchema { .. } | OutboxError::NewerSchema { .. } | OutboxError::Foreign { .. }
        )
    }

    /// What is wrong with the files, without their name.
    pub(super) fn damage(&self) -> String {
        match self {
            OutboxError::Damaged { text, .. } => text.clone(),
            OutboxError::Sqlite { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }

    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(self, OutboxError::Full { .. })
    }

    /// Whether the same call can succeed later: there was no room, no right to write, or somebody else wrote.
    pub fn is_transient(&self) -> bool {
        match self {
            OutboxError::Full { .. } | OutboxError::ReadOnly { .. } => true,
            OutboxError::Sqlite { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
            }
            _ => false,
        }
    }
}
