//! The spool: the folder that programs drop event files into. One type owns it.
//!
//! Its files are data from strangers: only regular files with one name are opened, no link is followed, and a
//! name is only ever joined to the folder's own path. A file leaves the folder in two ways: removed, after all
//! its events are durable in the outbox, or moved to `rejected/` beside a reason. Nothing is deleted unread.

mod document;
mod drop;
mod entry;
mod lines;
mod names;
mod rejected;
mod remove;
mod watch;

pub use document::{Document, Form, Places, split, text_of};
pub use drop::drop_in;
pub use entry::{Entry, FileIdentity, FileKey};
pub use lines::{Line, Lines};
pub use names::{Format, format_of};
pub(crate) use names::{is_finished_name, is_reason};
pub use rejected::{Rejected, RejectedFolder, Rejection, rejected_beside};
pub use remove::Removal;
pub use watch::Watcher;

use crate::clock::Timestamp;
use entry::{identity, nanoseconds};
use flate2::read::MultiGzDecoder;
use nix::libc;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, access};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where files that cannot be taken are set aside.
pub const REJECTED: &str = "rejected";
/// Where a file is moved to be compared with the one that was read, just before it is removed.
const REMOVING: &str = ".removing";
/// Files handled in one round: the oldest of the folder. Bounds the memory that a folder of millions takes
/// (about 100 bytes each) and lets a round end.
pub const MAX_LISTED: usize = 200_000;
/// Files listed beyond that before the oldest are picked out.
const SPARE: usize = MAX_LISTED / 4;
/// A file that has been in the folder for so long was there before any look that still goes on, whatever the clock of
/// a file server says.
const LONG: Duration = Duration::from_secs(60);
/// Read ahead of a file: a line of ordinary size comes in one read.
const READ_BUFFER: usize = 64 << 10;

/// An error of the spool folder, naming the path, the operation and the fix.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder is not there.
    #[error("there is no spool folder {}: create it, or set spool.dir", shown(path))]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// The folder refuses us.
    #[error(
        "cannot {operation} in the spool {}: permission denied; its owner must be the agent's user (see packaging/tmpfiles.d)",
        shown(path)
    )]
    Denied {
        /// The folder or file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
    },
    /// Anything else the system says.
    #[error("cannot {operation} in the spool {}: {source}", shown(path))]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
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

    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, SpoolError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// What a look at the folder showed.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files to be read, in the order of the spool; at most [`MAX_LISTED`], the oldest.
    pub files: Vec<Entry>,
    /// What is left alone, and why; at most [`MAX_LISTED`].
    pub left: Vec<(OsString, &'static str)>,
    /// How many files there are to be read in all, and their size.
    pub waiting: (u64, u64),
}

/// Why a file could not be opened for reading.
#[derive(Debug)]
pub enum Unopened {
    /// It is not what was listed any more: the next look decides.
    Changed,
    /// Permission is missing; the uid of its owner.
    Unreadable(u32),
    /// Anything else.
    Error(SpoolError),
}

/// The spool folder, owned by the agent.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
    /// The folder itself, whatever has its name later: device and inode.
    itself: (u64, u64),
}

