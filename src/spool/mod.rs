//! The spool: the folder into which programs drop event files.
//!
//! File names and contents come from strangers. Only regular files with one name are opened, no link is followed, and a
//! name is only ever joined to the path of the folder itself. A file leaves the folder in two ways: it is removed after
//! all its events are durable in the outbox, or it is moved to `rejected/` with a reason. No file is deleted unread.

mod drop;
mod entry;
mod error;
mod folder_lock;
mod in_hand;
mod lease;
mod left_files;
mod listing;
mod names;
mod rejected;
mod rejection_writer;
mod removing;
mod rest;
mod text;
mod text_buffer;
mod value;
mod values;
mod watch;

pub use drop::drop_file;
pub use entry::{ContentStamp, FileIdentity, FileKey, SpoolEntry};
pub use error::{OpenError, SpoolError};
pub use in_hand::InHand;
pub use lease::Lease;
pub use left_files::{LeftFile, WhyLeft, left_files, let_agent_read};
pub use listing::{MAX_LISTED_BYTES, OwnerFiles, SpoolListing};
pub use names::{Format, format_of, shell_quoted};
pub(crate) use names::{is_finished_name, is_reason_name};
pub use rejected::{RejectedFile, RejectedFolder, Rejection, RestMark, RestOfFile, open_regular};
pub use rejection_writer::{FailedRejection, MAX_PARTS, RejectedUsage, RejectionWriter};
pub use removing::{KeptFile, QUIET_BEFORE_UNLINK, REMOVING, Removal};
pub use rest::PartKind;
pub use text::{GZIP_MAGIC, Text, unpacked};
pub use value::{EventPlace, MakeEvent, ReadLimits, fits};
pub use values::{ReadEnd, ReadPosition, ReadStep, RejectedPart, Values};
pub use watch::{NotWatched, Watcher};

use crate::clock::Timestamp;
use entry::{identity, nanoseconds};
use folder_lock::FolderLock;
use nix::libc;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, access};
use removing::{Claim, RemovingFolder};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the folder for rejected files in the spool.
pub const REJECTED: &str = "rejected";

/// The spool folder of an agent.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
    /// Device and inode of the folder that was opened: another folder may have its name later.
    folder_id: (u64, u64),
    removing: RemovingFolder,
    lock: Arc<FolderLock>,
}

impl Spool {
    /// Opens the folder, creates `rejected` and `.removing` in it, and puts back files that a crash left half removed. When
    /// this returns `Ok`, no other agent takes files from the folder.
    ///
    /// # Errors
    /// The folder is missing, is another agent's, or this agent may not read or write it.
    pub fn open(dir: &Path) -> Result<Spool, SpoolError> {
        Spool::open_beside(dir, None)
    }

    /// Opens the folder that has this one's name now.
    ///
    /// # Errors
    /// See [`Spool::open`].
    pub fn reopen(&self) -> Result<Spool, SpoolError> {
        Spool::open_beside(&self.dir, Some(&self.lock))
    }

