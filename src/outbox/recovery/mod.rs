//! The recovery of a damaged outbox: its files are moved away under a dated name, unaltered, and every event that can
//! still be read is copied into a new database. The log and the status say so.
//!
//! ```text
//!   outbox.db, -wal, -shm ──rename──▶ outbox.db.damaged-20260102T030405Z, …
//!                                          │ pages, wal_pages
//!                                          ▼
//!                                    outbox.db.new ──rename──▶ outbox.db
//! ```
//!
//! A recovery begins with writing a note and ends with removing it, and every step between can be repeated. So after a
//! power cut the next start goes on where this one was.
//!
//! What is not in the files is not known: the counters say how many events there were at the last commit that can be read,
//! and nothing says what was done after it.

mod copy;
#[cfg(test)]
mod tests;

use super::files::{FILE_MODE, create, remove_if_exists, sync_folder_of, with_suffix};
use super::log_mark::{FOREIGN_LOG, LogMark, OTHER_LOG, Pairing, Token};
use super::pages::{self, Log, Pages, u32_at};
use super::tables::Tables;
use super::{OutboxError, meta, schema};
use crate::clock::Timestamp;
use crate::config;
use crate::status::Incident;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What no file says after a recovery.
const UNKNOWN: &str =
    "deliveries that were recorded in what could not be read are made again, with the same ids";

/// The suffixes of a database's files. The main file is moved last, so its place says how far the move has come.
const SUFFIXES: [&str; 3] = ["-wal", "-shm", ""];
/// The first bytes of every SQLite database.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Says that a recovery has begun.
#[derive(Debug, Serialize, Deserialize)]
struct RecoveryNote {
    at: Timestamp,
    /// The name that the damaged database gets.
    damaged: String,
    why: String,
}

/// Records that the outbox is damaged: the next start recovers it. The note is on the disk when this returns `Ok`.
///
/// # Errors
/// The database is another program's, or of another version of the agent: then it must not be moved. The system's
/// errors.
pub(super) fn begin(path: &Path, why: &str, now: Timestamp) -> Result<(), OutboxError> {
    refuse_others(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let damaged = format!("{name}.damaged-{}", now.compact());
    let note = RecoveryNote { at: now, damaged, why: why.to_owned() };
    let json = serde_json::to_vec(&note).unwrap_or_default();
    let (note_path, new) = (note_path(path), with_suffix(path, ".recovery.tmp"));
    let written = (|| {
        let mut file = create(&new)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&new, &note_path)
    })();
    written.map_err(|e| OutboxError::io(&note_path, "record the damage", &e))?;
    sync_folder_of(path)
}

/// Brings a recovery that has begun to its end. Returns whether one had begun.
///
/// # Errors
/// The system's and SQLite's, for the new database; then the next call goes on.
pub(super) fn resume(config: &config::OutboxConfig) -> Result<bool, OutboxError> {
    let path = &config.path;
    let Some(note) = read_note(path)? else { return Ok(false) };
    let damaged = path.with_file_name(&note.damaged);
    if !(damaged.exists() && path.exists()) {
        tracing::warn!(
            notice = "outbox_damaged",
            outbox = %path.display(),
            "the outbox {} is damaged ({}): what can be read is recovered",
            path.display(),
            note.why
        );
        move_away(path, &damaged)?;
        let operation = "read the damaged database";
        let log = match note.why.as_str() {
            OTHER_LOG => Log::Other,
            FOREIGN_LOG => Log::None,
            _ => Log::Own,
        };
        let pages = Pages::open(&damaged, &with_suffix(&damaged, "-wal"), log)
            .map_err(|e| OutboxError::io(&damaged, operation, &e))?;
        create_database(config, |tables| {
            let copied = tables.transaction(|tables| copy::copy(&pages, tables))?;
            let text = format!("the outbox was damaged ({}): {copied}; {UNKNOWN}", note.why);
            tracing::warn!(
                notice = "outbox_recovered",
                outbox = %path.display(),
                kept_as = %damaged.display(),
                "{text}; the damaged files are kept"
            );
            let incident = Incident { at: note.at, text, files: Some(damaged.clone()) };
            tables.transaction(|tables| meta::set_incident(&tables.store.conn, &incident))
        })?;
    }
    fs::remove_file(note_path(path)).map_err(|e| OutboxError::io(path, "end the recovery", &e))?;
    sync_folder_of(path)?;
    Ok(true)
}

/// Creates a database at `config.path`, whole before it appears there under its name.
pub(super) fn create_database(
    config: &config::OutboxConfig,
    fill: impl FnOnce(&mut Tables) -> Result<(), OutboxError>,
) -> Result<(), OutboxError> {
    let path = &config.path;
    let new = with_suffix(path, ".new");
    for suffix in SUFFIXES {
        remove_if_exists(&with_suffix(&new, suffix))
            .map_err(|e| OutboxError::io(&new, "remove an unfinished database", &e))?;
    }
    let io = |e| OutboxError::io(path, "create the database", &e);
    // SQLite would create the file with a mode that depends on the umask.
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new).map_err(io)?;
    let mut tables = Tables::open(&config::OutboxConfig { path: new.clone(), ..config.clone() })?;
    fill(&mut tables)?;
    tables.store.truncate_wal(Duration::ZERO)?;
    drop(tables);
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(with_suffix(&new, suffix)).map_err(io)?;
        let _ = fs::remove_file(with_suffix(path, suffix));
    }
    File::open(&new).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&new, path).map_err(io)?;
    sync_folder_of(path)
}

