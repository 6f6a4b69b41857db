//! Facts about the outbox, each under a name in the table `meta`. All names stand here.

use super::retention_clock::State;
use crate::clock::Timestamp;
use crate::status::Incident;
use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, ToSql, params};
use std::time::Duration;

/// Counts the commands after which events are to be sent; a running agent looks when it has changed.
pub(super) const RETRY_REQUESTS: &str = "retry_requests";
/// The highest `seq` in use when rows were last deleted at the end: it must not be used again.
pub(super) const LAST_SEQ: &str = "last_seq";
/// When the outbox was last opened without a reserve file.
pub(super) const OPENED: &str = "opened";
/// The receiver asked for no requests before this time; 0: it did not.
pub(super) const RETRY_AFTER_DEADLINE: &str = "retry_after_deadline";
/// A hash of the receiver's address and the key under which it last accepted an event.
pub(super) const ACCEPTED_BY: &str = "accepted_by";
/// The ids of all events up to this `seq` stand in `recent_ids` or `ids`.
pub(super) const IDS_INDEXED: &str = "ids_indexed";
/// The ids of all events up to this `seq` stand in `ids`.
pub(super) const IDS_MERGED: &str = "ids_merged";
/// The key under which persons are hashed.
pub(super) const PERSON_KEY: &str = "person_key";
/// Begins the name of the fact that a person is suppressed; the person's keyed hash ends it, and the value is the time.
pub(super) const SUPPRESSED: &str = "suppressed ";
/// The mappings by which ordering keys are computed.
pub(super) const KEYING: &str = "keying";
/// The first item whose ordering key may be by other mappings.
pub(super) const STALE_KEYS_FROM: &str = "stale_keys_from";
/// The first item after those.
pub(super) const STALE_KEYS_TO: &str = "stale_keys_to";
/// When the newest event came whose id was forgotten before its time, for want of room.
pub(super) const IDS_REMEMBERED_SINCE: &str = "ids_remembered_since";
/// Zeros that stand in the database for a moment, to overwrite its free space.
pub(super) const FILLER: &str = "filler";
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

pub(super) fn increment(conn: &Connection, name: &str) -> Result<(), rusqlite::Error> {
    conn.prepare_cached(
        "INSERT INTO meta (name, value) VALUES (?1, 1) ON CONFLICT DO UPDATE SET value = value + 1",
    )?
    .execute([name])?;
    Ok(())
}

/// Returns whether the fact was there.
pub(super) fn remove(conn: &Connection, name: &str) -> Result<bool, rusqlite::Error> {
    Ok(conn.prepare_cached("DELETE FROM meta WHERE name = ?")?.execute([name])? > 0)
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
