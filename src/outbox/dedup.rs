//! The index of messageIds, by which an event that was stored before is recognised as a duplicate.
//!
//! ```text
//!   new events ──▶ memory ──150,000 at once──▶ recent_ids ──2 million at once──▶ ids
//! ```
//!
//! Hashed ids are written at random places, and in one large table each would cost a page. So they pass through three
//! levels, each far larger than the one before, many at once and in order. Ids that are only in memory can be read from
//! their events again: `meta` says up to which event all ids stand in a table.

use super::meta::{self, IDS_INDEXED, IDS_MERGED};
use crate::event::MessageId;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

/// The first 16 bytes of the SHA-256 of a messageId.
pub(super) type IdHash = [u8; 16];

pub(super) fn hash_id(id: &MessageId) -> IdHash {
    hash_id_text(id.as_str())
}

pub(super) fn hash_id_text(id: &str) -> IdHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&Sha256::digest(id.as_bytes())[..16]);
    hash
}

/// The sizes at which ids pass on to the next level.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Ids in memory, some 40 bytes each.
    in_memory: usize,
    /// Ids in `recent_ids`, some 30 bytes each on the disk. Ids that were removed count as well.
    recent: i64,
}

/// The index, with its newest ids in memory.
#[derive(Debug)]
pub(super) struct DedupIndex {
    in_memory: HashMap<IdHash, i64>,
    /// The number of ids that this transaction has added.
    added: usize,
    /// As in `meta`.
    indexed: i64,
    merged: i64,
    indexing: Option<Indexing>,
    merging: Option<Merging>,
    limits: Limits,
}

/// A pass that writes the ids in memory into `recent_ids`, some in each transaction.
#[derive(Debug)]
struct Indexing {
    /// The ids that are still to be written, in descending order.
    left: Vec<(IdHash, i64)>,
    /// `ids_indexed` at the end of the pass.
    upto: i64,
}

/// A pass that moves the ids in `recent_ids` into `ids`, some in each transaction.
#[derive(Debug)]
struct Merging {
    /// The last id that was moved; the empty text comes before all.
    last: Vec<u8>,
    /// `ids_merged` at the end of the pass.
    upto: i64,
}

impl Default for DedupIndex {
    fn default() -> DedupIndex {
        DedupIndex {
            in_memory: HashMap::new(),
            added: 0,
            indexed: 0,
            merged: 0,
            indexing: None,
            merging: None,
            limits: Limits { in_memory: 150_000, recent: 2_000_000 },
        }
    }
}

impl DedupIndex {
    /// Reads the ids that are in no table, and how far the passes have come.
    pub(super) fn load(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        self.clear();
        let mut unindexed = conn.prepare_cached("SELECT message_id, seq FROM unindexed")?;
        let mut events = unindexed.query([])?;
        while let Some(event) = events.next()? {
            self.in_memory.insert(hash_id_text(event.get_ref(0)?.as_str()?), event.get(1)?);
        }
        self.indexed = meta::get(conn, IDS_INDEXED)?.unwrap_or_default();
        self.merged = meta::get(conn, IDS_MERGED)?.unwrap_or_default();
        Ok(())
    }

    /// Drops the state in memory; [`DedupIndex::load`] must follow.
    pub(super) fn clear(&mut self) {
        *self = DedupIndex { limits: self.limits, ..DedupIndex::default() };
    }

    pub(super) fn begin_transaction(&mut self) {
        self.added = 0;
    }

    /// The number of ids that this transaction has added.
    pub(super) fn added(&self) -> usize {
        self.added
    }

    /// Whether every id is in a table.
    pub(super) fn is_indexed(&self) -> bool {
        self.in_memory.is_empty()
    }

    /// Whether a pass has begun and is not done.
    pub(super) fn is_indexing(&self) -> bool {
        self.indexing.is_some() || self.merging.is_some()
    }

    /// The event of that id.
    pub(super) fn find(&self, conn: &Connection, id: &IdHash) -> Result<Option<i64>, rusqlite::Error> {
        Ok(self.find_all(conn, &[*id])?[0])
    }

