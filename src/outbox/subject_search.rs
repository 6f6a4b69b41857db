//! The search for all events that name a person.

use super::OutboxError;
use super::reader::Reader;
use super::retention::PersonKey;
use super::row::State;
use crate::clock::Timestamp;
use crate::subject::Subject;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use std::collections::BTreeMap;

/// Rows that are read at once by a search and erased in one transaction, so that a running agent does not wait long.
pub(super) const ROWS_AT_ONCE: usize = 500;

/// An event that names a person.
#[derive(Debug, Clone, Serialize)]
pub struct EventReference {
    /// The order of the spool.
    #[serde(skip)]
    pub seq: i64,
    /// The event's id.
    pub message_id: String,
    /// Segment's `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The `event` of a track.
    pub event: Option<String>,
    /// The event's state.
    pub state: State,
    /// When the event was stored.
    pub received_at: Timestamp,
    /// When the event was settled; of a delivered event, when Koala accepted it.
    pub settled_at: Option<Timestamp>,
}

const PENDING: &str =
    "SELECT seq AS row, coalesce(event_seq, seq) AS seq, message_id, type, event, 'pending' AS state,
                              person, file, NULL AS reason, received_at, NULL AS settled_at, body
                         FROM pending WHERE seq > ? ORDER BY seq LIMIT ?";
const SETTLED: &str =
    "SELECT s.seq AS row, s.seq, s.message_id, s.type, s.event, s.state, s.person, s.file, s.reason,
                              s.received_at, s.settled_at, b.body
                         FROM settled s LEFT JOIN bodies b ON b.seq = s.seq
                        WHERE s.seq > ? ORDER BY s.seq LIMIT ?";

impl EventReference {
    /// Finds the events that name the person, in the order of the spool: by their bodies, or, where a body is erased,
    /// by the email or the profile id that the event was sent under.
    ///
    /// # Errors
    /// SQLite's.
    pub fn find_all(reader: &Reader, subject: &Subject) -> Result<Vec<EventReference>, OutboxError> {
        let mut search = SubjectSearch { conn: reader.connection(), subject, found: BTreeMap::new() };
        let searched = search.run();
        searched.map_err(|e| reader.error("search for a person's events", e))?;
        Ok(search.found.into_values().collect())
    }

    fn from_row(row: &Row<'_>) -> Result<EventReference, rusqlite::Error> {
        let state: String = row.get("state")?;
        Ok(EventReference {
            seq: row.get("seq")?,
            message_id: row.get("message_id")?,
            kind: row.get("type")?,
            event: row.get("event")?,
            state: State::parse(&state).unwrap_or(State::Failed),
            received_at: Timestamp(row.get("received_at")?),
            settled_at: row.get::<_, Option<i64>>("settled_at")?.map(Timestamp),
        })
    }
}

struct SubjectSearch<'a> {
    conn: &'a Connection,
    subject: &'a Subject,
    found: BTreeMap<i64, EventReference>,
}

impl SubjectSearch<'_> {
    fn run(&mut self) -> Result<(), rusqlite::Error> {
        // Events move from `pending` to `settled`: in this order, none is missed that is settled meanwhile.
        for sql in [PENDING, SETTLED] {
            let mut after = 0;
            while let Some(last) = self.search_page(sql, after)? {
                after = last;
            }
        }
        Ok(())
    }

    /// Searches some rows, and returns the last of them.
    fn search_page(&mut self, sql: &str, after: i64) -> Result<Option<i64>, rusqlite::Error> {
        let hash = self.person_hash()?;
        let mut select = self.conn.prepare_cached(sql)?;
        let mut rows = select.query(params![after, ROWS_AT_ONCE as i64])?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            last = Some(row.get("row")?);
            if self.names_subject(row, hash.as_deref())? {
                let event = EventReference::from_row(row)?;
                self.found.insert(event.seq, event);
            }
        }
        Ok(last)
    }

    fn names_subject(&self, row: &Row<'_>, hash: Option<&str>) -> Result<bool, rusqlite::Error> {
        let (person, body): (Option<String>, Option<String>) = (row.get("person")?, row.get("body")?);
        let texts: [Option<String>; 3] = [row.get("message_id")?, row.get("event")?, row.get("reason")?];
        let file: String = row.get("file")?;
        Ok(person.is_some() && person.as_deref() == hash
            || body.is_some_and(|body| self.subject.is_named_in(&body))
            || self.subject.is_in_file_name(&file)
            || texts.iter().flatten().any(|text| self.subject.has_address_in(text)))
    }

    /// The hash that is kept of an event that was sent for the person, once its body is erased.
    fn person_hash(&self) -> Result<Option<String>, rusqlite::Error> {
        let key = PersonKey::read(self.conn)?;
        Ok(match self.subject {
            Subject::Email(name) | Subject::ProfileId(name) => key.map(|key| key.hash(name)),
            Subject::UserId(_) => None,
        })
    }
}
