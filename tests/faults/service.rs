//! Time jumps, the process hangs, the service manager watches, and the key stays secret.

use super::stage::Fault;

pub const FAULTS: &[Fault] = &[];
