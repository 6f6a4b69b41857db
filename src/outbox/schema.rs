//! The schema and its version, which stands as `user_version` in the header of the file.
//!
//! Migrations are an append-only list of SQL texts, applied in one transaction. That is little enough to need no crate;
//! rusqlite_migration lags behind the releases of rusqlite. An agent that finds a newer schema than its own refuses it,
//! so there are no ways back.

use super::OutboxError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// The schema as version [`FIRST`] has it.
const SCHEMA: &str = include_str!("schema.sql");

/// The oldest version that this agent can read. Earlier ones were never released.
const FIRST: i64 = 8;

/// Entry `n` takes the schema from version `FIRST + n` to the next. Entries are never changed, only added.
const MIGRATIONS: &[&str] = &[];

/// Marks the file as an outbox for `file(1)`, and for a reader that was given the wrong database: "Koal".
const APPLICATION_ID: i64 = 0x4b6f_616c;

/// Creates the schema in an empty database, or brings an older one up to date, in one transaction: a crash leaves the
/// old schema or the new one.
///
/// # Errors
/// [`OutboxError::OlderSchema`], [`OutboxError::NewerSchema`] or [`OutboxError::Foreign`]: the file is left as it is.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OutboxError> {
    migrate_by(MIGRATIONS, conn, path)
}

fn migrate_by(migrations: &[&str], conn: &mut Connection, path: &Path) -> Result<(), OutboxError> {
    let sql = |e| OutboxError::sqlite(path, "migrate the schema", e);
    let newest = newest_of(migrations);
    let found = read_version(newest, conn, path)?;
    if found == Some(newest) {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    if found.is_none() {
        tx.execute_batch(SCHEMA).map_err(sql)?;
    }
    let applied = usize::try_from(found.unwrap_or(FIRST) - FIRST).unwrap_or(0);
    for migration in &migrations[applied..] {
        tx.execute_batch(migration).map_err(sql)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
    tx.pragma_update(None, "user_version", newest).map_err(sql)?;
    tx.commit().map_err(sql)
}

/// Refuses a database that this agent may not read.
///
/// # Errors
/// As [`migrate`].
pub(super) fn check(conn: &Connection, path: &Path) -> Result<(), OutboxError> {
    read_version(newest_of(MIGRATIONS), conn, path).map(drop)
}

/// Refuses a file that this agent may not read, by two numbers of its header.
///
/// # Errors
/// As [`migrate`].
pub(super) fn check_header(path: &Path, application_id: i64, user_version: i64) -> Result<(), OutboxError> {
    check_numbers(newest_of(MIGRATIONS), path, application_id, user_version)
}

fn newest_of(migrations: &[&str]) -> i64 {
    FIRST + migrations.len() as i64
}

/// The version of the schema; `None`: the database is empty.
fn read_version(newest: i64, conn: &Connection, path: &Path) -> Result<Option<i64>, OutboxError> {
    let sql = |e| OutboxError::sqlite(path, "open the database", e);
    let number = |query: &str| conn.query_row(query, [], |r| r.get::<_, i64>(0)).map_err(sql);
    if number("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(None);
    }
    let user_version = number("PRAGMA user_version")?;
    check_numbers(newest, path, number("PRAGMA application_id")?, user_version)?;
    Ok(Some(user_version))
}

fn check_numbers(
    newest: i64,
    path: &Path,
    application_id: i64,
    user_version: i64,
) -> Result<(), OutboxError> {
    let path = path.to_owned();
    if application_id != APPLICATION_ID {
        return Err(OutboxError::Foreign { path, what: "another program's database" });
    }
    if user_version < FIRST {
        return Err(OutboxError::OlderSchema { path, found: user_version, first: FIRST });
    }
    if user_version > newest {
        return Err(OutboxError::NewerSchema { path, found: user_version, newest });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const ADDITIONS: &[&str] =
        &["ALTER TABLE attempts ADD COLUMN status INTEGER", "CREATE INDEX attempts_by_time ON attempts (at)"];

    fn database(dir: &Path) -> (Connection, PathBuf) {
        let path = dir.join("outbox.db");
        (Connection::open(&path).unwrap(), path)
    }

    fn version(conn: &Connection) -> i64 {
        conn.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap()
    }

    fn schema(conn: &Connection) -> Vec<(String, Option<String>)> {
        let mut rows = conn.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
        rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_new_database_and_a_migrated_one_have_the_same_schema() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut migrated, path) = database(old.path());
        for (applied, newest) in [(0, 8), (1, 9), (2, 10), (2, 10)] {
            migrate_by(&ADDITIONS[..applied], &mut migrated, &path).unwrap();
            assert_eq!(version(&migrated), newest);
        }
        let (mut created, path) = database(new.path());
        migrate_by(ADDITIONS, &mut created, &path).unwrap();
        assert_eq!((version(&created), schema(&created)), (10, schema(&migrated)));
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut conn, path) = database(dir.path());
        migrate(&mut conn, &path).unwrap();
        let before = (version(&conn), schema(&conn));
        let fails = [MIGRATIONS, &[ADDITIONS[0], "DROP TABLE nothing"]].concat();
        assert!(migrate_by(&fails, &mut conn, &path).is_err());
        assert_eq!((version(&conn), schema(&conn)), before);
    }

    #[test]
    fn an_older_schema_and_a_newer_one_are_refused_and_left_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (mut conn, path) = database(dir.path());
        migrate(&mut conn, &path).unwrap();
        for version in [0, 1, 7, newest_of(MIGRATIONS) + 1, 99] {
            conn.pragma_update(None, "user_version", version).unwrap();
            let before = std::fs::read(&path).unwrap();
            let refusals = [
                migrate(&mut conn, &path),
                check(&conn, &path),
                check_header(&path, APPLICATION_ID, version),
            ];
            for refusal in refusals {
                let error = refusal.unwrap_err();
                assert!(error.is_not_ours());
                let text = error.to_string();
                let fix = if version < FIRST { "drain it with the version that made it" } else { "install" };
                let names = [path.to_str().unwrap(), &format!("schema {version}"), fix];
                assert!(names.iter().all(|name| text.contains(name)), "{text}");
            }
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn another_programs_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut conn, path) = database(dir.path());
        conn.execute_batch("CREATE TABLE invoices (n INTEGER); PRAGMA user_version = 8").unwrap();
        assert!(matches!(migrate(&mut conn, &path), Err(OutboxError::Foreign { .. })));
    }
}
