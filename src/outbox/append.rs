//! How events come into the outbox: all of a chunk or none of it, and none twice.

use super::files::Progress;
use super::ids::{Id, short_id};
use super::row::{Addressee, NewEvent, State};
use super::settle::Settled;
use super::store::{DUPLICATES, Store};
use crate::clock::Timestamp;
use crate::event::Digest;
use crate::item::{Disposition, OrderingKey};
use rusqlite::{OptionalExtension, params};

/// What became of the events of one [`Writer::append`](super::Writer::append).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// All are on the disk, but for duplicates, which were there before.
    Stored {
        /// How many are new.
        stored: u64,
        /// How many were there before.
        duplicates: u64,
        /// What of them waits now.
        waiting: Waiting,
    },
    /// Nothing is stored: these, by index, carry the id of an earlier event of other content.
    Reused(Vec<Reused>),
}

/// New rows among the pending, and whose they are: so that nobody has to look for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The first number of the order of the spool that was free before.
    pub from: i64,
    /// The first that is free now.
    pub to: i64,
    /// In the order of the spool.
    pub items: Vec<(i64, OrderingKey)>,
}

/// An id that was used before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reused {
    /// The event's index in the call.
    pub index: usize,
    /// When the first event of that id came.
    pub first_at: Timestamp,
    /// And in which file.
    pub first_file: String,
}

impl Store {
    /// Adds events at the end of the spool's order and notes how far their files are taken. All or nothing:
    /// with a reused id among them nothing is added. Call it within [`Store::transaction`].
    pub(super) fn append(
        &mut self,
        events: &[NewEvent],
        progress: &[Progress],
        now: Timestamp,
    ) -> Result<Appended, rusqlite::Error> {
        let first_seq = self.next_seq;
        let before = std::mem::take(&mut self.counted);
        self.run("SAVEPOINT append")?;
        let mut waiting = Waiting { from: first_seq, ..Waiting::default() };
        let (mut duplicates, mut reused) = (0, Vec::new());
        let ids: Vec<Id> = events.iter().map(|event| short_id(&event.message_id)).collect();
        let known = self.seqs_of(&ids)?;
        let mut new = Vec::new();
        let keeps_out = self.suppresses_anybody()?;
        for (index, event) in events.iter().enumerate() {
            let redacted = match keeps_out {
                true => self.suppressed(&event.body)?.map(|since| self.redacted(event, since)),
                false => None,
            };
            let mut first = None;
            if let Some(seq) = known[index] {
                first = self.first_of(seq)?;
                if first.is_none() {
                    // The id of a row that is forgotten and did not tell it: see `Store::redacted`.
                    self.forget_id(&ids[index], seq)?;
                }
            }
            if first.is_none() {
                let Some(seq) = self.know(ids[index], self.next_seq) else {
                    new.push(ids[index]);
                    if redacted.is_some() {
                        self.index_id(&ids[index], self.next_seq)?;
                    }
                    self.insert(redacted.as_ref().unwrap_or(event), &mut waiting.items, now)?;
                    continue;
                };
                // The same id stands twice among them.
                first = self.first_of(seq)?;
            }
            let (digest, first_at, first_file) = first.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            match digest == event.digest {
                true => duplicates += 1,
                false => reused.push(Reused { index, first_at, first_file }),
            }
        }
        if !reused.is_empty() {
            self.conn.execute_batch("ROLLBACK TO append; RELEASE append")?;
            self.next_seq = first_seq;
            self.unknow(&new);
            self.counted = before;
            return Ok(Appended::Reused(reused));
        }
        for p in progress {
            self.note_progress(p)?;
        }
        self.run("RELEASE append")?;
        for ((state, code), n) in before.0 {
            self.counted.add(state, code, n);
        }
        self.counted.add(DUPLICATES, "", duplicates as i64);
        waiting.to = self.next_seq;
        Ok(Appended::Stored { stored: events.len() as u64 - duplicates, duplicates, waiting })
    }

    fn insert(
        &mut self,
        event: &NewEvent,
        waiting: &mut Vec<(i64, OrderingKey)>,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        let seq = self.next_seq;
        self.next_seq += 1;
        let common = (event.message_id.as_str(), &event.kind, &event.name, event.digest.to_bytes());
        match &event.disposition {
            Disposition::Send(items) => {
                let event_seq = (items.len() > 1).then_some(seq);
                let mut item_seq = seq;
                for item in items {
                    let (ordering_key, person) = match &item.disposition {
                        Disposition::Send(Addressee { ordering_key, person }) => (ordering_key, person),
                        settled => {
                            self.settle_item(seq, &item.mapping, &Settled::from(settled), now)?;
                            continue;
                        }
                    };
                    self.cached(
                        "INSERT INTO pending (seq, ordering_key, message_id, type, event, person, digest, file, place,
                                              spooled_at, received_at, body, mapping, event_seq)
                         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![
                        item_seq,
                        ordering_key.0,
                        common.0,
                        common.1,
                        common.2,
                        person,
                        common.3,
                        &*event.file,
                        event.place as i64,
                        event.spooled_at.0,
                        now.0,
                        event.body,
                        &*item.mapping,
                        event_seq
                    ])?;
                    waiting.push((item_seq, *ordering_key));
                    item_seq += 1;
                }
                self.next_seq = self.next_seq.max(item_seq);
                self.counted.add(State::Pending.as_str(), "", 1);
            }
            Disposition::Skip(reason) | Disposition::Fail(reason) => {
                let settled = match &event.disposition {
                    Disposition::Skip(_) => Settled::Skipped(reason.clone()),
                    _ => Settled::Failed(reason.clone()),
                };
                let state = settled.state();
                self.cached(
                    "INSERT INTO settled (seq, state, message_id, type, event, person, digest, file, place,
                                          spooled_at, received_at, settled_at, attempts, code, reason)
                     VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                )?
                .execute(params![
                    seq,
                    state.as_str(),
                    common.0,
                    common.1,
                    common.2,
                    common.3,
                    &*event.file,
                    event.place as i64,
                    event.spooled_at.0,
                    now.0,
                    now.0,
                    reason.code.as_str(),
                    reason.text
                ])?;
                self.counted.add(state.as_str(), reason.code.as_str(), 1);
                if self.keeps_body(&settled) {
                    self.cached("INSERT INTO bodies (seq, state, settled_at, body) VALUES (?, ?, ?, ?)")?
                        .execute(params![seq, state.as_str(), now.0, event.body])?;
                }
            }
        }
        Ok(())
    }

    fn first_of(&self, seq: i64) -> Result<Option<(Digest, Timestamp, String)>, rusqlite::Error> {
        self.cached(
            "SELECT digest, received_at, file FROM pending WHERE seq = ?1
             UNION ALL SELECT digest, received_at, file FROM pending WHERE event_seq = ?1
             UNION ALL SELECT digest, received_at, file FROM settled WHERE seq = ?1
             LIMIT 1",
        )?
        .query_row([seq], |r| Ok((Digest::from_bytes(r.get(0)?), Timestamp(r.get(1)?), r.get(2)?)))
        .optional()
    }
}
