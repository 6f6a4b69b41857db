//! Line 11: the database is removed or replaced under the running agent.
//!
//! Nothing may be lost by that: neither what was in the spool at that moment or is dropped later, nor what was pending
//! in the database. Of a database that was replaced it is kept beside the other.

use super::{copy_files, ended, held, new_place, supervise, until, writing};
use crate::common::agent::TestAgent;
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

const USED: &[(&str, Then, Strike)] = &[
    ("-shm removed, used", Then::Delivered, |state, _| {
        fs::remove_file(state.join("outbox.db-shm")).unwrap();
        use_it(state);
    }),
    ("-shm replaced, used", Then::Delivered, |state, older| {
        fs::copy(older.join("outbox.db-shm"), state.join("restored")).unwrap();
        fs::rename(state.join("restored"), state.join("outbox.db-shm")).unwrap();
        use_it(state);
    }),
    ("the log removed, used", Then::Delivered, |state, _| {
        fs::remove_file(state.join("outbox.db-wal")).unwrap();
        use_it(state);
    }),
    ("an empty log in its place, used", Then::Delivered, |state, _| {
        fs::write(state.join("restored"), "").unwrap();
        fs::rename(state.join("restored"), state.join("outbox.db-wal")).unwrap();
        use_it(state);
    }),
    ("the database removed, looked for", Then::Delivered, |state, _| {
        fs::remove_file(state.join("outbox.db")).unwrap();
        // SQLite makes an empty file, and removes the log beside it.
        let _ =
            writing(&state.join("outbox.db")).query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    }),
    ("an older copy in its place, used", Then::KeptBeside, |state, older| {
        fs::copy(older.join("outbox.db"), state.join("restored")).unwrap();
        fs::rename(state.join("restored"), state.join("outbox.db")).unwrap();
        use_it(state);
    }),
    ("the folder renamed, used there", Then::Delivered, |state, _| {
        let away = state.with_extension("away");
        fs::rename(state, &away).unwrap();
        use_it(&away);
    }),
    ("an older folder in its place, used", Then::KeptBeside, |state, older| {
        fs::rename(state, state.with_extension("away")).unwrap();
        copy_files(older, state);
        use_it(state);
    }),
];

/// Another program reads and writes what it finds there, as far as it can.
fn use_it(state: &Path) {
    let other = writing(&state.join("outbox.db"));
    let _ = other.query_row("SELECT count(*) FROM pending", [], |_| Ok(()));
    let _ = other.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('other', 1)", []);
}

/// The lock's file alone removed or replaced: the agent takes it again. If another agent was quicker, the first ends.
pub fn lock(_: &Scale) -> Outcome {
    let mut figures = Figures::default();
    let strikes: [fn(&Path); 2] = [
        |lock| fs::remove_file(lock).unwrap(),
        |lock| {
            fs::write(lock.with_extension("other"), "").unwrap();
            fs::rename(lock.with_extension("other"), lock).unwrap();
        },
    ];
    for strike in strikes {
        let mut agent = new_place(Faults::default());
        let lock = agent.path("state/outbox.db.lock");
        agent.start();
        agent.drop_events(20, 10);
        agent.until_delivered();
        agent.until_settled();
        strike(&lock);
        agent.until_within(Duration::from_secs(50), "the incident is told", |agent| {
            agent.status().outbox.incident.is_some_and(|incident| incident.text.contains("lock file"))
        });
        assert!(agent.exit_status().is_none(), "{}", agent.log());
        let mut other = second(&agent);
        other.start();
        assert_eq!(other.wait_for_exit().code(), Some(75), "{}", other.log());
        // A second agent that starts before the first has noticed.
        agent.signal(Signal::SIGSTOP);
        agent.until("it stands still", |agent| stands_still(agent.pid()));
        strike(&lock);
        other.start();
        other.until("the second runs", |other| other.log().contains(super::RUNS));
        agent.signal(Signal::SIGCONT);
        agent.drop_events(20, 10);
        let mut code = None;
        agent.until_within(Duration::from_secs(50), "the first ends", |agent| {
            code = ended(agent);
            code.is_some()
        });
        assert_eq!(code, Some(75), "{}", agent.log());
        assert!(agent.log().contains(&format!("pid {}", other.pid())), "{}", agent.log());
        other.stop();
        agent.start();
        figures.add(agent.end());
    }
    figures.into()
}

/// Another agent on the same outbox, with a spool of its own.
fn second(agent: &TestAgent) -> TestAgent {
    let mut other = new_place(Faults::default());
    other.set(&format!("outbox.path = \"{}\"", agent.outbox().display()));
    other.set(&format!("koala.endpoint = \"{}\"", agent.receiver.endpoint()));
    other
}

/// Nothing is stored or sent: the agent must look by itself.
pub fn idle(scale: &Scale) -> Outcome {
    side_by_side(scale, STRIKES, false)
}

pub fn under_load(scale: &Scale) -> Outcome {
    side_by_side(scale, STRIKES, true)
}

/// Line 41: another program opens what is there then, reads, writes, and closes it.
pub fn used(scale: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for load in [false, true] {
        match side_by_side(scale, USED, load) {
            Outcome::Done(done) => figures.add(done),
            other => return other,
        }
    }
    figures.into()
}

fn side_by_side(scale: &Scale, strikes: &'static [(&str, Then, Strike)], load: bool) -> Outcome {
    let mut figures = Figures::default();
    for _ in 0..scale.of(1, 10) {
        std::thread::scope(|scope| {
            let rounds = strikes
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
    let told = agent.status().outbox.incident.unwrap_or_else(|| panic!("{name}: no incident"));
    assert!(told.text.contains("while it was open"), "{name}: {told:?}");
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
    let mut rows = conn.prepare("SELECT b.body FROM queue q JOIN bodies b ON b.seq = q.id").unwrap();
    let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|body| numbers(body.unwrap().as_bytes())[0]).collect()
}
