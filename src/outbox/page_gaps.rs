//! Zeros over the unused parts of pages, so that nothing of a deleted row is left in the database's file.
//!
//! With `secure_delete = ON` SQLite overwrites a row that it deletes, and a page that becomes free. One copy escapes:
//! when a page of a b-tree is rebuilt because rows have moved to its neighbours, what they were is left between the
//! page's cell pointers and its cells, and stays there when the rows are deleted from the neighbours later. Such a
//! gap is overwritten before the page is copied from the write-ahead log into the database's file. Every change of a page
//! goes through the log, so only pages in it are looked at.
//!
//! The pages are written through SQLite (<https://sqlite.org/dbpage.html>), in a transaction, so a crash leaves each as it was or
//! with zeros in its gap. The log says only which pages to look at; what is overwritten is decided by the page itself and
//! by the database's pointer map. `VACUUM` leaves no such copies either, but writes the whole database.

use super::pages::record::{PAGE_SIZE, u16_at, u32_at};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;

// The layout of the log and of pages: <https://sqlite.org/fileformat2.html>.
const LOG_HEADER: u64 = 32;
const FRAME_HEADER: usize = 24;
const FRAME: usize = FRAME_HEADER + PAGE_SIZE;
const SALTS: Range<usize> = 16..24;
const FRAME_SALTS: Range<usize> = 8..16;
/// Frames that are read at once (128 KiB): reading fewer, or only their headers, takes longer.
const FRAMES_AT_ONCE: u64 = 32;
/// The header of the database, before that of its first page.
const DATABASE_HEADER: usize = 100;
/// Where the first page names the largest root page; 0: the database has no pointer map.
const LARGEST_ROOT: usize = 52;
/// An entry of the pointer map: a type and a page.
const MAP_ENTRY: usize = 5;
/// A page of the pointer map has an entry for each of as many pages as follow it.
const MAPPED_PAGES: u32 = (PAGE_SIZE / MAP_ENTRY) as u32;
const FIRST_MAP: u32 = 2;
const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Finds and overwrites the gaps of pages.
pub(super) struct PageGaps {
    /// The write-ahead log. Unlike the database's file it may be opened and closed without SQLite.
    log: File,
    /// The salts of the log that was looked at last; another one begins with others.
    salts: [u8; 8],
    /// The frames of that log that were looked at: the first ones.
    looked_at: u64,
    /// Pages whose gaps are not overwritten yet.
    found: BTreeSet<u32>,
    /// Whether overwriting has failed since [`PageGaps::resume`].
    is_postponed: bool,
}

impl PageGaps {
    pub(super) fn new(log: File) -> PageGaps {
        PageGaps { log, salts: [0; 8], looked_at: 0, found: BTreeSet::new(), is_postponed: false }
    }

    /// Whether pages are known whose gaps are not overwritten yet.
    pub(super) fn are_left(&self) -> bool {
        !self.found.is_empty()
    }

    /// Whether there is something to overwrite, and it has not just failed.
    pub(super) fn are_due(&self) -> bool {
        self.are_left() && !self.is_postponed
    }

    /// Has overwriting tried again, so that one that fails is not tried at every commit.
    pub(super) fn resume(&mut self) {
        self.is_postponed = false;
    }

