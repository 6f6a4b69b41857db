//! The schema and its versions: an append-only list of migrations, counted by `user_version`.

use super::OutboxError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Each entry takes the schema from its index to the next version. Entries are never changed, only added.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    // CRC-32 of the text of a file that is taken; NULL for a document, and for what an older agent took.
    "ALTER TABLE spool_files ADD COLUMN sum INTEGER;",
];

/// The version that this agent writes.
const KNOWN: i64 = MIGRATIONS.len() as i64;

/// Marks the file as an outbox for `file(1)` and for a reader that was handed the wrong database: "Koal".
const APPLICATION_ID: i64 = 0x4b6f_616c;

/// Brings the schema up to date in one transaction: after a crash it is the old one or the new one.
///
/// # Errors
/// [`OutboxError::NewerSchema`] when a later agent has written it; the file is left as it is.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OutboxError> {
    let sql = |e| OutboxError::sqlite(path, "migrate the schema", e);
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(sql)?;
    check_version(path, found)?;
    if found == KNOWN {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(migration).map_err(sql)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
    tx.pragma_update(None, "user_version", KNOWN).map_err(sql)?;
    tx.commit().map_err(sql)
}

/// # Errors
/// [`OutboxError::NewerSchema`] when a later agent has written the file.
pub(super) fn check_version(path: &Path, found: i64) -> Result<(), OutboxError> {
    if found > KNOWN {
        return Err(OutboxError::NewerSchema { path: path.to_owned(), found, known: KNOWN });
    }
    Ok(())
}
