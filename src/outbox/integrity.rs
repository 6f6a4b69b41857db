//! The integrity check: a damaged page is found when the agent starts, not on the day on which its events are needed.

use super::alarm::Alarm;
use super::{OutboxError, Reader};
use rusqlite::{Connection, InterruptHandle};
use std::path::Path;

/// A database up to this size is checked before anything else, in a tenth of a second: then its recovery delays nobody.
/// A larger one is checked in the background.
pub(super) const SMALL: u64 = 64 << 20;

/// Checks the whole database.
///
/// # Errors
/// [`OutboxError::Damaged`] with what was found; SQLite's errors.
pub(super) fn check(conn: &Connection, path: &Path) -> Result<(), OutboxError> {
    let found: String = conn
        .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
        .map_err(|e| OutboxError::sqlite(path, "check the database", e))?;
    if found == "ok" {
        return Ok(());
    }
    let text = found.trim_start_matches("*** in database main ***").trim().replace('\n', " ");
    Err(OutboxError::Damaged { path: path.to_owned(), text })
}

/// Checks the database on a thread of its own, and raises the alarm if it is damaged. Interrupting the handle ends the
/// check.
pub(super) fn check_in_background(path: &Path, alarm: Alarm) -> Result<InterruptHandle, OutboxError> {
    let reader = Reader::open_in_process(path)?;
    let handle = reader.connection().get_interrupt_handle();
    let path = path.to_owned();
    let work = move || match check(reader.connection(), &path) {
        Err(e) if e.is_damage() => alarm.raise(e),
        Ok(()) => tracing::debug!("the integrity check of the outbox found no damage"),
        Err(e) => tracing::debug!("{e}"),
    };
    // Without a thread the database is checked at the next start.
    if let Err(e) = std::thread::Builder::new().name("check".into()).spawn(work) {
        tracing::debug!("the integrity of the outbox is not checked: {e}");
    }
    Ok(handle)
}
