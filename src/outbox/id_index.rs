//! The index of messageIds, by which an event that came before is recognised as a duplicate, even when its history is given
//! up.
//!
//! ```text
//!   new events ──▶ memory ──200,000 at once──▶ segment │ segment │ … │ segment ──▶ forgotten, the oldest first
//! ```
//!
//! Hashed ids are written at random places: in one large table, each would cost a page. Tables that are merged from level to
//! level write each id several times, and forgetting the oldest ids would have to search them. So ids are written once, as
//! an immutable sorted segment for each range of events, and the oldest segment is forgotten as a whole. The price is that an
//! id may be in any segment: a filter in memory for each answers that for a new id without a read of the disk.
//!
//! Ids that are only in memory can be read from their events again: `meta` says up to which event all ids stand in
//! segments. So the id of an event is always the one that its row holds: an event that is stored under another id than it
//! came with gets that one before it is appended.
//!
//! A seal of few ids (a day has passed, or history is given up) takes up the newest segments that are no larger than it. So there is about
//! a segment for each 100,000 to 200,000 ids, however often the agent seals.

use super::id_rebuild::IdRebuild;
use super::id_rewrite::{Gathering, SegmentWriter};
use super::id_segment::{
    CHUNK_ENTRIES, Coverage, Entry, IdHash, Known, Run, SEGMENT_AGE, Segment, hash_id_text,
};
use super::meta::{self, IDS_INDEXED};
use crate::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

/// The sizes of the parts.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Ids in memory, some 40 bytes each, before they are sealed; also the ids of a segment that later ones may extend.
    in_memory: usize,
    /// Entries of a chunk.
    chunk: usize,
}

/// The oldest segment that can be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Oldest {
    /// The last event of its range.
    pub(super) upto: i64,
    /// When the newest event of the range was received, or later; but not later than what came after it.
    pub(super) newest_received_at: Timestamp,
    /// The time from which its ids are to be remembered: that above, or a later one at which an event was settled whose
    /// history is given up. Of a clock that was ahead, if it is in the future.
    pub(super) settled_by: Timestamp,
    /// What it takes on the disk. If all its rows still stand, forgetting it frees nothing.
    pub(super) bytes: u64,
}

/// A pass that forgets the oldest segment.
#[derive(Debug)]
enum Forgetting {
    Gathering(Gathering),
    Writing(SegmentWriter),
}

/// The index, with its newest ids in memory and the filters of its segments.
///
/// All methods that take the connection must be called within a transaction. When it fails, [`IdIndex::clear`] and
/// [`IdIndex::load`] must follow.
#[derive(Debug)]
pub(super) struct IdIndex {
    /// The ids of events behind `indexed`, but for those that `sealing` has.
    in_memory: HashMap<IdHash, Known>,
    /// When the newest of those events was received, or later.
    newest_received_at: Timestamp,
    /// The number of ids that this transaction has added.
    added: usize,
    /// As in `meta`.
    indexed: i64,
    /// The one of the oldest events first; the ranges do not overlap.
    segments: Vec<Segment>,
    /// The number of the next run: higher than those of all chunks on the disk.
    next_run: i64,
    sealing: Option<SegmentWriter>,
    forgetting: Option<Forgetting>,
    /// Rows of `id_chunks` that belong to no segment any more.
    leftovers: Vec<RangeInclusive<i64>>,
    limits: Limits,
}

impl Default for IdIndex {
    fn default() -> IdIndex {
        IdIndex {
            in_memory: HashMap::new(),
            newest_received_at: Timestamp(0),
            added: 0,
            indexed: 0,
            segments: Vec::new(),
            next_run: 1,
            sealing: None,
            forgetting: None,
            leftovers: Vec::new(),
            limits: Limits { in_memory: 200_000, chunk: CHUNK_ENTRIES },
        }
    }
}

impl IdIndex {
    /// Reads the ids that are in no segment, and of the segments what is not in memory. A pass that had begun begins anew.
    /// Nothing is written: on a full disk, what failed before must not fail because of this.
    pub(super) fn load(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        self.clear();
        self.segments = Segment::load_all(conn, std::mem::take(&mut self.segments))?;
        self.indexed = meta::get(conn, IDS_INDEXED)?.unwrap_or_default();
        self.load_leftovers(conn)?;
        let mut events = conn.prepare_cached(
            "SELECT seq, message_id, digest, received_at FROM events WHERE seq > ? ORDER BY seq",
        )?;
        let mut events = events.query([self.indexed])?;
        while let Some(event) = events.next()? {
            let known = Known { seq: event.get(0)?, digest: event.get(2)? };
            self.in_memory.insert(hash_id_text(event.get_ref(1)?.as_str()?), known);
            self.newest_received_at = self.newest_received_at.max(Timestamp(event.get(3)?));
        }
        Ok(())
    }

    /// Finds the chunks of passes that were not finished, and of segments whose chunks were not all deleted.
    fn load_leftovers(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        let counted: HashSet<i64> = self.segments.iter().map(Segment::number).collect();
        let mut next = conn.prepare_cached("SELECT position FROM id_chunks WHERE position > ? LIMIT 1")?;
        let (mut last_run, mut at) = (0, 0);
        while let Some(position) = next.query_row([at], |r| r.get(0)).optional()? {
            last_run = Run::number_at(position);
            if !counted.contains(&last_run) {
                self.leftovers.push(Run::positions(last_run));
            }
            at = *Run::positions(last_run).end();
        }
        self.next_run = last_run.max(counted.into_iter().max().unwrap_or_default()) + 1;
        Ok(())
    }

