//! Other programs have taken every byte of the disk.

use super::mount::Mount;
use super::{OFFLINE, log_says, long_lines, online, skipped, stays_calm};
use crate::control::{Control, NO_BALLAST, NO_CLAIM};
use crate::place::Place;
use crate::stage::{Figures, Played, Scale};
use koala_agent::receiver::Faults;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the disk's last room is in.
#[derive(Clone, Copy)]
enum Log {
    /// Just copied: only the ballast is there to pay for a mark.
    Empty,
    /// It waits to be copied into the database, whose pages have no place there but what was claimed for them.
    Long,
}

/// Scenes in one of which a control must leave something unmarked. On a busy machine the log may be copied just before the
/// disk is full, and then has room of its own.
const SCENES: usize = 3;

/// Agents that keep no room to mark what was delivered.
const NO_ROOM_KEPT: [(Log, Control); 2] = [(Log::Empty, NO_BALLAST), (Log::Long, NO_CLAIM)];

/// A place whose state is on a mount of its own, with so many events in the outbox, some of them only in the log.
fn with_pending(at: &mut Place, events: u64) {
    at.daemon.start();
    let text = long_lines(at, events);
    at.drop_file("ndjson", text.as_bytes());
    at.until_status("they are stored", |s| s.outbox.pending == events);
    at.daemon.kill();
}

/// Waits until a daemon that was killed before is there again.
fn runs_again(place: &mut Place) {
    let pid = place.daemon.pid().unsigned_abs();
    place.until_status("it runs again", |s| s.agent.running && s.agent.pid == Some(pid));
}

/// What waits is delivered and marked all the same, and after another crash nothing of it is sent again.
pub fn start(scale: &Scale) -> Played {
    let mut place = Place::new(OFFLINE);
    skipped(Mount::tmpfs(&place.daemon.path("state"), "size=32m"), |mount| {
        let pending = scale.of(1_000, 5_000);
        with_pending(&mut place, pending);
        mount.fill();
        place.receiver.set_faults(Faults::default());
        place.daemon.start();
        place.until_status("all that was stored is marked", |s| s.outbox.pending == 0);
        let status = place.daemon.status();
        assert_eq!((status.outbox.delivered, place.receiver.stats().held as u64), (pending, pending));
        mount.fill();
        place.drop_events(100, 7);
        place.until("it says why", |place| place.daemon.log().contains("no more files are taken"));
        stays_calm(&mut place, Duration::from_secs(2));
        place.daemon.kill();
        place.daemon.start();
        mount.relieve();
        runs_again(&mut place);
        let figures = place.end();
        assert_eq!(figures.repeated, 0);
        figures
    })
}

/// There is no outbox yet: it waits for room, and says so.
pub fn first_start(_: &Scale) -> Played {
    let mut place = Place::new(Faults::default());
    let state = place.daemon.path("state");
    skipped(Mount::tmpfs(&state, "size=4m"), |mount| {
        mount.fill();
        place.drop_events(100, 7);
        place.daemon.start();
        place.until("it waits to start", |place| place.daemon.log().contains("tried again"));
        stays_calm(&mut place, Duration::from_secs(2));
        log_says(&place, &state.display().to_string());
        assert!(!place.daemon.status().agent.running);
        mount.relieve();
        place.end()
    })
}

/// Somebody has deleted the ballast, too.
pub fn bare_start(scale: &Scale) -> Played {
    let mut place = Place::new(OFFLINE);
    let state = place.daemon.path("state");
    skipped(Mount::tmpfs(&state, "size=32m"), |mount| {
        with_pending(&mut place, scale.of(1_000, 5_000));
        fs::remove_file(state.join("outbox.db.ballast")).unwrap();
        mount.fill();
        place.receiver.set_faults(Faults::default());
        place.daemon.start();
        place.until("it waits to start", |place| place.daemon.log().contains("tried again"));
        stays_calm(&mut place, Duration::from_secs(2));
        place.daemon.status();
        place.daemon.kill();
        assert_eq!(place.receiver.stats().events, 0, "sent what could not be marked");
        mount.relieve();
        place.daemon.start();
        place.end()
    })
}

/// The disk becomes full while requests are on their way: all of it is delivered and marked on the full disk.
pub fn marks(scale: &Scale) -> Played {
    let mut sum = Figures::default();
    for log in [Log::Empty, Log::Long] {
        let mut place = Place::new(OFFLINE);
        let mount = match Mount::tmpfs(&place.daemon.path("state"), "size=64m") {
            Ok(mount) => mount,
            Err(why) => return Played::Skipped(why),
        };
        let all = fills_amid_requests(&mut place, &mount, log, scale);
        place.until_status("all is marked on the full disk", |s| s.outbox.pending == 0);
        let marked = place.daemon.status().outbox.delivered;
        match log {
            Log::Empty => assert_eq!(marked, all),
            // The disk may have become full before the whole file was taken: the rest waits in the spool.
            Log::Long => assert!(marked > 0 && marked <= all),
        }
        place.until("all that the receiver took is marked", |place| {
            place.daemon.status().outbox.delivered == place.receiver.stats().held as u64
        });
        place.daemon.kill();
        place.daemon.start();
        mount.relieve();
        runs_again(&mut place);
        let figures = place.end();
        assert_eq!(figures.repeated, 0);
        sum.add(figures);
    }
    sum.into()
}

