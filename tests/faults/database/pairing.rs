//! Files of an outbox that do not belong together, and copies that are put back.
//!
//! SQLite applies a log to whatever database stands beside it. The agent does not, and says at once what it has found:
//! `status` before it starts, and its incident after.

use super::{RUNS, copy_files, new_place};
use crate::common::agent::TestAgent;
use crate::disk::OFFLINE;
use crate::machine::needs;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub fn other_logs(_: &Scale) -> Outcome {
    let mut figures = Figures::default();
    figures.add(older_database());
    figures.add(own_base());
    figures.add(older_log());
    figures.add(foreign_log());
    figures.add(foreign_index());
    figures.into()
}

/// An older database is put back beside the log of a newer one, which alone has some events.
fn older_database() -> Figures {
    let (mut agent, older) = delivered_once();
    agent.start_and_wait();
    agent.drop_events(10, 10);
    agent.until_delivered();
    agent.until_settled();
    agent.receiver.set_faults(OFFLINE);
    let reader = snapshot(&agent);
    agent.drop_lines(60, 20);
    agent.until_status("stored", |status| status.outbox.pending == 60);
    agent.kill();
    drop(reader);
    fs::copy(older.path().join("outbox.db"), agent.outbox()).unwrap();
    agent.receiver.set_faults(Faults::default());
    told(
        &mut agent,
        "log is of another state",
        Some("60 of them pending; how many are missing is not known"),
    );
    agent.end().note("older database")
}

/// The database that is put back is the one from which the log went on: they belong together, and nothing is to be told.
fn own_base() -> Figures {
    let (mut agent, older) = delivered_once();
    agent.receiver.set_faults(OFFLINE);
    let reader = snapshot(&agent);
    agent.start_and_wait();
    agent.drop_lines(60, 20);
    agent.until_status("stored", |status| status.outbox.pending == 60);
    agent.kill();
    drop(reader);
    fs::copy(older.path().join("outbox.db"), agent.outbox()).unwrap();
    agent.receiver.set_faults(Faults::default());
    agent.start_and_wait();
    assert_eq!(agent.status().outbox.incident, None);
    agent.end().note("the log's own base")
}

/// An older log is put back beside a newer database.
fn older_log() -> Figures {
    let (mut agent, older) = delivered_once();
    agent.start_and_wait();
    let reader = snapshot(&agent);
    agent.drop_lines(30, 10);
    agent.until_delivered();
    fs::copy(agent.path("state/outbox.db-wal"), older.path().join("outbox.db-wal")).unwrap();
    drop(reader);
    agent.stop();
    agent.start_and_wait();
    agent.drop_lines(30, 10);
    agent.until_delivered();
    agent.until_settled();
    agent.stop();
    fs::copy(older.path().join("outbox.db-wal"), agent.path("state/outbox.db-wal")).unwrap();
    told(&mut agent, "log is of another state", Some("how many are missing is not known"));
    agent.end().note("older log")
}

/// The log of another agent's outbox: nothing of it is taken.
fn foreign_log() -> Figures {
    let mut other = new_place(OFFLINE);
    other.start_and_wait();
    let reader = snapshot(&other);
    other.drop_lines(50, 10);
    other.until_status("stored", |status| status.outbox.pending == 50);
    other.kill();
    drop(reader);
    let (mut agent, _) = delivered_once();
    fs::copy(other.path("state/outbox.db-wal"), agent.path("state/outbox.db-wal")).unwrap();
    told(&mut agent, "log of another outbox", Some("30 events were read from it, 0 of them pending"));
    agent.end().note("another's log")
}

/// The -shm file of another says nothing: SQLite makes it anew.
fn foreign_index() -> Figures {
    let (mut agent, older) = delivered_once();
    agent.receiver.set_faults(OFFLINE);
    agent.start_and_wait();
    let reader = snapshot(&agent);
    agent.drop_lines(60, 20);
    agent.until_status("stored", |status| status.outbox.pending == 60);
    agent.kill();
    drop(reader);
    fs::copy(older.path().join("outbox.db-shm"), agent.path("state/outbox.db-shm")).unwrap();
    agent.receiver.set_faults(Faults::default());
    agent.start_and_wait();
    assert_eq!(agent.status().outbox.incident, None);
    agent.end().note("another's -shm")
}

