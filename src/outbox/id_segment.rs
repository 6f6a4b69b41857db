//! A segment of the index of ids: the ids of a contiguous range of events, sorted, in chunks of one page each.
//!
//! Chunks are blobs and not rows of a table keyed by the id: of 28 bytes an entry, a row would take ten more for the headers
//! of its record and its cell, and pages that are filled at random places are a third empty. A chunk that is longer than
//! about 1,000 bytes would overflow its page in a table WITHOUT ROWID; in a table with row ids it may fill the page.

use super::id_filter::IdFilter;
use super::pages::record::{OVERFLOW_ROOM, PAGE_SIZE};
use crate::clock::Timestamp;
use crate::event::MessageId;
use rusqlite::{Connection, OptionalExtension, ffi, params};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

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

/// What is known of an event by its id alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) seq: i64,
    /// The first 8 bytes of the digest of the event's content.
    pub(super) digest: [u8; 8],
}

pub(super) type Entry = (IdHash, Known);

/// Entries of a chunk: as many as fit into a page of 4,096 bytes, with the headers of the page, the cell and the record.
pub(super) const CHUNK_ENTRIES: usize = 144;
const ENTRY_BYTES: usize = 28;
/// Segments are forgotten as a whole, by the newest of their events. One covers a day at most, so that an id is forgotten
/// within a day of its time.
pub(super) const SEGMENT_AGE: Duration = Duration::from_secs(86_400);

/// Bits of a chunk's row id that number the chunks of one run: 2 billion entries, more than fit into memory.
const CHUNK_BITS: u32 = 24;

/// The range of events whose ids a segment has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coverage {
    /// No entry has a lower seq.
    pub(super) first_seq: i64,
    /// No entry has a higher seq.
    pub(super) upto: i64,
    /// When the newest event of the range was received, or later: when one was settled whose history is given up.
    pub(super) newest_received_at: Timestamp,
}

impl Coverage {
    /// The highest seq that an entry can hold beside `first_seq`.
    pub(super) fn highest_seq(first_seq: i64) -> i64 {
        first_seq.saturating_add(i64::from(u32::MAX))
    }

    /// The newest time, if that one is later: the end of its hour.
    pub(super) fn raised(self, to: Timestamp) -> Option<Timestamp> {
        const HOUR: i64 = 3_600_000;
        let end = Timestamp(to.0.saturating_add(HOUR - 1).div_euclid(HOUR) * HOUR);
        (to > self.newest_received_at).then_some(end)
    }

    /// A range that has both; `None`: an entry could not hold the distance.
    pub(super) fn union(self, other: Coverage) -> Option<Coverage> {
        let first_seq = self.first_seq.min(other.first_seq);
        let upto = self.upto.max(other.upto);
        (upto <= Coverage::highest_seq(first_seq)).then_some(Coverage {
            first_seq,
            upto,
            newest_received_at: self.newest_received_at.max(other.newest_received_at),
        })
    }
}

/// Sorted entries in chunks, as they stand in `id_chunks`.
#[derive(Debug)]
pub(super) struct Run {
    number: i64,
    first_seq: i64,
    /// The first id of each chunk when it was written: no entry of the chunk is lower.
    fences: Vec<IdHash>,
}

impl Run {
    pub(super) fn new(number: i64, first_seq: i64) -> Run {
        Run { number, first_seq, fences: Vec::new() }
    }

    /// The number of the run that has that row of `id_chunks`.
    pub(super) fn number_at(position: i64) -> i64 {
        position >> CHUNK_BITS
    }

    /// The rows of `id_chunks` that are the run's alone.
    pub(super) fn positions(number: i64) -> RangeInclusive<i64> {
        let first = number << CHUNK_BITS;
        first..=first + (1 << CHUNK_BITS) - 1
    }

    pub(super) fn number(&self) -> i64 {
        self.number
    }

    pub(super) fn chunks(&self) -> usize {
        self.fences.len()
    }

    fn position(&self, chunk: usize) -> i64 {
        (self.number << CHUNK_BITS) + chunk as i64
    }

    /// Writes the next chunk. The entries are sorted, and behind those of the last one.
    pub(super) fn push(&mut self, conn: &Connection, entries: &[Entry]) -> Result<(), rusqlite::Error> {
        let Some((first, _)) = entries.first() else { return Ok(()) };
        conn.prepare_cached("INSERT INTO id_chunks (position, entries) VALUES (?, ?)")?
            .execute(params![self.position(self.chunks()), self.pack(entries)])?;
        self.fences.push(*first);
        Ok(())
    }

