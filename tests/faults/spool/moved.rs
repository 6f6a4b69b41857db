//! The spool folder itself goes, and comes again.

use super::{brisk, lines_with};
use crate::place::Place;
use crate::stage::{Played, Scale};
use koala_agent::status::IntakeState;
use std::fs;

const UNFINISHED: usize = 500;

/// Moved away with files in it, made again, used, and its files brought back: each event once.
pub fn moved(_: &Scale) -> Played {
    let mut place = brisk();
    place.daemon.start();
    place.drop_events(20, 5);
    place.until_delivered();
    let (spool, away) = (place.daemon.spool(), place.daemon.path("away"));
    fs::rename(&spool, &away).unwrap();
    // Nobody is blocked who has not looked: the next folder may be there before that.
    fs::create_dir(&spool).unwrap();
    place.drop_events(20, 5);
    place.until_delivered();
    fs::rename(&spool, place.daemon.path("second")).unwrap();
    blocked(&mut place);
    fs::rename(&away, &spool).unwrap();
    place.drop_events(20, 5);
    place.until_delivered();
    place.until_status("files are taken", |status| status.intake.state == IntakeState::Open);
    assert_eq!(lines_with(&place, "is another folder than before"), 2);
    place.end().into()
}

/// Deleted with all that is in it, its own folders too, and made again.
pub fn deleted(_: &Scale) -> Played {
    let mut place = brisk();
    place.daemon.start();
    for whole in [true, false, true] {
        place.drop_events(20, 5);
        place.until_delivered();
        place.until_status("all is gone", |status| status.spool.waiting_files == 0);
        let spool = place.daemon.spool();
        if whole {
            // Files that are not finished: with them it takes longer to delete than the agent to notice it.
            for i in 0..UNFINISHED {
                fs::write(spool.join(format!(".{i}.tmp")), b"{").unwrap();
            }
            fs::remove_dir_all(&spool).unwrap();
            blocked(&mut place);
            fs::create_dir(&spool).unwrap();
        } else {
            fs::remove_dir_all(spool.join(".removing")).unwrap();
            fs::remove_dir_all(spool.join("rejected")).unwrap();
        }
        place.drop_as("bad.json", b"{bad");
        place.until_status("the bad one is set aside", |status| status.spool.rejected_files == 1);
    }
    place.end().into()
}

/// Waits until the agent has said that the folder is missing; it goes on living.
fn blocked(place: &mut Place) {
    place.until_status("the folder is missed", |status| {
        let reason = status.intake.reason.as_ref();
        status.intake.state == IntakeState::Blocked
            && reason.is_some_and(|reason| reason.text.contains("there is no spool folder"))
    });
}
