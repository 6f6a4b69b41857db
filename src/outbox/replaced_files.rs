//! The case that somebody removes or replaces the files of the database while it is open. SQLite goes on reporting
//! success then, and all that it reports is gone with the process; but while the process has the files open, their
//! content is still readable.
//!
//! The content is read from the files, not through SQLite: its index of the log is shared with whoever opens the database
//! at its path, and may be about another log by then. Nothing is committed any more, not even the incident, which a note
//! beside the database brings to the next start.

use super::OutboxError;
use super::files::{create, remove_if_exists, sync_folder_of, with_suffix};
use super::open_files::Place;
use super::store::Store;
use crate::clock::Timestamp;
use crate::status::Incident;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Checks that the files at the database's path are those that were opened. Returns the bytes of the write-ahead log.
///
/// # Errors
/// [`OutboxError::FilesReplaced`]: they are not. What was committed has been saved, as the error says, and nothing more
/// may be committed here. The system's errors.
pub(super) fn check_files(store: &Store, now: Timestamp) -> Result<u64, OutboxError> {
    use Place::{Nothing, Other, Same};
    let (places, wal_bytes) = store.files.places(&store.path)?;
    let content = OpenContent { store, now, places };
    let (what, saved) = match places {
        [Same, Same, Same] => return Ok(wal_bytes),
        [Nothing, ..] => ("removed", content.write_in_place()),
        [Other, ..] => ("replaced by another", content.write_copy()),
        [Same, Nothing | Other, _] => ("parted from its write-ahead log", content.put_back_wal()),
        // What was committed before is in the log, where whoever has opened the database since has found it. A commit that
        // this check follows is not acknowledged.
        [Same, Same, Nothing | Other] => (
            "parted from its -shm file, by which programs that have it open agree on its log",
            Ok("the log has everything that was acknowledged".to_owned()),
        ),
    };
    let saved = saved.unwrap_or_else(|e| format!("its content could not be saved: {e}"));
    let error = OutboxError::FilesReplaced { path: store.path.clone(), what, saved: saved.clone() };
    let incident =
        Incident { at: now, text: format!("it was {what} while it was open; {saved}"), files: None };
    if let Err(e) = write_note(&store.path, &incident) {
        tracing::warn!("the incident will not be in the status: {e}");
    }
    Err(error)
}

/// The content of the open files. Each way of saving it returns a sentence that says where it is.
struct OpenContent<'a> {
    store: &'a Store,
    now: Timestamp,
    places: [Place; 3],
}

impl OpenContent<'_> {
    fn write_in_place(&self) -> Result<String, OutboxError> {
        let path = &self.store.path;
        let io = |e| OutboxError::io(path, "rewrite the database", &e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let new = with_suffix(path, ".new");
        self.write_to(&new)?;
        // First the database: without it, a log that stands there alone would be taken for all that is left.
        fs::rename(&new, path).map_err(io)?;
        self.move_other_wal_away()?;
        for suffix in ["-wal", "-shm"] {
            remove_if_exists(&with_suffix(path, suffix)).map_err(io)?;
        }
        sync_folder_of(path)?;
        Ok("it was written again, and nothing of it is lost".to_owned())
    }

    fn write_copy(&self) -> Result<String, OutboxError> {
        let copy = self.dated(&self.store.path);
        self.write_to(&copy)?;
        Ok(format!("its content is in {}", copy.display()))
    }

    fn put_back_wal(&self) -> Result<String, OutboxError> {
        let wal = with_suffix(&self.store.path, "-wal");
        let io = |e| OutboxError::io(&wal, "put the log back", &e);
        let new = with_suffix(&wal, ".new");
        let mut file = create(&new).map_err(io)?;
        self.store.files.copy_wal(&mut file).and_then(|()| file.sync_all()).map_err(io)?;
        self.move_other_wal_away()?;
        fs::rename(&new, &wal).map_err(io)?;
        // It may be about the other log. The next start makes a new one.
        remove_if_exists(&with_suffix(&self.store.path, "-shm")).map_err(io)?;
        sync_folder_of(&self.store.path)?;
        Ok("the log was put back, and nothing of it is lost".to_owned())
    }

    fn move_other_wal_away(&self) -> Result<(), OutboxError> {
        let wal = with_suffix(&self.store.path, "-wal");
        if self.places[1] != Place::Other {
            return Ok(());
        }
        match fs::rename(&wal, self.dated(&wal)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(OutboxError::io(&wal, "move the other log away", &e))
            }
            _ => Ok(()),
        }
    }

    /// Writes everything that is committed into another file, which is on the disk when this returns `Ok`.
    fn write_to(&self, other: &Path) -> Result<(), OutboxError> {
        let io = |e| OutboxError::io(other, "write a copy", &e);
        let wal = with_suffix(other, "-wal");
        let copy_into = |path: &Path, copy: &dyn Fn(&mut File) -> std::io::Result<()>| {
            let mut file = create(path).map_err(io)?;
            copy(&mut file).and_then(|()| file.sync_all()).map_err(io)
        };
        remove_if_exists(&with_suffix(other, "-shm")).map_err(io)?;
        copy_into(other, &|file| self.store.files.copy_main(file))?;
        copy_into(&wal, &|file| self.store.files.copy_wal(file))?;
        let copied = Store::open(other)?;
        copied.end_session(self.now)?;
        copied.truncate_wal(Duration::ZERO)?;
        drop(copied);
        for suffix in ["-wal", "-shm"] {
            remove_if_exists(&with_suffix(other, suffix)).map_err(io)?;
        }
        Ok(())
    }

    fn dated(&self, path: &Path) -> PathBuf {
        with_suffix(path, &format!(".replaced-{}", self.now.compact()))
    }
}

fn note_path(database: &Path) -> PathBuf {
    with_suffix(database, ".incident")
}

fn write_note(database: &Path, incident: &Incident) -> std::io::Result<()> {
    fs::write(note_path(database), serde_json::to_vec(incident)?)
}

/// The incident with which the last session ended, if it did. It is to be stored, and then the note removed.
pub(super) fn noted_incident(database: &Path) -> Option<Incident> {
    serde_json::from_slice(&fs::read(note_path(database)).ok()?).ok()
}

/// Removes the note of an incident.
pub(super) fn remove_note(database: &Path) {
    // A note that stays is stored again at the next start.
    let _ = remove_if_exists(&note_path(database));
}
