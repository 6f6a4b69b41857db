use crate::clock::{Clock, Timestamp};
use crate::event::Digest;
use crate::item::OrderingKey;
use crate::outbox::fixture::{self, config, to_send};
use crate::outbox::{NewEvent, Outbox, Reader, Settled, State};
use rusqlite::Connection;
use std::fs;
use std::path::Path;

const EVENTS: usize = 300;

fn clock() -> Clock {
    Clock::manual(Timestamp(1_800_000_000_000))
}

fn event(n: usize) -> NewEvent {
    // Some bodies are longer than a page.
    let body = format!(r#"{{"n":{n},"pad":"{}"}}"#, "x".repeat(if n.is_multiple_of(20) { 9_000 } else { n }));
    NewEvent {
        digest: Digest::from_bytes([n as u8; 16]),
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
    let counted = number("SELECT coalesce(sum(events), 0) FROM counters WHERE state = 'owner'");
    assert_eq!(counted, number("SELECT coalesce(sum(octet_length(body) + 250), 0) FROM pending"));
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