/// Copies the outbox of a running agent into a folder, in which an older copy stands.
type MakeCopy = fn(&TestAgent, &Path);

pub fn copies(_: &Scale) -> Outcome {
    if let Err(why) = needs("sqlite3") {
        return Outcome::Skipped(why);
    }
    let mut figures = Figures::default();
    // As it was: nothing is to be told.
    let (mut agent, same) = delivered_once();
    restore(&agent, same.path());
    agent.start_and_wait();
    assert_eq!(agent.status().outbox.incident, None);
    figures.add(agent.end());

    let ways: [(&str, MakeCopy, &str); 3] = [
        ("a copy of the stopped agent's", |_, _| {}, "not the outbox that was used here last"),
        (
            "a backup of the running agent's",
            |agent, copy| {
                fs::remove_dir_all(copy).unwrap();
                fs::create_dir(copy).unwrap();
                let backup = format!(".backup {}", copy.join("outbox.db").display());
                let done = Command::new("sqlite3").arg("-readonly").arg(agent.outbox()).arg(backup).output();
                assert!(done.as_ref().is_ok_and(|done| done.status.success()), "{done:?}");
            },
            "while an agent had it open",
        ),
        (
            "the running agent's database without its log",
            |agent, copy| {
                for name in ["outbox.db-wal", "outbox.db-shm"] {
                    fs::remove_file(copy.join(name)).unwrap();
                }
                fs::copy(agent.outbox(), copy.join("outbox.db")).unwrap();
            },
            "while an agent had it open",
        ),
    ];
    for (name, copy, text) in ways {
        let (mut agent, older) = delivered_once();
        agent.start_and_wait();
        agent.drop_events(10, 10);
        agent.until_delivered();
        agent.until_settled();
        copy(&agent, older.path());
        agent.stop();
        // Another session, of which the copy knows nothing.
        agent.start_and_wait();
        agent.drop_events(10, 10);
        agent.until_delivered();
        agent.until_settled();
        agent.stop();
        restore(&agent, older.path());
        told(&mut agent, text, Some("how much that is is not known"));
        figures.add(agent.end().note(name));
    }
    figures.into()
}

/// An agent that has delivered something and was stopped, and a copy of its files.
fn delivered_once() -> (TestAgent, tempfile::TempDir) {
    let mut agent = new_place(Faults::default());
    agent.start_and_wait();
    agent.drop_events(30, 10);
    agent.until_delivered();
    agent.until_settled();
    agent.stop();
    let older = tempfile::tempdir().unwrap();
    copy_files(&agent.state(), older.path());
    (agent, older)
}

/// Puts the database back as the man page says, without a log.
fn restore(agent: &TestAgent, copy: &Path) {
    for name in ["outbox.db-wal", "outbox.db-shm"] {
        let _ = fs::remove_file(agent.state().join(name));
    }
    fs::copy(copy.join("outbox.db"), agent.outbox()).unwrap();
}

/// A reader that keeps all later commits in the log. It may only read: else it would remove the log as the last one to
/// close the database.
fn snapshot(agent: &TestAgent) -> rusqlite::Connection {
    // An agent that has just begun to open the outbox keeps others out for a moment.
    for _ in 0..200 {
        let reader = agent.database();
        if reader.execute_batch("BEGIN; SELECT count(*) FROM meta").is_ok() {
            return reader;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the outbox cannot be read");
}

/// `status` says it before the start, and as an incident after, with what is known of it.
fn told(agent: &mut TestAgent, text: &str, after: Option<&str>) {
    let before = agent.status();
    let incident = before.outbox.incident.expect("status says nothing before the start");
    assert!(incident.text.contains(text), "{incident:?}");
    let log_start = agent.log().len();
    agent.start_and_wait();
    agent.until("the incident is told", |agent| agent.log()[log_start..].contains(RUNS));
    let incident = agent.status().outbox.incident.expect("status says nothing after the start");
    for text in [Some(text), after].into_iter().flatten() {
        assert!(incident.text.contains(text), "{text}: {incident:?}");
    }
    assert!(agent.log()[log_start..].contains(text), "{}", agent.log());
}
