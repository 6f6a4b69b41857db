//! Files that the agent may not read.

use super::NOBODY;
use crate::common::world::World;
use crate::log;
use crate::stage::{Figures, Played, Scale};
use koala_agent::receiver::Faults;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// For hours of the test's clock: left, counted, said once an hour, and taken after the chmod.
pub fn for_hours(scale: &Scale) -> Played {
    let hours = scale.of(3, 48);
    let play = move || {
        // Of this thread and those that it starts; without root nothing changes.
        setfsgid(Gid::from_raw(NOBODY));
        setfsuid(Uid::from_raw(NOBODY));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(hours_pass(hours))
    };
    match std::thread::spawn(play).join() {
        Ok(figures) => figures.into(),
        Err(why) => std::panic::resume_unwind(why),
    }
}

async fn hours_pass(hours: usize) -> Figures {
    log::keep();
    let mut world = World::manual(Faults::default()).await;
    world.set("spool.scan_interval = \"100ms\"");
    world.start().await;
    let files = 3;
    for n in 0..files {
        let name = format!("private-{n}.json");
        let aside = world.dir.path().join(&name);
        fs::write(&aside, crate::common::world::track(&format!("m-{n}"), "ana@acme.dev")).unwrap();
        fs::set_permissions(&aside, Permissions::from_mode(0o000)).unwrap();
        fs::rename(&aside, world.spool().join(name)).unwrap();
    }
    world.track("public", "ana@acme.dev");
    world.until_held(1).await;
    world.until("they are counted", |w| w.status().spool.unreadable_files == files).await;
    let place = world.spool().display().to_string();
    let said = || log::lines_with(&[&place, "cannot be read", "chmod g+r"]);
    for hour in 1..=hours {
        world.pass(Duration::from_secs(59 * 60), Duration::from_secs(60)).await;
        let looks = world.status().spool.scanned_at;
        world.pass(Duration::from_secs(2), Duration::from_secs(1)).await;
        world.until("it has looked since", |w| w.status().spool.scanned_at > looks).await;
        assert_eq!(said(), files as usize * hour, "in hour {hour}");
        world.pass(Duration::from_secs(60), Duration::from_secs(1)).await;
        let again = files as usize * (hour + 1);
        world.until("it is said again", |_| said() == again).await;
    }
    for n in 0..files {
        fs::set_permissions(world.spool().join(format!("private-{n}.json")), Permissions::from_mode(0o640))
            .unwrap();
    }
    world.until_held(1 + files as usize).await;
    world.until("none is counted any more", |w| w.status().spool.unreadable_files == 0).await;
    let held = world.receiver.events().len() as u64;
    let stats = world.receiver.stats();
    world.stop().await;
    Figures {
        rounds: 1,
        events: files + 1,
        lost: files + 1 - held,
        repeated: stats.repeats,
        doubled: stats.events as u64 - held,
        ..Figures::default()
    }
    .note(format!("{hours} hours of a test's clock"))
}
