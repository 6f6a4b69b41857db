//! The schema and its versions: an append-only list of migrations, counted by `user_version`.

use super::OutboxError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Each entry takes the schema from its index to the next version. Entries are never changed, only added.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    // CRC-32 of the text of a file that is taken; NULL for a document, and for what an older agent took.
    "ALTER TABLE spool_files ADD COLUMN sum INTEGER;",
    include_str!("items.sql"),
    include_str!("moved.sql"),
    include_str!("known.sql"),
];

/// The version that this agent writes.
const KNOWN: i64 = MIGRATIONS.len() as i64;

/// Marks the file as an outbox for `file(1)` and for a reader that was handed the wrong database: "Koal".
const APPLICATION_ID: i64 = 0x4b6f_616c;

/// Brings the schema up to date in one transaction: after a crash it is the old one or the new one.
///
/// # Errors
/// [`OutboxError::NewerSchema`] when a later agent has written it, [`OutboxError::Foreign`] when another program has;
/// the file is left as it is.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OutboxError> {
    let sql = |e| OutboxError::sqlite(path, "migrate the schema", e);
    let found = version_of(conn, path)?;
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

/// The version of the schema in a database that is this agent's to read; 0: there is none yet.
///
/// # Errors
/// [`OutboxError::NewerSchema`], [`OutboxError::Foreign`], and SQLite's.
pub(super) fn version_of(conn: &Connection, path: &Path) -> Result<i64, OutboxError> {
    let sql = |e| OutboxError::sqlite(path, "open the database", e);
    let number = |query: &str| conn.query_row(query, [], |r| r.get::<_, i64>(0)).map_err(sql);
    let found = number("PRAGMA user_version")?;
    if number("SELECT count(*) FROM sqlite_schema")? > 0 {
        check_owner(path, number("PRAGMA application_id")?, found)?;
    }
    Ok(found)
}

/// The condition on a pending row that it is an item of the event `?1`. Before the third version there is no such column,
/// and an outbox is looked at before an agent has brought it up to date.
pub(super) fn of_event(version: i64) -> &'static str {
    if version < 3 { "seq = ?1" } else { "event_seq = ?1" }
}

/// The condition on a pending row that it is not delivered. Before the fourth version a row moved with its delivery.
pub(super) fn waits(version: i64) -> &'static str {
    if version < 4 { "true" } else { "seq NOT IN (SELECT seq FROM acked)" }
}

/// Where the event of the messageId `?2` is found, whose id is `?1`. Before the fourth version there was one place.
pub(super) fn seq_of(version: i64) -> &'static str {
    match version {
        ..4 => "SELECT seq FROM ids WHERE id = ?1 AND ?2 <> ''",
        4 => {
            "SELECT seq FROM ids WHERE id = ?1 UNION ALL SELECT seq FROM new_ids WHERE id = ?1 AND ?2 <> '' LIMIT 1"
        }
        _ => {
            "SELECT seq FROM recent_ids WHERE id = ?1 UNION ALL SELECT seq FROM ids WHERE id = ?1
             UNION ALL SELECT seq FROM unindexed WHERE message_id = ?2 LIMIT 1"
        }
    }
}

/// Whether the file is an outbox that this agent knows, by two numbers of its header.
///
/// # Errors
/// [`OutboxError::NewerSchema`], [`OutboxError::Foreign`].
pub(super) fn check_owner(path: &Path, application_id: i64, user_version: i64) -> Result<(), OutboxError> {
    if application_id != APPLICATION_ID {
        return Err(OutboxError::Foreign { path: path.to_owned(), what: "another program's database" });
    }
    if user_version > KNOWN {
        return Err(OutboxError::NewerSchema { path: path.to_owned(), found: user_version, known: KNOWN });
    }
    Ok(())
}
