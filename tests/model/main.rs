//! A model of the agent: random scripts of files, crashes, answers and clocks, played by the core itself, and held
//! against simple books of what must become of each event.
//!
//! ```text
//!   script ──▶ world ──files──▶ spool ──▶ agent (a process) ──▶ receiver
//!                │                          ▲        │             │
//!                │        SIGKILL, clock ───┘      outbox          │
//!                ▼                                   ▼             ▼
//!              books ═══════════ must agree with ════╧═════════════╛   at rest; the outbox with itself, always
//! ```
//!
//! - Every event is at the receiver once under its one id, or where the books have it, for the right reason.
//! - A person's events come in the order of the spool.
//! - States change along legal arrows, and the counters are those of the rows, whenever somebody looks.
//! - At rest no file is left, and no note of one.
//!
//! ```sh
//! cargo test --test model
//! PROPTEST_CASES=1000 cargo test --test model
//! ```
//!
//! A script that fails is made shorter, shown, and kept beside this file, to be played first from then on. A crash
//! strikes at the mercy of the machine's load, so a shorter script is played more than once before it is believed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod agent;
mod books;
mod outbox;
mod rest;
mod script;
mod world;

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};
use script::Step;
use std::cell::Cell;
use std::process::ExitCode;
use std::time::Instant;
use world::World;

/// Scripts, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 24;
/// How often a script is played that is a shorter one of one that has failed.
const PLAYS: u32 = 8;
/// Milliseconds spent on finding the shortest.
const SHRINK: u32 = 180_000;

/// What came of a script or a part of it.
type Played = Result<(), TestCaseError>;

fn main() -> ExitCode {
    if let Some(ended) = agent::live() {
        return ended;
    }
    let given = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/script.proptest-regressions");
    let config = Config {
        cases: given.unwrap_or(CASES),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept))),
        source_file: Some(file!()),
        test_name: Some("model"),
        max_shrink_time: SHRINK,
        max_shrink_iters: u32::MAX,
        ..Config::default()
    };
    let (began, scripts, steps) = (Instant::now(), Cell::new(0), Cell::new(0));
    let failed = Cell::new(false);
    let ended = TestRunner::new(config).run(&script::script(), |script| {
        scripts.set(scripts.get() + 1);
        steps.set(steps.get() + script.len());
        for _ in 0..if failed.get() { PLAYS } else { 1 } {
            play(&script).inspect_err(|why| {
                println!("{why}");
                failed.set(true);
            })?;
        }
        Ok(())
    });
    match ended {
        Ok(()) => {
            println!("{} scripts of {} steps held, {:.0?}", scripts.get(), steps.get(), began.elapsed());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            // Once more, below a script that may be long.
            if let TestError::Fail(why, _) = &error {
                println!("model: {why}");
            }
            ExitCode::FAILURE
        }
    }
}

fn play(script: &[Step]) -> Played {
    let mut world = World::new();
    for step in script {
        world.play(step)?;
    }
    world.rest()
}
