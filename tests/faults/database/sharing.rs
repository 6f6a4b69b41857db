//! Lines 13 and 14: others at the same database, one that reads it for long, one that would own it as well.

use super::super::place::Place;
use super::super::stage::{Figures, Played, Scale};
use super::new_place;
use crate::common::daemon::Daemon;
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the log of the database may come to, unless `status` names who keeps it from being emptied.
const LOG_LIMIT: u64 = 64 << 20;

/// Another process reads from one snapshot while twice the limit is stored and delivered.
pub fn snapshot(scale: &Scale) -> Played {
    let mut place = new_place(Faults::default());
    let log = place.daemon.path("state/outbox.db-wal");
    place.daemon.start();
    place.drop_events(10, 10);
    place.until_delivered();
    let reader = place.daemon.database();
    reader.execute_batch("BEGIN; SELECT count(*) FROM pending").unwrap();
    let padding = format!(r#""a":"{}","#, "a".repeat(28 << 10));
    let mut most = 0;
    let (mut named, mut stored) = (false, 0);
    while stored < scale.of(1, 4) * 2 * LOG_LIMIT {
        let mut text = String::new();
        for n in 0..100 {
            let id = format!("large-{}", place.books.dropped.len());
            text += &place.books.event_with(n, &id, &padding);
            text.push('\n');
        }
        stored += text.len() as u64;
        place.drop_file("ndjson", text.as_bytes());
        place.until_status("taken", |status| status.spool.waiting_files == 0);
        most = fs::metadata(&log).unwrap().len().max(most);
        named |= names_reader(&place);
    }
    place.until("blamed, or small", |place| {
        named |= names_reader(place);
        named || most <= LOG_LIMIT
    });
    drop(reader);
    place.until("the log is emptied", |place| {
        place.receiver.stats().held == place.books.dropped.len()
            && fs::metadata(&log).unwrap().len() <= 16 << 20
    });
    place.until("nobody is blamed any more", |place| !names_reader(place));
    let blamed = if named { "the reader is named" } else { "nobody is named" };
    place.end().note(format!("log at most {} MiB, {blamed}", most >> 20)).into()
}

/// Whether `status` names this process as the one that keeps the log from being emptied.
fn names_reader(place: &Place) -> bool {
    let holders = place.daemon.status().outbox.log_held_by;
    holders.iter().any(|pid| pid.unsigned_abs() == std::process::id())
}

/// A second agent, by whatever name it knows the outbox.
pub fn second(_: &Scale) -> Played {
    let mut place = new_place(Faults::default());
    place.daemon.start();
    place.drop_events(50, 10);
    place.until_delivered();
    place.until_status("all marked", |status| status.outbox.pending == 0 && status.spool.waiting_files == 0);
    let state = place.daemon.path("state");
    let (folder_link, file_link) = (place.daemon.path("linked"), place.daemon.path("linked.db"));
    symlink(&state, &folder_link).unwrap();
    symlink(place.daemon.outbox(), &file_link).unwrap();
    let outboxes = [
        ("the same configuration", place.daemon.outbox()),
        ("another configuration and spool", place.daemon.outbox()),
        ("a folder that is a link", folder_link.join("outbox.db")),
        ("a file that is a link", file_link),
        ("another way to write it", place.daemon.path("state/../state/./outbox.db")),
    ];
    let mut figures = Figures::default();
    let mut slowest = Duration::ZERO;
    for (name, outbox) in outboxes {
        let mut other = Daemon::new(&place.receiver.endpoint());
        other.set(&format!("outbox.path = \"{}\"", outbox.display()));
        if name == "the same configuration" {
            fs::copy(place.daemon.path("config.toml"), other.path("config.toml")).unwrap();
        }
        // It would send this, if it ran.
        let mut unsent = super::super::books::Books::default();
        fs::write(other.spool().join("a.json"), unsent.event(1)).unwrap();
        // The first one has emptied its log, and has nothing to do.
        std::thread::sleep(Duration::from_secs(2));
        let (before, requests) = (files_below(&state), place.receiver.stats().requests);
        let began = Instant::now();
        other.start();
        let ended = other.wait();
        let took = began.elapsed();
        slowest = slowest.max(took);
        assert_eq!(ended.code(), Some(75), "{name}: {}", other.log());
        let holder = format!("pid {}", place.daemon.pid());
        assert!(other.log().contains(&holder), "{name}: {} not named: {}", holder, other.log());
        assert!(took < Duration::from_secs(1), "{name}: it took {took:?}");
        assert!(files_below(&state) == before, "{name}: it has changed the outbox");
        assert!(other.spool().join("a.json").exists(), "{name}: it has taken a file");
        assert_eq!(place.receiver.stats().requests, requests, "{name}: it has sent something");
        place.drop_events(5, 5);
        place.until_delivered();
        figures.rounds += 1;
    }
    // The first still owns it; a stopped one as well.
    place.daemon.signal(Signal::SIGSTOP);
    let mut other = Daemon::new(&place.receiver.endpoint());
    other.set(&format!("outbox.path = \"{}\"", place.daemon.outbox().display()));
    other.set(&format!("spool.dir = \"{}\"", place.daemon.spool().display()));
    other.set("spool.settle = \"50ms\"");
    other.start();
    assert_eq!(other.wait().code(), Some(75), "{}", other.log());
    place.daemon.kill();
    let began = Instant::now();
    other.start();
    place.drop_events(20, 10);
    place.until_delivered();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "the second took {took:?} to start and deliver");
    other.stop();
    let ended = place.balance();
    figures.add(Figures { rounds: 0, ..ended });
    figures
        .note(format!(
            "refused within {} ms, then delivered after {} ms",
            slowest.as_millis(),
            took.as_millis()
        ))
        .into()
}

/// The files in a folder with what is in them; the small one with the status aside, which the first one writes.
fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    named
        .filter(|(name, _)| !name.contains("status") && !name.ends_with("-shm"))
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}
