//! The spool holds too much, too strange, or too unsettled files.

mod flood;
mod irregular;
mod kinds;
mod moved;
mod neighbours;
mod owners;
mod private;
mod tools;
mod unheard;
mod unsettled;
mod writers;

use crate::common::agent::TestAgent;
use crate::machine::{needs, needs_root};
use crate::runner::Fault;
use koala_agent::receiver::Faults;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

pub const FAULTS: &[Fault] = &[
    Fault { name: "15", title: "a million files at start", alone: true, run: flood::at_start },
    Fault { name: "15-rejected", title: "thousands of bad files", alone: true, run: flood::bad_ones },
    Fault { name: "16", title: "the watcher's queue overflows", alone: true, run: unheard::overflow },
    Fault { name: "16-fuse", title: "FUSE, where no events come", alone: false, run: unheard::fuse },
    Fault { name: "16-bind", title: "a bind mount", alone: false, run: unheard::bind_mount },
    Fault { name: "16-no-inotify", title: "a system without inotify", alone: false, run: unheard::deaf },
    Fault { name: "17", title: "files written a byte at a time", alone: false, run: unsettled::in_place },
    Fault { name: "17-renamed", title: "renames over one name", alone: false, run: unsettled::renamed },
    Fault { name: "17-changed", title: "deleted, cut, rewritten", alone: false, run: unsettled::changed },
    Fault {
        name: "17-rewritten",
        title: "rewritten, partly ingested",
        alone: false,
        run: unsettled::begun_anew,
    },
    Fault { name: "17-moved", title: "the folder is moved away", alone: false, run: moved::moved },
    Fault { name: "17-emptied", title: "the folder is deleted", alone: false, run: moved::deleted },
    Fault { name: "18", title: "irregular files among good ones", alone: true, run: irregular::files },
    Fault { name: "18-swap", title: "swapped before the removal", alone: false, run: irregular::swapped },
    Fault {
        name: "18-times",
        title: "odd times and long names",
        alone: false,
        run: irregular::times_and_names,
    },
    Fault { name: "19", title: "texts that are hardly JSON", alone: false, run: kinds::texts },
    Fault { name: "19-large", title: "large documents", alone: true, run: kinds::large },
    Fault { name: "20", title: "gzip bombs", alone: true, run: kinds::bombs },
    Fault { name: "21", title: "unreadable files", alone: false, run: private::for_hours },
    Fault { name: "39", title: "one user's worst beside another", alone: true, run: owners::side_by_side },
    Fault { name: "39-crowd", title: "a crowd beside a trickle", alone: true, run: neighbours::crowded },
    Fault { name: "40", title: "writers that pause", alone: false, run: writers::pausing },
    Fault { name: "40-tools", title: "tools that write their own way", alone: false, run: tools::writers },
    Fault { name: "40-copies", title: "copies of one time", alone: false, run: tools::copies },
    Fault {
        name: "40-no-lease",
        title: "writers nobody knows of",
        alone: false,
        run: writers::without_leases,
    },
];

/// The program with a spool that is scanned often.
fn brisk() -> TestAgent {
    let mut agent = TestAgent::program(Faults::default());
    agent.set("spool.scan_interval = \"500ms\"");
    agent.set("spool.settle = \"100ms\"");
    agent
}

/// The user and the group that have no rights of their own.
const NOBODY: u32 = 65_534;

/// Has the agent run as an ordinary user who owns its folders: root may read every file.
///
/// # Errors
/// Why it cannot.
fn as_nobody(agent: &mut TestAgent) -> Result<(), String> {
    if needs_root().is_err() {
        return Ok(());
    }
    needs("setpriv")?;
    for folder in ["", "spool", "beside"] {
        chown(agent.path(folder), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()];
    agent.run_under(["setpriv".to_owned()].into_iter().chain(ids));
    Ok(())
}

/// The file is its user's, too; where the agent runs as anybody else, it is left as it is.
fn give_to_nobody(file: &Path) {
    if needs_root().is_ok() {
        chown(file, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The properties of every event that the receiver holds, in the order in which they came.
fn held(agent: &TestAgent) -> Vec<Value> {
    let events = agent.receiver.events();
    let mut events: Vec<_> = events.into_iter().collect();
    events.sort_by_key(|held| held.request);
    events
        .iter()
        .map(|held| serde_json::from_str::<Value>(held.item.get()).unwrap()["properties"].take())
        .collect()
}

/// The names in `rejected/`, without those of the reasons.
fn rejected(agent: &TestAgent) -> Vec<PathBuf> {
    let files = fs::read_dir(agent.spool().join("rejected")).into_iter().flatten();
    let files = files.map(|file| PathBuf::from(file.unwrap().file_name()));
    let mut names: Vec<_> = files.filter(|name| !ends_with(name, ".why")).collect();
    names.sort();
    names
}

fn ends_with(name: &Path, ending: &str) -> bool {
    name.as_os_str().as_encoded_bytes().ends_with(ending.as_bytes())
}
