//! Persons whose events are not stored, by keyed hashes of their names.
//!
//! Events are redacted where they are handed over, on the intake's thread: to look for the names in an event, it has to be
//! parsed, and everybody's commits would wait for that in the writer's transaction. So the writer publishes the set under
//! a version, and refuses an append that was redacted by an older one: it is redacted again. No event of a person is
//! stored once the commit that suppresses the person has returned.

use super::OutboxError;
use super::reader::Reader;
use super::retention::PersonKey;
use super::row::NewEvent;
use crate::clock::Timestamp;
use crate::event::MessageId;
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use crate::subject::{self, Subject};
use rusqlite::{Connection, params};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
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
            None => None,
            Some(subject) => match PersonKey::read(conn)? {
                Some(key) => Some(key.hash(&subject.key())),
                None => return Ok(Vec::new()),
            },
        };
        conn.prepare_cached(
            "SELECT hash, since FROM suppressed WHERE hash = ?1 OR ?1 IS NULL ORDER BY since, hash",
        )?
        .query_map([hash], |row| Ok(SuppressedPerson { hash: row.get(0)?, since: Timestamp(row.get(1)?) }))?
        .collect()
    }
}

/// The suppressed persons at one time.
#[derive(Clone)]
pub struct Suppression {
    /// Two sets with the same number are the same, as long as the writer lives.
    version: u64,
    persons: HashMap<String, Timestamp>,
    key: PersonKey,
}

impl Suppression {
    /// Nobody.
    pub(super) fn new(key: PersonKey) -> Suppression {
        Suppression { version: 0, persons: HashMap::new(), key }
    }

    /// Reads the set again. If it is another one, it gets another version.
    pub(super) fn load(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        let mut select = conn.prepare_cached("SELECT hash, since FROM suppressed")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, Timestamp(row.get(1)?))))?;
        let persons: HashMap<String, Timestamp> = rows.collect::<Result<_, rusqlite::Error>>()?;
        if persons != self.persons {
            self.persons = persons;
            self.version += 1;
        }
        Ok(())
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Suppresses the person of that hash from now on.
    pub(super) fn add(
        &mut self,
        conn: &Connection,
        hash: &str,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        conn.prepare_cached("INSERT OR REPLACE INTO suppressed (hash, since) VALUES (?, ?)")?
            .execute(params![hash, now.0])?;
        self.load(conn)
    }

    /// Returns whether the person was suppressed.
    pub(super) fn remove(&mut self, conn: &Connection, hash: &str) -> Result<bool, rusqlite::Error> {
        let removed = conn.prepare_cached("DELETE FROM suppressed WHERE hash = ?")?.execute([hash])?;
        self.load(conn)?;
        Ok(removed > 0)
    }

    /// Replaces the events that name a suppressed person by ones without content. Where there are none, no event is copied.
    pub(super) fn redact(&self, events: Arc<Vec<NewEvent>>) -> Arc<Vec<NewEvent>> {
        if self.persons.is_empty() {
            return events;
        }
        let redacted = |(index, event): (usize, &NewEvent)| Some((index, self.redacted(event)?));
        let redacted: Vec<(usize, NewEvent)> = events.iter().enumerate().filter_map(redacted).collect();
        if redacted.is_empty() {
            return events;
        }
        let mut all = Vec::clone(&events);
        redacted.into_iter().for_each(|(index, event)| all[index] = event);
        Arc::new(all)
    }

    /// The event without content, and without an id that may be an email address: a hash stands for it, by which the same
    /// event is recognised if it comes again. `None`: it names nobody who is suppressed.
    fn redacted(&self, event: &NewEvent) -> Option<NewEvent> {
        let since = self.since(event)?;
        let id = &event.message_id;
        Some(NewEvent {
            message_id: match subject::may_hold_address(id.as_str()) {
                true => MessageId::from_stored(self.key.hash(id.as_str())),
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
        })
    }

    /// The time since when a person whom the event names is suppressed.
    fn since(&self, event: &NewEvent) -> Option<Timestamp> {
        let names = event.naming_parts().keys();
        names.iter().find_map(|name| self.persons.get(&self.key.hash(name)).copied())
    }
}

