//! The crate doc is the map, and this holds the house to it: imports run one way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the ground up, as the crate doc lists them; each may use those before it.
const FLOORS: [&str; 16] = [
    "reason",
    "clock",
    "event",
    "subject",
    "item",
    "mapping",
    "disk",
    "config",
    "status",
    "telemetry",
    "receiver",
    "spool",
    "koala",
    "outbox",
    "agent",
    "cli",
];

/// These do not know each other.
const WINGS: [&str; 3] = ["mapping", "koala", "outbox"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The room of a file: the first part of its path below src.
fn room(path: &Path) -> String {
    let first = path.strip_prefix("src").unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn used(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let names = code.flat_map(|line| line.split("crate::").skip(1));
    names
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned())
        .collect()
}

#[test]
fn imports_run_down_only_and_the_wings_do_not_know_each_other() {
    let floor = |name: &str| FLOORS.iter().position(|f| *f == name);
    let mut imports = 0;
    for path in sources(Path::new("src")) {
        let from = room(&path);
        if from == "lib" || from == "main" {
            continue;
        }
        let own = floor(&from).unwrap_or_else(|| panic!("{from} has no floor: add it to the map in lib.rs"));
        for to in used(&fs::read_to_string(&path).unwrap()) {
            let Some(other) = floor(&to).filter(|_| to != from) else { continue };
            imports += 1;
            assert!(other < own, "{} uses {to}, which stands above it", path.display());
            let wings = WINGS.contains(&from.as_str()) && WINGS.contains(&to.as_str());
            assert!(!wings, "{} uses {to}: the wings do not know each other", path.display());
        }
    }
    assert!(imports > 50, "only {imports} imports were found");
}

#[test]
fn the_map_lists_every_module_in_the_order_of_the_floors() {
    let map = fs::read_to_string("src/lib.rs").unwrap();
    let listed: Vec<&str> = map
        .lines()
        .filter_map(|line| line.strip_prefix("//! - [`")?.split_once("`]: ").map(|(name, _)| name))
        .collect();
    assert_eq!(listed, FLOORS);
}

#[test]
fn each_kind_of_operation_has_one_room() {
    for (operation, rooms) in [
        ("println!", vec!["cli"]),
        ("eprintln!", vec!["cli"]),
        ("prepare_cached", vec!["outbox"]),
        ("reqwest::Client", vec!["koala"]),
        ("SystemTime::now", vec!["clock", "telemetry"]),
        ("unsafe ", vec![]),
    ] {
        for path in sources(Path::new("src")) {
            let text = fs::read_to_string(&path).unwrap();
            let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            if code.any(|line| line.contains(operation)) {
                assert!(rooms.contains(&room(&path).as_str()), "{operation} stands in {}", path.display());
            }
        }
    }
}
