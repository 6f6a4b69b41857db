//! The outbox's file system may not be written.

use super::mount::Mount;
use super::{OFFLINE, log_says, long_lines, skipped, stays_calm};
use crate::place::Place;
use crate::stage::{Played, Scale};
use koala_agent::receiver::Faults;
use std::time::Duration;

/// At the first start, and over an outbox with events: it waits, names the place, and goes on by itself.
pub fn start(_: &Scale) -> Played {
    let mut place = Place::new(OFFLINE);
    let state = place.daemon.path("state");
    skipped(Mount::tmpfs(&state, "size=32m"), |mount| {
        mount.remount("ro");
        place.daemon.start();
        waits(&mut place);
        mount.remount("rw");
        let text = long_lines(&mut place, 500);
        place.drop_file("ndjson", text.as_bytes());
        place.until_status("they are stored", |s| s.outbox.pending == 500);
        place.daemon.kill();
        mount.remount("ro");
        place.receiver.set_faults(Faults::default());
        place.drop_events(100, 10);
        place.daemon.start();
        waits(&mut place);
        assert_eq!(place.receiver.stats().events, 0, "sent what could not be marked");
        mount.remount("rw");
        place.end()
    })
}

/// The kernel finds an error and stops all writing. The agent ends, as nobody knows what its last write came to; the
/// service manager starts it again, and it waits, with nothing open there, until somebody has repaired it.
pub fn in_flight(scale: &Scale) -> Played {
    let mut place = Place::new(Faults { latency_ms: 10, ..Faults::default() });
    let state = place.daemon.path("state");
    skipped(Mount::ext4(&state, 64), |mount| {
        place.daemon.start();
        place.drop_events(200, 20);
        place.until("something is delivered", |place| place.receiver.stats().held > 0);
        mount.find_error().unwrap();
        place.drop_events(scale.of(200, 2_000), 20);
        let ended = place.daemon.wait();
        assert_eq!(ended.code(), Some(74), "{ended}:\n{}", place.daemon.log());
        log_says(&place, &place.daemon.outbox().display().to_string());
        place.daemon.start();
        waits(&mut place);
        mount.repair();
        place.end()
    })
}

fn waits(place: &mut Place) {
    place.until("it waits to start", |place| {
        place.daemon.log().lines().last().is_some_and(|line| line.contains("tried again"))
    });
    stays_calm(place, Duration::from_secs(2));
    log_says(place, &place.daemon.path("state").display().to_string());
    assert!(!place.daemon.status().agent.running);
}
