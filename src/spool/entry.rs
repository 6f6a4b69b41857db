//! A file of the spool as the folder shows it: which file it is, and as of which write.

use super::names::{Format, format_of};
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

/// A file as the file system knows it: enough to tell it from a later one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// The inode, which is used again as soon as it is free.
    pub inode: u64,
    /// Birth, nanoseconds since 1970; 0 where the file system does not know.
    pub born: i64,
    /// Last modification, nanoseconds since 1970.
    pub modified: i64,
}

/// What stays of a file's identity however it is renamed and written to: its inode and birth. Where the file system
/// knows no birth, its last modification stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey(u64, i64);

impl FileIdentity {
    /// What two sightings of one file have in common.
    pub fn key(&self) -> FileKey {
        FileKey(self.inode, if self.born == 0 { self.modified } else { self.born })
    }
}

/// A file of the spool, as the folder shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolEntry {
    /// Its name in the folder.
    pub name: OsString,
    /// Which file of that name.
    pub identity: FileIdentity,
    /// Its size in bytes.
    pub size: u64,
    /// When anything about it last changed, its name among that: nanoseconds since 1970. No producer can set it.
    pub changed: i64,
}

impl SpoolEntry {
    pub(super) fn of(name: OsString, meta: &Metadata) -> SpoolEntry {
        let changed = nanoseconds(meta.ctime(), meta.ctime_nsec());
        SpoolEntry { name, identity: identity(meta), size: meta.len(), changed }
    }

    /// Whether this is the file of that other sighting, and nobody has written to it in between.
    pub fn is_as_read(&self, read: &SpoolEntry) -> bool {
        self.version() == read.version()
    }

    /// Which file it is, and as of which write: another after each.
    pub fn version(&self) -> (FileIdentity, u64) {
        (self.identity, self.size)
    }

    /// The order of the spool: modification time, then name.
    pub fn order(&self) -> (i64, &OsStr) {
        (self.identity.modified, &self.name)
    }

    /// The form of its content, and whether it is packed; `None`: its name says neither.
    pub fn format(&self) -> Option<(Format, bool)> {
        format_of(&self.name)
    }
}

pub(super) fn identity(meta: &Metadata) -> FileIdentity {
    let born = meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    FileIdentity {
        inode: meta.ino(),
        born: born.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(0)),
        modified: nanoseconds(meta.mtime(), meta.mtime_nsec()),
    }
}

pub(super) fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
