//! The main job under load: the real program, real files, a receiver in trouble, and SIGKILL.
//!
//! `KOALA_TEST_SCALE=full` takes all of the 20,000 files and 200,000 lines, not a tenth; `KOALA_TEST_SEED` drops the same
//! files again, and kills at the same shares.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]

mod corpus;
#[path = "../common/daemon.rs"]
mod daemon;
mod dropping;
#[path = "../common/kills.rs"]
mod kills;
mod verify;

use corpus::Corpus;
use daemon::Daemon;
use dropping::{dropping, prepare};
use kills::{Kill, UNDER_WAY};
use koala_agent::receiver::{Faults, Receiver, ReceiverOptions};
use koala_agent::status::DestinationState;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A fact that takes longer than this is not coming.
const PATIENCE: Duration = Duration::from_secs(240);
/// How often a fact is asked for.
const LOOK: Duration = Duration::from_millis(20);
const KILLS: usize = 10;

/// The scenarios share the machine, and their figures should not.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn everything_dropped_becomes_what_it_must() {
    run("no kill", seed(), &[]);
}

#[test]
fn ten_kills_change_nothing() {
    // Some while files are taken and the receiver is offline, some while it takes events.
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut kills: Vec<f64> = (0..KILLS).map(|_| 0.02 + 0.9 * rng.f64()).collect();
    kills.sort_by(f64::total_cmp);
    let (even, odd): (Vec<_>, Vec<_>) = kills.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let while_taking = even.into_iter().map(|(_, share)| Moment::Stored(*share));
    let while_sending = odd.into_iter().map(|(_, share)| Moment::Held(*share));
    run("ten kills", seed, &while_taking.chain(while_sending).collect::<Vec<_>>());
}

/// When a kill is due: at a share of the events stored, or held by the receiver.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Stored(f64),
    Held(f64),
}

