//! The test agent and what else the tests share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "test code, and no binary uses all of it"
)]

pub mod agent;
pub mod driven;
pub mod events;
pub mod frames;
pub mod kills;
pub mod ledger;
pub mod process;
pub mod proxy;
pub mod server;
pub mod setup;
pub mod vectors;
