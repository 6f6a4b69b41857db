//! Persons whose events are not stored: each is a fact in `meta` under a keyed hash of the person's name.

use super::OutboxError;
use super::meta::{self, SUPPRESSED};
use super::reader::Reader;
use super::retention::PersonKey;
use super::row::NewEvent;
use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use crate::subject::{self, Subject};
use rusqlite::Connection;
use serde::Serialize;
use std::sync::Arc;

/// A person whose events are not stored, as the outbox knows it.
#[derive(Debug, Serialize)]
pub struct SuppressedPerson {
    /// The keyed hash of the person's name; the name is not kept.
    pub hash: String,
    /// When the person was erased.
    pub since: Timestamp,
}

impl SuppressedPerson {
    /// All of them, or that one, if it is one of them; the first that was erased comes first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn find(reader: &Reader, subject: Option<&Subject>) -> Result<Vec<SuppressedPerson>, OutboxError> {
        let found = SuppressedPerson::select(reader.connection(), subject);
        found.map_err(|e| reader.error("list the persons that were erased", e))
    }

    fn select(
        conn: &Connection,
        subject: Option<&Subject>,
    ) -> Result<Vec<SuppressedPerson>, rusqlite::Error> {
        let hash = match subject {
            None => "*".to_owned(),
            Some(subject) => match PersonKey::read(conn)? {
                Some(key) => key.hash(&subject.key()),
                None => return Ok(Vec::new()),
            },
        };
        conn.prepare_cached("SELECT name, value FROM meta WHERE name GLOB ? ORDER BY value, name")?
            .query_map([format!("{SUPPRESSED}{hash}")], |row| {
                let name: String = row.get(0)?;
                let hash = name.strip_prefix(SUPPRESSED).unwrap_or(&name).to_owned();
                Ok(SuppressedPerson { hash, since: Timestamp(row.get(1)?) })
            })?
            .collect()
    }
}

/// The list of suppressed persons.
pub(super) struct Suppression<'a> {
    pub(super) conn: &'a Connection,
    pub(super) person_key: &'a PersonKey,
}

impl Suppression<'_> {
    pub(super) fn add(&self, subject: &Subject, now: Timestamp) -> Result<(), rusqlite::Error> {
        meta::set(self.conn, &self.fact(&subject.key()), now.0)
    }

    /// Returns whether the person was suppressed.
    pub(super) fn remove(&self, subject: &Subject) -> Result<bool, rusqlite::Error> {
        meta::remove(self.conn, &self.fact(&subject.key()))
    }

    /// Whether anybody is suppressed; if not, no event needs to be parsed.
    pub(super) fn is_in_use(&self) -> Result<bool, rusqlite::Error> {
        self.conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM meta WHERE name GLOB ?)")?
            .query_row([format!("{SUPPRESSED}*")], |r| r.get(0))
    }

    /// Replaces an event that names a suppressed person by one without content, and without an id that may be an email
    /// address. `None`: the event names nobody who is suppressed.
    pub(super) fn redact(&self, event: &NewEvent) -> Result<Option<NewEvent>, rusqlite::Error> {
        let Some(since) = self.since(&event.body)? else { return Ok(None) };
        let id = &event.message_id;
        Ok(Some(NewEvent {
            message_id: match id.as_str().contains('@') {
                true => MessageId::from_stored(self.person_key.hash(id.as_str())),
                false => id.clone(),
            },
            name: None,
            file: Arc::from(""),
            body: String::new(),
            disposition: Disposition::Skip(Reason::new(
                Code::Erased,
                format!("its person was erased at {since}"),
            )),
            ..event.clone()
        }))
    }

    /// The time since when a person whom the event names is suppressed.
    fn since(&self, body: &str) -> Result<Option<Timestamp>, rusqlite::Error> {
        let Ok(event) = Event::parse(body) else { return Ok(None) };
        for name in subject::subject_keys(&event) {
            if let Some(since) = meta::get(self.conn, &self.fact(&name))? {
                return Ok(Some(Timestamp(since)));
            }
        }
        Ok(None)
    }

    fn fact(&self, name: &str) -> String {
        format!("{SUPPRESSED}{}", self.person_key.hash(name))
    }
}
