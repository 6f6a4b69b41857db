//! Line 10: what is done to a database.

use super::kill_at;
use super::rounds::{DamageRounds, beside};
use crate::machine::needs;
use crate::runner::{Figures, Outcome, Scale, panic_message};
use fastrand::Rng;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const PAGE: u64 = 4_096;

/// A damage to a database's folder.
pub struct Damage {
    pub name: String,
    pub after: After,
    pub strike: Strike,
    pub then: Then,
}

type Strike = Box<dyn Fn(&Path, &mut Rng)>;

/// How the agent ended before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    Stop,
    /// Killed, with commits in the log.
    Kill,
}

use After::{Kill, Stop};

/// The result that a damage must have.
#[derive(Clone, Copy)]
pub enum Then {
    /// The agent runs, and tells of the damage if anything could not be read.
    Runs,
    /// The agent runs, and may say nothing: not even SQLite sees such a loss.
    Unseen,
    /// The agent refuses to start, with one of these codes, names the file and leaves it as it is, until this is
    /// done.
    Refuses(&'static [i32], fn(&Path)),
}

use Then::{Refuses, Runs, Unseen};

fn damage(
    name: impl Into<String>,
    after: After,
    then: Then,
    strike: impl Fn(&Path, &mut Rng) + 'static,
) -> Damage {
    Damage { name: name.into(), after, strike: Box::new(strike), then }
}

pub fn whole_files(scale: &Scale) -> Outcome {
    run_all(scale, |_| {
        vec![
            damage("garbage header", Stop, Runs, |s, r| garbage(s, "", 0, 100, r)),
            damage("garbage header, log", Kill, Runs, |s, r| garbage(s, "", 0, 100, r)),
            damage("no text in an event", Stop, Runs, |s, _| no_text(s)),
            damage("0 bytes", Stop, Runs, |s, _| cut(s, "", |_| 0)),
            damage("0 bytes, log", Kill, Runs, |s, _| cut(s, "", |_| 0)),
            damage("cut at the half", Stop, Runs, |s, _| cut(s, "", |n| n / 2)),
            damage("cut at the half, log", Kill, Runs, |s, _| cut(s, "", |n| n / 2)),
            damage("only the log", Kill, Runs, |s, _| remove(s, "")),
        ]
    })
}

pub fn logs(scale: &Scale) -> Outcome {
    run_all(scale, |_| {
        vec![
            damage("no log", Kill, Runs, |s, _| remove(s, "-wal")),
            damage("cut log", Kill, Unseen, |s, _| cut(s, "-wal", |n| n / 2)),
            damage("0 bytes of log", Kill, Runs, |s, _| cut(s, "-wal", |_| 0)),
            damage("garbage log header", Kill, Unseen, |s, r| garbage(s, "-wal", 0, 32, r)),
            damage("garbage in the log", Kill, Unseen, |s, r| garbage(s, "-wal", 8_000, PAGE, r)),
            damage("garbage -shm", Kill, Runs, |s, r| garbage(s, "-shm", 0, 32_768, r)),
            damage("garbage -shm, stopped", Stop, Runs, |s, r| garbage(s, "-shm", 0, 32_768, r)),
            damage("no -shm", Kill, Runs, |s, _| remove(s, "-shm")),
        ]
    })
}

pub fn others(scale: &Scale) -> Outcome {
    run_all(scale, |_| {
        vec![
            damage("a text", Stop, Runs, |s, _| replace(s, &b"to be done\n".repeat(400))),
            damage("a short text, log", Kill, Runs, |s, _| replace(s, b"to be done\n")),
            damage("a link to it", Kill, Runs, |s, _| link(s)),
            damage("a link to nothing", Stop, Refuses(&[66, 73, 74, 78], remove_it), |s, _| {
                link_to_nothing(s)
            }),
            damage("an empty folder", Stop, Runs, |s, _| folder(s)),
            damage("a folder", Stop, Refuses(&[78], remove_it), |s, _| {
                folder(s);
                fs::write(beside(s, "").join("a.txt"), "to be kept").unwrap();
            }),
            damage("another's database", Stop, Refuses(&[78], remove_it), |s, _| foreign(s)),
            damage("another's, log", Stop, Refuses(&[78], remove_it), |s, _| foreign_log(s)),
        ]
    })
}

/// Each page in turn; in the short form the first and a few.
pub fn pages(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    run_all(scale, |rounds| {
        let mut damages = Vec::new();
        for (after, text) in [(Stop, ""), (Kill, ", log")] {
            let all = rounds.pages(after);
            let mut pages: Vec<u64> = (1..all).collect();
            rng.shuffle(&mut pages);
            pages.truncate(scale.of(2, usize::MAX));
            pages.extend((after == Stop || scale.of(false, true)).then_some(0));
            damages.extend(pages.into_iter().map(|page| {
                let name = format!("page {} of {all}{text}", page + 1);
                damage(name, after, Runs, move |s, r| garbage(s, "", page * PAGE, PAGE, r))
            }));
        }
        damages
    })
}

/// SIGKILL at the Nth call of each kind that changes a file, while a recovery is under way: the next start goes on.
pub fn kills(scale: &Scale) -> Outcome {
    if let Err(why) = needs("strace") {
        return Outcome::Skipped(why);
    }
    let (mut rounds, mut rng) = (DamageRounds::new(), scale.rng());
    let (mut figures, mut killed) = (Figures::default(), 0);
    for (call, step) in [("rename", 2), ("unlink", 4), ("fsync", 5), ("fdatasync", 5), ("pwrite64", 40)] {
        for n in (1..).step_by(scale.of(step, 1)) {
            let name = format!("{call} {n}");
            let recovered = damage(name, Kill, Runs, |s, r| garbage(s, "", 0, 20 * PAGE, r));
            let round = rounds.round_after(&recovered, &mut rng, |agent| kill_at(agent, call, n));
            let Some(round) = round else { break };
            figures.add(Figures { notes: Vec::new(), ..round });
            killed += 1;
        }
    }
    assert!(killed > 6, "hardly anything was killed");
    figures.into()
}

/// Plays them all, and fails if one of them does.
fn run_all(scale: &Scale, damages: impl FnOnce(&DamageRounds) -> Vec<Damage>) -> Outcome {
    let mut rounds = DamageRounds::new();
    let mut rng = scale.rng();
    let (mut figures, mut failed) = (Figures::default(), Vec::new());
    for damage in damages(&rounds) {
        match catch_unwind(AssertUnwindSafe(|| rounds.round(&damage, &mut rng))) {
            Ok(round) => figures.add(round),
            Err(why) => failed.push(format!("{}: {}", damage.name, panic_message(why.as_ref()))),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    figures.into()
}

fn garbage(state: &Path, suffix: &str, at: u64, bytes: u64, rng: &mut Rng) {
    let bytes: Vec<u8> = (0..bytes).map(|_| rng.u8(..)).collect();
    let file = fs::File::options().write(true).open(beside(state, suffix)).unwrap();
    file.write_all_at(&bytes, at).unwrap();
}

/// Damages the text of a pending event where SQLite does not look.
fn no_text(state: &Path) {
    let database = fs::read(beside(state, "")).unwrap();
    let at = memchr::memmem::rfind(&database, b"Signed Up\",\"messageId").unwrap();
    let file = fs::File::options().write(true).open(beside(state, "")).unwrap();
    file.write_all_at(&[0xff; 4], at as u64).unwrap();
}

fn cut(state: &Path, suffix: &str, to: fn(u64) -> u64) {
    let file = fs::File::options().write(true).open(beside(state, suffix)).unwrap();
    file.set_len(to(file.metadata().unwrap().len())).unwrap();
}

fn remove(state: &Path, suffix: &str) {
    fs::remove_file(beside(state, suffix)).unwrap();
}

fn replace(state: &Path, content: &[u8]) {
    fs::write(beside(state, ""), content).unwrap();
}

/// The database on another disk, and a link to it where it is looked for.
fn link(state: &Path) {
    let elsewhere = state.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        fs::rename(beside(state, suffix), beside(&elsewhere, suffix)).unwrap();
    }
    symlink(beside(&elsewhere, ""), beside(state, "")).unwrap();
}

/// A link to a disk that is not there.
fn link_to_nothing(state: &Path) {
    remove(state, "");
    symlink("/nowhere/outbox.db", beside(state, "")).unwrap();
}

fn folder(state: &Path) {
    remove(state, "");
    fs::create_dir(beside(state, "")).unwrap();
}

fn foreign(state: &Path) {
    remove(state, "");
    let other = Connection::open(beside(state, "")).unwrap();
    other.execute_batch("CREATE TABLE invoices (n INTEGER); INSERT INTO invoices VALUES (1), (2);").unwrap();
}

fn foreign_log(state: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(beside(state, suffix));
    }
    let other = Connection::open(beside(state, "")).unwrap();
    other.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    other.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    other.execute_batch("PRAGMA user_version = 1; CREATE TABLE invoices (n INTEGER);").unwrap();
}

/// Nobody's database any more: the agent starts over.
fn remove_it(state: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let path = beside(state, suffix);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}
