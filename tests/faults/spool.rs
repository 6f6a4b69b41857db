//! The spool holds too much, too strange, or too unsettled files.

use super::stage::Fault;

pub const FAULTS: &[Fault] = &[];
