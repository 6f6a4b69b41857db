//! The program as its users meet it: the real binary, its output and its exit codes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod change;
mod events;
mod look;
mod people;
mod place;
mod world;
