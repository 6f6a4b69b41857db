//! How a person is erased: every row that names them, and the bytes of it.

use super::ids::short_hash;
use super::person::PersonKey;
use super::row::{NewEvent, State};
use super::store::{RETRY_REQUESTS, Store};
use super::{Admin, OutboxError, Reader};
use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use crate::subject::{self, Subject};
use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Marks a fact about the outbox as the keyed hash of somebody who is kept out.
pub(super) const SUPPRESSED: &str = "erased ";
/// A fact that is there for a moment, to take up room.
const FILLER: &str = "filler";
/// Events looked at in one read, and erased in one transaction: a running agent waits no longer for it.
const AT_ONCE: usize = 500;
/// How long the log may take to be emptied while others read.
const TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Its state.
    pub state: State,
    /// When it was stored.
    pub received_at: Timestamp,
    /// When it was settled; of a delivered event when Koala took it.
    pub settled_at: Option<Timestamp>,
}

impl Reader {
    /// The events that name the person, in the order of the spool: told by their bodies, or where these are gone by what
    /// is remembered of them, which is the email or the profile id that they were sent under.
    ///
    /// # Errors
    /// SQLite's.
    pub fn of_subject(&self, subject: &Subject) -> Result<Vec<EventReference>, OutboxError> {
        let mut found = BTreeMap::new();
        // In the order in which events move: none is overlooked that is settled meanwhile.
        for rows in [PENDING, SETTLED] {
            let mut after = 0;
            while let Some(last) = self
                .page(rows, subject, after, &mut found)
                .map_err(|e| self.error("look for a person's events", e))?
            {
                after = last;
            }
        }
        Ok(found.into_values().collect())
    }

    /// Looks at some rows, and returns where the next ones begin.
    fn page(
        &self,
        rows: &str,
        subject: &Subject,
        after: i64,
        found: &mut BTreeMap<i64, EventReference>,
    ) -> Result<Option<i64>, rusqlite::Error> {
        let known_as = known_as(self, subject)?;
        let mut select = self.connection().prepare_cached(rows)?;
        let mut rows = select.query(params![after, AT_ONCE as i64])?;
        let mut last = None;
        while let Some(r) = rows.next()? {
            last = Some(r.get("row")?);
            let (person, body): (Option<String>, Option<String>) = (r.get("person")?, r.get("body")?);
            let texts: [Option<String>; 3] = [r.get("message_id")?, r.get("event")?, r.get("reason")?];
            let file: String = r.get("file")?;
            let named = person.is_some() && person == known_as
                || body.is_some_and(|body| subject.is_named_in(&body))
                || subject.is_in_file_name(&file)
                || texts.iter().flatten().any(|text| subject.has_address_in(text));
            if !named {
                continue;
            }
            let [message_id, event, ..] = texts;
            let (seq, state): (i64, String) = (r.get("seq")?, r.get("state")?);
            let named = EventReference {
                seq,
                message_id: message_id.unwrap_or_default(),
                kind: r.get("type")?,
                event,
                state: State::parse(&state).unwrap_or(State::Failed),
                received_at: Timestamp(r.get("received_at")?),
                settled_at: r.get::<_, Option<i64>>("settled_at")?.map(Timestamp),
            };
            found.insert(seq, named);
        }
        Ok(last)
    }
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

/// As whom an event is remembered that was sent for the person and has no body any more.
fn known_as(reader: &Reader, subject: &Subject) -> Result<Option<String>, rusqlite::Error> {
    let key = PersonKey::read(reader.connection())?;
    Ok(match subject {
        Subject::Email(text) | Subject::ProfileId(text) => key.map(|key| key.hashed(text)),
        Subject::UserId(_) => None,
    })
}

impl Admin {
    /// From now on what names the person is not stored: it is skipped with code `erased`, and nothing of it kept.
    ///
    /// # Errors
    /// SQLite's.
    pub fn suppress(&mut self, subject: &Subject, now: Timestamp) -> Result<(), OutboxError> {
        self.store.transaction(|store| store.set_meta(&store.ack_of(&subject.key()), now.0))
    }

    /// Lets the person's events be stored again. Returns whether they were kept out.
    ///
    /// # Errors
    /// SQLite's.
    pub fn unsuppress(&mut self, subject: &Subject) -> Result<bool, OutboxError> {
        self.store.transaction(|store| {
            let mark = store.ack_of(&subject.key());
            Ok(store.cached("DELETE FROM meta WHERE name = ?")?.execute([mark])? > 0)
        })
    }

