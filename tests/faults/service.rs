//! The clock jumps, the process hangs, the service manager watches, the key stays secret, the log stays short or cannot be
//! written, and the system sets limits.

use super::{hangs, limits, log, secrets, soak, steps};
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
    Fault {
        name: "36-first",
        title: "the first key, for another address",
        alone: false,
        run: secrets::first_key,
    },
    Fault {
        name: "42-log",
        title: "the log closed, full, without a reader, standing still",
        alone: false,
        run: limits::log_cannot_be_written,
    },
    Fault {
        name: "42-log-disk",
        title: "the log on a full disk that gets room again",
        alone: false,
        run: limits::log_on_a_full_disk,
    },
    Fault {
        name: "42-size",
        title: "files may not grow (RLIMIT_FSIZE)",
        alone: false,
        run: limits::file_size,
    },
    Fault {
        name: "42-files",
        title: "few open files (RLIMIT_NOFILE)",
        alone: false,
        run: limits::open_files,
    },
    Fault { name: "log", title: "the log of an hour in which all goes well", alone: false, run: log::hour },
    Fault { name: "log-notices", title: "each line that the page lists", alone: false, run: log::notices },
    Fault { name: "soak", title: "load and failures over and over", alone: false, run: soak::nothing_grows },
];
