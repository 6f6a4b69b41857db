//! The search for all events that name a person.

use super::OutboxError;
use super::reader::Reader;
use super::retention::PersonKey;
use super::row::State;
use crate::clock::Timestamp;
use crate::subject::{NamingParts, Subject};
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use std::collections::BTreeMap;

/// Rows that are read at once, so that the snapshot of a search does not keep the log from being copied for long.
const ROWS_AT_ONCE: usize = 500;

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

const EVENTS: &str = "SELECT e.seq, e.message_id, e.type, e.event, coalesce(s.state, 'pending') AS state,
                             e.person, e.file, s.reason, e.received_at, s.settled_at, b.body
                        FROM events e
                        LEFT JOIN settled s ON s.seq = e.seq
                        LEFT JOIN bodies b ON b.seq = e.seq
                       WHERE e.seq > ? ORDER BY e.seq LIMIT ?";

impl EventReference {
    /// Finds the events that name the person, in the order of the spool: by any of their [`NamingParts`], or by the
    /// email or the profile id that the event is sent for, of which a hash is kept.
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

/// The identities of ingested files whose names are of that kind. The files are known by them until they are gone from the
/// spool.
///
/// # Errors
/// SQLite's.
pub fn finished_files(
    reader: &Reader,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(i64, i64, i64)>, OutboxError> {
    let read = || {
        let mut select = reader.connection().prepare(
            "SELECT inode, born, modified, name FROM spool_files WHERE finished = 1 AND name <> x''",
        )?;
        let mut rows = select.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            if is_wanted(&String::from_utf8_lossy(row.get_ref(3)?.as_blob()?)) {
                found.push((row.get(0)?, row.get(1)?, row.get(2)?));
            }
        }
        Ok(found)
    };
    read().map_err(|e: rusqlite::Error| reader.error("look for files that are named after a person", e))
}

struct SubjectSearch<'a> {
    conn: &'a Connection,
    subject: &'a Subject,
    found: BTreeMap<i64, EventReference>,
}

impl SubjectSearch<'_> {
    fn run(&mut self) -> Result<(), rusqlite::Error> {
        let mut after = 0;
        while let Some(last) = self.search_page(after)? {
            after = last;
        }
        Ok(())
    }

    /// Searches some rows, and returns the last of them.
    fn search_page(&mut self, after: i64) -> Result<Option<i64>, rusqlite::Error> {
        let hash = self.person_hash()?;
        let mut select = self.conn.prepare_cached(EVENTS)?;
        let mut rows = select.query(params![after, ROWS_AT_ONCE as i64])?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            last = Some(row.get("seq")?);
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
        let parts = NamingParts {
            body: body.as_deref(),
            file: &file,
            texts: texts.iter().flatten().map(String::as_str).collect(),
            // Of whom it is sent for, only the hash is kept.
            profile_ids: Vec::new(),
        };
        Ok(person.is_some() && person.as_deref() == hash || parts.name(self.subject))
    }

    /// The hash that is kept of whom an event is sent for, if it is the subject.
    fn person_hash(&self) -> Result<Option<String>, rusqlite::Error> {
        let Some(name) = self.subject.sent_as() else { return Ok(None) };
        Ok(PersonKey::read(self.conn)?.map(|key| key.hash(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::outbox::fixture::{config, event};
    use crate::outbox::{Change, Outbox, Work};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Instructions of SQLite's between two counts.
    const STRIDE: usize = 10;

    /// The number of events found, and of SQLite's instructions for that.
    fn cost_of_search(outbox: &Outbox, ana: &Subject) -> (Vec<i64>, usize) {
        let mut conn = Connection::open(outbox.path()).unwrap();
        let steps = Arc::new(AtomicUsize::new(0));
        let count = steps.clone();
        let handler = move || {
            count.fetch_add(STRIDE, Relaxed);
            false
        };
        conn.progress_handler(STRIDE as i32, Some(handler)).unwrap();
        let mut search = SubjectSearch { conn: &conn, subject: ana, found: BTreeMap::new() };
        search.run().unwrap();
        (search.found.into_keys().collect(), steps.load(Relaxed))
    }

    #[test]
    fn a_search_grows_with_the_events_that_it_looks_at() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let ana = Subject::Email("ana@acme.dev".to_owned());
        let mut before = None;
        let mut stored = 0;
        for many in [2_000, 4_000, 8_000] {
            let new: Vec<_> = (stored..many)
                .map(|n| {
                    let email = if n % 100 == 0 { "ana" } else { "bo" };
                    event(
                        format!("m-{n}"),
                        format!(r#"{{"type":"track","properties":{{"email":"{email}@acme.dev"}}}}"#),
                    )
                })
                .collect();
            outbox.writer.append(new, vec![]).block().unwrap();
            stored = many;
            let (found, steps) = cost_of_search(&outbox, &ana);
            assert_eq!(found.len(), many / 100);
            if let Some(before) = before.replace(steps) {
                assert!(
                    before > 0 && steps < before * 9 / 4,
                    "{before} steps, and {steps} for twice the events"
                );
            }
        }
        let erase = Work::Erase {
            events: cost_of_search(&outbox, &ana).0,
            unanswered: Vec::new(),
            in_flight: Vec::new(),
        };
        outbox.writer.change(Change { work: erase, of: None, is_last: false }).block().unwrap();
        assert!(cost_of_search(&outbox, &ana).0.is_empty());
        outbox.close();
    }
}
