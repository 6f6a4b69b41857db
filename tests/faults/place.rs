//! Where a fault strikes: a receiver that counts, the real program on folders of its own, and the books.

use super::books::Books;
use super::stage::Figures;
use crate::common::daemon::{Daemon, KEY};
use flate2::{Compression, write::GzEncoder};
use koala_agent::receiver::{Faults, Options, Receiver};
use koala_agent::spool::drop_in;
use koala_agent::status::Status;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// A fact that takes longer than this is not coming.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Place {
    pub daemon: Daemon,
    pub receiver: Receiver,
    pub books: Books,
    files: u64,
    /// Whether what is dropped is on the disk before the next is.
    durable: bool,
    /// Ends with the place: the receiver lives in it.
    runtime: Runtime,
}

impl Place {
    /// With the daemon's folders in a temporary one.
    pub fn new(faults: Faults) -> Place {
        Place::with(faults, Daemon::new)
    }

    /// With the daemon's folders in that one: a mount.
    pub fn within(folder: &Path, faults: Faults) -> Place {
        Place::with(faults, |endpoint| Daemon::within(folder, endpoint))
    }

    fn with(faults: Faults, daemon: impl FnOnce(&str) -> Daemon) -> Place {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let receiver = receiver(&runtime, "127.0.0.1:0".parse().unwrap(), faults);
        let daemon = daemon(&receiver.endpoint());
        Place { daemon, receiver, books: Books::default(), files: 0, durable: false, runtime }
    }

    /// From now on all that is dropped is on the disk, as `send` does it.
    pub fn drop_durably(&mut self) {
        self.durable = true;
    }

    /// A receiver at that address takes the place of the one before, and what that one held is gone.
    pub fn receive_at(&mut self, at: SocketAddr) {
        self.receiver = receiver(&self.runtime, at, Faults::default());
    }

    /// Drops so many files of one event each, by so many people in turn.
    pub fn drop_events(&mut self, events: u64, people: u64) {
        for n in 0..events {
            let event = self.books.event(n % people);
            self.drop_file("json", event.as_bytes());
        }
    }

    /// Drops one NDJSON file of so many events, by so many people in turn.
    pub fn drop_lines(&mut self, events: u64, people: u64) {
        let mut text = String::new();
        for n in 0..events {
            text.push_str(&self.books.event(n % people));
            text.push('\n');
        }
        self.drop_file("ndjson", text.as_bytes());
    }

    /// Puts a file into the spool as a producer does: written aside, then renamed. Its name is the next in order.
    pub fn drop_file(&mut self, extension: &str, content: &[u8]) {
        self.try_drop_file(extension, content).unwrap();
    }

    /// The same where there may be no room for it.
    pub fn try_drop_file(&mut self, extension: &str, content: &[u8]) -> std::io::Result<()> {
        self.files += 1;
        self.try_drop_as(format!("{:09}.{extension}", self.files), content)
    }

    /// The same under a name of the test's own.
    pub fn drop_as(&self, name: impl AsRef<Path>, content: &[u8]) {
        self.try_drop_as(name, content).unwrap();
    }

    fn try_drop_as(&self, name: impl AsRef<Path>, content: &[u8]) -> std::io::Result<()> {
        let spool = self.daemon.spool();
        if self.durable {
            drop_in(&spool, name.as_ref().as_os_str(), content).unwrap();
            return Ok(());
        }
        let aside = spool.join(".next");
        let dropped = fs::write(&aside, content).and_then(|()| fs::rename(&aside, spool.join(name)));
        if dropped.is_err() {
            let _ = fs::remove_file(aside);
        }
        dropped
    }

    /// Drops so many files of every form: mostly single events, some packed, and among them lines, arrays and what can
    /// only be set aside.
    pub fn drop_mixed(&mut self, files: u64, people: u64) {
        for n in 0..files {
            match n % 20 {
                5 => self.drop_pack("ndjson", "", "\n", "\n", people),
                10 => self.drop_pack("ndjson.gz", "", "\n", "\n", people),
                15 => self.drop_pack("json", "[", ",", "]", people),
                19 => {
                    let broken = self.books.broken();
                    self.drop_file("json", broken.as_bytes());
                }
                12 => {
                    let event = self.books.event(n % people);
                    self.drop_file("json.gz", &gzip(event.as_bytes()));
                }
                _ => {
                    let event = self.books.event(n % people);
                    self.drop_file("json", event.as_bytes());
                }
            }
        }
    }

