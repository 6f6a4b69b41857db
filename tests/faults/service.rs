//! Time jumps, the process hangs, the service manager watches, and the key stays secret.

use super::stage::Fault;
use super::{hangs, secrets, soak, steps};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "33",
        title: "the clock steps in every kind of wait",
        alone: false,
        play: steps::in_every_wait,
    },
    Fault { name: "34", title: "SIGSTOP for longer than the time-out", alone: false, play: hangs::stopped },
    Fault {
        name: "34-hang",
        title: "a flush hangs and the watchdog acts",
        alone: false,
        play: hangs::hung_flush,
    },
    Fault { name: "36", title: "the key, in every trouble", alone: false, play: secrets::key_is_nowhere },
    Fault { name: "soak", title: "load and trouble over and over", alone: false, play: soak::nothing_grows },
];
