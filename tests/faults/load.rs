//! The main job under load: the real program, real files, a receiver in trouble, and SIGKILL.
//!
//! `KOALA_TEST_SCALE=full` takes all of the 20,000 files and 200,000 lines, not a tenth; `KOALA_TEST_SEED` drops the same
//! files again, and kills at the same shares.

mod corpus;
mod dropping;
mod verify;

use crate::common::daemon::Daemon;
use crate::common::kills::{Kill, UNDER_WAY, repeats};
use crate::stage::{Fault, Figures, Played, Scale};
use corpus::Corpus;
use dropping::{dropping, prepare};
use koala_agent::receiver::{Faults, Options, Receiver};
use koala_agent::status::DestinationState;
use std::thread;
use std::time::{Duration, Instant};

/// A fact that takes longer than this is not coming.
const PATIENCE: Duration = Duration::from_secs(240);
/// How often a fact is asked for.
const LOOK: Duration = Duration::from_millis(20);
const KILLS: usize = 10;

pub const FAULTS: &[Fault] = &[
    Fault { name: "load", title: "the main job, the receiver in trouble", alone: false, play: no_kill },
    Fault { name: "load-kills", title: "the same, killed ten times", alone: false, play: ten_kills },
];

fn no_kill(scale: &Scale) -> Played {
    run(scale, &[])
}

fn ten_kills(scale: &Scale) -> Played {
    // Some while files are taken and the receiver is offline, some while it takes events.
    let mut rng = scale.rng();
    let mut kills: Vec<f64> = (0..KILLS).map(|_| 0.02 + 0.9 * rng.f64()).collect();
    kills.sort_by(f64::total_cmp);
    let (even, odd): (Vec<_>, Vec<_>) = kills.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let while_taking = even.into_iter().map(|(_, share)| Moment::Stored(*share));
    let while_sending = odd.into_iter().map(|(_, share)| Moment::Held(*share));
    run(scale, &while_taking.chain(while_sending).collect::<Vec<_>>())
}

/// When a kill is due: at a share of the events stored, or held by the receiver.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Stored(f64),
    Held(f64),
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

fn run(scale: &Scale, moments: &[Moment]) -> Played {
    let (singles, lines) = scale.of((2_000, 20_000), (20_000, 200_000));
    let mut rng = scale.rng();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = Options {
        faults: Faults { offline: true, ..Faults::default() },
        seed: Some(rng.u64(..)),
        ..Options::default()
    };
    let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
    let daemon = Daemon::new(&receiver.endpoint());
    let corpus = Corpus::new(singles, lines, rng.u64(..));
    prepare(&daemon, &corpus.files);
    let mut run = Run { corpus, daemon, receiver, rng, kills: Vec::new(), began: Instant::now() };
    run.play(moments);
    run.until("all is settled and told", |run| verify::adds_up(&run.daemon.status(), &run.corpus));
    let took = run.began.elapsed();
    let repeated = run.check();
    run.figures(repeated, took).into()
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
        repeats(&self.receiver, &self.kills, UNDER_WAY)
    }

    fn figures(&self, repeated: u64, took: Duration) -> Figures {
        let (stats, corpus) = (self.receiver.stats(), &self.corpus);
        Figures { rounds: 1, events: corpus.dropped, repeated, ..Figures::default() }.note(format!(
            "{} files: {} delivered, {} duplicates, {} set aside, {} skipped, {} failed; {} requests, {:.1} s",
            corpus.files.len(),
            self.good(),
            corpus.duplicates,
            corpus.rejects.len(),
            corpus.skipped,
            corpus.failed,
            stats.requests,
            took.as_secs_f64()
        ))
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
