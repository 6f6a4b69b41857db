//! What is done when somebody takes the database's files away while it is open. SQLite goes on saying OK then, and all
//! that it says is gone with the process; but as long as the process has the files open, everything is still in them.

use super::store::Store;
use super::{FILE_MODE, OutboxError, beside};
use crate::clock::Timestamp;
use crate::status::Incident;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// How long readers may keep the log from being copied before what it holds is written elsewhere: the agent's own read
/// for ten milliseconds at a time.
const MERGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Which file it is: its device and inode.
pub(super) type FileId = (u64, u64);

/// The file at that path, and its size in bytes.
pub(super) fn file_at(path: &Path) -> Result<Option<(FileId, u64)>, OutboxError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(((meta.dev(), meta.ino()), meta.len()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(OutboxError::io(path, "find the database", &e)),
    }
}

impl Store {
    /// Whether the files are those that were opened. Returns the bytes of the write-ahead log.
    ///
    /// # Errors
    /// [`OutboxError::FilesReplaced`]: they are not. What was committed has been brought to safety, as its text says, and
    /// nothing more may be committed here. The system's errors.
    pub(super) fn look_after_files(&self, now: Timestamp) -> Result<u64, OutboxError> {
        let [main, log] = self.files;
        let (found, found_log) = (file_at(&self.path)?, file_at(&beside(&self.path, "-wal"))?);
        let (what, rescued) = match (found, found_log) {
            (Some((found, _)), Some((found_log, size))) if (found, found_log) == (main, log) => {
                return Ok(size);
            }
            (None, _) => ("removed", self.write_anew(now)),
            (Some((found, _)), _) if found != main => ("replaced by another", self.write_aside(now)),
            (Some(_), _) => ("parted from its write-ahead log", self.merge_log(now)),
        };
        let kept = rescued.unwrap_or_else(|e| format!("what it held could not be brought to safety: {e}"));
        Err(OutboxError::FilesReplaced { path: self.path.clone(), what, kept })
    }

    fn write_anew(&self, now: Timestamp) -> Result<String, OutboxError> {
        let path = &self.path;
        let io = |e| OutboxError::io(path, "write it anew", &e);
        self.tell(
            now,
            "its files were removed while it was open; it was written anew, and nothing of it is lost",
        )?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let new = beside(path, ".new");
        self.copy_to(&new)?;
        for suffix in ["-wal", "-shm"] {
            remove(&beside(path, suffix)).map_err(io)?;
        }
        fs::rename(&new, path).map_err(io)?;
        Ok("it was written anew, and nothing of it is lost".to_owned())
    }

    fn tell(&self, now: Timestamp, text: &str) -> Result<(), OutboxError> {
        let incident = Incident { at: now, text: text.to_owned(), files: None };
        self.set_incident(&incident).map_err(|e| self.error("note what happened", e))
    }

    fn write_aside(&self, now: Timestamp) -> Result<String, OutboxError> {
        let aside = beside(&self.path, &format!(".replaced-{}", now.compact()));
        self.copy_to(&aside)?;
        Ok(format!("what it held is in {}", aside.display()))
    }

    fn merge_log(&self, now: Timestamp) -> Result<String, OutboxError> {
        let log = beside(&self.path, "-wal");
        self.tell(now, "its write-ahead log was removed while it was open; nothing of it is lost")?;
        if !self.checkpoint(MERGE_TIMEOUT)? {
            return self.write_aside(now);
        }
        let io = |e| OutboxError::io(&log, "set the other log aside", &e);
        if log.exists() {
            fs::rename(&log, beside(&log, &format!(".replaced-{}", now.compact()))).map_err(io)?;
        }
        Ok("all of the log is in the database now, and nothing is lost".to_owned())
    }

    /// Writes everything that is committed into another file; it is on the disk when this returns `Ok`.
    fn copy_to(&self, other: &Path) -> Result<(), OutboxError> {
        let io = |e| OutboxError::io(other, "write it anew", &e);
        remove(other).map_err(io)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(other)
            .map_err(io)?;
        self.conn
            .execute("VACUUM INTO ?", [other.to_string_lossy()])
            .map_err(|e| OutboxError::sqlite(other, "write it anew", e))?;
        file.set_permissions(Permissions::from_mode(FILE_MODE)).and_then(|()| file.sync_all()).map_err(io)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
