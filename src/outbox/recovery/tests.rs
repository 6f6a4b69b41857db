use crate::clock::{Clock, Timestamp};
use crate::event::Digest;
use crate::item::OrderingKey;
use crate::outbox::append::Append;
use crate::outbox::expiry::{Excess, Expiry};
use crate::outbox::fixture::{self, config, to_send};
use crate::outbox::log_mark::{OTHER_LOG, Pairing};
use crate::outbox::tables::Tables;
use crate::outbox::transitions::Transitions;
use crate::outbox::{Appended, NewEvent, Outbox, OutboxError, Reader, Settled, State};
use rusqlite::Connection;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const EVENTS: usize = 300;

fn clock() -> Clock {
    Clock::manual(Timestamp(1_800_000_000_000))
}

fn event(n: usize) -> NewEvent {
    // Some bodies are longer than a page.
    let body = format!(r#"{{"n":{n},"pad":"{}"}}"#, "x".repeat(if n.is_multiple_of(20) { 9_000 } else { n }));
    NewEvent {
        digest: Digest::from_bytes([n as u8; 8]),
        kind: Some("track".to_owned()),
        place: n as u64,
        disposition: to_send(OrderingKey(n as i64 % 7), &format!("p{}@acme.dev", n % 7)),
        ..fixture::event(format!("event-{n}"), body)
    }
}

/// Makes an outbox whose log holds the newest events, as after a SIGKILL: its files are copied while it is open.
fn make_outbox(dir: &Path) {
    let open = dir.join("open");
    fs::create_dir(&open).unwrap();
    let outbox = Outbox::open(&config(&open), clock()).unwrap();
    let append = |range: std::ops::Range<usize>| {
        outbox.writer.append(range.map(event).collect::<Vec<_>>(), Vec::new()).block().unwrap()
    };
    append(0..EVENTS / 2);
    outbox.close();
    let outbox = Outbox::open(&config(&open), clock()).unwrap();
    outbox.writer.append((EVENTS / 2..EVENTS).map(event).collect::<Vec<_>>(), Vec::new()).block().unwrap();
    // Some are delivered and have not moved yet.
    let delivered: Vec<_> = (0..EVENTS as i64).step_by(9).map(|n| (n + 1, Settled::Delivered)).collect();
    outbox.writer.settle(delivered).block().unwrap();
    for suffix in ["", "-wal"] {
        fs::copy(open.join(format!("outbox.db{suffix}")), dir.join(format!("outbox.db{suffix}"))).unwrap();
    }
    outbox.close();
}

/// Opens and closes the outbox. Returns its events by id with their bodies, and the incident.
fn open_and_read(dir: &Path) -> (Vec<(String, Option<String>)>, Option<String>) {
    let config = config(dir);
    Outbox::open(&config, clock()).unwrap().close();
    let reader = Reader::open(&config.path).unwrap();
    let events: Result<Vec<_>, _> =
        (0..EVENTS).map(|n| reader.events().show(&format!("event-{n}"))).collect();
    let events = match events {
        Ok(events) => events.into_iter().flatten(),
        Err(e) => {
            // Damage that no check of the pages can find is found when the event is read.
            assert!(e.is_damage(), "{e}");
            let outbox = Outbox::open(&config, clock()).unwrap();
            outbox.mark_corrupt(&e);
            outbox.close();
            return open_and_read(dir);
        }
    };
    let events: Vec<_> = events.map(|detail| (detail.row.message_id, detail.body)).collect();
    let counts = reader.counts().unwrap();
    assert_eq!(counts.of(State::Pending) + counts.of(State::Delivered), events.len() as u64);
    fixture::assert_balanced(&counts);
    check_pending_bytes(&config.path);
    (events, reader.incident(Timestamp(1_800_000_000_000)).unwrap().map(|incident| incident.text))
}

/// The counted bytes of the owner are those of its rows.
fn check_pending_bytes(path: &Path) {
    let conn = Connection::open(path).unwrap();
    let number = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
    let counted = number("SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'owner'");
    assert_eq!(counted, number("SELECT coalesce(sum(bytes), 0) FROM queue"));
}

#[test]
fn the_events_of_a_log_without_its_database_are_recovered() {
    let dir = tempfile::tempdir().unwrap();
    make_outbox(dir.path());
    // The log has a newer first page, from which SQLite itself would open the database.
    fs::remove_file(dir.path().join("outbox.db")).unwrap();
    let (events, incident) = open_and_read(dir.path());
    assert!(!events.is_empty());
    let reader = Reader::open(&config(dir.path()).path).unwrap();
    let shown = reader.events().show(&events[0].0).unwrap().unwrap();
    assert_eq!(shown.row.owner, event(0).owner);
    assert!(incident.unwrap().contains("the database is gone, and its write-ahead log is not"));
    for (id, body) in events {
        let n: usize = id.trim_start_matches("event-").parse().unwrap();
        assert!(body.is_none_or(|body| body == event(n).body), "the text of {id}");
    }
}

#[test]
fn an_outbox_opens_with_all_readable_events_whichever_bytes_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    make_outbox(dir.path());
    let mut rng = fastrand::Rng::with_seed(3);
    let (mut incidents, mut most) = (0, 0);
    for round in 0..60 {
        let damaged = tempfile::tempdir().unwrap();
        for suffix in ["", "-wal"] {
            let name = format!("outbox.db{suffix}");
            let mut bytes = fs::read(dir.path().join(&name)).unwrap();
            let damages = if (suffix.is_empty()) == (round % 2 == 0) { rng.usize(1..4) } else { 0 };
            for _ in 0..damages {
                let at = rng.usize(..bytes.len());
                let end = (at + rng.usize(1..5_000)).min(bytes.len());
                bytes[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..));
            }
            if rng.u8(..8) == 0 {
                bytes.truncate(rng.usize(..bytes.len()));
            }
            fs::write(damaged.path().join(&name), bytes).unwrap();
        }
        let (events, incident) = open_and_read(damaged.path());
        incidents += usize::from(incident.is_some());
        most = most.max(events.len());
        assert!(events.len() <= EVENTS);
        // A second start finds an intact outbox.
        assert_eq!(open_and_read(damaged.path()).0, events);
    }
    assert!(incidents >= 20, "{incidents} of 60 were reported");
    assert_eq!(most, EVENTS);
}

