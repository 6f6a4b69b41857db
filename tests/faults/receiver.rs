//! The receiver is away, slow, wrong or hostile.

mod answers;
mod away;
mod irregular;
mod names;
mod order;
mod persons;
mod refusals;
mod tls;

use crate::runner::Fault;

pub const FAULTS: &[Fault] = &[
    Fault { name: "22", title: "connections refused for ten minutes", alone: false, run: away::refused },
    Fault {
        name: "22-calls",
        title: "the same, in attempts and system calls",
        alone: false,
        run: away::refused_for_real,
    },
    Fault { name: "23", title: "resets around an answer", alone: false, run: order::resets },
    Fault { name: "23-unusual", title: "unusual and broken answers", alone: false, run: irregular::oddities },
    Fault { name: "24", title: "endless answers", alone: false, run: irregular::without_end },
    Fault { name: "25", title: "a pause asked for, and a restart in it", alone: false, run: answers::pauses },
    Fault { name: "26", title: "unavailable for an hour", alone: false, run: answers::trouble },
    Fault { name: "26-one", title: "500 for one event alone", alone: false, run: answers::trouble_for_one },
    Fault { name: "26-closed", title: "key, address or service refused", alone: false, run: answers::closed },
    Fault {
        name: "26-redirect",
        title: "redirects to another host",
        alone: false,
        run: irregular::redirects,
    },
    Fault { name: "27", title: "poisoned events", alone: false, run: refusals::poisoned },
    Fault { name: "28", title: "400 to everything", alone: false, run: refusals::everything },
    Fault { name: "29", title: "a login page for everything", alone: false, run: refusals::portal },
    Fault {
        name: "29-large",
        title: "413 above a size, and to everything",
        alone: false,
        run: refusals::too_large,
    },
    Fault { name: "30", title: "certificates that are not trusted", alone: false, run: tls::untrusted },
    Fault {
        name: "31",
        title: "the order through kills, resets and pauses",
        alone: false,
        run: order::through_all,
    },
    Fault { name: "37", title: "bad persons in front of good ones", alone: false, run: persons::in_front },
    Fault { name: "38", title: "one request in ten refused", alone: false, run: persons::one_in_ten },
    Fault { name: "32", title: "a name is lost, an address changes", alone: false, run: names::moving },
];
