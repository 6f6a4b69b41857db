//! The device fails, or is slow: calls on one file come to an error for a while.

use super::{is_blocked, log_says, stays_calm_under};
use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use crate::tracer::Tracer;
use koala_agent::receiver::Faults;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LOG: &str = "state/outbox.db-wal";
const DATABASE: &str = "state/outbox.db";

/// An agent at work: some events are stored, some delivered, more come.
fn at_work() -> TestAgent {
    let mut agent = TestAgent::program(Faults { latency_ms: 10, ..Faults::default() });
    agent.start();
    agent.drop_events(200, 20);
    agent.until("something is delivered", |agent| agent.receiver.stats().held > 0);
    agent
}

/// As with a full disk: nothing is lost, nothing more is sent than can be acknowledged, and it goes on by itself.
pub fn no_space(scale: &Scale) -> Outcome {
    let mut sum = Figures::default();
    for _ in 0..scale.of(1, 10) {
        let mut agent = at_work();
        let log = agent.path(LOG);
        let tracer = match Tracer::inject_on(&agent, &log, "write,pwrite64:error=ENOSPC") {
            Ok(tracer) => tracer,
            Err(why) => return Outcome::Skipped(why),
        };
        agent.drop_events(300, 20);
        agent.until_status("the intake is blocked", is_blocked);
        stays_calm_under(&tracer, &mut agent, Duration::from_secs(6));
        let sent = agent.receiver.stats().events;
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(agent.receiver.stats().events, sent, "it sends what it cannot acknowledge");
        tracer.detach();
        sum.add(agent.end());
    }
    sum.into()
}

pub fn log_sync(scale: &Scale) -> Outcome {
    ends_at_once(scale, LOG, "fsync,fdatasync:error=EIO")
}

pub fn checkpoint_sync(scale: &Scale) -> Outcome {
    ends_at_once(scale, DATABASE, "fsync,fdatasync:error=EIO")
}

pub fn checkpoint_write(scale: &Scale) -> Outcome {
    ends_at_once(scale, DATABASE, "write,pwrite64:error=EIO")
}

/// The first error ends the agent, which says what failed; the next start recovers.
fn ends_at_once(scale: &Scale, file: &str, injection: &str) -> Outcome {
    let mut sum = Figures::default();
    let mut slowest = Duration::ZERO;
    for _ in 0..scale.of(2, 20) {
        let mut agent = at_work();
        let file = agent.path(file);
        let tracer = match Tracer::inject_on(&agent, &file, injection) {
            Ok(tracer) => tracer,
            Err(why) => return Outcome::Skipped(why),
        };
        agent.drop_events(300, 20);
        let began = Instant::now();
        let ended = agent.wait_for_exit();
        slowest = slowest.max(began.elapsed());
        assert_eq!(ended.code(), Some(74), "{ended}:\n{}", agent.log());
        drop(tracer);
        log_says(&agent, &agent.outbox().display().to_string());
        agent.start();
        sum.add(agent.end());
    }
    // The log is copied when the agent has been idle for a second.
    assert!(slowest < Duration::from_secs(75), "it ended after {slowest:?}");
    sum.note(format!("ended within {slowest:.1?} of the first error that could come")).into()
}

/// The file is left and spoken of, those beside it are taken, and it is taken when it can be read.
pub fn spool_read(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    agent.set("spool.scan_interval = \"500ms\"");
    agent.start();
    agent.until("it runs", |agent| agent.log().contains("takes files from"));
    let bad: PathBuf = agent.spool().join("000000001.json");
    let tracer = match Tracer::inject_on(&agent, &bad, "read,pread64:error=EIO") {
        Ok(tracer) => tracer,
        Err(why) => return Outcome::Skipped(why),
    };
    // The unreadable file is the only one of its person.
    let event = agent.ledger.event(1_000);
    agent.drop_next("json", event.as_bytes());
    agent.drop_events(99, 10);
    agent.until("the others are delivered", |agent| agent.receiver.stats().held == 99);
    stays_calm_under(&tracer, &mut agent, Duration::from_secs(6));
    assert!(bad.exists());
    log_says(&agent, "000000001.json");
    tracer.detach();
    agent.end().into()
}

/// Every sync takes a third of a second: all goes on, only slower.
pub fn slow(scale: &Scale) -> Outcome {
    let mut agent = at_work();
    let log = agent.path(LOG);
    let tracer = match Tracer::inject_on(&agent, &log, "fsync,fdatasync:delay_enter=300000") {
        Ok(tracer) => tracer,
        Err(why) => return Outcome::Skipped(why),
    };
    agent.drop_events(scale.of(300, 3_000), 20);
    agent.until_delivered();
    tracer.detach();
    let figures = agent.end();
    assert_eq!(figures.repeated, 0);
    figures.into()
}
