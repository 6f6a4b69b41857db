//! A configuration: the text of a file, then after a NUL variables of the environment, `NAME=value` a line.

#![no_main]

use koala_agent::config::{ConfigOptions, Environment, load};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::sync::LazyLock;
use tempfile::TempDir;

/// No key, and so to be blamed; but never shown.
const SECRET: &str = "s3cr3t/s3cr3t";

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let (file, variables) = match bytes.iter().position(|b| *b == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &bytes[..0]),
    };
    let path = FOLDER.path().join("config.toml");
    fs::write(&path, file).unwrap();
    let variables = String::from_utf8_lossy(variables).into_owned();
    let variables: Vec<(&str, &str)> = variables.lines().filter_map(|line| line.split_once('=')).collect();
    let options = ConfigOptions::with_file(path);
    match load(&options, &variables.iter().copied().collect::<Environment>()) {
        Ok(config) => drop(format!("{config:?}")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let secret = [("KOALA_AGENT_KOALA__PUBLIC_KEY", SECRET)];
    let error = load(&options, &variables.into_iter().chain(secret).collect::<Environment>())
        .expect_err("what is no key is taken for one");
    assert!(has_the_secret(bytes) || !error.to_string().contains(SECRET), "{error}");
});

/// Whether the input has the secret itself, and so may see it again.
fn has_the_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}