    /// Makes the stored index right again after a recovery has copied what it could read of it, and of the events. Every
    /// event is known by its id then, and the other ids as far as their entries could be read. An index in memory is to be
    /// loaded again.
    pub(super) fn rebuild(conn: &Connection) -> Result<(), rusqlite::Error> {
        let limits = IdIndex::default().limits;
        IdRebuild::run(conn, limits.in_memory, limits.chunk)
    }

    /// Drops the state in memory, but for the segments that [`IdIndex::load`], which must follow, may still find stored.
    pub(super) fn clear(&mut self) {
        let segments = std::mem::take(&mut self.segments);
        *self = IdIndex { segments, limits: self.limits, ..IdIndex::default() };
    }

    pub(super) fn begin_transaction(&mut self) {
        self.added = 0;
    }

    /// The number of ids that this transaction has added.
    pub(super) fn added(&self) -> usize {
        self.added
    }

    /// The ids of all events up to this one stand in segments. A row behind it must not be given up while its id is to
    /// stay.
    pub(super) fn indexed(&self) -> i64 {
        self.indexed
    }

    /// Whether [`IdIndex::index_some`] has something to go on with.
    pub(super) fn is_indexing(&self) -> bool {
        self.sealing.is_some() || !self.leftovers.is_empty()
    }

    /// The events of these ids, in the order of `ids`. The segments are searched in the order of their entries.
    pub(super) fn find_all(
        &self,
        conn: &Connection,
        ids: &[IdHash],
    ) -> Result<Vec<Option<Known>>, rusqlite::Error> {
        let mut found: Vec<Option<Known>> = ids.iter().map(|id| self.find_in_memory(id)).collect();
        let mut left: Vec<usize> = (0..ids.len()).filter(|n| found[*n].is_none()).collect();
        left.sort_unstable_by_key(|n| ids[*n]);
        // If an older segment has an id as well, the newer one counts.
        for segment in self.segments.iter().rev() {
            for n in &left {
                if found[*n].is_none() && segment.may_contain(&ids[*n]) {
                    found[*n] = segment.run().find(conn, &ids[*n])?;
                }
            }
        }
        Ok(found)
    }

    fn find_in_memory(&self, id: &IdHash) -> Option<Known> {
        let new = self.in_memory.get(id).copied();
        new.or_else(|| self.sealing.as_ref()?.find(id))
    }

    /// The event of that id, by what is on the disk alone; events behind `ids_indexed` are to be searched as well, and
    /// first. It reads some 30 KiB for each segment.
    pub(super) fn find_stored(conn: &Connection, id: &IdHash) -> Result<Option<Known>, rusqlite::Error> {
        Segment::find_stored(conn, id)
    }

    /// Adds the id of a new event, which [`IdIndex::find_all`] does not find. If another event of this transaction has it,
    /// returns that one instead.
    pub(super) fn add(&mut self, id: IdHash, known: Known, received_at: Timestamp) -> Option<Known> {
        if let Some(other) = self.find_in_memory(&id) {
            return Some(other);
        }
        self.in_memory.insert(id, known);
        self.newest_received_at = self.newest_received_at.max(received_at);
        self.added += 1;
        None
    }

    /// Takes back what [`IdIndex::add`] has just added for events that were not stored after all.
    pub(super) fn undo_add(&mut self, ids: &[IdHash]) {
        for id in ids {
            self.in_memory.remove(id);
        }
        self.added -= ids.len();
    }

    /// Forgets the id of an event, which must lose its row in `events` in the same transaction. Costs a page for each id
    /// that is in a segment.
    pub(super) fn remove(&mut self, conn: &Connection, id: &IdHash, seq: i64) -> Result<(), rusqlite::Error> {
        if self.in_memory.get(id).is_some_and(|known| known.seq == seq) {
            self.in_memory.remove(id);
        }
        if let Some(sealing) = &mut self.sealing {
            sealing.remove(conn, id, seq)?;
        }
        match &mut self.forgetting {
            Some(Forgetting::Gathering(gathering)) => gathering.remove(id, seq),
            Some(Forgetting::Writing(writer)) => writer.remove(conn, id, seq)?,
            None => {}
        }
        let n = self.segments.partition_point(|segment| segment.coverage().upto < seq);
        match self.segments.get(n) {
            Some(segment) if segment.covers(seq) && segment.may_contain(id) => {
                segment.run().remove(conn, id, seq)
            }
            _ => Ok(()),
        }
    }

    /// Seals up to about `limit` ids, if enough are in memory or a pass has begun, and deletes about as many that no segment
    /// has any more. They are written in whole chunks.
    pub(super) fn index_some(
        &mut self,
        conn: &Connection,
        last_seq: i64,
        limit: usize,
    ) -> Result<(), rusqlite::Error> {
        if self.in_memory.len() > self.limits.in_memory {
            self.begin_indexing(conn, last_seq)?;
        }
        self.continue_sealing(conn, limit)?;
        self.delete_leftovers(conn, limit)
    }

