//! The passes that write segments of the index of ids, some entries in each transaction.
//!
//! ```text
//!   ids in memory, small newest segments ──────────┐
//!                                                  ├──▶ SegmentWriter ──▶ one segment in place of those
//!   oldest segment ──Gathering──▶ ids of rows ─────┘
//! ```
//!
//! Until a pass is done, its source counts; then one transaction puts the new segment in place of the old ones. A crash in
//! between leaves chunks of no segment, which the index deletes.

use super::id_filter::IdFilter;
use super::id_segment::{Coverage, Entry, IdHash, Known, Run, Segment};
use crate::clock::Timestamp;
use rusqlite::Connection;
use std::cmp::Reverse;
use std::collections::HashSet;

/// Entries that are being written as a segment.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    /// Sorted by id; the first `taken` of them are written or left out.
    entries: Vec<Entry>,
    taken: usize,
    written: usize,
    /// Entries that were removed meanwhile.
    removed: HashSet<(IdHash, i64)>,
    run: Run,
    coverage: Coverage,
    filter: IdFilter,
    is_remainder: bool,
    /// The numbers of the segments that the new one replaces.
    replaced: Vec<i64>,
}

impl SegmentWriter {
    /// Begins a segment of `entries`, in any order; of several with one id, the one of the latest event counts.
    pub(super) fn new(
        number: i64,
        coverage: Coverage,
        mut entries: Vec<Entry>,
        is_remainder: bool,
        replaced: Vec<i64>,
    ) -> SegmentWriter {
        entries.sort_unstable_by_key(|(id, known)| (*id, Reverse(known.seq)));
        entries.dedup_by_key(|(id, _)| *id);
        SegmentWriter {
            filter: IdFilter::for_ids(entries.len()),
            entries,
            taken: 0,
            written: 0,
            removed: HashSet::new(),
            run: Run::new(number, coverage.first_seq),
            coverage,
            is_remainder,
            replaced,
        }
    }

    /// Whether that segment will be replaced.
    pub(super) fn replaces(&self, number: i64) -> bool {
        self.replaced.contains(&number)
    }

    pub(super) fn replaced(&self) -> &[i64] {
        &self.replaced
    }

    pub(super) fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Has the ids remembered as [`Segment::raise`] does.
    pub(super) fn raise(&mut self, to: Timestamp) {
        if let Some(to) = self.coverage.raised(to) {
            self.coverage.newest_received_at = to;
        }
    }

    /// The number of the run that is being written.
    pub(super) fn number(&self) -> i64 {
        self.run.number()
    }

    /// Searches the entries in memory, whether or not they are written.
    pub(super) fn find(&self, id: &IdHash) -> Option<Known> {
        let n = self.entries.binary_search_by_key(id, |(id, _)| *id).ok()?;
        let known = self.entries[n].1;
        (!self.removed.contains(&(*id, known.seq))).then_some(known)
    }

    /// Removes an entry, written or not.
    pub(super) fn remove(&mut self, conn: &Connection, id: &IdHash, seq: i64) -> Result<(), rusqlite::Error> {
        if self.find(id).is_some_and(|known| known.seq == seq) {
            self.removed.insert((*id, seq));
            self.run.remove(conn, id, seq)?;
        }
        Ok(())
    }

    /// Writes up to `chunks` chunks of `size` entries. Returns whether more are to be written.
    pub(super) fn write_some(
        &mut self,
        conn: &Connection,
        chunks: usize,
        size: usize,
    ) -> Result<bool, rusqlite::Error> {
        let mut chunk = Vec::with_capacity(size);
        for _ in 0..chunks {
            if self.taken == self.entries.len() {
                break;
            }
            chunk.clear();
            while chunk.len() < size && self.taken < self.entries.len() {
                let (id, known) = self.entries[self.taken];
                self.taken += 1;
                if !self.removed.contains(&(id, known.seq)) {
                    self.filter.add(&id);
                    chunk.push((id, known));
                }
            }
            self.run.push(conn, &chunk)?;
            self.written += chunk.len();
        }
        Ok(self.taken < self.entries.len())
    }

    /// Puts the segment in place of those that it replaces; `None`: it has no entries.
    pub(super) fn finish(self, conn: &Connection) -> Result<Option<Segment>, rusqlite::Error> {
        for number in &self.replaced {
            Segment::delete(conn, *number)?;
        }
        if self.written == 0 {
            return Ok(None);
        }
        let SegmentWriter { run, coverage, written, is_remainder, filter, .. } = self;
        Segment::insert(conn, run, coverage, written, is_remainder, filter).map(Some)
    }
}

/// The search of segments that are to be forgotten for the ids that stay because their rows still stand.
#[derive(Debug)]
pub(super) struct Gathering {
    /// The numbers of the segments and of the chunks to be searched, in descending order.
    left: Vec<(i64, usize)>,
    segments: Vec<i64>,
    coverage: Coverage,
    found: Vec<Entry>,
    removed: HashSet<(IdHash, i64)>,
}

impl Gathering {
    /// `coverage`: of all the segments.
    pub(super) fn new(segments: &[&Segment], coverage: Coverage) -> Gathering {
        let chunks = |segment: &&Segment| {
            let number = segment.number();
            (0..segment.run().chunks()).map(move |chunk| (number, chunk))
        };
        Gathering {
            left: segments.iter().flat_map(chunks).rev().collect(),
            segments: segments.iter().map(|segment| segment.number()).collect(),
            coverage,
            found: Vec::new(),
            removed: HashSet::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn searches(&self, number: i64) -> bool {
        self.segments.contains(&number)
    }

    /// Searches up to `chunks` chunks of `segments`, which are all segments.
    pub(super) fn search_some(
        &mut self,
        conn: &Connection,
        segments: &[Segment],
        chunks: usize,
    ) -> Result<(), rusqlite::Error> {
        let mut stands = conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE seq = ?)")?;
        for (number, chunk) in self.left.drain(self.left.len().saturating_sub(chunks)..).rev() {
            let Some(segment) = segments.iter().find(|segment| segment.number() == number) else { continue };
            for (id, known) in segment.run().read(conn, chunk)? {
                if stands.query_row([known.seq], |r| r.get(0))? {
                    self.found.push((id, known));
                }
            }
        }
        Ok(())
    }

    /// Notes that an entry was removed from its segment: it may have been found already.
    pub(super) fn remove(&mut self, id: &IdHash, seq: i64) {
        if (self.coverage.first_seq..=self.coverage.upto).contains(&seq) {
            self.removed.insert((*id, seq));
        }
    }

    /// Begins to write what was found, as the segment of that number.
    pub(super) fn into_writer(self, number: i64) -> SegmentWriter {
        let Gathering { segments, coverage, mut found, removed, .. } = self;
        found.retain(|(id, known)| !removed.contains(&(*id, known.seq)));
        SegmentWriter::new(number, coverage, found, true, segments)
    }
}
