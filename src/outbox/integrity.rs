//! Whether the pages of the database are what they must be. A damaged page is found when the agent starts, not on the
//! day on which somebody needs it.

use super::{OutboxError, Reader};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// Looked through before anything else is done, in a tenth of a second: then what is recovered delays nobody. A larger
/// database is looked through beside the work.
pub(super) const SMALL: u64 = 64 << 20;

/// Looks through the whole database.
///
/// # Errors
/// [`OutboxError::Damaged`] with what was found; SQLite's errors.
pub(super) fn check(conn: &Connection, path: &Path) -> Result<(), OutboxError> {
    let found: String = conn
        .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
        .map_err(|e| OutboxError::sqlite(path, "look through it", e))?;
    if found == "ok" {
        return Ok(());
    }
    let text = found.trim_start_matches("*** in database main ***").trim().replace('\n', " ");
    Err(OutboxError::Damaged { path: path.to_owned(), text })
}

/// Looks through the database on a thread of its own, and raises the alarm if it is damaged. The look ends when the
/// handle is interrupted.
pub(super) fn check_in_background(
    path: &Path,
    alarm: watch::Sender<Option<Arc<OutboxError>>>,
) -> Result<rusqlite::InterruptHandle, OutboxError> {
    let reader = Reader::beside(path)?;
    let handle = reader.connection().get_interrupt_handle();
    let path = path.to_owned();
    let look = move || match check(reader.connection(), &path) {
        Err(e) if e.is_damage() => drop(alarm.send_replace(Some(Arc::new(e)))),
        Ok(()) => tracing::debug!("the outbox was looked through: it is sound"),
        Err(e) => tracing::debug!("{e}"),
    };
    // Without a thread it is looked through at the next start.
    if let Err(e) = std::thread::Builder::new().name("check".into()).spawn(look) {
        tracing::debug!("the outbox is not looked through: {e}");
    }
    Ok(handle)
}