    /// Begins to seal all ids that are in memory, unless that has begun. `last_seq`: the highest seq in use.
    pub(super) fn begin_indexing(&mut self, conn: &Connection, last_seq: i64) -> Result<(), rusqlite::Error> {
        if self.sealing.is_some() || self.in_memory.is_empty() {
            return Ok(());
        }
        let mut entries: Vec<Entry> = self.in_memory.drain().collect();
        let first_seq = entries.iter().map(|(_, known)| known.seq).min().unwrap_or_default();
        let upto = last_seq.min(Coverage::highest_seq(first_seq));
        // A segment cannot hold ids of events that are too far apart.
        self.in_memory.extend(entries.extract_if(.., |(_, known)| known.seq > upto));
        let mut coverage = Coverage { first_seq, upto, newest_received_at: self.newest_received_at };
        if self.in_memory.is_empty() {
            self.newest_received_at = Timestamp(0);
        }
        let mut replaced = Vec::new();
        // A segment is forgotten with its newest id, so it takes up none of another day.
        let day =
            |coverage: Coverage| coverage.newest_received_at.0.div_euclid(SEGMENT_AGE.as_millis() as i64);
        for segment in self.segments.iter().rev() {
            let is_small = segment.entries() <= entries.len()
                && segment.entries() + entries.len() <= self.limits.in_memory
                && day(segment.coverage()) == day(coverage);
            let Some(both) = coverage.union(segment.coverage()) else { break };
            if !is_small || segment.is_remainder() || self.is_being_forgotten(segment.number()) {
                break;
            }
            for chunk in 0..segment.run().chunks() {
                entries.extend(segment.run().read(conn, chunk)?);
            }
            replaced.push(segment.number());
            coverage = both;
        }
        self.sealing = Some(SegmentWriter::new(self.next_run, coverage, entries, false, replaced));
        self.next_run += 1;
        Ok(())
    }

    fn is_being_forgotten(&self, number: i64) -> bool {
        match &self.forgetting {
            None => false,
            Some(Forgetting::Gathering(gathering)) => gathering.searches(number),
            Some(Forgetting::Writing(writer)) => writer.replaces(number),
        }
    }

    fn continue_sealing(&mut self, conn: &Connection, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut writer) = self.sealing.take() else { return Ok(()) };
        if writer.write_some(conn, limit.div_ceil(self.limits.chunk), self.limits.chunk)? {
            self.sealing = Some(writer);
            return Ok(());
        }
        let upto = writer.coverage().upto;
        self.replace(conn, writer)?;
        meta::set(conn, IDS_INDEXED, upto)?;
        self.indexed = upto;
        Ok(())
    }

    /// Puts a segment that is written in place of those that it replaces.
    fn replace(&mut self, conn: &Connection, writer: SegmentWriter) -> Result<(), rusqlite::Error> {
        self.leftovers.extend(writer.replaced().iter().map(|number| Run::positions(*number)));
        self.segments.retain(|segment| !writer.replaces(segment.number()));
        if let Some(segment) = writer.finish(conn)? {
            let upto = segment.coverage().upto;
            let n = self.segments.partition_point(|other| other.coverage().upto < upto);
            self.segments.insert(n, segment);
        }
        Ok(())
    }

    fn delete_leftovers(&mut self, conn: &Connection, limit: usize) -> Result<(), rusqlite::Error> {
        if let Some(positions) = self.leftovers.last() {
            let chunks = limit.div_ceil(self.limits.chunk);
            let deleted = conn
                .prepare_cached(
                    "DELETE FROM id_chunks
                      WHERE position IN (SELECT position FROM id_chunks WHERE position BETWEEN ? AND ?
                                          ORDER BY position LIMIT ?)",
                )?
                .execute(params![positions.start(), positions.end(), at_most(chunks)])?;
            if deleted < chunks {
                self.leftovers.pop();
            }
        }
        Ok(())
    }

    /// The segment that [`IdIndex::forget_oldest`] forgets next; `None`: all are forgotten.
    pub(super) fn oldest(&self) -> Option<Oldest> {
        let n = self.segments.iter().position(|segment| !segment.is_remainder())?;
        Some(Oldest {
            upto: self.segments[n].coverage().upto,
            newest_received_at: self.received_by(n),
            settled_by: self.segments[n].coverage().newest_received_at,
            bytes: self.segments[n].bytes(),
        })
    }

    /// A time by which all events of the segment of that index had been received: its own, or an earlier one of what came
    /// later. While the clock was ahead, events got times of the future; they are at least as old as those behind them. An
    /// event whose time is of a clock that was behind makes none too old: ages are by the clock of retention, by which no
    /// event is older than it really is.
    fn received_by(&self, n: usize) -> Timestamp {
        let segments = self.segments[n..].iter().map(|segment| segment.coverage().newest_received_at);
        let sealing = self.sealing.as_ref().map(|writer| writer.coverage().newest_received_at);
        let in_memory = (!self.in_memory.is_empty()).then_some(self.newest_received_at);
        segments.chain(sealing).chain(in_memory).min().unwrap_or(self.newest_received_at)
    }

    /// Has the ids of events whose history is given up remembered from the times at which they were settled, which may be
    /// long after they came. `settled`: events up to [`IdIndex::indexed`] and those times, in the order of the events.
    pub(super) fn raise(
        &mut self,
        conn: &Connection,
        settled: &[(i64, Timestamp)],
    ) -> Result<(), rusqlite::Error> {
        let mut left = settled;
        while let Some((first, _)) = left.first() {
            let n = self.segments.partition_point(|segment| segment.coverage().upto < *first);
            let Some(segment) = self.segments.get_mut(n) else { break };
            let (here, behind) =
                left.split_at(left.partition_point(|(seq, _)| *seq <= segment.coverage().upto));
            left = behind;
            let own = here.iter().filter(|(seq, _)| segment.covers(*seq));
            let Some(newest) = own.map(|(_, at)| *at).max() else { continue };
            let number = segment.number();
            if !segment.raise(conn, newest)? {
                continue;
            }
            if let Some(sealing) = self.sealing.as_mut().filter(|sealing| sealing.replaces(number)) {
                sealing.raise(newest);
            }
            // It is not to be forgotten yet, and a pass may not have found ids whose rows go now.
            if self.is_being_forgotten(number)
                && let Some(Forgetting::Writing(writer)) = self.forgetting.take()
            {
                self.leftovers.push(Run::positions(writer.number()));
            }
        }
        Ok(())
    }

    /// Goes on to forget the oldest segment, by up to about `limit` ids. Returns whether there is more to do for it. Ids
    /// whose events still have a row stay, in a segment of the same range, in which the next pass searches again for ids whose
    /// rows are gone. Until the pass is done, all ids are found; its pages become free in the steps of
    /// [`IdIndex::index_some`] that follow.
    pub(super) fn forget_oldest(&mut self, conn: &Connection, limit: usize) -> Result<bool, rusqlite::Error> {
        let chunks = limit.div_ceil(self.limits.chunk);
        match self.forgetting.take() {
            None => return self.begin_forgetting(conn, limit),
            Some(Forgetting::Gathering(mut gathering)) => {
                gathering.search_some(conn, &self.segments, chunks)?;
                self.forgetting = Some(if gathering.is_done() {
                    self.next_run += 1;
                    Forgetting::Writing(gathering.into_writer(self.next_run - 1))
                } else {
                    Forgetting::Gathering(gathering)
                });
            }
            Some(Forgetting::Writing(mut writer)) => {
                if !writer.write_some(conn, chunks, self.limits.chunk)? {
                    self.replace(conn, writer)?;
                    return Ok(false);
                }
                self.forgetting = Some(Forgetting::Writing(writer));
            }
        }
        Ok(true)
    }

    fn begin_forgetting(&mut self, conn: &Connection, limit: usize) -> Result<bool, rusqlite::Error> {
        let Some(n) = self.segments.iter().position(|segment| !segment.is_remainder()) else {
            return Ok(false);
        };
        let oldest = &self.segments[n];
        if self.sealing.as_ref().is_some_and(|sealing| sealing.replaces(oldest.number())) {
            self.continue_sealing(conn, limit)?;
            return Ok(true);
        }
        let (mut segments, mut coverage) = (vec![oldest], oldest.coverage());
        for remainder in self.segments[..n].iter().rev() {
            let Some(both) = coverage.union(remainder.coverage()) else { break };
            segments.push(remainder);
            coverage = both;
        }
        self.forgetting = Some(Forgetting::Gathering(Gathering::new(&segments, coverage)));
        Ok(true)
    }

    /// Bytes of all segments on the disk, but for those whose pages are about to become free.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }
}

