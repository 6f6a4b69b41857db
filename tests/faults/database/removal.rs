//! Line 11: the database is removed or replaced under the running agent.
//!
//! Nothing may be lost by that: neither what was in the spool at that moment or is dropped later, nor what was pending
//! in the database. Of a database that was replaced it is kept beside the other.

use super::{copy_files, ended, held, new_place, supervise, until};
use crate::common::ledger::numbers;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Damages the database's folder; the second folder has an older copy of its files.
type Strike = fn(&Path, &Path);

/// The end of the events that were pending in the database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Delivered,
    KeptBeside,
}

const STRIKES: &[(&str, Then, Strike)] = &[
    ("the database removed", Then::Delivered, |state, _| fs::remove_file(state.join("outbox.db")).unwrap()),
    ("an older copy moved in its place", Then::KeptBeside, |state, older| {
        fs::copy(older.join("outbox.db"), state.join("restored")).unwrap();
        fs::rename(state.join("restored"), state.join("outbox.db")).unwrap();
    }),
    ("another file moved in its place", Then::KeptBeside, |state, _| {
        fs::write(state.join("other"), "to be done\n").unwrap();
        fs::rename(state.join("other"), state.join("outbox.db")).unwrap();
    }),
    ("the log removed", Then::Delivered, |state, _| fs::remove_file(state.join("outbox.db-wal")).unwrap()),
    ("the folder removed", Then::Delivered, |state, _| fs::remove_dir_all(state).unwrap()),
    ("the folder renamed", Then::Delivered, |state, _| {
        fs::rename(state, state.with_extension("away")).unwrap();
    }),
];

/// Nothing is stored or sent: the agent must look by itself.
pub fn idle(scale: &Scale) -> Outcome {
    side_by_side(scale, false)
}

pub fn under_load(scale: &Scale) -> Outcome {
    side_by_side(scale, true)
}

fn side_by_side(scale: &Scale, load: bool) -> Outcome {
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
    let mut agent = new_place(Faults { latency_ms: 20, ..Faults::default() });
    let state = agent.state();
    agent.start();
    agent.drop_events(30, 10);
    agent.until_delivered();
    agent.stop();
    let older = tempfile::tempdir().unwrap();
    copy_files(&state, older.path());

    agent.start();
    let (drops, first) = if load { (600, 150) } else { (30, 60) };
    agent.drop_events(drops, 50);
    agent.until(&format!("{name}: some delivered"), |agent| agent.receiver.stats().held >= first);
    if !load {
        agent.until_settled();
        // The log is emptied when there is nothing to do, and then the writer rests.
        std::thread::sleep(Duration::from_secs(4));
    }
    agent.signal(Signal::SIGSTOP);
    agent.until("it stands still", |agent| stands_still(agent.pid()));
    let snapshot = tempfile::tempdir().unwrap();
    copy_files(&state, snapshot.path());
    let in_it = pending(&snapshot.path().join("outbox.db"));
    strike(&state, older.path());
    let log_start = agent.log().len();
    agent.signal(Signal::SIGCONT);

    if load {
        agent.drop_events(100, 50);
    }
    let (began, mut code) = (Instant::now(), None);
    agent.until_within(Duration::from_secs(50), &format!("{name}: noticed"), |agent| {
        code = ended(agent);
        code.is_some()
    });
    let took = began.elapsed();
    let log = agent.log()[log_start..].to_owned();
    assert_eq!(code, Some(74), "{name}: {log}");
    assert!(log.contains(" error ") && log.contains("outbox.db"), "{name}: {log}");
    if then == Then::KeptBeside {
        let kept = replaced(&state).map(|kept| pending(&kept));
        let kept = kept.unwrap_or_else(|| panic!("{name}: what was replaced is not kept:\n{log}"));
        let held = held(&agent);
        assert!(in_it.iter().all(|n| kept.contains(n) || held.contains(n)), "{name}: not all is kept");
        agent.ledger.destroyed = in_it.clone();
    }

    let ran = supervise(&mut agent);
    assert!(ran.is_ok(), "{name}: {ran:?}");
    agent.drop_events(20, 50);
    let wanted: BTreeSet<u64> = agent.ledger.dropped.keys().copied().collect();
    let wanted: BTreeSet<u64> = wanted.difference(&agent.ledger.destroyed).copied().collect();
    until(&mut agent, &format!("{name}: what remained delivered"), |agent| wanted.is_subset(&held(agent)));
    until(&mut agent, &format!("{name}: all acknowledged"), |agent| {
        let status = agent.status();
        status.outbox.pending == 0 && status.spool.waiting_files == Some(0)
    });
    agent.stop();
    let pending = in_it.len();
    let figures = agent.balance();
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
