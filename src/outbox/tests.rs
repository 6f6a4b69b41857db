//! Tests that look at the tables of the outbox: where it stores events, and when compaction moves them.

use super::counters::{CounterChanges, event_bytes};
use super::fixture::{assert_balanced, config, event, to_send};
use super::{
    Appended, Applied, Change, EventFilter, EventOutcome, EventReference, NewEvent, Outbox, OutboxError,
    QueueReader, Reader, Report, Retried, Settled, Settlement, State, Work,
};
use crate::clock::Clock;
use crate::config;
use crate::item::{Disposition, OrderingKey};
use crate::reason::{Code, Reason};
use crate::subject::Subject;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A change that is made in the background comes within this.
const SOON: Duration = Duration::from_secs(60);

/// The folder of an outbox that this process may open.
struct Home {
    folder: tempfile::TempDir,
    config: config::OutboxConfig,
}

impl Home {
    fn new() -> Home {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        Home { folder, config }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Outbox {
        Outbox::open(&self.config, Clock::system()).unwrap()
    }

    /// The outbox with the events a, b, c and d, pending under these numbers.
    fn open_with_four(&self) -> (Outbox, [i64; 4]) {
        let outbox = self.open();
        let ids = ["a", "b", "c", "d"];
        append(&outbox, ids.map(pending).to_vec());
        (outbox, ids.map(|id| self.seq(id)))
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.config.path).unwrap()
    }

    fn queue(&self, outbox: &Outbox) -> QueueReader {
        QueueReader::new(self.reader(), outbox.writer.stats()).unwrap()
    }

    fn discard(&self, outbox: &Outbox, id: &str) {
        let (events, none) = (vec![self.seq(id)], Vec::new);
        let work = Work::Discard { events, waited: none(), unanswered: none(), in_flight: none() };
        let expected = [(self.seq(id), EventOutcome::Discarded { is_unanswered: false })];
        assert_eq!(outcomes(change(outbox, work)), expected);
    }

    fn erase(&self, outbox: &Outbox, email: &str) -> usize {
        let subject = Subject::Email(email.to_owned());
        let found = EventReference::find_all(&self.reader(), &subject).unwrap();
        let events = found.iter().map(|event| event.seq).collect();
        match change(outbox, Work::Erase { events, unanswered: Vec::new(), in_flight: Vec::new() }) {
            Applied::Erased(erased) => erased.len(),
            other => panic!("{other:?}"),
        }
    }

    fn seq(&self, id: &str) -> i64 {
        self.reader().events().show(id).unwrap().unwrap().row.seq
    }

    /// Every event with the first letter of its state, in the order of their ids.
    fn states(&self) -> String {
        let mut rows = self.reader().events().list(&EventFilter::default(), 10).unwrap().rows;
        rows.sort_by(|a, b| a.message_id.cmp(&b.message_id));
        let states = rows.iter().map(|row| format!("{}:{}", row.message_id, &row.state[..1]));
        states.collect::<Vec<_>>().join(" ")
    }

    /// The numbers of pending and of delivered events, by the counters.
    fn counted(&self) -> (u64, u64) {
        let counts = self.reader().counts().unwrap();
        (counts.of(State::Pending), counts.of(State::Delivered))
    }

    /// The files in which these bytes stand. Another process searches them: closing a file of the database here would drop
    /// the locks on it.
    fn files_with(&self, text: &str) -> String {
        let found = Command::new("grep").args(["-rlaF", text]).arg(self.folder.path()).output().unwrap();
        assert!(found.status.code() < Some(2), "{found:?}");
        String::from_utf8(found.stdout).unwrap()
    }

    /// The number of rows of a table or a view.
    fn rows(&self, table: &str) -> i64 {
        let conn = rusqlite::Connection::open(&self.config.path).unwrap();
        conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0)).unwrap()
    }
}

