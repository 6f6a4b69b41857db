//! How events come into the outbox: all of an append or none of it, and none of them twice.

use super::dedup::{IdHash, hash_id};
use super::items::EventItems;
use super::row::{Addressee, NewEvent, NewItem, QueuedItem, Settled, State};
use super::spool_progress::FileProgress;
use super::store::Store;
use crate::clock::Timestamp;
use crate::event::Digest;
use crate::item::Disposition;
use rusqlite::{OptionalExtension, params};

/// The result of [`Writer::append`](super::Writer::append).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// All events are on the disk, duplicates since an earlier append.
    Stored {
        /// Events that are new.
        stored: u64,
        /// Events that were stored before.
        duplicates: u64,
        /// The items that wait now.
        enqueued: Enqueued,
    },
    /// Nothing is stored: these events carry the id of an earlier event of other content.
    Reused(Vec<ReusedId>),
}

/// The items that an append has made pending, so that the sender need not search for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enqueued {
    /// The lowest number that no event had before the append.
    pub from: i64,
    /// The lowest number that no event has after it.
    pub to: i64,
    /// In the order of the spool.
    pub items: Vec<QueuedItem>,
    /// Some were mapped by other mappings than those in force, so the ordering keys are to be renewed first.
    pub is_stale: bool,
}

/// An event whose id an earlier event of other content has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReusedId {
    /// The event's index in the append.
    pub index: usize,
    /// When the first event of that id was stored.
    pub first_at: Timestamp,
    /// The spool file of the first event.
    pub first_file: String,
    /// The uid of the owner of that file.
    pub first_owner: Option<u32>,
}

/// The event that had an id first, as far as a later one is compared with it.
struct First {
    digest: Digest,
    received_at: Timestamp,
    file: String,
    owner: Option<u32>,
}

/// One append, within a transaction of the store.
pub(super) struct Append<'a> {
    store: &'a mut Store,
    now: Timestamp,
    enqueued: Enqueued,
    new_ids: Vec<IdHash>,
    duplicates: u64,
    /// Events that are inserted.
    created: i64,
    reused: Vec<ReusedId>,
}

impl<'a> Append<'a> {
    /// Adds events at the end of the queue and stores how far their files are ingested, all or nothing: if an id is
    /// reused, nothing is added. Must be called within [`Store::transaction`].
    pub(super) fn run(
        store: &'a mut Store,
        events: &[NewEvent],
        progress: &[FileProgress],
        now: Timestamp,
    ) -> Result<Appended, rusqlite::Error> {
        let first_seq = store.next_seq;
        let earlier = std::mem::take(&mut store.counters);
        let failed_before = store.failures.len();
        store.db.run("SAVEPOINT append")?;
        let mut append = Append {
            store,
            now,
            enqueued: Enqueued { from: first_seq, ..Enqueued::default() },
            new_ids: Vec::new(),
            duplicates: 0,
            created: 0,
            reused: Vec::new(),
        };
        append.add_all(events)?;
        let Append { store, mut enqueued, new_ids, duplicates, created, reused, .. } = append;
        if !reused.is_empty() {
            store.db.conn.execute_batch("ROLLBACK TO append; RELEASE append")?;
            store.next_seq = first_seq;
            store.dedup.undo_add(&new_ids);
            store.counters = earlier;
            store.failures.undo_to(failed_before);
            return Ok(Appended::Reused(reused));
        }
        for file in progress {
            file.store(&store.db.conn)?;
        }
        store.db.run("RELEASE append")?;
        store.counters.merge(earlier);
        store.counters.add_duplicates(duplicates as i64);
        store.counters.create(created);
        enqueued.to = store.next_seq;
        if enqueued.is_stale {
            store.keying.add_stale(&store.db.conn, enqueued.from..enqueued.to)?;
        }
        Ok(Appended::Stored { stored: events.len() as u64 - duplicates, duplicates, enqueued })
    }

    fn add_all(&mut self, events: &[NewEvent]) -> Result<(), rusqlite::Error> {
        let ids: Vec<IdHash> = events.iter().map(|event| hash_id(&event.message_id)).collect();
        let stored = self.store.dedup.find_all(&self.store.db.conn, &ids)?;
        let is_suppressing = self.store.suppression().is_in_use()?;
        for (index, event) in events.iter().enumerate() {
            let redacted = match is_suppressing {
                true => self.store.suppression().redact(event)?,
                false => None,
            };
            match self.first_with_id(ids[index], stored[index])? {
                None => {
                    if redacted.is_some() {
                        let seq = self.store.next_seq;
                        self.store.dedup.add_to_table(&self.store.db.conn, &ids[index], seq)?;
                    }
                    self.insert(redacted.as_ref().unwrap_or(event))?;
                }
                Some(first) if first.digest == event.digest => self.duplicates += 1,
                Some(First { received_at: first_at, file: first_file, owner: first_owner, .. }) => {
                    self.reused.push(ReusedId { index, first_at, first_file, first_owner });
                }
            }
        }
        Ok(())
    }

