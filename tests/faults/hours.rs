//! Where hours pass: the agent in this process, on a clock that the fault moves, before a real receiver.

use super::books::Books;
use super::stage::{Figures, Scale};
use crate::common::world::{PATIENCE, World};
use koala_agent::receiver::{Faults, Held};
use koala_agent::status::DestinationState;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

pub struct Hours {
    pub world: World,
    pub books: Books,
    files: u64,
}

/// Plays on one thread, with the scale's seed for the agent's chance.
pub fn play<T>(scale: &Scale, fault: impl Future<Output = T>) -> T {
    fastrand::seed(scale.seed);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(fault)
}

impl Hours {
    /// A receiver with these faults; no agent runs yet.
    pub async fn new(faults: Faults) -> Hours {
        Hours { world: World::manual(faults).await, books: Books::default(), files: 0 }
    }

    /// Drops one NDJSON file of so many events, by so many people in turn.
    pub fn drop_lines(&mut self, events: u64, people: u64) {
        let lines: Vec<String> = (0..events).map(|n| self.books.event(n % people)).collect();
        self.drop_text(&lines.join("\n"));
    }

    /// Drops an NDJSON file; its name is the next in order.
    pub fn drop_text(&mut self, lines: &str) {
        self.files += 1;
        self.world.drop_file(&format!("{:09}.ndjson", self.files), lines);
    }

    /// Starts the agent, and waits until everything that was dropped is stored.
    pub async fn start(&mut self) {
        self.world.start().await;
        self.stored().await;
    }

    /// Waits until everything that was dropped is stored.
    pub async fn stored(&self) {
        let all = self.books.dropped.len() as u64;
        let known = |w: &World| {
            let outbox = w.status().outbox;
            outbox.pending + outbox.delivered + outbox.failed
        };
        self.world.until("all is stored", |w| known(w) == all).await;
    }

    /// Waits until the destination is so.
    pub async fn until_state(&self, state: DestinationState) {
        self.world.until(&format!("{state:?}"), |w| w.status().destination.state == state).await;
    }

    /// How long until the next attempt, while the destination waits.
    pub fn wait(&self) -> Option<Duration> {
        let at = self.world.status().destination.retry_at;
        at.map(|at| at.since(self.world.clock.now()))
    }

    /// Moves the clock to the next attempt, and waits until it is answered.
    pub async fn attempt(&self) {
        let before = self.world.status().destination.retry_at;
        self.advance(self.wait().expect("the destination does not wait"));
        self.world.until("an attempt", |w| w.status().destination.retry_at != before).await;
    }

    /// Moves the clock from attempt to attempt for that time; the waits between them.
    pub async fn attempts(&self, time: Duration) -> Vec<Duration> {
        let end = self.world.clock.now().plus(time);
        let mut waits = Vec::new();
        while let Some(wait) = self.wait().filter(|wait| self.world.clock.now().plus(*wait) < end) {
            waits.push(wait);
            self.attempt().await;
        }
        self.world.clock.advance(end.since(self.world.clock.now()));
        waits
    }

    /// Waits for a fact that must come within that time, and moves the clock from attempt to attempt until then.
    pub async fn drive(&self, most: Duration, fact: &str, holds: impl Fn(&World) -> bool) {
        let (began, due) = (Instant::now(), self.world.clock.now().plus(most));
        let mut reached = None;
        while !holds(&self.world) {
            let seen = self.world.status().destination;
            assert!(began.elapsed() < PATIENCE, "not in time: {fact}\n{seen:#?}");
            if let Some(at) = seen.retry_at.filter(|at| Some(*at) != reached) {
                assert!(at <= due, "not within {most:?}: {fact}\n{seen:#?}");
                self.advance(at.since(self.world.clock.now()));
                reached = Some(at);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Moves the clock in small steps until a fact holds; how far it went.
    pub async fn pass_until(&self, fact: &str, holds: impl Fn(&World) -> bool) -> Duration {
        let (began, from) = (Instant::now(), self.world.clock.now());
        while !holds(&self.world) {
            assert!(
                began.elapsed() < PATIENCE,
                "not in time: {fact}\n{:#?}",
                self.world.status().destination
            );
            self.world.pass(SECOND, SECOND / 4).await;
        }
        self.world.clock.now().since(from)
    }

    /// Moves the clock by that and a moment more, as waits are shown in whole milliseconds.
    fn advance(&self, by: Duration) {
        self.world.clock.advance(by + Duration::from_millis(1));
    }

    /// Waits until all is marked, stops the agent, and balances the books. One round.
    pub async fn end(self) -> Figures {
        self.end_beside(Vec::new()).await
    }

    /// The same where another receiver has taken events as well.
    pub async fn end_beside(mut self, elsewhere: Vec<Held>) -> Figures {
        self.world.until("all is marked", |w| w.status().outbox.pending == 0).await;
        self.world.stop().await;
        let mut taken = self.world.receiver.events();
        taken.extend(elsewhere);
        taken.sort_by_key(|held| held.received_at);
        self.books.balance_at(&self.world.spool(), &self.world.outbox(), &taken)
    }
}
