//! Lines 13 and 14: others at the same database, one that reads it for long, one that holds a lock, one that would own it
//! as well.

use super::{new_place, writing};
use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The size that the log of the database may come to, unless `status` names who keeps it from being emptied.
const LOG_LIMIT: u64 = 64 << 20;

/// Another process reads from one snapshot while twice the limit is stored and delivered.
pub fn snapshot(scale: &Scale) -> Outcome {
    let mut agent = new_place(Faults::default());
    let log = agent.path("state/outbox.db-wal");
    agent.start();
    agent.drop_events(10, 10);
    agent.until_delivered();
    let reader = agent.database();
    reader.execute_batch("BEGIN; SELECT count(*) FROM queue").unwrap();
    let padding = format!(r#""a":"{}","#, "a".repeat(28 << 10));
    let mut most = 0;
    let (mut named, mut stored) = (false, 0);
    while stored < scale.of(1, 4) * 2 * LOG_LIMIT {
        let mut text = String::new();
        for n in 0..100 {
            let id = format!("large-{}", agent.ledger.dropped.len());
            text += &agent.ledger.event_with(n, &id, &padding);
            text.push('\n');
        }
        stored += text.len() as u64;
        agent.drop_next("ndjson", text.as_bytes());
        agent.until_status("taken", |status| status.spool.waiting_files == Some(0));
        most = fs::metadata(&log).unwrap().len().max(most);
        named |= names_reader(&agent);
    }
    agent.until("blamed, or small", |agent| {
        named |= names_reader(agent);
        named || most <= LOG_LIMIT
    });
    drop(reader);
    agent.until("the log is emptied", |agent| {
        agent.receiver.stats().held == agent.ledger.dropped.len()
            && fs::metadata(&log).unwrap().len() <= 16 << 20
    });
    agent.until("nobody is blamed any more", |agent| !names_reader(agent));
    let blamed = if named { "the reader is named" } else { "nobody is named" };
    agent.end().note(format!("log at most {} MiB, {blamed}", most >> 20)).into()
}

/// Another process holds a lock that a commit needs: SQLite's own, for a transaction that it does not end, or one on the
/// bytes of the -shm file, which whoever may read can have.
pub fn locked(_: &Scale) -> Outcome {
    let mut agent = new_place(Faults::default());
    agent.start();
    agent.drop_events(20, 10);
    agent.until_delivered();
    agent.until_settled();
    let shm = agent.path("state/outbox.db-shm");
    let mut figures = Figures::default();
    for (name, bytes) in [("a transaction", None), ("one byte", Some((120, 1))), ("all bytes", Some((0, 0)))]
    {
        for is_running in [true, false] {
            if !is_running {
                agent.stop();
            }
            let writer = writing(&agent.outbox());
            let reader = fs::File::open(&shm).unwrap();
            match bytes {
                None => writer.execute_batch("BEGIN IMMEDIATE").unwrap(),
                Some(bytes) => read_lock(&reader, bytes),
            }
            let before = agent.receiver.stats().events;
            agent.drop_events(10, 10);
            if !is_running {
                agent.start();
            }
            let name = format!("{name}, {}", if is_running { "amid the work" } else { "at the start" });
            agent.until(&format!("{name}: told"), |agent| {
                agent.status().intake.reason.is_some_and(|reason| {
                    assert_eq!(reason.code, Code::Locked, "{name}: {reason}");
                    assert!(
                        reason.text.contains(&format!("process {}", std::process::id())),
                        "{name}: {reason}"
                    );
                    true
                })
            });
            assert_eq!(agent.receiver.stats().events, before, "{name}: sent what could not be recorded");
            if bytes.is_none() {
                writer.execute_batch("ROLLBACK").unwrap();
            }
            // Closing the file lets go of the lock.
            drop((writer, reader));
            agent.until_delivered();
            agent.until_settled();
            agent.until(&format!("{name}: it goes on"), |agent| agent.status().intake.reason.is_none());
            figures.rounds += 1;
        }
    }
    // Nobody but the owner can lock the file that says who owns the outbox.
    let mode = fs::metadata(agent.path("state/outbox.db.lock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ended = agent.end();
    figures.add(Figures { rounds: 0, ..ended });
    figures.into()
}

fn read_lock(file: &fs::File, (start, len): (libc::off_t, libc::off_t)) {
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&lock)).unwrap();
}

/// Another process reads from a snapshot of events that are delivered and erased meanwhile: a short log keeps them, `status`
/// names the process, and nothing is left of them once it has gone.
pub fn deleted(_: &Scale) -> Outcome {
    const MARKER: &str = "marker-5c1e07";
    let mut agent = new_place(Faults { offline: true, ..Faults::default() });
    agent.start();
    let padding = format!(r#""a":"{MARKER}","#);
    let text: String =
        (0..200).map(|n| agent.ledger.event_with(n, &format!("marked-{n}"), &padding) + "\n").collect();
    agent.drop_next("ndjson", text.as_bytes());
    agent.until_status("stored", |status| status.outbox.pending == 200);
    let reader = agent.database();
    reader.execute_batch("BEGIN; SELECT count(*) FROM bodies").unwrap();
    agent.receiver.set_faults(Faults::default());
    agent.until_delivered();
    agent.until("the reader is named", |agent| names_reader(agent));
    assert!(has_in_a_file(&agent, MARKER), "the snapshot has the events");
    drop(reader);
    agent.until("nothing is left of the events", |agent| !has_in_a_file(agent, MARKER));
    agent.until("nobody is blamed any more", |agent| !names_reader(agent));
    agent.end().into()
}

/// Whether the text stands in a file of the state folder.
fn has_in_a_file(agent: &TestAgent, text: &str) -> bool {
    Command::new("grep").args(["-rqaF", text]).arg(agent.path("state")).status().unwrap().success()
}

/// Whether `status` names this process as the one that keeps the log from being emptied.
fn names_reader(agent: &TestAgent) -> bool {
    let holders = agent.status().outbox.log_held_by;
    holders.iter().any(|pid| pid.unsigned_abs() == std::process::id())
}

/// A second agent, by whatever name it knows the outbox.
pub fn second(_: &Scale) -> Outcome {
    let mut agent = new_place(Faults::default());
    agent.start();
    agent.drop_events(50, 10);
    agent.until_delivered();
    agent.until_settled();
    let state = agent.state();
    let (folder_link, file_link) = (agent.path("linked"), agent.path("linked.db"));
    symlink(&state, &folder_link).unwrap();
    symlink(agent.outbox(), &file_link).unwrap();
    let outboxes = [
        ("the same configuration", agent.outbox()),
        ("another configuration and spool", agent.outbox()),
        ("a folder that is a link", folder_link.join("outbox.db")),
        ("a file that is a link", file_link),
        ("another way to write it", agent.path("state/../state/./outbox.db")),
    ];
    let mut figures = Figures::default();
    let mut slowest = Duration::ZERO;
    for (name, outbox) in outboxes {
        let mut other = another(&agent);
        other.set(&format!("outbox.path = \"{}\"", outbox.display()));
        if name == "the same configuration" {
            fs::copy(agent.path("config.toml"), other.path("config.toml")).unwrap();
        }
        // The second agent would send this, if it ran.
        let mut unsent = crate::common::ledger::Ledger::default();
        fs::write(other.spool().join("a.json"), unsent.event(1)).unwrap();
        // The first one has emptied its log, and has nothing to do.
        std::thread::sleep(Duration::from_secs(2));
        let (before, requests) = (files_below(&state), agent.receiver.stats().requests);
        let began = Instant::now();
        other.start();
        let ended = other.wait_for_exit();
        let took = began.elapsed();
        slowest = slowest.max(took);
        assert_eq!(ended.code(), Some(75), "{name}: {}", other.log());
        let holder = format!("pid {}", agent.pid());
        assert!(other.log().contains(&holder), "{name}: {} not named: {}", holder, other.log());
        assert!(took < Duration::from_secs(5), "{name}: it took {took:?}");
        assert!(files_below(&state) == before, "{name}: it has changed the outbox");
        assert!(other.spool().join("a.json").exists(), "{name}: it has taken a file");
        assert_eq!(agent.receiver.stats().requests, requests, "{name}: it has sent something");
        agent.drop_events(5, 5);
        agent.until_delivered();
        figures.rounds += 1;
    }
    // The first still owns it; a stopped one as well.
    agent.signal(Signal::SIGSTOP);
    let mut other = another(&agent);
    other.set(&format!("outbox.path = \"{}\"", agent.outbox().display()));
    other.set(&format!("spool.dir = \"{}\"", agent.spool().display()));
    other.set("spool.settle = \"50ms\"");
    other.start();
    assert_eq!(other.wait_for_exit().code(), Some(75), "{}", other.log());
    agent.kill();
    let began = Instant::now();
    other.start();
    agent.drop_events(20, 10);
    agent.until_delivered();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "the second took {took:?} to start and deliver");
    other.stop();
    let ended = agent.balance();
    figures.add(Figures { rounds: 0, ..ended });
    figures
        .note(format!(
            "refused within {} ms, then delivered after {} ms",
            slowest.as_millis(),
            took.as_millis()
        ))
        .into()
}

/// Another agent for the same receiver.
fn another(agent: &TestAgent) -> TestAgent {
    let mut other = TestAgent::program(Faults::default());
    other.set(&format!("koala.endpoint = \"{}\"", agent.receiver.endpoint()));
    other
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