    /// The earlier event of that id, which the index finds at `stored`; if there is none, the next event gets the id.
    fn first_with_id(&mut self, id: IdHash, stored: Option<i64>) -> Result<Option<First>, rusqlite::Error> {
        if let Some(seq) = stored {
            let first = self.first_at(seq)?;
            if first.is_some() {
                return Ok(first);
            }
            // The id has outlived the row: a redacted row does not hold the id as it came, so expiry did not find it.
            self.store.dedup.remove(&self.store.db.conn, &id, seq)?;
        }
        match self.store.dedup.add(id, self.store.next_seq) {
            None => {
                self.new_ids.push(id);
                Ok(None)
            }
            // Two events of this append have the same id.
            Some(seq) => self.first_at(seq)?.ok_or(rusqlite::Error::QueryReturnedNoRows).map(Some),
        }
    }

    fn first_at(&self, seq: i64) -> Result<Option<First>, rusqlite::Error> {
        self.store
            .cached(
                "SELECT digest, received_at, file, owner FROM pending WHERE seq = ?1
                 UNION ALL SELECT digest, received_at, file, owner FROM pending WHERE event_seq = ?1
                 UNION ALL SELECT digest, received_at, file, owner FROM settled WHERE seq = ?1
                 LIMIT 1",
            )?
            .query_row([seq], |r| {
                Ok(First {
                    digest: Digest::from_bytes(r.get(0)?),
                    received_at: Timestamp(r.get(1)?),
                    file: r.get(2)?,
                    owner: r.get(3)?,
                })
            })
            .optional()
    }

    fn insert(&mut self, event: &NewEvent) -> Result<(), rusqlite::Error> {
        self.created += 1;
        match &event.disposition {
            Disposition::Send(items) => self.insert_items(event, items),
            Disposition::Skip(reason) => self.insert_settled(event, &Settled::Skipped(reason.clone())),
            Disposition::Fail(reason) => self.insert_settled(event, &Settled::Failed(reason.clone())),
        }
    }

    fn insert_items(&mut self, event: &NewEvent, items: &[NewItem]) -> Result<(), rusqlite::Error> {
        let seq = self.store.next_seq;
        let event_seq = (items.len() > 1).then_some(seq);
        let mut item_seq = seq;
        for item in items {
            let event_items = EventItems { conn: &self.store.db.conn, seq };
            let Some(Addressee { ordering_key, keying, person }) =
                event_items.settle_unless_sent(item, self.now)?
            else {
                continue;
            };
            self.store
                .cached(
                    "INSERT INTO pending (seq, event_seq, ordering_key, mapping, message_id, type, event, person,
                                          digest, file, place, owner, spooled_at, received_at, body)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    item_seq,
                    event_seq,
                    ordering_key.0,
                    &*item.mapping,
                    event.message_id.as_str(),
                    &event.kind,
                    &event.name,
                    person,
                    event.digest.to_bytes(),
                    &*event.file,
                    event.place as i64,
                    event.owner,
                    event.spooled_at.0,
                    self.now.0,
                    event.body
                ])?;
            self.store.counters.add_row(event.owner, event.body.len() as i64);
            self.enqueued.is_stale |= self.store.keying.is_stale(*keying);
            let queued = QueuedItem { seq: item_seq, key: *ordering_key, owner: event.owner };
            self.enqueued.items.push(queued);
            item_seq += 1;
        }
        self.store.next_seq = item_seq.max(seq + 1);
        self.store.counters.add(State::Pending, "", 1);
        Ok(())
    }

    fn insert_settled(&mut self, event: &NewEvent, settled: &Settled) -> Result<(), rusqlite::Error> {
        let seq = self.store.next_seq;
        self.store.next_seq += 1;
        let state = settled.state();
        let (code, text) = settled.code_and_text();
        self.store
            .cached(
                "INSERT INTO settled (seq, state, message_id, type, event, person, digest, file, place, owner,
                                      spooled_at, received_at, settled_at, attempts, code, reason)
                 VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
            )?
            .execute(params![
                seq,
                state.as_str(),
                event.message_id.as_str(),
                &event.kind,
                &event.name,
                event.digest.to_bytes(),
                &*event.file,
                event.place as i64,
                event.owner,
                event.spooled_at.0,
                self.now.0,
                self.now.0,
                code,
                text
            ])?;
        self.store.counters.settle(state, code);
        self.store.counters.add(state, code, 1);
        if let Settled::Failed(reason) = settled {
            self.store.failures.add(event.message_id.clone(), reason);
        }
        if self.store.retention.keeps_body(settled) {
            self.store
                .cached("INSERT INTO bodies (seq, state, settled_at, body) VALUES (?, ?, ?, ?)")?
                .execute(params![seq, state.as_str(), self.now.0, event.body])?;
        }
        Ok(())
    }
}
