//! koala-agent
pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod disk;
pub mod event;
pub mod item;
pub mod koala;
pub mod mapping;
pub mod outbox;
pub mod reason;
pub mod receiver;
pub mod spool;
pub mod status;
pub mod telemetry;
