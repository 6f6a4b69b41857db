//! The spool: the folder into which programs drop event files.
//!
//! File names and contents come from strangers. Only regular files with one name are opened, no link is followed, and a
//! name is only ever joined to the path of the folder itself. A file leaves the folder in two ways: it is removed after
//! all its events are durable in the outbox, or it is moved to `rejected/` with a reason. No file is deleted unread.

mod document;
mod drop;
mod entry;
mod lines;
mod listing;
mod names;
mod rejected;
mod removing;
mod watch;

pub use document::{Document, Form, ItemPositions, utf8_text};
pub use drop::drop_file;
pub use entry::{FileIdentity, FileKey, SpoolEntry};
pub use lines::{Line, Lines};
pub use listing::{MAX_LISTED, SpoolListing};
pub use names::{Format, format_of, shell_quoted};
pub(crate) use names::{is_finished_name, is_reason_name};
pub use rejected::{RejectedFile, RejectedFolder, Rejection};
pub use removing::Removal;
pub use watch::Watcher;

use crate::clock::Timestamp;
use entry::{identity, nanoseconds};
use flate2::read::MultiGzDecoder;
use nix::libc;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, access};
use removing::{Claim, REMOVING, RemovingFolder};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The name of the folder for rejected files in the spool.
pub const REJECTED: &str = "rejected";
/// The size of a read: an ordinary line comes in one.
const READ_BUFFER: usize = 64 << 10;

/// An error of the spool folder, naming the path, the operation and the fix.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder does not exist.
    #[error("there is no spool folder {}: create it, or set spool.dir", printable(path))]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// The agent lacks a permission.
    #[error(
        "cannot {operation} in the spool {}: permission denied; its owner must be the agent's user (see packaging/tmpfiles.d)",
        printable(path)
    )]
    Denied {
        /// The folder or file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
    },
    /// Any other error of the system.
    #[error("cannot {operation} in the spool {}: {source}", printable(path))]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl SpoolError {
    pub(crate) fn new(path: &Path, operation: &'static str, source: io::Error) -> SpoolError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => SpoolError::Denied { path, operation },
            _ => SpoolError::Io { path, operation, source },
        }
    }

    /// Whether the disk or the quota is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, SpoolError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// The reason that a file could not be opened for reading.
#[derive(Debug)]
pub enum OpenError {
    /// The file is not the one that was listed any more; the next scan decides.
    Changed,
    /// The permission is missing. Holds the uid of the file's owner.
    Unreadable(u32),
    /// Any other error.
    Error(SpoolError),
}

/// The spool folder of an agent.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
    /// Device and inode of the folder that was opened: another folder may have its name later.
    folder_id: (u64, u64),
    removing: RemovingFolder,
}

