//! A file of the spool as the folder shows it: its identity and its version.

use super::names::{Format, format_of};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

/// The identity of a file: enough to tell it from a later one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// The inode; a file system uses it again as soon as it is free.
    pub inode: u64,
    /// Time of birth, nanoseconds since 1970; 0 where the file system does not record it.
    pub born: i64,
    /// Time of the last modification, nanoseconds since 1970.
    pub modified: i64,
}

/// The part of a file's identity that survives renaming and writing: inode and time of birth. Where the file system
/// records no birth, it is the inode alone, which a later file may have: see [`FileIdentity::has_certain_key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey(u64, i64);

impl FileIdentity {
    /// The key that is equal for two entries of one file.
    pub fn key(&self) -> FileKey {
        FileKey(self.inode, self.born)
    }

    /// Whether no later file has this one's key: the file system records times of birth.
    pub fn has_certain_key(&self) -> bool {
        self.born != 0
    }
}

impl FileKey {
    /// The time in it, nanoseconds since 1970.
    pub(super) fn time(self) -> i64 {
        self.1
    }

    /// The key that [`FileKey`]'s text stands for.
    pub(super) fn parse(text: &str) -> Option<FileKey> {
        let (inode, time) = text.split_once(' ')?;
        Some(FileKey(inode.parse().ok()?, time.parse().ok()?))
    }
}

impl fmt::Display for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

/// What tells one state of a file's content from another: it differs after each write, even one that leaves the size and
/// puts the modification time back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentStamp {
    /// The size in bytes.
    pub size: u64,
    /// Time of the last modification (mtime), nanoseconds since 1970.
    pub modified: i64,
    /// Time of the last change of content, name or mode (ctime), nanoseconds since 1970; 0: unknown.
    pub changed: i64,
}

/// A file of the spool, as the folder shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolEntry {
    /// The name in the folder.
    pub name: OsString,
    /// The identity of the file with that name.
    pub identity: FileIdentity,
    /// The size in bytes.
    pub size: u64,
    /// The uid of the file's owner.
    pub owner: u32,
    /// Time of the last change of content, name or mode (ctime), nanoseconds since 1970. No producer can set it.
    pub changed: i64,
}

impl SpoolEntry {
    pub(super) fn new(name: OsString, meta: &Metadata) -> SpoolEntry {
        let changed = nanoseconds(meta.ctime(), meta.ctime_nsec());
        SpoolEntry { name, identity: identity(meta), size: meta.len(), owner: meta.uid(), changed }
    }

    /// The bytes of memory that this takes.
    pub fn memory(&self) -> usize {
        size_of::<SpoolEntry>() + self.name.len()
    }

    /// The stamp of the file's content.
    pub fn stamp(&self) -> ContentStamp {
        ContentStamp { size: self.size, modified: self.identity.modified, changed: self.changed }
    }

    /// Whether this is the file that was read, and nobody has written to it since and left the time of that. A write that
    /// puts the time back shows in `changed` alone, which a renaming changes as well.
    pub fn is_as_read(&self, read: &SpoolEntry) -> bool {
        self.version() == read.version()
    }

    /// The version of the file, whatever its name: it differs after each write that leaves its time.
    pub fn version(&self) -> (FileIdentity, u64) {
        (self.identity, self.size)
    }

    /// The sort key of the spool's order: modification time, then name.
    pub fn order(&self) -> (i64, &OsStr) {
        (self.identity.modified, &self.name)
    }

    /// The format of the content and whether it is packed, by the name; see [`format_of`].
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

/// A time stamp of `stat` in nanoseconds.
pub(super) fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
