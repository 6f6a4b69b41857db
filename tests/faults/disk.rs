//! The disk is full, fails, or may not be written.

use super::stage::Fault;

pub const FAULTS: &[Fault] = &[];