/// Without the room that is kept, what was delivered cannot be marked; "lost" counts these.
pub fn unmarked(scale: &Scale) -> Played {
    let mut sum = Figures { control: true, ..Figures::default() };
    for (log, control) in NO_ROOM_KEPT {
        let program = match control.build() {
            Ok(program) => program,
            Err(why) => return Played::Skipped(why),
        };
        let mut scenes = (0..SCENES).map(|_| unmarked_by(&program, control.name, log, scale));
        match scenes.find(|scene| !scene.as_ref().is_ok_and(|figures| figures.lost == 0)) {
            Some(Ok(figures)) => sum.add(figures),
            Some(Err(why)) => return Played::Skipped(why),
            None => panic!("{} marks all that was delivered, so the fault proves nothing", control.name),
        }
    }
    sum.into()
}

fn unmarked_by(program: &Path, name: &str, log: Log, scale: &Scale) -> Result<Figures, String> {
    let mut place = Place::new(OFFLINE);
    let mount = Mount::tmpfs(&place.daemon.path("state"), "size=64m")?;
    place.daemon.program(program);
    // With more requests in flight their marks share commits, and fit into what room is left by chance.
    place.daemon.set("koala.concurrency = 1");
    fills_amid_requests(&mut place, &mount, log, scale);
    place.until("it cannot mark, or is done", |place| {
        place.daemon.log().contains("nothing more is sent") || place.daemon.status().outbox.pending == 0
    });
    std::thread::sleep(Duration::from_secs(4));
    let status = place.daemon.status();
    let unmarked = place.receiver.stats().held as u64 - status.outbox.delivered;
    place.daemon.kill();
    mount.relieve();
    place.daemon.start();
    runs_again(&mut place);
    let figures = place.end();
    let note =
        format!("{name}: {unmarked} delivered and not marked, {} of them sent again", figures.repeated);
    Ok(Figures { lost: unmarked, ..figures }.note(note))
}

/// Returns how many events there are.
fn fills_amid_requests(place: &mut Place, mount: &Mount, log: Log, scale: &Scale) -> u64 {
    let all = scale.of(5_000, 10_000);
    place.daemon.start();
    let text = long_lines(place, all);
    place.drop_file("ndjson", text.as_bytes());
    if let Log::Empty = log {
        place.until_status("all is stored", |s| s.outbox.pending == all);
    }
    place.until("the log is as it should be", |place| {
        let bytes = fs::metadata(place.daemon.path("state/outbox.db-wal")).map_or(0, |file| file.len());
        match log {
            Log::Empty => bytes == 0,
            Log::Long => bytes > 3 << 20,
        }
    });
    place.receiver.set_faults(Faults { latency_ms: 100, ..Faults::default() });
    place.daemon.signal(nix::sys::signal::Signal::SIGHUP);
    place.until("a request is out", |place| place.receiver.stats().requests > 0);
    mount.fill();
    all
}

/// What the mapping in force makes nothing of is settled when there is room, and the sender hears a stop until then.
pub fn unsent(_: &Scale) -> Played {
    let mut place = Place::new(OFFLINE);
    let state = place.daemon.path("state");
    skipped(Mount::tmpfs(&state, "size=16m"), |mount| {
        with_pending(&mut place, 100);
        let outbox = rusqlite::Connection::open(place.daemon.outbox()).unwrap();
        outbox
            .execute("UPDATE pending SET body = replace(body, 'Signed Up', '') WHERE seq % 2 = 0", [])
            .unwrap();
        drop(outbox);
        place.daemon.start();
        runs_again(&mut place);
        fs::remove_file(state.join("outbox.db.ballast")).unwrap();
        mount.fill();
        online(&place);
        place.until("it cannot settle", |place| place.daemon.log().contains("nothing more is sent"));
        let began = Instant::now();
        place.daemon.stop();
        assert!(began.elapsed() < Duration::from_secs(9), "the sender did not hear the stop");
        assert!(!place.daemon.log().contains("did not answer in time"), "{}", place.daemon.log());
        mount.relieve();
        place.daemon.start();
        place.until_status("all is settled", |s| s.outbox.pending == 0);
        place.daemon.stop();
        place.balance()
    })
}
