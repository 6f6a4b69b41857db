//! Line 43: every verb that changes rows, while the row's request is in flight, and while the agent stands still or is
//! killed. What the command says is what became of it.

use crate::common::agent::TestAgent;
use crate::common::events::{new_event, track};
use crate::runner::{Fault, Figures, Outcome, Scale};
use koala_agent::outbox::{Outbox, Settled};
use koala_agent::reason::{Code, Reason};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

pub const FAULTS: &[Fault] = &[
    Fault { name: "43", title: "a command amid the event's request", alone: false, run: in_flight },
    Fault { name: "43-stopped", title: "commands to an agent that stands still", alone: false, run: stopped },
    Fault { name: "43-erase", title: "an erasure under load, and SIGKILL in it", alone: false, run: erased },
    Fault { name: "43-kill", title: "SIGKILL amid a retry", alone: false, run: killed },
];

const ANA: &str = "ana@acme.dev";

/// How the request ends that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Refused,
    Unavailable,
    /// The receiver has it, and the answer is lost.
    AnswerLost,
    /// No answer until the time-out, and the receiver does not have it.
    Hangs,
}

impl End {
    fn faults(self) -> Faults {
        let late = Faults { latency_ms: 700, ..Faults::default() };
        match self {
            End::Accepted => late,
            End::Refused => Faults { status: Some(400), ..late },
            End::Unavailable => Faults { status: Some(503), ..late },
            End::AnswerLost => Faults { drop_after_accept: 1.0, ..late },
            End::Hangs => Faults { latency_ms: 3_600_000, ..late },
        }
    }
}

