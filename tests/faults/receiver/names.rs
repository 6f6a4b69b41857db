//! A name that is lost, an address that moves: names from a file that only this fault's threads see.

use crate::common::world::World;
use crate::hours::{Hours, play};
use crate::stage::{Figures, Played, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::{Faults, Options, Receiver};
use koala_agent::status::DestinationState::Backoff;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;
use std::time::Duration;

const NAME: &str = "koala.test";
const SECOND: Duration = Duration::from_secs(1);
/// An address that has moved is found within this.
const WITHIN: Duration = Duration::from_secs(300);

pub fn moving(scale: &Scale) -> Played {
    // The mounts of this thread, and of those that it starts, are its own.
    let played = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let hosts = tempfile::NamedTempFile::new().unwrap();
                match own_hosts(hosts.path()) {
                    Err(why) => Played::Skipped(format!("no mounts of its own: {why}")),
                    Ok(()) => play(scale, follow(hosts.path())).into(),
                }
            })
            .join()
    });
    played.unwrap_or_else(|why| std::panic::resume_unwind(why))
}

/// From now on this thread reads that file where it asks for `/etc/hosts`.
fn own_hosts(hosts: &Path) -> nix::Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    mount(Some(hosts), "/etc/hosts", NOTHING, MsFlags::MS_BIND, NOTHING)
}

async fn follow(hosts: &Path) -> Figures {
    let mut hours = Hours::new(Faults::default()).await;
    let here = hours.world.receiver.addr();
    let options = Options { faults: Faults::default(), seed: Some(1), ..Options::default() };
    let there =
        Receiver::start(format!("127.0.0.2:{}", here.port()).parse().unwrap(), options).await.unwrap();
    hours.world.endpoint = format!("http://{NAME}:{}", here.port());
    hours.world.set("koala.allow_plain_http = true");

    fs::write(hosts, format!("127.0.0.1 {NAME}\n")).unwrap();
    hours.start().await;
    event_every_ten_seconds(&mut hours, WITHIN, |w| w.receiver.stats().held >= 3).await;

    // The old address goes on answering, and the connection to it is kept busy.
    fs::write(hosts, format!("127.0.0.2 {NAME}\n")).unwrap();
    let moved = event_every_ten_seconds(&mut hours, WITHIN, |_| there.stats().held > 0).await;

    fs::write(hosts, "").unwrap();
    let lost = event_every_ten_seconds(&mut hours, WITHIN, |w| w.status().destination.state == Backoff).await;
    assert_eq!(hours.world.status().destination.reason.unwrap().code, Code::Dns);
    hours.attempts(2 * WITHIN).await;
    assert_eq!(hours.world.status().outbox.failed, 0);
    fs::write(hosts, format!("127.0.0.1 {NAME}\n")).unwrap();
    hours.drive(WITHIN, "all delivered", |w| w.status().outbox.pending == 0).await;

    let figures = hours.end_beside(there.events()).await;
    figures.note(format!("moved within {} s, missed within {} s", moved.as_secs(), lost.as_secs()))
}

/// Drops an event every ten seconds until a fact holds, at most so long; how long it was.
async fn event_every_ten_seconds(
    hours: &mut Hours,
    most: Duration,
    holds: impl Fn(&World) -> bool,
) -> Duration {
    let mut passed = Duration::ZERO;
    while !holds(&hours.world) {
        assert!(passed <= most, "not within {most:?}: {:#?}", hours.world.status().destination);
        let event = hours.books.event(1);
        hours.drop_text(&event);
        hours.stored().await;
        let was_asked = |w: &World| {
            let status = w.status();
            status.outbox.pending == 0 || status.destination.state == Backoff
        };
        hours.world.until("it was asked", was_asked).await;
        hours.world.pass(10 * SECOND, 10 * SECOND).await;
        passed += 10 * SECOND;
    }
    passed
}
