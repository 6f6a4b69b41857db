//! Programs that write files as their authors thought best: under names of their own, with room allocated before, padded,
//! by several processes. Each line is taken once.

use super::brisk;
use crate::common::agent::TestAgent;
use crate::common::events::gzip;
use crate::machine::{needs, run};
use crate::runner::{Figures, Outcome, Scale};
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Longer than the agent waits for any reason here, and than it waits for an incomplete document.
const PAUSE: Duration = Duration::from_millis(1_500);
/// The events of one writer.
const EVENTS: usize = 6;

/// Puts these events into the spool; `beside` is a folder of the same file system.
type Writer = fn(spool: &Path, beside: &Path, events: &[String]);

const WRITERS: [Writer; 13] = [
    allocated,
    lengthened,
    renamed_late,
    named_by_mktemp,
    hidden_by_case,
    by_several,
    zeros_behind_packed,
    text_behind_packed,
    in_a_row,
    over_lines,
    as_one_stream,
    private_of_our_own,
    linked_then_unlinked,
];

/// All of these writers at once, each with events of its own.
pub fn writers(scale: &Scale) -> Outcome {
    let mut agent = brisk();
    agent.set("spool.incomplete_after = \"300ms\"");
    agent.start();
    for _ in 0..scale.of(1, 10) {
        let events: Vec<Vec<String>> = (0..WRITERS.len() as u64)
            .map(|person| (0..EVENTS).map(|_| agent.ledger.event(person)).collect())
            .collect();
        let (spool, beside) = (agent.spool(), agent.path("beside"));
        std::thread::scope(|scope| {
            for (write, events) in WRITERS.iter().zip(&events) {
                scope.spawn(|| write(&spool, &beside, events));
            }
        });
        agent.until_delivered();
    }
    // Processes that append to one file, and files that replace each other, keep no order.
    let numbers = agent.ledger.dropped.values_mut().zip(0..);
    numbers.for_each(|(dropped, n): (_, u64)| dropped.person = n.to_string());
    let rejected = super::rejected(&agent);
    assert!(rejected.is_empty(), "{rejected:?}");
    agent.end().into()
}

