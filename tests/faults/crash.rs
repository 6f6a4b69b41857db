//! The process ends at the worst moment, and the power with it.

use super::control::Control;
use super::place::Place;
use super::stage::{Fault, Figures, Played, Scale};
use koala_agent::receiver::Faults;
use std::path::Path;
use std::time::Duration;

pub const FAULTS: &[Fault] = &[
    Fault { name: "1", title: "SIGKILL at random moments", alone: false, play: random_kills },
    Fault {
        name: "1-control",
        title: "the same, files removed before the commit",
        alone: false,
        play: early_removal,
    },
];

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
    kills(scale, None).into()
}

fn early_removal(scale: &Scale) -> Played {
    match EARLY_REMOVAL.build() {
        Err(why) => Played::Skipped(why),
        Ok(program) => Figures { control: true, ..kills(scale, Some(&program)) }.into(),
    }
}

/// Kills the agent at random moments while files are taken and delivered.
fn kills(scale: &Scale, program: Option<&Path>) -> Figures {
    let mut rng = scale.rng();
    let mut place = Place::new(Faults { latency_ms: 2, ..Faults::default() });
    if let Some(program) = program {
        place.daemon.program(program);
    }
    let kills = scale.of(20, 200);
    let all = scale.of(2_000, 20_000);
    for _ in 0..kills {
        place.drop_events(all / kills, 50);
        place.daemon.start();
        std::thread::sleep(Duration::from_millis(rng.u64(5..400)));
        place.daemon.kill();
    }
    place.daemon.start();
    let mut figures = if program.is_some() {
        std::thread::sleep(Duration::from_secs(5));
        place.daemon.stop();
        place.balance()
    } else {
        place.end()
    };
    figures.rounds = kills;
    figures
}
