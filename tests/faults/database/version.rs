//! Line 12: a schema that this agent does not know, and one that is half made.

use super::super::place::Place;
use super::super::stage::{Figures, Played, Scale};
use super::{RUNS, contents, new_place, said};
use koala_agent::receiver::Faults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

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
        write_version(&place, 1, false);
        place.daemon.start();
        figures.add(place.end());
    }
    figures.into()
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
    if Command::new("strace").arg("-V").output().is_err() {
        return Played::Skipped("there is no strace".to_owned());
    }
    let mut place = new_place(Faults::default());
    let state = place.daemon.path("state");
    let mut figures = Figures::default();
    let mut rounds = 0;
    for (call, step) in [("pwrite64", 4), ("fsync", 2), ("ftruncate", 1), ("fallocate", 1)] {
        for n in (1..).step_by(scale.of(step, 1)) {
            let _ = fs::remove_dir_all(&state);
            let inject = format!("inject={call}:signal=KILL:when={n}");
            let trace = place.daemon.path("trace");
            let tracer = ["strace", "-f", "-qq", "-e", &format!("trace={call}"), "-e", &inject, "-o"];
            place.daemon.under(tracer.map(Into::into).into_iter().chain([trace.into_os_string()]));
            let mark = place.daemon.log().len();
            place.daemon.start();
            let mut killed = false;
            place.until("it runs or is killed", |place| {
                let ended = place.daemon.ended();
                killed |=
                    ended.is_some_and(|status| status.signal() == Some(9) || status.code() == Some(137));
                assert!(killed || ended.is_none(), "{ended:?}\n{}", place.daemon.log());
                killed || place.daemon.log()[mark..].contains(RUNS)
            });
            if !killed {
                end_traced(&mut place);
                break;
            }
            rounds += 1;
            place.daemon.under([""; 0]);
            let event = place.books.event(n as u64);
            place.drop_file("json", event.as_bytes());
            place.daemon.start();
            place.until_delivered();
            place.until_status("all marked", |status| {
                status.outbox.pending == 0 && status.spool.waiting_files == 0
            });
            place.daemon.stop();
            let outbox = place.daemon.database();
            let found: String = outbox.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            let version: i64 = outbox.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!((found.as_str(), version), ("ok", 1), "killed at {call} {n}");
        }
    }
    assert!(rounds > 5, "nothing was killed");
    figures.add(place.balance());
    figures.rounds = rounds;
    figures.into()
}

/// Ends the agent, not its tracer: that ends with it.
fn end_traced(place: &mut Place) {
    let pid = place.daemon.status().agent.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    // The injection can strike on the way.
    let _ = place.daemon.wait();
}
