//! The errors of the outbox, each with its object.

use super::write_limit;
use crate::limits;
use crate::reason::{Code, Reason};
use std::path::{Path, PathBuf};

/// An error of the outbox.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Another agent owns the outbox.
    #[error("the outbox {path} is held by another agent, pid {pid}: stop that one first")]
    Held {
        /// The database.
        path: PathBuf,
        /// The other agent.
        pid: i32,
    },
    /// No file exists, and this caller does not create it.
    #[error("there is no outbox at {path}: the agent creates it when it first runs")]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// A version of the agent from before the first release has written the database.
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
    /// A later version of the agent has written the database.
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
    /// The file is no outbox, and somebody may need it.
    #[error("{path} is {what}, not an outbox: set outbox.path to another file, or move that one away")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The kind of file.
        what: &'static str,
    },
    /// The files were removed or replaced while the outbox was open.
    #[error("the outbox {path} was {what} while it was open; {saved}")]
    FilesReplaced {
        /// The database.
        path: PathBuf,
        /// The change: removed, replaced, or parted.
        what: &'static str,
        /// Where the content is now.
        saved: String,
    },
    /// Locks and shared memory are not reliable on that file system.
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
        /// The version of the linked SQLite.
        found: &'static str,
    },
    /// The file system has no room, or a limit of the user or the process is reached; nothing has changed.
    #[error("no room left to {operation} in the outbox {path}{}", limit.as_ref().map_or(String::new(), |limit| format!(": {limit}")))]
    Full {
        /// The database.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The limit that is reached, and how to raise it; `None`: the disk is full.
        limit: Option<String>,
    },
    /// The process, or the system, has no more file descriptors.
    #[error(
        "cannot {operation} in the outbox {path}: too many files are open; raise LimitNOFILE= or `ulimit -n`"
    )]
    TooManyFiles {
        /// The database.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
    },
    /// A file or the folder is another user's, or its mode keeps this process from writing.
    #[error("{user} may not write {path}, which belongs to {owner} and has mode {mode:04o}{}", fix.as_ref().map_or(String::new(), |fix| format!(": {fix}")))]
    NotWritable {
        /// The file or folder.
        path: PathBuf,
        /// Its owner and group.
        owner: String,
        /// Its mode.
        mode: u32,
        /// The user of this process.
        user: String,
        /// The command line that mends it; `None`: the outbox is another user's, and this process has no business there.
        fix: Option<String>,
    },
    /// Another process holds a lock of SQLite's; nothing has changed.
    #[error("cannot {operation} in the outbox {path}: {} holds its lock", process(*holder))]
    Locked {
        /// The database.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The other process; `None`: it had let go of the lock when it was looked for.
        holder: Option<i32>,
    },
    /// The file system refuses writes; nothing has changed.
    #[error("cannot {operation} in the outbox {path}: it cannot be written ({text})")]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The error of SQLite.
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
        /// The operation that failed.
        operation: &'static str,
        /// The error of the system.
        text: String,
    },
    /// A check of the database has found damage.
    #[error("the outbox {path} is damaged: {text}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The damage that was found.
        text: String,
    },
    /// Any other error of SQLite.
    #[error("cannot {operation} in the outbox {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The error of SQLite.
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
            Some(DiskFull) => {
                OutboxError::Full { limit: write_limit::reached(&path, &source), path, operation }
            }
            Some(ReadOnly) => OutboxError::ReadOnly { path, operation, text },
            Some(SystemIoFailure) => match write_limit::reached(&path, &source) {
                None => OutboxError::Io { path, operation, text },
                limit => OutboxError::Full { path, operation, limit },
            },
            Some(CannotOpen) if limits::is_out_of_files_now() => {
                OutboxError::TooManyFiles { path, operation }
            }
            Some(PermissionDenied) => OutboxError::Denied { path },
            // A lock on the bytes by which connections agree on the log is an error of the protocol.
            Some(DatabaseBusy | FileLockingProtocolFailed) => {
                OutboxError::Locked { path, operation, holder: None }
            }
            _ => OutboxError::Sqlite { path, operation, source },
        }
    }

    /// Classifies an error of the operating system.
    pub(super) fn io(path: &Path, operation: &'static str, source: &std::io::Error) -> OutboxError {
        use std::io::ErrorKind::*;
        let path = path.to_owned();
        match source.kind() {
            StorageFull => OutboxError::Full { path, operation, limit: None },
            QuotaExceeded => OutboxError::Full { path, operation, limit: Some(write_limit::quota_text()) },
            FileTooLarge => OutboxError::Full {
                path,
                operation,
                limit: limits::max_file_size().map(write_limit::size_text),
            },
            _ if limits::is_out_of_files(source) => OutboxError::TooManyFiles { path, operation },
            ReadOnlyFilesystem => OutboxError::ReadOnly { path, operation, text: source.to_string() },
            PermissionDenied => OutboxError::Denied { path },
            _ => OutboxError::Io { path, operation, text: source.to_string() },
        }
    }

    /// Whether the files are damaged. Then the next start recovers what can be read.
    pub fn is_damage(&self) -> bool {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
        };
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            OutboxError::Damaged { .. } => true,
            // SQLite does not check the values in a page that is intact.
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

    /// The damage to the files, without their name.
    pub(super) fn damage(&self) -> String {
        match self {
            OutboxError::Damaged { text, .. } => text.clone(),
            OutboxError::Sqlite { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }

    /// Whether the disk was full.
    pub fn is_full(&self) -> bool {
        matches!(self, OutboxError::Full { .. })
    }

    /// Whether the same call can succeed later: the disk was full or read-only, the files could not be written, too many
    /// files were open, or another process held a lock.
    pub fn is_transient(&self) -> bool {
        match self {
            OutboxError::NotWritable { fix, .. } => fix.is_some(),
            OutboxError::Full { .. }
            | OutboxError::ReadOnly { .. }
            | OutboxError::TooManyFiles { .. }
            | OutboxError::Locked { .. } => true,
            _ => false,
        }
    }

    /// The reason that a transient error gives for what waits.
    pub fn reason(&self) -> Reason {
        let code = match self {
            OutboxError::NotWritable { .. } => Code::NotWritable,
            OutboxError::ReadOnly { .. } => Code::ReadOnly,
            OutboxError::TooManyFiles { .. } => Code::Unreadable,
            OutboxError::Locked { .. } => Code::Locked,
            _ => Code::DiskFull,
        };
        Reason::new(code, self.to_string())
    }
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
