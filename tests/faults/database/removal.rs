//! Line 11: the database is removed or replaced under the running daemon.
//!
//! Nothing may be lost by that: neither what was in the spool at that moment or is dropped later, nor what was pending
//! in the database. Of a database that was replaced it is kept beside the other.

use super::super::books::numbers;
use super::super::stage::{Figures, Played, Scale};
use super::{copy_files, ended, held, new_place, supervise, until};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is done to the database's folder; the second folder has an older copy of its files.
type Strike = fn(&Path, &Path);

/// What becomes of the events that were pending in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Delivered,
    KeptAside,
}

const STRIKES: &[(&str, Then, Strike)] = &[
    ("the database removed", Then::Delivered, |state, _| fs::remove_file(state.join("outbox.db")).unwrap()),
    ("an older copy moved in its place", Then::KeptAside, |state, older| {
        fs::copy(older.join("outbox.db"), state.join("restored")).unwrap();
        fs::rename(state.join("restored"), state.join("outbox.db")).unwrap();
    }),
    ("another file moved in its place", Then::KeptAside, |state, _| {
        fs::write(state.join("other"), "to be done\n").unwrap();
        fs::rename(state.join("other"), state.join("outbox.db")).unwrap();
    }),
    ("the log removed", Then::Delivered, |state, _| fs::remove_file(state.join("outbox.db-wal")).unwrap()),
    ("the folder removed", Then::Delivered, |state, _| fs::remove_dir_all(state).unwrap()),
    ("the folder renamed", Then::Delivered, |state, _| {
        fs::rename(state, state.with_extension("away")).unwrap();
    }),
];

/// Nothing is stored or sent: the daemon must look by itself.
pub fn idle(scale: &Scale) -> Played {
    side_by_side(scale, false)
}

pub fn under_load(scale: &Scale) -> Played {
    side_by_side(scale, true)
}

fn side_by_side(scale: &Scale, load: bool) -> Played {
    let mut figures = Figures::default();
    for _ in 0..scale.of(1, 10) {
        std::thread::scope(|scope| {
            let rounds = STRIKES
                .iter()
                .map(|(name, then, strike)| scope.spawn(move || round(name, *then, *strike, load)));
            let rounds: Vec<_> = rounds.collect();
            for round in rounds {
                figures.add(round.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
            }
        });
    }
    figures.into()
}

fn round(name: &str, then: Then, strike: Strike, load: bool) -> Figures {
    let mut place = new_place(Faults { latency_ms: 20, ..Faults::default() });
    let state = place.daemon.path("state");
    place.daemon.start();
    place.drop_events(30, 10);
    place.until_delivered();
    place.daemon.stop();
    let older = tempfile::tempdir().unwrap();
    copy_files(&state, older.path());

    place.daemon.start();
    let (drops, first) = if load { (600, 150) } else { (30, 60) };
    place.drop_events(drops, 50);
    place.until(&format!("{name}: some delivered"), |place| place.receiver.stats().held >= first);
    if !load {
        place.until_status("all marked", |status| {
            status.outbox.pending == 0 && status.spool.waiting_files == 0
        });
        // The log is emptied when there is nothing to do, and then the writer rests.
        std::thread::sleep(Duration::from_secs(4));
    }
    place.daemon.signal(Signal::SIGSTOP);
    place.until("it stands still", |place| stands_still(place.daemon.pid()));
    let snapshot = tempfile::tempdir().unwrap();
    copy_files(&state, snapshot.path());
    let in_it = pending(&snapshot.path().join("outbox.db"));
    strike(&state, older.path());
    let mark = place.daemon.log().len();
    place.daemon.signal(Signal::SIGCONT);

    if load {
        place.drop_events(100, 50);
    }
    let (began, mut code) = (Instant::now(), None);
    place.until_within(Duration::from_secs(10), &format!("{name}: noticed"), |place| {
        code = ended(place);
        code.is_some()
    });
    let took = began.elapsed();
    let log = place.daemon.log()[mark..].to_owned();
    assert_eq!(code, Some(74), "{name}: {log}");
    assert!(log.contains(" error ") && log.contains("outbox.db"), "{name}: {log}");
    if then == Then::KeptAside {
        let kept = replaced(&state).map(|kept| pending(&kept));
        let kept = kept.unwrap_or_else(|| panic!("{name}: what was replaced is not kept:\n{log}"));
        let held = held(&place);
        assert!(in_it.iter().all(|n| kept.contains(n) || held.contains(n)), "{name}: not all is kept");
        place.books.destroyed = in_it.clone();
    }

    let ran = supervise(&mut place);
    assert!(ran.is_ok(), "{name}: {ran:?}");
    place.drop_events(20, 50);
    let wanted: BTreeSet<u64> = place.books.dropped.keys().copied().collect();
    let wanted: BTreeSet<u64> = wanted.difference(&place.books.destroyed).copied().collect();
    until(&mut place, &format!("{name}: what remained delivered"), |place| wanted.is_subset(&held(place)));
    until(&mut place, &format!("{name}: all marked"), |place| {
        let status = place.daemon.status();
        status.outbox.pending == 0 && status.spool.waiting_files == 0
    });
    place.daemon.stop();
    let pending = in_it.len();
    let figures = place.balance();
    figures.note(format!("{name}: noticed after {:.1} s, {pending} were pending in it", took.as_secs_f64()))
}

/// proc(5): the third field of stat.
fn stands_still(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// The database that was replaced.
fn replaced(state: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    let aside = |path: &PathBuf| path.to_string_lossy().contains("outbox.db.replaced-");
    files.find(aside)
}

/// The numbers of what is pending in a database of nobody.
fn pending(database: &Path) -> BTreeSet<u64> {
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    let mut rows = conn.prepare("SELECT body FROM pending").unwrap();
    let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|body| numbers(body.unwrap().as_bytes())[0]).collect()
}
