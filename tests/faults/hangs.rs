//! The process stands still, as a whole or in one call, and a service manager watches it.

use super::place::Place;
use super::stage::{Played, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A busy machine does it so many times slower.
const BUSY: u32 = 15;

/// All of it stands still, with requests in flight and files arriving, for longer than a request may take.
pub fn stopped(scale: &Scale) -> Played {
    let timeout = Duration::from_secs(2);
    let mut place = Place::new(Faults { latency_ms: 50, ..Faults::default() });
    place.daemon.set(&format!("koala.timeout = \"{}s\"", timeout.as_secs()));
    place.daemon.start();
    place.drop_events(300, 50);
    place.until("it delivers", |place| place.receiver.stats().held > 0);
    place.daemon.signal(Signal::SIGSTOP);
    place.drop_events(300, 50);
    std::thread::sleep(scale.of(2 * timeout, Duration::from_secs(600)));
    let held = place.receiver.stats().held;
    assert!(held < 600, "it was not stopped");
    place.daemon.signal(Signal::SIGCONT);
    let began = Instant::now();
    place.until_within(timeout * BUSY, "it has recovered", |place| place.receiver.stats().held == 600);
    let took = began.elapsed();
    let figures = place.end();
    figures.note(format!("{held} were delivered before, all {:.1} s after", took.as_secs_f64())).into()
}

/// The disk takes a flush and does not answer: the heartbeats end, and the service manager ends the process.
pub fn hung_flush(_: &Scale) -> Played {
    const WATCHDOG: Duration = Duration::from_secs(3);
    let mut place = Place::new(Faults { latency_ms: 20, ..Faults::default() });
    let manager = Manager::new(&mut place, WATCHDOG);
    place.daemon.start();
    manager.wait_for("READY=1");
    // It beats while it works.
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    place.drop_events(100, 20);
    place.until("it delivers", |place| place.receiver.stats().held > 0);

    let tracer = match Tracer::hang("fsync,fdatasync", place.daemon.pid()) {
        Ok(tracer) => tracer,
        Err(why) => return Played::Skipped(why),
    };
    place.drop_events(100, 20);
    let took = manager.until_silent_for(WATCHDOG);
    place.until("the log names the loop", |place| place.daemon.log().contains("no sign of life: "));
    // As systemd does it.
    place.daemon.signal(Signal::SIGABRT);
    std::thread::sleep(Duration::from_millis(200));
    let _ = kill(Pid::from_raw(place.daemon.pid()), Signal::SIGKILL);
    // A thread that is traced is gone only when its tracer knows.
    drop(tracer);
    let ended = place.daemon.wait();
    assert!(matches!(ended.signal(), Some(6 | 9)), "{ended}");

    place.daemon.start();
    manager.wait_for("READY=1");
    let figures = place.end();
    figures.note(format!("the heartbeats had ended {:.1} s after the hang", took.as_secs_f64())).into()
}

/// What the agent sees of a service manager: its socket.
struct Manager(UnixDatagram);

impl Manager {
    fn new(place: &mut Place, watchdog: Duration) -> Manager {
        let path = place.daemon.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        place.daemon.env("NOTIFY_SOCKET", path);
        place.daemon.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        Manager(socket)
    }

    fn wait_for(&self, word: &str) {
        while self.hear(Duration::from_secs(60)).unwrap_or_else(|| panic!("not in time: {word}")) != word {}
    }

    /// Returns when no heartbeat has come for so long, and after how long that was.
    fn until_silent_for(&self, time: Duration) -> Duration {
        let began = Instant::now();
        let mut last = began;
        while let Some(left) = time.checked_sub(last.elapsed()).filter(|left| !left.is_zero()) {
            assert!(began.elapsed() < time * BUSY, "it still beats");
            if self.hear(left).is_some_and(|word| word == "WATCHDOG=1") {
                last = Instant::now();
            }
        }
        began.elapsed()
    }

    /// The next word, if one comes in time.
    fn hear(&self, within: Duration) -> Option<String> {
        let mut word = vec![0; 4096];
        self.0.set_read_timeout(Some(within)).unwrap();
        let length = self.0.recv(&mut word).ok()?;
        Some(String::from_utf8_lossy(&word[..length]).trim_end().to_owned())
    }
}

/// An strace at a running process; gone with the guard.
struct Tracer(Child);

impl Tracer {
    /// From now on a call of one of these names takes a minute to begin.
    fn hang(calls: &str, pid: i32) -> Result<Tracer, String> {
        let mut strace = Command::new("strace");
        strace.args(["--follow-forks", "--quiet=all", "--output=/dev/null", "--trace", calls]);
        strace.arg(format!("--inject={calls}:delay_enter=60s")).arg(format!("--attach={pid}"));
        let child = strace.stderr(Stdio::piped()).spawn();
        let mut tracer = Tracer(child.map_err(|e| format!("there is no strace: {e}"))?);
        let status = format!("/proc/{pid}/status");
        while !std::fs::read_to_string(&status).unwrap().contains(&format!("TracerPid:\t{}", tracer.0.id())) {
            if let Some(ended) = tracer.0.try_wait().unwrap() {
                return Err(format!("strace cannot trace: {ended}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