fn lines(events: &[String]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

/// Room for more than it writes, which stays as zeros at the end.
fn allocated(spool: &Path, _: &Path, events: &[String]) {
    let mut file = File::create(spool.join("allocated.jsonl")).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
    write_slowly(&mut file, events);
}

fn lengthened(spool: &Path, _: &Path, events: &[String]) {
    let mut file = File::create(spool.join("lengthened.ndjson")).unwrap();
    file.set_len(5_000_000).unwrap();
    write_slowly(&mut file, events);
}

fn write_slowly(file: &mut File, events: &[String]) {
    for part in events.chunks(2) {
        file.write_all(lines(part).as_bytes()).unwrap();
        std::thread::sleep(PAUSE);
    }
}

/// WinSCP, browsers and rclone, which rename what has long been whole.
fn renamed_late(spool: &Path, _: &Path, events: &[String]) {
    let endings = [".filepart", ".part", ".partial", ".crdownload", ".H23ad4E1", ".tmp"];
    for (event, ending) in events.iter().zip(endings) {
        fs::write(spool.join(format!("late{ending}.json{ending}")), event).unwrap();
    }
    std::thread::sleep(PAUSE);
    for ending in endings {
        let whole = spool.join(format!("late{ending}.json"));
        fs::rename(spool.join(format!("late{ending}.json{ending}")), whole).unwrap();
    }
}

/// Python's NamedTemporaryFile and mktemp, in the spool itself.
fn named_by_mktemp(spool: &Path, _: &Path, events: &[String]) {
    for (n, event) in events.iter().enumerate() {
        let aside = spool.join(format!("tmp{n}a8x_k2q"));
        fs::write(&aside, event).unwrap();
        fs::set_permissions(&aside, Permissions::from_mode(0o600)).unwrap();
        std::thread::sleep(PAUSE / 4);
        fs::rename(aside, spool.join(format!("python-{n}.json"))).unwrap();
    }
}

fn hidden_by_case(spool: &Path, _: &Path, events: &[String]) {
    for (n, event) in events.iter().enumerate() {
        let aside = spool.join(format!("UP-{n}.JSON.TMP"));
        // Whole only when it is renamed.
        fs::write(&aside, &event[..event.len() / 2]).unwrap();
        std::thread::sleep(PAUSE / 4);
        fs::write(&aside, event).unwrap();
        fs::rename(aside, spool.join(format!("UP-{n}.JSON"))).unwrap();
    }
}

/// Each opens the file for each line, as `echo … >> FILE` does; whoever finds none makes one.
fn by_several(spool: &Path, _: &Path, events: &[String]) {
    let path = spool.join("appended.jsonl");
    std::thread::scope(|scope| {
        for part in events.chunks(2) {
            let path = &path;
            scope.spawn(move || {
                for event in part {
                    let mut file = File::options().append(true).create(true).open(path).unwrap();
                    std::thread::sleep(Duration::from_millis(40));
                    file.write_all(format!("{event}\n").as_bytes()).unwrap();
                    drop(file);
                    std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
                }
            });
        }
    });
}

/// Tapes and block devices pad.
fn zeros_behind_packed(spool: &Path, _: &Path, events: &[String]) {
    let mut file = File::create(spool.join("padded.jsonl.gz")).unwrap();
    file.write_all(&gzip(lines(events))).unwrap();
    std::thread::sleep(PAUSE);
    file.write_all(&[0; 10_240]).unwrap();
}

fn text_behind_packed(spool: &Path, _: &Path, events: &[String]) {
    let mut packed = gzip(lines(events));
    packed.extend(b"signed by nobody");
    fs::write(spool.join("signed.jsonl.gz"), packed).unwrap();
}

/// What Firehose writes.
fn in_a_row(spool: &Path, _: &Path, events: &[String]) {
    fs::write(spool.join("row.jsonl"), events[..3].concat()).unwrap();
    fs::write(spool.join("row.json"), events[3..].join(" ")).unwrap();
}

/// What `jq .` writes.
fn over_lines(spool: &Path, _: &Path, events: &[String]) {
    let pretty = |event: &String| {
        serde_json::to_string_pretty(&serde_json::from_str::<Value>(event).unwrap()).unwrap() + "\n"
    };
    fs::write(spool.join("pretty.jsonl"), events[..3].iter().map(pretty).collect::<String>()).unwrap();
    fs::write(spool.join("pretty.json"), events[3..].iter().map(pretty).collect::<String>()).unwrap();
}

/// An array that is written element by element, and closed at the end.
fn as_one_stream(spool: &Path, _: &Path, events: &[String]) {
    let mut file = File::create(spool.join("stream.json")).unwrap();
    file.write_all(b"[").unwrap();
    for (n, event) in events.iter().enumerate() {
        file.write_all(format!("{}{event}", if n == 0 { "" } else { ",\n" }).as_bytes()).unwrap();
        std::thread::sleep(PAUSE / 3);
    }
    file.write_all(b"]\n").unwrap();
}

fn private_of_our_own(spool: &Path, beside: &Path, events: &[String]) {
    let aside = beside.join("private");
    fs::write(&aside, lines(events)).unwrap();
    fs::set_permissions(&aside, Permissions::from_mode(0o600)).unwrap();
    fs::rename(aside, spool.join("private.jsonl")).unwrap();
}

/// The file stays where it was for a while, under its other name.
fn linked_then_unlinked(spool: &Path, beside: &Path, events: &[String]) {
    let first = beside.join("linked");
    fs::write(&first, lines(events)).unwrap();
    fs::hard_link(&first, spool.join("linked.jsonl")).unwrap();
    std::thread::sleep(PAUSE);
    fs::remove_file(first).unwrap();
}

/// Copies that keep the time of the original, under one name again and again: each has new events, though its inode is
/// that of the copy before it.
pub fn copies(scale: &Scale) -> Outcome {
    for tool in ["cp", "tar"] {
        if let Err(why) = needs(tool) {
            return Outcome::Skipped(why);
        }
    }
    let mut agent = brisk();
    agent.start();
    let event = r#"{"type":"track","event":"Copied","properties":{"email":"ana@acme.dev"}}"#;
    fs::write(agent.path("beside/day.json"), event).unwrap();
    let archive = agent.path("beside/day.tar");
    run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(agent.path("beside")).arg("day.json"))
        .unwrap();
    let rounds = scale.of(10, 100);
    let copy = |agent: &TestAgent, round: usize| match round % 2 {
        0 => run(Command::new("cp").arg("-p").arg(agent.path("beside/day.json")).arg(agent.spool())),
        _ => run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(agent.spool())),
    };
    for round in 0..rounds {
        copy(&agent, round).unwrap();
        agent.until_status("it is taken", |status| {
            status.spool.waiting_files == Some(0) && status.outbox.pending == 0
        });
        agent.until("it is gone", |agent| agent.files_in_spool() == 0);
    }
    let status = agent.status();
    agent.stop();
    let held = agent.receiver.stats().held as u64;
    let figures = Figures {
        rounds: 1,
        events: rounds as u64,
        lost: (rounds as u64).saturating_sub(held),
        doubled: held.saturating_sub(rounds as u64),
        ..Figures::default()
    };
    figures.note(format!("{} taken for duplicates", status.spool.duplicates)).into()
}
