//! Line 12: a schema that this agent does not read, and one that is half made.

use super::{contents, kill_at, new_place, said};
use crate::common::agent::TestAgent;
use crate::machine::needs;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs;

/// A later agent has written the database, and was stopped or killed.
pub fn newer(_: &Scale) -> Outcome {
    refused(99, "install the newer agent again")
}

/// An agent from before the first release has written the database, and was stopped or killed.
pub fn older(_: &Scale) -> Outcome {
    refused(5, "drain it with the version that made it")
}

/// The agent does not start on a database of that version, and says why and what to do. A command answers only what it
/// can without the database, and nothing changes a byte of it.
fn refused(other: i64, fix: &str) -> Outcome {
    let schema = format!("schema {other}");
    let mut figures = Figures::default();
    for killed in [false, true] {
        let mut agent = new_place(Faults::default());
        agent.start();
        agent.drop_events(40, 10);
        agent.until_delivered();
        agent.stop();
        let state = agent.state();
        let own = version(&agent.database());
        write_version(&agent, other, killed);
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
                assert!(code == 0 || said.contains(&schema), "{arguments:?}: {said}");
                assert!(code == 0 || said.contains(fix), "{arguments:?}: {said}");
            }
            assert!(before == contents(&state), "a database of {schema} was changed");
        }
        let (log, path) = (agent.log(), agent.outbox());
        let names = [schema.as_str(), fix, path.to_str().unwrap()];
        assert!(names.iter().all(|name| log.contains(name)), "{log}");
        assert_eq!(agent.receiver.stats().requests, requests, "something was sent");
        write_version(&agent, own, false);
        agent.start();
        figures.add(agent.end());
    }
    figures.into()
}

fn version(outbox: &Connection) -> i64 {
    outbox.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

fn integrity(outbox: &Connection) -> String {
    outbox.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

/// Writes the version to the file, or only to the write-ahead log, as after a SIGKILL.
fn write_version(agent: &TestAgent, version: i64, in_log: bool) {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let conn = Connection::open_with_flags(agent.outbox(), flags).unwrap();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, in_log).unwrap();
    conn.pragma_update(None, "user_version", version).unwrap();
}

/// SIGKILL at the Nth call of each kind that changes a file, until the agent lives to run: the next one finds no
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
            assert_eq!(integrity(&outbox), "ok", "killed at {call} {n}");
            assert!(version(&outbox) > 0, "killed at {call} {n}");
        }
    }
    assert!(rounds > 5, "nothing was killed");
    figures.add(agent.balance());
    figures.rounds = rounds;
    figures.into()
}
