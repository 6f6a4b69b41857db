//! The program as its users meet it: the real binary, its output and its exit codes.

mod change;
mod events;
mod look;
mod people;
mod place;
