//! Line 12: a schema that this agent does not know, and one that is half made.

use super::{RUNS, contents, kill_at, new_place, said};
use crate::common::agent::TestAgent;
use crate::common::older::make_older;
use crate::machine::needs;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs;

/// A later agent has written the database, and was stopped or killed. Every command but `run` and the changing ones
/// may read it, and none may touch it.
pub fn newer(_: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for killed in [false, true] {
        let mut agent = new_place(Faults::default());
        agent.start();
        agent.drop_events(40, 10);
        agent.until_delivered();
        agent.stop();
        let state = agent.state();
        let known = version(&agent.database());
        write_version(&agent, 99, killed);
        if killed {
            assert!(fs::metadata(state.join("outbox.db-wal")).unwrap().len() > 0, "no commits in the log");
        }
        let before = contents(&state);
        agent.drop_events(5, 5);
        let requests = agent.receiver.stats().requests;
        for _ in 0..2 {
            agent.start();
            assert_eq!(agent.wait_for_exit().code(), Some(78), "{}", agent.log());
            for (arguments, code) in [
                (&["status", "--json"][..], 0),
                (&["list"], 78),
                (&["show", "event-1"], 78),
                (&["check", "--offline"], 1),
                (&["retry", "event-1"], 78),
                (&["discard", "event-1"], 78),
            ] {
                let output = agent.command(arguments[0]).args(&arguments[1..]).output().unwrap();
                let said = said(&output);
                assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
                assert!(code == 0 || said.contains("schema 99"), "{arguments:?}: {said}");
            }
            assert!(before == contents(&state), "the database of a newer agent was changed");
        }
        assert!(agent.log().contains("schema 99"), "{}", agent.log());
        assert_eq!(agent.receiver.stats().requests, requests, "something was sent");
        write_version(&agent, known, false);
        agent.start();
        figures.add(agent.end());
    }
    figures.into()
}

/// SIGKILL at the Nth call while an older schema is brought up to date: it is the old one or the new one, and what is
/// in it is delivered.
pub fn older(scale: &Scale) -> Outcome {
    if let Err(why) = needs("strace") {
        return Outcome::Skipped(why);
    }
    let mut figures = Figures::default();
    for (call, step) in [("pwrite64", 4), ("fsync", 2), ("fdatasync", 2)] {
        for n in (1..).step_by(scale.of(step, 1)) {
            let mut agent = new_place(Faults { offline: true, ..Faults::default() });
            agent.drop_events(20, 5);
            agent.start();
            agent.until_status("all is stored", |status| status.outbox.pending == 20);
            agent.stop();
            let known = make_older(&agent.outbox(), 1);
            let before = agent.log().len();
            let killed = kill_at(&mut agent, call, n);
            if killed && agent.log()[before..].contains(RUNS) {
                // It ran already: what is killed now is no migration any more.
                break;
            }
            let found = version(&agent.database());
            assert!(found == 1 || found == known, "{found} is neither old nor new, killed at {call} {n}");
            agent.receiver.set_faults(Faults::default());
            if !agent.is_started() {
                agent.start();
            }
            figures.add(agent.end());
            assert_eq!((soundness(&agent.database()), version(&agent.database())), ("ok".into(), known));
            if !killed {
                break;
            }
        }
    }
    assert!(figures.rounds > 3, "nothing was killed");
    figures.into()
}

fn version(outbox: &Connection) -> i64 {
    outbox.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

fn soundness(outbox: &Connection) -> String {
    outbox.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

/// In the file, or, as after a kill, in the log.
fn write_version(agent: &TestAgent, version: i64, in_log: bool) {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let conn = Connection::open_with_flags(agent.outbox(), flags).unwrap();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, in_log).unwrap();
    conn.pragma_update(None, "user_version", version).unwrap();
}

/// SIGKILL at the Nth call of each kind that changes a file, until the daemon lives to run: the next one finds no
/// database or a whole one, never something between.
pub fn kills(scale: &Scale) -> Outcome {
    if let Err(why) = needs("strace") {
        return Outcome::Skipped(why);
    }
    let mut agent = new_place(Faults::default());
    let state = agent.state();
    let mut figures = Figures::default();
    let mut rounds = 0;
    for (call, step) in [("pwrite64", 8), ("fsync", 3), ("fdatasync", 3), ("ftruncate", 1), ("fallocate", 1)]
    {
        for n in (1..).step_by(scale.of(step, 1)) {
            let _ = fs::remove_dir_all(&state);
            if !kill_at(&mut agent, call, n) {
                break;
            }
            rounds += 1;
            let event = agent.ledger.event(n);
            agent.drop_next("json", event.as_bytes());
            agent.start();
            agent.until_delivered();
            agent.until_settled();
            agent.stop();
            let outbox = agent.database();
            assert_eq!(soundness(&outbox), "ok", "killed at {call} {n}");
            assert!(version(&outbox) > 0, "killed at {call} {n}");
        }
    }
    assert!(rounds > 5, "nothing was killed");
    figures.add(agent.balance());
    figures.rounds = rounds;
    figures.into()
}
