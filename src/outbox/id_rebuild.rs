//! The index of ids made anew from what a recovery could read of it: rows of segments and chunks, and the events that are
//! left.
//!
//! ```text
//!   segments, newest first ──their chunks──▶ ┬─by seq, the highest first──▶ a segment for each 200,000
//!   events ────────────────────────────────▶ ┘
//! ```
//!
//! The stored segments are not mended in place: one whose chunk, fences or filter are damaged would need a check for each of
//! these, and two that cover the same events, because one had replaced the other, would still overlap. So only the
//! entries are read, each is compared with the row of its event, and all are written again. The events are read in the same
//! order, so that never more than the ids of a few segments are in memory.
//!
//! Where the row of an event stands, its id is the one that counts, whatever an entry of the same number says. Entries
//! without a row are kept as they are. Of entries with one id, that of an event whose row stands counts, and else the latest:
//! an id may come again once its event was erased or forgotten.

use super::id_rewrite::SegmentWriter;
use super::id_segment::{Coverage, Entry, IdHash, Known, Run, SEGMENT_AGE, Segment, hash_id_text};
use super::meta::{self, IDS_INDEXED};
use crate::clock::Timestamp;
use rusqlite::{Connection, Rows, params};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

/// A seq and a segment's number above these are damaged ones. SQLite's own numbers end soon behind.
const MAX_SEQ: i64 = 1 << 53;
const MAX_RUN: i64 = 1 << 36;

/// An entry that was read, with the time of its segment.
#[derive(Debug, Clone, Copy)]
struct Found {
    entry: Entry,
    received_at: Timestamp,
}

/// The row of a stored segment.
struct Stored {
    number: i64,
    coverage: Coverage,
}

/// The row of an event.
struct EventRow {
    id: IdHash,
    known: Known,
    received_at: Timestamp,
}

impl EventRow {
    fn next(rows: &mut Rows<'_>) -> Result<Option<EventRow>, rusqlite::Error> {
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(EventRow {
            known: Known { seq: row.get(0)?, digest: row.get(2)? },
            id: hash_id_text(row.get_ref(1)?.as_str()?),
            received_at: Timestamp(row.get(3)?),
        }))
    }
}

/// The entries of the segment that is written next.
#[derive(Debug, Default)]
struct Slice {
    /// By id, with whether the row of the event stands.
    entries: HashMap<IdHash, (Known, bool)>,
    coverage: Option<Coverage>,
}

impl Slice {
    /// Whether the ids of that event may come into this slice as well.
    fn takes(&self, seq: i64, received_at: Timestamp) -> bool {
        self.coverage.is_none_or(|coverage| {
            let apart = coverage
                .newest_received_at
                .since(received_at)
                .max(received_at.since(coverage.newest_received_at));
            coverage.upto <= Coverage::highest_seq(seq) && apart < SEGMENT_AGE
        })
    }

    /// Adds an entry of a lower seq than those before, or of the same.
    fn add(&mut self, id: IdHash, known: Known, has_row: bool, received_at: Timestamp) {
        let own = Coverage { first_seq: known.seq, upto: known.seq, newest_received_at: received_at };
        self.coverage = Some(self.coverage.and_then(|coverage| coverage.union(own)).unwrap_or(own));
        match self.entries.entry(id) {
            Place::Occupied(mut other) if has_row && !other.get().1 => drop(other.insert((known, true))),
            Place::Occupied(_) => {}
            Place::Vacant(place) => drop(place.insert((known, has_row))),
        }
    }
}

/// The making of the new segments, from the newest events to the oldest.
pub(super) struct IdRebuild<'a> {
    conn: &'a Connection,
    /// Entries of a segment, and of a chunk.
    entries: usize,
    chunk: usize,
    /// The stored segments that are not read yet, the one of the newest events last.
    stored: Vec<Stored>,
    /// Entries that are read and not in a slice yet, the one of the newest event last.
    found: Vec<Found>,
    slice: Slice,
    next_run: i64,
    written: Vec<Segment>,
}

