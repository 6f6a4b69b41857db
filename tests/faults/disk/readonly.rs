//! The outbox's file system may not be written.

use super::mount::Mount;
use super::{OFFLINE, log_says, long_lines, run_with, stays_calm};
use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use std::time::Duration;

/// At the first start, and over an outbox with events: it waits, names the folder, and goes on by itself.
pub fn start(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(OFFLINE);
    let state = agent.state();
    run_with(Mount::tmpfs(&state, "size=32m"), |mount| {
        mount.remount("ro");
        agent.start();
        waits(&mut agent);
        mount.remount("rw");
        let text = long_lines(&mut agent, 500);
        agent.drop_next("ndjson", text.as_bytes());
        agent.until_status("they are stored", |s| s.outbox.pending == 500);
        agent.kill();
        mount.remount("ro");
        agent.receiver.set_faults(Faults::default());
        agent.drop_events(100, 10);
        agent.start();
        waits(&mut agent);
        assert_eq!(agent.receiver.stats().events, 0, "sent what could not be acknowledged");
        mount.remount("rw");
        agent.end()
    })
}

/// The kernel finds an error and stops all writing. The agent ends, as nobody knows what its last write came to; the
/// service manager starts it again, and it waits, with nothing open there, until somebody has repaired it.
pub fn in_flight(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults { latency_ms: 10, ..Faults::default() });
    let state = agent.state();
    run_with(Mount::ext4(&state, 64), |mount| {
        agent.start();
        agent.drop_events(200, 20);
        agent.until("something is delivered", |agent| agent.receiver.stats().held > 0);
        mount.find_error().unwrap();
        agent.drop_events(scale.of(200, 2_000), 20);
        let ended = agent.wait_for_exit();
        assert_eq!(ended.code(), Some(74), "{ended}:\n{}", agent.log());
        log_says(&agent, &agent.outbox().display().to_string());
        agent.start();
        waits(&mut agent);
        mount.repair();
        agent.end()
    })
}

/// The kernel finds an error at a random moment amid commits. ext4 may then answer the fsync of a commit with success
/// although its data is lost: no file of such a commit may be removed.
pub fn aborted(scale: &Scale) -> Outcome {
    let (mut figures, mut rng) = (Figures::default(), scale.rng());
    for _ in 0..scale.of(6, 60) {
        let mut agent = TestAgent::program(OFFLINE);
        let (state, pause) = (agent.state(), Duration::from_millis(rng.u64(20..120)));
        let round = run_with(Mount::ext4(&state, 64), |mount| {
            agent.start();
            agent.drop_events(5, 5);
            agent.until_status("something is stored", |status| status.outbox.pending > 0);
            std::thread::scope(|scope| {
                let strike = scope.spawn(|| {
                    std::thread::sleep(pause);
                    mount.find_error().unwrap();
                });
                while !strike.is_finished() {
                    agent.drop_events(1, 20);
                }
            });
            agent.drop_events(20, 20);
            let ended = agent.wait_for_exit();
            assert_eq!(ended.code(), Some(74), "{ended}:\n{}", agent.log());
            mount.repair();
            agent.receiver.set_faults(Faults::default());
            agent.start();
            agent.end()
        });
        match round {
            Outcome::Done(round) => figures.add(round),
            skipped => return skipped,
        }
    }
    figures.into()
}

fn waits(agent: &mut TestAgent) {
    agent.until("it waits to start", |agent| {
        agent.log().lines().last().is_some_and(|line| line.contains("tried again"))
    });
    stays_calm(agent, Duration::from_secs(2));
    log_says(agent, &agent.state().display().to_string());
    assert!(!agent.status().agent.running);
}
