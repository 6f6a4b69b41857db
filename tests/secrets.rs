//! The key and people's emails: where they must never be seen.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use common::{KEY, PATIENCE, World};
use koala_agent::receiver::Faults;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

fn program(world: &World) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
    command.env_clear().arg("--config").arg(world.config_file());
    command.env("RUNTIME_DIRECTORY", world.dir.path().join("run"));
    command
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The files below a folder that hold the text.
fn files_with(text: &str, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(text, &path));
        } else if holds(&std::fs::read(&path).unwrap_or_default(), text) {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_and_the_emails_are_in_no_log_no_status_and_no_command_line() {
    let echo = |text: &str| Faults { refuse_all: Some(text.to_owned()), ..Faults::default() };
    for faults in [
        echo(&format!("no such project {KEY}, ana@acme.dev")),
        Faults { status: Some(401), ..Faults::default() },
        Faults { status: Some(503), ..Faults::default() },
        Faults { offline: true, ..Faults::default() },
        Faults::default(),
    ] {
        let mut world = World::new(faults.clone()).await;
        world.track("m-1", "ana@acme.dev");
        world.track("m-2", "ben@acme.dev");
        let log = world.dir.path().join("log");
        let mut daemon = program(&world)
            .args(["run", "--verbose"])
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while world.receiver.stats().requests == 0 && began.elapsed() < PATIENCE {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        // The status file follows within a second.
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let cmdline = std::fs::read(format!("/proc/{}/cmdline", daemon.id())).unwrap();
        assert!(!holds(&cmdline, KEY));
        for arguments in
            [&["status"][..], &["status", "--json"], &["list", "--json"], &["show", "m-1"], &["check"]]
        {
            let output = program(&world).args(arguments).output().unwrap();
            for (what, bytes) in [("out", &output.stdout), ("err", &output.stderr)] {
                assert!(!holds(bytes, KEY), "{arguments:?} {what} with {faults}");
                if arguments[0] == "status" {
                    assert!(!holds(bytes, "acme.dev"), "{arguments:?} {what} with {faults}");
                }
            }
        }
        let found = files_with(KEY, world.dir.path());
        assert_eq!(found, ["config.toml"], "with {faults}");
        let said = std::fs::read(&log).unwrap();
        assert!(!said.is_empty() && !holds(&said, "acme.dev"), "{}", String::from_utf8_lossy(&said));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}
