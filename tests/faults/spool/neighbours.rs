//! One owner's files beside another's.

use super::{NOBODY, brisk};
use crate::common::events::gzip;
use crate::machine::needs_root;
use crate::runner::{Outcome, Scale};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The agent's memory, whatever stands in the files.
const MEMORY: u64 = 150 << 20;

fn of_nobody(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// One owner drops the worst it can think of, the other an event now and then: each of those arrives while files of the
/// first still wait, and the log names a few of each kind.
pub fn crowded(scale: &Scale) -> Outcome {
    if let Err(why) = needs_root() {
        return Outcome::Skipped(why);
    }
    let mut agent = brisk();
    agent.set("spool.settle = \"1s\"");
    let spool = agent.spool();
    let files = scale.of(10_000, 100_000);
    for n in 0..files {
        let path = spool.join(format!("a-{n:06}.json"));
        let event = agent.ledger.event(1 + n % 50);
        fs::write(&path, event).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1 + n)).unwrap();
        of_nobody(&path);
    }
    let blanks = spool.join("blanks.jsonl.gz");
    fs::write(&blanks, gzip("\n".repeat(64 << 20))).unwrap();
    of_nobody(&blanks);
    let unfinished: Vec<File> = (0..200)
        .map(|n| {
            let path = spool.join(format!("open-{n}.jsonl"));
            let mut file = File::create(&path).unwrap();
            file.write_all(b"{\"type\":").unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            of_nobody(&path);
            file
        })
        .collect();
    for n in 0..50 {
        let path = spool.join(format!("name-{n}.part"));
        fs::write(&path, "").unwrap();
        of_nobody(&path);
    }
    agent.start_and_wait();
    let mut in_time = 0;
    for n in 0..10 {
        let id = format!("trickle-{n}");
        let event = agent.ledger.event_with(0, &id, "");
        agent.drop_next("json", event);
        agent.until("the other's event arrives", |agent| {
            let held = agent.receiver.events();
            held.iter().any(|held| *held.message_id == *id)
        });
        let waiting =
            agent.status().spool.owners.iter().find(|owner| owner.uid == NOBODY).map(|o| o.waiting_files);
        in_time += u32::from(waiting.is_some_and(|files| files > 250));
    }
    let memory = agent.process().peak_memory();
    assert!(memory < MEMORY, "{} MiB", memory >> 20);
    drop(unfinished);
    agent.until("names are logged", |agent| agent.log_lines_with(&["its name says no format"]) >= 10);
    let names = agent.log_lines_with(&["its name says no format"]);
    assert!(names <= 12, "{names} lines of one kind");
    agent.until_status("all is taken but what is no event", |status| {
        status.spool.waiting_files == Some(0) && status.outbox.pending == 0
    });
    agent.stop();
    let note = format!("{in_time} of 10 arrived while the other's files waited, {} MiB", memory >> 20);
    assert!(in_time > 0, "{note}");
    for n in 0..200 {
        let _ = fs::remove_file(spool.join(format!("rejected/open-{n}.1.jsonl")));
        let _ = fs::remove_file(spool.join(format!("rejected/open-{n}.1.jsonl.why")));
    }
    agent.balance().note(note).into()
}
