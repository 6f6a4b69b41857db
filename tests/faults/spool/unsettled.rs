//! Files that change while they are taken.

use super::{brisk, held, rejected};
use crate::common::agent::TestAgent;
use crate::common::ledger::{Expected, Ledger};
use crate::runner::{Figures, Outcome, Scale};
use flate2::{Compression, write::GzEncoder};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

fn millis(rng: &mut fastrand::Rng, range: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(rng.u64(range)));
}

/// The next event, of one person and without a messageId, so that no double hides behind one. Its text is long, and
/// its number is all over it: a torn one shows.
fn unmistakable(ledger: &mut Ledger) -> String {
    let n = ledger.enter(0, None, Expected::Delivered);
    let filler = filler(n);
    format!(
        r#"{{"type":"track","event":"Signed Up","properties":{{"n":{n},"email":"ana@acme.dev","filler":"{filler}"}}}}"#
    )
}

fn filler(n: u64) -> String {
    format!("{n}-").repeat(500)
}

fn lines(ledger: &mut Ledger, events: u64) -> String {
    (0..events).map(|_| unmistakable(ledger) + "\n").collect()
}

/// Asserts that each event has arrived whole and at most once, forgets those that only these numbers tell of, and
/// balances the ledger.
fn ended(mut agent: TestAgent, gone: &HashSet<u64>) -> Figures {
    agent.until_status("all is taken and acknowledged", |status| {
        status.spool.waiting_files == Some(0) && status.outbox.pending == 0
    });
    agent.stop();
    let mut arrived = HashSet::new();
    for properties in held(&agent) {
        let n = properties["n"].as_u64().unwrap();
        assert_eq!(properties["filler"], Value::from(filler(n)), "event {n} is torn");
        assert!(arrived.insert(n), "event {n} came twice");
    }
    agent.ledger.dropped.retain(|n, _| arrived.contains(n) || !gone.contains(n));
    agent.balance()
}

