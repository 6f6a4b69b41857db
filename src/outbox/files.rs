//! How far the files of the spool are taken, kept in the commits that take them.

use super::OutboxError;
use super::store::Store;
use crate::spool::FileIdentity;
use rusqlite::params;

/// How far a file has been taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which file, as first seen.
    pub identity: FileIdentity,
    /// Its name in the spool, as bytes, as first seen.
    pub name: Vec<u8>,
    /// Bytes of the (unpacked) text that are taken.
    pub position: u64,
    /// Lines or elements that are taken.
    pub place: u64,
    /// The CRC-32 of the text that is taken, which tells a file that has grown from one that was begun anew. A document
    /// has none.
    pub sum: Option<u32>,
    /// The file's size in bytes when it was read, and its modification time then, nanoseconds since 1970.
    pub read: (u64, i64),
    /// Whether all of it is taken, so that nothing but its removal is left to do.
    pub finished: bool,
}

impl Progress {
    /// That of a file of which nothing is taken; `read`: see [`Progress::read`].
    pub fn none(name: &[u8], identity: FileIdentity, read: (u64, i64)) -> Progress {
        Progress { name: name.to_vec(), identity, position: 0, place: 0, sum: None, read, finished: false }
    }
}

impl Store {
    pub(super) fn note_progress(&self, p: &Progress) -> Result<(), rusqlite::Error> {
        self.cached(
            "INSERT OR REPLACE INTO spool_files
                    (name, inode, born, modified, position, place, sum, read_size, read_modified, finished)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            p.name,
            p.identity.inode as i64,
            p.identity.born,
            p.identity.modified,
            p.position as i64,
            p.place as i64,
            p.sum,
            p.read.0 as i64,
            p.read.1,
            p.finished
        ])?;
        Ok(())
    }

    /// Forgets files that are gone from the spool.
    pub(super) fn forget_files(&self, files: &[FileIdentity]) -> Result<(), rusqlite::Error> {
        for file in files {
            self.cached("DELETE FROM spool_files WHERE inode = ? AND born = ? AND modified = ?")?
                .execute(params![file.inode as i64, file.born, file.modified])?;
        }
        Ok(())
    }

    /// Every file that is not known to be gone from the spool.
    pub(super) fn progress(&self) -> Result<Vec<Progress>, OutboxError> {
        let read = || {
            self.cached(
                "SELECT name, inode, born, modified, position, place, sum, read_size, read_modified, finished
                   FROM spool_files",
            )?
            .query_map([], |r| {
                Ok(Progress {
                    name: r.get(0)?,
                    identity: FileIdentity {
                        inode: r.get::<_, i64>(1)? as u64,
                        born: r.get(2)?,
                        modified: r.get(3)?,
                    },
                    position: r.get::<_, i64>(4)? as u64,
                    place: r.get::<_, i64>(5)? as u64,
                    sum: r.get(6)?,
                    read: (r.get::<_, i64>(7)? as u64, r.get(8)?),
                    finished: r.get(9)?,
                })
            })?
            .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|e| self.error("read how far the spool is taken", e))
    }
}
