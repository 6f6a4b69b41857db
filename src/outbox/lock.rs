//! One agent at a time owns an outbox: a lock beside the database, which names its holder.
//!
//! The lock is a POSIX record lock, because that kind alone tells others the holder's pid, and the kernel
//! drops it with the process however that ends. It stands on a file of its own: closing any descriptor of
//! the database itself would drop SQLite's locks in this process.
//!
//! The file also holds one byte: whether the write-ahead log has something in it that is nowhere else. A log that is
//! missing or empty at the next start, against that byte, was lost, and SQLite would not say so.

use super::{OutboxError, beside};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The right to write the outbox, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// What the holder before has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// There was none.
    Nobody,
    /// A log that may be empty.
    EmptyLog,
    /// A log with something in it.
    Log,
}

const EMPTY: &[u8] = b"0";
const IN_USE: &[u8] = b"1";

impl Lock {
    /// Takes the lock. When this returns `Ok`, no other agent owns the outbox; and it says what the last one left.
    ///
    /// # Errors
    /// [`OutboxError::Held`] with the holder's pid, at once; the system's errors for the lock file.
    pub fn take(outbox: &Path) -> Result<(Lock, Before), OutboxError> {
        let path = lock_path(outbox);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(super::FILE_MODE)
            .open(&path)
            .map_err(|e| OutboxError::io(&path, "take the lock", &e))?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => {
                let mut byte = [0];
                let before = match file.read_at(&mut byte, 0) {
                    // Nobody has come so far as to make an outbox.
                    Ok(0) => Before::Nobody,
                    Ok(1) if byte == IN_USE => Before::Log,
                    _ => Before::EmptyLog,
                };
                Ok((Lock { file }, before))
            }
            Err(_) => {
                Err(OutboxError::Held { path: outbox.to_owned(), pid: holder_of(&file).unwrap_or_default() })
            }
        }
    }
}

impl Lock {
    /// Says whether the log has something in it that is nowhere else. It outlives the process, and a power cut as
    /// files do. To be said after something is put there, and, once all of it stands in the database, before it is emptied:
    /// a crash between the two must not look like a loss.
    pub fn mark_log(&self, in_use: bool) {
        // Without it a lost log goes unnoticed, as with SQLite itself.
        if let Err(e) = self.file.write_at(if in_use { IN_USE } else { EMPTY }, 0) {
            tracing::debug!("the state of the log cannot be noted: {e}");
        }
    }
}

/// The pid of the agent that owns the outbox, asked without taking the lock.
pub fn holder(outbox: &Path) -> Option<i32> {
    holder_of(&File::open(lock_path(&real_path(outbox))).ok()?)
}

fn holder_of(file: &File) -> Option<i32> {
    let mut probe = whole_file();
    fcntl(file, FcntlArg::F_GETLK(&mut probe)).ok()?;
    (i32::from(probe.l_type) != libc::F_UNLCK).then_some(probe.l_pid)
}

fn lock_path(outbox: &Path) -> PathBuf {
    beside(outbox, ".lock")
}

/// The outbox's own name, whatever links lead to it: two names must not make two locks.
pub fn real_path(outbox: &Path) -> PathBuf {
    let target = std::fs::read_link(outbox).map_or_else(
        |_| outbox.to_owned(),
        // A relative target starts from the link's folder; an absolute one replaces it.
        |target| outbox.parent().unwrap_or(Path::new("")).join(target),
    );
    let in_real_folder = || Some(target.parent()?.canonicalize().ok()?.join(target.file_name()?));
    outbox.canonicalize().ok().or_else(in_real_folder).unwrap_or(target)
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
