//! The crate doc is the map of the program, and these tests hold the program to it: imports run one way, a type's
//! methods stand in its own file, and the main road is as long as the map says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the ground up, as the crate doc lists them; each may use those before it.
const FLOORS: [&str; 17] = [
    "reason",
    "clock",
    "event",
    "subject",
    "item",
    "mapping",
    "disk",
    "limits",
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

/// These rooms do not know each other.
const WINGS: [&str; 3] = ["mapping", "koala", "outbox"];

/// The longest main road that a reader manages in an evening.
const ROAD_FILES: usize = 26;
const ROAD_LINES: usize = 5_500;

/// A source file: its path below `src`, its module path, and its code without comments and unit tests.
struct Source {
    path: PathBuf,
    module: Vec<String>,
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(Path::new("src"), &mut sources);
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().unwrap() != "tests" {
                collect(&path, sources);
            }
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().unwrap() != "tests.rs" {
            sources.push(source(&path));
        }
    }
}

fn source(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split_once("\n#[cfg(test)]\nmod tests {").map_or(text.as_str(), |(code, _)| code);
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let path = path.strip_prefix("src").unwrap();
    let mut module: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    module.pop_if(|last| last == "mod");
    Source {
        path: path.to_owned(),
        module,
        code: code.collect::<Vec<_>>().join("\n"),
        lines: text.lines().count(),
    }
}

impl Source {
    fn room(&self) -> &str {
        &self.module[0]
    }

    fn is_the_crate(&self) -> bool {
        ["lib", "main"].contains(&self.room())
    }

    /// What the file names of the crate: absolute module paths, as far as they are written in one go.
    fn imports(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("crate::").chain(self.code.match_indices("super::")) {
            let before = self.code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut base: Vec<String> = Vec::new();
            let mut rest = &self.code[at..];
            if let Some(after) = rest.strip_prefix("crate::") {
                rest = after;
            } else {
                base.clone_from(&self.module);
                while let Some(after) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = after;
                }
            }
            names(rest, &base, &mut found);
        }
        found
    }
}

/// Reads `a::b::{c, d::e}` behind a base, and adds each path.
fn names(text: &str, base: &[String], found: &mut Vec<Vec<String>>) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut path = base.to_vec();
    if !name.is_empty() {
        path.push(name.to_owned());
        if let Some(rest) = rest.strip_prefix("::") {
            return names(rest, &path, found);
        }
    } else if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' if depth == 0 => {
                    names(group[start..at].trim(), base, found);
                    start = at + 1;
                }
                '}' if depth == 0 => {
                    names(group[start..at].trim(), base, found);
                    return;
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        return;
    }
    found.push(path);
}

#[test]
fn imports_run_down_only_and_the_wings_do_not_know_each_other() {
    let floor = |name: &str| FLOORS.iter().position(|f| *f == name);
    let mut imports = 0;
    for source in sources().iter().filter(|source| !source.is_the_crate()) {
        let (path, from) = (source.path.display(), source.room());
        let own = floor(from).unwrap_or_else(|| panic!("{from} has no floor: add it to the map in lib.rs"));
        for import in source.imports() {
            let Some(other) = import.first().filter(|to| *to != from).and_then(|to| floor(to)) else {
                continue;
            };
            let to = FLOORS[other];
            imports += 1;
            assert!(other < own, "{path} uses {to}, which stands above it");
            let wings = WINGS.contains(&from) && WINGS.contains(&to);
            assert!(!wings, "{path} uses {to}: the wings do not know each other");
        }
    }
    assert!(imports > 50, "only {imports} imports were found");
}

