//! What the agent survives: each fault strikes the real program, real files and a receiver that counts, and a table
//! says what came of it.
//!
//! ```sh
//! cargo test --test faults                                  # all of them, a few rounds each
//! cargo test --test faults -- disk 12                       # those of a group, or of a number
//! KOALA_TEST_SCALE=full cargo test --release --test faults  # overnight: all rounds
//! ```
//!
//! A fault that this machine cannot play, for want of root, a tool or a mount, is told as skipped, and why. The
//! controls are the agent with one line spoilt: they must lose events, or the suite could not see a loss.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod crash;
mod database;
mod disk;
mod hangs;
mod load;
mod machine;
mod model;
mod power;
mod receiver;
mod runner;
mod secrets;
mod service;
mod soak;
mod spool;
mod steps;
mod tracer;

use runner::Fault;

/// All faults, in the order of the table.
const GROUPS: &[(&str, &[Fault])] = &[
    ("crash and power", crash::FAULTS),
    ("disk", disk::FAULTS),
    ("database", database::FAULTS),
    ("spool", spool::FAULTS),
    ("receiver", receiver::FAULTS),
    ("service", service::FAULTS),
    ("load", load::FAULTS),
    ("model", model::FAULTS),
];

fn main() -> std::process::ExitCode {
    // Some faults start this program again as an agent of its own process.
    common::driven::run_if_driven().unwrap_or_else(|| runner::run(GROUPS))
}
