//! A world for one test: folders of its own, a receiver, an agent in this process, and a clock.

use koala_agent::agent::Agent;
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{Config, Environment, Options, load};
use koala_agent::receiver::{Faults, Receiver};
use koala_agent::status::Status;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;

/// Long enough for a busy machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The key that every world's agent has.
pub const KEY: &str = "pk_test_0123456789";

pub struct World {
    pub dir: tempfile::TempDir,
    pub receiver: Receiver,
    /// Where the agent sends to: the receiver, unless something stands before it.
    pub endpoint: String,
    pub clock: Clock,
    agent: Option<Agent>,
    extra: String,
    written: u64,
}

impl World {
    /// A receiver with these faults; no agent runs yet. Time is the machine's.
    pub async fn new(faults: Faults) -> World {
        World::with_clock(faults, Clock::system()).await
    }

    /// The same with a clock that the test moves.
    pub async fn manual(faults: Faults) -> World {
        World::with_clock(faults, Clock::manual(Timestamp(1_800_000_000_000))).await
    }

    async fn with_clock(faults: Faults, clock: Clock) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("spool")).unwrap();
        let receiver = receiver("127.0.0.1:0".parse().unwrap(), faults).await;
        let endpoint = receiver.endpoint();
        World { dir, receiver, endpoint, clock, agent: None, extra: String::new(), written: 0 }
    }

    /// Adds lines to the configuration, `section.key = value`.
    pub fn set(&mut self, line: &str) {
        self.extra.push_str(line);
        self.extra.push('\n');
    }

    pub fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub fn outbox(&self) -> PathBuf {
        self.dir.path().join("state/outbox.db")
    }

    pub fn config_file(&self) -> PathBuf {
        let path = self.dir.path().join("config.toml");
        let dir = self.dir.path().display();
        let text = format!(
            "spool.dir = \"{dir}/spool\"\noutbox.path = \"{dir}/state/outbox.db\"\noutbox.min_free = 0\n\
             koala.endpoint = \"{}\"\nkoala.public_key = \"{KEY}\"\n{}",
            self.endpoint, self.extra
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn config(&self) -> Config {
        let options = Options { config: Some(self.config_file()), user: false };
        let nothing: [(&str, &str); 0] = [];
        load(&options, &nothing.into_iter().collect::<Environment>()).unwrap()
    }

    /// The receiver goes, and takes along what it held. Its port is kept from others for as long as it is held.
    pub async fn leave(&mut self) -> TcpSocket {
        let other = receiver("127.0.0.1:0".parse().unwrap(), Faults::default()).await;
        let gone = std::mem::replace(&mut self.receiver, other);
        let at = gone.addr();
        gone.stop().await;
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind(at).unwrap();
        port
    }

    /// A receiver takes the place of the one that left.
    pub async fn come_back(&mut self, port: TcpSocket) {
        self.receiver = receiver(port.local_addr().unwrap(), Faults::default()).await;
    }

    pub async fn start(&mut self) {
        self.agent = Some(Agent::start(self.config(), self.clock.clone()).await.unwrap());
    }

    pub async fn stop(&mut self) {
        self.agent.take().unwrap().stop().await.unwrap();
    }

    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    pub fn status(&self) -> Status {
        self.agent().status().unwrap()
    }

    /// Puts a file into the spool as a producer does: written aside, then renamed.
    pub fn drop_file(&self, name: &str, content: impl AsRef<[u8]>) {
        let aside = self.spool().join(format!(".{name}"));
        std::fs::write(&aside, content).unwrap();
        std::fs::rename(aside, self.spool().join(name)).unwrap();
    }

    /// A track by that person, in a file of its own.
    pub fn track(&mut self, id: &str, email: &str) {
        self.written += 1;
        let name = format!("{:08}-{id}.json", self.written);
        self.drop_file(&name, track(id, email));
    }

    /// Waits until the receiver holds so many events, each once.
    pub async fn until_held(&self, events: usize) {
        self.until(&format!("{events} events at the receiver"), |w| w.receiver.stats().held >= events).await;
        assert_eq!(self.receiver.stats().held, events);
    }

    /// Waits for a fact.
    pub async fn until(&self, fact: &str, holds: impl Fn(&World) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "not in time: {fact}\n{:#?}\n{:?}",
                self.agent.as_ref().map(|a| a.status().unwrap()),
                self.receiver.stats()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Moves the manual clock in steps, and lets the loops and sockets settle after each.
    pub async fn pass(&self, time: Duration, step: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = step.min(left);
            self.clock.advance(step);
            left -= step;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn receiver(at: SocketAddr, faults: Faults) -> Receiver {
    let options = koala_agent::receiver::Options { faults, seed: Some(1), ..Default::default() };
    Receiver::start(at, options).await.unwrap()
}

/// What is logged on this thread at the normal level, for as long as the guard lives.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Of what is said on this thread.
    pub fn begin() -> (Log, tracing::subscriber::DefaultGuard) {
        let (log, subscriber) = Log::subscriber();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// Of what is said on any thread, for the only test of a program.
    pub fn everywhere() -> Log {
        let (log, subscriber) = Log::subscriber();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    }

    fn subscriber() -> (Log, impl tracing::Subscriber + Send + Sync) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO);
        (log, subscriber.with_writer(move || writer.clone()).finish())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A track of that id by that person.
pub fn track(id: &str, email: &str) -> String {
    format!(
        r#"{{"type":"track","event":"Signed Up","messageId":"{id}","timestamp":"2026-01-02T03:04:05Z","properties":{{"email":"{email}"}}}}"#
    )
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