/// A file may use its parent's names and its children; other files of the room only if they do not lead back to it.
#[test]
fn the_files_of_a_room_do_not_use_each_other_in_circles() {
    let sources = sources();
    let known: BTreeSet<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
    let mut uses: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_the_crate()) {
        for import in source.imports() {
            let longest = (1..=import.len()).rev().find_map(|n| known.get(&import[..n]));
            let Some(target) = longest.filter(|target| target[0] == source.module[0]) else { continue };
            if !source.module.starts_with(target) {
                uses.entry(&source.module).or_default().insert(target);
            }
        }
    }
    let count: usize = uses.values().map(BTreeSet::len).sum();
    assert!(count > 100, "only {count} imports between the files of a room were found");
    for start in uses.keys() {
        let (mut reached, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(module) = next.pop() {
            for target in uses.get(module).into_iter().flatten() {
                assert!(target != start, "{} and {} use each other", start.join("::"), module.join("::"));
                if reached.insert(*target) {
                    next.push(target);
                }
            }
        }
    }
}

/// Types whose methods stand in several files, until the room is rebuilt.
const SCATTERED: &[&str] = &[];

#[test]
fn the_methods_of_a_type_stand_in_its_own_file() {
    let sources = sources();
    let mut homes: BTreeMap<&str, BTreeSet<&Path>> = BTreeMap::new();
    for source in &sources {
        for line in source.code.lines() {
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            if matches!(words.next(), Some("struct" | "enum")) {
                let name = words.next().unwrap().split(|c: char| !c.is_alphanumeric()).next().unwrap();
                homes.entry(name).or_default().insert(&source.path);
            }
        }
    }
    let (mut methods, mut away) = (0, BTreeSet::new());
    for source in &sources {
        for line in source.code.lines().filter(|line| line.starts_with("impl") && !line.contains(" for ")) {
            let after = line.trim_start_matches("impl").trim_start();
            let after = if after.starts_with('<') { after.split_once("> ").unwrap().1 } else { after };
            let name = after.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            methods += 1;
            if homes.get(name).is_some_and(|files| !files.contains(source.path.as_path()))
                && !SCATTERED.contains(&name)
            {
                away.insert(format!("{name} in {}", source.path.display()));
            }
        }
    }
    assert!(methods > 100, "only {methods} impl blocks were found");
    assert!(away.is_empty(), "impl blocks away from their types: {away:#?}");
}

#[test]
fn the_map_lists_every_room_in_the_order_of_the_floors() {
    let map = fs::read_to_string("src/lib.rs").unwrap();
    let listed: Vec<&str> = map
        .lines()
        .filter_map(|line| line.strip_prefix("//! - [`")?.split_once("`]: ").map(|(name, _)| name))
        .collect();
    assert_eq!(listed, FLOORS);
}

#[test]
fn the_main_road_can_be_read_in_an_evening() {
    let map = fs::read_to_string("src/lib.rs").unwrap();
    let section = map.split("# The main road").nth(1).and_then(|rest| rest.split("//! # ").next()).unwrap();
    let road: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("//! 1. "))
        .flat_map(|line| line.split('`').skip(1).step_by(2).take(1))
        .collect();
    let sources = sources();
    let mut lines = 0;
    for file in &road {
        let source = sources.iter().find(|source| source.path == Path::new(file));
        let source = source.unwrap_or_else(|| panic!("the main road leads over {file}, which is not there"));
        println!("{:>6} {file}", source.lines);
        lines += source.lines;
    }
    println!("main road: {} files, {lines} lines without tests", road.len());
    assert!((15..=ROAD_FILES).contains(&road.len()), "the main road has {} files", road.len());
    assert!(lines <= ROAD_LINES, "the main road has {lines} lines, of {ROAD_LINES} at most");
}

#[test]
fn each_kind_of_operation_has_one_room() {
    for (operation, rooms) in [
        ("println!", vec!["cli"]),
        ("eprintln!", vec!["cli"]),
        ("prepare_cached", vec!["outbox"]),
        ("reqwest::Client", vec!["koala"]),
        ("SystemTime::now", vec!["clock", "telemetry"]),
        ("unsafe ", vec!["spool"]),
    ] {
        for source in sources() {
            if source.code.contains(operation) {
                let (path, room) = (source.path.display(), source.room());
                assert!(rooms.contains(&room), "{operation} stands in {path}");
            }
        }
    }
}
