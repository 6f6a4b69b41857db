//! Irregular files in the spool, beside regular ones.

use super::{as_nobody, brisk, held, rejected};
use crate::machine::needs;
use crate::runner::{Outcome, Scale};
use crate::tracer::Calls;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// An event that nobody has dropped: the ledger do not know its number.
const SECRET: &str = r#"{"type":"track","event":"Secret","messageId":"secret","properties":{"n":999999,"email":"ana@acme.dev"}}"#;
/// The line says 2 s; the rest is what a loaded machine may need.
const SOON: Duration = Duration::from_secs(2 + 8);
/// System calls in a second that irregular files may cost; the spool is scanned twice in that time.
const CALLS: u64 = 2_000;

pub fn files(scale: &Scale) -> Outcome {
    let mut agent = brisk();
    if let Err(why) = as_nobody(&mut agent) {
        return Outcome::Skipped(why);
    }
    agent.start();
    agent.drop_events(1, 1);
    agent.until_delivered();
    let (spool, ground) = (agent.spool(), agent.path("ground"));
    let left = make_irregular(&spool, &ground);
    for (n, name) in
        [&b"line\nend.json"[..], b"esc\x1b[31m.json", b"bad-\xff\xfe.json", b"-rf.json"].iter().enumerate()
    {
        // Each by a person of its own, as files of one tick are ordered by their names.
        let event = agent.ledger.event(80 + n as u64);
        agent.drop_file(OsStr::from_bytes(name), event.as_bytes());
    }
    let large = [("sparse.json", "too_large"), ("sparse.ndjson", "too_large")];
    for (name, _) in large {
        File::create(spool.join(name)).unwrap().set_len(10 << 30).unwrap();
    }
    let private = agent.ledger.event(90);
    fs::write(ground.join("private.json"), private).unwrap();
    fs::set_permissions(ground.join("private.json"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::rename(ground.join("private.json"), spool.join("private.json")).unwrap();
    agent.drop_events(100, 50);
    let all = agent.ledger.dropped.len() - 1;
    let began = Instant::now();
    agent.until_within(SOON, "the good ones", |agent| agent.receiver.stats().held >= all);
    let took = began.elapsed();
    agent.until_status("the large ones are rejected", |status| {
        (status.spool.rejected_files, status.spool.unreadable_files) == (Some(2), Some(1))
    });
    let time = Duration::from_secs(scale.of(3, 30));
    let calls = Calls::during(&agent, time).unwrap();
    assert!(calls.total() <= CALLS * time.as_secs(), "{} calls in {time:?}: {calls:?}", calls.total());

    let log = agent.log();
    for (name, said) in left.iter().chain(&[("private.json", "cannot be read")]).chain(&large) {
        let lines: Vec<_> =
            log.lines().filter(|line| line.split_whitespace().any(|word| is(word, name))).collect();
        assert!(lines.len() == 1 && lines[0].contains(said), "{name}: {said}: {lines:#?}");
    }
    assert!(!log.contains('\x1b') && !log.contains("999999"), "{log}");
    for (name, _) in &left {
        assert!(fs::symlink_metadata(spool.join(name)).is_ok(), "{name} is gone");
    }
    for target in ["secret.json", "hard.json"] {
        assert_eq!(fs::read_to_string(ground.join(target)).unwrap(), SECRET);
    }
    fs::set_permissions(spool.join("private.json"), fs::Permissions::from_mode(0o644)).unwrap();
    agent.until_delivered();
    // The ledger read every file.
    for (name, _) in large {
        File::options().write(true).open(spool.join("rejected").join(name)).unwrap().set_len(0).unwrap();
    }
    agent.stop();
    let figures = agent.balance();
    figures
        .note(format!(
            "the good ones after {:.2} s, {} system calls in {time:?} then",
            took.as_secs_f64(),
            calls.total()
        ))
        .into()
}

/// Whether a word of the log is the name of that file, or its path.
fn is(word: &str, name: &str) -> bool {
    Path::new(word.trim_end_matches(':')).file_name() == Some(OsStr::new(name))
}

/// Names in the spool, and what the log says of each.
fn make_irregular(spool: &Path, ground: &Path) -> Vec<(&'static str, &'static str)> {
    fs::create_dir(ground).unwrap();
    for name in ["secret.json", "hard.json"] {
        fs::write(ground.join(name), SECRET).unwrap();
        fs::set_permissions(ground.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    symlink(ground.join("secret.json"), spool.join("link.json")).unwrap();
    symlink(ground, spool.join("folder-link.json")).unwrap();
    symlink("loop.json", spool.join("loop.json")).unwrap();
    symlink("nowhere", spool.join("dangling.json")).unwrap();
    fs::hard_link(ground.join("hard.json"), spool.join("hard.json")).unwrap();
    nix::unistd::mkfifo(&spool.join("fifo.json"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    drop(UnixListener::bind(spool.join("socket.json")).unwrap());
    fs::create_dir(spool.join("folder.json")).unwrap();
    fs::write(spool.join("folder.json/inside.json"), SECRET).unwrap();
    let mut left = vec![
        ("link.json", "left alone: it is a symbolic link"),
        ("folder-link.json", "left alone: it is a symbolic link"),
        ("loop.json", "left alone: it is a symbolic link"),
        ("dangling.json", "left alone: it is a symbolic link"),
        ("hard.json", "left alone: it is a file with a second hard link"),
        ("fifo.json", "left alone: it is not a regular file"),
        ("socket.json", "left alone: it is not a regular file"),
        ("folder.json", "left alone: it is a folder"),
    ];
    // Takes root.
    if Command::new("mknod")
        .arg(spool.join("zero.json"))
        .args(["c", "1", "5"])
        .output()
        .unwrap()
        .status
        .success()
    {
        left.push(("zero.json", "left alone: it is not a regular file"));
    }
    left
}

/// The kinds of files that take the place of a file between its commit and its removal.
const SWAPS: [Swap; 4] = [Swap::File, Swap::Link, Swap::Folder, Swap::HardLink];

#[derive(Debug, Clone, Copy)]
enum Swap {
    File,
    Link,
    Folder,
    HardLink,
}

/// Every removal takes half a second longer, and in that time something else takes the file's name.
pub fn swapped(scale: &Scale) -> Outcome {
    if let Err(why) = needs("strace") {
        return Outcome::Skipped(why);
    }
    let mut agent = brisk();
    let slow = "inject=renameat2:delay_enter=500000";
    agent.run_under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2", "-e", slow]);
    agent.start();
    agent.drop_events(1, 1);
    agent.until_delivered();
    let (spool, ground) = (agent.spool(), agent.path("ground"));
    fs::create_dir(&ground).unwrap();
    let (mut hits, rounds) = (0, scale.of(3, 30));
    let mut left = Vec::new();
    for round in 0..rounds {
        let names = SWAPS.map(|swap| (swap, format!("{swap:?}-{round}.json")));
        let inodes = names.clone().map(|(_, name)| {
            let person = agent.ledger.dropped.len() as u64;
            let event = agent.ledger.event(person);
            agent.drop_file(&name, event.as_bytes());
            fs::metadata(spool.join(name)).map_or(0, |meta| meta.ino())
        });
        agent.until_delivered();
        for ((swap, name), inode) in names.into_iter().zip(inodes) {
            let path = spool.join(&name);
            hits += usize::from(fs::metadata(&path).is_ok_and(|meta| meta.ino() == inode));
            let (target, aside) = (ground.join(&name), spool.join(".aside"));
            match swap {
                Swap::File => {
                    let person = agent.ledger.dropped.len() as u64;
                    let event = agent.ledger.event(person);
                    agent.drop_file(&name, event.as_bytes());
                    continue;
                }
                Swap::Link => {
                    fs::write(&target, SECRET).unwrap();
                    symlink(&target, &aside).unwrap();
                }
                Swap::Folder => {
                    let _ = fs::remove_file(&path);
                    fs::create_dir(&aside).unwrap();
                }
                Swap::HardLink => {
                    fs::write(&target, SECRET).unwrap();
                    fs::hard_link(&target, &aside).unwrap();
                }
            }
            fs::rename(&aside, &path).unwrap();
            left.push((path, target));
        }
    }
    agent.until_delivered();
    agent.until_status("all is taken", |status| status.spool.waiting_files == Some(0));
    // No removal is still under way.
    agent.until("the odd ones are where they were", |_| {
        left.iter().all(|(path, _)| fs::symlink_metadata(path).is_ok())
    });
    for (_, target) in &left {
        assert!(!target.exists() || fs::read_to_string(target).unwrap() == SECRET);
    }
    assert!(hits >= rounds, "only {hits} of {} were swapped in time", rounds * SWAPS.len());
    assert!(rejected(&agent).is_empty());
    agent.stop();
    agent.balance().note(format!("{hits} of {} swapped in time", rounds * SWAPS.len())).into()
}

/// Times before 1970 and after 2100, and names as long as they can be; good ones, bad ones and swapped ones.
pub fn times_and_names(_: &Scale) -> Outcome {
    let mut agent = brisk();
    let year = Duration::from_secs(365 * 24 * 3600);
    let epoch = SystemTime::UNIX_EPOCH;
    let times =
        [epoch - 60 * year, epoch - Duration::from_nanos(1), epoch, epoch + 130 * year, epoch + 400 * year];
    for (n, time) in times.into_iter().enumerate() {
        // The order of their names is against that of their times.
        let name = format!("{}.json", 9 - n);
        let event = agent.ledger.event(0);
        agent.drop_file(&name, event.as_bytes());
        let file = File::options().write(true).open(agent.spool().join(name)).unwrap();
        file.set_modified(time).unwrap();
    }
    agent.start();
    agent.until_delivered();
    for (n, end) in ["a.json", "b.jsonl", "c.json.gz", "d.json"].into_iter().enumerate() {
        let event = agent.ledger.event(1 + n as u64);
        let bad = n >= 2;
        let event = if n == 3 { event.replace("\"type\"", "type") } else { event };
        let name = format!("{}{end}", "x".repeat(255 - end.len()));
        agent.drop_file(&name, event.as_bytes());
        if bad {
            agent.until("it is rejected", |agent| rejected(agent).len() == n - 1);
        } else {
            let all = agent.ledger.dropped.len();
            agent.until("it is taken", |agent| agent.receiver.stats().held >= all);
        }
    }
    agent.until_status("all is acknowledged", |status| status.outbox.pending == 0);
    for properties in held(&agent) {
        assert!(properties["n"].as_u64().is_some());
    }
    // A crash has left one half removed, and a producer has used its name again.
    let name = format!("{}.json", "y".repeat(250));
    agent.stop();
    let event = agent.ledger.event(100);
    fs::write(agent.spool().join(".removing").join(&name), event).unwrap();
    let event = agent.ledger.event(101);
    agent.drop_file(&name, event.as_bytes());
    agent.start();
    let all = agent.ledger.dropped.len() - 2;
    agent.until("both are taken", |agent| agent.receiver.stats().held >= all);
    agent.until_settled();
    assert_eq!(agent.log_lines_with(&["cannot"]), 0, "{}", agent.log());
    agent.stop();
    agent.balance().into()
}
