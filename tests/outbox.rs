//! The outbox as a library: what is stored of an event, when, and what its readers see.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "cli/world.rs"]
mod world;

use koala_agent::outbox::{EventFilter, Outbox, QueueReader, Settled, Settlement, State};
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{World, event};

#[test]
fn duplicates_are_not_counted_as_ingested() {
    let world = World::new();
    let outbox = world.agent();
    let events = || ["a", "b"].map(|id| event(id, r#"{"type":"track","event":"E"}"#, "a.json")).to_vec();
    for _ in 0..2 {
        outbox.writer.append(events(), vec![]).block().unwrap();
    }
    assert_eq!(outbox.writer.stats().throughput().ingested, 2);
    outbox.close();
    assert_eq!(world.reader().counts().unwrap().duplicates, 2);
}

#[test]
fn a_person_is_stored_as_a_hash_once_the_body_is_erased() {
    let world = World::with_events();
    let person = |id| world.reader().events().show(id).unwrap().unwrap().row.person.unwrap();
    assert!(["delivered", "discarded"].map(person).iter().all(|person| person.starts_with("hash:")));
    assert_eq!(["waiting", "refused"].map(person), ["ana@acme.dev", "bob@acme.dev"]);
}

#[test]
fn a_retry_changes_the_counters() {
    let world = World::with_events();
    let count = |state| world.reader().counts().unwrap().states.get(&state).copied().unwrap_or_default();
    let before = [State::Pending, State::Failed].map(count);
    assert_eq!(world.run(&["retry", "refused"]).code, 0);
    assert_eq!([State::Pending, State::Failed].map(count), [before[0] + 1, before[1] - 1]);
}

#[test]
fn the_body_of_an_event_that_is_not_for_koala_is_not_stored() {
    let world = World::new();
    let outbox = world.agent();
    let off = r#"{"type":"track","event":"E","email":"ana@acme.dev","integrations":{"All":false}}"#;
    let events =
        vec![event("off", off, "a.json"), event("nobody", r#"{"type":"track","event":"E"}"#, "a.json")];
    outbox.writer.append(events, vec![]).block().unwrap();
    outbox.close();
    let body = |id| world.reader().events().show(id).unwrap().unwrap().body;
    assert_eq!((body("off"), body("nobody").is_some()), (None, true));
}

/// Stores four events of one person. Returns their numbers.
fn store_four(world: &World) -> (Outbox, [i64; 4]) {
    let outbox = world.agent();
    let ids = ["a", "b", "c", "d"];
    let events = ids.map(|id| event(id, r#"{"type":"track","event":"E","email":"ana@acme.dev"}"#, "a.json"));
    outbox.writer.append(events.to_vec(), vec![]).block().unwrap();
    let seqs = ids.map(|id| world.reader().events().show(id).unwrap().unwrap().row.seq);
    (outbox, seqs)
}

fn deliver(outbox: &Outbox, seqs: &[i64]) {
    let rows: Vec<_> = seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect();
    outbox.writer.settle(rows).block().unwrap();
}

#[test]
fn a_settlement_that_may_wait_is_committed_soon_and_at_a_stop() {
    let world = World::new();
    let (outbox, seqs) = store_four(&world);
    let settle = |outbox: &Outbox, seq| {
        let rows = vec![(seq, Settled::Delivered)];
        outbox.writer.settle(Settlement { rows, may_wait: true, ..Settlement::default() })
    };
    settle(&outbox, seqs[0]).block().unwrap();
    drop(settle(&outbox, seqs[1]));
    outbox.close();
    assert_eq!(states(&world), "a:d b:d c:p d:p");
    let outbox = world.agent();
    drop(settle(&outbox, seqs[2]));
    // Without a stop: the last handle is gone.
    drop(outbox);
    let began = Instant::now();
    while states(&world) != "a:d b:d c:d d:p" {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", states(&world));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The first letter of each event's state, by id.
fn states(world: &World) -> String {
    let mut rows = world.reader().events().list(&EventFilter::default(), 10).unwrap().rows;
    rows.sort_by(|a, b| a.message_id.cmp(&b.message_id));
    rows.iter()
        .map(|row| format!("{}:{} ", row.message_id, &row.state[..1]))
        .collect::<String>()
        .trim()
        .into()
}

/// The numbers of pending and of delivered events.
fn counts(world: &World) -> (u64, u64) {
    let counts = world.reader().counts().unwrap();
    (counts.of(State::Pending), counts.of(State::Delivered))
}

fn number(world: &World, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(world.path("outbox.db")).unwrap();
    conn.query_row(sql, [], |r| r.get(0)).unwrap()
}

#[test]
fn a_delivery_is_seen_by_every_reader_before_its_row_is_compacted() {
    let world = World::new();
    let (outbox, [a, b, _, d]) = store_four(&world);
    deliver(&outbox, &[d, b]);
    let delivered = world.reader().events().show("b").unwrap().unwrap().row;
    assert_eq!((delivered.state.as_str(), delivered.attempts), ("delivered", 1));
    assert!(delivered.settled_at.is_some());
    assert_eq!((states(&world).as_str(), counts(&world)), ("a:p b:d c:p d:d", (2, 2)));
    // The files as a crash would leave them: the deliveries are durable, and are not sent again.
    let crashed = World::new();
    for name in ["outbox.db", "outbox.db-wal"] {
        std::fs::copy(world.path(name), crashed.path(name)).unwrap();
    }
    outbox.close();
    let world = crashed;
    let outbox = world.agent();
    assert_eq!(QueueReader::new(world.reader(), Arc::default()).unwrap().acked().unwrap(), [b, d].into());
    assert_eq!((states(&world).as_str(), counts(&world)), ("a:p b:d c:p d:d", (2, 2)));
    // A second delivery of an event counts as none.
    deliver(&outbox, &[d]);
    assert_eq!(counts(&world), (2, 2));
    deliver(&outbox, &[a]);
    assert_eq!((states(&world).as_str(), counts(&world)), ("a:d b:d c:p d:d", (1, 3)));
    assert_eq!(
        number(&world, "SELECT count(*) FROM pending"),
        2,
        "delivered rows at the head of the queue have not moved"
    );
    // A stop compacts everything.
    outbox.close();
    assert_eq!(number(&world, "SELECT count(*) FROM pending"), 1);
}

#[test]
fn a_command_compacts_all_rows_first() {
    let world = World::new();
    let (outbox, [.., d]) = store_four(&world);
    deliver(&outbox, &[d]);
    assert_eq!(world.run(&["discard", "a"]).code, 0);
    assert_eq!(states(&world), "a:d b:p c:p d:d");
    assert_eq!(number(&world, "SELECT count(*) FROM acks"), 0);
    assert_eq!(number(&world, "SELECT count(*) FROM settled"), 2);
    // The agent notices what the command has changed.
    let again = event("d", r#"{"type":"track","event":"E","email":"ana@acme.dev"}"#, "a.json");
    outbox.writer.append(vec![again], vec![]).block().unwrap();
    assert_eq!(world.reader().counts().unwrap().duplicates, 1);
    outbox.close();
}

#[test]
fn rows_and_ids_are_compacted_when_nothing_else_is_to_do() {
    let world = World::new();
    let (outbox, [_, b, ..]) = store_four(&world);
    deliver(&outbox, &[b]);
    let left = "SELECT (SELECT count(*) FROM acks) + (SELECT count(*) FROM unindexed)";
    assert!(number(&world, left) > 0);
    let began = std::time::Instant::now();
    while number(&world, left) > 0 {
        assert!(began.elapsed().as_secs() < 60, "nothing is compacted");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(number(&world, "SELECT count(*) FROM recent_ids"), 4);
    assert_eq!(number(&world, "SELECT count(*) FROM bodies"), 0);
    assert_eq!(states(&world), "a:p b:d c:p d:p");
    outbox.close();
}

fn queue_reader(world: &World, outbox: &Outbox) -> QueueReader {
    QueueReader::new(world.reader(), outbox.writer.stats()).unwrap()
}

#[test]
fn many_batches_are_read_from_one_snapshot_of_the_outbox() {
    let world = World::new();
    let (outbox, [a, _, _, d]) = store_four(&world);
    let mut queue = queue_reader(&world, &outbox);
    let mut gone = |seqs: &[i64], ms, is_released| -> Vec<i64> {
        if is_released {
            queue.release().unwrap();
        }
        queue.gather(seqs, Duration::from_millis(ms), |_| true).unwrap().gone
    };
    let add = |id| {
        let body = r#"{"type":"track","event":"E","email":"ana@acme.dev"}"#;
        outbox.writer.append(vec![event(id, body, "b.json")], vec![]).block().unwrap();
        world.reader().events().show(id).unwrap().unwrap().row.seq
    };
    assert!(gone(&[a, d], 0, false).is_empty());
    let e = add("e");
    assert_eq!(gone(&[d, e], 5, false), [e]);
    assert!(gone(&[d, e], 6, true).is_empty());
    let f = add("f");
    assert_eq!(gone(&[f], 7, false), [f]);
    assert!(gone(&[f], 16, false).is_empty());
    // A command's change is seen as soon as the writer has noticed it.
    assert_eq!(world.run(&["discard", "a"]).code, 0);
    add("g");
    assert_eq!(gone(&[a], 17, false), [a]);
}

#[test]
fn the_write_ahead_log_stays_short_while_a_reader_keeps_reading() {
    let world = World::new();
    let (outbox, [a, ..]) = store_four(&world);
    let mut queue = queue_reader(&world, &outbox);
    let filler = "x".repeat(100_000);
    let body =
        format!(r#"{{"type":"track","event":"E","email":"ana@acme.dev","properties":{{"x":"{filler}"}}}}"#);
    let log = || std::fs::metadata(world.path("outbox.db-wal")).unwrap().len();
    let mut longest = 0;
    for n in 0..100 {
        let events = (0..10).map(|m| event(&format!("{n}-{m}"), &body, "b.json")).collect::<Vec<_>>();
        outbox.writer.append(events, vec![]).block().unwrap();
        // No time passes for the reader, so its snapshot would stay open.
        queue.gather(&[a], Duration::ZERO, |_| true).unwrap();
        longest = longest.max(log());
    }
    // 100 MB were written into it.
    assert!((16 << 20..32 << 20).contains(&longest), "{longest}");
}
