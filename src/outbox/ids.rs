//! Which messageIds are known. Their index is written at random places, a page for each id where there are many: so new
//! ids are noted in the order in which they come, and taken into the index later, many at once and in its order.

use super::store::Store;
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// The first 16 bytes of the SHA-256 of a messageId.
pub(super) type Id = [u8; 16];

/// New ids kept in memory, some 40 bytes each, before they are taken into the index.
const MAX_NEW: usize = 150_000;

/// The ids that are not in the index yet, as they are in the transaction.
#[derive(Debug, Default)]
pub(super) struct NewIds {
    seqs: BTreeMap<Id, i64>,
    /// How many came in this transaction.
    pub(super) made: usize,
    /// Rows of the table, those that are in the index meanwhile among them.
    noted: usize,
    pass: Option<Pass>,
}

/// All new ids are taken into the index, some in each transaction.
#[derive(Debug, Clone, Copy)]
struct Pass {
    /// The last that is; `None`: none yet.
    last: Option<Id>,
    /// What was noted up to here is done with at the end.
    upto: i64,
}

impl NewIds {
    pub(super) fn is_empty(&self) -> bool {
        self.noted == 0
    }

    /// Whether more is to be taken into the index as soon as there is nothing else to do.
    pub(super) fn are_moving(&self) -> bool {
        self.pass.is_some()
    }
}

impl Store {
    /// Reads anew what is not in the index.
    pub(super) fn read_new_ids(&mut self) -> Result<(), rusqlite::Error> {
        let seqs = self
            .cached("SELECT id, seq FROM new_ids")?
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        self.new_ids = NewIds { noted: seqs.len(), seqs: seqs.into_iter().collect(), ..NewIds::default() };
        Ok(())
    }

    /// The event of that id.
    pub(super) fn seq_of(&self, id: &Id) -> Result<Option<i64>, rusqlite::Error> {
        match self.new_ids.seqs.get(id) {
            Some(seq) => Ok(Some(*seq)),
            None => self.cached("SELECT seq FROM ids WHERE id = ?")?.query_row([id], |r| r.get(0)).optional(),
        }
    }

    /// The events of these ids, in their order. They are looked for in the order of the index.
    pub(super) fn seqs_of(&self, ids: &[Id]) -> Result<Vec<Option<i64>>, rusqlite::Error> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|n| ids[*n]);
        let mut seqs = vec![None; ids.len()];
        for n in order {
            seqs[n] = self.seq_of(&ids[n])?;
        }
        Ok(seqs)
    }

    /// Makes the id of a new event known. `Some`: it was, as that of this event.
    pub(super) fn know(&mut self, id: Id, seq: i64) -> Result<Option<i64>, rusqlite::Error> {
        if let Some(known) = self.new_ids.seqs.get(&id) {
            return Ok(Some(*known));
        }
        self.cached("INSERT INTO new_ids (id, seq) VALUES (?, ?)")?.execute(params![id, seq])?;
        self.new_ids.seqs.insert(id, seq);
        self.new_ids.noted += 1;
        self.new_ids.made += 1;
        Ok(None)
    }

    /// The ids were not stored after all.
    pub(super) fn unknow(&mut self, ids: &[Id]) {
        for id in ids {
            self.new_ids.seqs.remove(id);
        }
        self.new_ids.noted -= ids.len();
    }

    /// Forgets the id of an event, for which every id must be in the index: see [`Store::index_all_ids`].
    pub(super) fn forget_id(&self, id: &Id, seq: i64) -> Result<(), rusqlite::Error> {
        debug_assert!(self.new_ids.is_empty());
        self.cached("DELETE FROM ids WHERE id = ? AND seq = ?")?.execute(params![id, seq])?;
        Ok(())
    }

    /// Takes every id into the index.
    pub(super) fn index_all_ids(&mut self) -> Result<(), rusqlite::Error> {
        while !self.new_ids.is_empty() {
            self.index_ids_now()?;
            self.go_on_indexing(usize::MAX)?;
        }
        Ok(())
    }

    /// Takes up to `limit` ids into the index, where there are many new ones.
    pub(super) fn index_ids(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        if self.new_ids.noted > MAX_NEW {
            self.index_ids_now()?;
        }
        self.go_on_indexing(limit)
    }

    /// Begins to take all ids that are new now into the index, unless that has begun.
    pub(super) fn index_ids_now(&mut self) -> Result<(), rusqlite::Error> {
        if self.new_ids.pass.is_none() && !self.new_ids.is_empty() {
            let upto = self.cached("SELECT coalesce(max(n), 0) FROM new_ids")?.query_row([], |r| r.get(0))?;
            self.new_ids.pass = Some(Pass { last: None, upto });
        }
        Ok(())
    }

    fn go_on_indexing(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.new_ids.pass else { return Ok(()) };
        {
            // The id may be there: what was noted before a crash, or after its row was taken over.
            let mut insert = self.cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
            let from = pass.last.map_or(Unbounded, Excluded);
            for (id, seq) in self.new_ids.seqs.range((from, Unbounded)).take(limit) {
                insert.execute(params![id, seq])?;
                pass.last = Some(*id);
            }
        }
        let is_over = pass
            .last
            .is_none_or(|last| self.new_ids.seqs.range((Excluded(last), Unbounded)).next().is_none());
        if !is_over {
            self.new_ids.pass = Some(pass);
            return Ok(());
        }
        self.cached("DELETE FROM new_ids WHERE n <= ?")?.execute([pass.upto])?;
        self.read_new_ids()
    }
}
