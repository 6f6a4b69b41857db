//! A disk, or a limit, that the spool's flood does not fit into.

use super::mount::Mount;
use super::{OFFLINE, is_blocked, log_says, long_lines, online, run_with, stays_calm};
use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use std::fs;
use std::time::Duration;

const EVENTS_A_FILE: u64 = 200;

/// The state has 16 MiB, and the receiver is away while half as much again comes.
pub fn state(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(OFFLINE);
    run_with(Mount::tmpfs(&agent.state(), "size=16m"), |mount| {
        agent.start();
        for _ in 0..scale.of(60, 600) {
            let text = long_lines(&mut agent, EVENTS_A_FILE);
            agent.drop_next("ndjson", text.as_bytes());
        }
        agent.until_status("the intake is blocked", |s| is_blocked(s) && s.outbox.disk_free < Some(1 << 20));
        stays_calm(&mut agent, Duration::from_secs(3));
        let full = agent.status();
        assert!(is_blocked(&full) && full.spool.waiting_files > Some(0), "{full:?}");
        log_says(&agent, "the intake is blocked");
        mount.remount("size=20m");
        agent.until_status("it takes more with more room", |s| s.outbox.pending > full.outbox.pending);
        agent.until_status("the intake is blocked again", is_blocked);
        online(&agent);
        agent.end().note(format!(
            "blocked with {} events in {} KiB",
            full.outbox.pending,
            full.outbox.bytes >> 10
        ))
    })
}

/// Spool and state share 16 MiB: its producers find no room either.
pub fn state_and_spool(scale: &Scale) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    run_with(Mount::tmpfs(&home, "size=16m"), |mount| {
        let mut agent = TestAgent::program_within(&home, OFFLINE);
        agent.start();
        let mut refused = 0;
        for _ in 0..scale.of(50, 500) {
            let text = long_lines(&mut agent, EVENTS_A_FILE);
            while agent.try_drop_next("ndjson", text.as_bytes()).is_err() {
                if refused == 0 {
                    agent.until_status("the intake is blocked", is_blocked);
                    stays_calm(&mut agent, Duration::from_secs(3));
                    mount.remount("size=40m");
                    online(&agent);
                }
                refused += 1;
                assert!(refused < 5_000, "there is never room again:\n{}", agent.log());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(refused > 0, "the disk was never full: {} bytes free", mount.free());
        agent.end()
    })
}

/// A bad file cannot be rejected, and those behind it wait.
pub fn rejects(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    run_with(Mount::tmpfs(&agent.spool(), "size=2m"), |mount| {
        agent.set("spool.scan_interval = \"500ms\"");
        agent.start();
        agent.drop_events(10, 3);
        agent.until_delivered();
        agent.stop();
        agent.drop_next("json", b"7");
        agent.drop_events(50, 3);
        mount.fill();
        agent.start();
        agent.until_delivered();
        mount.fill();
        stays_calm(&mut agent, Duration::from_secs(2));
        mount.relieve();
        agent.until_status("it is rejected", |s| s.spool.rejected_files == Some(1));
        agent.end()
    })
}

/// There is room, but not for another file.
pub fn inodes(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let state = agent.state();
    run_with(Mount::tmpfs(&state, "size=64m,nr_inodes=20"), |_mount| {
        let mut taken: Vec<_> = (0..)
            .map(|n| state.join(format!("other-{n}")))
            .take_while(|file| fs::write(file, "").is_ok())
            .collect();
        agent.drop_lines(200, 10);
        agent.start();
        agent.until("it waits to start", |agent| agent.log().contains("tried again"));
        stays_calm(&mut agent, Duration::from_secs(2));
        log_says(&agent, &state.display().to_string());
        taken.drain(..).for_each(|file| fs::remove_file(file).unwrap());
        agent.end()
    })
}

/// The outbox may not grow further: files wait, and its space comes back with the deliveries.
pub fn max_bytes(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(OFFLINE);
    agent.set("outbox.max_bytes = \"6MiB\"");
    agent.start();
    let file_size = |agent: &TestAgent| fs::metadata(agent.outbox()).map_or(0, |file| file.len());
    for _ in 0..scale.of(20, 200) {
        let text = long_lines(&mut agent, EVENTS_A_FILE);
        agent.drop_next("ndjson", text.as_bytes());
    }
    agent.until_status("the outbox is full", |s| {
        s.intake.reason.as_ref().is_some_and(|r| r.code == Code::MaxBytes)
    });
    stays_calm(&mut agent, Duration::from_secs(2));
    let full = agent.status();
    assert!(full.spool.waiting_files > Some(0) && full.outbox.bytes >= 6 << 20, "{full:?}");
    let large = file_size(&agent);
    online(&agent);
    agent.until_delivered();
    agent.until_status("the intake is open", |s| !is_blocked(s));
    agent.until("the file is small again", |agent| file_size(agent) < 6 << 20);
    let figures: Figures = agent.end();
    figures.note(format!("{} KiB full, {} KiB after", large >> 10, file_size(&agent) >> 10)).into()
}
