//! Programs that write as they have something to say, under the name that the agent takes files by.

use super::{NOBODY, brisk};
use crate::common::agent::TestAgent;
use crate::common::events::gzip;
use crate::machine::{needs, needs_root};
use crate::runner::{Outcome, Scale};
use koala_agent::receiver::Faults;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::chown;
use std::time::Duration;

/// Long enough for the agent to look at a file several times.
const PAUSE: Duration = Duration::from_secs(2);

/// Writers that pause between lines, within a line, and between packed members, one of them from before the agent's start.
pub fn pausing(_: &Scale) -> Outcome {
    let mut agent = brisk();
    agent.set("spool.incomplete_after = \"100ms\"");
    let mut writers = Vec::new();
    let names = ["before.jsonl", "lines.jsonl", "half.jsonl", "members.jsonl.gz", "lines.ndjson", "one.json"];
    // Each is of a person of its own: files that are open at once have no order.
    for (person, name) in (0..).zip(names) {
        if writers.len() == 1 {
            agent.start();
        }
        let parts = match name {
            "half.jsonl" | "one.json" => {
                let event = agent.ledger.event(person);
                let (half, rest) = event.split_at(event.len() / 2);
                vec![half.as_bytes().to_vec(), rest.as_bytes().to_vec()]
            }
            "members.jsonl.gz" => (0..2).map(|_| gzip(agent.ledger.event(person) + "\n")).collect(),
            _ => (0..3).map(|_| (agent.ledger.event(person) + "\n").into_bytes()).collect::<Vec<_>>(),
        };
        let mut file = File::create(agent.spool().join(name)).unwrap();
        file.write_all(&parts[0]).unwrap();
        writers.push((file, parts));
    }
    for part in 1..3 {
        std::thread::sleep(PAUSE);
        assert_eq!(agent.receiver.stats().held, 0, "a file was taken that is open");
        for (file, parts) in &mut writers {
            if let Some(part) = parts.get(part) {
                file.write_all(part).unwrap();
            }
        }
    }
    drop(writers);
    agent.end().into()
}

/// Where the agent may not ask whether another user's file is open: what is written later is ingested all the same, and
/// the file goes when it has been still for ten minutes, also over a restart.
pub fn without_leases(_: &Scale) -> Outcome {
    if let Err(why) = needs_root().and_then(|()| needs("setpriv")) {
        return Outcome::Skipped(why);
    }
    let mut agent = TestAgent::driven(Faults::default());
    agent.set("spool.scan_interval = \"100ms\"");
    agent.set("spool.settle = \"100ms\"");
    agent.run_under(["setpriv", "--bounding-set=-lease"]);
    agent.start();
    let path = agent.spool().join("up.jsonl");
    let mut file = File::create(&path).unwrap();
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    let kept = agent.spool().join(".removing/up.jsonl");
    for round in 1..=4 {
        let event = agent.ledger.event(0) + "\n";
        file.write_all(event.as_bytes()).unwrap();
        agent.until("what was written is ingested, and the file is kept", |agent| {
            agent.advance(Duration::from_millis(500));
            agent.receiver.stats().held == round && kept.exists() && !path.exists()
        });
        if round == 2 {
            agent.stop();
            agent.start();
        }
    }
    drop(file);
    agent.advance(Duration::from_secs(500));
    std::thread::sleep(PAUSE);
    assert!(kept.exists(), "it went too early");
    agent.until("it is gone", |agent| {
        agent.advance(Duration::from_secs(5));
        !kept.exists()
    });
    assert!(!path.exists() && fs::read_dir(agent.spool().join("rejected")).unwrap().next().is_none());
    agent.stop();
    agent.balance().into()
}
