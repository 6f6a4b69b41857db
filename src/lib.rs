//! koala-agent
pub mod cli;
pub mod clock;
pub mod config;
pub mod reason;
pub mod receiver;
pub mod spool;
