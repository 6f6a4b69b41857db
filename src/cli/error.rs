//! How a command ends: the exit codes, and the one error type at the edge that is mapped to them.

use super::receiver::ReceiverError;
use crate::agent::{Fatal, StartError};
use crate::config::ConfigError;
use crate::outbox::OutboxError;
use crate::spool::SpoolError;
use std::io::{self, ErrorKind};

/// How a command ends, by the codes of sysexits.h, except that `status --check` has those of Nagios' plugins: part of the
/// interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The command has done its work; `status` and `map` always end so if they could answer.
    Success = 0,
    /// The answer is no: a check failed. `status --check`: a warning.
    No = 1,
    /// `status --check` alone: critical, by the conventions of Nagios' plugins.
    Critical = 2,
    /// `status --check` alone: the status is not known.
    Unknown = 3,
    /// The command line is wrong. clap would end with 2, which sysexits.h does not have.
    Usage = 64,
    /// An event is invalid, was refused, or is in a state that the command cannot change.
    BadData = 65,
    /// There is no such file or messageId.
    NotFound = 66,
    /// A resource is not available, such as an address that another program uses.
    Unavailable = 69,
    /// The program has a bug.
    Bug = 70,
    /// A file cannot be created: there is no spool folder, or the file system is read-only.
    CannotCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// The command may succeed later: another agent holds the outbox or the spool, the disk is full, or events are not settled.
    TryAgain = 75,
    /// This user may not do it.
    NoPermission = 77,
    /// The configuration is wrong or missing.
    Configuration = 78,
}

impl ExitCode {
    /// Every code.
    pub const ALL: [ExitCode; 14] = [
        ExitCode::Success,
        ExitCode::No,
        ExitCode::Critical,
        ExitCode::Unknown,
        ExitCode::Usage,
        ExitCode::BadData,
        ExitCode::NotFound,
        ExitCode::Unavailable,
        ExitCode::Bug,
        ExitCode::CannotCreate,
        ExitCode::Io,
        ExitCode::TryAgain,
        ExitCode::NoPermission,
        ExitCode::Configuration,
    ];
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong, missing or unreadable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The outbox failed.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The spool failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The built-in receiver failed.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// A file cannot be read.
    #[error("cannot read {name}: {}", without_number(source))]
    Input {
        /// The file, or `stdin`.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The answer cannot be written. A reader that has closed the pipe ends the command without a message.
    #[error("cannot write the output: {}", without_number(.0))]
    Output(#[from] io::Error),
    /// This user may not do it.
    #[error("{text}")]
    Denied {
        /// What is not permitted, and to whom it is.
        text: String,
        /// A command line that would work, beginning with `sudo `; without one it is the same line by root.
        command: Option<String>,
    },
    /// Any other failure, in the command's own words.
    #[error("{text}")]
    Other {
        /// How the command ends.
        code: ExitCode,
        /// The message.
        text: String,
    },
}

impl CliError {
    /// An error in the command's own words.
    pub fn new(code: ExitCode, text: impl Into<String>) -> CliError {
        CliError::Other { code, text: text.into() }
    }

    /// Whether the reader of the output has closed it, and so wants no message either.
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
            CliError::Outbox(e) => outbox_exit_code(e),
            CliError::Spool(SpoolError::Missing { .. }) => ExitCode::CannotCreate,
            CliError::Spool(SpoolError::Held { .. } | SpoolError::RejectedFull { .. }) => ExitCode::TryAgain,
            CliError::Spool(SpoolError::Denied { .. } | SpoolError::NotOwn { .. }) => ExitCode::NoPermission,
            CliError::Spool(SpoolError::Io { source, .. }) => io_exit_code(source),
            CliError::Receiver(e) => e.exit_code(),
            CliError::Input { source, .. } => io_exit_code(source),
            quiet if quiet.is_quiet() => ExitCode::Success,
            CliError::Output(e) => io_exit_code(e),
            CliError::Other { code, .. } => *code,
        }
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> CliError {
        match error {
            StartError::Outbox(e) => e.into(),
            StartError::Spool(e) => e.into(),
            StartError::Client(e) => CliError::new(ExitCode::Configuration, e.to_string()),
            StartError::Status { ref source, .. } => {
                CliError::new(write_exit_code(source), error.to_string())
            }
            StartError::Thread(_) => CliError::new(ExitCode::TryAgain, error.to_string()),
        }
    }
}

impl From<Fatal> for CliError {
    fn from(fatal: Fatal) -> CliError {
        let code = match &fatal {
            Fatal::Outbox(e) => outbox_exit_code(e),
            Fatal::Defect(_) => ExitCode::Bug,
        };
        CliError::new(code, format!("{fatal}; the agent ends, and recovers at its next start"))
    }
}

/// The system's message in the style of ours: without the error number, in lower case.
pub fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((message, _)) => message.to_lowercase(),
        None => text,
    }
}

fn outbox_exit_code(error: &OutboxError) -> ExitCode {
    match error {
        OutboxError::Held { .. } | OutboxError::Full { .. } | OutboxError::TooManyFiles { .. } => {
            ExitCode::TryAgain
        }
        OutboxError::NotWritable { fix: None, .. } => ExitCode::NoPermission,
        OutboxError::Missing { .. } => ExitCode::NotFound,
        OutboxError::OlderSchema { .. }
        | OutboxError::NewerSchema { .. }
        | OutboxError::Foreign { .. }
        | OutboxError::NetworkFileSystem { .. } => ExitCode::Configuration,
        OutboxError::OldSqlite { .. } => ExitCode::Unavailable,
        OutboxError::Denied { .. } => ExitCode::NoPermission,
        OutboxError::Closed => ExitCode::Bug,
        transient if transient.is_transient() => ExitCode::TryAgain,
        OutboxError::NotWritable { .. }
        | OutboxError::Locked { .. }
        | OutboxError::ReadOnly { .. }
        | OutboxError::Io { .. }
        | OutboxError::FilesReplaced { .. }
        | OutboxError::Damaged { .. }
        | OutboxError::Sqlite { .. } => ExitCode::Io,
    }
}

/// The exit code where a file could not be written: a folder that is missing cannot be written to.
pub fn write_exit_code(error: &io::Error) -> ExitCode {
    match io_exit_code(error) {
        ExitCode::NotFound => ExitCode::CannotCreate,
        code => code,
    }
}

/// The exit code of a failed system call.
pub fn io_exit_code(error: &io::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory => ExitCode::NotFound,
        ErrorKind::PermissionDenied => ExitCode::NoPermission,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => ExitCode::TryAgain,
        ErrorKind::ReadOnlyFilesystem => ExitCode::CannotCreate,
        // A compressed file that is damaged or cut off.
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => ExitCode::BadData,
        _ => ExitCode::Io,
    }
}
