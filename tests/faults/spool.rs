//! The spool holds too much, too strange, or too unsettled files.

mod flood;
mod horrors;
mod moved;
mod odd;
mod private;
mod unheard;
mod unsettled;

use super::place::Place;
use super::stage::Fault;
use koala_agent::receiver::Faults;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const FAULTS: &[Fault] = &[
    Fault { name: "15", title: "a million files at start", alone: true, play: flood::at_start },
    Fault { name: "15-rejected", title: "ten thousand bad files", alone: true, play: flood::bad_ones },
    Fault { name: "16", title: "the watcher's queue overflows", alone: true, play: unheard::overflow },
    Fault { name: "16-fuse", title: "FUSE, where no events come", alone: false, play: unheard::fuse },
    Fault { name: "16-bind", title: "a bind mount", alone: false, play: unheard::bind_mount },
    Fault { name: "16-deaf", title: "a system that cannot watch", alone: false, play: unheard::deaf },
    Fault { name: "17", title: "files written a byte at a time", alone: false, play: unsettled::in_place },
    Fault { name: "17-renamed", title: "renames over one name", alone: false, play: unsettled::renamed },
    Fault { name: "17-changed", title: "deleted, cut, rewritten", alone: false, play: unsettled::changed },
    Fault { name: "17-anew", title: "begun anew, partly taken", alone: false, play: unsettled::begun_anew },
    Fault { name: "17-moved", title: "the folder is moved away", alone: false, play: moved::moved },
    Fault { name: "17-emptied", title: "the folder is deleted", alone: false, play: moved::deleted },
    Fault { name: "18", title: "odd files among good ones", alone: true, play: odd::zoo },
    Fault { name: "18-swap", title: "swapped before the removal", alone: false, play: odd::swapped },
    Fault { name: "18-times", title: "odd times and long names", alone: false, play: odd::times_and_names },
    Fault { name: "19", title: "horrors of JSON", alone: false, play: horrors::kinds },
    Fault { name: "19-large", title: "large documents", alone: true, play: horrors::large },
    Fault { name: "20", title: "gzip bombs", alone: true, play: horrors::bombs },
    Fault { name: "21", title: "files that may not be read", alone: false, play: private::for_hours },
];

/// A place whose folder is looked at often.
fn brisk() -> Place {
    let mut place = Place::new(Faults::default());
    place.daemon.set("spool.scan_interval = \"500ms\"");
    place.daemon.set("spool.settle = \"100ms\"");
    place
}

/// The user and the group that have no rights of their own.
const NOBODY: u32 = 65_534;

/// Has the agent run as an ordinary user who owns its folders: root may read every file.
///
/// # Errors
/// Why it cannot.
fn as_nobody(place: &mut Place) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    needs("setpriv")?;
    for folder in ["", "spool", "aside"] {
        chown(place.daemon.path(folder), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()];
    place.daemon.under(["setpriv".to_owned()].into_iter().chain(ids));
    Ok(())
}

/// # Errors
/// The tool is not here.
fn needs(tool: &str) -> Result<(), String> {
    let asked = Command::new(tool).arg("--version").output();
    asked.map(|_| ()).map_err(|_| format!("{tool} is not installed"))
}

/// # Errors
/// We are not root.
fn needs_root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("this takes root".to_owned()) }
}

/// The properties of every event that the receiver holds, in the order in which they came.
fn held(place: &Place) -> Vec<Value> {
    let events = place.receiver.events();
    let mut events: Vec<_> = events.into_iter().collect();
    events.sort_by_key(|held| held.request);
    events
        .iter()
        .map(|held| serde_json::from_str::<Value>(held.item.get()).unwrap()["properties"].take())
        .collect()
}

/// The names in `rejected/`, without those of the reasons.
fn rejected(place: &Place) -> Vec<PathBuf> {
    let files = fs::read_dir(place.daemon.spool().join("rejected")).into_iter().flatten();
    let files = files.map(|file| PathBuf::from(file.unwrap().file_name()));
    let mut names: Vec<_> = files.filter(|name| !ends_with(name, ".why")).collect();
    names.sort();
    names
}

fn ends_with(name: &Path, ending: &str) -> bool {
    name.as_os_str().as_encoded_bytes().ends_with(ending.as_bytes())
}

/// How many lines of the log have that in them.
fn lines_with(place: &Place, part: &str) -> usize {
    place.daemon.log().lines().filter(|line| line.contains(part)).count()
}