/// The verb, how the request ends, a part of what is said, the exit code, the state at last, and whether the receiver then has
/// the event.
type Row = (&'static str, End, &'static str, i32, Option<&'static str>, bool);

/// Each verb, with each end: what is said, the exit code, the state, and whether the event comes to be at the receiver.
fn in_flight(_: &Scale) -> Outcome {
    use End::*;
    let unanswered = "discarded; a request with it got no answer";
    let rows: [Row; 15] = [
        ("discard", Accepted, "it was delivered by the request", 65, Some("delivered"), true),
        ("discard", Refused, "  discarded\n", 0, Some("discarded"), false),
        ("discard", Unavailable, "  discarded\n", 0, Some("discarded"), false),
        ("discard", AnswerLost, unanswered, 0, Some("discarded"), true),
        ("discard", Hangs, unanswered, 0, Some("discarded"), false),
        ("erase", Accepted, "delivered", 0, None, true),
        ("erase", Refused, "pending", 0, None, false),
        ("erase", Unavailable, "pending", 0, None, false),
        ("erase", AnswerLost, "in_flight", 0, None, true),
        ("erase", Hangs, "in_flight", 0, None, false),
        ("retry", Accepted, "is pending already", 0, Some("delivered"), true),
        ("retry", Refused, "is pending already", 0, Some("delivered"), true),
        ("retry", Unavailable, "is pending already", 0, Some("delivered"), true),
        ("retry", AnswerLost, "is pending already", 0, Some("delivered"), true),
        ("retry", Hangs, "is pending already", 0, Some("delivered"), true),
    ];
    let mut figures = Figures::default();
    std::thread::scope(|scope| {
        let running = rows.map(|row| scope.spawn(move || amid_request(row)));
        running.into_iter().for_each(|row| row.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
    });
    figures.rounds = rows.len() as u64;
    figures.into()
}

fn amid_request((verb, end, said, code, state, is_held): Row) {
    let mut agent = TestAgent::program(end.faults());
    agent.set("koala.timeout = \"3s\"");
    agent.start_and_wait();
    agent.drop_track("hers", ANA);
    agent.until("the request is in flight", |agent| agent.receiver.stats().requests >= 1);
    // What is in flight ends as it was to; what comes after it is well.
    agent.receiver.set_faults(Faults::default());
    let arguments: &[&str] = match verb {
        "erase" => &["--email", ANA, "--json"],
        _ => &["hers"],
    };
    let command = begin(&agent, verb, arguments);
    // Others go on meanwhile.
    agent.drop_track("another's", "ben@acme.dev");
    agent.until("the other one is delivered", |agent| agent.held_ids().contains("another's"));
    let output = command.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let what = format!("{verb}, {end:?}: {output:?}\n{}", agent.log());
    assert_eq!(output.status.code(), Some(code), "{what}");
    match verb {
        "erase" => {
            let receipt: Value = serde_json::from_str(&text).unwrap();
            let event = &receipt["events"][0];
            assert_eq!(event["state"], said, "{what}");
            assert_eq!(event["settled_at"].is_string(), said == "delivered", "{what}");
        }
        _ => assert!(text.contains(said), "{what}"),
    }
    if verb == "retry" {
        agent.until("hers is delivered", |agent| agent.held_ids().contains("hers"));
    }
    // Whatever would be sent again is sent by now.
    assert_eq!(run(&agent, "retry", &["another's"]).status.code(), Some(65));
    agent.drop_track("last", ANA);
    agent.until_status("all is settled", |status| status.outbox.pending == 0);
    agent.stop();
    assert_eq!(agent.held_ids().contains("hers"), is_held, "{what}");
    assert!(end == End::AnswerLost || agent.receiver.stats().repeats == 0, "{what}");
    let found =
        agent.database().query_row("SELECT state FROM outbox_events WHERE message_id = 'hers'", [], |r| {
            r.get::<_, String>(0)
        });
    assert_eq!(found.ok().as_deref(), state, "{what}");
}

/// The agent is stopped by SIGSTOP: a command that has waited for long is withdrawn, one that is killed is dropped, and
/// nothing is changed by either.
fn stopped(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults { offline: true, ..Faults::default() });
    agent.start_and_wait();
    for id in ["a", "b", "c"] {
        agent.drop_track(id, ANA);
    }
    agent.until_status("all wait", |status| status.outbox.pending == 3);
    agent.until("it stops outside a transaction", |agent| {
        agent.signal(Signal::SIGSTOP);
        let others = rusqlite::Connection::open(agent.outbox()).unwrap();
        others.busy_timeout(Duration::ZERO).unwrap();
        let is_free = others.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok();
        if !is_free {
            agent.signal(Signal::SIGCONT);
        }
        is_free
    });
    let mut killed = begin(&agent, "discard", &["b"]);
    agent.until("it has asked", |agent| waiting(agent) == 1);
    let withdrawn = begin(&agent, "discard", &["a"]);
    let third = begin(&agent, "discard", &["c"]);
    agent.until("they have asked", |agent| waiting(agent) == 3);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let (output, third) = (withdrawn.wait_with_output().unwrap(), third.wait_with_output().unwrap());
    for output in [&output, &third] {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{output:?}");
        let pid = format!("pid {}", agent.pid());
        assert!(said.contains(&pid) && said.contains("nothing was changed"), "{said}");
    }
    assert_eq!(waiting(&agent), 1);
    agent.signal(Signal::SIGCONT);
    agent.until("the one that nobody waits for is dropped", |agent| waiting(agent) == 0);
    assert_eq!(agent.pending_ids().len(), 3);
    // Two at once, of which each is told what it has done.
    let both = [begin(&agent, "discard", &["a", "b"]), begin(&agent, "discard", &["b", "a"])];
    let said = both.map(|command| String::from_utf8(command.wait_with_output().unwrap().stdout).unwrap());
    let dropped =
        said.iter().flat_map(|text| text.lines()).filter(|line| line.contains("  discarded")).count();
    assert_eq!(dropped, 2, "{said:?}");
    agent.until("nobody has left anything", |agent| waiting(agent) == 0);
    agent.stop();
    Figures { rounds: 4, ..Figures::default() }.into()
}

/// A person is erased while their events and those of others come and go, and the agent is killed right after, or not: at
/// last nothing of the person is left, and everything of the others is delivered.
fn erased(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut figures = Figures::default();
    for round in 0..scale.of(6, 60) {
        let mut agent = TestAgent::program(Faults { latency_ms: 5, ..Faults::default() });
        agent.start_and_wait();
        let lines = |from: usize| -> String {
            let who =
                |n: usize| if n.is_multiple_of(5) { ANA.to_owned() } else { format!("p{}@acme.dev", n % 37) };
            (from..from + 400).map(|n| track(&format!("m-{n}"), &who(n)) + "\n").collect()
        };
        agent.drop_next("jsonl", lines(0));
        let command = begin(&agent, "erase", &["--email", ANA, "--json"]);
        agent.drop_next("jsonl", lines(400));
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(rng.u64(0..60_000)));
            agent.kill();
            start_again(&mut agent);
        }
        let output = command.wait_with_output().unwrap();
        // 75: the agent was killed before it began, or a file of the person could not be searched.
        let is_erased = output.status.code() == Some(0);
        assert!(is_erased || output.status.code() == Some(75), "{output:?}\n{}", agent.log());
        agent.drop_next("jsonl", lines(800));
        agent.until("others are delivered", |agent| {
            agent.held_ids().iter().filter(|id| !number(id).is_multiple_of(5)).count() == 960
        });
        let output = run(&agent, "erase", &["--email", ANA, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}\n{}", agent.log());
        let state = std::fs::read_dir(agent.state()).unwrap();
        for file in state.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            let bytes = std::fs::read(&file).unwrap();
            assert!(memchr::memmem::find(&bytes, ANA.as_bytes()).is_none(), "{} has her", file.display());
        }
        agent.until_status("all is settled", |status| status.outbox.pending == 0);
        agent.stop();
        // After an erasure nothing of the person is sent.
        let late =
            agent.held_ids().iter().filter(|id| number(id) >= 800 && number(id).is_multiple_of(5)).count();
        assert!(late == 0 || !is_erased, "{late} were sent");
        assert!(round % 2 == 0 || agent.receiver.stats().repeats == 0);
        figures.rounds += 1;
    }
    figures.into()
}

