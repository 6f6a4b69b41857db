//! koala-agent

pub mod cli;
pub mod clock;
pub mod event;
pub mod item;
pub mod koala;
pub mod mapping;
pub mod reason;
pub mod receiver;
