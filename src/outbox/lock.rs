//! The lock by which one agent at a time owns an outbox.
//!
//! The lock is a POSIX record lock: that kind alone tells others the holder's pid, and the kernel releases it with the
//! process, however that ends. It stands on a file of its own, because closing any descriptor of the database would
//! drop SQLite's locks in this process.
//!
//! The file also holds one byte: whether the write-ahead log has commits that are not in the database. If the log is
//! missing or empty at the next start although the byte says so, it was lost; SQLite would not notice.

use super::OutboxError;
use super::files::{FILE_MODE, with_suffix};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The right to write the outbox, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// Whether the file has its second byte: see [`Lock::confirm_commit`].
    is_padded: AtomicBool,
}

/// The write-ahead log, as the previous holder of the lock has recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviousWal {
    /// No holder came so far as to create an outbox.
    None,
    /// All commits were in the database.
    Empty,
    /// Some commits were in the log only.
    InUse,
}

const EMPTY: &[u8] = b"0";
const IN_USE: &[u8] = b"1";

impl Lock {
    /// Takes the lock. When this returns `Ok`, no other agent owns the outbox.
    ///
    /// # Errors
    /// [`OutboxError::Held`] with the holder's pid, at once; the system's errors for the lock file.
    pub fn take(outbox: &Path) -> Result<(Lock, PreviousWal), OutboxError> {
        let path = lock_path(outbox);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|e| OutboxError::io(&path, "take the lock", &e))?;
        if fcntl(&file, FcntlArg::F_SETLK(&write_lock(WHOLE_FILE))).is_err() {
            let pid = holder_of(&file, WHOLE_FILE).unwrap_or_default();
            return Err(OutboxError::Held { path: outbox.to_owned(), pid });
        }
        let mut byte = [0];
        let previous = match file.read_at(&mut byte, 0) {
            Ok(0) => PreviousWal::None,
            Ok(1) if byte == IN_USE => PreviousWal::InUse,
            _ => PreviousWal::Empty,
        };
        Ok((Lock { file, path, is_padded: AtomicBool::new(false) }, previous))
    }

    /// Records whether the write-ahead log has commits that are not in the database. The record outlives the process,
    /// and a power cut as files do. "In use" is recorded after a commit, "empty" once all commits are in the database
    /// and before the log is emptied: a crash in between must not look like a loss.
    pub fn record_wal(&self, is_in_use: bool) {
        // Without the record a lost log goes unnoticed, as with SQLite itself.
        if let Err(e) = self.file.write_at(if is_in_use { IN_USE } else { EMPTY }, 0) {
            tracing::debug!("the state of the write-ahead log cannot be recorded: {e}");
        }
    }

    /// Confirms a commit that SQLite has reported as durable: the file system still accepts changes.
    ///
    /// With `errors=remount-ro`, the default of many distributions, ext4 aborts its journal at an error. An fsync that is
    /// under way then can succeed although its data is gone after the next mount: in 150 aborts amid a loop of writes
    /// this happened 22 times (Linux 6.18), and with this confirmation in none of 120. A change of a file's size needs the
    /// journal, so it fails once the journal is aborted; new time stamps do not, and a second fsync costs a flush and
    /// closes the gap only nearly. The file gains and loses a second byte, which nobody reads.
    ///
    /// # Errors
    /// The file system has failed: what was committed last may be lost. A full disk is no error here.
    pub fn confirm_commit(&self) -> Result<(), OutboxError> {
        let was_padded = self.is_padded.fetch_xor(true, Relaxed);
        match self.file.set_len(if was_padded { 1 } else { 2 }) {
            Err(e) if is_failed_storage(&e) => Err(OutboxError::Io {
                path: self.path.clone(),
                operation: "confirm a commit",
                text: e.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

fn is_failed_storage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EROFS | libc::EIO | libc::EUCLEAN))
}

/// The pid of the agent that owns the outbox, found without taking the lock.
pub fn holder(outbox: &Path) -> Option<i32> {
    holder_of(&File::open(lock_path(&real_path(outbox))).ok()?, WHOLE_FILE)
}

fn lock_path(outbox: &Path) -> PathBuf {
    with_suffix(outbox, ".lock")
}

/// The outbox's path without links: two names of one file must not make two locks.
pub fn real_path(outbox: &Path) -> PathBuf {
    let target = std::fs::read_link(outbox).map_or_else(
        |_| outbox.to_owned(),
        // A relative target starts from the link's folder; an absolute one replaces it.
        |target| outbox.parent().unwrap_or(Path::new("")).join(target),
    );
    let in_real_folder = || Some(target.parent()?.canonicalize().ok()?.join(target.file_name()?));
    outbox.canonicalize().ok().or_else(in_real_folder).unwrap_or(target)
}

/// The first byte of a lock and the number of bytes; 0 bytes: to the end of the file.
type ByteRange = (libc::off_t, libc::off_t);

const WHOLE_FILE: ByteRange = (0, 0);

/// The pid of a process that holds a lock on these bytes of the file.
pub(super) fn holder_of(file: &File, range: ByteRange) -> Option<i32> {
    let mut probe = write_lock(range);
    fcntl(file, FcntlArg::F_GETLK(&mut probe)).ok()?;
    (i32::from(probe.l_type) != libc::F_UNLCK).then_some(probe.l_pid)
}

fn write_lock((start, len): ByteRange) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}
