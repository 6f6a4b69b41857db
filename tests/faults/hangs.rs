//! The process stands still, as a whole or in one call, and a service manager watches it.

use crate::common::agent::TestAgent;
use crate::runner::{Outcome, Scale};
use crate::tracer::Tracer;
use koala_agent::receiver::Faults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

/// A busy machine does it so many times slower.
const BUSY: u32 = 15;

/// The whole process stands still, with requests in flight and files arriving, for longer than a request may take.
pub fn stopped(scale: &Scale) -> Outcome {
    let timeout = Duration::from_secs(2);
    let mut agent = TestAgent::program(Faults { latency_ms: 50, ..Faults::default() });
    agent.set(&format!("koala.timeout = \"{}s\"", timeout.as_secs()));
    agent.start();
    agent.drop_events(300, 50);
    agent.until("it delivers", |agent| agent.receiver.stats().held > 0);
    agent.signal(Signal::SIGSTOP);
    agent.drop_events(300, 50);
    std::thread::sleep(scale.of(2 * timeout, Duration::from_secs(600)));
    let held = agent.receiver.stats().held;
    assert!(held < 600, "it was not stopped");
    agent.signal(Signal::SIGCONT);
    let began = Instant::now();
    agent.until_within(timeout * BUSY, "it has recovered", |agent| agent.receiver.stats().held == 600);
    let took = began.elapsed();
    let figures = agent.end();
    figures.note(format!("{held} were delivered before, all {:.1} s after", took.as_secs_f64())).into()
}

/// The disk takes a flush and does not answer: the heartbeats end, and the service manager ends the process.
pub fn hung_flush(_: &Scale) -> Outcome {
    const WATCHDOG: Duration = Duration::from_secs(3);
    let mut agent = TestAgent::program(Faults { latency_ms: 20, ..Faults::default() });
    let manager = Manager::new(&mut agent, WATCHDOG);
    agent.start();
    manager.wait_for("READY=1");
    // Heartbeats come while the agent works.
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    agent.drop_events(100, 20);
    agent.until("it delivers", |agent| agent.receiver.stats().held > 0);

    let tracer = match Tracer::hang(&agent, "fsync,fdatasync") {
        Ok(tracer) => tracer,
        Err(why) => return Outcome::Skipped(why),
    };
    agent.drop_events(100, 20);
    let took = manager.until_silent_for(WATCHDOG);
    agent.until("the log names the loop", |agent| agent.log().contains("no sign of life: "));
    // As systemd does it.
    agent.signal(Signal::SIGABRT);
    std::thread::sleep(Duration::from_millis(200));
    let _ = kill(Pid::from_raw(agent.pid()), Signal::SIGKILL);
    // A thread that is traced is gone only when its tracer knows.
    drop(tracer);
    let ended = agent.wait_for_exit();
    assert!(matches!(ended.signal(), Some(6 | 9)), "{ended}");

    agent.start();
    manager.wait_for("READY=1");
    let figures = agent.end();
    figures.note(format!("the heartbeats had ended {:.1} s after the hang", took.as_secs_f64())).into()
}

/// The socket of a service manager, as the agent sees it.
struct Manager(UnixDatagram);

impl Manager {
    fn new(agent: &mut TestAgent, watchdog: Duration) -> Manager {
        let path = agent.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        agent.env("NOTIFY_SOCKET", path);
        agent.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
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
            assert!(began.elapsed() < time * BUSY, "heartbeats still come");
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