    /// The entry of that id.
    pub(super) fn find(&self, conn: &Connection, id: &IdHash) -> Result<Option<Known>, rusqlite::Error> {
        let Some(chunk) = self.chunk_of(id) else { return Ok(None) };
        conn.prepare_cached("SELECT entries FROM id_chunks WHERE position = ?")?
            .query_row([self.position(chunk)], |r| {
                let entries = packed(r.get_ref(0)?.as_blob()?)?;
                let found = entries.binary_search_by(|entry| entry[..16].cmp(id));
                Ok(found.ok().map(|n| self.unpack(&entries[n]).1))
            })
            .optional()?
            .ok_or_else(|| corrupt("a chunk of ids is missing"))
    }

    /// The entries of a chunk.
    pub(super) fn read(&self, conn: &Connection, chunk: usize) -> Result<Vec<Entry>, rusqlite::Error> {
        conn.prepare_cached("SELECT entries FROM id_chunks WHERE position = ?")?
            .query_row([self.position(chunk)], |r| {
                Ok(packed(r.get_ref(0)?.as_blob()?)?.iter().map(|entry| self.unpack(entry)).collect())
            })
            .optional()?
            .ok_or_else(|| corrupt("a chunk of ids is missing"))
    }

    /// Removes the entry of that id and event, if there is one.
    pub(super) fn remove(&self, conn: &Connection, id: &IdHash, seq: i64) -> Result<(), rusqlite::Error> {
        let Some(chunk) = self.chunk_of(id) else { return Ok(()) };
        let mut entries = self.read(conn, chunk)?;
        let before = entries.len();
        entries.retain(|(other, known)| (other, known.seq) != (id, seq));
        if entries.len() < before {
            conn.prepare_cached("UPDATE id_chunks SET entries = ?2 WHERE position = ?1")?
                .execute(params![self.position(chunk), self.pack(&entries)])?;
        }
        Ok(())
    }

    /// The entries of a chunk that may be damaged: those that are whole, as they stand there.
    pub(super) fn readable_entries(&self, bytes: &[u8]) -> impl Iterator<Item = Entry> {
        bytes.as_chunks().0.iter().map(|entry| self.unpack(entry))
    }

    fn chunk_of(&self, id: &IdHash) -> Option<usize> {
        self.fences.partition_point(|first| first <= id).checked_sub(1)
    }

    fn pack(&self, entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
        for (id, known) in entries {
            bytes.extend_from_slice(id);
            bytes.extend_from_slice(&known.digest);
            bytes.extend_from_slice(&((known.seq - self.first_seq) as u32).to_be_bytes());
        }
        bytes
    }

    fn unpack(&self, entry: &[u8; ENTRY_BYTES]) -> Entry {
        let (mut id, mut digest, mut distance) = ([0; 16], [0; 8], [0; 4]);
        id.copy_from_slice(&entry[..16]);
        digest.copy_from_slice(&entry[16..24]);
        distance.copy_from_slice(&entry[24..]);
        (id, Known { seq: self.first_seq + i64::from(u32::from_be_bytes(distance)), digest })
    }
}

fn packed(bytes: &[u8]) -> Result<&[[u8; ENTRY_BYTES]], rusqlite::Error> {
    match bytes.as_chunks() {
        (entries, []) => Ok(entries),
        _ => Err(corrupt("a chunk of ids is cut off")),
    }
}

fn fences_of(bytes: &[u8]) -> Result<Vec<IdHash>, rusqlite::Error> {
    match bytes.as_chunks() {
        (fences, []) => Ok(fences.to_vec()),
        _ => Err(corrupt("the fences of a segment of ids are cut off")),
    }
}

fn corrupt(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what.to_owned()))
}

/// A segment that counts: its row stands in `id_segments`.
#[derive(Debug)]
pub(super) struct Segment {
    run: Run,
    stamp: i64,
    coverage: Coverage,
    entries: usize,
    is_remainder: bool,
    filter: IdFilter,
}

