//! The program, a receiver and a shell, in folders of the test.
//!
//! Examples run as they are written, with `koala-agent` on the path. Only the system's folders are replaced by those of
//! the test.

use crate::common::setup::{Ran, Setup, run_command};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The key of `@hash` that the hashes on the pages were made with.
const HASH_KEY: &str = "0123456789abcdef";
/// Longer than any step takes on a busy machine: guards against a hang.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A child process that is killed when it is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `koala-agent receiver` with these options and returns its address.
pub fn receiver(options: &[&str]) -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
    command.args(["receiver", "--listen", "127.0.0.1:0"]).args(options).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let running = Running(child);
    // A receiver whose output is not read blocks once the pipe is full.
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    let address = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    (running, address.trim_end_matches(';').to_owned())
}

/// Configures an agent for this address and key, and starts it.
pub fn agent(setup: &mut Setup, address: &str, key: &str) -> Running {
    setup.set(&format!("koala.endpoint = \"{address}\""));
    fs::write(setup.path("key"), key).unwrap();
    fs::set_permissions(setup.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
    start(setup)
}

pub fn start(setup: &Setup) -> Running {
    let running = Running(setup.program().arg("run").stderr(Stdio::null()).spawn().unwrap());
    until(setup, |status| status["agent"]["running"] == true);
    running
}

pub fn stop(setup: &Setup, mut running: Running) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    until(setup, |status| status["agent"]["running"] == false);
}

/// Waits until the status shows a fact, and returns the status.
pub fn until(setup: &Setup, fact: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let status = setup.run(&["status", "--json"]).json();
        if fact(&status) {
            return status;
        }
        assert!(began.elapsed() < TIMEOUT, "{status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until so many events are delivered, and no file is left in the spool.
pub fn delivered(setup: &Setup, events: u64) {
    until(setup, |status| status["outbox"]["delivered"] == events && status["spool"]["waiting_files"] == 0);
}

/// Replaces the system's folders in a text by those of the test.
pub fn placed(setup: &Setup, text: &str) -> String {
    text.replace("/var/spool/koala-agent", &setup.spool().display().to_string())
        .replace("/var/lib/koala-agent/", &setup.path("state/").display().to_string())
        .replace("/etc/koala-agent/", &setup.path("").display().to_string())
        .replace("/root/", &setup.path("home/").display().to_string())
        // The user koala-agent need not exist here.
        .replace("-o koala-agent -g koala-agent ", "")
}

/// Runs a script with bash in an empty folder; a failure anywhere in a pipe fails it.
pub fn shell(setup: &Setup, script: &str, stdin: &str) -> Ran {
    command(setup, "bash", &["-euo", "pipefail", "-c", &placed(setup, script)], stdin)
}

pub fn command(setup: &Setup, program: &str, arguments: &[&str], stdin: &str) -> Ran {
    let (bin, home) = (setup.path("bin"), setup.path("home"));
    for folder in [&bin, &home] {
        fs::create_dir_all(folder).unwrap();
    }
    let link = bin.join("koala-agent");
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_koala-agent"), link).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&home);
    command.env("PATH", path).env("HOME", &home).env("KOALA_AGENT_CONFIG", setup.config_file());
    run_command(&mut command, stdin)
}

pub fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        eprintln!("skipped: {program} is not installed");
    }
    found.status.success()
}

/// Returns what `map` prints for these events under this configuration.
pub fn mapped(config: &str, events: &str) -> Vec<Value> {
    let setup = Setup::new();
    fs::write(setup.path("hash-key"), HASH_KEY).unwrap();
    let key = setup.path("hash-key").display().to_string();
    let config = placed(&setup, config);
    fs::write(setup.config_file(), config).unwrap();
    let ran = run_command(setup.program().env("KOALA_AGENT_KOALA__HASH_KEY_FILE", key).arg("map"), events);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    ran.lines()
}

/// Returns what `map` prints under mappings in Segment's format, which the configuration names as a file.
pub fn mapped_by_file(config: &str, mappings: &str, events: &str) -> Vec<Value> {
    let setup = Setup::new();
    fs::write(setup.path("hash-key"), HASH_KEY).unwrap();
    fs::write(setup.config_file(), config).unwrap();
    fs::write(setup.path("mappings.json"), mappings).unwrap();
    let ran = setup.run_with(&["map"], events);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    ran.lines()
}
