//! How events come into the outbox: all of an append or none of it, and none of them twice.

use super::appended::{Appended, Enqueued, FirstEvent, ReusedId};
use super::counters::event_bytes;
use super::id_segment::{IdHash, Known, hash_id};
use super::items::EventItems;
use super::row::{Addressee, NewEvent, NewItem, QueuedItem, Settled, State};
use super::spool_progress::FileProgress;
use super::suppression;
use super::tables::Tables;
use crate::clock::Timestamp;
use crate::item::Disposition;
use rusqlite::{OptionalExtension, params};

/// One append, within a transaction of the store.
pub(super) struct Append<'a> {
    tables: &'a mut Tables,
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
    /// reused, nothing is added. Must be called within [`Tables::transaction`].
    pub(super) fn run(
        tables: &'a mut Tables,
        events: &[NewEvent],
        progress: &[FileProgress],
        now: Timestamp,
    ) -> Result<Appended, rusqlite::Error> {
        let first_seq = tables.next_seq;
        let earlier = std::mem::take(&mut tables.counters);
        let failed_before = tables.failures.len();
        tables.store.run("SAVEPOINT append")?;
        let mut append = Append {
            tables,
            now,
            enqueued: Enqueued { from: first_seq, ..Enqueued::default() },
            new_ids: Vec::new(),
            duplicates: 0,
            created: 0,
            reused: Vec::new(),
        };
        append.add_all(events)?;
        let Append { tables, mut enqueued, new_ids, duplicates, created, reused, .. } = append;
        if !reused.is_empty() {
            tables.store.conn.execute_batch("ROLLBACK TO append; RELEASE append")?;
            tables.next_seq = first_seq;
            tables.ids.undo_add(&new_ids);
            tables.counters = earlier;
            tables.failures.undo_to(failed_before);
            return Ok(Appended::Reused(reused));
        }
        for file in progress {
            file.store(&tables.store.conn)?;
        }
        tables.store.run("RELEASE append")?;
        tables.counters.merge(earlier);
        tables.counters.add_duplicates(duplicates as i64);
        tables.counters.create(created);
        enqueued.to = tables.next_seq;
        if enqueued.is_stale {
            tables.keying.add_stale(&tables.store.conn, enqueued.from..enqueued.to)?;
        }
        Ok(Appended::Stored { stored: events.len() as u64 - duplicates, duplicates, enqueued })
    }

    fn add_all(&mut self, events: &[NewEvent]) -> Result<(), rusqlite::Error> {
        let ids: Vec<IdHash> = events.iter().map(|event| hash_id(&event.message_id)).collect();
        let stored = self.tables.ids.find_all(&self.tables.store.conn, &ids)?;
        for (index, event) in events.iter().enumerate() {
            let known = Known { seq: self.tables.next_seq, digest: event.digest.to_bytes() };
            // The id may also be that of an event before this one in the same append.
            match stored[index].or_else(|| self.tables.ids.add(ids[index], known, self.now)) {
                None => {
                    self.new_ids.push(ids[index]);
                    self.insert(event)?;
                }
                Some(first) if first.digest == known.digest => self.duplicates += 1,
                Some(_) if event.is_redacted() => self.add_under_own_id(event)?,
                Some(Known { seq, .. }) => {
                    let first = self.first_event(seq)?;
                    self.reused.push(ReusedId { index, first });
                }
            }
        }
        Ok(())
    }

    /// Adds a redacted event whose id another has. It is not reported as a reuse, by which its text would be rejected, and kept.
    fn add_under_own_id(&mut self, event: &NewEvent) -> Result<(), rusqlite::Error> {
        let known = Known { seq: self.tables.next_seq, digest: event.digest.to_bytes() };
        let event = suppression::under_own_id(event, &self.tables.retention.person_key);
        let id = hash_id(&event.message_id);
        if self.tables.ids.find_all(&self.tables.store.conn, &[id])?[0]
            .or_else(|| self.tables.ids.add(id, known, self.now))
            .is_none()
        {
            self.new_ids.push(id);
            return self.insert(&event);
        }
        self.duplicates += 1;
        Ok(())
    }

    fn first_event(&self, seq: i64) -> Result<Option<FirstEvent>, rusqlite::Error> {
        self.tables
            .cached("SELECT received_at, file, owner FROM events WHERE seq = ?")?
            .query_row([seq], |r| {
                Ok(FirstEvent { at: Timestamp(r.get(0)?), file: r.get(1)?, owner: r.get(2)? })
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

    fn insert_event(&self, event: &NewEvent, seq: i64, person: Option<&str>) -> Result<(), rusqlite::Error> {
        self.tables
            .cached(
                "INSERT INTO events (seq, message_id, type, event, person, digest, file, place, owner, spooled_at,
                                     received_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                seq,
                event.message_id.as_str(),
                &event.kind,
                &event.name,
                person.map(|person| self.tables.retention.person_key.hash(person)),
                event.digest.to_bytes(),
                &*event.file,
                event.place as i64,
                event.owner,
                event.spooled_at.0,
                self.now.0,
            ])
            .map(drop)
    }

    fn insert_body(&self, event: &NewEvent, seq: i64, person: Option<&str>) -> Result<(), rusqlite::Error> {
        self.tables
            .cached("INSERT INTO bodies (seq, person, body) VALUES (?, ?, ?)")?
            .execute(params![seq, person, event.body])
            .map(drop)
    }

    fn insert_items(&mut self, event: &NewEvent, items: &[NewItem]) -> Result<(), rusqlite::Error> {
        let seq = self.tables.next_seq;
        let event_seq = (items.len() > 1).then_some(seq);
        let mut id = seq;
        for item in items {
            let event_items = EventItems { conn: &self.tables.store.conn, seq };
            let Some(Addressee { ordering_key, keying, person }) =
                event_items.settle_unless_sent(item, self.now)?
            else {
                continue;
            };
            let is_first = id == seq;
            if is_first {
                self.insert_event(event, seq, Some(person.as_str()))?;
                self.insert_body(event, seq, Some(person.as_str()))?;
            }
            // The event takes its room once, whatever the number of its items.
            let bytes = if is_first { event_bytes(event.body.len() as i64) } else { 0 };
            let queued = QueuedItem { seq: id, key: *ordering_key, owner: event.owner };
            self.tables.enqueue(&queued, event_seq, &item.mapping, bytes, 0)?;
            self.enqueued.is_stale |= self.tables.keying.is_stale(*keying);
            self.enqueued.items.push(queued);
            id += 1;
        }
        self.tables.next_seq = id.max(seq + 1);
        self.tables.counters.add(State::Pending, "", 1);
        Ok(())
    }

    fn insert_settled(&mut self, event: &NewEvent, settled: &Settled) -> Result<(), rusqlite::Error> {
        let seq = self.tables.next_seq;
        self.tables.next_seq += 1;
        let state = settled.state();
        let (code, text) = settled.code_and_text();
        self.insert_event(event, seq, None)?;
        let keeps_body = self.tables.retention.keeps_body(settled);
        let body = if keeps_body { event.body.len() as i64 } else { 0 };
        if keeps_body {
            self.insert_body(event, seq, None)?;
        }
        self.tables
            .cached(
                "INSERT INTO settled (seq, state, settled_at, attempts, code, reason, body_bytes)
                 VALUES (?, ?, ?, 0, ?, ?, ?)",
            )?
            .execute(params![seq, state.as_str(), self.now.0, code, text, body])?;
        self.tables.counters.add_kept(state, event_bytes(body));
        self.tables.counters.settle(state, code);
        self.tables.counters.add(state, code, 1);
        if let Settled::Failed(reason) = settled {
            self.tables.failures.add(event.message_id.clone(), reason);
        }
        Ok(())
    }
}
