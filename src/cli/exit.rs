//! The exit codes: part of the interface, after sysexits.h.

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done; `status` and `map` end so whatever they have to tell.
    Success = 0,
    /// The answer is no: a check failed.
    No = 1,
    /// The command line is wrong. clap would say 2, which sysexits.h does not know.
    Usage = 64,
    /// An event is wrong, or is in a state in which the wish makes no sense.
    BadData = 65,
    /// No such file, or no such messageId.
    NotFound = 66,
    /// What is needed cannot be had: an address that is taken, for one.
    Unavailable = 69,
    /// A bug of the program.
    Bug = 70,
    /// A file cannot be made: no spool folder, a file system that is read-only.
    CannotCreate = 73,
    /// The device or its reading and writing failed.
    Io = 74,
    /// Not now: another agent holds the outbox, the disk is full, events are not settled yet.
    TryAgain = 75,
    /// Not by this user.
    NoPermission = 77,
    /// The configuration is wrong or missing.
    Configuration = 78,
}

impl ExitCode {
    /// Every code.
    pub const ALL: [ExitCode; 12] = [
        ExitCode::Success,
        ExitCode::No,
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
