//! Calls to the system that fail, or are slow, for as long as a tracer is attached.

use crate::common::daemon::Daemon;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Tracer(Child);

impl Tracer {
    /// From now on these calls of that daemon on that file come to this: `fsync:error=EIO`.
    ///
    /// # Errors
    /// Why nobody can be traced here.
    pub fn attach(daemon: &Daemon, file: &Path, injection: &str) -> Result<Tracer, String> {
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-P"])
            .arg(file)
            .args(["-e", &format!("inject={injection}"), "-p", &daemon.pid().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("strace: {e}"))?;
        let began = Instant::now();
        // The daemon may end of what it is told as soon as its first thread is traced.
        while traced(daemon.pid()).is_some_and(|all| !all) {
            if let Some(ended) = strace.try_wait().unwrap() {
                return Err(format!("strace cannot trace here: {ended}"));
            }
            assert!(began.elapsed() < Duration::from_secs(30), "strace does not attach");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Tracer(strace))
    }

    /// The calls come to what they did before.
    pub fn detach(self) {}
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It lets go of what it traces on its way out; killed, it might leave it stopped.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Whether all threads of that process are traced; `None`: it is gone.
fn traced(pid: i32) -> Option<bool> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let status = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let tracers: Vec<bool> =
        status.map(|s| !s.contains("TracerPid:\t0\n") && !s.contains("State:\tZ")).collect();
    (!tracers.is_empty()).then(|| tracers.into_iter().all(|traced| traced))
}
