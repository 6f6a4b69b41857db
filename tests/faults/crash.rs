//! The process ends at the worst moment, and the power with it.

use super::control::EARLY_REMOVAL;
use super::place::Place;
use super::stage::{Fault, Figures, Played, Scale};
use super::{calls, power};
use crate::common::kills::{Kill, UNDER_WAY, UnderWay, repeats};
use koala_agent::receiver::Faults;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

pub const FAULTS: &[Fault] = &[
    Fault { name: "1", title: "SIGKILL at random moments", alone: false, play: random_kills },
    Fault {
        name: "1-control",
        title: "the same, files removed before the commit",
        alone: false,
        play: early_removal,
    },
    Fault { name: "2", title: "SIGKILL at each system call", alone: false, play: calls::kill_at_each },
    Fault { name: "3", title: "power cut under load", alone: false, play: power::cuts },
    Fault {
        name: "3-control",
        title: "the same, commits that are not flushed",
        alone: false,
        play: power::cuts_of_a_careless_one,
    },
    Fault { name: "4", title: "SIGTERM while the receiver hangs", alone: true, play: stop_amid_a_backlog },
];

/// How long a file that was not announced must be unchanged. What is dropped here is finished, and a round that waits
/// longer takes longer.
pub const SETTLE: &str = "spool.settle = \"20ms\"";

const PEOPLE: u64 = 50;
/// Two hundred rounds make twenty thousand.
const FILES_A_ROUND: u64 = 100;

fn random_kills(scale: &Scale) -> Played {
    let mut place = Place::new(Faults { latency_ms: 10, ..Faults::default() });
    let kills = kills(&mut place, scale, scale.of(40, 200));
    let figures = Figures { rounds: kills.len() as u64, ..place.end() };
    assert_eq!(place.receiver.stats().held, place.books.dropped.len(), "the receiver sees every event");
    assert_eq!(repeats(&place.receiver, &kills, UNDER_WAY), figures.repeated);
    figures.into()
}

fn early_removal(scale: &Scale) -> Played {
    let program = match EARLY_REMOVAL.build() {
        Err(why) => return Played::Skipped(why),
        Ok(program) => program,
    };
    let mut place = Place::new(Faults { latency_ms: 10, ..Faults::default() });
    place.daemon.program(&program);
    let kills = kills(&mut place, scale, 6);
    place.daemon.stop();
    Figures { control: true, rounds: kills.len() as u64, ..place.balance() }.into()
}

/// Kills the agent at random moments while files are taken and delivered, and lets it come to rest after the last.
fn kills(place: &mut Place, scale: &Scale, rounds: u64) -> Vec<Kill> {
    let mut rng = scale.rng();
    place.daemon.set(SETTLE);
    let mut kills = Vec::new();
    for round in 0..rounds {
        place.drop_mixed(FILES_A_ROUND, PEOPLE);
        let (waiting, held) = (place.waiting_files(), place.receiver.stats().held);
        let left = place.books.dropped.len() - held;
        place.daemon.start();
        match round % 3 {
            0 => until(place, rng.usize(..waiting), |place, few| place.waiting_files() <= few),
            1 => until(place, held + rng.usize(..=left), |place, many| place.receiver.stats().held >= many),
            _ => {}
        }
        thread::sleep(Duration::from_millis(rng.u64(..if round % 3 == 2 { 250 } else { 15 })));
        place.daemon.kill();
        kills.push(Kill::of(&place.daemon, &place.receiver));
    }
    place.start();
    place.until_at_rest();
    assert_eq!(place.daemon.status().outbox.incident, None, "a crash is no damage");
    kills
}

/// Waits closely for a figure, or until nothing waits any more: what is lost never comes.
fn until(place: &mut Place, figure: usize, reached: fn(&Place, usize) -> bool) {
    while !reached(place, figure) && !place.is_idle() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the agent by SIGTERM while a receiver has taken its requests, and answers none.
fn stop_amid_a_backlog(scale: &Scale) -> Played {
    const IN_FLIGHT: usize = 8;
    let mut place = Place::new(Faults::default());
    let way = Way::to(place.receiver.addr());
    place.daemon.set(&format!("koala.endpoint = \"http://{}\"", way.from));
    place.daemon.set(&format!("koala.concurrency = {IN_FLIGHT}"));
    place.daemon.set("koala.timeout = \"10m\"");
    place.daemon.set(SETTLE);
    place.start();
    // Only a receiver that takes events is sent several requests at once.
    place.drop_events(200, PEOPLE);
    place.until_at_rest();
    way.back.store(false, Relaxed);
    let before = place.receiver.stats();
    let all = scale.of(20_000, 100_000);
    for _ in 0..10 {
        place.drop_lines(all / 10, all / 50);
    }
    place.until_status("all is stored", |status| status.outbox.pending == all);
    place.until("requests in flight", |place| {
        place.receiver.stats().accepted_requests == before.accepted_requests + IN_FLIGHT as u64
    });
    let taken = (place.receiver.stats().held - before.held) as u64;
    let stood = states(&place);

    let began = Instant::now();
    place.daemon.stop();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?} to end");
    let kill = Kill::of(&place.daemon, &place.receiver);
    assert_eq!(stood.values().filter(|state| *state == "pending 0").count() as u64, all);
    assert!(states(&place) == stood, "a state has changed");

    way.back.store(true, Relaxed);
    place.start();
    place.until_at_rest();
    place.daemon.stop();
    assert_eq!(repeats(&place.receiver, &[kill], UnderWay { in_flight: IN_FLIGHT, unmarked: 0 }), taken);
    place
        .balance()
        .note(format!("ended in {:.1} s, {IN_FLIGHT} requests in flight", took.as_secs_f64()))
        .into()
}

/// Every event's state and attempts by its id.
fn states(place: &Place) -> BTreeMap<String, String> {
    let outbox = place.daemon.database();
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
        // It ends with the test.
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
