//! The process ends at the worst moment, and the power with it.

use super::{calls, power};
use crate::common::agent::TestAgent;
use crate::common::kills::{Kill, UNDER_WAY, UnderWay, repeats};
use crate::control::EARLY_REMOVAL;
use crate::runner::{Fault, Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

pub const FAULTS: &[Fault] = &[
    Fault { name: "1", title: "SIGKILL at random moments", alone: false, run: random_kills },
    Fault {
        name: "1-control",
        title: "the same, files removed before the commit",
        alone: false,
        run: early_removal,
    },
    Fault { name: "2", title: "SIGKILL at each system call", alone: false, run: calls::kill_at_each },
    Fault { name: "3", title: "power cut under load", alone: false, run: power::cuts },
    Fault {
        name: "3-control",
        title: "the same, commits that are not flushed",
        alone: false,
        run: power::cuts_of_a_careless_one,
    },
    Fault { name: "4", title: "SIGTERM while the receiver hangs", alone: true, run: stop_amid_a_backlog },
];

/// How long a file that was not announced must be unchanged. What is dropped here is finished, and a round that waits
/// longer takes longer.
pub const SETTLE: &str = "spool.settle = \"20ms\"";

const PEOPLE: u64 = 50;
/// Two hundred rounds make twenty thousand.
const FILES_A_ROUND: u64 = 100;

fn random_kills(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults { latency_ms: 10, ..Faults::default() });
    let kills = kills(&mut agent, scale, scale.of(40, 200));
    let figures = Figures { rounds: kills.len() as u64, ..agent.end() };
    assert_eq!(agent.receiver.stats().held, agent.ledger.dropped.len(), "the receiver sees every event");
    assert_eq!(repeats(&agent.receiver, &kills, UNDER_WAY), figures.repeated);
    figures.into()
}

fn early_removal(scale: &Scale) -> Outcome {
    let program = match EARLY_REMOVAL.build() {
        Err(why) => return Outcome::Skipped(why),
        Ok(program) => program,
    };
    let mut agent = TestAgent::program(Faults { latency_ms: 10, ..Faults::default() });
    agent.use_program(&program);
    let kills = kills(&mut agent, scale, 6);
    agent.stop();
    Figures { control: true, rounds: kills.len() as u64, ..agent.balance() }.into()
}

/// Kills the agent at random moments while files are taken and delivered, and lets it come to rest after the last.
fn kills(agent: &mut TestAgent, scale: &Scale, rounds: u64) -> Vec<Kill> {
    let mut rng = scale.rng();
    agent.set(SETTLE);
    let mut kills = Vec::new();
    for round in 0..rounds {
        agent.drop_mixed(FILES_A_ROUND, PEOPLE);
        let (waiting, held) = (agent.files_in_spool(), agent.receiver.stats().held);
        let left = agent.ledger.dropped.len() - held;
        agent.start();
        match round % 3 {
            0 => until(agent, rng.usize(..waiting), |agent, few| agent.files_in_spool() <= few),
            1 => until(agent, held + rng.usize(..=left), |agent, many| agent.receiver.stats().held >= many),
            _ => {}
        }
        thread::sleep(Duration::from_millis(rng.u64(..if round % 3 == 2 { 250 } else { 15 })));
        agent.kill();
        kills.push(Kill::of(agent));
    }
    agent.start_and_wait();
    agent.until_empty();
    assert_eq!(agent.status().outbox.incident, None, "a crash is no damage");
    kills
}

/// Waits closely for a figure, or until nothing waits any more: what is lost never comes.
fn until(agent: &mut TestAgent, figure: usize, reached: fn(&TestAgent, usize) -> bool) {
    while !reached(agent, figure) && !agent.is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the agent by SIGTERM while a receiver has taken its requests, and answers none.
fn stop_amid_a_backlog(scale: &Scale) -> Outcome {
    const IN_FLIGHT: usize = 8;
    let mut agent = TestAgent::program(Faults::default());
    let way = Way::to(agent.receiver.addr());
    agent.set(&format!("koala.endpoint = \"http://{}\"", way.from));
    agent.set(&format!("koala.concurrency = {IN_FLIGHT}"));
    agent.set("koala.timeout = \"10m\"");
    agent.set(SETTLE);
    agent.start_and_wait();
    // Only a receiver that takes events is sent several requests at once.
    agent.drop_events(200, PEOPLE);
    agent.until_empty();
    way.back.store(false, Relaxed);
    let before = agent.receiver.stats();
    let all = scale.of(20_000, 100_000);
    for _ in 0..10 {
        agent.drop_lines(all / 10, all / 50);
    }
    agent.until_status("all is stored", |status| status.outbox.pending == all);
    agent.until("requests in flight", |agent| {
        agent.receiver.stats().accepted_requests == before.accepted_requests + IN_FLIGHT as u64
    });
    let taken = (agent.receiver.stats().held - before.held) as u64;
    let stood = states(&agent);

    let began = Instant::now();
    agent.stop();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(50), "it took {took:?} to end");
    let kill = Kill::of(&agent);
    assert_eq!(stood.values().filter(|state| *state == "pending 0").count() as u64, all);
    assert!(states(&agent) == stood, "a state has changed");

    way.back.store(true, Relaxed);
    agent.start_and_wait();
    agent.until_empty();
    agent.stop();
    assert_eq!(repeats(&agent.receiver, &[kill], UnderWay { in_flight: IN_FLIGHT, unmarked: 0 }), taken);
    agent
        .balance()
        .note(format!("ended in {:.1} s, {IN_FLIGHT} requests in flight", took.as_secs_f64()))
        .into()
}

/// Every event's state and attempts by its id.
fn states(agent: &TestAgent) -> BTreeMap<String, String> {
    let outbox = agent.database();
    let sql = "SELECT message_id, state || ' ' || attempts FROM outbox_events";
    let mut rows = outbox.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A way to a receiver that can be cut half: what is sent arrives there, and no answer comes back.
struct Way {
    from: SocketAddr,
    /// Whether answers come back.
    back: Arc<AtomicBool>,
}

impl Way {
    fn to(receiver: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = Way { from: listener.local_addr().unwrap(), back: Arc::new(true.into()) };
        let back = way.back.clone();
        // The thread ends with the test.
        thread::spawn(move || {
            for sender in listener.incoming() {
                let (sender, receiver) = (sender.unwrap(), TcpStream::connect(receiver).unwrap());
                let back = back.clone();
                let answers = (receiver.try_clone().unwrap(), sender.try_clone().unwrap());
                thread::spawn(move || pass_on(sender, receiver, || true));
                thread::spawn(move || pass_on(answers.0, answers.1, move || back.load(Relaxed)));
            }
        });
        way
    }
}

/// Passes on what comes, as far as it may, until the end of either.
fn pass_on(mut from: TcpStream, mut to: TcpStream, may: impl Fn() -> bool) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if may() && to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
