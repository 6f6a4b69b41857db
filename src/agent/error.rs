//! Why an agent does not start, and why it ends by itself.

use crate::koala::ClientError;
use crate::outbox::OutboxError;
use crate::reason::{Code, Reason};
use crate::spool::SpoolError;
use std::io::ErrorKind;
use std::sync::Arc;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The outbox cannot be opened.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The settings of the receiver cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The status file cannot be written.
    #[error("cannot publish the status in {path}: {source}")]
    Status {
        /// The file.
        path: std::path::PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The system has no more threads.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    /// Whether the same start can succeed later, when there is room or the right to write.
    pub fn is_transient(&self) -> bool {
        match self {
            StartError::Outbox(e) => e.is_transient(),
            StartError::Spool(SpoolError::Io { source, .. }) | StartError::Status { source, .. } => {
                matches!(
                    source.kind(),
                    ErrorKind::StorageFull
                        | ErrorKind::QuotaExceeded
                        | ErrorKind::FileTooLarge
                        | ErrorKind::ReadOnlyFilesystem
                )
            }
            StartError::Spool(_) | StartError::Client(_) | StartError::Thread(_) => false,
        }
    }

    /// The reason that a start which is tried again gives for what waits.
    pub fn reason(&self) -> Reason {
        let (code, text) = match self {
            StartError::Outbox(e) => return e.reason(),
            StartError::Spool(SpoolError::Io { source, .. }) | StartError::Status { source, .. } => {
                let is_read_only = source.kind() == ErrorKind::ReadOnlyFilesystem;
                (if is_read_only { Code::ReadOnly } else { Code::DiskFull }, self.to_string())
            }
            StartError::Spool(_) | StartError::Client(_) | StartError::Thread(_) => {
                (Code::Unreadable, self.to_string())
            }
        };
        Reason::new(code, text)
    }
}

/// Why an agent ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The outbox failed in a way that waiting does not fix; a restart recovers what is in it.
    #[error("{0}")]
    Outbox(Arc<OutboxError>),
    /// A defect of the program; the panic has been logged.
    #[error("the {0} has ended by a defect")]
    Defect(&'static str),
}

impl From<OutboxError> for Fatal {
    fn from(e: OutboxError) -> Fatal {
        Fatal::Outbox(Arc::new(e))
    }
}