/// The state of the files, as far as it shows without letting SQLite open them.
pub(super) enum Inspection {
    /// No file exists.
    Nothing,
    /// A database that can be opened, and its mark if it has one.
    Database(Option<LogMark>),
    /// A database that was open, without its log.
    LogLost(LogMark),
    /// Something that is no database, or the rest of one, or a database with another's log; why.
    Damaged(&'static str),
}

impl Inspection {
    /// What is to be told, where a recovery does not tell more. `last`: the last session here.
    pub(super) fn incident(&self, last: Option<&Token>) -> Option<String> {
        let text = match self {
            Inspection::Nothing => {
                last.map(|_| "the outbox that was here is gone, and this is a new one".to_owned())?
            }
            Inspection::LogLost(mark) if mark.is_of_another_session(last) => format!(
                "it is a copy that was made while an agent had it open, since {}: what was stored after the copy is not in \
                 it, and how much that is is not known; what was delivered after it is sent again, with the same ids",
                mark.at
            ),
            Inspection::LogLost(mark) => format!(
                "its write-ahead log was empty or gone when the agent started, or it is a copy without it: what an agent \
                 has stored or delivered since {} may be missing, and how much is not known; what is missing of \
                 deliveries is sent again, with the same ids",
                mark.at
            ),
            Inspection::Database(Some(mark)) if mark.is_of_another_session(last) => format!(
                "it is not the outbox that was used here last, but a copy of {} or another one: what was stored later is not in \
                 it, and how much that is is not known; what was delivered later is sent again, with the same ids",
                mark.at
            ),
            Inspection::Database(_) | Inspection::Damaged(_) => return None,
        };
        Some(text)
    }
}

/// Inspects the files before SQLite does, which would delete the log of a database that is empty or gone, with all that
/// is in it, and apply a log to a database that it does not belong to.
pub(super) fn inspect(path: &Path) -> Result<Inspection, OutboxError> {
    let io = |e| OutboxError::io(path, "examine the database", &e);
    let metadata = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(e)),
    };
    let wal = metadata(&with_suffix(path, "-wal"))?.map_or(0, |wal| wal.len());
    Ok(match metadata(path)? {
        None if wal == 0 => Inspection::Nothing,
        None => Inspection::Damaged("the database is gone, and its write-ahead log is not"),
        Some(main) if main.is_dir() => {
            if fs::read_dir(path).map_err(io)?.next().is_some() {
                return Err(OutboxError::Foreign {
                    path: path.to_owned(),
                    what: "a folder with files in it",
                });
            }
            Inspection::Damaged("an empty folder stands in its place")
        }
        Some(main) if main.len() == 0 => Inspection::Damaged("the database is empty"),
        Some(_) => match Pairing::of(path)? {
            (Pairing::NotOwn(why), _) => Inspection::Damaged(why),
            (Pairing::LogLost, Some(mark)) => Inspection::LogLost(mark),
            (Pairing::LogLost | Pairing::Whole, mark) => Inspection::Database(mark),
        },
    })
}

fn move_away(path: &Path, damaged: &Path) -> Result<(), OutboxError> {
    let operation = "move the damaged database away";
    for suffix in SUFFIXES {
        let (from, to) = (with_suffix(path, suffix), with_suffix(damaged, suffix));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to).map_err(|e| OutboxError::io(&from, operation, &e))?;
        }
    }
    if !damaged.exists() {
        // Only the log was left. An empty file takes the main file's place, which says that the move is done.
        File::create(damaged).map_err(|e| OutboxError::io(damaged, operation, &e))?;
    }
    sync_folder_of(path)
}

/// Refuses a database that is not this agent's. Only an intact header says whose it is.
fn refuse_others(path: &Path) -> Result<(), OutboxError> {
    let mut header = Vec::new();
    if let Ok(file) = File::open(path) {
        // A header that cannot be read is not intact.
        let _ = file.take(100).read_to_end(&mut header);
    }
    if !header.starts_with(MAGIC) {
        return Ok(());
    }
    let number = |offset| i64::from(u32_at(&header, offset).unwrap_or(0));
    // The offsets of application_id and user_version in the file format.
    schema::check_header(path, number(68), number(60))
}

fn read_note(path: &Path) -> Result<Option<RecoveryNote>, OutboxError> {
    match fs::read(note_path(path)) {
        Ok(json) => Ok(serde_json::from_slice(&json).ok()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(OutboxError::io(path, "look for a recovery that has begun", &e)),
    }
}

fn note_path(path: &Path) -> PathBuf {
    with_suffix(path, ".recovery")
}
