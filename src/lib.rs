//! koala-agent

pub mod cli;
pub mod clock;
pub mod reason;
pub mod receiver;
