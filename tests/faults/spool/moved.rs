//! The spool folder itself goes, and comes again.

use super::brisk;
use crate::common::agent::TestAgent;
use crate::runner::{Outcome, Scale};
use koala_agent::status::IntakeState;
use std::fs;

const UNFINISHED: usize = 500;

/// Moved away with files in it, made again, used, and its files brought back: each event once.
pub fn moved(_: &Scale) -> Outcome {
    let mut agent = brisk();
    agent.start();
    agent.drop_events(20, 5);
    agent.until_delivered();
    let (spool, away) = (agent.spool(), agent.path("away"));
    fs::rename(&spool, &away).unwrap();
    // Nobody is blocked who has not looked: the next folder may be there before that.
    fs::create_dir(&spool).unwrap();
    agent.drop_events(20, 5);
    agent.until_delivered();
    fs::rename(&spool, agent.path("second")).unwrap();
    blocked(&mut agent);
    fs::rename(&away, &spool).unwrap();
    agent.drop_events(20, 5);
    agent.until_delivered();
    agent.until_status("files are taken", |status| status.intake.state == IntakeState::Open);
    assert_eq!(agent.log_lines_with(&["is another folder than before"]), 2);
    agent.end().into()
}

/// Deleted with all that is in it, its own folders too, and made again.
pub fn deleted(_: &Scale) -> Outcome {
    let mut agent = brisk();
    agent.start();
    for whole in [true, false, true] {
        agent.drop_events(20, 5);
        agent.until_delivered();
        agent.until_status("all is gone", |status| status.spool.waiting_files == Some(0));
        let spool = agent.spool();
        if whole {
            // Files that are not finished: with them it takes longer to delete than the agent to notice it.
            for i in 0..UNFINISHED {
                fs::write(spool.join(format!(".{i}.tmp")), b"{").unwrap();
            }
            fs::remove_dir_all(&spool).unwrap();
            blocked(&mut agent);
            fs::create_dir(&spool).unwrap();
        } else {
            fs::remove_dir_all(spool.join(".removing")).unwrap();
            fs::remove_dir_all(spool.join("rejected")).unwrap();
        }
        agent.drop_file("bad.json", b"{bad");
        agent.until_status("the bad one is rejected", |status| status.spool.rejected_files == Some(1));
    }
    agent.end().into()
}

/// Waits until the agent has said that the folder is missing; it goes on living.
fn blocked(agent: &mut TestAgent) {
    agent.until_status("the folder is missed", |status| {
        let reason = status.intake.reason.as_ref();
        status.intake.state == IntakeState::Blocked
            && reason.is_some_and(|reason| reason.text.contains("there is no spool folder"))
    });
}