impl Spool {
    /// Opens the folder, makes the folders of its own in it, and puts back what a crash left half removed.
    ///
    /// # Errors
    /// The folder is missing or refuses reading or writing.
    pub fn open(dir: &Path) -> Result<Spool, SpoolError> {
        let itself = match fs::metadata(dir) {
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
                Err(e) => return Err(SpoolError::new(&path, "make a folder", e)),
            }
        }
        let spool = Spool { dir: dir.to_owned(), itself };
        spool.put_back_half_removed()?;
        Ok(spool)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the folder that was opened still has its name, and its own folders are in it.
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.dir).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.itself)
            && [REJECTED, REMOVING].iter().all(|name| is_own_folder(&self.dir.join(name)))
    }

    /// The time of the folder's file system, as it stamps files: nanoseconds since 1970. Nothing is stamped with an earlier
    /// one from now on, unless the clock is set back. `None`: it cannot be asked.
    pub fn time(&self) -> Option<i64> {
        let stamp = || {
            let file = tempfile::tempfile_in(self.dir.join(REMOVING))?;
            // Linux stamps by a clock that ticks some hundred times a second, but exactly what somebody has looked at
            // since its last stamp, and nothing after that with less (from 6.13; multigrain-ts.rst).
            let before = file.metadata()?;
            futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW)?;
            let stamps = [before, file.metadata()?].map(|meta| nanoseconds(meta.ctime(), meta.ctime_nsec()));
            io::Result::Ok(stamps)
        };
        stamp().ok().filter(|[made, now]| made <= now).map(|[_, now]| now)
    }

    /// The files that were set aside.
    pub fn rejected_folder(&self) -> RejectedFolder {
        RejectedFolder::new(self.dir.join(REJECTED))
    }

    /// Looks at the folder.
    ///
    /// The look is not one moment: a file that lands during it can be missed while a later one is seen. So a
    /// second look follows, and what it finds in the range of the first is merged in: then no file is ahead of
    /// one that was there before it. Where all that was seen has been there for long, none is later.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self, now: Timestamp) -> Result<Listing, SpoolError> {
        let long_ago = now.minus(LONG).0.saturating_mul(1_000_000);
        let mut listing = self.look(|_| true)?;
        if listing.files.iter().all(|e| e.changed < long_ago) {
            return Ok(listing);
        }
        let Some(last) = listing.files.last() else { return Ok(listing) };
        let known: HashSet<&OsStr> = listing.files.iter().map(|e| e.name.as_os_str()).collect();
        let late = self.look(|e| e.order() <= last.order() && !known.contains(e.name.as_os_str()))?.files;
        if !late.is_empty() {
            listing.files.extend(late);
            listing.files.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        }
        Ok(listing)
    }

    /// Lists those of the files that are wanted.
    fn look(&self, wanted: impl Fn(&Entry) -> bool) -> Result<Listing, SpoolError> {
        let mut listing = Listing::default();
        for item in fs::read_dir(&self.dir).map_err(|e| SpoolError::new(&self.dir, "read files", e))? {
            let item = item.map_err(|e| SpoolError::new(&self.dir, "read files", e))?;
            let name = item.file_name();
            if !is_finished_name(&name) || name == REJECTED {
                continue;
            }
            // Gone since: a producer may do with its names what it likes.
            let Ok(meta) = item.metadata() else { continue };
            if let Some(why) = left_alone(&meta) {
                if listing.left.len() < MAX_LISTED {
                    listing.left.push((name, why));
                }
                continue;
            }
            listing.waiting.0 += 1;
            listing.waiting.1 += meta.len();
            let entry = Entry::of(name, &meta);
            if wanted(&entry) {
                listing.files.push(entry);
                if listing.files.len() >= MAX_LISTED + SPARE {
                    keep_oldest(&mut listing.files);
                }
            }
        }
        if listing.files.len() > MAX_LISTED {
            keep_oldest(&mut listing.files);
        }
        listing.files.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        Ok(listing)
    }

    /// Looks at one file again.
    pub fn entry(&self, name: &OsStr) -> Option<Entry> {
        let meta = fs::symlink_metadata(self.dir.join(name)).ok()?;
        left_alone(&meta).is_none().then(|| Entry::of(name.to_owned(), &meta))
    }

    /// Every file there is, also of those set aside.
    pub fn keys(&self) -> impl Iterator<Item = FileKey> {
        [self.dir.clone(), self.dir.join(REJECTED)]
            .into_iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|item| Some(identity(&item.ok()?.metadata().ok()?).key()))
    }

    /// Opens a file for reading: the very one that was listed, as it was then.
    ///
    /// # Errors
    /// See [`Unopened`].
    pub fn open_file(&self, entry: &Entry) -> Result<File, Unopened> {
        let path = self.dir.join(&entry.name);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => Unopened::Changed,
                io::ErrorKind::PermissionDenied => {
                    Unopened::Unreadable(fs::symlink_metadata(&path).map_or(0, |m| m.uid()))
                }
                _ if e.raw_os_error() == Some(libc::ELOOP) => Unopened::Changed,
                _ => Unopened::Error(SpoolError::new(&path, "open a file", e)),
            })?;
        let meta =
            file.metadata().map_err(|e| Unopened::Error(SpoolError::new(&path, "examine a file", e)))?;
        if left_alone(&meta).is_some() || Entry::of(entry.name.clone(), &meta) != *entry {
            return Err(Unopened::Changed);
        }
        Ok(file)
    }
}

/// A reader of a file's (unpacked) text.
pub fn unpacked(file: File, gz: bool) -> Box<dyn Read + Send> {
    if gz {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_BUFFER, file)))
    } else {
        Box::new(file)
    }
}

fn keep_oldest(files: &mut Vec<Entry>) {
    files.select_nth_unstable_by(MAX_LISTED, |a, b| a.order().cmp(&b.order()));
    files.truncate(MAX_LISTED);
}

fn left_alone(meta: &Metadata) -> Option<&'static str> {
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

/// A producer who was quicker to make a folder of that name, or a link, must not see what is put there. Root's agent
/// may find the folder of the service's user.
fn is_own_folder(path: &Path) -> bool {
    let us = nix::unistd::geteuid();
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && (us.is_root() || m.uid() == us.as_raw()))
}

/// A path as a line of the log can take it: producers choose names, and a name may hold a line's end or an escape.
pub fn shown(path: impl AsRef<Path>) -> String {
    let plain = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    path.as_ref().display().to_string().chars().map(plain).collect()
}