fn pending(id: &str) -> NewEvent {
    event(id.to_owned(), r#"{"type":"track","event":"E","email":"ana@acme.dev"}"#.to_owned())
}

fn append(outbox: &Outbox, events: Vec<NewEvent>) {
    outbox.writer.append(events, vec![]).block().unwrap();
}

/// Makes a change that no command has asked for.
fn change(outbox: &Outbox, work: Work) -> Applied {
    outbox.writer.change(Change { work, of: None, is_last: false }).block().unwrap()
}

fn outcomes(applied: Applied) -> Vec<(i64, EventOutcome)> {
    match applied {
        Applied::Events { outcomes, .. } => outcomes,
        other => panic!("{other:?}"),
    }
}

fn deliver(outbox: &Outbox, seqs: &[i64]) {
    let rows: Vec<_> = seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect();
    outbox.writer.settle(rows).block().unwrap();
}

fn until(fact: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "not in time: {fact}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_delivered_event_is_found_and_retried_before_compaction_comes_to_it() {
    for (keep_bodies, kept) in [(Duration::ZERO, false), (Duration::from_secs(3_600), true)] {
        let mut home = Home::new();
        home.config.keep_bodies = keep_bodies;
        let (outbox, [a, ..]) = home.open_with_four();
        deliver(&outbox, &[a]);
        assert_eq!((home.rows("acked"), home.rows("settled")), (1, 0), "compaction has come to it");
        let delivered = EventFilter { states: vec![State::Delivered], ..EventFilter::default() };
        let reader = Reader::open_in_process(&home.config.path).unwrap();
        for filter in [delivered, EventFilter::default()] {
            let found = reader.events().all_retained(&filter, 0, 10).unwrap();
            assert_eq!(found.iter().map(|event| event.seq).collect::<Vec<_>>(), [a]);
        }
        let Disposition::Send(items) = pending("a").disposition else { unreachable!() };
        let mut report = Report::Retried(Retried { total: 1, examined: 1, ..Retried::default() });
        report.add(&change(&outbox, Work::Requeue(vec![(a, items)])));
        let expected =
            Retried { total: 1, examined: u64::from(kept), requeued: u64::from(kept), ..Retried::default() };
        assert_eq!(report, Report::Retried(expected));
        outbox.close();
    }
}

#[test]
fn a_duplicate_is_not_counted_as_ingested() {
    let home = Home::new();
    let outbox = home.open();
    for _ in 0..2 {
        append(&outbox, ["a", "b"].map(pending).to_vec());
    }
    assert_eq!(outbox.writer.stats().throughput().ingested, 2);
    outbox.close();
    assert_eq!(home.reader().counts().unwrap().duplicates, 2);
}

#[test]
fn the_totals_of_items_balance_after_every_change_and_only_grow() {
    let home = Home::new();
    let refused = || Settled::Failed(Reason::new(Code::Refused, "no"));
    let ben = r#"{"type":"track","event":"E","email":"ben@acme.dev"}"#;
    let nobody = NewEvent {
        disposition: Disposition::Skip(Reason::new(Code::NoIdentity, "nobody")),
        ..event("e".to_owned(), "{}".to_owned())
    };
    let settle = |outbox: &Outbox, id: &str, settled: Settled| {
        outbox.writer.settle(vec![(home.seq(id), settled)]).block().unwrap();
    };
    type Step<'a> = (&'a dyn Fn(&Outbox), &'a str);
    let steps: &[Step] = &[
        (&|outbox| append(outbox, ["a", "b", "c", "d"].map(pending).to_vec()), "4 created"),
        (&|outbox| append(outbox, vec![pending("a")]), "4 created"),
        (&|outbox| append(outbox, vec![nobody.clone()]), "5 created, 1 skipped no_identity"),
        (
            &|outbox| append(outbox, vec![event("f".to_owned(), ben.to_owned())]),
            "6 created, 1 skipped no_identity",
        ),
        (&|outbox| deliver(outbox, &[home.seq("a")]), "6 created, 1 delivered, 1 skipped no_identity"),
        (
            &|outbox| settle(outbox, "b", refused()),
            "6 created, 1 delivered, 1 failed refused, 1 skipped no_identity",
        ),
        (
            &|outbox| {
                let Disposition::Send(items) = pending("b").disposition else { panic!() };
                let requeued = outcomes(change(outbox, Work::Requeue(vec![(home.seq("b"), items)])));
                assert_eq!(requeued, [(home.seq("b"), EventOutcome::Requeued)]);
            },
            "6 created, 1 requeued, 1 delivered, 1 failed refused, 1 skipped no_identity",
        ),
        (
            &|outbox| settle(outbox, "b", refused()),
            "6 created, 1 requeued, 1 delivered, 2 failed refused, 1 skipped no_identity",
        ),
        // One that failed was settled before.
        (
            &|outbox| home.discard(outbox, "b"),
            "6 created, 1 requeued, 1 delivered, 2 failed refused, 1 skipped no_identity",
        ),
        (
            &|outbox| home.discard(outbox, "c"),
            "6 created, 1 requeued, 1 delivered, 1 discarded, 2 failed refused, 1 skipped no_identity",
        ),
        (
            &|outbox| assert_eq!(home.erase(outbox, "ben@acme.dev"), 1),
            "6 created, 1 requeued, 1 delivered, 1 discarded, 2 failed refused, 1 skipped erased, \
             1 skipped no_identity",
        ),
        (
            // That of a delivered event may be there until it is settled.
            &|outbox| assert!((1..=2).contains(&home.erase(outbox, "ana@acme.dev"))),
            "6 created, 1 requeued, 1 delivered, 1 discarded, 2 failed refused, 2 skipped erased, \
             1 skipped no_identity",
        ),
    ];
    let totals = || {
        let counts = home.reader().counts().unwrap();
        assert_balanced(&counts);
        let mut text = format!("{} created", counts.totals.created);
        if counts.totals.requeued > 0 {
            text += &format!(", {} requeued", counts.totals.requeued);
        }
        for count in counts.totals.settled {
            text += format!(", {} {} {}", count.events, count.state, count.code).trim_end();
        }
        text
    };
    let outbox = home.open();
    for (step, expected) in steps {
        step(&outbox);
        assert_eq!(totals(), *expected);
    }
    let end = totals();
    outbox.close();
    assert_eq!(totals(), end, "after the outbox was closed");
    // A damaged outbox keeps what can be read of it.
    let outbox = home.open();
    outbox.mark_corrupt(&OutboxError::Damaged { path: home.config.path.clone(), text: "damaged".to_owned() });
    outbox.close();
    home.open().close();
    assert_eq!(totals(), end, "after it was recovered");
}

#[test]
fn events_that_are_lost_with_a_damaged_outbox_are_counted_as_lost() {
    let mut totals = CounterChanges::default();
    for (name, items) in [("created", 10), ("settled_delivered", 4), ("requeued", 1), ("owner", 77)] {
        totals.recover_total(name, "", items);
    }
    totals.balance_totals(5);
    let home = Home::new();
    home.open().close();
    let conn = rusqlite::Connection::open(&home.config.path).unwrap();
    totals.write(&conn).unwrap();
    let read = crate::outbox::Counts::read(&conn).unwrap().totals;
    let settled: Vec<_> = read.settled.iter().map(|count| (&*count.state, count.events)).collect();
    assert_eq!((read.created, read.requeued, settled), (10, 1, vec![("delivered", 4), ("lost", 2)]));
}

#[test]
fn each_owners_bytes_are_those_of_its_events_in_the_queue() {
    let home = Home::new();
    let outbox = home.open();
    let of = |owner, id: &str, bytes| NewEvent { owner, ..event(id.to_owned(), "x".repeat(bytes)) };
    let (ana, ben) = (Some(1001), Some(1002));
    let events = [of(ana, "a", 10), of(ben, "b", 100), of(ana, "c", 1_000), of(None, "d", 5)];
    append(&outbox, [events.as_slice(), &[of(ben, "e", 9_000)]].concat());
    let bytes = |outbox: &Outbox| [1001, 1002, 4].map(|uid| outbox.writer.stats().queued_bytes(uid));
    let [a, b, c, e] = [10, 100, 1_000, 9_000].map(|body| event_bytes(body) as u64);
    assert_eq!(bytes(&outbox), [a + c, b + e, 0]);
    // The one at the head of the queue is settled when the writer is idle.
    deliver(&outbox, &[home.seq("a")]);
    until("it is settled", || bytes(&outbox) == [c, b + e, 0]);
    let needed = outbox.writer.stats().needed_bytes();
    let failed = Settled::Failed(crate::reason::Reason::new(crate::reason::Code::Refused, "no"));
    outbox.writer.settle(vec![(home.seq("e"), failed)]).block().unwrap();
    assert_eq!(bytes(&outbox), [c, b, 0]);
    assert_eq!(outbox.writer.stats().needed_bytes(), needed, "what has failed is still needed");
    // A reused id rolls its append back.
    let reused = NewEvent { digest: crate::event::Digest::from_bytes([1; 8]), ..of(ana, "b", 50) };
    append(&outbox, vec![of(ana, "f", 50), reused]);
    assert_eq!(bytes(&outbox), [c, b, 0]);
    home.discard(&outbox, "c");
    outbox.close();
    let outbox = home.open();
    assert_eq!(bytes(&outbox), [0, b, 0]);
    assert_eq!(home.reader().events().show("e").unwrap().unwrap().row.owner, ben);
    outbox.close();
}

#[test]
fn a_settlement_that_may_wait_to_share_a_commit_is_made_all_the_same() {
    let home = Home::new();
    let (outbox, seqs) = home.open_with_four();
    let settle = |outbox: &Outbox, seq| {
        let rows = vec![(seq, Settled::Delivered)];
        outbox.writer.settle(Settlement { rows, may_wait: true, ..Settlement::default() })
    };
    settle(&outbox, seqs[0]).block().unwrap();
    drop(settle(&outbox, seqs[1]));
    outbox.close();
    assert_eq!(home.states(), "a:d b:d c:p d:p");
    let outbox = home.open();
    drop(settle(&outbox, seqs[2]));
    // Nobody tells the writer to stop: the last handle is gone.
    drop(outbox);
    until("the third is delivered", || home.states() == "a:d b:d c:d d:p");
}

#[test]
fn a_delivery_is_visible_and_durable_at_once_while_older_events_are_pending() {
    let home = Home::new();
    let (outbox, [a, b, _, d]) = home.open_with_four();
    deliver(&outbox, &[d, b]);
    let delivered = home.reader().events().show("b").unwrap().unwrap().row;
    assert_eq!((delivered.state.as_str(), delivered.attempts), ("delivered", 1));
    assert!(delivered.settled_at.is_some());
    assert_eq!((home.states().as_str(), home.counted()), ("a:p b:d c:p d:d", (2, 2)));
    // A copy of the files is what a crash would leave: nothing that was delivered is sent again.
    let crashed = Home::new();
    for name in ["outbox.db", "outbox.db-wal"] {
        std::fs::copy(home.path(name), crashed.path(name)).unwrap();
    }
    outbox.close();
    let home = crashed;
    let outbox = home.open();
    assert_eq!(QueueReader::new(home.reader(), Arc::default()).unwrap().acked().unwrap(), [b, d].into());
    assert_eq!((home.states().as_str(), home.counted()), ("a:p b:d c:p d:d", (2, 2)));
    // An event that is delivered twice counts once.
    deliver(&outbox, &[d]);
    assert_eq!(home.counted(), (2, 2));
    deliver(&outbox, &[a]);
    assert_eq!((home.states().as_str(), home.counted()), ("a:d b:d c:p d:d", (1, 3)));
    // A stop settles them.
    outbox.close();
    assert_eq!(home.rows("queue"), 1);
}

#[test]
fn an_idle_writer_settles_accepted_items_and_erases_their_bodies() {
    let home = Home::new();
    let (outbox, [_, b, ..]) = home.open_with_four();
    deliver(&outbox, &[b]);
    assert!(home.rows("acks") > 0);
    until("it is settled", || home.rows("acks") == 0);
    assert_eq!(
        (home.rows("events"), home.rows("queue"), home.rows("bodies"), home.rows("settled")),
        (4, 3, 3, 1)
    );
    assert_eq!(home.states(), "a:p b:d c:p d:p");
    outbox.close();
}

#[test]
fn many_batches_are_read_from_one_snapshot_of_the_queue() {
    let home = Home::new();
    let (outbox, [a, _, _, d]) = home.open_with_four();
    let mut queue = home.queue(&outbox);
    let mut gone = |seqs: &[i64], ms, release| -> Vec<i64> {
        if release {
            queue.release().unwrap();
        }
        queue.gather(seqs, Duration::from_millis(ms), |_| true).unwrap()
    };
    let add = |id| {
        append(&outbox, vec![pending(id)]);
        home.seq(id)
    };
    assert!(gone(&[a, d], 0, false).is_empty());
    let e = add("e");
    assert_eq!(gone(&[d, e], 5, false), [e]);
    assert!(gone(&[d, e], 6, true).is_empty());
    let f = add("f");
    assert_eq!(gone(&[f], 7, false), [f]);
    assert!(gone(&[f], 16, false).is_empty());
    outbox.close();
}

#[test]
fn the_write_ahead_log_is_reused_however_much_is_read_meanwhile() {
    let home = Home::new();
    let (outbox, [a, ..]) = home.open_with_four();
    let mut queue = home.queue(&outbox);
    let filler = "x".repeat(100_000);
    let body =
        format!(r#"{{"type":"track","event":"E","email":"ana@acme.dev","properties":{{"x":"{filler}"}}}}"#);
    let log = |home: &Path| std::fs::metadata(home.join("outbox.db-wal")).unwrap().len();
    let mut longest = 0;
    for n in 0..100 {
        append(&outbox, (0..10).map(|m| event(format!("{n}-{m}"), body.clone())).collect());
        // No time passes for the reader, so its snapshot would stay.
        queue.gather(&[a], Duration::ZERO, |_| true).unwrap();
        longest = longest.max(log(home.folder.path()));
    }
    // 100 MB were written into it.
    assert!((16 << 20..32 << 20).contains(&longest), "{longest}");
}

/// Stands in the body of each event of Zoe's, and in the name of the person.
const ZOE: &str = "zoe-7f3a91";
/// The time within which nothing is left of a delivered event.
const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// Stores events of Zoe's, some longer than a page. Returns their numbers.
fn append_zoes(outbox: &Outbox, count: usize) -> Vec<i64> {
    let zoe = |n: usize| NewEvent {
        disposition: to_send(OrderingKey(n as i64 % 7), &format!("{ZOE}@acme.dev")),
        ..event(
            format!("zoe-{n}"),
            format!(
                r#"{{"type":"track","event":"E","email":"{ZOE}@acme.dev","n":"{}{ZOE}"}}"#,
                "x".repeat(n * 37 % 3_000 + if n.is_multiple_of(50) { 9_000 } else { 0 })
            ),
        )
    };
    let mut seqs = Vec::new();
    for first in (0..count).step_by(500) {
        let events: Vec<_> = (first..count.min(first + 500)).map(zoe).collect();
        match outbox.writer.append(events, vec![]).block().unwrap() {
            Appended::Stored { enqueued, .. } => seqs.extend(enqueued.items.iter().map(|item| item.seq)),
            other => panic!("{other:?}"),
        }
    }
    seqs
}

#[test]
fn half_a_minute_after_its_delivery_no_file_has_anything_of_an_event() {
    let deliver_all = |is_busy: bool, older_waits: bool| {
        let home = Home::new();
        let outbox = home.open();
        if older_waits {
            append(&outbox, vec![pending("older")]);
        }
        deliver(&outbox, &append_zoes(&outbox, 3_000));
        assert!(home.files_with(ZOE).contains("outbox.db"), "the search finds what is there");
        let delivered = Instant::now();
        let (mut n, mut left) = (0, home.files_with(ZOE));
        while !left.is_empty() {
            let case = format!("busy: {is_busy}, an older event waits: {older_waits}");
            assert!(delivered.elapsed() < HALF_A_MINUTE, "{case}: {left}");
            let searched = Instant::now();
            // Events come and go all the time: the writer is never idle for its interval of a second.
            while is_busy && searched.elapsed() < Duration::from_millis(500) {
                let Appended::Stored { enqueued, .. } =
                    outbox.writer.append(vec![pending(&format!("other-{n}"))], vec![]).block().unwrap()
                else {
                    panic!()
                };
                n += 1;
                deliver(&outbox, &enqueued.items.iter().map(|item| item.seq).collect::<Vec<_>>());
                std::thread::sleep(Duration::from_millis(5));
            }
            if !is_busy {
                std::thread::sleep(Duration::from_millis(100));
            }
            left = home.files_with(ZOE);
        }
        assert_eq!(home.counted().0, u64::from(older_waits));
        outbox.close();
    };
    std::thread::scope(|scope| {
        for is_busy in [false, true] {
            for older_waits in [false, true] {
                scope.spawn(move || deliver_all(is_busy, older_waits));
            }
        }
    });
}

#[test]
fn once_the_log_is_emptied_no_file_has_anything_of_an_erased_event() {
    let home = Home::new();
    let outbox = home.open();
    append(&outbox, vec![pending("older")]);
    let seqs = append_zoes(&outbox, 300);
    deliver(&outbox, &seqs[..100]);
    let erased = change(&outbox, Work::Erase { events: seqs, unanswered: Vec::new(), in_flight: Vec::new() });
    assert!(matches!(erased, Applied::Erased(erased) if erased.len() == 300));
    assert_eq!(outbox.writer.empty_log().block().unwrap(), (true, vec![]));
    assert_eq!(home.files_with(ZOE), "");
    outbox.close();
}

#[test]
fn a_log_that_a_snapshot_needs_keeps_an_erased_event_until_that_ends_and_says_so() {
    let home = Home::new();
    let outbox = home.open();
    let seqs = append_zoes(&outbox, 50);
    let reader = rusqlite::Connection::open(&home.config.path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM bodies").unwrap();
    change(&outbox, Work::Erase { events: seqs, unanswered: Vec::new(), in_flight: Vec::new() });
    assert!(!outbox.writer.empty_log().block().unwrap().0);
    assert!(home.files_with(ZOE).contains("outbox.db"));
    reader.execute_batch("ROLLBACK").unwrap();
    assert_eq!(outbox.writer.empty_log().block().unwrap(), (true, vec![]));
    assert_eq!(home.files_with(ZOE), "");
    outbox.close();
}
