//! The queries of the commands: which events there are, and everything about one.

use super::OutboxError;
use super::ack_log::each_ack;
use super::id_index::IdIndex;
use super::id_segment::hash_id_text;
use super::items::EventItems;
use super::retention::PersonKey;
use super::row::{QueuedItem, State};
use crate::clock::Timestamp;
use crate::event::MessageId;
use crate::item::OrderingKey;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Pending rows that are read to count the older events of a person: a fraction of a second, however many there are.
const MAX_READ_AHEAD: u64 = 100_000;

/// Rows that are read to find the persons that have waited longest: some ten milliseconds. The first rows of the queue are
/// the oldest, and behind those the events that were answered are the ones that do not go on.
const OLDEST: &str = "SELECT id, ordering_key FROM (SELECT id, ordering_key FROM queue ORDER BY id LIMIT 1000)
    UNION
    SELECT q.id, q.ordering_key
      FROM (SELECT DISTINCT seq FROM attempts WHERE seq >= (SELECT min(id) FROM queue) ORDER BY seq LIMIT 5000) a
      JOIN queue q ON q.id = a.seq
     ORDER BY 1";

/// Finds the event of a messageId that no segment has yet.
const SEQ_OF_UNSEALED: &str = "SELECT seq FROM events
    WHERE seq > coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0) AND message_id = ?";

/// Which events to list; an empty filter means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventFilter {
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
    /// Stored at or after this time.
    pub since: Option<Timestamp>,
    /// Stored before this time.
    pub until: Option<Timestamp>,
    /// Any of these numbers in the order of the spool.
    pub seqs: Option<Vec<i64>>,
}

impl EventFilter {
    /// The filter as a condition on `outbox_events e`, and the values of its parameters.
    fn to_sql(&self, conn: &Connection) -> Result<(String, Vec<Value>), rusqlite::Error> {
        let (mut terms, mut values) = (vec!["true".to_owned()], Vec::new());
        if !self.states.is_empty() {
            let names: Vec<String> = self.states.iter().map(|s| format!("'{}'", s.as_str())).collect();
            terms.push(format!("e.state IN ({})", names.join(", ")));
        }
        for (column, value) in
            [("e.reason_code", &self.reason), ("e.type", &self.kind), ("e.event", &self.name)]
        {
            if let Some(value) = value {
                terms.push(format!("{column} = ?"));
                values.push(Value::from(value.clone()));
            }
        }
        if let Some(person) = &self.person {
            let hash = PersonKey::read(conn)?.map(|key| key.hash(person));
            terms.push("e.person IN (?, ?)".to_owned());
            values.push(Value::from(person.clone()));
            values.push(hash.map_or(Value::Null, Value::from));
        }
        if let Some(seqs) = &self.seqs {
            let seqs: Vec<String> = seqs.iter().map(i64::to_string).collect();
            terms.push("e.seq IN (SELECT value FROM json_each(?))".to_owned());
            values.push(Value::from(format!("[{}]", seqs.join(","))));
        }
        for (time, comparison) in [(self.since, ">="), (self.until, "<")] {
            if let Some(time) = time {
                terms.push(format!("e.received_at {comparison} ?"));
                values.push(Value::from(time.to_string()));
            }
        }
        Ok((terms.join(" AND "), values))
    }
}

/// A row of the view `outbox_events`; the columns are the members of `list --json`.
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
    /// The event's state.
    pub state: String,
    /// An email or a profile id; a keyed hash once the body is erased.
    pub person: Option<String>,
    /// When the event was stored.
    pub received_at: String,
    /// When the event was settled.
    pub settled_at: Option<String>,
    /// The number of requests with this event that were answered.
    pub attempts: i64,
    /// The code of the reason for the state.
    pub reason_code: Option<String>,
    /// The reason in words.
    pub reason: Option<String>,
    /// The spool file that the event came in.
    pub file: String,
    /// The line or element in the file, from 1; 0: the file is the event.
    pub place: i64,
    /// The uid of the file's owner.
    pub owner: Option<u32>,
}

impl Listed {
    fn from_row(row: &Row<'_>) -> Result<Listed, rusqlite::Error> {
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
            owner: row.get("owner")?,
        })
    }
}

/// Events that match a filter, newest first, up to a limit.
#[derive(Debug, Clone)]
pub struct EventPage {
    /// The events.
    pub rows: Vec<Listed>,
    /// The number of all events that match.
    pub total: u64,
}

