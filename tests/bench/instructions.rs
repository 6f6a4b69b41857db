//! How many instructions the pure parts take for one event, counted by callgrind: no other load on the machine changes
//! that, so a part that has become dearer is seen at once.
//!
//! ```sh
//! cargo bench --bench instructions    # fails if a part takes over 10 % more or less than is noted here
//! ```

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a benchmark")]

use koala_agent::agent::destination::Destination;
use koala_agent::agent::scheduler::{NextAction, Scheduler};
use koala_agent::clock::{Moment, Timestamp};
use koala_agent::config::Concurrency;
use koala_agent::event::Event;
use koala_agent::item::{Disposition, Endpoint, Item, OrderingKey};
use koala_agent::koala::Verdict;
use koala_agent::koala::batch::Batch;
use koala_agent::mapping::Mappings;
use koala_agent::outbox::QueuedItem;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Instructions for one event, by this compiler. Where a change is meant, the new number is written here.
const COMPILER: &str = "1.95";
const NOTED: [(&str, u64); 4] = [("parse", 8_820), ("map", 24_850), ("gather", 25_450), ("settle", 4_040)];
/// Beyond it, in per cent, a number has changed. The compiler divides the crate into units by what else stands in it, which alone
/// has moved a number by up to 6 %.
const TOLERANCE: f64 = 10.0;
/// Events of a person.
const OF_A_PERSON: usize = 8;
/// The count of one run less that of a shorter one is that of the events alone.
const EVENTS: [usize; 2] = [1_000, 3_000];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    if let (Some(part), Some(events)) = (arguments.next(), arguments.next()) {
        run(&part, events.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind");
        return ExitCode::SUCCESS;
    }
    let is_judged = is_noted_here();
    let mut is_good = true;
    let each = |part| {
        let [few, many] = EVENTS.map(|events| counted(part, events));
        (many - few) / (EVENTS[1] - EVENTS[0]) as u64
    };
    let texts = each("nothing");
    for (part, noted) in NOTED {
        let each = each(part) - texts;
        let change = 100.0 * (each as f64 / noted as f64 - 1.0);
        let verdict = match change.abs() <= TOLERANCE {
            _ if !is_judged => "",
            true => ", as noted",
            false => ", which is to be fixed, or noted in tests/bench/instructions.rs",
        };
        println!("{part:>8} {each:>7} instructions an event, {change:+.1} % of what is noted{verdict}");
        is_good &= change.abs() <= TOLERANCE;
    }
    if !is_judged {
        println!("not judged: the numbers are those of Rust {COMPILER} on an x86-64 with AVX2");
    }
    if is_good || !is_judged { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the numbers hold for this machine and this compiler.
fn is_noted_here() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let version = Command::new("rustc").arg("--version").output();
        let version =
            version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        version.starts_with(&format!("rustc {COMPILER}.")) && std::arch::is_x86_feature_detected!("avx2")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn counted(part: &str, events: usize) -> u64 {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args([part, &events.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let line =
        said.lines().find_map(|line| line.split_once("Collected : ")).unwrap_or_else(|| panic!("{said}"));
    line.1.trim().parse().unwrap()
}

fn run(part: &str, events: usize) {
    let texts: Vec<String> = (0..events).map(text).collect();
    let mappings = Mappings::presets();
    match part {
        "nothing" => {}
        "parse" => texts.iter().for_each(|text| drop(black_box(Event::parse(text).unwrap()))),
        "map" => texts.iter().for_each(|text| drop(black_box(item(&mappings, text)))),
        "gather" => {
            for person in texts.chunks(OF_A_PERSON) {
                let mut items = person.iter().map(|text| item(&mappings, text));
                let mut batch = Batch::new(items.next().unwrap());
                items.for_each(|item| batch.push(item).unwrap());
                black_box(batch.body());
            }
        }
        "settle" => settle(events),
        _ => panic!("there is no part {part}"),
    }
}

fn text(n: usize) -> String {
    let person = n / OF_A_PERSON;
    format!(
        r#"{{"type":"track","messageId":"{n:08x}-0000-4000-a000-{person:012x}","timestamp":"2026-03-01T00:00:00.000Z","userId":"user_{person:06}","event":"Feature Used","properties":{{"email":"person{person:06}@example.com","plan":"team","url":"https://app.example.com/projects/alpha?ref={n:08x}","value":1{n:07}.5}},"context":{{"ip":"203.0.113.7","userAgent":"Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0","locale":"en-US","library":{{"name":"analytics-node","version":"6.2.0"}}}}}}"#
    )
}

fn item(mappings: &Mappings, text: &str) -> Item {
    let event = Event::parse(text).unwrap();
    let id = event.message_id().unwrap().unwrap();
    match mappings.map_by("", &event, &id, Timestamp(0)) {
        Disposition::Send(item) => *item,
        other => panic!("{other:?}"),
    }
}

/// Everything pending is found, sent and delivered.
fn settle(events: usize) {
    let moment = Moment { wall: Timestamp(0), mono: Duration::ZERO };
    let rng = fastrand::Rng::with_seed(1);
    let destination = Destination::new(Concurrency::Fixed(8), None, moment, rng);
    let mut scheduler = Scheduler::new(destination);
    let mut found = 0;
    loop {
        match scheduler.next(moment) {
            NextAction::Discover => {
                for seq in found + 1..=(found + 1_000).min(events) {
                    let key = OrderingKey((seq % (events / OF_A_PERSON)) as i64);
                    scheduler.discovered(QueuedItem { seq: seq as i64, key, owner: Some(0) });
                }
                found = (found + 1_000).min(events);
                scheduler.set_exhausted(found == events);
            }
            NextAction::Start(plan) => {
                let seqs = scheduler.events(plan);
                assert!(scheduler.may_send(plan, Endpoint::People, moment.mono));
                let in_flight = scheduler.sent(plan, Endpoint::People, seqs, 1_000, 0, moment.mono);
                let outcome = scheduler.answered(in_flight, Verdict::Accepted, moment);
                let seqs: Vec<i64> = outcome.rows.iter().map(|(seq, _)| *seq).collect();
                scheduler.settled(&outcome.keys, &seqs);
            }
            NextAction::AskAuth => panic!("the receiver accepts everything"),
            NextAction::Wait(_) => return assert_eq!(found, events),
        }
    }
}
