//! One agent at a time owns an outbox: a lock beside the database, which names its holder.
//!
//! The lock is a POSIX record lock, because that kind alone tells others the holder's pid, and the kernel
//! drops it with the process however that ends. It stands on a file of its own: closing any descriptor of
//! the database itself would drop SQLite's locks in this process.

use super::OutboxError;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The right to write the outbox, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock. When this returns `Ok`, no other agent owns the outbox.
    ///
    /// # Errors
    /// [`OutboxError::Held`] with the holder's pid, at once; the system's errors for the lock file.
    pub fn take(outbox: &Path) -> Result<Lock, OutboxError> {
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
            Ok(_) => Ok(Lock { _file: file }),
            Err(_) => {
                Err(OutboxError::Held { path: outbox.to_owned(), pid: holder_of(&file).unwrap_or_default() })
            }
        }
    }
}

/// The pid of the agent that owns the outbox, asked without taking the lock.
pub fn holder(outbox: &Path) -> Option<i32> {
    holder_of(&File::open(lock_path(outbox)).ok()?)
}

fn holder_of(file: &File) -> Option<i32> {
    let mut probe = whole_file();
    fcntl(file, FcntlArg::F_GETLK(&mut probe)).ok()?;
    (i32::from(probe.l_type) != libc::F_UNLCK).then_some(probe.l_pid)
}

fn lock_path(outbox: &Path) -> PathBuf {
    let mut name = outbox.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
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