    /// Drops one file of ten events; where it is of lines, with a broken one among them.
    fn drop_pack(&mut self, extension: &str, open: &str, between: &str, close: &str, people: u64) {
        let mut events: Vec<String> = (0..10).map(|n| self.books.event(n % people)).collect();
        if extension.starts_with("ndjson") {
            events.insert(4, self.books.broken());
        }
        let text = format!("{open}{}{close}", events.join(between)).into_bytes();
        self.drop_file(extension, &if extension.ends_with("gz") { gzip(&text) } else { text });
    }

    /// Waits for a fact.
    pub fn until(&mut self, fact: &str, mut holds: impl FnMut(&mut Place) -> bool) {
        self.until_within(PATIENCE, fact, |place| holds(place));
    }

    /// Waits for a fact that must come in time.
    pub fn until_within(
        &mut self,
        patience: Duration,
        fact: &str,
        mut holds: impl FnMut(&mut Place) -> bool,
    ) {
        let began = Instant::now();
        while !holds(self) {
            if began.elapsed() > patience {
                let log = self.daemon.log();
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                panic!("not in time: {fact}\n{:?}\n{}", self.receiver.stats(), tail.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `status` says so.
    pub fn until_status(&mut self, fact: &str, holds: impl Fn(&Status) -> bool) {
        self.until(fact, |place| holds(&place.daemon.status()));
    }

    /// Waits until the receiver holds everything that was dropped.
    pub fn until_delivered(&mut self) {
        let all = self.books.dropped.len();
        self.until("all delivered", |place| place.receiver.stats().held >= all);
    }

    /// Starts the daemon, and waits until it is there for everybody.
    pub fn start(&mut self) {
        self.daemon.start();
        let pid = self.daemon.pid().unsigned_abs();
        self.until_status("it runs", |status| status.agent.running && status.agent.pid == Some(pid));
    }

    /// Waits until nothing waits any more: the spool is empty, and no event pending.
    pub fn until_at_rest(&mut self) {
        self.until("nothing waits", |place| place.is_idle());
    }

    pub fn is_idle(&self) -> bool {
        self.waiting_files() == 0 && self.daemon.pending().is_empty()
    }

    /// The files in the spool that are not set aside, those that are half removed among them.
    pub fn waiting_files(&self) -> usize {
        let folders = [self.daemon.spool(), self.daemon.spool().join(".removing")];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        entries.filter(|entry| !entry.as_ref().is_ok_and(|entry| entry.path().is_dir())).count()
    }

    /// Waits until all is delivered and marked, stops the daemon, and balances the books. One round.
    pub fn end(&mut self) -> Figures {
        self.until_delivered();
        self.until_status("all is marked", |status| {
            status.outbox.pending == 0 && status.spool.waiting_files == 0
        });
        // It was delivered before it ran, perhaps, and then it does not listen yet.
        self.until_status("it runs", |status| status.agent.running);
        self.daemon.stop();
        self.balance()
    }

    /// Balances the books of a stopped daemon, and looks at what it leaves behind. One round.
    pub fn balance(&self) -> Figures {
        let log = self.daemon.log();
        assert!(!log.contains("panicked") && !log.contains("this is a bug"), "a panic:\n{log}");
        assert!(!log.contains(KEY), "the key is in the log");
        for name in ["state", "spool"] {
            no_key_below(&self.daemon.path(name));
        }
        self.books.balance(&self.daemon, &self.receiver)
    }
}

fn receiver(runtime: &Runtime, at: SocketAddr, faults: Faults) -> Receiver {
    let options = Options { faults, seed: Some(1), ..Options::default() };
    runtime.block_on(Receiver::start(at, options)).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn no_key_below(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            no_key_below(&path);
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            assert!(
                memchr::memmem::find(&bytes, KEY.as_bytes()).is_none(),
                "the key is in {}",
                path.display()
            );
        }
    }
}
