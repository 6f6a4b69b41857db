//! koala-agent

pub mod clock;
pub mod event;
pub mod item;
pub mod koala;
pub mod mapping;
pub mod reason;
