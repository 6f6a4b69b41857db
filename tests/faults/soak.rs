//! Load and trouble over and over: memory and descriptors stay as they are, and it is the same process to the end.

use super::place::Place;
use super::stage::{Played, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;

/// Cycles after which everything has its size: caches, pools, the allocator's own.
const WARM_UP: u64 = 4;
/// What an allocator may still take of its own accord.
const MORE_MEMORY: u64 = 8 << 20;
/// Connections that are kept for the next request, more or less.
const MORE_DESCRIPTORS: usize = 4;

pub fn nothing_grows(scale: &Scale) -> Played {
    let cycles = scale.of(8, 300);
    let mut place = Place::new(Faults::default());
    place.daemon.set("koala.concurrency = 2");
    place.daemon.start();
    place.until_status("it runs", |status| status.agent.running);
    let (mut warm, mut most) = ((0, 0), (0, 0));
    for cycle in 0..WARM_UP + cycles {
        trouble(&mut place, cycle);
        let (rss, fds) = (place.daemon.resident_memory(), place.daemon.descriptors());
        assert!(rss > 0 && fds > 0, "the system does not tell");
        match cycle < WARM_UP {
            true => (warm.0, warm.1) = (warm.0.max(rss), warm.1.max(fds)),
            false => (most.0, most.1) = (most.0.max(rss), most.1.max(fds)),
        }
    }
    assert_eq!(place.daemon.ended(), None, "it ended:\n{}", place.daemon.log());
    let said = format!(
        "{} MiB and {} descriptors after {WARM_UP} cycles, {} MiB and {} at most in {cycles} more",
        warm.0 >> 20,
        warm.1,
        most.0 >> 20,
        most.1
    );
    assert!(most.0 <= warm.0 + MORE_MEMORY, "{said}");
    assert!(most.1 <= warm.1 + MORE_DESCRIPTORS, "{said}");
    let mut figures = place.end();
    figures.rounds = cycles;
    figures.note(said).into()
}

/// One trouble of each kind under load, and then everything delivered.
fn trouble(place: &mut Place, cycle: u64) {
    for faults in [
        Faults { offline: true, ..Faults::default() },
        Faults { status: Some(503), ..Faults::default() },
        Faults { html: true, ..Faults::default() },
        Faults { fail_share: 0.2, drop_after_accept: 0.1, latency_ms: 5, ..Faults::default() },
    ] {
        place.receiver.set_faults(faults);
        place.drop_events(60, 20);
        place.drop_lines(60, 20);
        place.drop_file("json", b"{]");
        place.drop_file("json.gz", b"no gzip");
        let asked = place.receiver.stats().requests;
        place.daemon.signal(Signal::SIGHUP);
        place.until("the receiver was asked", |place| place.receiver.stats().requests > asked);
    }
    place.receiver.set_faults(Faults::default());
    place.daemon.signal(Signal::SIGHUP);
    let aside = (cycle + 1) * 8;
    place.until_delivered();
    place.until_status("the bad ones are set aside, the good ones marked", |status| {
        status.spool.rejected_files == aside && status.outbox.pending == 0
    });
}
