//! The program as its users meet it: the real binary, its output and its exit codes.

mod check;
mod configuration;
mod init;
mod retry;
mod send;
mod status;
mod users;
