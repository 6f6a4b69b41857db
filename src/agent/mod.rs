//! The loops.
mod triage;
pub use triage::triage;
