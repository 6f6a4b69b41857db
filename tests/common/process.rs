//! A process of an agent: the real program, or the agent that the tests drive by hand.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A process that takes longer than this to end does not end.
const TIMEOUT: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; what it prints to its standard error is appended to that file.
    pub fn start(command: &mut Command, stderr: &Path) -> Process {
        let child = command.stderr(append_to(stderr)).spawn().unwrap();
        Process { child, ended: None }
    }

    /// The child itself, whose pipes somebody else holds.
    pub fn of(child: Child) -> Process {
        Process { child, ended: None }
    }

    /// The process that was started: a wrapper, if it runs under one that does not exec.
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits until it has ended by itself; `None`: it does not.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        let began = Instant::now();
        while self.exit_status().is_none() && began.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.ended
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(mut self) {
        assert_eq!(self.exit_status(), None, "it ended by itself");
        self.child.kill().unwrap();
        self.ended = Some(self.child.wait().unwrap());
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// The most memory that it has ever had, in bytes; 0 where the system does not tell (proc(5): VmHWM).
    pub fn peak_memory(&self) -> u64 {
        self.status_number("VmHWM:") << 10
    }

    /// The memory that it has, in bytes.
    pub fn resident_memory(&self) -> u64 {
        self.status_number("VmRSS:") << 10
    }

    fn status_number(&self, field: &str) -> u64 {
        number_in(&format!("/proc/{}/status", self.pid()), field)
    }

    /// The descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

/// The number behind a name in a file of proc(5).
fn number_in(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

pub fn append_to(file: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(file).unwrap()
}

impl Drop for Process {
    /// A test that has failed leaves no process.
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
