//! The receiver is away, slow, wrong or hostile.

use super::stage::Fault;

pub const FAULTS: &[Fault] = &[];