impl Spool {
    /// Opens the folder, creates `rejected` and `.removing` in it, and puts back files that a crash left half removed.
    ///
    /// # Errors
    /// The folder is missing, or the agent may not read or write it.
    pub fn open(dir: &Path) -> Result<Spool, SpoolError> {
        let folder_id = match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => (meta.dev(), meta.ino()),
            Ok(_) => {
                return Err(SpoolError::Io {
                    path: dir.to_owned(),
                    operation: "read files",
                    source: io::ErrorKind::NotADirectory.into(),
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(SpoolError::Missing { path: dir.to_owned() });
            }
            Err(e) => return Err(SpoolError::new(dir, "read files", e)),
        };
        fs::read_dir(dir).map_err(|e| SpoolError::new(dir, "read files", e))?;
        access(dir, AccessFlags::W_OK).map_err(|e| SpoolError::new(dir, "remove files", e.into()))?;
        for (name, mode) in [(REJECTED, 0o750), (REMOVING, 0o700)] {
            let path = dir.join(name);
            match DirBuilder::new().mode(mode).create(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_own_folder(&path) => {}
                Err(e) => return Err(SpoolError::new(&path, "create a folder", e)),
            }
        }
        let removing = RemovingFolder::of_spool(dir);
        removing.put_back_all()?;
        Ok(Spool { dir: dir.to_owned(), folder_id, removing })
    }

    /// The path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the folder that was opened still has its name, and still contains `rejected` and `.removing`.
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.dir).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.folder_id)
            && [REJECTED, REMOVING].iter().all(|name| is_own_folder(&self.dir.join(name)))
    }

    /// The time of the folder's file system, as it stamps files: nanoseconds since 1970. No file gets an earlier stamp from
    /// now on, unless the clock is set back. `None` if a file to ask with cannot be created.
    pub fn file_system_time(&self) -> Option<i64> {
        let stamp = || {
            let file = tempfile::tempfile_in(self.removing.dir())?;
            // Linux stamps by a clock that ticks a few hundred times a second. From 6.13 on, a file whose stamp was read
            // gets an exact stamp next, and no later stamp is below an exact one (multigrain-ts.rst).
            let before = file.metadata()?;
            futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW)?;
            let stamps = [before, file.metadata()?].map(|meta| nanoseconds(meta.ctime(), meta.ctime_nsec()));
            io::Result::Ok(stamps)
        };
        stamp().ok().filter(|[created, now]| created <= now).map(|[_, now]| now)
    }

    /// The folder for rejected files.
    pub fn rejected_folder(&self) -> RejectedFolder {
        RejectedFolder::of_spool(&self.dir)
    }

    /// Lists the files of the folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self, now: Timestamp) -> Result<SpoolListing, SpoolError> {
        SpoolListing::read(&self.dir, now)
    }

    /// The entry of one file as it is now; `None` if there is none or it is irregular.
    pub fn entry(&self, name: &OsStr) -> Option<SpoolEntry> {
        let meta = fs::symlink_metadata(self.dir.join(name)).ok()?;
        irregularity(&meta).is_none().then(|| SpoolEntry::new(name.to_owned(), &meta))
    }

    /// The keys of all files, rejected ones included.
    pub fn keys(&self) -> impl Iterator<Item = FileKey> {
        [self.dir.clone(), self.dir.join(REJECTED)]
            .into_iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|item| Some(identity(&item.ok()?.metadata().ok()?).key()))
    }

    /// Opens a file for reading: the one that was listed, in the version that was listed.
    ///
    /// # Errors
    /// [`OpenError`] has the cases.
    pub fn open_file(&self, entry: &SpoolEntry) -> Result<File, OpenError> {
        let path = self.dir.join(&entry.name);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => OpenError::Changed,
                io::ErrorKind::PermissionDenied => {
                    OpenError::Unreadable(fs::symlink_metadata(&path).map_or(0, |m| m.uid()))
                }
                _ if e.raw_os_error() == Some(libc::ELOOP) => OpenError::Changed,
                _ => OpenError::Error(SpoolError::new(&path, "open a file", e)),
            })?;
        let meta =
            file.metadata().map_err(|e| OpenError::Error(SpoolError::new(&path, "examine a file", e)))?;
        if irregularity(&meta).is_some() || SpoolEntry::new(entry.name.clone(), &meta) != *entry {
            return Err(OpenError::Changed);
        }
        Ok(file)
    }

    /// Removes a file all of whose events are durable: the file that was read, and no other.
    ///
    /// # Errors
    /// The system refuses; the file is still in the folder, or half removed and put back at the next start.
    pub fn remove(&self, read: &SpoolEntry) -> Result<Removal, SpoolError> {
        let error = |e| SpoolError::new(&self.dir.join(&read.name), "remove a file", e);
        match self.removing.claim(read).map_err(error)? {
            Claim::Claimed(path) => fs::remove_file(path).map(|()| Removal::Removed).map_err(error),
            Claim::Lost(removal) => Ok(removal),
        }
    }
}

/// A reader of a file's text, unpacked where it is packed.
pub fn unpacked(file: File, gz: bool) -> Box<dyn Read + Send> {
    if gz {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_BUFFER, file)))
    } else {
        Box::new(file)
    }
}

/// The reason not to read a file, or `None` for a regular file with one name.
fn irregularity(meta: &Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        Some("a symbolic link")
    } else if kind.is_dir() {
        Some("a folder")
    } else if !kind.is_file() {
        Some("not a regular file")
    } else if meta.nlink() != 1 {
        Some("a file with a second hard link")
    } else {
        None
    }
}

/// Whether the path is a folder of the agent's user. A producer may have created a folder or link of that name first, and
/// must not see the files that the agent puts there. An agent of root may find the folder of the service's user.
fn is_own_folder(path: &Path) -> bool {
    let us = nix::unistd::geteuid();
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && (us.is_root() || m.uid() == us.as_raw()))
}

/// A path as text for one line of the log, with control characters escaped: producers choose names, and a name may
/// contain a line break or a terminal escape.
pub fn printable(path: impl AsRef<Path>) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    path.as_ref().display().to_string().chars().map(escape).collect()
}
