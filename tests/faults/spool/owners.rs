//! Two users who drop files: one does the worst that a file can do, the other drops an event a second, and each of these
//! is delivered soon, whatever the first one does.

use super::NOBODY;
use crate::common::agent::TestAgent;
use crate::common::events::{gzip, track};
use crate::machine::{needs, needs_root};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::receiver::Faults;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// Numbers without names, that no system gives to anybody: the group of the producers, and two of them.
const PRODUCERS: u32 = 64_300;
const WORST: u32 = 64_301;
const OTHER: u32 = 64_302;

/// An event of the other user is delivered this soon: five times what an idle machine takes at most.
const SOON: Duration = Duration::from_secs(25);
/// An event that is not delivered by then is counted as lost to the other user.
const AT_LAST: Duration = Duration::from_secs(60);
/// The memory of the agent, whatever stands in a file.
const MEMORY: u64 = 150 << 20;
/// The files in `rejected/` that come of one file, with those of the reasons.
const REJECTED_OF_ONE: usize = 300;
/// Lines of one kind in the log, before there is one a minute.
const LINES_OF_A_KIND: usize = 10;

/// One user's worst: what it is called, and what it goes on doing until it is told to stop.
type Attack = (&'static str, fn(&Producer, &Scale, &AtomicBool));

const ATTACKS: [Attack; 10] = [
    ("packed members", members),
    ("a large context", context),
    ("ten million bad lines", bad_lines),
    ("packed newlines", newlines),
    ("unfinished files of 1970", unfinished),
    ("bad files", bad_files),
    ("a million old events", old_events),
    ("tiny old files", tiny_files),
    ("unreadable files", unreadable),
    ("links and pipes", irregular),
];

/// A user who puts files into the spool.
struct Producer {
    spool: PathBuf,
    uid: u32,
}

impl Producer {
    /// Writes a file aside, with an old time if that is given, and renames it to the name.
    fn drop_file(&self, name: &str, content: &[u8], modified: Option<SystemTime>) {
        let aside = self.spool.join(format!(".{}", self.uid));
        let mut file = self.create(&aside, 0o640);
        file.write_all(content).unwrap();
        if let Some(modified) = modified {
            file.set_modified(modified).unwrap();
        }
        drop(file);
        fs::rename(aside, self.spool.join(name)).unwrap();
    }

    fn create(&self, path: &Path, mode: u32) -> File {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).unwrap();
        std::os::unix::fs::fchown(&file, Some(self.uid), Some(PRODUCERS)).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        file
    }

    /// How many finished files of this user's names wait in the spool.
    fn waiting(&self) -> usize {
        let names = fs::read_dir(&self.spool).unwrap().filter_map(Result::ok);
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("a-")).count()
    }

    /// Drops the content under numbered names, never more than a few at once.
    fn keep_dropping(&self, ending: &str, content: &[u8], stop: &AtomicBool) {
        for n in 0.. {
            while self.waiting() >= 3 && !stop.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            if stop.load(Relaxed) {
                return;
            }
            self.drop_file(&format!("a-{n}{ending}"), content, Some(long_ago(n)));
        }
    }
}

/// A time before every other file's, in the order of the numbers.
fn long_ago(n: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + n)
}

fn members(user: &Producer, scale: &Scale, stop: &AtomicBool) {
    // A program that is not optimised takes ten times as long for it.
    let members = "\"\":0,".repeat((scale.of(16, 64) << 20) / 5 - 1);
    user.keep_dropping(".json.gz", &gzip(format!("{{{}}}", members.trim_end_matches(','))), stop);
}

