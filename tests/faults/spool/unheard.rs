//! Files of which the watcher hears nothing: the look at the folder finds them.

use super::{needs, needs_root};
use crate::place::Place;
use crate::stage::{Played, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// What a loaded machine may need beside to take and send what was found.
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

/// Another place where the spool can be seen, until this ends.
struct Mount(PathBuf);

impl Mount {
    fn new(command: &[&str], spool: &Path, place: &Path) -> Result<Mount, String> {
        fs::create_dir_all(place).unwrap();
        let mounted = Command::new(command[0]).args(&command[1..]).arg(spool).arg(place).output();
        let mounted = mounted.map_err(|e| format!("{}: {e}", command[0]))?;
        let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        if mounted.status.success() { Ok(Mount(place.to_owned())) } else { Err(why) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Also while a daemon that has not been stopped is in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn place() -> Place {
    let mut place = Place::new(Faults::default());
    place.daemon.set(&format!("spool.scan_interval = \"{}s\"", SCAN_INTERVAL.as_secs()));
    place.daemon.set("spool.settle = \"100ms\"");
    place
}

/// Drops files beside an agent that runs, and waits for them. Returns how long it has waited.
fn found(place: &mut Place, files: u64) -> Duration {
    let began = Instant::now();
    place.drop_events(files, 50);
    let all = place.books.dropped.len();
    place.until_within(SCAN_INTERVAL + WORK, "all taken", |place| place.receiver.stats().held >= all);
    began.elapsed()
}

/// 10,000 files land while the agent is stopped and the kernel keeps no more than 16 of its events.
pub fn overflow(scale: &Scale) -> Played {
    let files = scale.of(3_000, 10_000);
    let limit = match Setting::change("/proc/sys/fs/inotify/max_queued_events", "16") {
        Ok(limit) => limit,
        Err(why) => return Played::Skipped(why),
    };
    let mut place = place();
    place.daemon.start();
    place.drop_events(1, 1);
    place.until_delivered();
    // A queue keeps the limit that it was made with.
    drop(limit);
    place.daemon.signal(Signal::SIGSTOP);
    place.drop_events(files, 50);
    place.daemon.signal(Signal::SIGCONT);
    let began = Instant::now();
    let all = place.books.dropped.len();
    place.until_within(SCAN_INTERVAL + WORK, "all taken", |place| place.receiver.stats().held >= all);
    let took = began.elapsed();
    place.end().note(format!("all there {:.1} s after the agent went on", took.as_secs_f64())).into()
}

/// The files land below a FUSE file system, which tells nothing of them.
pub fn fuse(scale: &Scale) -> Played {
    seen_elsewhere(scale, &["bindfs"])
}

pub fn bind_mount(scale: &Scale) -> Played {
    match needs_root() {
        Ok(()) => seen_elsewhere(scale, &["mount", "--bind"]),
        Err(why) => Played::Skipped(why),
    }
}

fn seen_elsewhere(scale: &Scale, command: &[&str]) -> Played {
    let ground = tempfile::tempdir().unwrap();
    let mut place = place();
    let mount = match Mount::new(command, &place.daemon.spool(), &ground.path().join("spool")) {
        Ok(mount) => mount,
        Err(why) => return Played::Skipped(why),
    };
    place.daemon.set(&format!("spool.dir = \"{}\"", mount.0.display()));
    place.daemon.start();
    let files = scale.of(200, 10_000);
    let first = found(&mut place, files);
    let second = found(&mut place, files);
    let figures = place.end();
    figures
        .note(format!("all there after {:.1} s and {:.1} s", first.as_secs_f64(), second.as_secs_f64()))
        .into()
}

/// No instance of inotify is left for the agent's user.
pub fn deaf(scale: &Scale) -> Played {
    let limited = "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
    let under = ["unshare", "--user", "--map-root-user", "sh", "-c", limited];
    let possible = Command::new(under[0]).args(&under[1..]).arg("true").output();
    if needs("unshare").is_err() || !possible.is_ok_and(|output| output.status.success()) {
        return Played::Skipped("there are no user namespaces here".to_owned());
    }
    let mut place = place();
    place.daemon.under(under);
    place.daemon.start();
    place.until("it says so", |place| place.daemon.log().contains("cannot be watched"));
    let took = found(&mut place, scale.of(200, 10_000));
    place.end().note(format!("all there after {:.1} s", took.as_secs_f64())).into()
}