#[test]
fn a_log_belongs_to_the_state_of_the_database_from_which_it_went_on_and_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    let mut copies = Vec::new();
    let mut copy = || {
        let name = dir.path().join(copies.len().to_string());
        fs::create_dir(&name).unwrap();
        for suffix in ["", "-wal"] {
            let file = format!("outbox.db{suffix}");
            fs::copy(open.join(&file), name.join(&file)).unwrap();
        }
        copies.push(name);
    };
    // Two sessions; in each a copy of the running one, and one of the stopped.
    for n in 0..2 {
        let outbox = Outbox::open(&config(&open), clock()).unwrap();
        outbox.writer.append(vec![event(n)], Vec::new()).block().unwrap();
        copy();
        outbox.close();
        copy();
    }
    let pairing = |database: usize, log: usize| {
        let mixed = tempfile::tempdir().unwrap();
        fs::copy(copies[database].join("outbox.db"), mixed.path().join("outbox.db")).unwrap();
        fs::copy(copies[log].join("outbox.db-wal"), mixed.path().join("outbox.db-wal")).unwrap();
        Pairing::of(&mixed.path().join("outbox.db")).unwrap().0
    };
    for (database, log, wanted) in [
        (0, 0, Pairing::Whole),
        (1, 1, Pairing::Whole),
        (2, 2, Pairing::Whole),
        (3, 3, Pairing::Whole),
        // The log of a running session beside the database of an earlier or a later one.
        (0, 2, Pairing::NotOwn(OTHER_LOG)),
        (3, 0, Pairing::NotOwn(OTHER_LOG)),
        (2, 0, Pairing::NotOwn(OTHER_LOG)),
        // An empty log beside a database that was open.
        (0, 1, Pairing::LogLost),
        (2, 3, Pairing::LogLost),
    ] {
        assert_eq!(pairing(database, log), wanted, "database {database}, log {log}");
    }
}

