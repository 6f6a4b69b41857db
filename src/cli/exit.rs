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
    /// Every code with what it means, for the manual.
    pub const ALL: [(ExitCode, &str); 12] = [
        (ExitCode::Success, "done"),
        (ExitCode::No, "the answer is no: check or demo failed"),
        (ExitCode::Usage, "the command line is wrong"),
        (ExitCode::BadData, "an event is wrong, was refused, or cannot be changed like that"),
        (ExitCode::NotFound, "no such file or messageId"),
        (ExitCode::Unavailable, "something that is needed cannot be had"),
        (ExitCode::Bug, "a bug of koala-agent"),
        (ExitCode::CannotCreate, "a file cannot be made, as where there is no spool folder"),
        (ExitCode::Io, "reading or writing failed"),
        (ExitCode::TryAgain, "not now: another agent runs, no room, or not settled yet"),
        (ExitCode::NoPermission, "no permission; the line that would work is printed"),
        (ExitCode::Configuration, "the configuration is wrong"),
    ];
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}
