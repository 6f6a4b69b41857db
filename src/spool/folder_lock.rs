//! The lock by which one agent at a time owns a spool, whatever its outbox: two would send every event twice.
//!
//! It is a POSIX record lock, as that of the outbox, because that kind tells others the holder's pid and ends with the
//! process. It stands on a file in `.removing`, where no other user can take it first.

use super::SpoolError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The name of the lock's file in `.removing`.
pub(super) const LOCK: &str = ".lock";

/// The right to take files from a spool. Closing any descriptor of the file in this process gives it up, so the value is
/// shared, and the file of one that is held is not opened again.
#[derive(Debug)]
pub(super) struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the lock of the spool at `spool_dir`, whose folder `.removing` is `removing`. Where the file system has no
    /// locks there is none, and nobody is kept out.
    ///
    /// # Errors
    /// [`SpoolError::Held`] with the holder's pid, at once; the system's errors for the file.
    pub fn take(spool_dir: &Path, removing: &Path) -> Result<FolderLock, SpoolError> {
        let path = removing.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| SpoolError::new(&path, "take the lock", e))?;
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let pid = fcntl(&file, FcntlArg::F_GETLK(&mut lock)).map_or(0, |_| lock.l_pid);
                Err(SpoolError::Held { path: spool_dir.to_owned(), pid })
            }
            Err(e) => {
                tracing::debug!("the spool cannot be locked against a second agent: {e}");
                Ok(FolderLock { file })
            }
            Ok(_) => Ok(FolderLock { file }),
        }
    }

    /// Whether this is the lock of the spool whose folder `.removing` is `removing`.
    pub fn is_of(&self, removing: &Path) -> bool {
        let id = |meta: Metadata| (meta.dev(), meta.ino());
        let found = fs::symlink_metadata(removing.join(LOCK)).map(id);
        matches!((self.file.metadata().map(id), found), (Ok(held), Ok(found)) if held == found)
    }
}
