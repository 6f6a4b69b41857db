//! The process ends at the worst moment, and the power with it.

use super::control::Control;
use super::kills::{Kill, UNDER_WAY, repeats};
use super::place::Place;
use super::stage::{Fault, Figures, Played, Scale};
use super::{calls, power};
use koala_agent::receiver::Faults;
use std::thread;
use std::time::Duration;

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
];

/// How long a file that was not announced must be unchanged. What is dropped here is finished, and a round that waits
/// longer takes longer.
pub const SETTLE: &str = "spool.settle = \"20ms\"";

const PEOPLE: u64 = 50;
/// Two hundred rounds make twenty thousand.
const FILES_A_ROUND: u64 = 100;

/// An agent that removes a file when its events are on their way to the disk, not when they are there.
const EARLY_REMOVAL: Control = Control {
    name: "early-removal",
    file: "agent/intake.rs",
    line: "let answer = self.parts.writer.append(chunk.events.clone(), chunk.progress());",
    spoilt: "for source in &chunk.sources {
            let _ = std::fs::remove_file(self.parts.spool.dir().join(&source.entry.name));
        }
        std::thread::sleep(Duration::from_millis(20));
        let answer = self.parts.writer.append(chunk.events.clone(), chunk.progress());",
};

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
    kills
}

/// Waits closely for a figure, or until nothing waits any more: what is lost never comes.
fn until(place: &mut Place, figure: usize, reached: fn(&Place, usize) -> bool) {
    while !reached(place, figure) && !place.is_at_rest() {
        thread::sleep(Duration::from_millis(1));
    }
}
