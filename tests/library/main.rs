//! The parts of the library, each by itself: Segment's vectors, mappings, requests, the client, the built-in receiver.
//! No agent runs here; a test that needs one belongs in `tests/agent`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "test code")]

mod architecture;
#[path = "../common/mod.rs"]
mod common;
mod directives;
mod presets;
mod receiver;
mod requests;
mod triggers;
mod units;
mod vectors;
mod wire;
