//! Which messageIds are known. Their index is written at random places, a page for each id where there are many: so the
//! ids of the newest events are kept in memory, and taken into the index later, many at once and in its order. Whoever
//! does not have them in memory reads them from the events.

use super::store::{IDS_INDEXED, Store, short_hash};
use rusqlite::{OptionalExtension, params};
use std::collections::HashMap;

/// The first 16 bytes of the SHA-256 of a messageId.
pub(super) type Id = [u8; 16];

/// Ids kept in memory, some 40 bytes each, before they are taken into the index.
const MAX_NEW: usize = 150_000;

/// The ids that are not in the index yet, as they are in the transaction.
#[derive(Debug, Default)]
pub(super) struct NewIds {
    seqs: HashMap<Id, i64>,
    /// How many came in this transaction.
    pub(super) made: usize,
    pass: Option<Pass>,
}

/// All ids that were new when it began are taken into the index, some in each transaction.
#[derive(Debug)]
struct Pass {
    /// Those that are not, in the order of the index, the first last.
    left: Vec<(Id, i64)>,
    /// Up to this event all are, at the end.
    upto: i64,
}

impl NewIds {
    pub(super) fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Whether more is to be taken into the index as soon as there is nothing else to do.
    pub(super) fn are_moving(&self) -> bool {
        self.pass.is_some()
    }
}

impl Store {
    /// Reads anew what is not in the index.
    pub(super) fn read_new_ids(&mut self) -> Result<(), rusqlite::Error> {
        let mut seqs = HashMap::new();
        {
            let mut events = self.cached("SELECT message_id, seq FROM unindexed")?;
            let mut events = events.query([])?;
            while let Some(event) = events.next()? {
                seqs.insert(short_hash(event.get_ref(0)?.as_str()?), event.get(1)?);
            }
        }
        self.new_ids = NewIds { seqs, ..NewIds::default() };
        Ok(())
    }

    /// The event of that id.
    pub(super) fn seq_of(&self, id: &Id) -> Result<Option<i64>, rusqlite::Error> {
        Ok(self.seqs_of(&[*id])?[0])
    }

    /// The events of these ids, in their order. They are looked for in the order of the index.
    pub(super) fn seqs_of(&self, ids: &[Id]) -> Result<Vec<Option<i64>>, rusqlite::Error> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|n| ids[*n]);
        let mut seqs = vec![None; ids.len()];
        let mut index = self.cached("SELECT seq FROM ids WHERE id = ?")?;
        for n in order {
            seqs[n] = match self.new_ids.seqs.get(&ids[n]) {
                Some(seq) => Some(*seq),
                None => index.query_row([ids[n]], |r| r.get(0)).optional()?,
            };
        }
        Ok(seqs)
    }

    /// Makes the id of a new event known. `Some`: it was, as that of this event.
    pub(super) fn know(&mut self, id: Id, seq: i64) -> Option<i64> {
        if let Some(known) = self.new_ids.seqs.get(&id) {
            return Some(*known);
        }
        self.new_ids.seqs.insert(id, seq);
        self.new_ids.made += 1;
        None
    }

    /// Takes the id of a new event into the index at once: it cannot be read from the event.
    pub(super) fn index_id(&self, id: &Id, seq: i64) -> Result<(), rusqlite::Error> {
        self.cached("INSERT INTO ids (id, seq) VALUES (?, ?)")?.execute(params![id, seq])?;
        Ok(())
    }

    /// The ids were not stored after all.
    pub(super) fn unknow(&mut self, ids: &[Id]) {
        for id in ids {
            self.new_ids.seqs.remove(id);
        }
        self.new_ids.made -= ids.len();
    }

    /// Forgets the id of an event.
    pub(super) fn forget_id(&mut self, id: &Id, seq: i64) -> Result<(), rusqlite::Error> {
        if self.new_ids.seqs.get(id) == Some(&seq) {
            self.new_ids.seqs.remove(id);
        }
        self.cached("DELETE FROM ids WHERE id = ? AND seq = ?")?.execute(params![id, seq])?;
        Ok(())
    }

    /// Takes every id into the index.
    pub(super) fn index_all_ids(&mut self) -> Result<(), rusqlite::Error> {
        while !self.new_ids.is_empty() {
            self.index_ids_now();
            self.go_on_indexing(usize::MAX)?;
        }
        Ok(())
    }

    /// Takes up to `limit` ids into the index, where there are many new ones.
    pub(super) fn index_ids(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        if self.new_ids.seqs.len() > MAX_NEW {
            self.index_ids_now();
        }
        self.go_on_indexing(limit)
    }

    /// Begins to take all ids that are new now into the index, unless that has begun.
    pub(super) fn index_ids_now(&mut self) {
        if self.new_ids.pass.is_none() && !self.new_ids.is_empty() {
            let mut left: Vec<(Id, i64)> = self.new_ids.seqs.iter().map(|(id, seq)| (*id, *seq)).collect();
            left.sort_unstable_by(|a, b| b.cmp(a));
            self.new_ids.pass = Some(Pass { left, upto: self.next_seq - 1 });
        }
    }

    fn go_on_indexing(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.new_ids.pass.take() else { return Ok(()) };
        {
            // The id may be there: what was taken in before a crash.
            let mut insert = self.cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
            for (id, seq) in pass.left.drain(pass.left.len().saturating_sub(limit)..).rev() {
                // It may have been forgotten meanwhile.
                if self.new_ids.seqs.contains_key(&id) {
                    insert.execute(params![id, seq])?;
                }
            }
        }
        if !pass.left.is_empty() {
            self.new_ids.pass = Some(pass);
            return Ok(());
        }
        self.set_meta(IDS_INDEXED, pass.upto)?;
        self.new_ids.seqs.retain(|_, seq| *seq > pass.upto);
        Ok(())
    }
}