    /// The events of these ids, in the order of `ids`. The tables are searched in the order of their keys.
    pub(super) fn find_all(
        &self,
        conn: &Connection,
        ids: &[IdHash],
    ) -> Result<Vec<Option<i64>>, rusqlite::Error> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|n| ids[*n]);
        let mut seqs = vec![None; ids.len()];
        let mut tables = conn.prepare_cached(
            "SELECT seq FROM recent_ids WHERE id = ?1 UNION ALL SELECT seq FROM ids WHERE id = ?1 LIMIT 1",
        )?;
        for n in order {
            seqs[n] = match self.in_memory.get(&ids[n]) {
                Some(seq) => Some(*seq),
                None => tables.query_row([ids[n]], |r| r.get(0)).optional()?,
            };
        }
        Ok(seqs)
    }

    /// Adds the id of a new event. If another event of this transaction has it, returns that one instead.
    pub(super) fn add(&mut self, id: IdHash, seq: i64) -> Option<i64> {
        if let Some(other) = self.in_memory.get(&id) {
            return Some(*other);
        }
        self.in_memory.insert(id, seq);
        self.added += 1;
        None
    }

    /// Writes the id of a new event into a table at once, because its row will not hold the id.
    pub(super) fn add_to_table(
        &self,
        conn: &Connection,
        id: &IdHash,
        seq: i64,
    ) -> Result<(), rusqlite::Error> {
        conn.prepare_cached("INSERT INTO recent_ids (id, seq) VALUES (?, ?)")?.execute(params![id, seq])?;
        Ok(())
    }

    /// Takes back what [`DedupIndex::add`] has added for events that were not stored after all.
    pub(super) fn undo_add(&mut self, ids: &[IdHash]) {
        for id in ids {
            self.in_memory.remove(id);
        }
        self.added -= ids.len();
    }

    /// Forgets the id of an event.
    pub(super) fn remove(&mut self, conn: &Connection, id: &IdHash, seq: i64) -> Result<(), rusqlite::Error> {
        if self.in_memory.get(id) == Some(&seq) {
            self.in_memory.remove(id);
        }
        for table in ["recent_ids", "ids"] {
            conn.prepare_cached(&format!("DELETE FROM {table} WHERE id = ? AND seq = ?"))?
                .execute(params![id, seq])?;
        }
        Ok(())
    }

    /// Writes every id into a table.
    pub(super) fn index_all(&mut self, conn: &Connection, last_seq: i64) -> Result<(), rusqlite::Error> {
        while !self.is_indexed() {
            self.begin_indexing(last_seq);
            self.continue_indexing(conn, usize::MAX)?;
        }
        Ok(())
    }

    /// Records that the ids of all events up to that one are in `ids`.
    pub(super) fn set_merged(conn: &Connection, upto: i64) -> Result<(), rusqlite::Error> {
        meta::set(conn, IDS_INDEXED, upto)?;
        meta::set(conn, IDS_MERGED, upto)
    }

    /// Passes up to `limit` ids on from memory and as many from `recent_ids`, if a level is full or a pass has begun.
    pub(super) fn index_some(
        &mut self,
        conn: &Connection,
        last_seq: i64,
        limit: usize,
    ) -> Result<(), rusqlite::Error> {
        if self.in_memory.len() > self.limits.in_memory {
            self.begin_indexing(last_seq);
        }
        self.continue_indexing(conn, limit)?;
        if self.merging.is_none() && self.indexed - self.merged > self.limits.recent {
            self.merging = Some(Merging { last: Vec::new(), upto: self.indexed });
        }
        self.continue_merging(conn, limit)
    }

    /// Begins to write all ids that are in memory into `recent_ids`, unless that has begun.
    pub(super) fn begin_indexing(&mut self, last_seq: i64) {
        if self.indexing.is_none() && !self.is_indexed() {
            let mut left: Vec<(IdHash, i64)> = self.in_memory.iter().map(|(id, seq)| (*id, *seq)).collect();
            left.sort_unstable_by(|a, b| b.cmp(a));
            self.indexing = Some(Indexing { left, upto: last_seq });
        }
    }

    fn continue_indexing(&mut self, conn: &Connection, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.indexing.take() else { return Ok(()) };
        // The id may be in the table, if a pass was ended by a crash.
        let mut insert =
            conn.prepare_cached("INSERT INTO recent_ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
        for (id, seq) in pass.left.drain(pass.left.len().saturating_sub(limit)..).rev() {
            // The id may have been removed meanwhile, and added again for another event.
            if self.in_memory.get(&id) == Some(&seq) {
                insert.execute(params![id, seq])?;
            }
        }
        if !pass.left.is_empty() {
            self.indexing = Some(pass);
            return Ok(());
        }
        meta::set(conn, IDS_INDEXED, pass.upto)?;
        self.indexed = pass.upto;
        self.in_memory.retain(|_, seq| *seq > pass.upto);
        Ok(())
    }

    fn continue_merging(&mut self, conn: &Connection, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.merging.take() else { return Ok(()) };
        let ids: Vec<(IdHash, i64)> = conn
            .prepare_cached("SELECT id, seq FROM recent_ids WHERE id > ? ORDER BY id LIMIT ?")?
            .query_map(params![pass.last, limit.max(1) as i64], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let Some((last, _)) = ids.last() else {
            meta::set(conn, IDS_MERGED, pass.upto)?;
            self.merged = pass.upto;
            return Ok(());
        };
        let mut insert =
            conn.prepare_cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?;
        for (id, seq) in &ids {
            insert.execute(params![id, seq])?;
        }
        // Ids before `pass.last` have come since, and wait for the next pass.
        conn.prepare_cached("DELETE FROM recent_ids WHERE id > ? AND id <= ?")?
            .execute(params![pass.last, last])?;
        pass.last = last.to_vec();
        self.merging = Some(pass);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::outbox::append::Append;
    use crate::outbox::row::State;
    use crate::outbox::store::Store;
    use crate::outbox::{Appended, NewEvent, fixture};
    use std::path::Path;

    /// Opens the store in that folder, with limits that a test reaches.
    fn open(dir: &Path) -> Store {
        let mut store = fixture::store(dir);
        store.dedup.limits = Limits { in_memory: 20, recent: 60 };
        store
    }

    fn index_some(store: &mut Store, limit: usize) -> Result<(), rusqlite::Error> {
        store.dedup.index_some(&store.db.conn, store.next_seq - 1, limit)
    }

    #[test]
    fn an_id_is_found_on_every_level_until_it_is_removed() {
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
                    let events: Vec<NewEvent> = ns.iter().map(|n| fixture::numbered_event(*n)).collect();
                    let fails = rng.u8(0..8) == 0;
                    let done = store.transaction(|store| {
                        let appended = Append::run(store, &events, &[], Timestamp(0))?;
                        index_some(store, rng.usize(0..20))?;
                        if fails { Err(sql("on purpose")) } else { Ok(appended) }
                    });
                    assert_eq!(done.is_err(), fails);
                    if let Ok(Appended::Stored { enqueued, .. }) = done {
                        let mut new = enqueued.items.into_iter().map(|item| item.seq);
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
                            store.dedup.remove(&store.db.conn, &hash_id_text(&format!("m-{n}")), seq)?;
                            store.cached("DELETE FROM pending WHERE seq = ?")?.execute([seq])?;
                            store.counters.add(State::Pending, "", -1);
                            Ok(())
                        })
                        .unwrap();
                    known.remove(&n);
                }
                14..18 => store.transaction(|store| index_some(store, rng.usize(0..40))).unwrap(),
                18 => store
                    .transaction(|store| store.dedup.index_all(&store.db.conn, store.next_seq - 1))
                    .unwrap(),
                // As after a crash: what is in memory is gone.
                _ => {
                    drop(store);
                    store = open(dir.path());
                }
            }
            let ns: Vec<u32> = (0..40).map(|_| rng.u32(0..2_100)).collect();
            let ids: Vec<IdHash> = ns.iter().map(|n| hash_id_text(&format!("m-{n}"))).collect();
            let want: Vec<Option<i64>> = ns.iter().map(|n| known.get(n).copied()).collect();
            assert_eq!(store.transaction(|store| store.dedup.find_all(&store.db.conn, &ids)).unwrap(), want);
            let count = |table: &str| -> i64 {
                let sql = format!("SELECT count(*) FROM {table}");
                store.db.conn.query_row(&sql, [], |r| r.get(0)).unwrap()
            };
            was_recent |= count("recent_ids") > 0;
            was_merged |= count("ids") > 0;
        }
        assert!(was_recent && was_merged);
    }
}
