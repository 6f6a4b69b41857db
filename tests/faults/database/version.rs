//! Line 12: a schema that this agent does not know, and one that is half made.

use super::super::place::Place;
use super::super::stage::{Figures, Played, Scale};
use super::{RUNS, can_trace, contents, kill_at, new_place, said};
use crate::common::older::make_older;
use koala_agent::receiver::Faults;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs;

/// A later agent has written the database, and was stopped or killed. Every command but `run` and the changing ones
/// may read it, and none may touch it.
pub fn newer(_: &Scale) -> Played {
    let mut figures = Figures::default();
    for killed in [false, true] {
        let mut place = new_place(Faults::default());
        place.daemon.start();
        place.drop_events(40, 10);
        place.until_delivered();
        place.daemon.stop();
        let state = place.daemon.path("state");
        let known = version(&place.daemon.database());
        write_version(&place, 99, killed);
        if killed {
            assert!(fs::metadata(state.join("outbox.db-wal")).unwrap().len() > 0, "no commits in the log");
        }
        let before = contents(&state);
        place.drop_events(5, 5);
        let requests = place.receiver.stats().requests;
        for _ in 0..2 {
            place.daemon.start();
            assert_eq!(place.daemon.wait().code(), Some(78), "{}", place.daemon.log());
            for (arguments, code) in [
                (&["status", "--json"][..], 0),
                (&["list"], 78),
                (&["show", "event-1"], 78),
                (&["check", "--offline"], 1),
                (&["retry", "event-1"], 78),
                (&["discard", "event-1"], 78),
            ] {
                let output = place.daemon.command(arguments[0]).args(&arguments[1..]).output().unwrap();
                let said = said(&output);
                assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
                assert!(code == 0 || said.contains("schema 99"), "{arguments:?}: {said}");
            }
            assert!(before == contents(&state), "the database of a newer agent was changed");
        }
        assert!(place.daemon.log().contains("schema 99"), "{}", place.daemon.log());
        assert_eq!(place.receiver.stats().requests, requests, "something was sent");
        write_version(&place, known, false);
        place.daemon.start();
        figures.add(place.end());
    }
    figures.into()
}

/// SIGKILL at the Nth call while an older schema is brought up to date: it is the old one or the new one, and what is
/// in it is delivered.
pub fn older(scale: &Scale) -> Played {
    if let Err(why) = can_trace() {
        return Played::Skipped(why);
    }
    let mut figures = Figures::default();
    for (call, step) in [("pwrite64", 4), ("fsync", 2), ("fdatasync", 2)] {
        for n in (1..).step_by(scale.of(step, 1)) {
            let mut place = new_place(Faults { offline: true, ..Faults::default() });
            place.drop_events(20, 5);
            place.daemon.start();
            place.until_status("all is stored", |status| status.outbox.pending == 20);
            place.daemon.stop();
            let known = make_older(&place.daemon.outbox(), 1);
            let before = place.daemon.log().len();
            let killed = kill_at(&mut place, call, n);
            if killed && place.daemon.log()[before..].contains(RUNS) {
                // It ran already: what is killed now is no migration any more.
                break;
            }
            let found = version(&place.daemon.database());
            assert!(found == 1 || found == known, "{found} is neither old nor new, killed at {call} {n}");
            place.receiver.set_faults(Faults::default());
            if !place.daemon.runs() {
                place.daemon.start();
            }
            figures.add(place.end());
            assert_eq!(
                (soundness(&place.daemon.database()), version(&place.daemon.database())),
                ("ok".into(), known)
            );
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
fn write_version(place: &Place, version: i64, in_log: bool) {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let conn = Connection::open_with_flags(place.daemon.outbox(), flags).unwrap();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, in_log).unwrap();
    conn.pragma_update(None, "user_version", version).unwrap();
}

/// SIGKILL at the Nth call of each kind that changes a file, until the daemon lives to run: the next one finds no
/// database or a whole one, never something between.
pub fn kills(scale: &Scale) -> Played {
    if let Err(why) = can_trace() {
        return Played::Skipped(why);
    }
    let mut place = new_place(Faults::default());
    let state = place.daemon.path("state");
    let mut figures = Figures::default();
    let mut rounds = 0;
    for (call, step) in [("pwrite64", 8), ("fsync", 3), ("fdatasync", 3), ("ftruncate", 1), ("fallocate", 1)]
    {
        for n in (1..).step_by(scale.of(step, 1)) {
            let _ = fs::remove_dir_all(&state);
            if !kill_at(&mut place, call, n) {
                break;
            }
            rounds += 1;
            let event = place.books.event(n);
            place.drop_file("json", event.as_bytes());
            place.daemon.start();
            place.until_delivered();
            place.until_status("all marked", |status| {
                status.outbox.pending == 0 && status.spool.waiting_files == 0
            });
            place.daemon.stop();
            let outbox = place.daemon.database();
            assert_eq!(soundness(&outbox), "ok", "killed at {call} {n}");
            assert!(version(&outbox) > 0, "killed at {call} {n}");
        }
    }
    assert!(rounds > 5, "nothing was killed");
    figures.add(place.balance());
    figures.rounds = rounds;
    figures.into()
}