    /// Looks for gaps in what has come into the log, which has that many frames, since the last call. Of a page that is
    /// in it several times, the last state counts.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn find(&mut self, frames: u64) -> io::Result<()> {
        match self.find_in_log(frames) {
            // Another process has emptied it meanwhile.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(()),
            found => found,
        }
    }

    fn find_in_log(&mut self, frames: u64) -> io::Result<()> {
        if frames == 0 {
            return Ok(());
        }
        let mut header = [0; LOG_HEADER as usize];
        self.log.read_exact_at(&mut header, 0)?;
        if header[SALTS] != self.salts {
            self.salts.copy_from_slice(&header[SALTS]);
            self.looked_at = 0;
        }
        let mut seen = HashSet::new();
        // Frames of another log stand behind those of this one, if it was begun after the frames were counted: they are not
        // looked at by that, as this log will have others there.
        let (mut end, mut of_this_log) = (frames, self.looked_at);
        let mut block = vec![0; FRAME * frames.saturating_sub(self.looked_at).min(FRAMES_AT_ONCE) as usize];
        while end > self.looked_at {
            let first = end.saturating_sub(FRAMES_AT_ONCE).max(self.looked_at);
            let block = &mut block[..FRAME * (end - first) as usize];
            self.log.read_exact_at(block, LOG_HEADER + first * FRAME as u64)?;
            for (n, frame) in block.chunks_exact(FRAME).enumerate().rev() {
                let number = u32_at(frame, 0).unwrap_or(0);
                if frame[FRAME_SALTS] != self.salts {
                    continue;
                }
                of_this_log = of_this_log.max(first + n as u64 + 1);
                if seen.insert(number) && used_gap(number, &frame[FRAME_HEADER..]).is_some() {
                    self.found.insert(number);
                }
            }
            end = first;
        }
        self.looked_at = of_this_log;
        Ok(())
    }

    /// Overwrites the gaps that were found. Must be called within a transaction; after an error they are still known.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn overwrite(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        self.is_postponed = true;
        self.overwrite_pages(conn)?;
        self.is_postponed = false;
        self.found.clear();
        Ok(())
    }

    fn overwrite_pages(&self, conn: &Connection) -> Result<(), rusqlite::Error> {
        for number in &self.found {
            // It may be another page by now, or none.
            let Some(mut page) = read(conn, *number)? else { continue };
            if let Some(gap) = used_gap(*number, &page)
                && is_btree_page(conn, *number)?
            {
                page[gap].fill(0);
                conn.prepare_cached("UPDATE sqlite_dbpage SET data = ?2 WHERE pgno = ?1")?
                    .execute(params![number, page])?;
            }
        }
        Ok(())
    }
}

fn read(conn: &Connection, number: u32) -> Result<Option<Vec<u8>>, rusqlite::Error> {
    conn.prepare_cached("SELECT data FROM sqlite_dbpage WHERE pgno = ?")?
        .query_row([number], |r| r.get(0))
        .optional()
}

/// Whether that page belongs to a b-tree, by the pointer map. The page itself does not tell: the first byte of one that
/// continues a long row is that of a page number.
fn is_btree_page(conn: &Connection, number: u32) -> Result<bool, rusqlite::Error> {
    /// Types of pages in the pointer map.
    const ROOT: u8 = 1;
    const BELOW_ROOT: u8 = 5;
    let Some((map, at)) = place_in_map(number) else { return Ok(number == 1) };
    let has_map = read(conn, 1)?.and_then(|first| u32_at(&first, LARGEST_ROOT)).is_some_and(|root| root > 0);
    let map = if has_map { read(conn, map)? } else { None };
    Ok(map.is_some_and(|map| [ROOT, BELOW_ROOT].contains(&map[at])))
}

/// The page of the pointer map that says what that page is, and the place on it; `None` for the first page and for those
/// of the map itself.
fn place_in_map(number: u32) -> Option<(u32, usize)> {
    let before = number.checked_sub(FIRST_MAP)? % (MAPPED_PAGES + 1);
    Some((number - before, MAP_ENTRY * before.checked_sub(1)? as usize))
}

