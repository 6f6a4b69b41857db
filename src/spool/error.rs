//! The errors of the spool folder.

use super::{printable, shell_quoted};
use std::io;
use std::path::{Path, PathBuf};

/// An error of the spool folder, naming the path, the operation and the fix.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder does not exist.
    #[error("there is no spool folder {}: create it, or set spool.dir", printable(path))]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// The agent lacks a permission.
    #[error(
        "cannot {operation} in the spool {}: permission denied; its owner must be the agent's user (see packaging/tmpfiles.d)",
        printable(path)
    )]
    Denied {
        /// The folder or file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
    },
    /// Another agent takes files from the folder.
    #[error(
        "the spool {} belongs to the agent with process id {pid}: two agents would send every event twice; stop one, or \
         give it a spool.dir of its own",
        printable(path)
    )]
    Held {
        /// The folder.
        path: PathBuf,
        /// The other agent's process; 0 if the system does not tell.
        pid: i32,
    },
    /// Something that is not the agent's own stands where it keeps files that others must not see.
    #[error(
        "{} is {what}, and must be a folder of the agent's user: to move it away, its owner or root runs: mv -T {} {}",
        printable(path),
        shell_quoted(printable(path).as_ref()),
        shell_quoted(format!("{}.old", printable(path)).as_ref())
    )]
    NotOwn {
        /// The path in the spool.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// `rejected/` has no room for more of this owner's files.
    #[error(
        "{} has {what}: look at them with `koala-agent list --rejected`, then put them back or delete them",
        printable(path)
    )]
    RejectedFull {
        /// The folder.
        path: PathBuf,
        /// The limit that is reached.
        what: String,
    },
    /// Any other error of the system.
    #[error("cannot {operation} in the spool {}: {source}", printable(path))]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl SpoolError {
    pub(crate) fn new(path: &Path, operation: &'static str, source: io::Error) -> SpoolError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => SpoolError::Denied { path, operation },
            _ => SpoolError::Io { path, operation, source },
        }
    }

    /// Whether the disk, the quota or `rejected/` is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            SpoolError::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            SpoolError::RejectedFull { .. } => true,
            _ => false,
        }
    }
}

/// The reason that a file could not be opened for reading.
#[derive(Debug)]
pub enum OpenError {
    /// The file is not the one that was listed any more; the next scan decides.
    Changed,
    /// Somebody has the file open for writing.
    OpenForWriting,
    /// The permission is missing.
    Unreadable,
    /// Any other error.
    Error(SpoolError),
}
