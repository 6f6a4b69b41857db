//! The progress of each file of the spool, stored in the commits that store its events.

use crate::spool::{ContentStamp, FileIdentity};
use rusqlite::{Connection, params};

/// The progress of one file: how far it has been ingested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProgress {
    /// The file's identity when it was first scanned.
    pub identity: FileIdentity,
    /// The file's name in the spool, as bytes, when it was first scanned.
    pub name: Vec<u8>,
    /// Bytes of the (unpacked) text that are ingested.
    pub position: u64,
    /// Lines or elements that are ingested.
    pub place: u64,
    /// The CRC-32 of the ingested text, which tells a file that has grown from one whose content was replaced. A
    /// document has none.
    pub sum: Option<u32>,
    /// The stamp of the content that was read.
    pub read: ContentStamp,
    /// Whether all of the file is ingested, so that only its removal is left to do.
    pub finished: bool,
}

impl FileProgress {
    /// The progress of a file of which nothing is ingested. See [`FileProgress::read`] for `read`.
    pub fn none(name: &[u8], identity: FileIdentity, read: ContentStamp) -> FileProgress {
        FileProgress {
            name: name.to_vec(),
            identity,
            position: 0,
            place: 0,
            sum: None,
            read,
            finished: false,
        }
    }

    pub(super) fn store(&self, conn: &Connection) -> Result<(), rusqlite::Error> {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO spool_files
                    (name, inode, born, modified, position, place, sum, read_size, read_modified,
                     read_changed, finished)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            self.name,
            self.identity.inode as i64,
            self.identity.born,
            self.identity.modified,
            self.position as i64,
            self.place as i64,
            self.sum,
            self.read.size as i64,
            self.read.modified,
            self.read.changed,
            self.finished
        ])?;
        Ok(())
    }

    /// Deletes the progress of files that are gone from the spool.
    pub(super) fn forget(conn: &Connection, files: &[FileIdentity]) -> Result<(), rusqlite::Error> {
        let mut delete =
            conn.prepare_cached("DELETE FROM spool_files WHERE inode = ? AND born = ? AND modified = ?")?;
        for file in files {
            delete.execute(params![file.inode as i64, file.born, file.modified])?;
        }
        Ok(())
    }

    /// The progress of every file that may still be in the spool.
    pub(super) fn load_all(conn: &Connection) -> Result<Vec<FileProgress>, rusqlite::Error> {
        conn.prepare_cached(
            "SELECT name, inode, born, modified, position, place, sum, read_size, read_modified, finished,
                    read_changed
               FROM spool_files",
        )?
        .query_map([], |r| {
            Ok(FileProgress {
                name: r.get(0)?,
                identity: FileIdentity {
                    inode: r.get::<_, i64>(1)? as u64,
                    born: r.get(2)?,
                    modified: r.get(3)?,
                },
                position: r.get::<_, i64>(4)? as u64,
                place: r.get::<_, i64>(5)? as u64,
                sum: r.get(6)?,
                read: ContentStamp {
                    size: r.get::<_, i64>(7)? as u64,
                    modified: r.get(8)?,
                    changed: r.get(10)?,
                },
                finished: r.get(9)?,
            })
        })?
        .collect()
    }
}
