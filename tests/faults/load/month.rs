//! A month of steady traffic on a clock of the test's own: what history and ids take on the disk, in memory and in writes,
//! and that none of it keeps events out.
//!
//! The outbox is driven directly. Through files and requests 26 million events would take the better part of a day, and
//! would measure those.

use crate::runner::{Figures, Outcome, Scale};
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{MinFree, OutboxConfig};
use koala_agent::event::{Digest, MessageId};
use koala_agent::item::{Disposition, Keying, OrderingKey, Person};
use koala_agent::outbox::{
    Addressee, Appended, NewEvent, NewItem, Outbox, PendingCommit, Reader, Settled, State,
};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const DAYS: u64 = 30;
const EVENTS_A_SECOND: u64 = 10;
/// Events of a commit where what is written for one is measured.
const SMALL_BATCH: u64 = 10;
const MEASURED_COMMITS: u64 = 500;
const PERSONS: u64 = 6_000;
const BODY_BYTES: usize = 450;
/// What a delivered event may take of the disk once its history is given up: its id, the digest of its content, its number.
const MOST_BYTES_OF_AN_ID: f64 = 32.0;
/// The same with history, of these events: the names of a mapping and a file, a person's hash.
const MOST_BYTES_OF_HISTORY: f64 = 320.0;

pub fn steady(scale: &Scale) -> Outcome {
    let share = scale.of(100, 1);
    let config =
        OutboxConfig { max_bytes: OutboxConfig::default().max_bytes / share, ..OutboxConfig::default() };
    // Events of a commit: more than come in one at this rate, so that the month does not last one.
    let mut month = Month::begin(config, scale.of(256, 2_048));
    let events = DAYS * 86_400 * EVENTS_A_SECOND / share;
    let began = Instant::now();
    let first = month.window(events / 50);
    let first_writes = month.writes();
    while month.events < events - events / 50 {
        month.pass(month.batch);
    }
    let last = month.window(events / 50);
    let last_writes = month.writes();
    let took = began.elapsed();
    month.assert_known(1..=1_000);
    let rows = month.settle_all();
    let (config, events, peak) = (month.config.clone(), month.events, month.peak);
    let Month { outbox, folder, .. } = month;
    outbox.close();
    let usage = Usage::read(&config.path);
    let counts = Reader::open(&config.path).unwrap().counts().unwrap();
    assert_eq!((counts.of(State::Pending), counts.ids_remembered_since), (0, None), "{rows}");
    assert!(peak < config.max_bytes, "{peak} bytes at most were needed: the intake would have been blocked");
    assert!(usage.ids >= events, "{} of {events} ids are remembered", usage.ids);
    let (id, history) = (usage.bytes_of_an_id(), usage.bytes_of_history());
    let said = format!(
        "{events} events of {BODY_BYTES} bytes in {:.0} s; {:.0} events/s at first, {:.0} at last; {} ids at {id:.1} \
         bytes, {} events of history at {history:.1} bytes besides; {:.1} MiB in use, the file has {:.1}; at most {:.1} MiB \
         needed; {} MiB of memory at most; bytes written an event: {:.0} at first, {:.0} at last, in commits of \
         {SMALL_BATCH} {:.0} and {:.0}",
        took.as_secs_f64(),
        first.rate,
        last.rate,
        usage.ids,
        usage.events,
        usage.bytes as f64 / f64::from(1 << 20),
        fs::metadata(&config.path).unwrap().len() as f64 / f64::from(1 << 20),
        peak as f64 / f64::from(1 << 20),
        memory() >> 20,
        first.written,
        last.written,
        first_writes,
        last_writes,
    );
    assert!(id <= MOST_BYTES_OF_AN_ID && history <= MOST_BYTES_OF_HISTORY, "{said}");
    // A quarter of max_bytes for history, and the ids; the rest is room for what the next commits give up.
    assert!(usage.bytes <= config.max_bytes * 5 / 4 + (8 << 20), "{said}");
    drop(folder);
    Figures { events, rounds: 1, ..Figures::default() }.note(said).into()
}

/// The month so far.
struct Month {
    folder: tempfile::TempDir,
    config: OutboxConfig,
    outbox: Outbox,
    clock: Clock,
    batch: u64,
    events: u64,
    /// The appends and settlements that are not answered yet; the next are sent meanwhile, as the agent does.
    delivered: Vec<(i64, Settled)>,
    /// The most bytes that were needed for pending events at once.
    peak: u64,
}

/// What was measured of some of the month.
struct Window {
    rate: f64,
    written: f64,
}

impl Month {
    fn begin(config: OutboxConfig, batch: u64) -> Month {
        // Not in /tmp, which may be a file system in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // What else is on this machine's disk is none of the test's matter.
        let config =
            OutboxConfig { path: folder.path().join("outbox.db"), min_free: MinFree::Bytes(0), ..config };
        let clock = Clock::manual(Timestamp(1_800_000_000_000));
        let outbox = Outbox::open(&config, clock.clone()).unwrap();
        Month { folder, config, outbox, clock, batch, events: 0, delivered: Vec::new(), peak: 0 }
    }