fn context(user: &Producer, _: &Scale, stop: &AtomicBool) {
    let (large, items) = ("x".repeat(50 << 20), vec!["{}"; 100_000].join(","));
    let envelope = format!(r#"{{"batch":[{items}],"context":{{"large":"{large}"}}}}"#);
    user.keep_dropping(".json.gz", &gzip(envelope), stop);
}

fn bad_lines(user: &Producer, _: &Scale, stop: &AtomicBool) {
    user.keep_dropping(".jsonl.gz", &gzip("x\n".repeat(1_000_000)).repeat(10), stop);
}

fn newlines(user: &Producer, _: &Scale, stop: &AtomicBool) {
    user.keep_dropping(".jsonl.gz", &gzip("\n".repeat(30 << 20)).repeat(100), stop);
}

fn unfinished(user: &Producer, _: &Scale, stop: &AtomicBool) {
    let mut open = Vec::new();
    for n in 0.. {
        let mut file = user.create(&user.spool.join(format!("a-{n}.json")), 0o640);
        file.write_all(br#"{"type":"track","event":"#).unwrap();
        file.set_modified(long_ago(n)).unwrap();
        // Every other one is still being written.
        open.push(file);
        if n % 2 == 0 {
            open.pop();
        }
        std::thread::sleep(Duration::from_millis(500));
        if stop.load(Relaxed) {
            return;
        }
    }
}

fn bad_files(user: &Producer, scale: &Scale, stop: &AtomicBool) {
    for n in 0..scale.of(20_000, 200_000) {
        user.drop_file(&format!("a-{n}.json"), b"{\"type\":track}", None);
        if stop.load(Relaxed) {
            return;
        }
    }
}

fn old_events(user: &Producer, scale: &Scale, stop: &AtomicBool) {
    let event = |n: u32| {
        format!("{{\"type\":\"track\",\"event\":\"Old\",\"properties\":{{\"email\":\"p{n}@acme.dev\"}}}}\n")
    };
    let part = gzip((0..1_000).map(event).collect::<String>());
    user.drop_file("a-old.jsonl.gz", &part.repeat(scale.of(150, 1_000)), Some(long_ago(0)));
    while !stop.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn tiny_files(user: &Producer, scale: &Scale, stop: &AtomicBool) {
    for n in 0..scale.of(10_000, 40_000) {
        let event = track(&format!("tiny-{n}"), "eve@acme.dev");
        user.drop_file(&format!("a-{n}.json"), event.as_bytes(), Some(long_ago(n)));
        if stop.load(Relaxed) {
            return;
        }
    }
}

fn unreadable(user: &Producer, scale: &Scale, stop: &AtomicBool) {
    for n in 0..scale.of(3_000, 30_000) {
        drop(user.create(&user.spool.join(format!("a-{n}.json")), 0o000));
        if stop.load(Relaxed) {
            return;
        }
    }
}

fn irregular(user: &Producer, scale: &Scale, stop: &AtomicBool) {
    for n in 0..scale.of(3_000, 30_000) {
        let path = user.spool.join(format!("a-{n}.json"));
        match n % 3 {
            0 => std::os::unix::fs::symlink("/etc/shadow", &path).unwrap(),
            1 => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap(),
            _ => fs::create_dir(&path).unwrap(),
        }
        std::os::unix::fs::lchown(&path, Some(user.uid), Some(PRODUCERS)).unwrap();
        if stop.load(Relaxed) {
            return;
        }
    }
}

/// The agent as its unit runs it: an ordinary user in the group of the producers, with the one right to lease files of
/// others, on a spool that only producers may add to.
fn agent() -> TestAgent {
    let mut agent = TestAgent::program(Faults::default());
    agent.set("spool.incomplete_after = \"60s\"");
    for folder in ["", "spool", "beside"] {
        chown(agent.path(folder), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chown(agent.spool(), Some(NOBODY), Some(PRODUCERS)).unwrap();
    fs::set_permissions(agent.spool(), Permissions::from_mode(0o3730)).unwrap();
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), format!("--groups={PRODUCERS}")];
    let lease = ["--inh-caps=-all,+lease", "--ambient-caps=-all,+lease"].map(str::to_owned);
    agent.run_under(["setpriv".to_owned()].into_iter().chain(ids).chain(lease));
    agent
}

/// Each attack beside a trickle of the other user, each on an agent of its own.
pub fn side_by_side(scale: &Scale) -> Outcome {
    if let Err(why) = needs_root().and_then(|()| needs("setpriv")) {
        return Outcome::Skipped(why);
    }
    let mut all = Figures::default();
    let mut faults = Vec::new();
    let wanted = std::env::var("KOALA_TEST_ATTACK").unwrap_or_default();
    for (name, attack) in ATTACKS.iter().filter(|(name, _)| name.contains(&wanted)) {
        let Ended { figures, late, note, wrong } = beside(name, *attack, scale);
        all.rounds += 1;
        all.events += figures.events;
        all.lost += figures.lost;
        all.doubled += figures.doubled;
        all.notes.push(note);
        if late > 0 {
            faults.push(format!("{name}: {late} of {} late", figures.events));
        }
        faults.extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
    }
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), all.notes.join("\n"));
    all.into()
}

struct Ended {
    figures: Figures,
    late: usize,
    note: String,
    wrong: Vec<String>,
}

/// One attack beside the trickle.
fn beside(name: &str, attack: fn(&Producer, &Scale, &AtomicBool), scale: &Scale) -> Ended {
    let mut agent = agent();
    agent.start_and_wait();
    let producer = |uid| Producer { spool: agent.spool(), uid };
    let (worst, other, stop) = (producer(WORST), producer(OTHER), AtomicBool::new(false));
    let mut dropped: Vec<(String, Timestamp)> = Vec::new();
    let seconds = scale.of(4, 30);
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| attack(&worst, scale, &stop));
        for n in 0..seconds {
            std::thread::sleep(Duration::from_secs(n + 1).saturating_sub(began.elapsed()));
            let id = format!("trickle-{n}");
            other.drop_file(&format!("b-{n}.json"), track(&id, "bob@acme.dev").as_bytes(), None);
            dropped.push((id, Clock::system().now()));
        }
        stop.store(true, Relaxed);
    });
    let waits = until_delivered(&agent, &dropped);
    let memory = agent.process().peak_memory();
    let mut wrong = Vec::new();
    if memory >= MEMORY {
        wrong.push(format!("{} MiB of memory", memory >> 20));
    }
    let rejected = rejected_of_one(&agent);
    if rejected > REJECTED_OF_ONE {
        wrong.push(format!("{rejected} files in rejected/ of one file"));
    }
    let lines = lines_by_kind(&agent.log());
    let most = LINES_OF_A_KIND + 1 + began.elapsed().as_secs() as usize / 60;
    for (kind, lines) in lines.iter().filter(|(_, lines)| **lines > most) {
        wrong.push(format!("{lines} lines in the log like {kind:?}"));
    }
    wrong.extend(unnamed(&agent, name, &worst));
    let longest = waits.iter().flatten().max().copied().unwrap_or_default();
    let lost = waits.iter().filter(|wait| wait.is_none()).count();
    let late = waits.iter().filter(|wait| wait.is_none_or(|wait| wait > SOON)).count();
    let above = waits.iter().filter(|wait| wait.is_none_or(|wait| wait > SOON / 5)).count();
    let note = format!(
        "{name}: at most {:.1} s, {above} of {} over 5 s; {} MiB; {rejected} rejected of one file; {} lines in the log",
        longest.as_secs_f64(),
        dropped.len(),
        memory >> 20,
        lines.values().sum::<usize>(),
    );
    agent.kill();
    let figures =
        Figures { rounds: 1, events: dropped.len() as u64, lost: lost as u64, ..Figures::default() };
    Ended { figures, late, note, wrong }
}