    /// Opens the folder; `held` is the lock that this process holds already, of this folder or of another.
    fn open_beside(dir: &Path, held: Option<&Arc<FolderLock>>) -> Result<Spool, SpoolError> {
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
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match foreign_folder(&path) {
                    None => {}
                    Some(what) => return Err(SpoolError::NotOwn { path, what }),
                },
                Err(e) => return Err(SpoolError::new(&path, "create a folder", e)),
            }
        }
        let removing = RemovingFolder::of_spool(dir);
        let lock = match held.filter(|held| held.is_of(removing.dir())) {
            Some(held) => held.clone(),
            None => Arc::new(FolderLock::take(dir, removing.dir())?),
        };
        removing.put_back_all()?;
        Ok(Spool { dir: dir.to_owned(), folder_id, removing, lock })
    }

    /// The path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the folder that was opened still has its name, and still contains `rejected` and `.removing`.
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.dir).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.folder_id)
            && [REJECTED, REMOVING].iter().all(|name| foreign_folder(&self.dir.join(name)).is_none())
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

    /// The note of the file that is being read.
    pub fn in_hand(&self) -> InHand {
        InHand::open(self.removing.dir())
    }

    /// Lists the files of the folder. `tick` is called every few milliseconds: a folder of millions takes seconds.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self, now: Timestamp, tick: &mut dyn FnMut()) -> Result<SpoolListing, SpoolError> {
        SpoolListing::read(&self.dir, now, tick)
    }

    /// The entry of one file as it is now; `None` if there is none, or it is none that is read.
    pub fn entry(&self, name: &OsStr) -> Option<SpoolEntry> {
        format_of(name)?;
        let meta = fs::symlink_metadata(self.dir.join(name)).ok()?;
        irregularity(&meta).is_none().then(|| SpoolEntry::new(name.to_owned(), &meta))
    }

    /// The bytes that a file takes on the disk: it may be longer than that. 0 if it is gone.
    pub fn size_on_disk(&self, entry: &SpoolEntry) -> u64 {
        fs::symlink_metadata(self.dir.join(&entry.name)).map_or(0, |meta| rejected::size_on_disk(&meta))
    }

    /// Passes the keys of all files to `each`, whatever their names; rejected files and those on their way out included.
    ///
    /// # Errors
    /// Not all files could be looked at.
    pub fn for_each_key(&self, each: &mut dyn FnMut(FileKey)) -> Result<(), SpoolError> {
        for folder in [self.dir.clone(), self.dir.join(REJECTED), self.dir.join(REMOVING)] {
            let error = |e| SpoolError::new(&folder, "read files", e);
            for item in fs::read_dir(&folder).map_err(error)? {
                match item.and_then(|item| item.metadata()) {
                    Ok(meta) => each(identity(&meta).key()),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(error(e)),
                }
            }
        }
        Ok(())
    }

    /// Opens a file for reading: the one that was listed, in the version that was listed. Returns also whether it is
    /// certain that nobody had it open for writing.
    ///
    /// # Errors
    /// [`OpenError`] has the cases.
    pub fn open_file(&self, entry: &SpoolEntry) -> Result<(File, bool), OpenError> {
        let path = self.dir.join(&entry.name);
        let file = open_to_read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::Changed,
            io::ErrorKind::PermissionDenied => OpenError::Unreadable,
            _ if e.raw_os_error() == Some(libc::ELOOP) => OpenError::Changed,
            _ => OpenError::Error(SpoolError::new(&path, "open a file", e)),
        })?;
        // The lease comes before the comparison: what was written before it was granted shows in the version.
        let lease = Lease::probe(&file);
        let meta =
            file.metadata().map_err(|e| OpenError::Error(SpoolError::new(&path, "examine a file", e)))?;
        if irregularity(&meta).is_some() {
            return Err(OpenError::Changed);
        }
        if lease == Lease::OpenForWriting {
            return Err(OpenError::OpenForWriting);
        }
        if SpoolEntry::new(entry.name.clone(), &meta) != *entry {
            return Err(OpenError::Changed);
        }
        Ok((file, lease == Lease::Free))
    }

    /// Removes a file all of whose events are durable: the file that was read, and no other. It is kept instead if the
    /// kernel does not tell whether somebody has it open.
    ///
    /// # Errors
    /// The system refuses; the file is still in the folder, or goes back with [`Spool::put_back_stranded`].
    pub fn remove(&self, read: &SpoolEntry) -> Result<Removal, SpoolError> {
        let error = |e| SpoolError::new(&self.dir.join(&read.name), "remove a file", e);
        match self.removing.claim(read).map_err(error)? {
            Claim::Claimed { path, is_free: true, lease, .. } => {
                let removed =
                    fs::remove_file(&path).inspect_err(|_| self.removing.give_back(&path, &read.name));
                drop(lease);
                removed.map(|()| Removal::Removed).map_err(error)
            }
            Claim::Claimed { path, entry, is_free: false, .. } => {
                let kept_as = path.file_name().unwrap_or(&read.name).to_owned();
                Ok(Removal::Kept(KeptFile { entry, kept_as }))
            }
            Claim::Lost(removal) => Ok(removal),
        }
    }

    /// Puts back the files that could neither leave the spool nor go back when that was tried.
    pub fn put_back_stranded(&self) {
        self.removing.give_back_stranded();
    }

    /// Looks at a file that was kept: puts it back into the spool if it was written to, and else unlinks it if `is_quiet`
    /// says that it has been still for long enough.
    ///
    /// # Errors
    /// The system refuses; the file is still kept.
    pub fn check_kept(&self, kept: &KeptFile, is_quiet: bool) -> Result<Removal, SpoolError> {
        let error = |e| SpoolError::new(&self.dir.join(&kept.entry.name), "remove a file", e);
        self.removing.check_kept(kept, is_quiet).map_err(error)
    }
}

/// Opens a file whose name a producer chose: without following a link, waiting for the other end of a pipe, or taking a
/// terminal.
fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
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

/// What stands at the path instead of a folder of the agent's user; `None`: such a folder. A producer may have created a
/// folder or link of that name first, and must not see the files that the agent puts there. An agent of root may find the
/// folder of the service's user.
fn foreign_folder(path: &Path) -> Option<String> {
    let us = nix::unistd::geteuid();
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_dir() => Some(irregularity(&meta).unwrap_or("a file").to_owned()),
        Ok(meta) if us.is_root() || meta.uid() == us.as_raw() => None,
        Ok(meta) => Some(format!("a folder of {}", user_name(meta.uid()))),
        Err(e) => Some(format!("not accessible ({e})")),
    }
}

/// The name of a user, or the uid of one without a name.
pub fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| printable(user.name))
}

/// A path as text for one line of the log, with control characters escaped: producers choose names, and a name may
/// contain a line break or a terminal escape.
pub fn printable(path: impl AsRef<Path>) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    path.as_ref().display().to_string().chars().map(escape).collect()
}