fn number(id: &str) -> usize {
    id.trim_start_matches("m-").parse().unwrap()
}

/// Events that are put back by one retry, in several steps.
const FAILED: usize = 2_300;

/// The agent is killed at a call amid a retry of many events, and started again by another: the command says what has come
/// of it, and each event is delivered once.
fn killed(scale: &Scale) -> Outcome {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return Outcome::Skipped("strace is not installed".into());
    }
    let mut figures = Figures::default();
    let mut rng = scale.rng();
    let mut struck = BTreeMap::new();
    for call in ["fsync,fdatasync", "pwrite64"] {
        let mut from = 1;
        while from < 500 {
            let n = rng.u64(from..2 * from);
            let is_struck = kill_amid_retry(call, n);
            *struck.entry(call).or_insert(0) += u64::from(is_struck);
            figures.rounds += 1;
            if !is_struck {
                break;
            }
            from *= scale.of(3, 2);
        }
    }
    assert!(struck.values().all(|n| *n > 0), "{struck:?}");
    figures.note(format!("struck at {struck:?}")).into()
}

/// Returns whether the agent came so far.
fn kill_amid_retry(call: &str, n: u64) -> bool {
    let mut agent = TestAgent::program(Faults::default());
    fill_with_failed(&agent);
    agent.start_and_wait();
    agent.run_bare();
    let tracer = std::process::Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-p", &agent.pid().to_string()])
        .args([&format!("--trace={call}"), &format!("--inject={call}:signal=KILL:when={n}")])
        .spawn();
    let mut tracer = tracer.unwrap();
    // Without a tracer it would not be struck, which is told.
    std::thread::sleep(Duration::from_millis(300));
    let command = begin(&agent, "retry", &["--state", "failed"]);
    let mut ended = None;
    agent.until("its end, or rest", |agent| {
        ended = agent.exit_status();
        ended.is_some() || agent.receiver.stats().held == FAILED
    });
    let is_struck = ended.is_some();
    if is_struck {
        start_again(&mut agent);
    } else {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(tracer.id().cast_signed()), Signal::SIGTERM);
    }
    tracer.wait().unwrap();
    let output = command.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{call} {n}: {output:?}\n{}", agent.log());
    let said = String::from_utf8(output.stdout).unwrap();
    // The command is finished by the next agent, or finds that the last one has finished it.
    assert!(
        said.contains("2300 events pending again") || said.contains("2,300 events pending again"),
        "{call} {n}: {said}"
    );
    agent.until_status("all is settled", |status| status.outbox.pending == 0);
    agent.stop();
    let held = agent.receiver.events();
    assert_eq!(held.len(), FAILED, "{call} {n}");
    is_struck
}

/// Starts the agent, again where the command owns the outbox for a moment, until it runs.
fn start_again(agent: &mut TestAgent) {
    agent.start();
    agent.until("it runs", |agent| {
        if let Some(ended) = agent.exit_status() {
            assert_eq!(ended.code(), Some(75), "{}", agent.log());
            agent.start();
        }
        let pid = agent.pid().unsigned_abs();
        let status = agent.status().agent;
        status.running && status.pid == Some(pid)
    });
}

/// Makes an outbox with failed events of many persons.
fn fill_with_failed(agent: &TestAgent) {
    let outbox: Outbox = agent.open_outbox();
    let ids: Vec<String> = (0..FAILED).map(|n| format!("m-{n}")).collect();
    let events: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| new_event(id, &track(id, &format!("p{}@acme.dev", n % 97)), "a.jsonl"))
        .collect();
    outbox.writer.append(events, vec![]).block().unwrap();
    let seq = |id: &str| agent.reader().events().show(id).unwrap().unwrap().row.seq;
    let failed = Settled::Failed(Reason::new(Code::Refused, "no"));
    let first = seq(&ids[0]);
    assert_eq!(seq(&ids[FAILED - 1]), first + FAILED as i64 - 1);
    let rows: Vec<_> = (first..first + FAILED as i64).map(|seq| (seq, failed.clone())).collect();
    outbox.writer.settle(rows).block().unwrap();
    outbox.close();
}

/// Commands in the table.
fn waiting(agent: &TestAgent) -> i64 {
    agent.database().query_row("SELECT count(*) FROM commands", [], |r| r.get(0)).unwrap()
}

fn begin(agent: &TestAgent, verb: &str, arguments: &[&str]) -> Child {
    let mut command = agent.command(verb);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(agent: &TestAgent, verb: &str, arguments: &[&str]) -> Output {
    begin(agent, verb, arguments).wait_with_output().unwrap()
}
