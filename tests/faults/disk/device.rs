//! The device fails, or is slow: calls on one file come to an error for a while.

use super::tracer::Tracer;
use super::{is_blocked, log_says, stays_calm};
use crate::place::Place;
use crate::stage::{Figures, Played, Scale};
use koala_agent::receiver::Faults;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LOG: &str = "state/outbox.db-wal";
const DATABASE: &str = "state/outbox.db";

/// A place at work: some is taken, some delivered, more comes.
fn at_work() -> Place {
    let mut place = Place::new(Faults { latency_ms: 10, ..Faults::default() });
    place.daemon.start();
    place.drop_events(200, 20);
    place.until("something is delivered", |place| place.receiver.stats().held > 0);
    place
}

/// As with a full disk: nothing is lost, nothing more is sent than can be marked, and it goes on by itself.
pub fn no_space(scale: &Scale) -> Played {
    let mut sum = Figures::default();
    for _ in 0..scale.of(1, 10) {
        let mut place = at_work();
        let log = place.daemon.path(LOG);
        let tracer = match Tracer::attach(&place.daemon, &log, "write,pwrite64:error=ENOSPC") {
            Ok(tracer) => tracer,
            Err(why) => return Played::Skipped(why),
        };
        place.drop_events(300, 20);
        place.until_status("the intake is blocked", is_blocked);
        stays_calm(&mut place, Duration::from_secs(2));
        let sent = place.receiver.stats().events;
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(place.receiver.stats().events, sent, "it sends what it cannot mark");
        tracer.detach();
        sum.add(place.end());
    }
    sum.into()
}

pub fn log_sync(scale: &Scale) -> Played {
    ends_at_once(scale, LOG, "fsync,fdatasync:error=EIO")
}

pub fn checkpoint_sync(scale: &Scale) -> Played {
    ends_at_once(scale, DATABASE, "fsync,fdatasync:error=EIO")
}

pub fn checkpoint_write(scale: &Scale) -> Played {
    ends_at_once(scale, DATABASE, "write,pwrite64:error=EIO")
}

/// The first error ends the agent, which says what failed; the next start recovers.
fn ends_at_once(scale: &Scale, file: &str, injection: &str) -> Played {
    let mut sum = Figures::default();
    let mut slowest = Duration::ZERO;
    for _ in 0..scale.of(2, 20) {
        let mut place = at_work();
        let file = place.daemon.path(file);
        let tracer = match Tracer::attach(&place.daemon, &file, injection) {
            Ok(tracer) => tracer,
            Err(why) => return Played::Skipped(why),
        };
        place.drop_events(300, 20);
        let began = Instant::now();
        let ended = place.daemon.wait();
        slowest = slowest.max(began.elapsed());
        assert_eq!(ended.code(), Some(74), "{ended}:\n{}", place.daemon.log());
        drop(tracer);
        log_says(&place, &place.daemon.outbox().display().to_string());
        place.daemon.start();
        sum.add(place.end());
    }
    // The log is copied when the agent has been idle for a second.
    assert!(slowest < Duration::from_secs(15), "it ended after {slowest:?}");
    sum.note(format!("ended within {slowest:.1?} of the first error that could come")).into()
}

/// The file is left and spoken of, those beside it are taken, and it is taken when it can be read.
pub fn spool_read(_: &Scale) -> Played {
    let mut place = Place::new(Faults::default());
    place.daemon.set("spool.scan_interval = \"500ms\"");
    place.daemon.start();
    place.until("it runs", |place| place.daemon.log().contains("takes files from"));
    let bad: PathBuf = place.daemon.spool().join("000000001.json");
    let tracer = match Tracer::attach(&place.daemon, &bad, "read,pread64:error=EIO") {
        Ok(tracer) => tracer,
        Err(why) => return Played::Skipped(why),
    };
    // It is the only one of its person.
    let event = place.books.event(1_000);
    place.drop_file("json", event.as_bytes());
    place.drop_events(99, 10);
    place.until("the others are delivered", |place| place.receiver.stats().held == 99);
    stays_calm(&mut place, Duration::from_secs(2));
    assert!(bad.exists());
    log_says(&place, "000000001.json");
    tracer.detach();
    place.end().into()
}

/// Every sync takes a third of a second: all goes on, only slower.
pub fn slow(scale: &Scale) -> Played {
    let mut place = at_work();
    let log = place.daemon.path(LOG);
    let tracer = match Tracer::attach(&place.daemon, &log, "fsync,fdatasync:delay_enter=300000") {
        Ok(tracer) => tracer,
        Err(why) => return Played::Skipped(why),
    };
    place.drop_events(scale.of(300, 3_000), 20);
    place.until_delivered();
    tracer.detach();
    let figures = place.end();
    assert_eq!(figures.repeated, 0);
    figures.into()
}
