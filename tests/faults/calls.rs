//! SIGKILL at the Nth call of each kind that makes something durable, removes it, moves it or sends it.

use super::crash::SETTLE;
use crate::common::agent::TestAgent;
use crate::common::kills::{Kill, UNDER_WAY, repeats};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

/// The system's calls by what they do; which of them the libraries make is their affair.
const DEEDS: &[&[&str]] = &[
    &["fsync", "fdatasync", "sync_file_range", "syncfs"],
    &["unlink", "unlinkat"],
    &["rename", "renameat", "renameat2"],
    &["write", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate"],
    &["writev", "sendto", "sendmsg", "sendmmsg"],
];
const FILES: u64 = 60;
const PEOPLE: u64 = 7;

pub fn kill_at_each(scale: &Scale) -> Outcome {
    if Command::new("strace").arg("-V").output().is_err() {
        return Outcome::Skipped("strace is not installed".into());
    }
    let made = calls_made();
    let mut rng = scale.rng();
    let mut figures = Figures::default();
    let mut struck = Vec::new();
    for operation in DEEDS {
        let mut strikes = 0;
        for call in operation.iter().filter(|call| made.contains_key(**call)) {
            let most = made[*call];
            let mut strike = |n| {
                let (hit, round) = kill_at(call, n);
                figures.add(round);
                strikes += u64::from(hit);
                hit
            };
            if scale.of(false, true) {
                (1..).find(|n| !strike(*n));
            } else {
                // One in each doubling.
                let mut from = 1;
                while from <= most && strike(rng.u64(from..2 * from)) {
                    from *= 2;
                }
            }
        }
        assert!(strikes > 0, "none of {operation:?} was struck: {made:?}");
        struck.push(format!("{} {strikes}", operation[0]));
    }
    figures.note(format!("struck at {}", struck.join(", "))).into()
}

/// How often each call is made in an undisturbed run, by the thread that makes the most.
fn calls_made() -> BTreeMap<String, u64> {
    let mut agent = agent();
    let trace = agent.path("trace");
    agent.run_under(tracer(&trace, &DEEDS.concat().join(",")));
    agent.start();
    agent.until_empty();
    agent.stop();
    let mut by_thread: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let text = fs::read_to_string(&trace).unwrap();
    for line in text.lines() {
        if let Some((thread, rest)) = line.split_once(' ')
            && let Some((call, _)) = rest.trim_start().split_once('(')
        {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut made = BTreeMap::new();
    for ((_, call), n) in by_thread {
        let most = made.entry(call.to_owned()).or_default();
        *most = n.max(*most);
    }
    made
}

/// Kills the agent at the Nth such call of a thread, starts it again, and balances the ledger. Whether it came so far.
fn kill_at(call: &str, n: u64) -> (bool, Figures) {
    let mut agent = agent();
    let inject = format!("--inject={call}:signal=KILL:when={n}");
    let mut tracer = tracer(Path::new("/dev/null"), call);
    tracer.push(inject);
    agent.run_under(tracer);
    agent.start();
    let mut ended = None;
    agent.until("its end, or rest", |agent| {
        ended = agent.exit_status();
        ended.is_some() || agent.is_empty()
    });
    let ended = ended.unwrap_or_else(|| {
        agent.signal(Signal::SIGTERM);
        agent.wait_for_exit()
    });
    let hit = ended.signal() == Some(Signal::SIGKILL as i32);
    assert!(hit || ended.success(), "{call} {n}: {ended}\n{}", agent.log());
    let kill = Kill::of(&agent);
    agent.run_bare();
    agent.start_and_wait();
    agent.until_delivered();
    agent.until_empty();
    assert_eq!(agent.status().outbox.incident, None, "{call} {n}: a crash is no damage");
    agent.stop();
    repeats(&agent.receiver, &[kill], UNDER_WAY);
    (hit, agent.balance())
}

/// An agent with all its files in the spool.
fn agent() -> TestAgent {
    let mut agent = TestAgent::program(Faults::default());
    agent.set(SETTLE);
    agent.drop_mixed(FILES, PEOPLE);
    agent
}

/// A tracer beside the program, so that the program is the child.
fn tracer(trace: &Path, calls: &str) -> Vec<String> {
    let words = ["strace", "-D", "-f", "-o"];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    words.extend([trace.display().to_string(), format!("--trace={calls}")]);
    words
}