/// Makes an outbox of 1,000 delivered events whose ids are sealed, of which 900 have lost their history, and 50 new ones.
/// Returns the page of a chunk of ids.
fn make_outbox_of_ids(dir: &Path) -> u64 {
    let mut tables = fixture::tables(dir);
    let now = Timestamp(1_800_000_000_000);
    let append = |tables: &mut Tables, range: std::ops::Range<usize>| {
        let events: Vec<_> = range.map(event).collect();
        tables.transaction(|tables| Append::run(tables, &events, &[], now)).unwrap()
    };
    let Appended::Stored { enqueued, .. } = append(&mut tables, 0..1_000) else { panic!() };
    let delivered: Vec<_> = enqueued.items.iter().map(|item| (item.seq, Settled::Delivered)).collect();
    let sealed = tables.transaction(|tables| {
        Transitions { tables, now, status: None }.settle(&delivered, false)?;
        tables.compact_all()?;
        tables.ids.index_all(&tables.store.conn, tables.next_seq - 1)
    });
    sealed.unwrap();
    let mut expiry = Expiry::default();
    let given_up = tables.transaction(|tables| expiry.give_up(tables, Excess::History, 900)).unwrap();
    assert_eq!(given_up, 900);
    append(&mut tables, 1_000..1_050);
    assert!(tables.store.checkpoint(Duration::ZERO).unwrap());
    let chunk =
        "SELECT pageno FROM dbstat WHERE name = 'id_chunks' AND pagetype = 'leaf' ORDER BY pageno LIMIT 1";
    tables.store.conn.query_row(chunk, [], |r| r.get::<_, i64>(0)).unwrap() as u64
}

#[test]
fn events_are_known_after_a_recovery_though_their_history_is_given_up() {
    for is_chunk_lost in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let page = make_outbox_of_ids(dir.path());
        let config = config(dir.path());
        if is_chunk_lost {
            let file = fs::OpenOptions::new().write(true).open(&config.path).unwrap();
            file.write_all_at(&[0xA5; 4_096], (page - 1) * 4_096).unwrap();
        } else {
            let outbox = Outbox::open(&config, clock()).unwrap();
            outbox.mark_corrupt(&OutboxError::Damaged {
                path: config.path.clone(),
                text: "damaged".to_owned(),
            });
            outbox.close();
        }
        let outbox = Outbox::open(&config, clock()).unwrap();
        let reader = Reader::open(&config.path).unwrap();
        assert!(reader.incident(Timestamp(1_800_000_000_000)).unwrap().is_some());
        let again = outbox.writer.append((0..1_050).map(event).collect::<Vec<_>>(), Vec::new()).block();
        let Appended::Stored { stored, duplicates, enqueued } = again.unwrap() else { panic!() };
        assert_eq!(stored + duplicates, 1_050);
        // Of a lost chunk, the ids of events that still have a row are known by that.
        let unknown = if is_chunk_lost { 100..=144 } else { 0..=0 };
        assert!(unknown.contains(&stored), "{stored} were not known");
        assert!(enqueued.from > 1_050, "a number is used again");
        outbox.close();
    }
}

#[test]
fn acks_from_before_a_retry_count_neither_in_a_recovery_nor_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, now) = (config(dir.path()), Timestamp(1_800_000_000_000));
    let mut tables = fixture::tables(dir.path());
    let events: Vec<_> = (1..3).map(event).collect();
    tables.transaction(|tables| Append::run(tables, &events, &[], now)).unwrap();
    // The first waits as two items, the second as one; of both there is an ack of their first time in the queue, and the
    // row of the first does not say so.
    let stale = "UPDATE queue SET seq = 1 WHERE id = 1;
                 INSERT INTO queue SELECT 3, 1, destination, 'Pages', ordering_key, owner, 0, 7 FROM queue WHERE id = 1;
                 UPDATE queue SET queued_after = 7 WHERE id = 2;
                 INSERT INTO acks (n, at, ids, status) VALUES (7, 1800000000000, '[1,2]', NULL);
                 INSERT INTO meta VALUES ('last_ack', 7)";
    tables.store.conn.execute_batch(stale).unwrap();
    drop(tables);
    let outbox = Outbox::open(&config, clock()).unwrap();
    outbox.mark_corrupt(&OutboxError::Damaged { path: config.path.clone(), text: "damaged".to_owned() });
    outbox.close();
    Outbox::open(&config, clock()).unwrap().close();
    let conn = Connection::open(&config.path).unwrap();
    let mut rows = conn.prepare("SELECT id, seq, queued_after FROM queue ORDER BY id").unwrap();
    let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
    let rows: Vec<(i64, Option<i64>, i64)> = rows.map(Result::unwrap).collect();
    assert_eq!(rows, [(1, Some(1), 0), (2, None, 0), (3, Some(1), 0)]);
    let settled: i64 = conn.query_row("SELECT count(*) FROM settled", [], |r| r.get(0)).unwrap();
    assert_eq!(settled, 0);
}