/// What only tests ask for.
#[cfg(test)]
impl IdIndex {
    /// Whether every id is in a segment.
    pub(super) fn is_indexed(&self) -> bool {
        self.in_memory.is_empty() && self.sealing.is_none()
    }

    /// Writes every id into a segment.
    pub(super) fn index_all(&mut self, conn: &Connection, last_seq: i64) -> Result<(), rusqlite::Error> {
        while !self.is_indexed() {
            self.begin_indexing(conn, last_seq)?;
            self.continue_sealing(conn, usize::MAX)?;
        }
        Ok(())
    }

    /// The event of that id.
    pub(super) fn find(&self, conn: &Connection, id: &IdHash) -> Result<Option<Known>, rusqlite::Error> {
        Ok(self.find_all(conn, &[*id])?[0])
    }
}

/// A limit as SQL takes it.
fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Limits that a test reaches.
    const SMALL: Limits = Limits { in_memory: 60, chunk: 4 };

    fn create(conn: &Connection) {
        conn.execute_batch("PRAGMA auto_vacuum = INCREMENTAL").unwrap();
        conn.execute_batch(include_str!("schema.sql")).unwrap();
    }

    /// An outbox of ids alone: the index, and as much of the events as it reads.
    struct World {
        conn: Connection,
        index: IdIndex,
        next_seq: i64,
    }

    /// The id of event `n`, as a number.
    fn id(n: u32) -> IdHash {
        hash_id_text(&format!("m-{n}"))
    }

    fn known(seq: i64) -> Known {
        Known { seq, digest: (seq as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes() }
    }

    impl World {
        fn new(limits: Limits) -> World {
            let conn = Connection::open_in_memory().unwrap();
            create(&conn);
            World { conn, index: IdIndex { limits, ..IdIndex::default() }, next_seq: 1 }
        }

        /// As after a crash: what is in memory is gone.
        fn crash(&mut self) {
            self.index = IdIndex { limits: self.index.limits, ..IdIndex::default() };
            self.index.load(&self.conn).unwrap();
        }

        /// Does the work in a transaction, which fails if `fails`.
        fn transaction<T>(&mut self, fails: bool, work: impl FnOnce(&mut World) -> T) -> Option<T> {
            self.conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            let next_seq = self.next_seq;
            self.index.begin_transaction();
            let done = work(self);
            if fails {
                self.index.clear();
                self.conn.execute_batch("ROLLBACK").unwrap();
                self.index.load(&self.conn).unwrap();
                self.next_seq = next_seq;
                return None;
            }
            self.conn.execute_batch("COMMIT").unwrap();
            Some(done)
        }

        /// Stores an event unless its id is known.
        fn append(&mut self, n: u32) -> Option<i64> {
            let seq = self.next_seq;
            if self.index.find(&self.conn, &id(n)).unwrap().is_some()
                || self.index.add(id(n), known(seq), Timestamp(seq)).is_some()
            {
                return None;
            }
            self.next_seq += 1;
            self.conn
                .prepare_cached(
                    "INSERT INTO events (seq, message_id, digest, file, place, spooled_at, received_at)
                     VALUES (?, ?, ?, '', 0, 0, ?)",
                )
                .unwrap()
                .execute(params![seq, format!("m-{n}"), known(seq).digest, seq])
                .unwrap();
            Some(seq)
        }

        /// Stores these events and seals them.
        fn seal(&mut self, ns: impl IntoIterator<Item = u32>) {
            for n in ns {
                self.append(n).unwrap();
            }
            self.index.index_all(&self.conn, self.next_seq - 1).unwrap();
        }

        fn index_some(&mut self, limit: usize) {
            self.index.index_some(&self.conn, self.next_seq - 1, limit).unwrap();
        }

        fn begin_indexing(&mut self) {
            self.index.begin_indexing(&self.conn, self.next_seq - 1).unwrap();
        }

        fn give_up(&self, seq: i64) {
            self.conn.prepare_cached("DELETE FROM events WHERE seq = ?").unwrap().execute([seq]).unwrap();
        }

        fn forget_oldest(&mut self) {
            while self.index.forget_oldest(&self.conn, 10).unwrap() {}
        }

        fn finish(&mut self) {
            self.index.index_all(&self.conn, self.next_seq - 1).unwrap();
            while self.index.is_indexing() {
                self.index_some(100);
            }
        }

        fn find(&self, n: u32) -> Option<i64> {
            let found = self.index.find(&self.conn, &id(n)).unwrap();
            found.inspect(|found| assert_eq!(*found, known(found.seq))).map(|known| known.seq)
        }

        fn number(&self, sql: &str) -> i64 {
            self.conn.query_row(sql, [], |r| r.get(0)).unwrap()
        }

        /// The ranges of the segments, each with its entries and whether it is a remainder.
        fn segments(&self) -> Vec<(i64, i64, usize, bool)> {
            let of = |segment: &Segment| {
                let Coverage { first_seq, upto, .. } = segment.coverage();
                (first_seq, upto, segment.entries(), segment.is_remainder())
            };
            self.index.segments.iter().map(of).collect()
        }

        fn assert_no_leftovers(&self) {
            let chunks: usize = self.index.segments.iter().map(|segment| segment.run().chunks()).sum();
            assert_eq!(self.number("SELECT count(*) FROM id_chunks"), chunks as i64);
        }
    }

    #[test]
    fn an_id_is_found_wherever_it_stands_until_it_is_removed_or_forgotten() {
        let mut world = World::new(SMALL);
        let mut rng = fastrand::Rng::with_seed(11);
        let mut model = HashMap::<u32, i64>::new();
        let mut reached = HashMap::<&str, u32>::new();
        for _ in 0..5_000 {
            let fails = rng.u8(0..20) == 0;
            match rng.u8(0..24) {
                // Some are new and some are not.
                0..8 => {
                    let ns: Vec<u32> = (0..rng.usize(1..12)).map(|_| rng.u32(0..3_000)).collect();
                    let compacted = rng.usize(0..20);
                    let stored = world.transaction(fails, |world| {
                        let stored: Vec<_> = ns.iter().map(|n| world.append(*n)).collect();
                        world.index_some(compacted);
                        stored
                    });
                    for (n, seq) in ns.into_iter().zip(stored.into_iter().flatten()) {
                        assert_eq!(seq.is_none(), model.contains_key(&n));
                        model.entry(n).or_insert_with(|| seq.unwrap());
                    }
                }
                8..11 => {
                    let Some((&n, &seq)) = model.iter().nth(rng.usize(0..model.len().max(1))) else {
                        continue;
                    };
                    let again = rng.bool();
                    let done = world.transaction(fails, |world| {
                        world.index.remove(&world.conn, &id(n), seq).unwrap();
                        world.give_up(seq);
                        again.then(|| world.append(n).unwrap())
                    });
                    if let Some(seq) = done {
                        model.remove(&n);
                        model.extend(seq.map(|seq| (n, seq)));
                        *reached.entry("removed").or_default() += 1;
                        for (is_on, what) in [
                            (world.index.sealing.is_some(), "removed while sealing"),
                            (world.index.forgetting.is_some(), "removed while forgetting"),
                        ] {
                            *reached.entry(what).or_default() += u32::from(is_on);
                        }
                    }
                }
                // The history is given up, and the ids stay.
                11..13 if world.index.forgetting.is_none() => {
                    let upto = world.index.indexed();
                    let given_up: Vec<i64> =
                        model.values().copied().filter(|seq| *seq <= upto && rng.u8(0..8) == 0).collect();
                    world.transaction(fails, |world| given_up.iter().for_each(|seq| world.give_up(*seq)));
                }
                13..17 => {
                    let limit = rng.usize(0..40);
                    world.transaction(fails, |world| world.index_some(limit));
                }
                17 => {
                    world.transaction(fails, World::begin_indexing);
                }
                18 => {
                    world.transaction(fails, |world| {
                        world.index.index_all(&world.conn, world.next_seq - 1).unwrap();
                    });
                }
                19..23 if world.segments().len() > 8 || world.index.forgetting.is_some() => {
                    let Some(Oldest { upto, .. }) = world.index.oldest() else { continue };
                    let limit = rng.usize(0..120);
                    let done = world
                        .transaction(fails, |world| world.index.forget_oldest(&world.conn, limit).unwrap());
                    if done == Some(false) {
                        let rows: HashSet<i64> = {
                            let mut rows = world.conn.prepare("SELECT seq FROM events").unwrap();
                            rows.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
                        };
                        let before = model.len();
                        model.retain(|_, seq| *seq > upto || rows.contains(seq));
                        *reached.entry("forgotten").or_default() += (before - model.len()) as u32;
                        let remainder = world.segments()[0];
                        *reached.entry("survived").or_default() += u32::from(remainder.3);
                    }
                }
                23 if rng.u8(0..4) == 0 => world.crash(),
                _ => {}
            }
            let ns: Vec<u32> = (0..40).map(|_| rng.u32(0..3_100)).collect();
            let ids: Vec<IdHash> = ns.iter().copied().map(id).collect();
            let want: Vec<_> = ns.iter().map(|n| model.get(n).copied().map(known)).collect();
            assert_eq!(world.index.find_all(&world.conn, &ids).unwrap(), want);
            for (id, want) in ids.iter().zip(want).take(4) {
                let upto = world.index.indexed();
                let sealed = want.filter(|known| known.seq <= upto);
                let found = IdIndex::find_stored(&world.conn, id).unwrap();
                assert_eq!(found.filter(|known| known.seq <= upto), sealed);
            }
        }
        assert!(reached.len() == 5 && reached.values().all(|times| *times > 50), "{reached:?}");
        world.finish();
        world.assert_no_leftovers();
        world.crash();
        assert!(!world.index.is_indexing());
        for n in 0..3_000 {
            assert_eq!(world.find(n), model.get(&n).copied());
        }
    }

    #[test]
    fn a_pass_that_is_killed_after_any_step_loses_no_id_and_leaves_nothing_behind() {
        type Step = fn(&mut World);
        let work: [(&str, Step); 2] = [
            ("seal", |world| {
                world.begin_indexing();
                world.index_some(7);
            }),
            ("forget", |world| {
                world.index.forget_oldest(&world.conn, 7).unwrap();
            }),
        ];
        for (what, step) in work {
            let mut done = 0;
            for killed_after in 0..40 {
                let mut world = World::new(SMALL);
                world.seal(0..50);
                (1..=50).filter(|seq| seq % 3 > 0).for_each(|seq| world.give_up(seq));
                for n in 50..90 {
                    world.append(n).unwrap();
                }
                for _ in 0..killed_after {
                    world.transaction(false, step).unwrap();
                }
                let is_forgotten = world.segments().iter().any(|segment| segment.3);
                let is_done = is_forgotten || world.index.indexed() == 90;
                world.crash();
                for n in 0..90 {
                    let is_gone = is_forgotten && n < 50 && (n + 1) % 3 > 0;
                    assert_eq!(
                        world.find(n),
                        (!is_gone).then_some(i64::from(n) + 1),
                        "{what} {killed_after}"
                    );
                }
                world.finish();
                world.assert_no_leftovers();
                assert_eq!(
                    (0..90).filter(|n| world.find(*n).is_some()).count(),
                    if is_forgotten { 56 } else { 90 }
                );
                done += u32::from(is_done);
            }
            assert!((20..36).contains(&done), "{what} was done in {done} of 40 cases");
        }
    }

    #[test]
    fn an_id_that_came_again_is_that_of_the_later_event() {
        let mut world = World::new(SMALL);
        world.seal(0..50);
        world.index.remove(&world.conn, &id(7), 8).unwrap();
        world.give_up(8);
        // During a pass, both before and after its chunk is written.
        for n in 50..70 {
            world.append(n).unwrap();
        }
        world.begin_indexing();
        world.index_some(30);
        for n in 50..60 {
            world.index.remove(&world.conn, &id(n), i64::from(n) + 1).unwrap();
            world.give_up(i64::from(n) + 1);
        }
        let again: Vec<_> = (50..60).chain([7]).map(|n| (n, world.append(n))).collect();
        assert_eq!(again[10], (7, Some(81)));
        for _ in 0..2 {
            world.finish();
            again.iter().for_each(|(n, seq)| assert_eq!(world.find(*n), *seq));
            world.crash();
        }
        // A stale entry that nobody has removed.
        world.seal(1_000..1_060);
        world.index.add(id(0), known(500), Timestamp(500));
        world.index.index_all(&world.conn, 500).unwrap();
        assert_eq!(world.find(0), Some(500));
        assert_eq!(IdIndex::find_stored(&world.conn, &id(0)).unwrap(), Some(known(500)));
    }

    #[test]
    fn seals_of_few_ids_extend_the_newest_segments() {
        let mut world = World::new(SMALL);
        let mut sealed = |count: u32| {
            let n = world.next_seq as u32;
            world.seal(n..n + count);
            world.segments().iter().map(|segment| segment.2).collect::<Vec<_>>()
        };
        for (count, want) in [
            (1, vec![1]),
            (1, vec![2]),
            (1, vec![2, 1]),
            (5, vec![8]),
            (40, vec![48]),
            (12, vec![48, 12]),
            (13, vec![48, 25]),
            (48, vec![48, 25, 48]),
            (61, vec![48, 25, 48, 61]),
        ] {
            assert_eq!(sealed(count), want);
        }
        world.finish();
        world.assert_no_leftovers();
        assert!((1..world.next_seq).all(|seq| world.find(seq as u32) == Some(seq)));
    }

    #[test]
    fn the_oldest_segments_are_forgotten_except_ids_whose_rows_stand() {
        let mut world = World::new(SMALL);
        for from in [0, 50, 100] {
            world.seal(from..from + 50);
        }
        let before = world.index.bytes();
        // Of each segment a few stay.
        (1..=150).filter(|seq| seq % 10 > 0).for_each(|seq| world.give_up(seq));
        let oldest = world.index.oldest().unwrap();
        assert_eq!((oldest.upto, oldest.newest_received_at), (50, Timestamp(50)));
        assert_eq!(3 * oldest.bytes, before);
        world.forget_oldest();
        assert_eq!(world.segments(), [(1, 50, 5, true), (51, 100, 50, false), (101, 150, 50, false)]);
        assert!((0..50).all(|n| world.find(n).is_some() == ((n + 1) % 10 == 0)));
        assert!(
            (50..150).all(|n| world.find(n) == Some(i64::from(n) + 1)),
            "their history is gone, not their ids"
        );
        // What stayed is searched again with the next.
        [10, 20, 30].iter().for_each(|seq| world.give_up(*seq));
        world.crash();
        world.forget_oldest();
        assert_eq!(world.segments(), [(1, 100, 7, true), (101, 150, 50, false)]);
        (1..=150).for_each(|seq| world.give_up(seq));
        world.forget_oldest();
        assert_eq!((world.segments(), world.index.oldest(), world.index.bytes()), (vec![], None, 0));
        assert!(!world.index.forget_oldest(&world.conn, 10).unwrap());
        world.finish();
        world.assert_no_leftovers();
        assert_eq!(world.number("SELECT count(*) FROM id_chunks"), 0);
    }

    #[test]
    fn a_segment_of_the_future_is_as_old_as_what_came_after_it() {
        // The times of segments, of a seal that goes on, and of an id in memory; the oldest segment's then.
        for (times, sealing, in_memory, want) in [
            (&[1, 2, 3][..], None, None, 1),
            (&[900], None, None, 900),
            (&[900, 2, 3], None, None, 2),
            (&[900, 950, 3], None, None, 3),
            (&[900, 901, 902], None, None, 900),
            (&[900], Some(5), Some(6), 5),
            (&[900], Some(905), Some(6), 6),
            (&[900, 950], None, Some(6), 6),
            (&[1], Some(5), Some(6), 1),
        ] {
            let mut world = World::new(SMALL);
            let add = |world: &mut World, count: i64, time: i64| {
                for seq in world.next_seq..world.next_seq + count {
                    assert_eq!(world.index.add(id(seq as u32), known(seq), Timestamp(time)), None);
                }
                world.next_seq += count;
            };
            // Each is smaller than the one before, which it does not take up.
            for (count, time) in (0..50).rev().step_by(10).zip(times) {
                add(&mut world, count, *time);
                world.finish();
            }
            if let Some(time) = sealing {
                add(&mut world, 5, time);
                world.begin_indexing();
            }
            in_memory.into_iter().for_each(|time| add(&mut world, 1, time));
            let case = format!("{times:?} {sealing:?} {in_memory:?}");
            assert_eq!(world.segments().len(), times.len(), "{case}");
            assert_eq!(world.index.oldest().unwrap().newest_received_at, Timestamp(want), "{case}");
        }
    }

    #[test]
    fn a_segment_that_is_being_extended_is_forgotten_after_that() {
        let mut world = World::new(SMALL);
        world.seal(0..20);
        for n in 20..50 {
            world.append(n).unwrap();
        }
        world.begin_indexing();
        world.index_some(8);
        (1..=20).for_each(|seq| world.give_up(seq));
        world.forget_oldest();
        assert_eq!(world.segments(), [(1, 50, 30, true)]);
        // The other way round: a segment that is being forgotten is not extended.
        world.seal(50..60);
        assert!(world.index.forget_oldest(&world.conn, 4).unwrap());
        world.seal(60..80);
        assert_eq!(world.segments(), [(1, 50, 30, true), (51, 60, 10, false), (61, 80, 20, false)]);
        world.forget_oldest();
        assert_eq!(world.segments(), [(1, 60, 40, true), (61, 80, 20, false)]);
    }

    #[test]
    fn events_that_are_too_far_apart_stand_in_several_segments() {
        let mut world = World::new(SMALL);
        let far = i64::from(u32::MAX);
        let seqs = [1, 1 + far, 2 + far, 1 << 40];
        for (n, seq) in (0..).zip(seqs) {
            world.next_seq = seq;
            world.append(n).unwrap();
        }
        world.finish();
        assert_eq!(world.segments().len(), 3, "{:?}", world.segments());
        world.crash();
        assert_eq!([0, 1, 2, 3].map(|n| world.find(n)), seqs.map(Some));
        (0..3).for_each(|_| world.forget_oldest());
        assert_eq!([0, 1, 2, 3].map(|n| world.find(n)), seqs.map(Some));
    }

    #[test]
    fn a_failed_transaction_takes_back_what_it_sealed_and_forgot() {
        let mut world = World::new(SMALL);
        world.seal(0..50);
        let before = world.segments();
        world.transaction(true, |world| {
            (1..=50).for_each(|seq| world.give_up(seq));
            world.forget_oldest();
            world.seal(50..100);
        });
        assert_eq!(world.segments(), before);
        // The same run with other ids.
        world.next_seq = 51;
        world.seal(200..250);
        assert!((0..50).all(|n| world.find(n) == Some(i64::from(n) + 1)));
        assert!((50..100).all(|n| world.find(n).is_none()));
        assert!((200..250).all(|n| world.find(n) == Some(i64::from(n) - 149)));
    }

    #[test]
    fn loading_again_reads_no_segment_that_is_in_memory() {
        let mut world = World::new(SMALL);
        world.seal(0..50);
        world.seal(50..100);
        // Would be noticed.
        world.conn.execute("UPDATE id_segments SET filter = x'00', fences = x'00'", []).unwrap();
        world.index.clear();
        world.index.load(&world.conn).unwrap();
        assert!((0..100).all(|n| world.find(n).is_some()));
        let mut index = IdIndex::default();
        let error = index.load(&world.conn).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt));
    }

    #[test]
    fn a_damaged_chunk_is_an_error_and_not_a_new_id() {
        for damage in ["DELETE FROM id_chunks", "UPDATE id_chunks SET entries = x'00'"] {
            let mut world = World::new(SMALL);
            world.seal(0..50);
            world.conn.execute(damage, []).unwrap();
            let error = world.index.find(&world.conn, &id(7)).unwrap_err();
            assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt), "{damage}");
        }
    }

    #[test]
    fn events_that_were_not_stored_after_all_leave_no_id() {
        let mut world = World::new(SMALL);
        world.index.begin_transaction();
        assert_eq!(world.index.add(id(0), known(1), Timestamp(1)), None);
        assert_eq!(world.index.add(id(0), known(2), Timestamp(1)), Some(known(1)));
        assert_eq!(world.index.added(), 1);
        world.index.undo_add(&[id(0)]);
        assert_eq!((world.index.added(), world.find(0)), (0, None));
        assert!(world.index.is_indexed());
    }

    /// Seals `count` ids of their own in segments of 200,000, without events. Returns a place where there are some.
    fn seal_many(path: &Path, count: u64) -> (Connection, IdIndex) {
        let conn = Connection::open(path).unwrap();
        create(&conn);
        conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
        let mut index = IdIndex::default();
        for seq in 1..=count {
            index.add(id_at(seq), known(seq as i64), Timestamp(seq as i64));
            if seq % 200_000 == 0 || seq == count {
                conn.execute_batch("BEGIN").unwrap();
                index.begin_indexing(&conn, seq as i64).unwrap();
                while index.is_indexing() {
                    index.index_some(&conn, seq as i64, 20_000).unwrap();
                }
                conn.execute_batch("COMMIT").unwrap();
            }
        }
        (conn, index)
    }

    fn id_at(seq: u64) -> IdHash {
        fastrand::Rng::with_seed(seq).u128(..).to_be_bytes()
    }

    fn pages(conn: &Connection) -> u64 {
        let number = |sql| conn.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
        (number("PRAGMA page_count") - number("PRAGMA freelist_count")) as u64
    }

    #[test]
    fn an_id_takes_31_bytes_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let empty = {
            let conn = Connection::open(dir.path().join("empty.db")).unwrap();
            create(&conn);
            pages(&conn)
        };
        let (conn, index) = seal_many(&dir.path().join("ids.db"), 200_000);
        let bytes = (pages(&conn) - empty) * 4_096;
        assert!(bytes <= 31 * 200_000, "{} bytes an id", bytes as f64 / 200_000.0);
        let estimate = index.bytes();
        assert!((bytes - bytes / 100..=bytes).contains(&estimate), "{estimate} for {bytes}");
        let chunk =
            "SELECT pgsize - unused, payload FROM dbstat WHERE name = 'id_chunks' AND pagetype = 'overflow'";
        assert!(
            conn.query_row(chunk, [], |_| Ok(())).optional().unwrap().is_none(),
            "a chunk overflows its page"
        );
    }

    /// Run by hand, with `--release --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement of some minutes"]
    #[allow(clippy::print_stdout, reason = "its result is what it prints")]
    fn measure_26_million_ids() {
        let count = 26_000_000;
        let dir = tempfile::tempdir_in("target").unwrap();
        let path = dir.path().join("ids.db");
        let began = std::time::Instant::now();
        let (conn, index) = seal_many(&path, count);
        let bytes = pages(&conn) * 4_096;
        println!("sealed in {:?}; {} segments", began.elapsed(), index.segments.len());
        println!(
            "on disk: {bytes} bytes, {:.2} an id; estimated {}",
            bytes as f64 / count as f64,
            index.bytes()
        );
        drop(index);
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned()
        };
        println!("before load: {}", resident());
        let mut index = IdIndex::default();
        for what in ["first load", "load again"] {
            let began = std::time::Instant::now();
            index.load(&conn).unwrap();
            println!("{what}: {:?}, {}", began.elapsed(), resident());
        }
        conn.execute_batch("BEGIN").unwrap();
        let mut rng = fastrand::Rng::with_seed(3);
        let new: Vec<IdHash> = (0..200_000).map(|n| id_at(count + 1 + n)).collect();
        let old: Vec<IdHash> = (0..200_000).map(|_| id_at(rng.u64(1..=count))).collect();
        let recent: Vec<IdHash> = (0..200_000).map(|n| id_at(count - n)).collect();
        for (what, ids) in
            [("new", &new), ("known, random", &old), ("known, of the newest segments", &recent)]
        {
            for (how, size) in [("one by one", 1), ("512 at once", 512)] {
                let began = std::time::Instant::now();
                let mut found = 0;
                for ids in ids.chunks(size) {
                    found += index.find_all(&conn, ids).unwrap().iter().flatten().count();
                }
                println!("{what}, {how}: {:?} an id; {found} found", began.elapsed() / ids.len() as u32);
            }
        }
        let began = std::time::Instant::now();
        for id in &old[..100] {
            assert!(IdIndex::find_stored(&conn, id).unwrap().is_some());
        }
        println!("known, by what is on the disk alone: {:?}", began.elapsed() / 100);
        let began = std::time::Instant::now();
        let mut longest = std::time::Duration::ZERO;
        loop {
            let step = std::time::Instant::now();
            let has_more = index.forget_oldest(&conn, 5_000).unwrap();
            longest = longest.max(step.elapsed());
            if !has_more {
                break;
            }
        }
        println!("forgetting a segment: {:?}, longest step of 5,000: {longest:?}", began.elapsed());
        conn.execute_batch("COMMIT; PRAGMA wal_autocheckpoint = 0").unwrap();
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        for seq in count + 1..=count + 200_000 {
            index.add(id_at(seq), known(seq as i64), Timestamp(seq as i64));
        }
        let (began, mut longest, mut steps) = (std::time::Instant::now(), std::time::Duration::ZERO, 0);
        index.begin_indexing(&conn, (count + 200_000) as i64).unwrap();
        let sorting = began.elapsed();
        while !index.is_indexed() {
            let step = std::time::Instant::now();
            conn.execute_batch("BEGIN").unwrap();
            index.index_some(&conn, (count + 200_000) as i64, 1_000).unwrap();
            conn.execute_batch("COMMIT").unwrap();
            longest = longest.max(step.elapsed());
            steps += 1;
        }
        let frames: i64 = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get(1)).unwrap();
        println!(
            "sealing 200,000: {:?} ({sorting:?} to sort) in {steps} commits, the longest {longest:?}; {} bytes of log an id",
            began.elapsed(),
            frames * 4_120 / 200_000
        );
    }
}
