//! The disk is full, fails, or may not be written.

mod device;
mod full;
pub mod mount;
mod readonly;
mod small;

use crate::common::agent::TestAgent;
use crate::runner::{Fault, Figures, Outcome};
use crate::tracer::{Calls, Tracer};
use koala_agent::receiver::Faults;
use koala_agent::status::{IntakeState, Status};
use nix::sys::signal::Signal;
use std::time::Duration;

pub const FAULTS: &[Fault] = &[
    Fault { name: "5", title: "a flood, and 16 MiB for the state", alone: false, run: small::state },
    Fault {
        name: "5-spool",
        title: "the same with the spool on it",
        alone: false,
        run: small::state_and_spool,
    },
    Fault { name: "5-rejects", title: "no room to reject a file", alone: false, run: small::rejects },
    Fault { name: "5-inodes", title: "no inode left", alone: false, run: small::inodes },
    Fault { name: "6", title: "no byte free at start", alone: false, run: full::start },
    Fault { name: "6-new", title: "no byte free at the first start", alone: false, run: full::first_start },
    Fault {
        name: "6-bare",
        title: "no byte free at start, and no reserve file",
        alone: false,
        run: full::bare_start,
    },
    Fault {
        name: "6-acks",
        title: "no byte free while requests are in flight",
        alone: false,
        run: full::acknowledgements,
    },
    Fault {
        name: "6-control",
        title: "the same without a reserve file or claimed room",
        alone: false,
        run: full::unacknowledged,
    },
    Fault { name: "6-unsent", title: "no byte free for what is not sent", alone: false, run: full::unsent },
    Fault { name: "7", title: "ENOSPC on the write-ahead log", alone: false, run: device::no_space },
    Fault { name: "7-log", title: "EIO on the write-ahead log's sync", alone: false, run: device::log_sync },
    Fault {
        name: "7-checkpoint",
        title: "EIO on the checkpoint's sync",
        alone: false,
        run: device::checkpoint_sync,
    },
    Fault {
        name: "7-page",
        title: "EIO on the checkpoint's write",
        alone: false,
        run: device::checkpoint_write,
    },
    Fault { name: "7-file", title: "EIO on reading a spool file", alone: false, run: device::spool_read },
    Fault { name: "7-slow", title: "a slow disk", alone: false, run: device::slow },
    Fault { name: "8", title: "read-only at start", alone: false, run: readonly::start },
    Fault { name: "8-in-flight", title: "read-only in flight", alone: false, run: readonly::in_flight },
    Fault {
        name: "8-aborted",
        title: "the journal aborted amid commits",
        alone: false,
        run: readonly::aborted,
    },
    Fault { name: "9", title: "outbox.max_bytes reached", alone: false, run: small::max_bytes },
];

pub const OFFLINE: Faults = Faults {
    latency_ms: 0,
    offline: true,
    status: None,
    html: false,
    refuse_all: None,
    fail_share: 0.0,
    rate_limited: 0.0,
    retry_after: None,
    too_large: None,
    poison: None,
    drop_after_accept: 0.0,
};

/// The receiver can be reached, and the agent is told so.
pub fn online(agent: &TestAgent) {
    agent.receiver.set_faults(Faults::default());
    agent.signal(Signal::SIGHUP);
}

/// An NDJSON text of events of about 2 KiB each, by ten people in turn.
pub fn long_lines(agent: &mut TestAgent, events: u64) -> String {
    let padding = format!(r#""padding":"{}","#, "x".repeat(1_900));
    let first = agent.ledger.dropped.len() as u64;
    let lines =
        (first..first + events).map(|n| agent.ledger.event_with(n % 10, &format!("long-{n}"), &padding));
    lines.map(|line| line + "\n").collect()
}

pub fn is_blocked(status: &Status) -> bool {
    status.intake.state == IntakeState::Blocked && status.intake.reason.is_some()
}

/// System calls in a second of an agent that waits, and tries again from time to time what it cannot do. One that spins makes
/// tens of thousands, also under the tracer that counts them.
const CALM: u64 = 2_000;
/// Lines of the log in two seconds of that.
const FEW_LINES: u64 = 5;
/// Calls that fail in a second of an agent that tries again once a second; one round makes dozens of them. One that spins
/// makes hundreds, though the tracer slows it down.
const RETRIES: u64 = 100;

/// The copy of the write-ahead log into the database: at some moment, as many calls as there are pages.
const COPIED: &[&str] = &["pread64", "pwrite64"];

/// The agent comes to rest; from then on, for so long, it neither ends, nor spins, nor fills the log.
fn stays_calm(agent: &mut TestAgent, time: Duration) {
    let during = |agent: &TestAgent, time| Calls::during(agent, time).unwrap().without(COPIED);
    agent.until("it comes to rest", |agent| during(agent, Duration::from_secs(1)).total() <= CALM);
    let lines = agent.log().lines().count();
    let calls = during(agent, time);
    assert_eq!(agent.exit_status(), None, "it ended:\n{}", agent.log());
    assert!(calls.total() <= CALM * time.as_secs(), "{} calls in {time:?}: {calls:?}", calls.total());
    logs_little(agent, lines, time);
}

/// Like [`stays_calm`], under a tracer that lets calls fail: the agent does not try them again and again.
fn stays_calm_under(tracer: &Tracer, agent: &mut TestAgent, time: Duration) {
    let (lines, failed) = (agent.log().lines().count(), tracer.injected());
    std::thread::sleep(time);
    let failed = (tracer.injected() - failed) as u64;
    assert_eq!(agent.exit_status(), None, "it ended:\n{}", agent.log());
    assert!(failed <= RETRIES * time.as_secs(), "{failed} calls have failed in {time:?}");
    logs_little(agent, lines, time);
}

/// Asserts that the log has grown by few lines in that time.
fn logs_little(agent: &TestAgent, lines: usize, time: Duration) {
    let logged = (agent.log().lines().count() - lines) as u64;
    assert!(2 * logged <= FEW_LINES * time.as_secs(), "{logged} lines in {time:?}:\n{}", agent.log());
}

/// The log names what the trouble is with.
fn log_says(agent: &TestAgent, what: &str) {
    assert!(agent.log().contains(what), "{what} is not in the log:\n{}", agent.log());
}

fn run_with<T>(means: Result<T, String>, run: impl FnOnce(T) -> Figures) -> Outcome {
    match means {
        Ok(means) => run(means).into(),
        Err(why) => Outcome::Skipped(why),
    }
}
