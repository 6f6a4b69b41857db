//! Tests that look at the tables of the outbox: where it stores events, and when compaction moves them.

use super::counters::CounterChanges;
use super::fixture::{assert_balanced, config, event};
use super::{
    Admin, EventFilter, EventReference, NewEvent, Outbox, OutboxError, QueueReader, Reader, Settled,
    Settlement, State,
};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use crate::subject::Subject;
use std::path::Path;
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

    fn discard(&self, id: &str) {
        let discarded = Admin::open(&self.config).unwrap().discard(id, Timestamp(0)).unwrap();
        assert_eq!(discarded, Some(true));
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
    let admin = || Admin::open(&home.config).unwrap();
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
            &|_| {
                let Disposition::Send(items) = pending("b").disposition else { panic!() };
                assert_eq!(admin().requeue(&[(home.seq("b"), items)], Timestamp(0)).unwrap(), 1);
            },
            "6 created, 1 requeued, 1 delivered, 1 failed refused, 1 skipped no_identity",
        ),
        (
            &|outbox| settle(outbox, "b", refused()),
            "6 created, 1 requeued, 1 delivered, 2 failed refused, 1 skipped no_identity",
        ),
        // One that failed was settled before.
        (
            &|_| home.discard("b"),
            "6 created, 1 requeued, 1 delivered, 2 failed refused, 1 skipped no_identity",
        ),
        (
            &|_| home.discard("c"),
            "6 created, 1 requeued, 1 delivered, 1 discarded, 2 failed refused, 1 skipped no_identity",
        ),
        (
            &|_| {
                let subject = Subject::Email("ben@acme.dev".to_owned());
                let mut admin = admin();
                let events = EventReference::find_all(admin.reader(), &subject).unwrap();
                assert_eq!(events.len(), 1);
                admin.erase(&subject, &events).unwrap();
            },
            "6 created, 1 requeued, 1 delivered, 1 discarded, 2 failed refused, 1 skipped erased, \
             1 skipped no_identity",
        ),
        (
            &|_| {
                let subject = Subject::Email("ana@acme.dev".to_owned());
                let mut admin = admin();
                let events = EventReference::find_all(admin.reader(), &subject).unwrap();
                admin.erase(&subject, &events).unwrap();
            },
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
    /// What a row counts for beside its body.
    const ROW: u64 = 250;
    let home = Home::new();
    let outbox = home.open();
    let of = |owner, id: &str, bytes| NewEvent { owner, ..event(id.to_owned(), "x".repeat(bytes)) };
    let (ana, ben) = (Some(1001), Some(1002));
    let events = [of(ana, "a", 10), of(ben, "b", 100), of(ana, "c", 1_000), of(None, "d", 5)];
    append(&outbox, [events.as_slice(), &[of(ben, "e", 9_000)]].concat());
    let bytes = |outbox: &Outbox| [1001, 1002, 4].map(|uid| outbox.writer.stats().pending_bytes(uid));
    assert_eq!(bytes(&outbox), [1_010 + 2 * ROW, 9_100 + 2 * ROW, 0]);
    // The one at the head of the queue moves with its delivery.
    deliver(&outbox, &[home.seq("a")]);
    assert_eq!(bytes(&outbox), [1_000 + ROW, 9_100 + 2 * ROW, 0]);
    let failed = Settled::Failed(crate::reason::Reason::new(crate::reason::Code::Refused, "no"));
    outbox.writer.settle(vec![(home.seq("e"), failed)]).block().unwrap();
    assert_eq!(bytes(&outbox), [1_000 + ROW, 100 + ROW, 0]);
    // A reused id rolls its append back.
    let reused = NewEvent { digest: crate::event::Digest::from_bytes([1; 16]), ..of(ana, "b", 50) };
    append(&outbox, vec![of(ana, "f", 50), reused]);
    assert_eq!(bytes(&outbox), [1_000 + ROW, 100 + ROW, 0]);
    home.discard("c");
    outbox.close();
    let outbox = home.open();
    assert_eq!(bytes(&outbox), [0, 100 + ROW, 0]);
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
    assert_eq!(home.rows("pending"), 2, "delivered rows before which none is pending have moved");
    // A stop moves the others.
    outbox.close();
    assert_eq!(home.rows("pending"), 1);
}

#[test]
fn a_command_moves_every_row_to_its_table() {
    let home = Home::new();
    let (outbox, [.., d]) = home.open_with_four();
    deliver(&outbox, &[d]);
    home.discard("a");
    assert_eq!(home.states(), "a:d b:p c:p d:d");
    assert_eq!((home.rows("acks"), home.rows("settled")), (0, 2));
    // The agent goes on with what the command has left.
    append(&outbox, vec![pending("d")]);
    assert_eq!(home.reader().counts().unwrap().duplicates, 1);
    outbox.close();
}

#[test]
fn an_idle_writer_moves_rows_and_ids_to_their_tables() {
    let home = Home::new();
    let (outbox, [_, b, ..]) = home.open_with_four();
    deliver(&outbox, &[b]);
    let left = || home.rows("acks") + home.rows("unindexed");
    assert!(left() > 0);
    until("all is moved", || left() == 0);
    assert_eq!((home.rows("recent_ids"), home.rows("bodies")), (4, 0));
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
        queue.gather(seqs, Duration::from_millis(ms), |_| true).unwrap().gone
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
    // The change of a command is read as soon as the writer has noticed it.
    home.discard("a");
    add("g");
    assert_eq!(gone(&[a], 17, false), [a]);
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