impl<'a> IdRebuild<'a> {
    /// Makes the segments anew, of that many entries with that many in a chunk. Every event of `events` is known by its id
    /// then, and every id that could be read is. Must be called within a transaction.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn run(conn: &'a Connection, entries: usize, chunk: usize) -> Result<(), rusqlite::Error> {
        let stored = IdRebuild::read_stored(conn)?;
        let mut rebuild = IdRebuild {
            conn,
            entries,
            chunk,
            next_run: stored.iter().map(|segment| segment.number).max().unwrap_or_default() + 1,
            stored,
            found: Vec::new(),
            slice: Slice::default(),
            written: Vec::new(),
        };
        let covered = rebuild.stored.last().map(|segment| segment.coverage.upto);
        let mut events =
            conn.prepare("SELECT seq, message_id, digest, received_at FROM events ORDER BY seq DESC")?;
        let mut events = events.query([])?;
        let mut event = EventRow::next(&mut events)?;
        let newest = event.as_ref().map(|event| event.known.seq).max(covered);
        loop {
            let seq = event.as_ref().map(|event| event.known.seq);
            let seq = seq.max(rebuild.found.last().map(|found| found.entry.1.seq));
            let reaches = |segment: &mut Stored| seq.is_none_or(|seq| segment.coverage.upto >= seq);
            if let Some(segment) = rebuild.stored.pop_if(reaches) {
                rebuild.take_segment(&segment)?;
                continue;
            }
            let Some(seq) = seq else { break };
            let row = event.take_if(|event| event.known.seq == seq);
            if row.is_some() {
                event = EventRow::next(&mut events)?;
            }
            rebuild.add(seq, row)?;
        }
        rebuild.write_slice()?;
        match newest {
            Some(newest) => meta::set(conn, IDS_INDEXED, newest),
            None => meta::remove(conn, IDS_INDEXED),
        }
    }

    /// Reads which segments there are, and deletes what belongs to none.
    fn read_stored(conn: &Connection) -> Result<Vec<Stored>, rusqlite::Error> {
        conn.execute(
            "DELETE FROM id_segments
              WHERE NOT (segment BETWEEN 1 AND ?1 AND first_seq BETWEEN 1 AND upto AND upto <= ?2
                         AND upto - first_seq <= ?3)",
            params![MAX_RUN, MAX_SEQ, u32::MAX],
        )?;
        let stored = conn
            .prepare(
                "SELECT segment, first_seq, upto, newest_received_at FROM id_segments ORDER BY upto, segment",
            )?
            .query_map([], |r| {
                let (first_seq, upto) = (r.get(1)?, r.get(2)?);
                let newest_received_at = Timestamp(r.get(3)?);
                Ok(Stored { number: r.get(0)?, coverage: Coverage { first_seq, upto, newest_received_at } })
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let mut numbers: Vec<i64> = stored.iter().map(|segment| segment.number).collect();
        numbers.sort_unstable();
        let mut upto = i64::MIN;
        for number in numbers {
            let positions = Run::positions(number);
            delete_chunks(conn, upto, positions.start() - 1)?;
            upto = positions.end() + 1;
        }
        delete_chunks(conn, upto, i64::MAX)?;
        conn.execute("DELETE FROM id_segments", [])?;
        Ok(stored)
    }

    /// Reads the entries of a segment, as far as they are whole, and deletes its chunks: the new ones use the pages again.
    fn take_segment(&mut self, segment: &Stored) -> Result<(), rusqlite::Error> {
        let Coverage { first_seq, upto, newest_received_at } = segment.coverage;
        let (run, positions) = (Run::new(segment.number, first_seq), Run::positions(segment.number));
        {
            let mut chunks =
                self.conn.prepare_cached("SELECT entries FROM id_chunks WHERE position BETWEEN ? AND ?")?;
            let mut chunks = chunks.query([positions.start(), positions.end()])?;
            while let Some(chunk) = chunks.next()? {
                let entries = run.readable_entries(chunk.get_ref(0)?.as_blob()?);
                let own = entries.filter(|(_, known)| known.seq <= upto);
                self.found.extend(own.map(|entry| Found { entry, received_at: newest_received_at }));
            }
        }
        self.found.sort_unstable_by_key(|found| found.entry.1.seq);
        delete_chunks(self.conn, *positions.start(), *positions.end())
    }

    /// Adds the id of an event: that of its row, and else those that were read.
    fn add(&mut self, seq: i64, row: Option<EventRow>) -> Result<(), rusqlite::Error> {
        let read = self.found.last().filter(|found| found.entry.1.seq == seq).map(|found| found.received_at);
        let received_at = row.as_ref().map(|row| row.received_at).or(read).unwrap_or(Timestamp(0));
        if self.slice.entries.len() >= self.entries || !self.slice.takes(seq, received_at) {
            self.write_slice()?;
        }
        while let Some(found) = self.found.pop_if(|found| found.entry.1.seq == seq) {
            if row.is_none() {
                let (id, known) = found.entry;
                self.slice.add(id, known, false, received_at);
            }
        }
        if let Some(row) = row {
            self.slice.add(row.id, row.known, true, row.received_at);
        }
        Ok(())
    }

    /// Writes the slice as a segment, and removes from newer ones what would be found in place of an event whose row stands.
    fn write_slice(&mut self) -> Result<(), rusqlite::Error> {
        let Slice { entries, coverage } = std::mem::take(&mut self.slice);
        let Some(coverage) = coverage.filter(|_| !entries.is_empty()) else { return Ok(()) };
        let mut with_rows: Vec<IdHash> =
            entries.iter().filter(|(_, (_, has_row))| *has_row).map(|(id, _)| *id).collect();
        with_rows.sort_unstable();
        for segment in &self.written {
            for id in with_rows.iter().filter(|id| segment.may_contain(id)) {
                if let Some(newer) = segment.run().find(self.conn, id)? {
                    segment.run().remove(self.conn, id, newer.seq)?;
                }
            }
        }
        let entries = entries.into_iter().map(|(id, (known, _))| (id, known)).collect();
        let mut writer = SegmentWriter::new(self.next_run, coverage, entries, false, Vec::new());
        self.next_run += 1;
        while writer.write_some(self.conn, usize::MAX, self.chunk)? {}
        self.written.extend(writer.finish(self.conn)?);
        Ok(())
    }
}

fn delete_chunks(conn: &Connection, from: i64, to: i64) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("DELETE FROM id_chunks WHERE position BETWEEN ? AND ?")?.execute([from, to]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::id_index::IdIndex;

    /// Events that are sealed: in segments of so many that none takes up the one before.
    const SEALED: [i64; 3] = [1_000, 900, 800];
    /// Events behind them.
    const NEW: i64 = 90;

    /// An index over events of which half of those that are sealed have lost their rows.
    struct World {
        conn: Connection,
        index: IdIndex,
        next_seq: i64,
    }

    fn id(n: i64) -> IdHash {
        hash_id_text(&format!("m-{n}"))
    }

    fn known(seq: i64) -> Known {
        Known { seq, digest: seq.wrapping_mul(0x1E37_79B9_7F4A_7C15).to_be_bytes() }
    }

    impl World {
        /// Event `n` has the number `n`.
        fn new() -> World {
            let conn = Connection::open_in_memory().unwrap();
            conn.execute_batch(include_str!("schema.sql")).unwrap();
            let mut world = World { conn, index: IdIndex::default(), next_seq: 1 };
            for count in SEALED {
                (0..count).for_each(|_| world.append(world.next_seq));
                world.seal();
            }
            (0..NEW).for_each(|_| world.append(world.next_seq));
            let sealed: i64 = SEALED.into_iter().sum();
            world.execute(&format!("DELETE FROM events WHERE seq % 2 = 0 AND seq <= {sealed}"));
            world
        }

        fn execute(&self, sql: &str) {
            self.conn.execute_batch(sql).unwrap();
        }

        fn append(&mut self, n: i64) {
            let seq = self.next_seq;
            self.next_seq += 1;
            assert_eq!(self.index.add(id(n), known(seq), Timestamp(seq)), None);
            self.conn
                .prepare_cached(
                    "INSERT INTO events (seq, message_id, digest, file, place, spooled_at, received_at)
                     VALUES (?1, ?2, ?3, '', 0, 0, ?1)",
                )
                .unwrap()
                .execute(params![seq, format!("m-{n}"), known(seq).digest])
                .unwrap();
        }

        fn seal(&mut self) {
            self.index.index_all(&self.conn, self.next_seq - 1).unwrap();
            while self.index.is_indexing() {
                self.index.index_some(&self.conn, self.next_seq - 1, 1_000).unwrap();
            }
        }

        /// Makes the index anew as a recovery does, which keeps nothing of `meta`, and reads it.
        fn rebuild(&mut self) {
            self.execute("DELETE FROM meta; BEGIN");
            IdRebuild::run(&self.conn, 1_000, 144).unwrap();
            self.execute("COMMIT");
            self.index = IdIndex::default();
            self.index.load(&self.conn).unwrap();
        }

        fn find(&self, id: &IdHash) -> Option<i64> {
            let found = self.index.find(&self.conn, id).unwrap();
            assert_eq!(IdIndex::find_stored(&self.conn, id).unwrap(), found);
            found.map(|known| known.seq)
        }

        /// The events of which at least the id was stored and which are not known.
        fn unknown(&self) -> usize {
            (1..self.next_seq).filter(|n| self.find(&id(*n)) != Some(*n)).count()
        }

        /// What holds after a rebuild, whatever the damage was.
        fn assert_right(&self, what: &str) {
            let mut events =
                self.conn.prepare("SELECT seq, message_id, digest, received_at FROM events").unwrap();
            let mut events = events.query([]).unwrap();
            while let Some(event) = EventRow::next(&mut events).unwrap() {
                assert_eq!(self.find(&event.id), Some(event.known.seq), "{what}");
            }
            let wrong = "SELECT count(*) FROM id_segments a JOIN id_segments b
                          ON a.segment <> b.segment AND a.first_seq <= b.upto AND b.first_seq <= a.upto";
            assert_eq!(self.number(wrong), 0, "{what}: ranges overlap");
            let behind = "SELECT count(*) FROM id_segments
                           WHERE upto > (SELECT value FROM meta WHERE name = 'ids_indexed')";
            assert_eq!(self.number(behind), 0, "{what}");
            assert!(self.index.is_indexed() && !self.index.is_indexing(), "{what}");
        }

        fn number(&self, sql: &str) -> i64 {
            self.conn.query_row(sql, [], |r| r.get(0)).unwrap()
        }
    }

    #[test]
    fn what_can_be_read_of_a_damaged_index_is_kept_and_every_event_is_known() {
        let all = 0..=0;
        let cases = [
            ("nothing", "", all.clone()),
            ("a chunk is missing", "DELETE FROM id_chunks WHERE position = (2 << 24) + 3", 40..=104),
            (
                "a chunk is cut off",
                "UPDATE id_chunks SET entries = substr(entries, 1, 100) WHERE position = (2 << 24) + 3",
                40..=104,
            ),
            (
                "a chunk is not sorted",
                "UPDATE id_chunks SET entries = CAST(substr(entries, 281) || substr(entries, 1, 280) AS BLOB)
                  WHERE position = 1 << 24",
                all.clone(),
            ),
            ("the row of a segment is missing", "DELETE FROM id_segments WHERE segment = 2", 450..=450),
            ("fences are cut off", "UPDATE id_segments SET fences = x'00' WHERE segment = 1", all.clone()),
            (
                "fences do not fit",
                "UPDATE id_segments SET fences = zeroblob(octet_length(fences))",
                all.clone(),
            ),
            ("a filter is cut off", "UPDATE id_segments SET filter = x'00' WHERE segment = 3", all.clone()),
            ("a filter is empty", "UPDATE id_segments SET filter = zeroblob(64)", all.clone()),
            ("ranges overlap", "UPDATE id_segments SET upto = upto + 500 WHERE segment = 1", all.clone()),
            (
                "an old copy stands beside its replacement",
                "INSERT INTO id_segments
                 SELECT 77, 1, first_seq, upto + 900, newest_received_at, entries, 1, fences, filter
                   FROM id_segments WHERE segment = 1;
                 INSERT INTO id_chunks SELECT position + (76 << 24), entries FROM id_chunks WHERE position >> 24 = 1;
                 DELETE FROM id_chunks WHERE position = (1 << 24) + 2",
                all.clone(),
            ),
            (
                "rows of damaged numbers",
                "INSERT INTO id_segments VALUES (4, 1, 1, 9223372036854775807, 0, 1, 0, x'', x''),
                        (9223372036854775807, 2, -5, 5, 0, 1, 0, x'', x''), (-9, 3, 9, 3, 0, -1, 1, x'', x'');
                 INSERT INTO id_chunks VALUES (9223372036854775807, x'00'), (-9223372036854775808, x'00'), (0, x'')",
                all,
            ),
            ("all is gone", "DELETE FROM id_segments; DELETE FROM id_chunks", 1_350..=1_350),
            ("no event is left", "DELETE FROM events", 90..=90),
        ];
        for (what, damage, unknown) in cases {
            let mut world = World::new();
            world.execute(damage);
            world.rebuild();
            world.assert_right(what);
            assert!(unknown.contains(&world.unknown()), "{what}: {} are unknown", world.unknown());
            assert!(world.number("SELECT max(upto) FROM id_segments") < world.next_seq, "{what}");
            // The next ones are stored and found beside them.
            let n = world.next_seq;
            world.append(n);
            world.seal();
            assert_eq!(world.find(&id(n)), Some(n), "{what}");
        }
    }

    #[test]
    fn random_damage_is_neither_a_panic_nor_an_error_later() {
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..40 {
            let mut world = World::new();
            for _ in 0..rng.usize(1..6) {
                let (table, column) =
                    [("id_chunks", "entries"), ("id_segments", "fences"), ("id_segments", "filter")]
                        [rng.usize(0..3)];
                let (row, bytes): (i64, Vec<u8>) = world
                    .conn
                    .query_row(
                        &format!("SELECT rowid, {column} FROM {table} ORDER BY random() LIMIT 1"),
                        [],
                        |r| Ok((r.get(0)?, r.get(1)?)),
                    )
                    .unwrap();
                let mut damaged = bytes;
                let at = rng.usize(0..damaged.len());
                let end = (at + rng.usize(1..600)).min(damaged.len());
                damaged[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..));
                if rng.bool() {
                    damaged.truncate(rng.usize(0..damaged.len()));
                }
                world
                    .conn
                    .execute(
                        &format!("UPDATE {table} SET {column} = ? WHERE rowid = ?"),
                        params![damaged, row],
                    )
                    .unwrap();
            }
            world.rebuild();
            world.assert_right(&format!("round {round}"));
        }
    }

    #[test]
    fn an_entry_of_another_event_than_the_row_under_its_number_is_dropped() {
        let mut world = World::new();
        world.execute("UPDATE events SET message_id = 'other', digest = x'0102030405060708' WHERE seq = 9");
        // The id of the entry is damaged, and its digest is not.
        world.execute("UPDATE events SET message_id = 'undamaged' WHERE seq = 11");
        world.rebuild();
        world.assert_right("an entry of another event");
        assert_eq!((world.find(&id(9)), world.find(&hash_id_text("other"))), (None, Some(9)));
        assert_eq!((world.find(&id(11)), world.find(&hash_id_text("undamaged"))), (None, Some(11)));
    }

    #[test]
    fn a_row_that_stands_wins_over_an_entry_without_one_and_then_the_later_entry() {
        let mut world = World::new();
        // An id whose event was erased came again; a copy of the chunk before that is what was read.
        world.execute("CREATE TEMP TABLE before AS SELECT * FROM id_chunks");
        world.index.remove(&world.conn, &id(9), 9).unwrap();
        world.execute("DELETE FROM events WHERE seq = 9");
        world.append(9);
        let again = world.next_seq - 1;
        // The event of an id stands, and a later entry has none.
        world.index.remove(&world.conn, &id(11), 11).unwrap();
        world.append(11);
        let without_row = world.next_seq - 1;
        world.seal();
        world.execute("DELETE FROM id_chunks WHERE position >> 24 = 1; INSERT INTO id_chunks SELECT * FROM before WHERE position >> 24 = 1");
        world.execute(&format!("DELETE FROM events WHERE seq = {without_row}"));
        world.rebuild();
        world.assert_right("ids that came again");
        assert_eq!((world.find(&id(9)), world.find(&id(11))), (Some(again), Some(11)));
        // Neither has a row.
        world.execute(&format!("DELETE FROM events WHERE seq = {again}"));
        world.rebuild();
        assert_eq!(world.find(&id(9)), Some(again));
    }

    #[test]
    fn a_new_segment_covers_a_day_and_is_of_bounded_size() {
        let mut world = World::new();
        world.execute("DELETE FROM id_segments");
        let day = SEGMENT_AGE.as_millis() as i64;
        world.execute(&format!("UPDATE events SET received_at = seq / 300 * {day}"));
        world.rebuild();
        world.assert_right("days");
        let longest = "SELECT max(upto - first_seq) FROM id_segments";
        assert_eq!((world.number(longest), world.number("SELECT count(*) FROM id_segments")), (298, 10));
        let late = format!("SELECT count(*) FROM id_segments WHERE newest_received_at <> upto / 300 * {day}");
        assert_eq!(world.number(&late), 0);
        world.execute("UPDATE events SET received_at = 1");
        world.rebuild();
        assert_eq!(world.number("SELECT max(entries) FROM id_segments"), 1_000);
    }
}
