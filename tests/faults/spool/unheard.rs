//! Files of which the watcher hears nothing: the look at the folder finds them.

use crate::common::agent::TestAgent;
use crate::machine::{needs, needs_root};
use crate::runner::{Outcome, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// The time that a loaded machine may need to ingest and send what was found.
const WORK: Duration = Duration::from_secs(30);

/// A setting of the kernel, as it was before once this ends.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn change(path: &'static str, value: &str) -> Result<Setting, String> {
        let before = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
        let setting = Setting { path, before };
        fs::write(path, value).map_err(|e| format!("{path}: {e}"))?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(self.path, &self.before).unwrap();
    }
}

/// Another agent where the spool can be seen, until this ends.
struct Mount(PathBuf);

impl Mount {
    fn new(command: &[&str], spool: &Path, agent: &Path) -> Result<Mount, String> {
        fs::create_dir_all(agent).unwrap();
        let mounted = Command::new(command[0]).args(&command[1..]).arg(spool).arg(agent).output();
        let mounted = mounted.map_err(|e| format!("{}: {e}", command[0]))?;
        let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        if mounted.status.success() { Ok(Mount(agent.to_owned())) } else { Err(why) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Also while an agent that has not been stopped is in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn agent() -> TestAgent {
    let mut agent = TestAgent::program(Faults::default());
    agent.set(&format!("spool.scan_interval = \"{}s\"", SCAN_INTERVAL.as_secs()));
    agent.set("spool.settle = \"100ms\"");
    agent
}

/// Drops files beside an agent that runs, and waits for them. Returns how long it has waited.
fn found(agent: &mut TestAgent, files: u64) -> Duration {
    let began = Instant::now();
    agent.drop_events(files, 50);
    let all = agent.ledger.dropped.len();
    agent.until_within(SCAN_INTERVAL + WORK, "all taken", |agent| agent.receiver.stats().held >= all);
    began.elapsed()
}

/// 10,000 files land while the agent is stopped and the kernel keeps no more than 16 of its events.
pub fn overflow(scale: &Scale) -> Outcome {
    let files = scale.of(3_000, 10_000);
    let limit = match Setting::change("/proc/sys/fs/inotify/max_queued_events", "16") {
        Ok(limit) => limit,
        Err(why) => return Outcome::Skipped(why),
    };
    let mut agent = agent();
    agent.start();
    agent.drop_events(1, 1);
    agent.until_delivered();
    // A queue keeps the limit that it was made with.
    drop(limit);
    agent.signal(Signal::SIGSTOP);
    agent.drop_events(files, 50);
    agent.signal(Signal::SIGCONT);
    let began = Instant::now();
    let all = agent.ledger.dropped.len();
    agent.until_within(SCAN_INTERVAL + WORK, "all taken", |agent| agent.receiver.stats().held >= all);
    let took = began.elapsed();
    agent.end().note(format!("all there {:.1} s after the agent went on", took.as_secs_f64())).into()
}

/// The files land below a FUSE file system, which tells nothing of them.
pub fn fuse(scale: &Scale) -> Outcome {
    seen_elsewhere(scale, &["bindfs"])
}

pub fn bind_mount(scale: &Scale) -> Outcome {
    match needs_root() {
        Ok(()) => seen_elsewhere(scale, &["mount", "--bind"]),
        Err(why) => Outcome::Skipped(why),
    }
}

fn seen_elsewhere(scale: &Scale, command: &[&str]) -> Outcome {
    let ground = tempfile::tempdir().unwrap();
    let mut agent = agent();
    let mount = match Mount::new(command, &agent.spool(), &ground.path().join("spool")) {
        Ok(mount) => mount,
        Err(why) => return Outcome::Skipped(why),
    };
    agent.set(&format!("spool.dir = \"{}\"", mount.0.display()));
    agent.start();
    let files = scale.of(200, 10_000);
    let first = found(&mut agent, files);
    let second = found(&mut agent, files);
    let figures = agent.end();
    figures
        .note(format!("all there after {:.1} s and {:.1} s", first.as_secs_f64(), second.as_secs_f64()))
        .into()
}

/// No instance of inotify is left for the agent's user.
pub fn deaf(scale: &Scale) -> Outcome {
    let limited = "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
    let under = ["unshare", "--user", "--map-root-user", "sh", "-c", limited];
    let possible = Command::new(under[0]).args(&under[1..]).arg("true").output();
    if needs("unshare").is_err() || !possible.is_ok_and(|output| output.status.success()) {
        return Outcome::Skipped("there are no user namespaces here".to_owned());
    }
    let mut agent = agent();
    agent.run_under(under);
    agent.start();
    agent.until("it says so", |agent| agent.log().contains("cannot be watched"));
    let took = found(&mut agent, scale.of(200, 10_000));
    agent.end().note(format!("all there after {:.1} s", took.as_secs_f64())).into()
}