/// The event under a hash of its id and its content: the same for the same event whenever it comes, and no other's.
pub(super) fn under_own_id(event: &NewEvent, key: &PersonKey) -> NewEvent {
    let digest = u64::from_be_bytes(event.digest.to_bytes());
    let text = format!("{digest:016x} {}", event.message_id.as_str());
    NewEvent { message_id: MessageId::from_stored(key.hash(&text)), ..event.clone() }
}

impl fmt::Debug for Suppression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} suppressed persons, version {}", self.persons.len(), self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::event::Digest;
    use crate::item::{Disposition, Keying, OrderingKey, Person};
    use crate::outbox::fixture::{self, config, event};
    use crate::outbox::{Addressee, Appended, Change, NewEvent, Outbox, Reader, Work};
    use crate::reason::{Code, Reason};
    use crate::subject::Subject;

    fn naming(id: &str, email: &str) -> NewEvent {
        event(id.to_owned(), format!(r#"{{"type":"track","properties":{{"email":"{email}"}}}}"#))
    }

    #[test]
    fn an_event_that_was_on_its_way_when_its_person_was_suppressed_is_not_stored_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let reader = Reader::open_in_process(outbox.path()).unwrap();
        let ana = Subject::Email("ana@acme.dev".to_owned());
        let hash = reader.hash_of(&ana.key()).unwrap().unwrap();
        let suppress = Change { work: Work::Suppress(hash.clone()), of: None, is_last: false };
        // All are handed over before the writer has made the first change.
        let mut outdated = 0;
        for n in 0..50 {
            let suppressed = outbox.writer.change(suppress.clone());
            let id = format!("ana@acme.dev-{n}");
            let appended = outbox.writer.append(vec![naming(&id, "Ana@acme.dev")], vec![]).block().unwrap();
            suppressed.block().unwrap();
            let unsuppress = Change { work: Work::Unsuppress(hash.clone()), of: None, is_last: false };
            match appended {
                Appended::Outdated => outdated += 1,
                // It was redacted, as it was handed over after the change.
                Appended::Stored { enqueued, .. } => assert!(enqueued.items.is_empty(), "{n} is to be sent"),
                Appended::Reused(reused) => panic!("{reused:?}"),
            }
            outbox.writer.change(unsuppress).block().unwrap();
        }
        assert!(outdated > 0, "no append was on its way");
        outbox.writer.change(suppress).block().unwrap();
        for (id, email, code) in [("x@y", "ana@acme.dev", Some("erased")), ("b", "ben@acme.dev", None)] {
            let event = naming(id, email);
            assert!(matches!(
                outbox.writer.append(vec![event.clone()], vec![]).block().unwrap(),
                Appended::Stored { stored: 1, .. }
            ));
            let again = outbox.writer.append(vec![event], vec![]).block().unwrap();
            assert!(matches!(again, Appended::Stored { duplicates: 1, .. }), "{again:?}");
            let rows = reader.events().list(&crate::outbox::EventFilter::default(), 1).unwrap().rows;
            assert_eq!(rows[0].reason_code.as_deref(), code);
            assert_eq!(rows[0].message_id.contains('@'), code.is_none() && id.contains('@'));
        }
        outbox.close();
    }

    #[test]
    fn whatever_a_search_finds_an_event_by_keeps_it_out() {
        let dir = tempfile::tempdir().unwrap();
        let key = fixture::tables(dir.path()).retention.person_key.clone();
        let subjects = [Subject::Email("ana@acme.dev".to_owned()), Subject::ProfileId("7".to_owned())];
        let addressed = |person: Option<Person>| {
            let disposition = fixture::to_send(OrderingKey(0), "p").map(|mut items| {
                let person = person.unwrap();
                items[0].disposition = Disposition::Send(Addressee {
                    ordering_key: OrderingKey(0),
                    keying: Keying::default(),
                    person,
                });
                items
            });
            NewEvent { disposition, ..naming("addressed", "bo@acme.dev") }
        };
        let failed = Disposition::Fail(Reason::new(Code::NoMapping, "no place for ana@acme.dev"));
        let of_bo = || naming("", "bo@acme.dev");
        let events = [
            (naming("body", "Ana@acme.dev"), [true, false]),
            (naming("ana@acme.dev-2", "bo@acme.dev"), [false, false]),
            (naming("ana@acme.dev", "bo@acme.dev"), [true, false]),
            (naming("ana%40acme.dev", "bo@acme.dev"), [true, false]),
            (NewEvent { name: Some("Asked ana@acme.dev".into()), ..of_bo() }, [true, false]),
            (NewEvent { file: "ana@acme.dev.json".into(), ..of_bo() }, [true, false]),
            (NewEvent { disposition: failed, ..of_bo() }, [true, false]),
            (addressed(Person::of(None, Some("\"Ana@acme.dev\""))), [true, false]),
            (addressed(Person::of(Some("\"ana@acme.dev\""), None)), [true, false]),
            (addressed(Person::of(Some("7"), None)), [false, true]),
            // An account of that number is somebody else.
            (addressed(Person::of_account(None, Some("7"))), [false, false]),
        ];
        for (n, subject) in subjects.iter().enumerate() {
            let mut suppression = Suppression::new(key.clone());
            suppression.persons.insert(key.hash(&subject.key()), Timestamp(1));
            for (event, is_of) in &events {
                let redacted = suppression.redact(vec![event.clone()].into());
                assert_eq!(redacted[0].body.is_empty(), is_of[n], "{subject}: {event:?}");
                if is_of[n] {
                    assert!(!redacted[0].naming_parts().name(subject), "{redacted:?}");
                }
            }
        }
    }

    #[test]
    fn an_event_of_a_suppressed_person_that_comes_again_is_a_duplicate_wherever_its_id_stands() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let events = || vec![naming("ana@acme.dev-1", "ana@acme.dev"), naming("a", "ana@acme.dev")];
        let append = |outbox: &Outbox| match outbox.writer.append(events(), vec![]).block().unwrap() {
            Appended::Stored { stored, duplicates, .. } => (stored, duplicates),
            other => panic!("{other:?}"),
        };
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        let ana = Subject::Email("ana@acme.dev".to_owned());
        let hash = Reader::open_in_process(outbox.path()).unwrap().hash_of(&ana.key()).unwrap().unwrap();
        let suppress = Change { work: Work::Suppress(hash), of: None, is_last: false };
        outbox.writer.change(suppress).block().unwrap();
        assert_eq!([append(&outbox), append(&outbox)], [(2, 0), (0, 2)]);
        outbox.close();

        let mut tables = fixture::tables(dir.path());
        let unsealed = tables.transaction(|tables| Ok(!tables.ids.is_indexed())).unwrap();
        assert!(unsealed, "a restart reads the ids from the rows");
        drop(tables);
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        assert_eq!(append(&outbox), (0, 2));
        outbox.close();

        let mut tables = fixture::tables(dir.path());
        tables.transaction(|tables| tables.ids.index_all(&tables.store.conn, tables.next_seq - 1)).unwrap();
        assert_eq!(tables.ids.indexed(), 2);
        drop(tables);
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        assert_eq!(append(&outbox), (0, 2));
        outbox.close();
    }

    /// A reused id has the event rejected, text and all, if its person is not erased.
    #[test]
    fn an_event_of_a_suppressed_person_that_reuses_an_id_is_kept_out_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let reader = Reader::open_in_process(outbox.path()).unwrap();
        let other = |n: u8, email| NewEvent { digest: Digest::from_bytes([n; 8]), ..naming("a", email) };
        let append = |events| outbox.writer.append(events, vec![]).block().unwrap();
        append(vec![naming("a", "bo@acme.dev")]);
        let ana = Subject::Email("ana@acme.dev".to_owned());
        let hash = reader.hash_of(&ana.key()).unwrap().unwrap();
        let suppress = Change { work: Work::Suppress(hash), of: None, is_last: false };
        outbox.writer.change(suppress).block().unwrap();
        let two = || vec![other(1, "ana@acme.dev"), other(2, "ana@acme.dev"), other(1, "ana@acme.dev")];
        for (events, want) in [(two(), (2, 1)), (two(), (0, 3))] {
            match append(events) {
                Appended::Stored { stored, duplicates, .. } => assert_eq!((stored, duplicates), want),
                appended => panic!("{appended:?}"),
            }
        }
        let rows = reader.events().list(&crate::outbox::EventFilter::default(), 9).unwrap().rows;
        let codes: Vec<_> = rows.iter().map(|row| row.reason_code.as_deref()).collect();
        assert_eq!(codes, [Some("erased"), Some("erased"), None]);
        assert!(matches!(append(vec![other(3, "bo@acme.dev")]), Appended::Reused(_)));
        outbox.close();
    }
}
