//! The main job under load: the real program, real files, a receiver in trouble, and SIGKILL.
//!
//! `KOALA_TEST_SCALE=full` takes all of the 20,000 files and 200,000 lines, not a tenth; `KOALA_TEST_SEED` drops the same
//! files again, and kills at the same shares.

mod corpus;
mod month;

use crate::common::agent::TestAgent;
use crate::common::kills::{Kill, UNDER_WAY, repeats};
use crate::common::ledger::{Expected, number_of};
use crate::common::setup::names_in;
use crate::runner::{Fault, Figures, Outcome, Scale};
use corpus::{Corpus, File};
use koala_agent::receiver::{Faults, HeldItem};
use koala_agent::status::DestinationState;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::thread;
use std::time::{Duration, Instant};

/// A fact that takes longer than this, with all the files of the full scale, is not coming.
const TIMEOUT: Duration = Duration::from_secs(240);
const KILLS: usize = 10;

pub const FAULTS: &[Fault] = &[
    Fault { name: "load", title: "the main job, the receiver in trouble", alone: false, run: no_kill },
    Fault { name: "load-kills", title: "the same, killed ten times", alone: false, run: ten_kills },
    Fault { name: "month", title: "ten events a second for 30 days", alone: true, run: month::steady },
];

fn no_kill(scale: &Scale) -> Outcome {
    run(scale, &[])
}

