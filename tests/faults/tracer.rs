//! strace at a running agent: it fails or delays calls for as long as it is attached, or counts them.

use crate::common::agent::TestAgent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Tracer {
    strace: Child,
    /// The trace of the calls that it changed.
    trace: tempfile::NamedTempFile,
}

impl Tracer {
    /// Lets calls of that agent on that file fail or wait from now on: `fsync:error=EIO`.
    ///
    /// # Errors
    /// Why nobody can be traced here.
    pub fn inject_on(agent: &TestAgent, file: &Path, injection: &str) -> Result<Tracer, String> {
        let mut strace = Command::new("strace");
        strace.arg("-P").arg(file).args(["-e", &format!("inject={injection}")]);
        Tracer::attach(strace, agent.pid())
    }

    /// Delays each call of one of these names by a minute from now on.
    ///
    /// # Errors
    /// Why nobody can be traced here.
    pub fn hang(agent: &TestAgent, calls: &str) -> Result<Tracer, String> {
        let mut strace = Command::new("strace");
        strace.args(["--trace", calls, &format!("--inject={calls}:delay_enter=60s")]);
        Tracer::attach(strace, agent.pid())
    }

    /// When this returns, all threads of the process are traced.
    fn attach(mut strace: Command, pid: i32) -> Result<Tracer, String> {
        let trace = tempfile::NamedTempFile::new().unwrap();
        strace.arg("-o").arg(trace.path()).args(["-f", "-qq", "-p", &pid.to_string()]).stderr(Stdio::null());
        let strace = strace.spawn().map_err(|e| format!("strace: {e}"))?;
        let mut tracer = Tracer { strace, trace };
        let began = Instant::now();
        // The agent may end of what it is told as soon as its first thread is traced.
        while is_traced(pid).is_some_and(|all| !all) {
            if let Some(ended) = tracer.strace.try_wait().unwrap() {
                return Err(format!("strace cannot trace here: {ended}"));
            }
            assert!(began.elapsed() < Duration::from_secs(30), "strace does not attach");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(tracer)
    }

    /// How many calls have come to what was injected.
    pub fn injected(&self) -> usize {
        let trace = fs::read(self.trace.path()).unwrap();
        memchr::memmem::find_iter(&trace, b"(INJECTED").count()
    }

    /// The calls come to what they did before.
    pub fn detach(self) {}

    /// Ends it. Returns what it has written.
    fn end(mut self) -> tempfile::NamedTempFile {
        let trace = std::mem::replace(&mut self.trace, tempfile::NamedTempFile::new().unwrap());
        drop(self);
        trace
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // On SIGTERM strace detaches first; killed, it might leave the agent stopped.
        let _ = kill(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if self.strace.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may wait for ever for a call that it delays, of an agent that has been killed.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// Whether all threads of that process are traced; `None`: it is gone.
fn is_traced(pid: i32) -> Option<bool> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let status = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let tracers: Vec<bool> =
        status.map(|s| !s.contains("TracerPid:\t0\n") && !s.contains("State:\tZ")).collect();
    (!tracers.is_empty()).then(|| tracers.into_iter().all(|traced| traced))
}

/// System calls by name. No other load on the machine makes them more, so they can be judged where the time of a processor
/// cannot: an agent that tries again without waiting makes thousands in a second.
#[derive(Debug, Default)]
pub struct Calls(pub BTreeMap<String, u64>);

impl Calls {
    /// Counts the agent's calls in that time, of all its threads.
    ///
    /// # Errors
    /// Why nobody can be traced here.
    pub fn during(agent: &TestAgent, time: Duration) -> Result<Calls, String> {
        let mut strace = Command::new("strace");
        strace.args(["-c", "-U", "calls,name"]);
        let tracer = Tracer::attach(strace, agent.pid())?;
        std::thread::sleep(time);
        Ok(Calls::read(tracer.end().path()))
    }

    /// Reads the summary that `strace -c -U calls,name` has written.
    pub fn read(summary: &Path) -> Calls {
        let text = fs::read_to_string(summary).unwrap_or_default();
        let rows = text.lines().filter_map(|line| {
            let (calls, name) = line.trim().split_once(' ')?;
            Some((name.trim().to_owned(), calls.parse().ok()?))
        });
        Calls(rows.filter(|(name, _)| name != "total").collect())
    }

    pub fn without(mut self, names: &[&str]) -> Calls {
        self.0.retain(|name, _| !names.contains(&name.as_str()));
        self
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}
