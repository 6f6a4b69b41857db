//! What the commands ask about events: which there are, and what became of one.

use super::ids::short_hash;
use super::person::PersonKey;
use super::{OutboxError, Reader, State};
use crate::clock::Timestamp;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, params, params_from_iter};
use serde::Serialize;

/// Pending rows looked through for older events of a person: a fraction of a second, however many there are.
const LOOKED_THROUGH: u64 = 100_000;

/// Finds the event of the messageId `?2`, whose short hash is `?1`.
const SEQ_OF_ID: &str = "SELECT seq FROM recent_ids WHERE id = ?1 UNION ALL SELECT seq FROM ids WHERE id = ?1
                         UNION ALL SELECT seq FROM unindexed WHERE message_id = ?2 LIMIT 1";

/// Which rows to list. An empty filter means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these states.
    pub states: Vec<State>,
    /// This reason code.
    pub reason: Option<String>,
    /// This person: an email or a profile id.
    pub person: Option<String>,
    /// This `type`.
    pub kind: Option<String>,
    /// This event name.
    pub name: Option<String>,
    /// Stored at or after.
    pub since: Option<Timestamp>,
    /// Stored before.
    pub until: Option<Timestamp>,
    /// Of these places.
    pub seqs: Option<Vec<i64>>,
}

/// A row of the view `outbox_events`: its columns are the members of `list --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The order of the spool.
    pub seq: i64,
    /// The event's id.
    pub message_id: String,
    /// Segment's `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The `event` of a track.
    pub event: Option<String>,
    /// Its state.
    pub state: String,
    /// An email or a profile id; a keyed hash once the body is gone.
    pub person: Option<String>,
    /// When it was stored.
    pub received_at: String,
    /// When it was settled.
    pub settled_at: Option<String>,
    /// Requests that were answered with it in them.
    pub attempts: i64,
    /// Why it is as it is.
    pub reason_code: Option<String>,
    /// The same for a person.
    pub reason: Option<String>,
    /// The spool file that it came in.
    pub file: String,
    /// The line or element there, from 1; 0: the file is the event.
    pub place: i64,
}

/// A page of rows, newest first.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The rows.
    pub rows: Vec<Listed>,
    /// How many match in all.
    pub total: u64,
}

/// An answer other than acceptance.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// What it came to.
    pub code: String,
    /// The same for a person.
    pub text: String,
}

/// Everything that is known of one event.
#[derive(Debug, Clone)]
pub struct Detail {
    /// Its row.
    pub row: Listed,
    /// The spool file's modification time.
    pub spooled_at: Timestamp,
    /// The event as it came, while it is kept.
    pub body: Option<String>,
    /// Answers other than acceptance, oldest first; the last sixteen.
    pub attempts: Vec<Attempt>,
}

