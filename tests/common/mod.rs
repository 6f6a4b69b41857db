//! What the tests stand on, shared by the binaries.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code, and no binary uses all of it"
)]

pub mod daemon;
pub mod frames;
pub mod kills;
pub mod older;
pub mod server;
pub mod setup;
pub mod vectors;
pub mod world;
