//! A model of the agent: random scripts of files, crashes, answers and clocks are run by a real agent, and what comes of
//! each event is checked against the ledger.
//!
//! ```text
//!   script ──▶ run ──files──▶ spool ──▶ agent (a process) ──▶ receiver
//!               │                         ▲        │             │
//!               │       SIGKILL, clock ───┘      outbox          │
//!               ▼                                  ▼             ▼
//!             ledger ═══════ must agree with ══════╧═════════════╛   at rest; the outbox with itself, always
//! ```
//!
//! - Every event is at the receiver once under its one id, or where the ledger expects it, for the right reason.
//! - A person's events come in the order of the spool.
//! - States change along legal arrows, and the counters are those of the rows, whenever somebody reads them.
//! - At rest no file is left, and no note of one.
//!
//! ```sh
//! cargo test --test faults -- model
//! PROPTEST_CASES=1000 cargo test --test faults -- model
//! ```
//!
//! A script that fails is made shorter, shown, and kept in `model/`, to be run first from then on. When exactly a crash
//! strikes depends on the machine's load, so a shorter script is run several times before it counts as one that holds.

mod files;
mod outbox;
mod rest;
mod run;
mod script;

use crate::runner::{Fault, Figures, Outcome, Scale};
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};
use run::Run;
use script::Step;
use std::cell::Cell;

pub const FAULTS: &[Fault] =
    &[Fault { name: "model", title: "random scripts against a model", alone: true, run: scripts }];

/// How often a shorter one of a script that has failed is run.
const RUNS: u32 = 8;
/// Milliseconds spent on finding the shortest script that fails.
const SHRINK: u32 = 180_000;

/// Whether a script, or a part of it, held.
type Checked = Result<(), TestCaseError>;

fn scripts(scale: &Scale) -> Outcome {
    let given = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/model/script.proptest-regressions");
    let config = Config {
        cases: given.unwrap_or(scale.of(24, 1_000)),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept))),
        source_file: Some(file!()),
        test_name: Some("model"),
        max_shrink_time: SHRINK,
        max_shrink_iters: u32::MAX,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes(scale.seed));
    let (scripts, steps, failed) = (Cell::new(0), Cell::new(0), Cell::new(false));
    let ended = TestRunner::new_with_rng(config, rng).run(&script::script(), |script| {
        scripts.set(scripts.get() + 1);
        steps.set(steps.get() + script.len());
        for _ in 0..if failed.get() { RUNS } else { 1 } {
            run(&script).inspect_err(|_| failed.set(true))?;
        }
        Ok(())
    });
    ended.unwrap_or_else(|error| panic!("{error}"));
    let steps = steps.get();
    Figures { rounds: scripts.get(), ..Figures::default() }.note(format!("{steps} steps")).into()
}

/// The seed of the whole run, in the bytes that proptest takes.
fn seed_bytes(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

fn run(script: &[Step]) -> Checked {
    let mut run = Run::new();
    for step in script {
        run.step(step)?;
    }
    run.rest()
}
