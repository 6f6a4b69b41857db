//! Files that the agent may not read.

use super::{as_nobody, give_to_nobody};
use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const FILES: u64 = 3;

/// Unreadable files are left, counted, and logged once an hour of the test's clock; after a chmod they are ingested.
pub fn for_hours(scale: &Scale) -> Outcome {
    let hours = scale.of(3, 48);
    let mut agent = TestAgent::driven(Faults::default());
    agent.set("spool.scan_interval = \"100ms\"");
    if let Err(why) = as_nobody(&mut agent) {
        return Outcome::Skipped(why);
    }
    agent.start();
    for n in 0..FILES {
        let unreadable = agent.path(&format!("private-{n}.json"));
        fs::write(&unreadable, track(&format!("m-{n}"), "ana@acme.dev")).unwrap();
        fs::set_permissions(&unreadable, Permissions::from_mode(0o000)).unwrap();
        give_to_nobody(&unreadable);
        fs::rename(&unreadable, in_spool(&agent, n)).unwrap();
    }
    agent.drop_track("public", "ana@acme.dev");
    agent.until_held(1);
    agent.until_status("they are counted", |status| status.spool.unreadable_files == Some(FILES));
    let logged = |agent: &TestAgent| agent.log_lines_with(&["cannot be read", "chmod g+r"]);
    for hour in 1..=hours {
        agent.pass(Duration::from_secs(59 * 60), Duration::from_secs(60));
        let scanned = agent.status().spool.scanned_at;
        agent.pass(Duration::from_secs(2), Duration::from_secs(1));
        agent.until_status("the spool is scanned again", |status| status.spool.scanned_at > scanned);
        assert_eq!(logged(&agent), FILES as usize * hour, "in hour {hour}");
        agent.pass(Duration::from_secs(60), Duration::from_secs(1));
        let again = FILES as usize * (hour + 1);
        agent.until("they are logged again", |agent| logged(agent) == again);
    }
    for n in 0..FILES {
        fs::set_permissions(in_spool(&agent, n), Permissions::from_mode(0o640)).unwrap();
    }
    agent.until_held(1 + FILES as usize);
    agent.until_status("none is counted any more", |status| status.spool.unreadable_files == Some(0));
    let held = agent.receiver.events().len() as u64;
    let stats = agent.receiver.stats();
    agent.stop();
    let figures = Figures {
        rounds: 1,
        events: FILES + 1,
        lost: FILES + 1 - held,
        repeated: stats.repeats,
        doubled: stats.events - held,
        ..Figures::default()
    };
    figures.note(format!("{hours} hours of a test's clock")).into()
}

fn in_spool(agent: &TestAgent, n: u64) -> std::path::PathBuf {
    agent.spool().join(format!("private-{n}.json"))
}
