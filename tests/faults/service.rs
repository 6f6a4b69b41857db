//! The clock jumps, the process hangs, the service manager watches, the key stays secret, and the log stays short.

use super::{hangs, log, secrets, soak, steps};
use crate::runner::Fault;

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "33",
        title: "the clock steps in every kind of wait",
        alone: false,
        run: steps::in_every_wait,
    },
    Fault { name: "34", title: "SIGSTOP for longer than the time-out", alone: false, run: hangs::stopped },
    Fault {
        name: "34-hang",
        title: "a flush hangs and the watchdog acts",
        alone: false,
        run: hangs::hung_flush,
    },
    Fault { name: "36", title: "the key, in every failure", alone: false, run: secrets::key_is_nowhere },
    Fault { name: "log", title: "the log of an hour in which all goes well", alone: false, run: log::hour },
    Fault { name: "soak", title: "load and failures over and over", alone: false, run: soak::nothing_grows },
];
