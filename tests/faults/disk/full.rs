//! Other programs have taken every byte of the disk.

use super::mount::Mount;
use super::{OFFLINE, log_says, long_lines, online, run_with, stays_calm};
use crate::common::agent::TestAgent;
use crate::common::setup::KEY;
use crate::control::{Control, NO_CLAIM, NO_RESERVE};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The state of the write-ahead log when the disk becomes full.
#[derive(Clone, Copy)]
enum Log {
    /// Just copied: only the reserve file is there to pay for an acknowledgement.
    Empty,
    /// The log waits to be copied into the database, whose pages have no room there but what was claimed for them.
    Long,
}

/// Scenes in one of which a control must leave something unacknowledged. On a busy machine the log may be copied just before the
/// disk is full, and then has room of its own.
const SCENES: usize = 3;

/// Agents that keep no room to acknowledge what was delivered.
const NO_ROOM_KEPT: [(Log, Control); 2] = [(Log::Empty, NO_RESERVE), (Log::Long, NO_CLAIM)];

/// Brings so many events into an outbox on a mount of its own, some of them only into its log, and kills the agent.
fn with_pending(agent: &mut TestAgent, events: u64) {
    agent.start();
    let text = long_lines(agent, events);
    agent.drop_next("ndjson", text.as_bytes());
    agent.until_status("they are stored", |s| s.outbox.pending == events);
    agent.kill();
}

/// Pending events are delivered and acknowledged all the same, and after another crash none is sent again.
pub fn start(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(OFFLINE);
    run_with(Mount::tmpfs(&agent.state(), "size=32m"), |mount| {
        let pending = scale.of(1_000, 5_000);
        with_pending(&mut agent, pending);
        mount.fill();
        agent.receiver.set_faults(Faults::default());
        agent.start();
        agent.until_status("all that was stored is acknowledged", |s| s.outbox.pending == 0);
        let status = agent.status();
        assert_eq!((status.outbox.delivered, agent.receiver.stats().held as u64), (pending, pending));
        mount.fill();
        agent.drop_events(100, 7);
        agent.until("it says why", |agent| agent.log().contains("the intake is blocked"));
        stays_calm(&mut agent, Duration::from_secs(2));
        agent.kill();
        agent.start();
        mount.relieve();
        agent.until_visible();
        let figures = agent.end();
        assert_eq!(figures.repeated, 0);
        figures
    })
}

/// There is no outbox yet: it waits for room, and says so.
pub fn first_start(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let state = agent.state();
    run_with(Mount::tmpfs(&state, "size=4m"), |mount| {
        mount.fill();
        agent.drop_events(100, 7);
        agent.start();
        agent.until("it waits to start", |agent| agent.log().contains("tried again"));
        stays_calm(&mut agent, Duration::from_secs(2));
        log_says(&agent, &state.display().to_string());
        assert!(!agent.status().agent.running);
        mount.relieve();
        agent.end()
    })
}

/// Somebody has deleted the reserve file, too.
pub fn bare_start(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(OFFLINE);
    let state = agent.state();
    run_with(Mount::tmpfs(&state, "size=32m"), |mount| {
        with_pending(&mut agent, scale.of(1_000, 5_000));
        fs::remove_file(state.join("outbox.db.reserve")).unwrap();
        mount.fill();
        agent.receiver.set_faults(Faults::default());
        agent.start();
        agent.until("it waits to start", |agent| agent.log().contains("tried again"));
        stays_calm(&mut agent, Duration::from_secs(2));
        agent.status();
        agent.kill();
        assert_eq!(agent.receiver.stats().events, 0, "sent what could not be acknowledged");
        mount.relieve();
        agent.start();
        agent.end()
    })
}

/// The disk becomes full while requests are on their way: all of it is delivered and acknowledged on the full disk.
pub fn acknowledgements(scale: &Scale) -> Outcome {
    let mut sum = Figures::default();
    for log in [Log::Empty, Log::Long] {
        let mut agent = TestAgent::program(OFFLINE);
        let mount = match Mount::tmpfs(&agent.state(), "size=64m") {
            Ok(mount) => mount,
            Err(why) => return Outcome::Skipped(why),
        };
        let all = fills_amid_requests(&mut agent, &mount, log, scale);
        agent.until_status("all is acknowledged on the full disk", |s| s.outbox.pending == 0);
        let acknowledged = agent.status().outbox.delivered;
        match log {
            Log::Empty => assert_eq!(acknowledged, all),
            // The disk may have become full before the whole file was taken: the rest waits in the spool.
            Log::Long => assert!(acknowledged > 0 && acknowledged <= all),
        }
        agent.until("all that the receiver took is acknowledged", |agent| {
            agent.status().outbox.delivered == agent.receiver.stats().held as u64
        });
        agent.kill();
        agent.start();
        mount.relieve();
        agent.until_visible();
        let figures = agent.end();
        assert_eq!(figures.repeated, 0);
        sum.add(figures);
    }
    sum.into()
}