/// The bytes between the cell pointers of a b-tree page and its cells, unless all of them are zero. `None` also for a page
/// of another kind, or one that does not add up.
fn used_gap(number: u32, page: &[u8]) -> Option<Range<usize>> {
    let header = if number == 1 { DATABASE_HEADER } else { 0 };
    let pointers = match page.get(header)? {
        // Inner pages of an index and of a table, then their leaves.
        2 | 5 => header + 12,
        10 | 13 => header + 8,
        _ => return None,
    };
    let (free_block, cells) = (u16_at(page, header + 1)?, u16_at(page, header + 5)?);
    let gap = pointers + 2 * u16_at(page, header + 3)?..cells;
    let unused = page.get(gap.clone())?;
    if unused == &ZEROS[..unused.len()] {
        return None;
    }
    let is_cell = |at: usize| at >= cells && at < PAGE_SIZE;
    let are_cells = (pointers..gap.start).step_by(2).all(|at| u16_at(page, at).is_some_and(is_cell));
    (are_cells && (free_block == 0 || is_cell(free_block))).then_some(gap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::item::{Disposition, OrderingKey};
    use crate::outbox::append::Append;
    use crate::outbox::fixture::{self, to_send};
    use crate::outbox::tables::Tables;
    use crate::outbox::transitions::{Requeued, Transitions, erase};
    use crate::outbox::{Appended, NewEvent, Settled};
    use crate::reason::{Code, Reason};
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const EVENTS: u32 = 600;
    const SEEDS: u64 = 2;

    /// An event whose texts can be told from all others: `<body n>`, `<id n>`, `<file n>`, `<person n>`.
    fn event(rng: &mut fastrand::Rng, n: u32) -> NewEvent {
        let size = (150_f64.ln() + rng.f64() * 40_f64.ln()).exp() as usize;
        let body = format!("<body {n:08}>");
        NewEvent {
            file: format!("<file {n:08}>").into(),
            disposition: to_send(OrderingKey(rng.i64(..)), &format!("<person {n:08}>")),
            ..fixture::event(format!("<id {n:08}>{:x}", rng.u64(..)), body.repeat(size / body.len() + 1))
        }
    }

    /// A store, and what is done to it.
    struct Schedule {
        tables: Tables,
        rng: fastrand::Rng,
        /// Numbers of events that wait, and of those that failed.
        waiting: Vec<i64>,
        failed: Vec<i64>,
        next: u32,
    }

    impl Schedule {
        fn new(dir: &Path, seed: u64) -> Schedule {
            let tables = fixture::tables(dir);
            Schedule { tables, rng: fastrand::Rng::with_seed(seed), waiting: vec![], failed: vec![], next: 1 }
        }

        fn append(&mut self, count: u32) {
            let events: Vec<_> = (0..count).map(|n| event(&mut self.rng, self.next + n)).collect();
            self.next += count;
            let append = |tables: &mut Tables| {
                tables.compact_some(16, false, NOW)?;
                Append::run(tables, &events, &[], NOW)
            };
            let Appended::Stored { enqueued, .. } = self.tables.transaction(append).unwrap() else {
                panic!()
            };
            self.waiting.extend(enqueued.items.iter().map(|item| item.seq));
        }

        fn settle(&mut self, ids: &[i64], settled: &Settled) {
            let rows: Vec<_> = ids.iter().map(|id| (*id, settled.clone())).collect();
            let settle =
                |tables: &mut Tables| Transitions { tables, now: NOW, status: None }.settle(&rows, false);
            self.tables.transaction(settle).unwrap();
        }

        /// Some of the events that wait, which do so no more.
        fn take(&mut self, count: usize) -> Vec<i64> {
            self.rng.shuffle(&mut self.waiting);
            self.waiting.split_off(self.waiting.len().saturating_sub(count))
        }

        fn erase(&mut self, ids: &[i64]) {
            self.tables.transaction(|tables| ids.iter().try_for_each(|id| erase(tables, *id))).unwrap();
        }

        /// Erases events, the ones of a few persons at a time.
        fn erase_some(&mut self, mut count: usize) {
            while count > 0 {
                let some = self.rng.usize(1..=30).min(count);
                let ids = self.take(some);
                self.erase(&ids);
                count -= some;
            }
        }

        fn requeue(&mut self, id: i64) {
            let Disposition::Send(items) = to_send(OrderingKey(self.rng.i64(..)), "again") else { panic!() };
            let requeue =
                |tables: &mut Tables| Transitions { tables, now: NOW, status: None }.requeue(id, &items);
            assert_eq!(self.tables.transaction(requeue).unwrap(), Requeued::Done);
            self.waiting.push(id);
        }

        /// What an agent does amid the work: everything at once, in random order.
        fn mix(&mut self) {
            for _ in 0..EVENTS / 50 {
                self.append(50);
                let delivered = self.take(self.waiting.len() / 4);
                self.settle(&delivered, &Settled::Delivered);
                let failed = self.take(10);
                self.settle(&failed, &Settled::Failed(Reason::new(Code::Refused, "no")));
                self.failed.extend(failed);
                self.rng.shuffle(&mut self.failed);
                let again = self.failed.split_off(self.failed.len() - self.failed.len() / 3);
                again.into_iter().for_each(|id| self.requeue(id));
                self.erase_some(12);
                match self.rng.u8(..8) {
                    0 => self.tables.transaction(Tables::compact_all).unwrap(),
                    1 => self.tables.store.shrink(20).unwrap(),
                    2 => assert!(self.tables.store.copy_wal().unwrap()),
                    3 => self.assert_nothing_is_left(),
                    _ => {}
                }
            }
        }

        /// Empties the log, and looks at every byte of the file.
        fn assert_nothing_is_left(&self) {
            assert!(self.tables.store.copy_wal().unwrap());
            assert!(self.tables.store.checkpoint(Duration::ZERO).unwrap());
            // The page of the new mark as well.
            assert!(self.tables.store.copy_wal().unwrap());
            assert!(!self.tables.store.has_remnants());
            assert_sound(&self.tables.store.conn);
            let setting =
                |sql: &str| self.tables.store.conn.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
            assert_eq!(setting("PRAGMA synchronous"), 2, "commits are not durable any more");
            let wal = std::fs::metadata(crate::outbox::files::with_suffix(&self.tables.store.path, "-wal"))
                .unwrap();
            // Nothing but its mark.
            assert!(wal.len() <= LOG_HEADER + 2 * FRAME as u64, "{}", wal.len());
            assert_holds_only_its_rows(&self.tables.store.conn, &self.tables.store.path);
        }
    }

    fn assert_sound(conn: &Connection) {
        let sound: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(sound, "ok");
    }

    /// No text of a row that is deleted is in the file, and no gap of a page is used.
    fn assert_holds_only_its_rows(conn: &Connection, path: &Path) {
        // Closing the file drops SQLite's locks, which nobody else asks for here.
        let file = std::fs::read(path).unwrap();
        let texts = |sql: &str| -> HashSet<String> {
            let mut rows = conn.prepare(sql).unwrap();
            rows.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let mut kept =
            texts("SELECT substr(body, 1, 15) FROM bodies UNION SELECT substr(person, 1, 17) FROM bodies");
        kept.extend(texts("SELECT substr(message_id, 1, 13) FROM events UNION SELECT file FROM events"));
        for kind in ["<body ", "<person ", "<id ", "<file "] {
            for at in memchr::memmem::find_iter(&file, kind) {
                let Some(text) = file.get(at..at + kind.len() + 9) else { continue };
                if text[kind.len()..].iter().all(|b| b.is_ascii_digit() || *b == b'>') {
                    let text = String::from_utf8_lossy(text);
                    assert!(kept.contains(&*text), "{text} is left, on page {}", at / PAGE_SIZE + 1);
                }
            }
        }
        let pages: i64 = conn.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
        assert_eq!(file.len(), pages as usize * PAGE_SIZE);
        for (number, page) in (1..).zip(file.chunks(PAGE_SIZE)) {
            if number == 1 || place_in_map(number).is_some() {
                assert_eq!(used_gap(number, page), None, "page {number}");
            }
        }
    }

    #[test]
    fn nothing_of_deleted_rows_is_left_once_the_log_is_empty() {
        for seed in 0..SEEDS {
            for share in [0.0, 0.1, 0.5, 0.9] {
                let dir = tempfile::tempdir().unwrap();
                let mut schedule = Schedule::new(dir.path(), seed);
                (0..EVENTS / 100).for_each(|_| schedule.append(100));
                if share == 0.0 {
                    // Delivered but for the last.
                    let delivered = schedule.take(EVENTS as usize - 100);
                    schedule.settle(&delivered, &Settled::Delivered);
                    schedule.tables.transaction(Tables::compact_all).unwrap();
                }
                schedule.erase_some((f64::from(EVENTS) * share) as usize);
                schedule.assert_nothing_is_left();
                schedule.tables.store.shrink(50).unwrap();
                schedule.assert_nothing_is_left();
            }
            let dir = tempfile::tempdir().unwrap();
            let mut schedule = Schedule::new(dir.path(), seed);
            schedule.mix();
            schedule.assert_nothing_is_left();
        }
    }

    #[test]
    fn files_that_are_left_between_overwriting_and_copying_are_sound() {
        let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut schedule = Schedule::new(dir.path(), 1);
        schedule.mix();
        schedule.assert_nothing_is_left();
        // A snapshot prevents the copying.
        let reader = Connection::open(&schedule.tables.store.path).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
        let erased = schedule.waiting.len() / 2;
        schedule.erase_some(erased);
        let before = schedule.tables.store.wal_pages();
        assert!(!schedule.tables.store.copy_wal().unwrap());
        assert!(schedule.tables.store.wal_pages() > before, "nothing was overwritten");
        for name in ["outbox.db", "outbox.db-wal"] {
            let (from, to) = (dir.path().join(name), copies.path().join(name));
            assert!(Command::new("cp").args([from, to]).status().unwrap().success());
        }
        let copy = fixture::tables(copies.path());
        assert_sound(&copy.store.conn);
        assert!(copy.store.checkpoint(Duration::ZERO).unwrap());
        assert_holds_only_its_rows(&copy.store.conn, &copy.store.path);
        let rows = |conn: &Connection| -> i64 {
            conn.query_row("SELECT count(*) FROM bodies", [], |r| r.get(0)).unwrap()
        };
        assert_eq!(rows(&copy.store.conn), rows(&schedule.tables.store.conn));
        drop(reader);
        schedule.assert_nothing_is_left();
    }

    #[test]
    fn gaps_that_cannot_be_overwritten_yet_are_remembered_after_the_log_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut schedule = Schedule::new(dir.path(), 2);
        (0..EVENTS / 100).for_each(|_| schedule.append(100));
        schedule.erase_some(EVENTS as usize / 2);
        let db = &schedule.tables.store;
        let other = Connection::open(&db.path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        // The database takes what is in the log, and is said to hold more than its rows.
        assert!(db.copy_wal().unwrap());
        assert!(db.has_remnants());
        other.execute_batch("ROLLBACK").unwrap();
        db.resume_overwriting();
        assert!(db.checkpoint(Duration::ZERO).unwrap());
        schedule.assert_nothing_is_left();
    }

    #[test]
    fn frames_of_an_earlier_log_are_not_taken_for_those_of_one_that_was_begun_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wal");
        let mut log = vec![0; LOG_HEADER as usize];
        log[SALTS].fill(2);
        for salt in [2, 2, 1, 1, 1] {
            let mut frame = vec![0; FRAME];
            frame[FRAME_SALTS].fill(salt);
            log.extend(frame);
        }
        std::fs::write(&path, log).unwrap();
        let mut gaps = PageGaps::new(File::open(&path).unwrap());
        gaps.find(5).unwrap();
        assert_eq!(gaps.looked_at, 2);
    }

    #[test]
    fn the_pointer_map_tells_of_each_page() {
        assert_eq!(
            [1, 2, 3, 821, 822, 823].map(place_in_map),
            [None, None, Some((2, 0)), Some((2, 5 * 818)), None, Some((822, 0))]
        );
    }
}
