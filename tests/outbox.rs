//! What the outbox remembers of an event, and for how long.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "cli/world.rs"]
mod world;

use koala_agent::outbox::{EventFilter, Outbox, QueueReader, Settled, Settlement, State};
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{World, event};

#[test]
fn what_is_known_already_is_not_counted_as_taken() {
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
fn a_person_is_a_hash_once_the_body_is_gone_and_not_before() {
    let world = World::with_events();
    let person = |id| world.reader().events().show(id).unwrap().unwrap().row.person.unwrap();
    assert!(["delivered", "discarded"].map(person).iter().all(|person| person.starts_with("hash:")));
    assert_eq!(["waiting", "refused"].map(person), ["ana@acme.dev", "bob@acme.dev"]);
}

#[test]
fn the_counters_follow_a_retry() {
    let world = World::with_events();
    let count = |state| world.reader().counts().unwrap().states.get(&state).copied().unwrap_or_default();
    let before = [State::Pending, State::Failed].map(count);
    assert_eq!(world.run(&["retry", "refused"]).code, 0);
    assert_eq!([State::Pending, State::Failed].map(count), [before[0] + 1, before[1] - 1]);
}

#[test]
fn what_the_producer_kept_from_koala_is_erased_at_once_and_any_other_skipped_body_is_kept() {
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

fn four(world: &World) -> (Outbox, [i64; 4]) {
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
fn what_may_wait_for_company_is_settled_all_the_same() {
    let world = World::new();
    let (outbox, seqs) = four(&world);
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
    // No word of a stop: the last handle is gone.
    drop(outbox);
    let began = Instant::now();
    while states(&world) != "a:d b:d c:d d:p" {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", states(&world));
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn states(world: &World) -> String {
    let mut rows = world.reader().events().list(&EventFilter::default(), 10).unwrap().rows;
    rows.sort_by(|a, b| a.message_id.cmp(&b.message_id));
    rows.iter()
        .map(|row| format!("{}:{} ", row.message_id, &row.state[..1]))
        .collect::<String>()
        .trim()
        .into()
}

fn counted(world: &World) -> (u64, u64) {
    let counts = world.reader().counts().unwrap();
    (counts.of(State::Pending), counts.of(State::Delivered))
}

fn number(world: &World, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(world.path("outbox.db")).unwrap();
    conn.query_row(sql, [], |r| r.get(0)).unwrap()
}

#[test]
fn what_is_delivered_while_older_events_wait_is_delivered_for_everybody_at_once() {
    let world = World::new();
    let (outbox, [a, b, _, d]) = four(&world);
    deliver(&outbox, &[d, b]);
    let delivered = world.reader().events().show("b").unwrap().unwrap().row;
    assert_eq!((delivered.state.as_str(), delivered.attempts), ("delivered", 1));
    assert!(delivered.settled_at.is_some());
    assert_eq!((states(&world).as_str(), counted(&world)), ("a:p b:d c:p d:d", (2, 2)));
    // As a crash would leave it: it is durable, and nothing of it is sent again.
    let crashed = World::new();
    for name in ["outbox.db", "outbox.db-wal"] {
        std::fs::copy(world.path(name), crashed.path(name)).unwrap();
    }
    outbox.close();
    let world = crashed;
    let outbox = world.agent();
    assert_eq!(QueueReader::new(world.reader(), Arc::default()).unwrap().acked().unwrap(), [b, d].into());
    assert_eq!((states(&world).as_str(), counted(&world)), ("a:p b:d c:p d:d", (2, 2)));
    // Delivered twice is delivered once.
    deliver(&outbox, &[d]);
    assert_eq!(counted(&world), (2, 2));
    deliver(&outbox, &[a]);
    assert_eq!((states(&world).as_str(), counted(&world)), ("a:d b:d c:p d:d", (1, 3)));
    assert_eq!(number(&world, "SELECT count(*) FROM pending"), 2, "what nothing waits before has moved");
    // A stop leaves nothing to be moved.
    outbox.close();
    assert_eq!(number(&world, "SELECT count(*) FROM pending"), 1);
}

#[test]
fn a_command_finds_every_row_where_it_belongs() {
    let world = World::new();
    let (outbox, [.., d]) = four(&world);
    deliver(&outbox, &[d]);
    assert_eq!(world.run(&["discard", "a"]).code, 0);
    assert_eq!(states(&world), "a:d b:p c:p d:d");
    assert_eq!(number(&world, "SELECT count(*) FROM acks"), 0);
    assert_eq!(number(&world, "SELECT count(*) FROM settled"), 2);
    // The agent goes on with what the command has left.
    let again = event("d", r#"{"type":"track","event":"E","email":"ana@acme.dev"}"#, "a.json");
    outbox.writer.append(vec![again], vec![]).block().unwrap();
    assert_eq!(world.reader().counts().unwrap().duplicates, 1);
    outbox.close();
}

#[test]
fn rows_and_ids_come_where_they_belong_when_nothing_else_is_to_do() {
    let world = World::new();
    let (outbox, [_, b, ..]) = four(&world);
    deliver(&outbox, &[b]);
    let left = "SELECT (SELECT count(*) FROM acks) + (SELECT count(*) FROM unindexed)";
    assert!(number(&world, left) > 0);
    let began = std::time::Instant::now();
    while number(&world, left) > 0 {
        assert!(began.elapsed().as_secs() < 60, "nothing moves");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(number(&world, "SELECT count(*) FROM recent_ids"), 4);
    assert_eq!(number(&world, "SELECT count(*) FROM bodies"), 0);
    assert_eq!(states(&world), "a:p b:d c:p d:p");
    outbox.close();
}

fn backlog(world: &World, outbox: &Outbox) -> QueueReader {
    QueueReader::new(world.reader(), outbox.writer.stats()).unwrap()
}

#[test]
fn many_requests_are_gathered_from_one_view_of_the_outbox() {
    let world = World::new();
    let (outbox, [a, _, _, d]) = four(&world);
    let mut backlog = backlog(&world, &outbox);
    let mut gone = |seqs: &[i64], ms, let_go| -> Vec<i64> {
        if let_go {
            backlog.release().unwrap();
        }
        backlog.gather(seqs, Duration::from_millis(ms), |_| true).unwrap().gone
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
    // What a command has changed is seen as soon as the writer has noticed.
    assert_eq!(world.run(&["discard", "a"]).code, 0);
    add("g");
    assert_eq!(gone(&[a], 17, false), [a]);
}

#[test]
fn the_write_ahead_log_is_written_over_again_however_much_is_read_meanwhile() {
    let world = World::new();
    let (outbox, [a, ..]) = four(&world);
    let mut backlog = backlog(&world, &outbox);
    let filler = "x".repeat(100_000);
    let body =
        format!(r#"{{"type":"track","event":"E","email":"ana@acme.dev","properties":{{"x":"{filler}"}}}}"#);
    let log = || std::fs::metadata(world.path("outbox.db-wal")).unwrap().len();
    let mut longest = 0;
    for n in 0..100 {
        let events = (0..10).map(|m| event(&format!("{n}-{m}"), &body, "b.json")).collect::<Vec<_>>();
        outbox.writer.append(events, vec![]).block().unwrap();
        // No time passes for it, so its view would stay.
        backlog.gather(&[a], Duration::ZERO, |_| true).unwrap();
        longest = longest.max(log());
    }
    // 100 MB were written into it.
    assert!((16 << 20..32 << 20).contains(&longest), "{longest}");
}
