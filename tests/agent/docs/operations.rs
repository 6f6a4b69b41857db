//! koala-agent-operations(7) and koala-agent-containers(7). What takes a package manager is run in `tests/systemd`, and an
//! image in `tests/image.sh`.

use super::run::{is_installed, receiver, shell, until};
use super::text::{CONTAINERS, OPERATIONS, README, literal, section};
use crate::common::setup::{Ran, Setup};
use koala_agent::config::{ConfigOptions, Environment, load};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Stands for systemd: starts and stops the test's agent, and returns when that has been done.
const SYSTEMCTL: &str = r#"#!/bin/sh -eu
until_running() { until koala-agent status --json | grep -q "\"running\": $1"; do sleep 0.05; done; }
case $1 in stop | restart) kill "$(cat "$HOME/pid")"; until_running false ;; esac
case $1 in start | restart)
    koala-agent run < /dev/null > /dev/null 2>&1 &
    echo $! > "$HOME/pid"
    until_running true ;;
esac
"#;

/// A machine with an agent that `systemctl` starts.
struct Machine(Setup);

impl Machine {
    /// With that receiver and that key. The agent runs.
    fn start(address: &str, key: &str) -> Machine {
        let mut setup = Setup::new();
        setup.set(&format!("koala.endpoint = \"{address}\""));
        let key_file = setup.path("public-key");
        setup.set(&format!("koala.public_key_file = \"{}\"", key_file.display()));
        fs::write(&key_file, key).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        let systemctl = setup.path("bin/systemctl");
        fs::create_dir_all(setup.path("bin")).unwrap();
        fs::write(&systemctl, SYSTEMCTL).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        let machine = Machine(setup);
        machine.run("systemctl start koala-agent");
        machine
    }

    fn run(&self, script: &str) -> Ran {
        let ran = shell(&self.0, script, "");
        assert_eq!(ran.code, 0, "{script}\n{ran:?}");
        ran
    }

    /// Runs the first block of a section of koala-agent-operations(7).
    fn page(&self, title: &str) -> Ran {
        self.run(&literal(&section(OPERATIONS, title))[0])
    }

    /// Sends an event that waits.
    fn send(&self, id: &str, pending: u64) {
        let event =
            format!("{{\"type\":\"identify\",\"messageId\":\"{id}\",\"traits\":{{\"email\":\"a@b.c\"}}}}");
        assert_eq!(self.0.run_with(&["send"], &event).code, 0);
        until(&self.0, |status| status["outbox"]["pending"] == pending);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.0.path("home/pid")).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn a_backup_that_is_made_and_restored_as_the_page_says_holds_every_event() {
    if !is_installed("sqlite3") {
        return;
    }
    let (_receiver, address) = receiver(&["--status", "503"]);
    let machine = Machine::start(&address, "pk_test");
    machine.send("before", 1);
    machine.page("BACKUP");
    for file in ["outbox.db", "public-key"] {
        let mode = fs::metadata(machine.0.path("home").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
    machine.send("after", 2);
    machine.page("RESTORE");
    until(&machine.0, |status| status["outbox"]["pending"] == 1);
    assert_eq!(machine.0.state_of("before").as_deref(), Some("pending"));
    assert_eq!(machine.0.state_of("after"), None);

    let damaged = machine.0.path("state/outbox.db.damaged-20260102T030405Z");
    fs::write(&damaged, "").unwrap();
    machine.page("DAMAGE");
    assert!(!damaged.exists() && machine.0.outbox().exists());
    machine.page("REMOVAL");
}

#[test]
fn events_that_wait_for_another_key_are_sent_once_it_is_changed_as_the_page_says() {
    let (_receiver, address) = receiver(&["--key", "NEW_PUBLIC_KEY"]);
    let machine = Machine::start(&address, "pk_old");
    machine.send("waits", 1);
    until(&machine.0, |status| status["destination"]["state"] == "refused");
    machine.page("CHANGE OF THE KEY");
    until(&machine.0, |status| status["outbox"]["delivered"] == 1);
}

#[test]
fn the_figures_of_the_page_are_those_of_the_readme() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let sizing = words(&section(OPERATIONS, "SIZING").join("\n"));
    for figure in
        ["about 850 bytes", "28,600 events/s from one file", "6,400 files/s with one event each", "80 MB"]
    {
        assert!(words(README).contains(figure) && sizing.contains(figure), "{figure}");
    }
    if is_installed("jq") {
        let (_receiver, address) = receiver(&[]);
        let machine = Machine::start(&address, "pk_test");
        let script = literal(&section(OPERATIONS, "SIZING")).swap_remove(1);
        assert_eq!(machine.run(&script).json()["max_bytes"], 1 << 30);
    }
}

#[test]
fn the_variables_of_the_containers_are_keys_of_the_configuration() {
    let text: String =
        ["RUNNING", "SIDECAR"].iter().flat_map(|title| literal(&section(CONTAINERS, title))).collect();
    let mut variables = Vec::new();
    for part in text.split("KOALA_AGENT_").skip(1) {
        let ends = |c: char| c.is_whitespace() || c == '}';
        let (name, value) = part.split_once(['=', ',', '\n']).unwrap();
        let value = value.trim_start().trim_start_matches("value: ");
        variables.push((format!("KOALA_AGENT_{name}"), value.split(ends).next().unwrap().to_owned()));
    }
    assert_eq!(variables.len(), 4, "{variables:?}");
    let setup = Setup::new();
    fs::write(setup.config_file(), "").unwrap();
    let options = ConfigOptions { config: Some(setup.config_file()), ..ConfigOptions::default() };
    let config = load(&options, &variables.into_iter().collect::<Environment>()).unwrap();
    assert_eq!(config.warnings, [""; 0]);
}
