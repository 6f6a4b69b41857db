//! The database is damaged, gone, of another version, or in use.

use super::stage::Fault;

pub const FAULTS: &[Fault] = &[];
