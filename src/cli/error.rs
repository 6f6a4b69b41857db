//! The one wide error, at the edge: what went wrong below, and the exit code that it comes to.

use super::exit::ExitCode;
use super::receiver::ReceiverError;
use crate::config::ConfigError;
use crate::outbox::OutboxError;
use crate::spool::SpoolError;
use std::io::{self, ErrorKind};

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// There is no configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The built-in receiver.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// A file with events.
    #[error("cannot read {name}: {}", said(source))]
    Input {
        /// The file, or `stdin`.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The answer cannot be written; a reader that has gone away ends the command quietly.
    #[error("cannot write the output: {}", said(.0))]
    Output(#[from] io::Error),
    /// Not by this user; a line that would work, where it is not the same command by root.
    #[error("{text}")]
    Denied {
        /// What is not permitted, and to whom it is.
        text: String,
        /// Begins with `sudo `.
        line: Option<String>,
    },
    /// Anything else, in the command's own words.
    #[error("{text}")]
    Said {
        /// How the command ends.
        code: ExitCode,
        /// What the matter is.
        text: String,
    },
}

impl CliError {
    /// An error in the command's own words.
    pub fn new(code: ExitCode, text: impl Into<String>) -> CliError {
        CliError::Said { code, text: text.into() }
    }

    /// Whether only the reader of the output has gone away, who wants to hear no more.
    pub fn is_quiet(&self) -> bool {
        let (CliError::Output(error) | CliError::Receiver(ReceiverError::Io(error))) = self else {
            return false;
        };
        error.kind() == ErrorKind::BrokenPipe
    }

    /// How the command ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CliError::Config(ConfigError::Unreadable { .. }) | CliError::Denied { .. } => {
                ExitCode::NoPermission
            }
            CliError::Config(_) => ExitCode::Configuration,
            CliError::Outbox(e) => of_outbox(e),
            CliError::Spool(SpoolError::Missing { .. }) => ExitCode::CannotCreate,
            CliError::Spool(SpoolError::Denied { .. }) => ExitCode::NoPermission,
            CliError::Spool(SpoolError::Io { source, .. }) => of_io(source),
            CliError::Receiver(e) => e.exit_code(),
            CliError::Input { source, .. } => of_io(source),
            quiet if quiet.is_quiet() => ExitCode::Success,
            CliError::Output(e) => of_io(e),
            CliError::Said { code, .. } => *code,
        }
    }
}

/// What the system said, in our style: without its number and capital.
fn said(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((what, _)) => what.to_lowercase(),
        None => text,
    }
}

pub(super) fn of_outbox(error: &OutboxError) -> ExitCode {
    match error {
        OutboxError::Held { .. } | OutboxError::Full { .. } => ExitCode::TryAgain,
        OutboxError::Missing { .. } => ExitCode::NotFound,
        OutboxError::OlderSchema { .. }
        | OutboxError::NewerSchema { .. }
        | OutboxError::Foreign { .. }
        | OutboxError::NetworkFileSystem { .. } => ExitCode::Configuration,
        OutboxError::OldSqlite { .. } => ExitCode::Unavailable,
        OutboxError::Denied { .. } => ExitCode::NoPermission,
        OutboxError::Closed => ExitCode::Bug,
        passing if passing.is_transient() => ExitCode::TryAgain,
        OutboxError::ReadOnly { .. }
        | OutboxError::Io { .. }
        | OutboxError::FilesReplaced { .. }
        | OutboxError::Damaged { .. }
        | OutboxError::Sqlite { .. } => ExitCode::Io,
    }
}

pub(super) fn of_io(error: &io::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory => ExitCode::NotFound,
        ErrorKind::PermissionDenied => ExitCode::NoPermission,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ExitCode::TryAgain,
        ErrorKind::ReadOnlyFilesystem => ExitCode::CannotCreate,
        // What a packed file is that is damaged or cut.
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => ExitCode::BadData,
        _ => ExitCode::Io,
    }
}
