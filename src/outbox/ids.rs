//! Which messageIds are known. An index of many is written at random places, a page for each id: so they go through
//! three, each far larger than the one before, many at once and in order.
//!
//! ```text
//!   new events ──▶ memory ──150,000 at once──▶ recent_ids ──2 million at once──▶ ids
//! ```
//!
//! What is in memory alone can be read from the events: meta says up to which event all ids are in a table.

use super::store::Store;
use crate::event::MessageId;
use rusqlite::{OptionalExtension, params};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

/// The first 16 bytes of the SHA-256 of a messageId.
pub(super) type Id = [u8; 16];

pub(super) fn short_id(id: &MessageId) -> Id {
    short_hash(id.as_str())
}

pub(super) fn short_hash(id: &str) -> Id {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(id.as_bytes())[..16]);
    short
}

/// Up to this event all ids are in a table, and up to this one in `ids`.
pub(super) const IDS_INDEXED: &str = "ids_indexed";
const IDS_MERGED: &str = "ids_merged";

/// How many ids are kept together.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// In memory, some 40 bytes each.
    new: usize,
    /// In `recent_ids`, some 30 bytes each on the disk; about, since ids that are forgotten count as well.
    recent: i64,
}

/// The newest ids and how far they have come, as they are in the transaction.
#[derive(Debug)]
pub(super) struct Ids {
    new: HashMap<Id, i64>,
    /// How many came in this transaction.
    pub(super) made: usize,
    indexed: i64,
    merged: i64,
    pass: Option<IndexPass>,
    merge: Option<Merge>,
    limits: Limits,
}

/// All ids that were new when it began are taken into `recent_ids`, some in each transaction.
#[derive(Debug)]
struct IndexPass {
    /// Those that are not, in order, the first last.
    left: Vec<(Id, i64)>,
    /// Up to this event all are, at the end.
    upto: i64,
}

/// All ids that were in `recent_ids` when it began are taken into `ids`, some in each transaction.
#[derive(Debug)]
struct Merge {
    /// The last that is; the empty text comes before all.
    last: Vec<u8>,
    /// Up to this event all are, at the end.
    upto: i64,
}

impl Default for Ids {
    fn default() -> Ids {
        Ids {
            new: HashMap::new(),
            made: 0,
            indexed: 0,
            merged: 0,
            pass: None,
            merge: None,
            limits: Limits { new: 150_000, recent: 2_000_000 },
        }
    }
}

impl Ids {
    /// Whether every id is in a table.
    pub(super) fn are_indexed(&self) -> bool {
        self.new.is_empty()
    }

    /// Whether more is to be moved as soon as there is nothing else to do.
    pub(super) fn are_moving(&self) -> bool {
        self.pass.is_some() || self.merge.is_some()
    }
}

impl Store {
    /// Reads anew what is in no table, and how far the others have come.
    pub(super) fn read_ids(&mut self) -> Result<(), rusqlite::Error> {
        let mut new = HashMap::new();
        {
            let mut events = self.cached("SELECT message_id, seq FROM unindexed")?;
            let mut events = events.query([])?;
            while let Some(event) = events.next()? {
                new.insert(short_hash(event.get_ref(0)?.as_str()?), event.get(1)?);
            }
        }
        let number = |name| self.read_meta(name).map(Option::unwrap_or_default);
        let (indexed, merged) = (number(IDS_INDEXED)?, number(IDS_MERGED)?);
        self.ids = Ids { new, indexed, merged, limits: self.ids.limits, ..Ids::default() };
        Ok(())
    }

    /// What was read of them does not hold any more.
    pub(super) fn drop_ids(&mut self) {
        self.ids = Ids { limits: self.ids.limits, ..Ids::default() };
    }

    /// The event of that id.
    pub(super) fn seq_of(&self, id: &Id) -> Result<Option<i64>, rusqlite::Error> {
        Ok(self.seqs_of(&[*id])?[0])
    }

