//! Faults that the agent survives: each strikes the real program, real files and a receiver that counts, and a table
//! says what came of it.
//!
//! ```sh
//! cargo test --test faults                                  # all of them, a few rounds each
//! cargo test --test faults -- disk 12                       # those of a group, or of a number
//! KOALA_TEST_SEED=7 cargo test --test faults -- model       # with the random numbers of an earlier run
//! KOALA_TEST_SCALE=full cargo test --release --test faults  # overnight: all rounds
//! ```
//!
//! The main job under load and the model, which runs random scripts, are groups of their own.
//!
//! No fault is judged by the time of a machine that others use: attempts, system calls, requests and lines of the log are
//! counted, and a deadline is five times what an idle machine takes. The figures of time are the benchmark's.
//!
//! A fault that this machine cannot run, for want of root, a tool or a mount, is reported as skipped, and why. The
//! controls are the agent with one line spoilt: they must lose events, or the suite could not see a loss.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test code")]

mod calls;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod crash;
mod database;
mod disk;
mod hangs;
mod limits;
mod load;
mod log;
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
    ("commands", commands::FAULTS),
    ("service", service::FAULTS),
    ("load", load::FAULTS),
    ("model", model::FAULTS),
];

fn main() -> std::process::ExitCode {
    // Some faults start this program again as an agent of its own process.
    common::driven::run_if_driven().unwrap_or_else(|| runner::run(GROUPS))
}
