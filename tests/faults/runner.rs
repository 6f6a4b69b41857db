//! The runner: runs the faults, a few side by side, and prints the table.

pub use crate::common::ledger::Figures;
use std::any::Any;
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Faults that are run side by side; most of them wait most of the time.
const SIDE_BY_SIDE: usize = 4;

/// The faults that take the longest begin first, so that the others run beside them.
const LONGEST: [&str; 8] =
    ["6-control", "3-control", "1-control", "10-kill", "2", "22-calls", "soak", "load-kills"];

/// One fault.
pub struct Fault {
    /// The unique name by which it is chosen.
    pub name: &'static str,
    /// The fault in words.
    pub title: &'static str,
    /// Whether it changes the machine, or measures memory: then nothing else is run beside it.
    pub alone: bool,
    pub run: fn(&Scale) -> Outcome,
}

/// The result of a fault.
pub enum Outcome {
    Done(Figures),
    /// Why this machine cannot run it.
    Skipped(String),
}

impl From<Figures> for Outcome {
    fn from(figures: Figures) -> Outcome {
        Outcome::Done(figures)
    }
}

/// How much is run.
pub struct Scale {
    full: bool,
    pub seed: u64,
}

impl Scale {
    /// The short form's number, or the long form's.
    pub fn of<T>(&self, short: T, full: T) -> T {
        if self.full { full } else { short }
    }

    /// Random numbers that `KOALA_TEST_SEED` repeats.
    pub fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }
}

struct Row<'a> {
    at: usize,
    fault: &'a Fault,
    outcome: Result<Outcome, String>,
    took: Duration,
}

/// Runs what the command line asks for.
pub fn run(groups: &'static [(&str, &[Fault])]) -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let full = std::env::var("KOALA_TEST_SCALE").is_ok_and(|scale| scale == "full");
    let seed = std::env::var("KOALA_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("KOALA_TEST_SEED is a number"));
    let all = groups.iter().flat_map(|(group, faults)| faults.iter().map(move |fault| (*group, fault)));
    let chosen: Vec<&'static Fault> = all
        .filter(|(group, fault)| {
            wanted.is_empty()
                || wanted.iter().any(|word| {
                    group.contains(word.as_str())
                        || fault.name == word
                        || fault.name.split('-').next() == Some(word)
                        || fault.title.contains(word.as_str())
                })
        })
        .map(|(_, fault)| fault)
        .collect();
    if std::env::args().any(|word| word == "--list") {
        chosen.iter().for_each(|fault| println!("{}: test", fault.name));
        return ExitCode::SUCCESS;
    }
    println!("\nfaults: {} scale, seed {seed}\n{}", if full { "full" } else { "short" }, heading());
    std::panic::set_hook(Box::new(print_location));
    let rows = Mutex::new(Vec::new());
    let run_one = |(at, fault): (usize, &'static Fault)| {
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (fault.run)(&Scale { full, seed })));
        let row = Row {
            at,
            fault,
            outcome: outcome.map_err(|why| panic_message(why.as_ref())),
            took: began.elapsed(),
        };
        let mut rows = rows.lock().unwrap();
        print_row(&row);
        rows.push(row);
    };
    let (alone, mut beside): (Vec<_>, Vec<_>) =
        chosen.iter().copied().enumerate().partition(|(_, fault)| fault.alone);
    beside.sort_by_key(|(_, fault)| !LONGEST.contains(&fault.name));
    let waiting = Mutex::new(VecDeque::from(beside));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop_front();
                    let Some(next) = next else { break };
                    run_one(next);
                }
            });
        }
    });
    alone.into_iter().for_each(run_one);
    let rows = rows.into_inner().unwrap();
    end(rows)
}

fn end(mut rows: Vec<Row>) -> ExitCode {
    rows.sort_by_key(|row| row.at);
    if !std::io::stdout().is_terminal() {
        // Once more in the order of the list, as they were printed in the order in which they ended.
        println!("\n{}", heading());
        rows.iter().for_each(print_row);
    }
    let failed: Vec<_> = rows.iter().filter(|row| row.failed().is_some()).map(|row| row.fault.name).collect();
    let skipped = rows.iter().filter(|row| matches!(row.outcome, Ok(Outcome::Skipped(_)))).count();
    println!(
        "\nfaults: {} passed, {} failed{}, {skipped} skipped",
        rows.len() - failed.len() - skipped,
        failed.len(),
        if failed.is_empty() { String::new() } else { format!(" ({})", failed.join(", ")) },
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Row<'_> {
    fn failed(&self) -> Option<String> {
        match &self.outcome {
            Err(why) => Some(why.clone()),
            Ok(Outcome::Skipped(_)) => None,
            Ok(Outcome::Done(f)) if f.control => {
                (f.lost == 0).then(|| "the control has lost nothing, so the fault proves nothing".to_owned())
            }
            Ok(Outcome::Done(f)) => {
                (f.lost > 0 || f.doubled > 0).then(|| format!("{} lost, {} doubled", f.lost, f.doubled))
            }
        }
    }
}

fn heading() -> String {
    format!(
        "{:<58} {:>7} {:>9} {:>6} {:>9} {:>8} {:>8}",
        "fault", "rounds", "events", "lost", "repeated", "doubled", "time"
    )
}

fn print_row(row: &Row) {
    let name = format!("{:<14} {}", row.fault.name, row.fault.title);
    let took = format!("{:.1} s", row.took.as_secs_f64());
    let mut out = std::io::stdout().lock();
    let line = match &row.outcome {
        Ok(Outcome::Skipped(why)) => format!("{name:<58} skipped: {why}"),
        Err(_) => format!("{name:<58} FAILED {took:>46}"),
        Ok(Outcome::Done(f)) => format!(
            "{name:<58} {:>7} {:>9} {:>6} {:>9} {:>8} {took:>8}",
            f.rounds, f.events, f.lost, f.repeated, f.doubled
        ),
    };
    let _ = writeln!(out, "{line}");
    if let Ok(Outcome::Done(figures)) = &row.outcome {
        figures.notes.iter().for_each(|note| drop(writeln!(out, "{:<14}   {note}", "")));
    }
    if let Some(why) = row.failed() {
        why.lines().for_each(|line| drop(writeln!(out, "  ! {line}")));
    }
}

/// Where a fault failed; what it says stands in its row.
fn print_location(panic: &std::panic::PanicHookInfo<'_>) {
    static PRINTED: AtomicUsize = AtomicUsize::new(0);
    if PRINTED.fetch_add(1, Relaxed) < 100
        && let Some(place) = panic.location()
    {
        let _ = writeln!(std::io::stderr(), "failed at {place}");
    }
}

/// The message of a panic.
pub fn panic_message(why: &(dyn Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "a panic".into())
}
