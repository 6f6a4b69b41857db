//! The files of an open database: the database, its log, and its index, which SQLite maps as shared memory.
//!
//! A descriptor of each is kept beside SQLite's own. Through them it shows whether the files at their paths are still those
//! that were opened, what is in them when they are not, and who holds a lock that prevents a commit.

use super::OutboxError;
use super::files::{FileId, file_at, with_suffix};
use super::lock::{ByteRange, exclusive_holder_of, holder_of};
use nix::libc;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The byte of the -shm file that SQLite locks to write, to copy the log, and to recover
/// (<https://sqlite.org/walformat.html>).
const WRITE_LOCKS: std::ops::Range<libc::off_t> = 120..123;
/// Those of the readers.
const READ_LOCKS: std::ops::Range<libc::off_t> = 123..128;
/// The byte that is locked to copy the log.
const CHECKPOINT_LOCK: libc::off_t = 121;
/// The bytes of the database that SQLite locks to have it alone (<https://sqlite.org/lockingv3.html>). Every connection
/// holds a shared lock on them, which keeps nobody from writing.
const DATABASE_LOCKS: ByteRange = (0x4000_0000, 512);

/// The files of an open database.
#[derive(Debug)]
pub(super) struct OpenFiles {
    main: File,
    wal: File,
    shm: File,
    ids: [FileId; 3],
}

/// What stands at the paths of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The open file.
    Same,
    /// Another file.
    Other,
    /// No file.
    Nothing,
}

impl OpenFiles {
    /// The files at the path of a database that was just opened.
    pub(super) fn of(database: &Path) -> Result<OpenFiles, OutboxError> {
        let open = |suffix| {
            let path = with_suffix(database, suffix);
            let file = File::open(&path).map_err(|e| OutboxError::io(&path, "open the database", &e))?;
            let meta = file.metadata().map_err(|e| OutboxError::io(&path, "open the database", &e))?;
            Ok((file, (meta.dev(), meta.ino())))
        };
        let [(main, a), (wal, b), (shm, c)] = [open("")?, open("-wal")?, open("-shm")?];
        Ok(OpenFiles { main, wal, shm, ids: [a, b, c] })
    }

    /// What stands at the paths of the database, its log and its index now, and the bytes of the log there. An empty file is
    /// no database: SQLite makes one where another program looks for what was removed.
    pub(super) fn places(&self, database: &Path) -> Result<([Place; 3], u64), OutboxError> {
        let mut places = [Place::Nothing; 3];
        let mut wal_bytes = 0;
        for (n, suffix) in ["", "-wal", "-shm"].into_iter().enumerate() {
            let Some((found, bytes)) = file_at(&with_suffix(database, suffix))? else { continue };
            places[n] = match n {
                _ if found == self.ids[n] => Place::Same,
                0 if bytes == 0 => Place::Nothing,
                _ => Place::Other,
            };
            if n == 1 {
                wal_bytes = bytes;
            }
        }
        Ok((places, wal_bytes))
    }

    /// Copies the open database into another file.
    pub(super) fn copy_main(&self, into: &mut File) -> io::Result<()> {
        copy(&self.main, into)
    }

    /// Copies the open log into another file.
    pub(super) fn copy_wal(&self, into: &mut File) -> io::Result<()> {
        copy(&self.wal, into)
    }

    /// Another process that holds a lock which a commit needs.
    pub(super) fn lock_holder(&self) -> Option<i32> {
        let in_shm =
            |mut bytes: std::ops::Range<libc::off_t>| bytes.find_map(|byte| holder_of(&self.shm, (byte, 1)));
        // A reader's lock is in nobody's way unless one of the others is not to blame.
        in_shm(WRITE_LOCKS)
            .or_else(|| exclusive_holder_of(&self.main, DATABASE_LOCKS))
            .or_else(|| in_shm(READ_LOCKS))
    }

    /// Other processes that prevent the log from being emptied, in ascending order.
    pub(super) fn log_holders(&self) -> Vec<i32> {
        let bytes = READ_LOCKS.chain([CHECKPOINT_LOCK]);
        let mut pids: Vec<i32> = bytes.filter_map(|byte| holder_of(&self.shm, (byte, 1))).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

fn copy(mut from: &File, into: &mut File) -> io::Result<()> {
    // A second descriptor would drop SQLite's locks when it is closed; this one's offset nobody uses.
    from.rewind()?;
    io::copy(&mut from, into)?;
    into.flush()
}

/// The process that holds a lock which opening the database or writing it needs. It opens the files for a moment: no
/// connection of this process may be open.
pub(super) fn lock_holder_at(database: &Path) -> Option<i32> {
    OpenFiles::of(database).ok()?.lock_holder()
}
