//! What becomes of a damaged outbox: its files are set aside under a dated name, unaltered, and every event that can
//! still be read is taken over into a new one. Nothing of this is silent: the log and the status tell of it.
//!
//! ```text
//!   outbox.db, -wal, -shm ──rename──▶ outbox.db.damaged-20260102T030405Z, …
//!                                          │ pages, log
//!                                          ▼
//!                                    outbox.db.new ──rename──▶ outbox.db
//! ```
//!
//! It begins with a note beside the database that says so and ends with the note's removal, and every step between can
//! be done again: whenever the power fails, the next start goes on where this one was.

mod copy;
mod log;
mod pages;
#[cfg(test)]
mod tests;

use super::lock::Lock;
use super::store::Store;
use super::{FILE_MODE, OutboxError, Settings, beside, schema};
use crate::clock::Timestamp;
use crate::status::Incident;
use pages::{Pages, u32_at};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The files of a database beside the main one, which is moved last: where it is tells how far the move has come.
const SET: [&str; 3] = ["-wal", "-shm", ""];
/// How every SQLite database begins.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// The note: a recovery has begun.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    at: Timestamp,
    /// The name under which the damaged files are kept.
    kept: String,
    why: String,
}

/// Notes that the outbox is damaged: the next start recovers it. The note is on the disk when this returns `Ok`.
///
/// # Errors
/// It is not this agent's to move: another application's database, or a newer agent's. The system's errors.
pub(super) fn begin(path: &Path, why: &str, now: Timestamp) -> Result<(), OutboxError> {
    refuse_others(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let note = Note { at: now, kept: format!("{name}.damaged-{}", now.compact()), why: why.to_owned() };
    let text = serde_json::to_vec(&note).unwrap_or_default();
    let (at, aside) = (note_at(path), beside(path, ".recovery.tmp"));
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&aside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&aside, &at)
    })();
    written.map_err(|e| OutboxError::io(&at, "note the damage", &e))?;
    sync_folder(path)
}

/// Goes on with a recovery that has begun, to its end. Returns whether one had.
///
/// # Errors
/// The system's and SQLite's, for the new database; then it goes on at the next call.
pub(super) fn go_on(path: &Path, settings: &Settings, lock: &Lock) -> Result<bool, OutboxError> {
    let Some(note) = read_note(path)? else { return Ok(false) };
    let kept = path.with_file_name(&note.kept);
    if !(kept.exists() && path.exists()) {
        tracing::warn!(
            "the outbox {} is damaged ({}): what can be read is recovered",
            path.display(),
            note.why
        );
        quarantine(path, &kept)?;
        let operation = "read the damaged database";
        let pages =
            Pages::open(&kept, &beside(&kept, "-wal")).map_err(|e| OutboxError::io(&kept, operation, &e))?;
        make(path, settings, |store| {
            let copied = store.transaction(|store| copy::copy(&pages, store))?;
            let text = format!("the outbox was damaged ({}): {copied}", note.why);
            tracing::warn!("{text}; the damaged files are kept as {}", kept.display());
            let incident = Incident { at: note.at, text, files: Some(kept.clone()) };
            store.transaction(|store| store.set_incident(&incident))
        })?;
    }
    // What has become of the old log is told; the new database has none.
    lock.mark_log(false);
    fs::remove_file(note_at(path)).map_err(|e| OutboxError::io(path, "end the recovery", &e))?;
    sync_folder(path)?;
    Ok(true)
}

/// Makes a database whole before it appears under its name.
pub(super) fn make(
    path: &Path,
    settings: &Settings,
    fill: impl FnOnce(&mut Store) -> Result<(), OutboxError>,
) -> Result<(), OutboxError> {
    let new = beside(path, ".new");
    for suffix in SET {
        match fs::remove_file(beside(&new, suffix)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(OutboxError::io(&new, "remove an unfinished database", &e));
            }
            _ => {}
        }
    }
    let io = |e| OutboxError::io(path, "make the database", &e);
    // Made here and not by SQLite, which would take its mode from the umask.
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new).map_err(io)?;
    let mut store = Store::open(&Settings { path: new.clone(), ..settings.clone() })?;
    fill(&mut store)?;
    store.checkpoint(Duration::ZERO)?;
    drop(store);
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(beside(&new, suffix)).map_err(io)?;
        let _ = fs::remove_file(beside(path, suffix));
    }
    File::open(&new).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&new, path).map_err(io)?;
    sync_folder(path)
}

/// What can be told of the files without opening the database.
pub(super) enum Inspection {
    /// There is nothing.
    Nothing,
    /// A database.
    Database,
    /// A database whose write-ahead log is missing or empty.
    WithoutLog,
    /// Something that is no database, or the rest of one; why.
    Damaged(&'static str),
}

/// Looks at the files. SQLite itself would delete the log of a database that is empty or gone, and all that is in it.
pub(super) fn inspect(path: &Path) -> Result<Inspection, OutboxError> {
    let io = |e| OutboxError::io(path, "examine the database", &e);
    let length = |path: &Path| match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(e)),
    };
    let log = length(&beside(path, "-wal"))?.map(|meta| meta.len());
    Ok(match (length(path)?, log) {
        (None, None | Some(0)) => Inspection::Nothing,
        (None, Some(_)) => Inspection::Damaged("the database is gone, and its write-ahead log is not"),
        (Some(meta), _) if meta.is_dir() => {
            if fs::read_dir(path).map_err(io)?.next().is_some() {
                return Err(OutboxError::Foreign {
                    path: path.to_owned(),
                    what: "a folder with files in it",
                });
            }
            Inspection::Damaged("an empty folder stands in its place")
        }
        (Some(meta), _) if meta.len() == 0 => Inspection::Damaged("the database is empty"),
        (Some(_), None | Some(0)) => Inspection::WithoutLog,
        (Some(_), Some(_)) => Inspection::Database,
    })
}

fn quarantine(path: &Path, kept: &Path) -> Result<(), OutboxError> {
    for suffix in SET {
        let (from, to) = (beside(path, suffix), beside(kept, suffix));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to)
                .map_err(|e| OutboxError::io(&from, "set the damaged database aside", &e))?;
        }
    }
    if !kept.exists() {
        // Only its log is left. The place is taken, so that the next step is known to be the next.
        File::create(kept).map_err(|e| OutboxError::io(kept, "set the damaged database aside", &e))?;
    }
    sync_folder(path)
}

/// A sound header says whose it is; a damaged one says nothing.
fn refuse_others(path: &Path) -> Result<(), OutboxError> {
    let mut header = Vec::new();
    if let Ok(file) = File::open(path) {
        // What cannot be read is no sound header.
        let _ = file.take(100).read_to_end(&mut header);
    }
    if !header.starts_with(MAGIC) {
        return Ok(());
    }
    let number = |at| i64::from(u32_at(&header, at).unwrap_or(0));
    // Places from the file format: user_version and application_id.
    schema::check_header(path, number(68), number(60))
}

fn read_note(path: &Path) -> Result<Option<Note>, OutboxError> {
    match fs::read(note_at(path)) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(OutboxError::io(path, "look for a recovery that has begun", &e)),
    }
}

fn note_at(path: &Path) -> PathBuf {
    beside(path, ".recovery")
}

fn sync_folder(path: &Path) -> Result<(), OutboxError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| OutboxError::io(folder, "sync the folder", &e))
}
