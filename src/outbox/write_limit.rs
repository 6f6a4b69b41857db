//! Limits of writing other than the room on the disk: the quota of the agent's user, and the size that the files of this
//! process may have.
//!
//! SQLite reports a write beyond one as a failure of the device, and only an unsafe call would give the system's error
//! number. A device that has failed ends the agent, which would start again, and end again; a limit is like a full disk. So
//! what is left of the limits is looked at after such an error.

use super::files::with_suffix;
use crate::config::Bytes;
use crate::limits;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// What one transaction adds to a file at most, about: a file that has less room can have reached its limit.
const GROWTH: u64 = 16 << 20;
/// The bytes that are written to see whether the quota allows any: what an ordinary transaction adds.
const PROBE: usize = 1 << 20;

/// The limit that a write of SQLite has reached with this error, in words; `None`: none.
pub(super) fn reached(outbox: &Path, error: &rusqlite::Error) -> Option<String> {
    use rusqlite::ffi::*;
    match error.sqlite_error()?.extended_code {
        // The outbox itself says so where it cannot allocate what it is about to write.
        SQLITE_FULL => size_reached(outbox),
        // What cannot be read or synced has nothing to do with room.
        SQLITE_IOERR_READ | SQLITE_IOERR_SHORT_READ | SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC => None,
        _ => size_reached(outbox).or_else(|| quota_reached(outbox)),
    }
}

fn size_reached(outbox: &Path) -> Option<String> {
    let max = limits::max_file_size()?;
    let sizes = ["", "-wal", "-shm"]
        .map(|suffix| std::fs::metadata(with_suffix(outbox, suffix)).map_or(0, |file| file.len()));
    sizes.iter().any(|size| size.saturating_add(GROWTH) > max).then(|| size_text(max))
}

/// What says that files may not be larger.
pub(super) fn size_text(max: u64) -> String {
    format!("files of this process may have {} at most: raise LimitFSIZE= or `ulimit -f`", Bytes(max))
}

fn quota_reached(outbox: &Path) -> Option<String> {
    let written =
        tempfile::tempfile_in(outbox.parent()?).and_then(|mut file| file.write_all(&vec![0; PROBE]));
    (written.err()?.kind() == ErrorKind::QuotaExceeded).then(quota_text)
}

pub(super) fn quota_text() -> String {
    "the disk quota of the agent's user is used up".to_owned()
}
