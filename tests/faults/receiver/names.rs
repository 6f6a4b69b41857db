//! A name that is lost, an address that moves: names from a file that only this fault's threads see.

use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::Backoff;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The one name that the receiver answers to; the test decides in a hosts file of its own what it means.
const NAME: &str = "localhost";
const SECOND: Duration = Duration::from_secs(1);
/// An address that has moved is found within this.
const WITHIN: Duration = Duration::from_secs(300);

pub fn moving(scale: &Scale) -> Outcome {
    // The mounts of this thread, and of those that it starts, are its own.
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let hosts = tempfile::NamedTempFile::new().unwrap();
                match own_hosts(hosts.path()) {
                    Err(why) => Outcome::Skipped(format!("no mounts of its own: {why}")),
                    Ok(()) => follow(scale, hosts.path()).into(),
                }
            })
            .join()
    });
    result.unwrap_or_else(|why| std::panic::resume_unwind(why))
}

/// Lets this thread read that file for `/etc/hosts` from now on.
fn own_hosts(hosts: &Path) -> nix::Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    mount(Some(hosts), "/etc/hosts", NOTHING, MsFlags::MS_BIND, NOTHING)
}

fn follow(scale: &Scale, hosts: &Path) -> Figures {
    let mut agent = TestAgent::seeded(scale.seed, Faults::default());
    let here = agent.receiver.addr();
    let there = agent.another_receiver(format!("127.0.0.2:{}", here.port()).parse().unwrap());
    agent.set(&format!("koala.endpoint = \"http://{NAME}:{}\"", here.port()));
    agent.set("koala.allow_plain_http = true");

    fs::write(hosts, format!("127.0.0.1 {NAME}\n")).unwrap();
    agent.start();
    agent.until_stored();
    event_every_ten_seconds(&mut agent, WITHIN, |agent| agent.receiver.stats().held >= 3);

    // The old address goes on answering, and the connection to it is kept busy.
    fs::write(hosts, format!("127.0.0.2 {NAME}\n")).unwrap();
    let moved = event_every_ten_seconds(&mut agent, WITHIN, |_| there.stats().held > 0);

    fs::write(hosts, "").unwrap();
    let lost =
        event_every_ten_seconds(&mut agent, WITHIN, |agent| agent.status().destination.state == Backoff);
    assert_eq!(agent.status().destination.reason.unwrap().code, Code::Dns);
    agent.pass_by_attempts(2 * WITHIN);
    assert_eq!(agent.status().outbox.failed, 0);
    fs::write(hosts, format!("127.0.0.1 {NAME}\n")).unwrap();
    agent.pass_by_attempts_until(WITHIN, "all delivered", |agent| agent.status().outbox.pending == 0);

    let figures = agent.end_settled_beside(there.events());
    figures.note(format!("moved within {} s, missed within {} s", moved.as_secs(), lost.as_secs()))
}

/// Drops an event every ten seconds until a fact holds, at most so long; how long it was.
fn event_every_ten_seconds(
    agent: &mut TestAgent,
    most: Duration,
    holds: impl Fn(&TestAgent) -> bool,
) -> Duration {
    let mut passed = Duration::ZERO;
    while !holds(agent) {
        assert!(passed <= most, "not within {most:?}: {:#?}", agent.status().destination);
        let event = agent.ledger.event(1);
        agent.drop_next("ndjson", event);
        agent.until_stored();
        let was_asked = |agent: &mut TestAgent| {
            let status = agent.status();
            status.outbox.pending == 0 || status.destination.state == Backoff
        };
        agent.until("it was asked", was_asked);
        agent.pass(10 * SECOND, 10 * SECOND);
        passed += 10 * SECOND;
    }
    passed
}
