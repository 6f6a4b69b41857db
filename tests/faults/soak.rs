//! Load and trouble over and over: memory and descriptors stay as they are, and it is the same process to the end.

use crate::common::agent::TestAgent;
use crate::runner::{Outcome, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;

/// Cycles after which everything has its size: caches, pools, the allocator's own.
const WARM_UP: u64 = 4;
/// The memory that an allocator may still take of its own accord.
const MORE_MEMORY: u64 = 8 << 20;
/// Connections that are kept for the next request, more or less.
const MORE_DESCRIPTORS: usize = 4;

pub fn nothing_grows(scale: &Scale) -> Outcome {
    let cycles = scale.of(8, 300);
    let mut agent = TestAgent::program(Faults::default());
    agent.set("koala.concurrency = 2");
    agent.start();
    agent.until_status("it runs", |status| status.agent.running);
    let (mut warm, mut most) = ((0, 0), (0, 0));
    for cycle in 0..WARM_UP + cycles {
        trouble(&mut agent, cycle);
        let (rss, fds) = (agent.process().resident_memory(), agent.process().descriptors());
        assert!(rss > 0 && fds > 0, "the system does not tell");
        match cycle < WARM_UP {
            true => (warm.0, warm.1) = (warm.0.max(rss), warm.1.max(fds)),
            false => (most.0, most.1) = (most.0.max(rss), most.1.max(fds)),
        }
    }
    assert_eq!(agent.exit_status(), None, "it ended:\n{}", agent.log());
    let said = format!(
        "{} MiB and {} descriptors after {WARM_UP} cycles, {} MiB and {} at most in {cycles} more",
        warm.0 >> 20,
        warm.1,
        most.0 >> 20,
        most.1
    );
    assert!(most.0 <= warm.0 + MORE_MEMORY, "{said}");
    assert!(most.1 <= warm.1 + MORE_DESCRIPTORS, "{said}");
    let mut figures = agent.end();
    figures.rounds = cycles;
    figures.note(said).into()
}

/// One trouble of each kind under load, and then everything delivered.
fn trouble(agent: &mut TestAgent, cycle: u64) {
    for faults in [
        Faults { offline: true, ..Faults::default() },
        Faults { status: Some(503), ..Faults::default() },
        Faults { html: true, ..Faults::default() },
        Faults { fail_share: 0.2, drop_after_accept: 0.1, latency_ms: 5, ..Faults::default() },
    ] {
        agent.receiver.set_faults(faults);
        agent.drop_events(60, 20);
        agent.drop_lines(60, 20);
        agent.drop_next("json", b"{]");
        agent.drop_next("json.gz", b"no gzip");
        let asked = agent.receiver.stats().requests;
        agent.signal(Signal::SIGHUP);
        agent.until("the receiver was asked", |agent| agent.receiver.stats().requests > asked);
    }
    agent.receiver.set_faults(Faults::default());
    agent.signal(Signal::SIGHUP);
    let aside = (cycle + 1) * 8;
    agent.until_delivered();
    agent.until_status("the bad ones are rejected, the good ones acknowledged", |status| {
        status.spool.rejected_files == Some(aside) && status.outbox.pending == 0
    });
}
