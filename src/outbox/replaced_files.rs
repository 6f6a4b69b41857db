//! The case that somebody removes or replaces the files of the database while it is open. SQLite goes on reporting
//! success then, and all that it reports is gone with the process; but while the process has the files open, their
//! content is still readable.

use super::database::Database;
use super::files::{FILE_MODE, create, file_at, remove_if_exists, with_suffix};
use super::{OutboxError, meta};
use crate::clock::Timestamp;
use crate::status::Incident;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Time for which readers may delay copying the write-ahead log before it is written elsewhere. The agent's own reader
/// holds a snapshot for ten milliseconds at a time.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Checks that the files at the database's path are those that were opened. Returns the bytes of the write-ahead log.
///
/// # Errors
/// [`OutboxError::FilesReplaced`]: they are not. What was committed has been saved, as the error says, and nothing more
/// may be committed here. The system's errors.
pub(super) fn check_files(db: &Database, now: Timestamp) -> Result<u64, OutboxError> {
    let [main, wal] = db.opened;
    let (found, found_wal) = (file_at(&db.path)?, file_at(&with_suffix(&db.path, "-wal"))?);
    let content = OpenContent { db, now };
    let (what, saved) = match (found, found_wal) {
        (Some((found, _)), Some((found_wal, size))) if (found, found_wal) == (main, wal) => {
            return Ok(size);
        }
        (None, _) => ("removed", content.write_in_place()),
        (Some((found, _)), _) if found != main => ("replaced by another", content.write_copy()),
        (Some(_), _) => ("parted from its write-ahead log", content.merge_wal()),
    };
    let saved = saved.unwrap_or_else(|e| format!("its content could not be saved: {e}"));
    Err(OutboxError::FilesReplaced { path: db.path.clone(), what, saved })
}

/// The content of the open files. Each way of saving it returns a sentence that says where it is.
struct OpenContent<'a> {
    db: &'a Database,
    now: Timestamp,
}

impl OpenContent<'_> {
    fn write_in_place(&self) -> Result<String, OutboxError> {
        let path = &self.db.path;
        let io = |e| OutboxError::io(path, "rewrite the database", &e);
        self.set_incident(
            "its files were removed while it was open; it was written again, and nothing of it is lost",
        )?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let new = with_suffix(path, ".new");
        self.write_to(&new)?;
        for suffix in ["-wal", "-shm"] {
            remove_if_exists(&with_suffix(path, suffix)).map_err(io)?;
        }
        fs::rename(&new, path).map_err(io)?;
        Ok("it was written again, and nothing of it is lost".to_owned())
    }

    fn write_copy(&self) -> Result<String, OutboxError> {
        let copy = with_suffix(&self.db.path, &format!(".replaced-{}", self.now.compact()));
        self.write_to(&copy)?;
        Ok(format!("its content is in {}", copy.display()))
    }

    fn merge_wal(&self) -> Result<String, OutboxError> {
        let wal = with_suffix(&self.db.path, "-wal");
        self.set_incident("its write-ahead log was removed while it was open; nothing of it is lost")?;
        if !self.db.checkpoint(CHECKPOINT_TIMEOUT)? {
            return self.write_copy();
        }
        let io = |e| OutboxError::io(&wal, "move the other log away", &e);
        if wal.exists() {
            fs::rename(&wal, with_suffix(&wal, &format!(".replaced-{}", self.now.compact()))).map_err(io)?;
        }
        Ok("all of the log is in the database now, and nothing is lost".to_owned())
    }

    fn set_incident(&self, text: &str) -> Result<(), OutboxError> {
        let incident = Incident { at: self.now, text: text.to_owned(), files: None };
        meta::set_incident(&self.db.conn, &incident).map_err(|e| self.db.error("record what happened", e))
    }

    /// Writes everything that is committed into another file, which is on the disk when this returns `Ok`.
    fn write_to(&self, other: &Path) -> Result<(), OutboxError> {
        let io = |e| OutboxError::io(other, "write a copy", &e);
        remove_if_exists(other).map_err(io)?;
        let file = create(other).map_err(io)?;
        self.db
            .conn
            .execute("VACUUM INTO ?", [other.to_string_lossy()])
            .map_err(|e| OutboxError::sqlite(other, "write a copy", e))?;
        file.set_permissions(Permissions::from_mode(FILE_MODE)).and_then(|()| file.sync_all()).map_err(io)
    }
}
