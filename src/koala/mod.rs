//! Koala's wire.

pub mod batch;