/// Every form of file, written a byte at a time, with pauses in which it looks finished.
pub fn in_place(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut agent = brisk();
    agent.set("spool.incomplete_after = \"30s\"");
    agent.start();
    for _ in 0..scale.of(1, 10) {
        let mut packed = GzEncoder::new(Vec::new(), Compression::none());
        packed.write_all(lines(&mut agent.ledger, 2).as_bytes()).unwrap();
        let texts = [
            ("b.json", unmistakable(&mut agent.ledger).into_bytes()),
            ("c.json", format!("[{}]", unmistakable(&mut agent.ledger)).into_bytes()),
            ("d.jsonl", lines(&mut agent.ledger, 2).into_bytes()),
            ("e.ndjson", lines(&mut agent.ledger, 2).trim_end().as_bytes().to_vec()),
            ("a.ndjson.gz", packed.finish().unwrap()),
        ];
        std::thread::scope(|scope| {
            for (name, text) in texts {
                let (path, mut rng) = (agent.spool().join(name), rng.fork());
                scope.spawn(move || {
                    let mut file = File::create(path).unwrap();
                    // At the end of a line it is whole: nobody could know that more is to come.
                    let is_whole = |at: usize| text[at..].iter().take(2).any(|byte| *byte == b'\n');
                    let pauses = (0..4).map(|_| rng.usize(..text.len())).filter(|at| !is_whole(*at));
                    let pauses: HashSet<usize> = pauses.collect();
                    for (at, byte) in text.iter().enumerate() {
                        file.write_all(&[*byte]).unwrap();
                        if pauses.contains(&at) {
                            std::thread::sleep(Duration::from_millis(700));
                        } else if at % 100 == 0 {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                });
            }
        });
        agent.until_delivered();
    }
    // Files of one round are written side by side, so their events come in any order.
    let numbers = agent.ledger.dropped.values_mut().zip(0..);
    numbers.for_each(|(dropped, n): (_, u64)| dropped.person = n.to_string());
    let figures = ended(agent, &HashSet::new());
    figures.into()
}

/// A producer that always uses the same name, and half of the time learns which version it has overwritten.
pub fn renamed(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut agent = brisk();
    agent.start();
    let spool = agent.spool();
    let (name, aside) = (spool.join("day.json"), spool.join(".day"));
    let mut overwritten = HashSet::new();
    // The times of files of one tick are the same, and then their names would tell their order.
    let began = SystemTime::now();
    let versions: u64 = scale.of(1_000, 10_000);
    for n in 0..versions {
        let mut file = File::create(&aside).unwrap();
        file.write_all(unmistakable(&mut agent.ledger).as_bytes()).unwrap();
        file.set_modified(began + Duration::from_micros(n)).unwrap();
        drop(file);
        if rng.bool() {
            fs::rename(&aside, &name).unwrap();
            // Whether the one before was still there, nobody knows.
            overwritten.extend(n.checked_sub(1));
        } else {
            overwritten.extend(exchange(&aside, &name));
        }
        match rng.u8(..3) {
            0 => millis(&mut rng, 0..3),
            1 => millis(&mut rng, 5..40),
            _ => {}
        }
    }
    let figures = ended(agent, &overwritten);
    let taken = figures.events;
    assert!(taken > versions / 50, "only {taken} of {versions} versions were taken");
    figures.note(format!("{versions} versions, the others overwritten by their producer")).into()
}

/// Gives the file that name. Returns the number of the version that had it.
fn exchange(aside: &Path, name: &Path) -> Option<u64> {
    let rename = |flags| renameat2(AT_FDCWD, aside, AT_FDCWD, name, flags);
    loop {
        if rename(RenameFlags::RENAME_EXCHANGE).is_ok() {
            let before: Value = serde_json::from_slice(&fs::read(aside).unwrap()).unwrap();
            return before["properties"]["n"].as_u64();
        }
        // The agent has just taken the name away, or just now put a file back.
        if rename(RenameFlags::RENAME_NOREPLACE).is_ok() {
            return None;
        }
    }
}

/// Files that are deleted, cut, or rewritten in place while the agent may be reading them.
pub fn changed(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut agent = brisk();
    agent.start();
    let mut given_up = HashSet::new();
    let rounds = scale.of(150, 2_000);
    for round in 0..rounds {
        let path = agent.spool().join(format!("{round:06}.jsonl"));
        let before = agent.ledger.dropped.len() as u64;
        let text = lines(&mut agent.ledger, 20);
        agent.drop_file(path.file_name().unwrap(), text.as_bytes());
        let numbers = before..agent.ledger.dropped.len() as u64;
        millis(&mut rng, 0..30);
        let done = match rng.u8(..4) {
            0 => fs::remove_file(&path),
            1 => File::options().write(true).open(&path).and_then(|file| file.set_len(text.len() as u64 / 2)),
            2 => {
                let lines = rng.u64(1..40);
                let again = lines_of_new_people(&mut agent.ledger, lines);
                File::options()
                    .write(true)
                    .truncate(true)
                    .open(&path)
                    .and_then(|mut file| file.write_all(again.as_bytes()))
                    // Taken before: then this is a file of its own.
                    .or_else(|_| fs::write(&path, again))
            }
            _ => continue,
        };
        // An error says that it was taken before: then all of it must be there.
        if done.is_ok() {
            given_up.extend(numbers);
        }
    }
    let torn = rejected(&agent).len();
    ended(agent, &given_up).note(format!("{rounds} files, {torn} torn lines rejected")).into()
}

/// Events whose order beside those of the same file is nobody's concern.
fn lines_of_new_people(ledger: &mut Ledger, events: u64) -> String {
    let before = ledger.dropped.len() as u64;
    let text = lines(ledger, events);
    for (n, dropped) in ledger.dropped.range_mut(before..) {
        dropped.person = (1 + n).to_string();
    }
    text
}

/// Files that were taken to the middle of their last line, and then begun again: shorter, longer, and twice.
pub fn begun_anew(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut agent = brisk();
    agent.set("spool.incomplete_after = \"60s\"");
    agent.start();
    let rounds = scale.of(4, 40);
    for round in 0..rounds {
        let path = agent.spool().join(format!("{round:06}.jsonl"));
        for events in [5, 3, 12, 7 + rng.u64(..10)] {
            let text = lines(&mut agent.ledger, events) + "{\"type\":";
            fs::write(&path, text).unwrap();
            agent.until_delivered();
            if rng.bool() {
                agent.kill();
                agent.start();
            }
        }
        fs::write(&path, lines(&mut agent.ledger, 2)).unwrap();
        agent.until_delivered();
    }
    ended(agent, &HashSet::new()).into()
}