/// An answer.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// When the answer came.
    pub at: Timestamp,
    /// The reason code that the answer stands for; `show` writes `accepted` for the one that accepted the event.
    pub code: String,
    /// The reason in words.
    pub text: String,
}

/// The oldest pending event of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingEvent {
    /// The person.
    pub person: String,
    /// When the event was stored.
    pub received_at: Timestamp,
    /// The code and text of its last answer.
    pub reason: Option<(String, String)>,
    /// The uid of its file's owner.
    pub owner: Option<u32>,
}

/// The answer that accepted an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// When it was noted.
    pub at: Timestamp,
    /// Its status, if it is known.
    pub status: Option<u16>,
}

/// Everything about one event.
#[derive(Debug, Clone)]
pub struct Detail {
    /// The event's row.
    pub row: Listed,
    /// The spool file's modification time.
    pub spooled_at: Timestamp,
    /// The event as it came, while it is kept.
    pub body: Option<String>,
    /// Answers other than acceptance, oldest first; the last sixteen.
    pub attempts: Vec<Attempt>,
    /// The acceptance of a delivered event; of one with several items, that of the last.
    pub acceptance: Option<Acceptance>,
}

/// A settled event whose body is still kept, so that it can be sent again.
#[derive(Debug, Clone)]
pub struct Retained {
    /// The event's place in the order of the spool.
    pub seq: i64,
    /// The event's id.
    pub message_id: MessageId,
    /// The file's modification time: the event's timestamp where it has none.
    pub spooled_at: Timestamp,
    /// The event's text as it came.
    pub body: String,
    /// The event's state.
    pub state: State,
}

/// Queries over a connection that reads.
#[derive(Debug, Clone, Copy)]
pub struct EventQueries<'a> {
    pub(super) conn: &'a Connection,
    pub(super) path: &'a Path,
}

