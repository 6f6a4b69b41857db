//! The disk is full, fails, or may not be written.

mod device;
mod full;
mod mount;
mod readonly;
mod small;
mod tracer;

use super::place::Place;
use super::stage::{Fault, Figures, Played};
use koala_agent::receiver::Faults;
use koala_agent::status::{IntakeState, Status};
use nix::sys::signal::Signal;
use std::time::Duration;

pub const FAULTS: &[Fault] = &[
    Fault { name: "5", title: "a flood, and 16 MiB for the state", alone: false, play: small::state },
    Fault {
        name: "5-spool",
        title: "the same with the spool on it",
        alone: false,
        play: small::state_and_spool,
    },
    Fault { name: "5-rejects", title: "no room to set a file aside", alone: false, play: small::rejects },
    Fault { name: "5-inodes", title: "no inode left", alone: false, play: small::inodes },
    Fault { name: "6", title: "no byte free at start", alone: false, play: full::start },
    Fault { name: "6-new", title: "no byte free at the first start", alone: false, play: full::first_start },
    Fault {
        name: "6-bare",
        title: "no byte free at start, and no ballast",
        alone: false,
        play: full::bare_start,
    },
    Fault { name: "6-marks", title: "no byte free while requests are out", alone: false, play: full::marks },
    Fault {
        name: "6-control",
        title: "the same without ballast or claimed room",
        alone: false,
        play: full::unmarked,
    },
    Fault { name: "6-unsent", title: "no byte free for what is not sent", alone: false, play: full::unsent },
    Fault { name: "7", title: "ENOSPC on the log for a while", alone: false, play: device::no_space },
    Fault { name: "7-log", title: "EIO on the log's sync", alone: false, play: device::log_sync },
    Fault {
        name: "7-checkpoint",
        title: "EIO on the checkpoint's sync",
        alone: false,
        play: device::checkpoint_sync,
    },
    Fault {
        name: "7-page",
        title: "EIO on the checkpoint's write",
        alone: false,
        play: device::checkpoint_write,
    },
    Fault { name: "7-file", title: "EIO on reading a spool file", alone: false, play: device::spool_read },
    Fault { name: "7-slow", title: "a disk that takes its time", alone: false, play: device::slow },
    Fault { name: "8", title: "read-only at start", alone: false, play: readonly::start },
    Fault { name: "8-in-flight", title: "read-only in flight", alone: false, play: readonly::in_flight },
    Fault { name: "9", title: "outbox.max_bytes reached", alone: false, play: small::max_bytes },
];

const OFFLINE: Faults = Faults {
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

/// The receiver can be reached, and the daemon is told so.
fn online(place: &Place) {
    place.receiver.set_faults(Faults::default());
    place.daemon.signal(Signal::SIGHUP);
}

/// An NDJSON text of events of about 2 KiB each, by ten people in turn.
fn long_lines(place: &mut Place, events: u64) -> String {
    let padding = format!(r#""padding":"{}","#, "x".repeat(1_900));
    let first = place.books.dropped.len() as u64;
    let lines =
        (first..first + events).map(|n| place.books.event_with(n % 10, &format!("long-{n}"), &padding));
    lines.map(|line| line + "\n").collect()
}

fn is_blocked(status: &Status) -> bool {
    status.intake.state == IntakeState::Blocked && status.intake.reason.is_some()
}

/// For so long it neither ends, nor spins, nor fills the log.
fn stays_calm(place: &mut Place, time: Duration) {
    let (before, lines) = (place.daemon.cpu(), place.daemon.log().lines().count());
    std::thread::sleep(time);
    assert_eq!(place.daemon.ended(), None, "it ended:\n{}", place.daemon.log());
    if let (Some(before), Some(after)) = (before, place.daemon.cpu()) {
        let used = after - before;
        assert!(used < time / 4, "it used {used:?} of {time:?}");
    }
    let said = place.daemon.log().lines().count() - lines;
    assert!(said <= 5, "{said} lines in {time:?}:\n{}", place.daemon.log());
}

/// The log names what the trouble is with.
fn log_says(place: &Place, what: &str) {
    assert!(place.daemon.log().contains(what), "{what} is not in the log:\n{}", place.daemon.log());
}

fn skipped<T>(result: Result<T, String>, play: impl FnOnce(T) -> Figures) -> Played {
    match result {
        Ok(thing) => play(thing).into(),
        Err(why) => Played::Skipped(why),
    }
}
