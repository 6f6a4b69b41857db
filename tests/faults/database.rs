//! The database is damaged, gone, of another version, or in use.

mod damage;
mod pairing;
mod removal;
mod rounds;
mod sharing;
mod version;
mod writable;

use crate::common::agent::TestAgent;
use crate::common::ledger::numbers;
use crate::runner::Fault;
use koala_agent::receiver::Faults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

pub const FAULTS: &[Fault] = &[
    Fault { name: "10", title: "the database's files damaged", alone: false, run: damage::whole_files },
    Fault { name: "10-page", title: "a page overwritten", alone: false, run: damage::pages },
    Fault { name: "10-wal", title: "the log damaged or gone", alone: false, run: damage::logs },
    Fault { name: "10-other", title: "something else in its place", alone: false, run: damage::others },
    Fault { name: "10-kill", title: "SIGKILL while it is recovered", alone: false, run: damage::kills },
    Fault { name: "11", title: "the database gone, while idle", alone: false, run: removal::idle },
    Fault { name: "11-load", title: "the same under load", alone: false, run: removal::under_load },
    Fault { name: "12", title: "a newer schema", alone: false, run: version::newer },
    Fault { name: "12-older", title: "an older schema", alone: false, run: version::older },
    Fault { name: "12-kill", title: "SIGKILL while the schema is made", alone: false, run: version::kills },
    Fault { name: "13", title: "a reader that holds a snapshot", alone: false, run: sharing::snapshot },
    Fault { name: "13-locked", title: "another process holds a lock", alone: false, run: sharing::locked },
    Fault {
        name: "13-deleted",
        title: "a reader that holds what was deleted",
        alone: false,
        run: sharing::deleted,
    },
    Fault { name: "14", title: "a second agent on the same outbox", alone: true, run: sharing::second },
    Fault { name: "41", title: "files removed, then used by another", alone: false, run: removal::used },
    Fault { name: "41-lock", title: "the lock removed or replaced", alone: true, run: removal::lock },
    Fault { name: "n3", title: "an outbox that cannot be written", alone: true, run: writable::unwritable },
    Fault { name: "o5", title: "a log beside another database", alone: false, run: pairing::other_logs },
    Fault { name: "o5-copy", title: "a copy put back", alone: false, run: pairing::copies },
];

/// After these the service manager starts the agent no more.
const REFUSALS: [i32; 3] = [64, 77, 78];

/// A part of the agent's first log line, when its loops run.
const RUNS: &str = "takes files from";

/// The program, which takes the files at once that it finds when it starts.
fn new_place(faults: Faults) -> TestAgent {
    let mut agent = TestAgent::program(faults);
    agent.set("spool.settle = \"50ms\"");
    agent
}

/// Starts the agent, again where it ends, until it runs. Returns how long that took, the service manager's waits
/// among it; or the code with which it refuses to start.
fn supervise(agent: &mut TestAgent) -> Result<Duration, i32> {
    const RESTART: Duration = Duration::from_secs(2);
    let log_start = agent.log().len();
    let (began, mut waits) = (Instant::now(), Duration::ZERO);
    agent.start();
    while !agent.log()[log_start..].contains(RUNS) {
        if let Some(code) = ended(agent) {
            if REFUSALS.contains(&code) {
                return Err(code);
            }
            waits += RESTART;
            agent.start();
        }
        let tail = tail(&agent.log()[log_start..]);
        assert!(began.elapsed() + waits < Duration::from_secs(120), "it does not come to run:\n{tail}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(began.elapsed() + waits)
}

/// Waits for a fact, and starts the agent again where it ends.
fn until(agent: &mut TestAgent, fact: &str, mut holds: impl FnMut(&mut TestAgent) -> bool) {
    agent.until_within(Duration::from_secs(150), fact, |agent| {
        if let Some(code) = ended(agent) {
            assert!(!REFUSALS.contains(&code), "it refuses to start, {code}:\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(500));
            agent.start();
        }
        holds(agent)
    });
}

/// The numbers of what the receiver holds.
fn held(agent: &TestAgent) -> BTreeSet<u64> {
    agent.receiver.events().iter().map(|held| numbers(held.item.get().as_bytes())[0]).collect()
}

/// Another program's connection to a database, which may write and creates what is missing.
fn writing(database: &Path) -> Connection {
    Connection::open(database).unwrap()
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The code with which the agent has ended; never that of a defect.
fn ended(agent: &mut TestAgent) -> Option<i32> {
    let code = agent.exit_status()?.code();
    assert!(code.is_some_and(|code| ![0, 70, 101].contains(&code)), "{code:?}\n{}", agent.log());
    code
}

/// Both of what a command said, for a command that has not broken down.
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let code = output.status.code();
    assert!(code.is_some_and(|code| ![70, 101].contains(&code)), "{code:?}: {text}");
    assert!(!text.contains("panicked") && !text.contains("this is a bug"), "{text}");
    text
}

/// Starts the agent and kills it at its nth call of that kind, counted by thread. `false`: it came to run first, and
/// was ended.
fn kill_at(agent: &mut TestAgent, call: &str, n: u64) -> bool {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={n}"));
    agent.run_under(["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
    let log_start = agent.log().len();
    agent.start();
    agent.run_bare();
    let mut killed = false;
    agent.until("it runs or is killed", |agent| {
        let ended = agent.exit_status();
        killed = ended.is_some_and(|status| status.signal() == Some(9));
        assert!(killed || ended.is_none(), "{ended:?}\n{}", tail(&agent.log()[log_start..]));
        killed || agent.log()[log_start..].contains(RUNS)
    });
    if !killed {
        // The agent, not its tracer: that ends with it. The injection can strike on the way.
        let pid = agent.status().agent.pid.and_then(|pid| i32::try_from(pid).ok());
        let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        agent.wait_for_exit();
    }
    killed
}

/// Files of a database and what is in them.
type Contents = Vec<(&'static str, Vec<u8>)>;

/// The database and its log; an empty log is as good as none.
fn contents(state: &Path) -> Contents {
    let files = ["outbox.db", "outbox.db-wal"].into_iter();
    let files = files.filter_map(|name| Some((name, fs::read(state.join(name)).ok()?)));
    files.filter(|(name, content)| *name == "outbox.db" || !content.is_empty()).collect()
}

/// Copies the files of one folder into another.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