fn seed() -> u64 {
    std::env::var("KOALA_TEST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap())
}

fn scale() -> (usize, usize) {
    match std::env::var("KOALA_TEST_SCALE").as_deref() {
        Ok("full") => (20_000, 200_000),
        Ok("tenth") | Err(_) => (2_000, 20_000),
        Ok(other) => panic!("KOALA_TEST_SCALE is full or tenth, not {other:?}"),
    }
}

/// One run: its parts, and what is told of it at the end.
struct Run {
    corpus: Corpus,
    daemon: Daemon,
    receiver: Receiver,
    rng: fastrand::Rng,
    kills: Vec<Kill>,
    began: Instant,
}

fn run(title: &str, seed: u64, moments: &[Moment]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (singles, lines) = scale();
    let mut rng = fastrand::Rng::with_seed(seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = ReceiverOptions {
        faults: Faults { offline: true, ..Faults::default() },
        seed: Some(rng.u64(..)),
        ..ReceiverOptions::default()
    };
    let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
    let daemon = Daemon::new(&receiver.endpoint());
    let corpus = Corpus::new(singles, lines, rng.u64(..));
    prepare(&daemon, &corpus.files);
    say(&format!("load, {title}: seed {seed}, {} events in {} files", corpus.dropped, corpus.files.len()));
    let mut run = Run { corpus, daemon, receiver, rng, kills: Vec::new(), began: Instant::now() };
    run.play(moments);
    run.until("all is settled and told", |run| verify::adds_up(&run.daemon.status(), &run.corpus));
    let (took, cpu) = (run.began.elapsed(), run.daemon.cpu());
    let repeats = run.check();
    run.tell(repeats, took, cpu);
}

impl Run {
    /// The receiver is offline while files are taken, then slow, then answers 503 to a tenth.
    fn play(&mut self, moments: &[Moment]) {
        // A part is there at the start, the rest comes while the agent runs.
        let (first, rest) = self.corpus.files.split_at(self.corpus.files.len() / 4);
        dropping(&self.daemon, first)();
        let rest = dropping(&self.daemon, rest);
        self.began = Instant::now();
        self.daemon.start();
        let dropping = thread::spawn(rest);
        let is_taking = |moment: &&Moment| matches!(moment, Moment::Stored(_));
        for moment in moments.iter().filter(is_taking) {
            self.kill_at(*moment);
        }
        self.until("the receiver is seen as offline", |run| {
            run.daemon.status().destination.state == DestinationState::Backoff
        });
        self.until_stored(0.25);
        self.receiver.set_faults(Faults { latency_ms: 20, ..Faults::default() });
        let mut sending = moments.iter().filter(|moment| !is_taking(moment)).copied().peekable();
        while let Some(early) =
            sending.next_if(|moment| matches!(moment, Moment::Held(share) if *share < 0.25))
        {
            self.kill_at(early);
        }
        self.until_held(0.25);
        self.receiver.set_faults(Faults { fail_share: 0.1, ..Faults::default() });
        for moment in sending {
            self.kill_at(moment);
        }
        dropping.join().unwrap();
    }

    fn until_stored(&self, share: f64) {
        let want = (share * self.good() as f64) as u64;
        self.until("events stored", |run| {
            let outbox = run.daemon.status().outbox;
            outbox.pending + outbox.delivered >= want
        });
    }

    fn until_held(&self, share: f64) {
        let want = (share * self.good() as f64) as usize;
        self.until("events held", |run| run.receiver.stats().held >= want);
    }

    /// SIGKILL at a random moment after that one, and a new start at once.
    fn kill_at(&mut self, moment: Moment) {
        match moment {
            Moment::Stored(share) => self.until_stored(share),
            Moment::Held(share) => self.until_held(share),
        }
        thread::sleep(Duration::from_millis(self.rng.u64(..50)));
        self.daemon.kill();
        self.kills.push(Kill::of(&self.daemon, &self.receiver));
        self.daemon.start();
    }

    /// Stops the agent and looks at everything that it has left. Returns how many events came to the receiver again.
    fn check(&mut self) -> u64 {
        self.daemon.stop();
        let status = self.daemon.status();
        assert!(verify::adds_up(&status, &self.corpus), "stopped: {status:#?}");
        verify::arrived(&self.receiver, &self.corpus);
        verify::set_aside(&self.daemon.path("spool"), &self.corpus);
        kills::repeats(&self.receiver, &self.kills, UNDER_WAY)
    }

    fn tell(&self, repeats: u64, took: Duration, cpu: Option<Duration>) {
        let stats = self.receiver.stats();
        let corpus = &self.corpus;
        let rows = [
            ("events dropped", corpus.dropped.to_string()),
            ("files", corpus.files.len().to_string()),
            ("delivered", self.good().to_string()),
            ("duplicates", corpus.duplicates.to_string()),
            ("set aside", corpus.rejects.len().to_string()),
            ("skipped, failed", format!("{}, {}", corpus.skipped, corpus.failed)),
            ("requests", format!("{} ({:?})", stats.requests, stats.by_status)),
            ("kills", self.kills.len().to_string()),
            ("repeats by the wire", repeats.to_string()),
            ("seconds", format!("{:.1}", took.as_secs_f64())),
            ("CPU of the last agent", cpu.map_or("?".into(), |cpu| format!("{:.1} s", cpu.as_secs_f64()))),
        ];
        for (what, figure) in rows {
            say(&format!("  {what:<22} {figure}"));
        }
    }

    fn good(&self) -> usize {
        self.corpus.good.values().map(Vec::len).sum()
    }

    fn until(&self, fact: &str, holds: impl Fn(&Run) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            if began.elapsed() > PATIENCE {
                let log = self.daemon.log();
                let tail = log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
                let corpus = &self.corpus;
                panic!(
                    "not in time: {fact}\n{} good, {} skipped, {} failed, {} duplicates, {} set aside of {}\n{:#?}\n{:#?}\n{tail}",
                    self.good(),
                    corpus.skipped,
                    corpus.failed,
                    corpus.duplicates,
                    corpus.rejects.len(),
                    corpus.dropped,
                    self.daemon.status(),
                    self.receiver.stats()
                );
            }
            thread::sleep(LOOK);
        }
    }
}

/// To the terminal, whether the test passes or fails.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
