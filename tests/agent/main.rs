//! The whole agent, as those see it who use it: the files of the spool, the commands and their exit codes, the SQL views,
//! and what a receiver is sent. It runs in the test's process or as the real program, whichever shows the fact sooner.
//!
//! Faults that the agent survives are in `tests/faults`; facts that need no agent are in `tests/library`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "test code")]

mod cli;
#[path = "../common/mod.rs"]
mod common;
mod delivery;
mod docs;
mod erase;
mod export;
mod forms;
mod mappings;
mod monitoring;
mod outbox;
mod owners;
mod producers;
mod spool;
mod vectors;
mod verdicts;
