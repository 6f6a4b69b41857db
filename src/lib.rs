//! koala-agent

pub mod clock;
pub mod reason;