fn ten_kills(scale: &Scale) -> Outcome {
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

/// One run: its parts, and what its figures are made of.
struct Run {
    corpus: Corpus,
    agent: TestAgent,
    rng: fastrand::Rng,
    kills: Vec<Kill>,
    began: Instant,
}

fn run(scale: &Scale, moments: &[Moment]) -> Outcome {
    let (singles, lines) = scale.of((2_000, 20_000), (20_000, 200_000));
    let mut rng = scale.rng();
    let mut agent = TestAgent::program(Faults { offline: true, ..Faults::default() });
    let corpus = Corpus::new(singles, lines, rng.u64(..));
    agent.ledger = corpus.ledger.clone();
    write_beside_spool(&agent, &corpus.files);
    let mut run = Run { corpus, agent, rng, kills: Vec::new(), began: Instant::now() };
    run.drop_and_kill(moments);
    let was_killed = !run.kills.is_empty();
    run.until("all is settled and told", |agent| agent.ledger.agrees_with(&agent.status(), was_killed));
    let took = run.began.elapsed();
    let repeated = run.check();
    run.figures(repeated, took).into()
}

impl Run {
    /// The receiver is offline while files are taken, then slow, then answers 503 to a tenth.
    fn drop_and_kill(&mut self, moments: &[Moment]) {
        // A part is there at the start, the rest comes while the agent runs.
        let (first, rest) = self.corpus.files.split_at(self.corpus.files.len() / 4);
        into_spool(&self.agent, first)();
        let rest = into_spool(&self.agent, rest);
        self.began = Instant::now();
        self.agent.start();
        let dropping = thread::spawn(rest);
        let is_taking = |moment: &&Moment| matches!(moment, Moment::Stored(_));
        for moment in moments.iter().filter(is_taking) {
            self.kill_at(*moment);
        }
        self.until("the receiver is seen as offline", |agent| {
            agent.status().destination.state == DestinationState::Backoff
        });
        self.until_stored(0.25);
        self.agent.receiver.set_faults(Faults { latency_ms: 20, ..Faults::default() });
        let mut sending = moments.iter().filter(|moment| !is_taking(moment)).copied().peekable();
        while let Some(early) =
            sending.next_if(|moment| matches!(moment, Moment::Held(share) if *share < 0.25))
        {
            self.kill_at(early);
        }
        self.until_held(0.25);
        self.agent.receiver.set_faults(Faults { fail_share: 0.1, ..Faults::default() });
        for moment in sending {
            self.kill_at(moment);
        }
        dropping.join().unwrap();
    }

    fn until_stored(&mut self, share: f64) {
        let want = (share * self.good() as f64) as u64;
        self.until("events stored", |agent| {
            let outbox = agent.status().outbox;
            outbox.pending + outbox.delivered >= want
        });
    }

    fn until_held(&mut self, share: f64) {
        let want = (share * self.good() as f64) as usize;
        self.until("events held", |agent| agent.receiver.stats().held >= want);
    }

    /// SIGKILL at a random moment after that one, and a new start at once.
    fn kill_at(&mut self, moment: Moment) {
        match moment {
            Moment::Stored(share) => self.until_stored(share),
            Moment::Held(share) => self.until_held(share),
        }
        thread::sleep(Duration::from_millis(self.rng.u64(..50)));
        self.agent.kill();
        self.kills.push(Kill::of(&self.agent));
        self.agent.start();
    }

    /// Stops the agent, and checks everything that it has left. Returns how many events came to the receiver again.
    fn check(&mut self) -> u64 {
        self.agent.stop();
        let (ledger, status) = (&self.agent.ledger, self.agent.status());
        assert!(ledger.agrees_with(&status, !self.kills.is_empty()), "stopped: {status:#?}");
        self.check_arrived(&self.agent.receiver.events());
        assert_eq!(status.spool.unknown_files, Some(self.corpus.unknown.len() as u64));
        let mut left = self.corpus.unknown.clone();
        left.extend([".removing".to_owned(), "rejected".to_owned()]);
        assert!(names_in(&self.agent.spool()).iter().eq(&left), "{left:?} is to be left");
        ledger.check_rejects(&self.agent.spool()).unwrap_or_else(|why| panic!("{why}"));
        let reasons = names_in(&self.agent.spool().join("rejected"));
        let reasons = reasons.iter().filter(|name| name.ends_with(".why")).count();
        assert_eq!(reasons, ledger.rejects.len(), "a reason without its file");
        repeats(&self.agent.receiver, &self.kills, UNDER_WAY)
    }

    /// Each event that was to be delivered has arrived, once and as its person's, in the order of the spool, under the id
    /// that it was given or one that the agent has derived.
    fn check_arrived(&self, accepted: &[HeldItem]) {
        let ledger = &self.agent.ledger;
        ledger.check_order(accepted, &Default::default()).unwrap_or_else(|why| panic!("{why}"));
        let ids = ledger.ids(accepted, []).unwrap_or_else(|why| panic!("{why}"));
        let persons: BTreeMap<u64, String> =
            accepted.iter().map(|held| (number_of(held), person_of(held))).collect();
        for (n, event) in ledger.dropped.iter().filter(|(_, event)| event.expected == Expected::Delivered) {
            let ids = ids.get(n).unwrap_or_else(|| panic!("event {n} has not arrived: {event:?}"));
            assert!(
                ids.len() == 1 && (event.id.is_some() || ids.iter().all(|id| is_derived(id))),
                "{n}: {ids:?}"
            );
            assert_eq!(persons[n], event.person, "event {n}");
        }
        assert_eq!(accepted.len() as u64, ledger.count(|expected| expected == Expected::Delivered));
    }

    fn figures(&self, repeated: u64, took: Duration) -> Figures {
        let (stats, ledger) = (self.agent.receiver.stats(), &self.agent.ledger);
        let skipped = ledger.count(|expected| matches!(expected, Expected::Skipped(_)));
        let failed = ledger.count(|expected| expected == Expected::Invalid);
        Figures { rounds: 1, events: self.corpus.pieces, repeated, ..Figures::default() }.note(format!(
            "{} files: {} delivered, {} duplicates, {} rejected, {skipped} skipped, {failed} failed; {} requests, {:.1} s",
            self.corpus.files.len(),
            self.good(),
            ledger.duplicates,
            ledger.rejects.len(),
            stats.requests,
            took.as_secs_f64()
        ))
    }

    /// How many events are to be delivered.
    fn good(&self) -> u64 {
        self.agent.ledger.count(|expected| expected == Expected::Delivered)
    }

    fn until(&mut self, fact: &str, holds: impl FnMut(&mut TestAgent) -> bool) {
        self.agent.until_within(TIMEOUT, fact, holds);
    }
}

/// Writes files beside the spool, with their times.
fn write_beside_spool(agent: &TestAgent, files: &[File]) {
    for file in files {
        let path = agent.path("beside").join(&file.name);
        fs::write(&path, &file.bytes).unwrap();
        OpenOptions::new().write(true).open(path).unwrap().set_modified(file.modified).unwrap();
    }
}

/// Returns what renames those files into the spool, one after the other.
fn into_spool(agent: &TestAgent, files: &[File]) -> impl FnOnce() + Send + 'static {
    let (beside, spool) = (agent.path("beside"), agent.spool());
    let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
    move || {
        for name in names {
            fs::rename(beside.join(&name), spool.join(&name)).unwrap();
        }
    }
}

fn person_of(held: &HeldItem) -> String {
    held.top("profile_id").or_else(|| held.top("email")).unwrap().trim_matches('"').to_owned()
}

/// Whether the agent has derived this id from the event.
fn is_derived(id: &str) -> bool {
    uuid::Uuid::parse_str(id).is_ok_and(|uuid| uuid.get_version_num() == 8)
}