/// Without the room that is kept, what was delivered cannot be acknowledged; "lost" counts these.
pub fn unacknowledged(scale: &Scale) -> Outcome {
    let mut sum = Figures { control: true, ..Figures::default() };
    for (log, control) in NO_ROOM_KEPT {
        let program = match control.build() {
            Ok(program) => program,
            Err(why) => return Outcome::Skipped(why),
        };
        let mut scenes = (0..SCENES).map(|_| unacknowledged_by(&program, control.name, log, scale));
        match scenes.find(|scene| !scene.as_ref().is_ok_and(|figures| figures.lost == 0)) {
            Some(Ok(figures)) => sum.add(figures),
            Some(Err(why)) => return Outcome::Skipped(why),
            None => {
                panic!("{} acknowledges all that was delivered, so the fault proves nothing", control.name)
            }
        }
    }
    sum.into()
}

fn unacknowledged_by(program: &Path, name: &str, log: Log, scale: &Scale) -> Result<Figures, String> {
    let mut agent = TestAgent::program(OFFLINE);
    let mount = Mount::tmpfs(&agent.state(), "size=64m")?;
    agent.use_program(program);
    // The acknowledgements of several requests in flight would share commits, and fit into the room that is left by chance.
    agent.set("koala.concurrency = 1");
    fills_amid_requests(&mut agent, &mount, log, scale);
    agent.until("it cannot acknowledge, or is done", |agent| {
        agent.log().contains("nothing more is sent") || agent.status().outbox.pending == 0
    });
    std::thread::sleep(Duration::from_secs(4));
    let status = agent.status();
    let unacknowledged = agent.receiver.stats().held as u64 - status.outbox.delivered;
    agent.kill();
    mount.relieve();
    agent.start();
    agent.until_visible();
    let figures = agent.end();
    let note = format!(
        "{name}: {unacknowledged} delivered and not acknowledged, {} of them sent again",
        figures.repeated
    );
    Ok(Figures { lost: unacknowledged, ..figures }.note(note))
}

/// The most that an empty log of a running agent has: its mark.
const MARK: u64 = 16 << 10;

/// Bytes of the write-ahead log.
fn log_bytes(agent: &TestAgent) -> u64 {
    fs::metadata(agent.path("state/outbox.db-wal")).map_or(0, |file| file.len())
}

/// Returns how many events there are.
fn fills_amid_requests(agent: &mut TestAgent, mount: &Mount, log: Log, scale: &Scale) -> u64 {
    let all = scale.of(5_000, 10_000);
    agent.start();
    let text = long_lines(agent, all);
    agent.drop_next("ndjson", text.as_bytes());
    if let Log::Empty = log {
        agent.until_status("all is stored", |s| s.outbox.pending == all);
    }
    agent.until("the log is as it should be", |agent| {
        let bytes = log_bytes(agent);
        match log {
            Log::Empty => bytes <= MARK,
            Log::Long => bytes > 3 << 20,
        }
    });
    agent.receiver.set_faults(Faults { latency_ms: 100, ..Faults::default() });
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    agent.until("a request is out", |agent| agent.receiver.stats().requests > 0);
    mount.fill();
    all
}

/// Events of which the mapping in force makes nothing are settled when there is room; until then the sender hears a stop.
pub fn unsent(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(OFFLINE);
    let state = agent.state();
    run_with(Mount::tmpfs(&state, "size=16m"), |mount| {
        with_pending(&mut agent, 100);
        let outbox = rusqlite::Connection::open(agent.outbox()).unwrap();
        outbox.execute("UPDATE bodies SET body = replace(body, 'Signed Up', '')", []).unwrap();
        drop(outbox);
        // Without a key nothing is settled before the disk is full.
        agent.unset("koala.public_key");
        agent.start();
        agent.until_visible();
        // A log that has yet to be copied would give its room back.
        agent.until("the log is copied", |agent| log_bytes(agent) <= MARK);
        // Filled before as well, so that the agent has no time to reserve the room again.
        mount.fill();
        fs::remove_file(state.join("outbox.db.reserve")).unwrap();
        mount.fill();
        agent.set(&format!("koala.public_key = \"{KEY}\""));
        online(&agent);
        agent.until("it cannot settle", |agent| agent.log().contains("nothing more is sent"));
        let began = Instant::now();
        agent.stop();
        assert!(began.elapsed() < Duration::from_secs(50), "the sender did not hear the stop");
        assert!(!agent.log().contains("did not answer in time"), "{}", agent.log());
        assert_eq!(agent.receiver.stats().events, 0);
        mount.relieve();
        agent.start();
        agent.until_status("all is settled", |s| s.outbox.pending == 0);
        agent.stop();
        agent.balance()
    })
}