impl Reader {
    /// The bodies of the events that came last and wait, up to `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_pending(&self, limit: usize) -> Result<Vec<String>, OutboxError> {
        let read = || {
            let mut select =
                self.connection().prepare("SELECT body FROM pending ORDER BY seq DESC LIMIT ?")?;
            select.query_map([limit as i64], |r| r.get(0))?.collect::<Result<_, _>>()
        };
        read().map_err(|e| self.error("read its newest events", e))
    }

    /// Rows that match, newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn list(&self, filter: &Filter, limit: usize) -> Result<Listing, OutboxError> {
        let read = || {
            let (condition, values) = self.condition(filter)?;
            let total: i64 = self.connection().query_row(
                &format!("SELECT count(*) FROM outbox_events e WHERE {condition}"),
                params_from_iter(&values),
                |r| r.get(0),
            )?;
            let rows = self
                .connection()
                .prepare(&format!(
                    "SELECT * FROM outbox_events e WHERE {condition} ORDER BY e.seq DESC LIMIT {limit}"
                ))?
                .query_map(params_from_iter(&values), listed)?
                .collect::<Result<_, _>>()?;
            Ok(Listing { rows, total: total as u64 })
        };
        read().map_err(|e| self.error("list its events", e))
    }

    pub(super) fn condition(&self, filter: &Filter) -> Result<(String, Vec<Value>), rusqlite::Error> {
        let (mut terms, mut values) = (vec!["true".to_owned()], Vec::new());
        if !filter.states.is_empty() {
            let names: Vec<String> = filter.states.iter().map(|s| format!("'{}'", s.as_str())).collect();
            terms.push(format!("e.state IN ({})", names.join(", ")));
        }
        let mut equal = |column: &str, value: &Option<String>| {
            if let Some(value) = value {
                terms.push(format!("{column} = ?"));
                values.push(Value::from(value.clone()));
            }
        };
        equal("e.reason_code", &filter.reason);
        equal("e.type", &filter.kind);
        equal("e.event", &filter.name);
        if let Some(person) = &filter.person {
            let hash = PersonKey::read(self.connection())?.map(|key| key.hashed(person));
            terms.push("e.person IN (?, ?)".to_owned());
            values.push(Value::from(person.clone()));
            values.push(hash.map_or(Value::Null, Value::from));
        }
        if let Some(seqs) = &filter.seqs {
            let seqs: Vec<String> = seqs.iter().map(i64::to_string).collect();
            terms.push("e.seq IN (SELECT value FROM json_each(?))".to_owned());
            values.push(Value::from(format!("[{}]", seqs.join(","))));
        }
        for (time, comparison) in [(filter.since, ">="), (filter.until, "<")] {
            if let Some(time) = time {
                terms.push(format!("e.received_at {comparison} ?"));
                values.push(Value::from(time.to_string()));
            }
        }
        Ok((terms.join(" AND "), values))
    }

    /// Everything that is known of one event; `None`: no row carries that id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn show(&self, message_id: &str) -> Result<Option<Detail>, OutboxError> {
        let read = || {
            let seq: Option<i64> = self
                .connection()
                .query_row(SEQ_OF_ID, params![short_hash(message_id), message_id], |r| r.get(0))
                .optional()?;
            let Some(seq) = seq else { return Ok(None) };
            let row = self
                .connection()
                .query_row("SELECT * FROM outbox_events WHERE seq = ?", [seq], listed)
                .optional()?;
            let Some(row) = row else { return Ok(None) };
            let (spooled_at, body) = self.connection().query_row(
                "SELECT spooled_at, body FROM pending WHERE seq = ?1
                 UNION ALL
                 SELECT spooled_at, body FROM pending WHERE event_seq = ?1
                 UNION ALL
                 SELECT s.spooled_at, b.body FROM settled s LEFT JOIN bodies b ON b.seq = s.seq WHERE s.seq = ?1
                 LIMIT 1",
                [seq],
                |r| Ok((Timestamp(r.get(0)?), r.get(1)?)),
            )?;
            let attempts = self
                .connection()
                .prepare("SELECT at, code, reason FROM attempts WHERE seq = ? ORDER BY n")?
                .query_map([seq], |r| {
                    Ok(Attempt { at: Timestamp(r.get(0)?), code: r.get(1)?, text: r.get(2)? })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some(Detail { row, spooled_at, body, attempts }))
        };
        read().map_err(|e| self.error("look up an event", e))
    }

    /// How many older events of the same person a pending event waits for, and whether that is all: they are sought
    /// among the next hundred thousand before it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ahead(&self, seq: i64) -> Result<(u64, bool), OutboxError> {
        self.connection()
            .query_row(
                &format!(
                    "SELECT count(*) FILTER (WHERE o.ordering_key = p.ordering_key), count(*)
                       FROM pending p
                       JOIN (SELECT ordering_key FROM pending
                              WHERE seq < ?1 AND seq NOT IN (SELECT seq FROM acked)
                              ORDER BY seq DESC LIMIT {LOOKED_THROUGH}) o
                      WHERE p.seq = (SELECT min(seq) FROM pending WHERE seq = ?1 OR event_seq = ?1)"
                ),
                [seq],
                |r| Ok((r.get::<_, i64>(0)? as u64, (r.get::<_, i64>(1)? as u64) < LOOKED_THROUGH)),
            )
            .map_err(|e| self.error("count what waits before an event", e))
    }
}

fn listed(row: &Row<'_>) -> Result<Listed, rusqlite::Error> {
    Ok(Listed {
        seq: row.get("seq")?,
        message_id: row.get("message_id")?,
        kind: row.get("type")?,
        event: row.get("event")?,
        state: row.get("state")?,
        person: row.get("person")?,
        received_at: row.get("received_at")?,
        settled_at: row.get("settled_at")?,
        attempts: row.get("attempts")?,
        reason_code: row.get("reason_code")?,
        reason: row.get("reason")?,
        file: row.get("file")?,
        place: row.get("place")?,
    })
}
