//! More files than anybody expects.

use super::rejected;
use crate::common::agent::TestAgent;
use crate::machine::needs;
use crate::runner::{Figures, Outcome, Scale};
use crate::tracer::Calls;
use koala_agent::receiver::Faults;
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// The memory that a folder of a million files may take.
const MEMORY: u64 = 150 << 20;
/// A receiver has the first event this soon, however many wait.
const FIRST: Duration = Duration::from_secs(150);

pub fn at_start(scale: &Scale) -> Outcome {
    if let Err(why) = needs("strace") {
        return Outcome::Skipped(why);
    }
    let (few, many) = scale.of((3_000, 15_000), (100_000, 1_000_000));
    let (mut figures, calls_of_few) = flood(few);
    let (more, calls_of_many) = flood(many);
    figures.add(more);
    // Quadratic work would take 25 times as many for five times the files.
    let (times, most) = (calls_of_many as f64 / calls_of_few as f64, 1.2 * many as f64 / few as f64);
    assert!(times <= most, "{times:.1} times as many calls, more than {most}: {}", figures.notes.join("; "));
    figures.note(format!("{times:.1} times the system calls for {} times the files", many / few)).into()
}

/// Delivers so many files that are there at start. Returns how often it looked at the file system for that.
fn flood(files: u64) -> (Figures, u64) {
    let mut agent = TestAgent::program(Faults::default());
    agent.drop_events(files, 100);
    let summary = agent.path("calls");
    let calls = "trace=%file,%desc";
    let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-c", "-U", "calls,name", "-e", calls, "-o"];
    agent.run_under(strace.map(OsString::from).into_iter().chain([summary.clone().into()]));
    let began = Instant::now();
    agent.start();
    agent.until_within(FIRST, "the first delivery", |agent| agent.receiver.stats().held > 0);
    let first = began.elapsed();
    agent.until_within(Duration::from_secs(3_600), "all delivered", |agent| {
        agent.receiver.stats().held as u64 >= files
    });
    agent.until_settled();
    let (took, memory) = (began.elapsed(), agent.process().peak_memory());
    assert!(memory < MEMORY, "{} MiB", memory >> 20);
    let figures = agent.end();
    // The tracer writes it when the program has gone.
    agent.until("the calls are counted", |_| Calls::read(&summary).total() > 0);
    let calls = Calls::read(&summary);
    let note = format!(
        "{files} files: first delivery after {:.1} s, all after {:.1} s; {} system calls, {} MiB",
        first.as_secs_f64(),
        took.as_secs_f64(),
        calls.total(),
        memory >> 20
    );
    (figures.note(note), calls.total())
}

/// Bad files of one name and of many: each is rejected under a name of its own, and to keep them costs little.
pub fn bad_ones(scale: &Scale) -> Outcome {
    let files = scale.of(500, 9_000);
    let mut agent = super::brisk();
    agent.start();
    for n in 0..files {
        let event = agent.ledger.event(0).replace("\"type\"", "type");
        agent.drop_file(format!("bad-{n}.json"), event.as_bytes());
    }
    agent.until_status("they are rejected", |status| status.spool.rejected_files == Some(files));
    let calls = Calls::during(&agent, Duration::from_secs(3)).unwrap().total();
    for n in 1..=3 {
        let event = agent.ledger.event(0).replace("\"type\"", "type");
        agent.drop_file("day.json", event.as_bytes());
        agent.until_status("it is rejected", |status| status.spool.rejected_files == Some(files + n));
    }
    agent.stop();
    let of_one_name =
        rejected(&agent).iter().filter(|name| name.to_string_lossy().starts_with("day")).count();
    assert_eq!((of_one_name, rejected(&agent).len() as u64), (3, files + 3));
    // Ten lines, then one a minute.
    let lines = agent.log_lines_with(&[" rejected ("]);
    assert!((10..20).contains(&lines), "{lines} lines");
    agent.balance().note(format!("{calls} system calls in 3 s to keep them")).into()
}
