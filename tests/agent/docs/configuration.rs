//! koala-agent.toml(5): its keys, defaults and examples.

use super::text::{PACKAGED, TOML, literal, section};
use crate::common::setup::Setup;
use std::collections::BTreeMap;
use std::fs;

/// Reads the keys of the packaged configuration with their defaults; `None` means not set by default.
fn packaged_keys() -> BTreeMap<String, Option<String>> {
    const OF_A_MAPPING: [&str; 5] = ["preset", "name", "trigger", "action", "fields"];
    let mut keys = BTreeMap::new();
    let mut prefix = String::new();
    for line in PACKAGED.lines() {
        if let Some(section) = line.strip_prefix('[') {
            prefix = format!("{}.", section.trim_end_matches(']'));
        }
        let Some(line) = line.strip_prefix('#') else { continue };
        let Some((name, value)) = line.split_once(" = ") else { continue };
        let is_name = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        match name.strip_prefix(' ') {
            None => assert_eq!(keys.insert(format!("{prefix}{name}"), Some(value.to_owned())), None),
            Some(name) if is_name(name) && !(prefix.is_empty() && OF_A_MAPPING.contains(&name)) => {
                assert_eq!(keys.insert(format!("{prefix}{name}"), None), None);
            }
            Some(_) => {}
        }
    }
    keys
}

#[test]
fn the_page_of_the_configuration_has_every_key_with_its_default() {
    let mut documented = BTreeMap::new();
    for line in section(TOML, "KEYS") {
        let Some(item) = line.strip_prefix(".It Ic ").filter(|item| *item != "[[mapping]]") else { continue };
        let (key, default) = match item.split_once(" No = ") {
            Some((key, default)) => (key, Some(default.replace("\\(dq", "\""))),
            None => (item, None),
        };
        documented.insert(key.to_owned(), default);
    }
    assert_eq!(documented, packaged_keys());
}

#[test]
fn every_default_on_the_page_is_the_default() {
    let setup = Setup::new();
    let mut text = String::new();
    for (key, default) in packaged_keys() {
        text += &default.map(|default| format!("{key} = {default}\n")).unwrap_or_default();
    }
    fs::write(setup.config_file(), text).unwrap();
    let written = setup.config();
    fs::write(setup.config_file(), "").unwrap();
    let defaults = setup.config();
    assert_eq!((written.spool, written.outbox), (defaults.spool, defaults.outbox));
    assert_eq!(written.koala.endpoint, defaults.koala.endpoint);
    assert_eq!(written.koala.concurrency, defaults.koala.concurrency);
    assert_eq!(written.koala.timeout, defaults.koala.timeout);
}

#[test]
fn the_example_configuration_can_be_written_in_the_environment() {
    let blocks = literal(&section(TOML, "EXAMPLES"));
    let [file, environment] = blocks.as_slice() else { panic!("{blocks:?}") };
    let setup = Setup::new();
    fs::write(setup.config_file(), file).unwrap();
    let written = setup.config();
    fs::write(setup.config_file(), "").unwrap();
    let variables = environment.lines().map(|line| line.split_once('=').unwrap());
    let options = koala_agent::config::ConfigOptions::with_file(setup.config_file());
    let set = koala_agent::config::load(&options, &variables.collect()).unwrap();
    assert_eq!((set.warnings, set.outbox), (written.warnings, written.outbox));
    assert_eq!(
        (set.koala.endpoint, set.koala.ca_file, set.koala.concurrency),
        (written.koala.endpoint, written.koala.ca_file, written.koala.concurrency)
    );
}
