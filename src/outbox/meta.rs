//! Facts about the outbox, each under a name in the table `meta`. All names stand here.

use super::retention_clock::State;
use crate::clock::Timestamp;
use crate::status::Incident;
use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, ToSql, params};
use std::time::Duration;

/// The highest number in use when rows were last deleted at the end: it must not be used again.
pub(super) const LAST_SEQ: &str = "last_seq";
/// Ties the database to its log: see [`LogMark`](super::log_mark::LogMark).
pub(super) const LOG_MARK: &str = "log_mark";
/// The ids of all events up to this `seq` stand in segments.
pub(super) const IDS_INDEXED: &str = "ids_indexed";
/// The key under which persons are hashed.
pub(super) const PERSON_KEY: &str = "person_key";
/// The number of the last ack, once all are deleted.
pub(super) const LAST_ACK: &str = "last_ack";
/// When the newest event came of which only the id is remembered, for want of room.
pub(super) const HISTORY_SINCE: &str = "history_since";
/// When the newest event came whose id was forgotten before its time, for want of room.
pub(super) const IDS_REMEMBERED_SINCE: &str = "ids_remembered_since";
/// The state of the clock of retention.
const RETENTION_CLOCK: &str = "retention_clock";
const INCIDENT: &str = "incident";
const CLOCK_STEP: &str = "clock_step";

/// Time for which an incident that left no files stays in `status`.
const SHOWN_FOR: Duration = Duration::from_secs(7 * 86_400);

pub(super) fn get<T: FromSql>(conn: &Connection, name: &str) -> Result<Option<T>, rusqlite::Error> {
    conn.prepare_cached("SELECT value FROM meta WHERE name = ?")?.query_row([name], |r| r.get(0)).optional()
}

pub(super) fn set(conn: &Connection, name: &str, value: impl ToSql) -> Result<(), rusqlite::Error> {
    conn.prepare_cached(
        "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
    )?
    .execute(params![name, value])?;
    Ok(())
}

/// Forgets the fact, if it is there.
pub(super) fn remove(conn: &Connection, name: &str) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("DELETE FROM meta WHERE name = ?")?.execute([name]).map(drop)
}

/// Stores an incident in place of the one before.
pub(super) fn set_incident(conn: &Connection, incident: &Incident) -> Result<(), rusqlite::Error> {
    set(conn, INCIDENT, serde_json::to_string(incident).unwrap_or_default())
}

/// The last incident, while it is to be shown: as long as its files exist, or for a week if it left none.
pub(super) fn incident(conn: &Connection, now: Timestamp) -> Result<Option<Incident>, rusqlite::Error> {
    shown_incident(conn, INCIDENT, now)
}

/// Stores a step of the wall clock in place of the one before.
pub(super) fn set_clock_step(conn: &Connection, step: &Incident) -> Result<(), rusqlite::Error> {
    set(conn, CLOCK_STEP, serde_json::to_string(step).unwrap_or_default())
}

/// The last step of the wall clock, for a week.
pub(super) fn clock_step(conn: &Connection, now: Timestamp) -> Result<Option<Incident>, rusqlite::Error> {
    shown_incident(conn, CLOCK_STEP, now)
}

/// Stores the state of the clock of retention.
pub(super) fn set_retention_clock(conn: &Connection, state: State) -> Result<(), rusqlite::Error> {
    set(conn, RETENTION_CLOCK, serde_json::to_string(&state).unwrap_or_default())
}

/// The stored state of the clock of retention.
pub(super) fn retention_clock(conn: &Connection) -> Result<Option<State>, rusqlite::Error> {
    let json: Option<String> = get(conn, RETENTION_CLOCK)?;
    Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
}

fn shown_incident(
    conn: &Connection,
    name: &str,
    now: Timestamp,
) -> Result<Option<Incident>, rusqlite::Error> {
    let json: Option<String> = get(conn, name)?;
    let incident: Option<Incident> = json.and_then(|json| serde_json::from_str(&json).ok());
    Ok(incident.filter(|incident| match &incident.files {
        Some(files) => files.exists(),
        None => now.since(incident.at) < SHOWN_FOR,
    }))
}
