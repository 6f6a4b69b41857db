//! The limits that the system sets to this process: the size of its files, and how many it may have open.

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use std::io;

/// The open files without which the agent does not start: the 27 of an idle agent, one each for a spool file, the folder,
/// the status and the configuration, and a few connections.
pub const MIN_OPEN_FILES: u64 = 36;
/// The open files that are left to all but the connections.
const NOT_FOR_CONNECTIONS: u64 = 32;

/// Makes a write beyond the limit of a file's size (RLIMIT_FSIZE) an error like that of a full disk, where the system's
/// signal would end the process. It holds for the calling thread and those that it starts from now on.
pub fn outlive_file_size_limit() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    // The system refuses no set of signals.
    let _ = signals.thread_block();
}

/// Raises the number of files that may be open to what the system allows at most. Returns the number in force.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return RLIM_INFINITY };
    let is_raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    if is_raised { hard } else { soft }
}

/// The connections that may be in use where so many files may be open: half of what is left for them, as those that have
/// done their work are closed later.
pub fn max_connections(open_files: u64) -> usize {
    let connections = open_files.saturating_sub(NOT_FOR_CONNECTIONS) / 2;
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

/// The most files that may be held open to be flushed together where so many may be open at all.
pub fn max_unflushed(open_files: u64) -> usize {
    usize::try_from(open_files / 8).unwrap_or(usize::MAX)
}

/// The files that may be open.
pub fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(RLIM_INFINITY, |(soft, _)| soft)
}

/// The largest file that this process may write; `None` without a limit.
pub fn max_file_size() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// Whether no more files can be opened at this moment.
pub fn is_out_of_files_now() -> bool {
    std::fs::File::open("/").is_err_and(|e| is_out_of_files(&e))
}

/// Whether the process, or the system, had no more descriptors.
pub fn is_out_of_files(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