    /// Erases events, whatever their state, and wakes a running agent. After [`Admin::overwrite`] nothing of them is in
    /// any file of the outbox.
    ///
    /// # Errors
    /// SQLite's; then some are erased.
    pub fn erase(&mut self, subject: &Subject, events: &[EventReference]) -> Result<(), OutboxError> {
        for some in events.chunks(AT_ONCE) {
            self.store.transaction(|store| {
                store.tidy_up()?;
                some.iter().try_for_each(|event| store.erase(event))?;
                store.bump(RETRY_REQUESTS)
            })?;
        }
        self.store.transaction(|store| store.forget_names(subject))
    }

    /// Writes the database anew and empties the write-ahead log: also what SQLite leaves of old rows in the gaps of its
    /// pages is gone then. It takes as long as copying the database, and a running agent stores nothing meanwhile.
    /// `false`: somebody reads for so long that the log still has what was erased.
    ///
    /// # Errors
    /// SQLite's, such as that there is no room for the copy.
    pub fn overwrite(&mut self) -> Result<bool, OutboxError> {
        let anew = self.store.conn.execute_batch("PRAGMA temp_store = FILE; VACUUM");
        anew.map_err(|e| self.store.error("write it anew", e))?;
        Ok(self.store.checkpoint(TIMEOUT)? && self.store.fill_room()?)
    }
}

impl Store {
    /// Writes zeros over the room that the database's file has beyond its pages. `false`: somebody reads for too long.
    fn fill_room(&mut self) -> Result<bool, OutboxError> {
        let length = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        let room = length.saturating_sub(self.size()?.0) as i64;
        self.transaction(|store| {
            store
                .cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?, zeroblob(?))")?
                .execute(params![FILLER, room])
        })?;
        // Before the zeros are in the file, their pages may not become free: a running agent would cut them off.
        let written = self.checkpoint(TIMEOUT);
        self.transaction(|store| store.cached("DELETE FROM meta WHERE name = ?")?.execute([FILLER]))?;
        Ok(written? && self.checkpoint(TIMEOUT)?)
    }

    /// Files that are taken are known by their identity until they are gone from the folder: their names may go.
    fn forget_names(&mut self, subject: &Subject) -> Result<(), rusqlite::Error> {
        let mut taken = self.cached("SELECT DISTINCT name FROM spool_files WHERE finished = 1")?;
        let names = taken.query_map([], |r| r.get(0))?.collect::<Result<Vec<Vec<u8>>, _>>()?;
        for name in names.iter().filter(|name| subject.is_in_file_name(&String::from_utf8_lossy(name))) {
            self.cached("UPDATE spool_files SET name = x'' WHERE finished = 1 AND name = ?")?
                .execute([name])?;
        }
        Ok(())
    }

    pub(super) fn ack_of(&self, name: &str) -> String {
        format!("{SUPPRESSED}{}", self.person_key.hashed(name))
    }

    /// Since when the event's person is kept out, if they are.
    pub(super) fn suppressed(&self, body: &str) -> Result<Option<Timestamp>, rusqlite::Error> {
        let Ok(event) = Event::parse(body) else { return Ok(None) };
        let mut since = self.cached("SELECT value FROM meta WHERE name = ?")?;
        for name in subject::subject_keys(&event) {
            if let Some(since) = since.query_row([self.ack_of(&name)], |r| r.get(0)).optional()? {
                return Ok(Some(Timestamp(since)));
            }
        }
        Ok(None)
    }

    /// Whether anybody is kept out.
    pub(super) fn suppresses_anybody(&self) -> Result<bool, rusqlite::Error> {
        self.cached("SELECT EXISTS (SELECT 1 FROM meta WHERE name GLOB ?)")?
            .query_row([format!("{SUPPRESSED}*")], |r| r.get(0))
    }

    /// What is remembered of an event whose person is kept out: no word of it, and no id that may be an address.
    pub(super) fn redacted(&self, event: &NewEvent, since: Timestamp) -> NewEvent {
        let id = &event.message_id;
        NewEvent {
            message_id: match id.as_str().contains('@') {
                true => MessageId::from_stored(self.person_key.hashed(id.as_str())),
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
        }
    }

    /// All rows of one event.
    fn erase(&mut self, event: &EventReference) -> Result<(), rusqlite::Error> {
        let seq = event.seq;
        let (state, code) = match self.settled_state(seq)? {
            Some((state, code)) => (state, code),
            None => (State::Pending, ""),
        };
        let mut rows = 0;
        for sql in
            ["DELETE FROM pending WHERE seq = ?1 OR event_seq = ?1", "DELETE FROM settled WHERE seq = ?"]
        {
            rows += self.cached(sql)?.execute([seq])?;
        }
        for table in ["settled_items", "bodies", "attempts"] {
            self.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
        }
        // The id as it was given may be forgotten already.
        self.forget_id(&short_hash(&event.message_id), seq)?;
        if rows > 0 {
            self.counted.add(state.as_str(), code, -1);
        }
        Ok(())
    }
}
