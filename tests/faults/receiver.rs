//! The receiver is away, slow, wrong or hostile.

mod answers;
mod away;
mod front;
mod names;
mod odd;
mod order;
mod refusals;
mod tls;

use super::stage::Fault;

pub const FAULTS: &[Fault] = &[
    Fault { name: "22", title: "connections refused for ten minutes", alone: false, play: away::refused },
    Fault {
        name: "22-cpu",
        title: "the same by the machine's clock",
        alone: false,
        play: away::refused_for_real,
    },
    Fault { name: "23", title: "resets around an answer", alone: false, play: order::resets },
    Fault { name: "23-odd", title: "lawful oddities and broken answers", alone: false, play: odd::oddities },
    Fault { name: "24", title: "answers without end", alone: false, play: odd::without_end },
    Fault {
        name: "25",
        title: "a pause asked for, and a restart in it",
        alone: false,
        play: answers::pauses,
    },
    Fault { name: "26", title: "trouble for an hour", alone: false, play: answers::trouble },
    Fault {
        name: "26-one",
        title: "trouble for one event alone",
        alone: false,
        play: answers::trouble_for_one,
    },
    Fault {
        name: "26-closed",
        title: "key, address or service refused",
        alone: false,
        play: answers::closed,
    },
    Fault { name: "26-redirect", title: "redirects to another host", alone: false, play: odd::redirects },
    Fault { name: "27", title: "poisoned events", alone: false, play: refusals::poisoned },
    Fault { name: "28", title: "400 to everything", alone: false, play: refusals::everything },
    Fault { name: "29", title: "a portal's page for everything", alone: false, play: refusals::portal },
    Fault {
        name: "29-large",
        title: "413 above a size, and to everything",
        alone: false,
        play: refusals::too_large,
    },
    Fault { name: "30", title: "receivers that cannot be trusted", alone: false, play: tls::untrusted },
    Fault {
        name: "31",
        title: "the order through kills, resets and pauses",
        alone: false,
        play: order::through_all,
    },
    Fault { name: "32", title: "a name is lost, an address moves", alone: false, play: names::moving },
];
