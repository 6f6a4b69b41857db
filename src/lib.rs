//! koala-agent

pub mod clock;
pub mod config;
pub mod reason;
