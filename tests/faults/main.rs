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

mod books;
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod crash;
#[path = "../common/daemon.rs"]
mod daemon;
mod database;
mod disk;
mod hangs;
mod hours;
#[path = "../common/kills.rs"]
mod kills;
mod log;
mod place;
mod power;
mod receiver;
mod secrets;
#[path = "../common/server.rs"]
mod server;
mod service;
mod soak;
mod spool;
mod stage;
mod steps;

use stage::Fault;

/// All faults, in the order of the table.
const GROUPS: &[(&str, &[Fault])] = &[
    ("crash and power", crash::FAULTS),
    ("disk", disk::FAULTS),
    ("database", database::FAULTS),
    ("spool", spool::FAULTS),
    ("receiver", receiver::FAULTS),
    ("service", service::FAULTS),
];

fn main() -> std::process::ExitCode {
    stage::play(GROUPS)
}