impl Segment {
    /// Records a run that is wholly written, so that it counts from this transaction on.
    pub(super) fn insert(
        conn: &Connection,
        run: Run,
        coverage: Coverage,
        entries: usize,
        is_remainder: bool,
        filter: IdFilter,
    ) -> Result<Segment, rusqlite::Error> {
        let stamp = fastrand::i64(..);
        conn.prepare_cached(
            "INSERT INTO id_segments (segment, stamp, first_seq, upto, newest_received_at, entries, is_remainder,
                                      fences, filter)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            run.number,
            stamp,
            coverage.first_seq,
            coverage.upto,
            coverage.newest_received_at.0,
            entries as i64,
            is_remainder,
            run.fences.as_flattened(),
            filter.to_bytes(),
        ])?;
        Ok(Segment { run, stamp, coverage, entries, is_remainder, filter })
    }

    /// Reads all segments, the one of the oldest events first. Segments do not change, so of those in `cached` nothing is
    /// read that is large.
    pub(super) fn load_all(conn: &Connection, cached: Vec<Segment>) -> Result<Vec<Segment>, rusqlite::Error> {
        let mut stored = conn.prepare_cached("SELECT segment, stamp FROM id_segments ORDER BY upto")?;
        let stored = stored.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
        let mut cached: HashMap<i64, Segment> =
            cached.into_iter().map(|segment| (segment.stamp, segment)).collect();
        let mut segments = Vec::new();
        for segment in stored {
            let (number, stamp): (i64, i64) = segment?;
            segments.push(match cached.remove(&stamp) {
                Some(segment) => segment,
                None => Segment::load(conn, number)?,
            });
        }
        Ok(segments)
    }

    fn load(conn: &Connection, number: i64) -> Result<Segment, rusqlite::Error> {
        conn.prepare_cached(
            "SELECT stamp, first_seq, upto, newest_received_at, entries, is_remainder, fences, filter
               FROM id_segments WHERE segment = ?",
        )?
        .query_row([number], |r| {
            let first_seq = r.get(1)?;
            Ok(Segment {
                stamp: r.get(0)?,
                coverage: Coverage { first_seq, upto: r.get(2)?, newest_received_at: Timestamp(r.get(3)?) },
                entries: r.get::<_, i64>(4)? as usize,
                is_remainder: r.get(5)?,
                run: Run { number, first_seq, fences: fences_of(r.get_ref(6)?.as_blob()?)? },
                filter: IdFilter::from_bytes(r.get_ref(7)?.as_blob()?)
                    .ok_or_else(|| corrupt("the filter of a segment of ids is cut off"))?,
            })
        })
    }

    /// Searches all segments by what is on the disk alone. The filters are not read: they are larger than the fences and
    /// the one chunk of each segment.
    pub(super) fn find_stored(conn: &Connection, id: &IdHash) -> Result<Option<Known>, rusqlite::Error> {
        let mut runs =
            conn.prepare_cached("SELECT segment, first_seq, fences FROM id_segments ORDER BY upto DESC")?;
        let mut runs = runs.query([])?;
        while let Some(row) = runs.next()? {
            let fences = fences_of(row.get_ref(2)?.as_blob()?)?;
            let run = Run { number: row.get(0)?, first_seq: row.get(1)?, fences };
            if let Some(known) = run.find(conn, id)? {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// Has the ids remembered as if the newest event of the range had come at that time, in an hour's steps, so that the
    /// row is seldom written. A remainder becomes a segment again that is not forgotten yet. Returns whether anything has
    /// changed.
    pub(super) fn raise(&mut self, conn: &Connection, to: Timestamp) -> Result<bool, rusqlite::Error> {
        let Some(to) = self.coverage.raised(to) else { return Ok(false) };
        // Another stamp: if the transaction fails, the copy in memory is not that of the row.
        let stamp = fastrand::i64(..);
        conn.prepare_cached(
            "UPDATE id_segments SET stamp = ?2, newest_received_at = ?3, is_remainder = 0 WHERE segment = ?1",
        )?
        .execute(params![self.run.number, stamp, to.0])?;
        (self.stamp, self.coverage.newest_received_at, self.is_remainder) = (stamp, to, false);
        Ok(true)
    }

    /// Deletes the row; the chunks are to follow.
    pub(super) fn delete(conn: &Connection, number: i64) -> Result<(), rusqlite::Error> {
        conn.prepare_cached("DELETE FROM id_segments WHERE segment = ?")?.execute([number])?;
        Ok(())
    }

    pub(super) fn number(&self) -> i64 {
        self.run.number
    }

    pub(super) fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Entries when it was written; some may have been removed since.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Whether the range is forgotten, except ids whose rows stood.
    pub(super) fn is_remainder(&self) -> bool {
        self.is_remainder
    }

    pub(super) fn run(&self) -> &Run {
        &self.run
    }

    /// Whether `seq` is in the range.
    pub(super) fn covers(&self, seq: i64) -> bool {
        (self.coverage.first_seq..=self.coverage.upto).contains(&seq)
    }

    /// Whether the id may have an entry; read from memory alone.
    pub(super) fn may_contain(&self, id: &IdHash) -> bool {
        self.filter.may_contain(id)
    }

    /// Bytes of the pages that the segment takes on the disk, but for a few of the tables' inner pages.
    pub(super) fn bytes(&self) -> u64 {
        let row_pages = (self.filter.size() + self.run.fences.as_flattened().len()).div_ceil(OVERFLOW_ROOM);
        ((self.run.chunks() + row_pages) * PAGE_SIZE) as u64
    }
}
