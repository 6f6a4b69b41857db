//! A disk, or a limit, that the spool's flood does not fit into.

use super::mount::Mount;
use super::{OFFLINE, is_blocked, log_says, long_lines, online, skipped, stays_calm};
use crate::place::Place;
use crate::stage::{Figures, Played, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use std::fs;
use std::time::Duration;

const EVENTS_A_FILE: u64 = 200;

/// The state has 16 MiB, and the receiver is away while half as much again comes.
pub fn state(scale: &Scale) -> Played {
    let mut place = Place::new(OFFLINE);
    skipped(Mount::tmpfs(&place.daemon.path("state"), "size=16m"), |mount| {
        place.daemon.start();
        for _ in 0..scale.of(60, 600) {
            let text = long_lines(&mut place, EVENTS_A_FILE);
            place.drop_file("ndjson", text.as_bytes());
        }
        place.until_status("the intake is blocked", |s| is_blocked(s) && s.outbox.disk_free < 1 << 20);
        stays_calm(&mut place, Duration::from_secs(3));
        let full = place.daemon.status();
        assert!(is_blocked(&full) && full.spool.waiting_files > 0, "{full:?}");
        log_says(&place, "the intake is blocked");
        mount.remount("size=20m");
        place.until_status("it takes more with more room", |s| s.outbox.pending > full.outbox.pending);
        place.until_status("the intake is blocked again", is_blocked);
        online(&place);
        place.end().note(format!(
            "blocked with {} events in {} KiB",
            full.outbox.pending,
            full.outbox.bytes >> 10
        ))
    })
}

/// Spool and state share 16 MiB: its producers find no room either.
pub fn state_and_spool(scale: &Scale) -> Played {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    skipped(Mount::tmpfs(&home, "size=16m"), |mount| {
        let mut place = Place::within(&home, OFFLINE);
        place.daemon.start();
        let mut refused = 0;
        for _ in 0..scale.of(50, 500) {
            let text = long_lines(&mut place, EVENTS_A_FILE);
            while place.try_drop_file("ndjson", text.as_bytes()).is_err() {
                if refused == 0 {
                    place.until_status("the intake is blocked", is_blocked);
                    stays_calm(&mut place, Duration::from_secs(3));
                    mount.remount("size=40m");
                    online(&place);
                }
                refused += 1;
                assert!(refused < 5_000, "there is never room again:\n{}", place.daemon.log());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(refused > 0, "the disk was never full: {} bytes free", mount.free());
        place.end()
    })
}

/// A bad file cannot be set aside, and those behind it wait unharmed.
pub fn rejects(_: &Scale) -> Played {
    let mut place = Place::new(Faults::default());
    skipped(Mount::tmpfs(&place.daemon.spool(), "size=2m"), |mount| {
        place.daemon.set("spool.scan_interval = \"500ms\"");
        place.daemon.start();
        place.drop_events(10, 3);
        place.until_delivered();
        place.daemon.stop();
        place.drop_file("json", b"7");
        place.drop_events(50, 3);
        mount.fill();
        place.daemon.start();
        place.until_delivered();
        mount.fill();
        stays_calm(&mut place, Duration::from_secs(2));
        mount.relieve();
        place.until_status("it is set aside", |s| s.spool.rejected_files == 1);
        place.end()
    })
}

/// There is room, but not for another file.
pub fn inodes(_: &Scale) -> Played {
    let mut place = Place::new(Faults::default());
    let state = place.daemon.path("state");
    skipped(Mount::tmpfs(&state, "size=64m,nr_inodes=20"), |_mount| {
        let mut taken: Vec<_> = (0..)
            .map(|n| state.join(format!("other-{n}")))
            .take_while(|file| fs::write(file, "").is_ok())
            .collect();
        place.drop_lines(200, 10);
        place.daemon.start();
        place.until("it waits to start", |place| place.daemon.log().contains("tried again"));
        stays_calm(&mut place, Duration::from_secs(2));
        log_says(&place, &state.display().to_string());
        taken.drain(..).for_each(|file| fs::remove_file(file).unwrap());
        place.end()
    })
}

/// The outbox may not grow further: files wait, and its space comes back with the deliveries.
pub fn max_bytes(scale: &Scale) -> Played {
    let mut place = Place::new(OFFLINE);
    place.daemon.set("outbox.max_bytes = \"6MiB\"");
    place.daemon.start();
    let file_size = |place: &Place| fs::metadata(place.daemon.outbox()).map_or(0, |file| file.len());
    for _ in 0..scale.of(20, 200) {
        let text = long_lines(&mut place, EVENTS_A_FILE);
        place.drop_file("ndjson", text.as_bytes());
    }
    place.until_status("the outbox is full", |s| {
        s.intake.reason.as_ref().is_some_and(|r| r.code == Code::MaxBytes)
    });
    stays_calm(&mut place, Duration::from_secs(2));
    let full = place.daemon.status();
    assert!(full.spool.waiting_files > 0 && full.outbox.bytes >= 6 << 20, "{full:?}");
    let large = file_size(&place);
    online(&place);
    place.until_delivered();
    place.until_status("the intake is open", |s| !is_blocked(s));
    place.until("the file is small again", |place| file_size(place) < 6 << 20);
    let figures: Figures = place.end();
    figures.note(format!("{} KiB full, {} KiB after", large >> 10, file_size(&place) >> 10)).into()
}