    /// Stores `count` more events, while the receiver accepts those before them.
    fn pass(&mut self, count: u64) {
        self.clock.advance(Duration::from_millis(count * 1_000 / EVENTS_A_SECOND));
        let stored = self.append(self.events + 1..=self.events + count);
        let settled = self.outbox.writer.settle(std::mem::take(&mut self.delivered));
        self.events += count;
        let Appended::Stored { duplicates: 0, enqueued, .. } = stored.block().unwrap() else {
            panic!("an event is new, and was taken for one that is known");
        };
        settled.block().unwrap();
        self.delivered = enqueued.items.iter().map(|item| (item.seq, Settled::Delivered)).collect();
        self.peak = self.peak.max(self.outbox.writer.stats().needed_bytes());
    }

    fn append(&self, numbers: impl Iterator<Item = u64>) -> PendingCommit<Appended> {
        let now = self.clock.now();
        self.outbox.writer.append(numbers.map(|n| event(n, now)).collect::<Vec<_>>(), Vec::new())
    }

    /// Passes about that many events, and measures.
    fn window(&mut self, events: u64) -> Window {
        let (began, before, upto) = (Instant::now(), written(), self.events + events);
        while self.events < upto {
            self.pass(self.batch);
        }
        Window {
            rate: events as f64 / began.elapsed().as_secs_f64(),
            written: (written() - before) as f64 / events as f64,
        }
    }

    /// The bytes written for an event, in commits as they come at this rate.
    fn writes(&mut self) -> f64 {
        let before = written();
        for _ in 0..MEASURED_COMMITS {
            self.pass(SMALL_BATCH);
        }
        (written() - before) as f64 / (MEASURED_COMMITS * SMALL_BATCH) as f64
    }

    /// Asserts that these events are duplicates, though the history of the first is given up long ago.
    fn assert_known(&self, numbers: std::ops::RangeInclusive<u64>) {
        let count = numbers.end() - numbers.start() + 1;
        match self.append(numbers).block().unwrap() {
            Appended::Stored { stored: 0, duplicates, .. } if duplicates == count => {}
            other => panic!("events of the first day are taken for new ones: {other:?}"),
        }
    }

    fn settle_all(&mut self) -> usize {
        let rows = std::mem::take(&mut self.delivered);
        let count = rows.len();
        self.outbox.writer.settle(rows).block().unwrap();
        count
    }
}

fn event(n: u64, now: Timestamp) -> NewEvent {
    let person = format!("person-{}@example.com", n % PERSONS);
    let id = format!("{:08x}-0000-4000-8000-{:012x}", (n as u32).wrapping_mul(0x9E37_79B9), n);
    let mut body =
        format!(r#"{{"type":"track","event":"Page Viewed","email":"{person}","properties":{{"x":""#);
    body.extend(std::iter::repeat_n('x', BODY_BYTES - body.len() - 3));
    body += "\"}}";
    NewEvent {
        message_id: MessageId::from_stored(id),
        digest: Digest::from_bytes(n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()),
        kind: Some("track".to_owned()),
        name: Some("Page Viewed".to_owned()),
        file: format!("app-{}.ndjson", n / 1_000).into(),
        place: n % 1_000 + 1,
        owner: Some(1_001),
        spooled_at: now,
        body,
        disposition: Disposition::Send(vec![NewItem {
            mapping: "Track Calls".into(),
            disposition: Disposition::Send(Addressee {
                ordering_key: OrderingKey((n % PERSONS) as i64),
                keying: Keying::default(),
                person: Person::of(None, Some(&format!("\"{person}\""))).unwrap(),
            }),
        }]),
    }
}

/// What the tables of a closed outbox take.
struct Usage {
    /// Bytes of all pages in use.
    bytes: u64,
    bytes_of_ids: u64,
    ids: u64,
    events: u64,
}

impl Usage {
    fn read(path: &Path) -> Usage {
        let conn = rusqlite::Connection::open(path).unwrap();
        let number = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap() as u64;
        let pages = "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE aggregate = TRUE";
        Usage {
            bytes: number(pages),
            bytes_of_ids: number(&format!("{pages} AND name IN ('id_segments', 'id_chunks')")),
            ids: number("SELECT coalesce(sum(entries), 0) FROM id_segments")
                + number(
                    "SELECT count(*) FROM events
                      WHERE seq > coalesce((SELECT value FROM meta WHERE name = 'ids_indexed'), 0)",
                ),
            events: number("SELECT count(*) FROM events"),
        }
    }

    fn bytes_of_an_id(&self) -> f64 {
        self.bytes_of_ids as f64 / self.ids as f64
    }

    fn bytes_of_history(&self) -> f64 {
        (self.bytes - self.bytes_of_ids) as f64 / self.events as f64
    }
}

/// Bytes that this process has caused to be written to disks.
fn written() -> u64 {
    number_in("/proc/self/io", "write_bytes:")
}

/// The most memory that this process has had, in bytes.
fn memory() -> u64 {
    number_in("/proc/self/status", "VmHWM:") << 10
}

fn number_in(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