    /// The events of these ids, in their order. They are looked for in the order of the tables.
    pub(super) fn seqs_of(&self, ids: &[Id]) -> Result<Vec<Option<i64>>, rusqlite::Error> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|n| ids[*n]);
        let mut seqs = vec![None; ids.len()];
        let mut tables = self.cached(
            "SELECT seq FROM recent_ids WHERE id = ?1 UNION ALL SELECT seq FROM ids WHERE id = ?1 LIMIT 1",
        )?;
        for n in order {
            seqs[n] = match self.ids.new.get(&ids[n]) {
                Some(seq) => Some(*seq),
                None => tables.query_row([ids[n]], |r| r.get(0)).optional()?,
            };
        }
        Ok(seqs)
    }

    /// Makes the id of a new event known. `Some`: it was, as that of this event.
    pub(super) fn know(&mut self, id: Id, seq: i64) -> Option<i64> {
        if let Some(known) = self.ids.new.get(&id) {
            return Some(*known);
        }
        self.ids.new.insert(id, seq);
        self.ids.made += 1;
        None
    }

    /// Puts the id of a new event into a table at once: it cannot be read from the event.
    pub(super) fn index_id(&self, id: &Id, seq: i64) -> Result<(), rusqlite::Error> {
        self.cached("INSERT INTO recent_ids (id, seq) VALUES (?, ?)")?.execute(params![id, seq])?;
        Ok(())
    }

    /// The ids were not stored after all.
    pub(super) fn unknow(&mut self, ids: &[Id]) {
        for id in ids {
            self.ids.new.remove(id);
        }
        self.ids.made -= ids.len();
    }

    /// Forgets the id of an event.
    pub(super) fn forget_id(&mut self, id: &Id, seq: i64) -> Result<(), rusqlite::Error> {
        if self.ids.new.get(id) == Some(&seq) {
            self.ids.new.remove(id);
        }
        for table in ["recent_ids", "ids"] {
            self.cached(&format!("DELETE FROM {table} WHERE id = ? AND seq = ?"))?
                .execute(params![id, seq])?;
        }
        Ok(())
    }

    /// Brings every id into a table.
    pub(super) fn index_all_ids(&mut self) -> Result<(), rusqlite::Error> {
        while !self.ids.are_indexed() {
            self.index_ids_now();
            self.go_on_indexing(usize::MAX)?;
        }
        Ok(())
    }

    /// Notes that every id of an event up to there is in `ids`.
    pub(super) fn all_ids_stand(&self, upto: i64) -> Result<(), rusqlite::Error> {
        self.set_meta(IDS_INDEXED, upto)?;
        self.set_meta(IDS_MERGED, upto)
    }

    /// Moves up to `limit` ids from memory and as many from `recent_ids`, where there are many.
    pub(super) fn move_ids(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        if self.ids.new.len() > self.ids.limits.new {
            self.index_ids_now();
        }
        self.go_on_indexing(limit)?;
        if self.ids.merge.is_none() && self.ids.indexed - self.ids.merged > self.ids.limits.recent {
            self.ids.merge = Some(Merge { last: Vec::new(), upto: self.ids.indexed });
        }
        self.go_on_merging(limit)
    }

    /// Begins to take all ids that are new now into `recent_ids`, unless that has begun.
    pub(super) fn index_ids_now(&mut self) {
        if self.ids.pass.is_none() && !self.ids.are_indexed() {
            let mut left: Vec<(Id, i64)> = self.ids.new.iter().map(|(id, seq)| (*id, *seq)).collect();
            left.sort_unstable_by(|a, b| b.cmp(a));
            self.ids.pass = Some(IndexPass { left, upto: self.next_seq - 1 });
        }
    }

    fn go_on_indexing(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.ids.pass.take() else { return Ok(()) };
        {
            // The id may be there: what was taken in before a crash.
            let mut insert =
                self.cached("INSERT INTO recent_ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
            for (id, seq) in pass.left.drain(pass.left.len().saturating_sub(limit)..).rev() {
                // It may have been forgotten meanwhile, and have come again.
                if self.ids.new.get(&id) == Some(&seq) {
                    insert.execute(params![id, seq])?;
                }
            }
        }
        if !pass.left.is_empty() {
            self.ids.pass = Some(pass);
            return Ok(());
        }
        self.set_meta(IDS_INDEXED, pass.upto)?;
        self.ids.indexed = pass.upto;
        self.ids.new.retain(|_, seq| *seq > pass.upto);
        Ok(())
    }

    fn go_on_merging(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut merge) = self.ids.merge.take() else { return Ok(()) };
        let some: Vec<(Id, i64)> = self
            .cached("SELECT id, seq FROM recent_ids WHERE id > ? ORDER BY id LIMIT ?")?
            .query_map(params![merge.last, limit.max(1) as i64], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let Some((last, _)) = some.last() else {
            self.set_meta(IDS_MERGED, merge.upto)?;
            self.ids.merged = merge.upto;
            return Ok(());
        };
        {
            let mut insert = self.cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
            for (id, seq) in &some {
                insert.execute(params![id, seq])?;
            }
        }
        // Not those before: what has come there since waits for the next time.
        self.cached("DELETE FROM recent_ids WHERE id > ? AND id <= ?")?.execute(params![merge.last, last])?;
        merge.last = last.to_vec();
        self.ids.merge = Some(merge);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::outbox::{Appended, NewEvent, Settings, fixture, recovery};
    use std::path::Path;

    /// The store in that folder, made if there is none, with small limits.
    pub(in crate::outbox) fn open(dir: &Path) -> Store {
        let settings = Settings::from(&fixture::settings(dir));
        if !settings.path.exists() {
            recovery::make(&settings.path, &settings, |_| Ok(())).unwrap();
        }
        let mut store = Store::open(&settings).unwrap();
        store.ids.limits = Limits { new: 20, recent: 60 };
        store
    }

    pub(in crate::outbox) fn event(n: u32) -> NewEvent {
        fixture::event(format!("m-{n}"), "{}".to_owned())
    }

    #[test]
    fn an_id_is_known_from_its_event_until_it_is_forgotten_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut known) = (open(dir.path()), HashMap::<u32, i64>::new());
        let mut rng = fastrand::Rng::with_seed(11);
        let (mut was_recent, mut was_merged) = (false, false);
        let sql = |what: &str| rusqlite::Error::InvalidParameterName(what.to_owned());
        for _ in 0..3_000 {
            match rng.u8(0..20) {
                // Some are new and some are not.
                0..10 => {
                    let ns: Vec<u32> = (0..rng.usize(1..8)).map(|_| rng.u32(0..2_000)).collect();
                    let events: Vec<NewEvent> = ns.iter().map(|n| event(*n)).collect();
                    let fails = rng.u8(0..8) == 0;
                    let done = store.transaction(|store| {
                        let appended = store.append(&events, &[], Timestamp(0))?;
                        store.move_ids(rng.usize(0..20))?;
                        if fails { Err(sql("on purpose")) } else { Ok(appended) }
                    });
                    assert_eq!(done.is_err(), fails);
                    if let Ok(Appended::Stored { waiting, .. }) = done {
                        let mut new = waiting.items.into_iter().map(|(seq, _)| seq);
                        for n in ns {
                            known.entry(n).or_insert_with(|| new.next().unwrap());
                        }
                        assert_eq!(new.next(), None);
                    }
                }
                10..14 => {
                    let Some((&n, &seq)) = known.iter().nth(rng.usize(0..known.len().max(1))) else {
                        continue;
                    };
                    store
                        .transaction(|store| {
                            store.forget_id(&short_hash(&format!("m-{n}")), seq)?;
                            store.cached("DELETE FROM pending WHERE seq = ?")?.execute([seq])?;
                            store.counted.add("pending", "", -1);
                            Ok(())
                        })
                        .unwrap();
                    known.remove(&n);
                }
                14..18 => store.transaction(|store| store.move_ids(rng.usize(0..40))).unwrap(),
                18 => store.transaction(Store::index_all_ids).unwrap(),
                // As after a crash: what is in memory is gone.
                _ => {
                    drop(store);
                    store = open(dir.path());
                }
            }
            let ns: Vec<u32> = (0..40).map(|_| rng.u32(0..2_100)).collect();
            let ids: Vec<Id> = ns.iter().map(|n| short_hash(&format!("m-{n}"))).collect();
            let want: Vec<Option<i64>> = ns.iter().map(|n| known.get(n).copied()).collect();
            assert_eq!(store.transaction(|store| store.seqs_of(&ids)).unwrap(), want);
            let count = |table: &str| -> i64 {
                let sql = format!("SELECT count(*) FROM {table}");
                store.conn.query_row(&sql, [], |r| r.get(0)).unwrap()
            };
            was_recent |= count("recent_ids") > 0;
            was_merged |= count("ids") > 0;
        }
        assert!(was_recent && was_merged);
    }
}