/// What does not name the user whose files are in the way, while they are.
fn unnamed(agent: &TestAgent, name: &str, worst: &Producer) -> Option<String> {
    let (text, json) = (agent.run(&["status"]).out, agent.status());
    let is_named = json.spool.owners.iter().any(|owner| owner.uid == WORST);
    // What is only left alone or set aside is not in the way of others' files; a file of the other's may just have come.
    let of_other: u64 =
        json.spool.owners.iter().filter(|owner| owner.uid == OTHER).map(|owner| owner.waiting_files).sum();
    let waits = json.spool.waiting_files.is_some_and(|files| files > of_other);
    if worst.waiting() > 0 && waits && !(is_named && text.contains(&WORST.to_string())) {
        return Some(format!("status does not name the owner of the waiting files:\n{text}"));
    }
    let listed = match name {
        "unreadable files" => agent.run(&["list", "--unreadable", "--limit", "5"]).out,
        "a million old events" => agent.run(&["list", "--json", "--limit", "5000"]).out,
        _ => return None,
    };
    (!listed.contains(&WORST.to_string())).then(|| format!("list does not name the owner:\n{listed}"))
}

/// How long each event took from its drop to the receiver; `None`: it did not come.
fn until_delivered(agent: &TestAgent, dropped: &[(String, Timestamp)]) -> Vec<Option<Duration>> {
    let began = Instant::now();
    loop {
        let held: BTreeMap<_, _> = agent
            .receiver
            .events()
            .into_iter()
            .filter(|held| held.message_id.starts_with("trickle-"))
            .map(|held| (held.message_id.to_string(), held.received_at))
            .collect();
        if held.len() == dropped.len() || began.elapsed() > AT_LAST {
            return dropped.iter().map(|(id, at)| held.get(id).map(|came| came.since(*at))).collect();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The most files in `rejected/` that one file of the spool has left.
fn rejected_of_one(agent: &TestAgent) -> usize {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(agent.spool().join("rejected")).into_iter().flatten().filter_map(Result::ok) {
        // a-0.jsonl.gz leaves a-0.17.jsonl and a-0.17.jsonl.why.
        let name = entry.file_name().to_string_lossy().into_owned();
        *counts.entry(name.split('.').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

/// The lines of the log that are alike but for their numbers, names and paths.
fn lines_by_kind(log: &str) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for line in log.lines() {
        let words = line.split_whitespace().filter(|word| !word.contains('/') && !word.starts_with("a-"));
        let kind: Vec<String> =
            words.map(|word| word.chars().filter(|c| !c.is_ascii_digit()).collect()).collect();
        *kinds.entry(kind.join(" ")).or_default() += 1;
    }
    kinds
}