impl EventQueries<'_> {
    fn error(&self, operation: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(self.path, operation, source)
    }

    /// The bodies of the newest pending events, up to `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_pending(&self, limit: usize) -> Result<Vec<String>, OutboxError> {
        let read = || {
            let mut select = self.conn.prepare("SELECT b.body FROM queue q JOIN bodies b ON b.seq = coalesce(q.seq, q.id) ORDER BY q.id DESC LIMIT ?")?;
            select.query_map([limit as i64], |r| r.get(0))?.collect::<Result<_, _>>()
        };
        read().map_err(|e| self.error("read the newest events", e))
    }

    /// The newest `limit` events that match, and the number of all that match.
    ///
    /// # Errors
    /// SQLite's.
    pub fn list(&self, filter: &EventFilter, limit: usize) -> Result<EventPage, OutboxError> {
        let read = || {
            let (condition, values) = filter.to_sql(self.conn)?;
            let total: i64 = self.conn.query_row(
                &format!("SELECT count(*) FROM outbox_events e WHERE {condition}"),
                params_from_iter(&values),
                |r| r.get(0),
            )?;
            let rows = self
                .conn
                .prepare(&format!(
                    "SELECT * FROM outbox_events e WHERE {condition} ORDER BY e.seq DESC LIMIT {limit}"
                ))?
                .query_map(params_from_iter(&values), Listed::from_row)?
                .collect::<Result<_, _>>()?;
            Ok(EventPage { rows, total: total as u64 })
        };
        read().map_err(|e| self.error("list events", e))
    }

    /// The settled event of that id, to be sent again; `Ok(Err(state))`: its body is not kept any more, or it is
    /// pending; `None`: there is none.
    ///
    /// # Errors
    /// SQLite's.
    pub fn retained(&self, message_id: &str) -> Result<Option<Result<Retained, State>>, OutboxError> {
        let Some(detail) = self.show(message_id)? else { return Ok(None) };
        let Some(state) = State::parse(&detail.row.state) else { return Ok(None) };
        let Some(body) = detail.body.filter(|_| state != State::Pending) else { return Ok(Some(Err(state))) };
        Ok(Some(Ok(Retained {
            seq: detail.row.seq,
            message_id: MessageId::from_stored(detail.row.message_id),
            spooled_at: detail.spooled_at,
            body,
            state,
        })))
    }

    /// Settled events that match and whose bodies are still kept, oldest first, up to `limit` after the number `after`.
    /// Delivered ones are among them whose bodies are given up as soon as compaction comes to them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn all_retained(
        &self,
        filter: &EventFilter,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Retained>, OutboxError> {
        let read = || {
            let (condition, mut values) = filter.to_sql(self.conn)?;
            values.push(after.into());
            self.conn
                .prepare(&format!(
                    "SELECT e.seq, e.message_id, n.spooled_at, b.body, e.state
                       FROM outbox_events e
                       JOIN events n ON n.seq = e.seq
                       JOIN bodies b ON b.seq = e.seq
                      WHERE {condition} AND e.state <> 'pending' AND e.seq > ? ORDER BY e.seq LIMIT {limit}"
                ))?
                .query_map(params_from_iter(&values), |r| {
                    let state: String = r.get(4)?;
                    Ok(Retained {
                        seq: r.get(0)?,
                        message_id: MessageId::from_stored(r.get(1)?),
                        spooled_at: Timestamp(r.get(2)?),
                        body: r.get(3)?,
                        state: State::parse(&state).unwrap_or(State::Failed),
                    })
                })?
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.error("read events with their bodies", e))
    }

    /// The rows of an event's items that wait. Delivered ones may be among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pending_items(&self, event_seq: i64) -> Result<Vec<QueuedItem>, OutboxError> {
        let items = EventItems { conn: self.conn, seq: event_seq }.pending();
        items.map_err(|e| self.error("read the items of an event", e))
    }

    /// Those of these items that are in the queue, accepted ones among them, under their present ordering keys.
    ///
    /// # Errors
    /// SQLite's.
    pub fn queued_items(&self, seqs: &[i64]) -> Result<Vec<QueuedItem>, OutboxError> {
        let read = || {
            let mut select =
                self.conn.prepare_cached("SELECT ordering_key, owner FROM queue WHERE id = ?")?;
            let mut items = Vec::with_capacity(seqs.len());
            for seq in seqs {
                let item =
                    |r: &Row<'_>| Ok(QueuedItem { seq: *seq, key: OrderingKey(r.get(0)?), owner: r.get(1)? });
                items.extend(select.query_row([seq], item).optional()?);
            }
            Ok(items)
        };
        read().map_err(|e| self.error("read the items of events", e))
    }

    /// Those of these items that are still pending, under their present ordering keys.
    ///
    /// # Errors
    /// SQLite's.
    pub fn still_pending(&self, seqs: &[i64]) -> Result<Vec<QueuedItem>, OutboxError> {
        let mut items = self.queued_items(seqs)?;
        if !items.is_empty() {
            let mut acked = BTreeSet::new();
            let read = each_ack(self.conn, |seq, _| _ = acked.insert(seq));
            read.map_err(|e| self.error("look for delivered events", e))?;
            items.retain(|item| !acked.contains(&item.seq));
        }
        Ok(items)
    }

    /// Everything about the event of that id; `None`: there is none.
    ///
    /// # Errors
    /// SQLite's.
    pub fn show(&self, message_id: &str) -> Result<Option<Detail>, OutboxError> {
        let read = || {
            let Some(seq) = seq_of(self.conn, message_id)? else { return Ok(None) };
            let row = self
                .conn
                .query_row("SELECT * FROM outbox_events WHERE seq = ?", [seq], Listed::from_row)
                .optional()?;
            let Some(row) = row else { return Ok(None) };
            let (spooled_at, body) = self.conn.query_row(
                "SELECT e.spooled_at, b.body FROM events e LEFT JOIN bodies b ON b.seq = e.seq WHERE e.seq = ?",
                [seq],
                |r| Ok((Timestamp(r.get(0)?), r.get(1)?)),
            )?;
            let attempts = self
                .conn
                .prepare("SELECT at, code, reason FROM attempts WHERE seq = ? ORDER BY n")?
                .query_map([seq], |r| {
                    Ok(Attempt { at: Timestamp(r.get(0)?), code: r.get(1)?, text: r.get(2)? })
                })?
                .collect::<Result<_, _>>()?;
            let acceptance = self
                .conn
                .query_row(
                    "SELECT settled_at, status FROM settled WHERE seq = ?1 AND state = 'delivered'
                     UNION ALL SELECT at, status FROM acked WHERE id = ?1 LIMIT 1",
                    [seq],
                    |r| Ok(Acceptance { at: Timestamp(r.get(0)?), status: r.get(1)? }),
                )
                .optional()?;
            Ok(Some(Detail { row, spooled_at, body, attempts, acceptance }))
        };
        read().map_err(|e| self.error("look up an event", e))
    }

    /// Whether an event of that id came, though its row may not stand any more: then it was delivered, or skipped.
    ///
    /// # Errors
    /// SQLite's.
    pub fn is_remembered(&self, message_id: &str) -> Result<bool, OutboxError> {
        let seq = seq_of(self.conn, message_id);
        Ok(seq.map_err(|e| self.error("look up an id", e))?.is_some())
    }

    /// The oldest pending events of the up to `limit` persons that have waited longest, of those that wait since before
    /// `since`. Where the queue is long, a person whose events were never answered may be missing.
    ///
    /// # Errors
    /// SQLite's.
    pub fn longest_waiting(&self, since: Timestamp, limit: usize) -> Result<Vec<WaitingEvent>, OutboxError> {
        let read = || {
            let mut oldest = self
                .conn
                .prepare(OLDEST)?
                .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<Result<BTreeMap<i64, i64>, rusqlite::Error>>()?;
            each_ack(self.conn, |seq, _| {
                oldest.remove(&seq);
            })?;
            let mut keys = BTreeSet::new();
            oldest.retain(|_, key| keys.insert(*key));
            let mut select = self.conn.prepare(
                "SELECT b.person, e.received_at, e.owner, a.code, a.reason
                   FROM queue q
                   JOIN events e ON e.seq = coalesce(q.seq, q.id)
                   JOIN bodies b ON b.seq = e.seq
                   LEFT JOIN attempts a ON a.seq = e.seq AND a.n = (SELECT max(n) FROM attempts WHERE seq = e.seq)
                  WHERE q.id = ? AND e.received_at < ?",
            )?;
            let mut waiting = Vec::new();
            for seq in oldest.into_keys() {
                let event = select.query_row([seq, since.0], |r| {
                    Ok(WaitingEvent {
                        person: r.get(0)?,
                        received_at: Timestamp(r.get(1)?),
                        owner: r.get(2)?,
                        reason: r.get::<_, Option<String>>(3)?.zip(r.get(4)?),
                    })
                });
                waiting.extend(event.optional()?);
                if waiting.len() == limit {
                    break;
                }
            }
            Ok(waiting)
        };
        read().map_err(|e| self.error("look for those who have waited longest", e))
    }

    /// Counts the older events of the same person that a pending event waits for, among the next hundred thousand
    /// before it. Returns the number, and whether these were all.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ahead(&self, seq: i64) -> Result<(u64, bool), OutboxError> {
        self.conn
            .query_row(
                &format!(
                    "SELECT count(*) FILTER (WHERE o.ordering_key = q.ordering_key), count(*)
                       FROM queue q
                       JOIN (SELECT ordering_key FROM queue
                              WHERE id < ?1 AND id NOT IN (SELECT id FROM acked)
                              ORDER BY id DESC LIMIT {MAX_READ_AHEAD}) o
                      WHERE q.id = (SELECT min(id) FROM queue WHERE id = ?1 OR seq = ?1)"
                ),
                [seq],
                |r| Ok((r.get::<_, i64>(0)? as u64, (r.get::<_, i64>(1)? as u64) < MAX_READ_AHEAD)),
            )
            .map_err(|e| self.error("count the events before an event", e))
    }
}

/// The number of the event of that id, if its row may still stand.
fn seq_of(conn: &Connection, message_id: &str) -> Result<Option<i64>, rusqlite::Error> {
    let unsealed: Option<i64> =
        conn.prepare_cached(SEQ_OF_UNSEALED)?.query_row([message_id], |r| r.get(0)).optional()?;
    match unsealed {
        Some(seq) => Ok(Some(seq)),
        None => Ok(IdIndex::find_stored(conn, &hash_id_text(message_id))?.map(|known| known.seq)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::fixture;

    #[test]
    fn an_event_is_found_without_scanning_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let tables = fixture::tables(dir.path());
        let by_seq = "SELECT * FROM outbox_events WHERE seq = ?";
        for sql in [SEQ_OF_UNSEALED, by_seq, "SELECT id FROM queue WHERE seq = ?"] {
            let plan = fixture::query_plan(&tables, sql);
            let scans = |table| plan.lines().any(|step| step.trim().starts_with(&format!("SCAN {table}")));
            let tables = ["q", "e", "s", "b", "queue", "events", "settled"];
            assert!(!tables.into_iter().any(scans), "{sql}\n{plan}");
            assert!(plan.contains("SEARCH"), "{sql}\n{plan}");
        }
    }
}
