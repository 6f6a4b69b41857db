//! The sender: takes events from the outbox to the receiver. It joins what stands below it and decides nothing:
//! [`Scheduler`] says whose events are next and what an answer means for them.
//!
//! ```text
//!   scheduler.next ──order──▶ batcher ──request──▶ client ──verdict──▶ scheduler.answered
//!        ▲                                                                  │
//!        └────── scheduler.settled ◀── commit ◀── writer.settle ◀──outcome───┘
//! ```

use super::batcher::{BatchJob, Batcher, BuiltBatch, BuiltRequest};
use super::destination::Destination;
use super::scheduler::{AnswerEffects, BatchPlan, InFlight, Next, Scheduler};
use super::state_reporter::StateReporter;
use super::{Fatal, Heartbeat};
use crate::clock::{Clock, Moment, Timestamp};
use crate::config::{Concurrency, Config};
use crate::item::OrderingKey;
use crate::koala::{Client, Verdict};
use crate::mapping::Mappings;
use crate::outbox::{Enqueued, OutboxError, Settled, Settlement, Writer};
use crate::reason::{Code, Reason};
use crate::status::{self, DestinationState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Pending events looked at in one search for ordering keys.
const DISCOVER_AT_ONCE: usize = 1_000;
/// How long the sender lets requests finish when it is stopped; what is left then is sent again, under the
/// same ids. Well within the ten seconds that the whole agent has.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait before asking a full or locked outbox again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);

/// What the sender is told from outside.
#[derive(Debug)]
pub enum SenderCommand {
    /// Events were stored.
    Stored(Enqueued),
    /// Ask the receiver at once, and look at the whole outbox again: something was put back.
    RetryNow,
    /// Another client, for a changed key, address or trust; `None`: there is no key.
    Client {
        /// The client.
        client: Option<Client>,
        /// Its address, as it is shown.
        endpoint: String,
        /// How many requests may be in flight.
        concurrency: Concurrency,
    },
    /// Other mappings are in force.
    Mappings(Arc<Mappings>),
    /// Finish what is in flight, then end.
    Stop,
}

/// What a commit has settled, and whose it is.
type Committed = Result<(Vec<OrderingKey>, Vec<i64>), Arc<OutboxError>>;

/// The sender's state; [`Sender::run`] is its loop.
pub struct Sender {
    client: Option<Client>,
    mappings: Arc<Mappings>,
    writer: Writer,
    batcher: Batcher,
    clock: Clock,
    scheduler: Scheduler,
    /// Up to this event the outbox was searched for ordering keys.
    searched: i64,
    /// The first number that was free when something was last stored.
    stored: Option<i64>,
    /// Up to this one it had been before it was searched again.
    known: i64,
    /// Events up to there that are delivered, and whose rows may still be met.
    delivered: BTreeSet<i64>,
    requests: JoinSet<(InFlight, Option<u64>, Verdict)>,
    commits: JoinSet<Committed>,
    /// Commits that could not be made yet: nothing more is sent that could not be marked either.
    stalled: watch::Sender<usize>,
    retry_after_deadline: Option<Timestamp>,
    reporter: StateReporter,
    heartbeat: Heartbeat,
}

impl Sender {
    /// A sender for that outbox. What it knows of the destination it tells as news.
    pub fn new(
        client: Option<Client>,
        config: &Config,
        writer: Writer,
        batcher: Batcher,
        clock: Clock,
        reporter: StateReporter,
        heartbeat: Heartbeat,
    ) -> Sender {
        let retry_after_deadline = writer.retry_after_deadline();
        let (concurrency, mappings) = (config.koala.concurrency, config.mappings.clone());
        let destination =
            Destination::new(concurrency, retry_after_deadline, clock.moment(), fastrand::Rng::new());
        Sender {
            client,
            mappings,
            writer,
            batcher,
            clock,
            scheduler: Scheduler::new(destination, fastrand::Rng::new()),
            searched: 0,
            stored: None,
            known: 0,
            delivered: BTreeSet::new(),
            requests: JoinSet::new(),
            commits: JoinSet::new(),
            stalled: watch::Sender::new(0),
            retry_after_deadline,
            reporter,
            heartbeat,
        }
    }

    /// Runs until it is told to stop. When it returns `Ok`, everything that was answered is durable.
    ///
    /// # Errors
    /// The outbox failed in a way that waiting does not fix.
    pub async fn run(mut self, mut signals: mpsc::UnboundedReceiver<SenderCommand>) -> Result<(), Fatal> {
        self.search_again()?;
        self.publish();
        loop {
            self.heartbeat.tick();
            let now = self.clock.moment();
            let mut is_searching = false;
            let wait = if self.client.is_none() || *self.stalled.borrow() > 0 {
                None
            } else {
                match self.scheduler.next(now) {
                    Next::Start(plan) => {
                        self.start(plan)?;
                        continue;
                    }
                    Next::Discover => {
                        self.discover()?;
                        is_searching = true;
                        None
                    }
                    Next::Wait(until) => {
                        // It may have found that there is nobody left to compare a refused event with.
                        if self.scheduler.destination.state() != self.reporter.state() {
                            self.publish();
                        }
                        if !self.scheduler.has_more() {
                            self.batcher.queue().release().map_err(fatal)?;
                        }
                        until
                    }
                }
            };
            let held = self.batcher.queue().held_until();
            tokio::select! {
                built = self.batcher.built() => {
                    let built = built.ok_or(Fatal::Defect("batcher"))?.map_err(fatal)?;
                    self.built(built);
                }
                Some(answered) = self.requests.join_next() => {
                    // A request's task is not aborted while this loop runs, so it has panicked.
                    let (in_flight, read_version, verdict) = answered.map_err(|_| Fatal::Defect("sender"))?;
                    self.answered(in_flight, read_version, verdict);
                }
                Some(committed) = self.commits.join_next() => self.committed(committed)?,
                signal = signals.recv() => match signal {
                    Some(SenderCommand::Stored(enqueued)) => {
                        self.batcher.refresh().map_err(fatal)?;
                        self.stored(enqueued);
                    }
                    Some(SenderCommand::RetryNow) => self.retry_now()?,
                    Some(SenderCommand::Client { client, endpoint, concurrency }) => {
                        self.client = client;
                        self.reporter.move_to(endpoint);
                        self.scheduler.renewed();
                        self.scheduler.destination.set_concurrency(concurrency);
                        self.retry_now()?;
                    }
                    Some(SenderCommand::Mappings(mappings)) => self.mappings = mappings,
                    Some(SenderCommand::Stop) | None => return self.stop().await,
                },
                () = self.clock.sleep_until(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.clock.sleep_until(held.unwrap_or_default()), if held.is_some() => {
                    self.batcher.queue().release().map_err(fatal)?;
                }
                () = self.heartbeat.pinged() => self.batcher.ping(),
                // A search of the whole outbox is long; answers have their turn amid it.
                () = tokio::task::yield_now(), if is_searching => {}
            }
        }
    }

    fn retry_now(&mut self) -> Result<(), Fatal> {
        self.scheduler.destination.retry_now();
        self.search_again()?;
        self.publish();
        Ok(())
    }

    /// Begins at the start of the outbox: something may have been put back there.
    fn search_again(&mut self) -> Result<(), Fatal> {
        self.delivered = self.batcher.queue().acked().map_err(fatal)?;
        let last = self.delivered.last().copied().unwrap_or(0);
        self.known = self.known.max(self.searched).max(last);
        self.searched = 0;
        self.scheduler.exhausted(false);
        Ok(())
    }

    /// What was stored right behind what is known is known with that; anything else is looked for.
    fn stored(&mut self, enqueued: Enqueued) {
        let is_next = self.stored.replace(enqueued.to).is_none_or(|to| to == enqueued.from);
        if !is_next || !self.scheduler.knows_all() {
            return self.scheduler.exhausted(false);
        }
        for (seq, key) in enqueued.items {
            // A search may have found it before this was told.
            if seq > self.searched {
                self.searched = seq;
                self.scheduler.discovered(seq, key);
            }
        }
    }

    fn discover(&mut self) -> Result<(), Fatal> {
        let found = self.batcher.queue().discover(self.searched, DISCOVER_AT_ONCE).map_err(fatal)?;
        self.batcher.refresh().map_err(fatal)?;
        self.scheduler.exhausted(found.len() < DISCOVER_AT_ONCE);
        for (seq, key) in found {
            self.searched = seq;
            if !self.delivered.contains(&seq) {
                self.scheduler.discovered(seq, key);
            }
        }
        if self.searched >= self.known {
            self.delivered = BTreeSet::new();
        }
        Ok(())
    }

    /// Has the request of an order made.
    fn start(&mut self, plan: BatchPlan) -> Result<(), Fatal> {
        let (events, max_bytes) = (self.scheduler.events(plan), self.scheduler.max_bytes());
        let job = BatchJob { plan, events, mappings: self.mappings.clone(), max_bytes };
        let built = self.batcher.submit(job).map_err(fatal)?;
        built.into_iter().for_each(|built| self.built(built));
        Ok(())
    }

    /// Sends the request that was made, unless something has changed meanwhile that speaks against it.
    fn built(&mut self, built: BuiltBatch) {
        let BuiltBatch { plan, mappings, gone, settled, request } = built;
        self.scheduler.gone(plan, &gone);
        let is_current = Arc::ptr_eq(&mappings, &self.mappings) && self.scheduler.stands(plan);
        let may_go = is_current && *self.stalled.borrow() == 0;
        let Some(client) = self.client.clone().filter(|_| may_go) else {
            return self.scheduler.nothing(plan);
        };
        if !settled.is_empty() {
            let unsent: Vec<i64> = settled.iter().map(|(seq, _)| *seq).collect();
            let keys = self.scheduler.unsent(plan, &unsent);
            self.settle(settled, keys, None);
        } else if let Some(BuiltRequest { endpoint, body, seqs, read_version }) = request {
            let in_flight = self.scheduler.sent(plan, seqs, body.len(), self.clock.mono());
            self.requests.spawn(async move { (in_flight, read_version, client.batch(endpoint, body).await) });
        } else {
            self.scheduler.nothing(plan);
        }
    }

    /// `seen`: see [`Settlement::read_version`].
    fn answered(&mut self, in_flight: InFlight, read_version: Option<u64>, verdict: Verdict) {
        let effects = self.scheduler.answered(in_flight, verdict, self.clock.moment());
        self.publish();
        let AnswerEffects { rows, keys, noted } = effects;
        if rows.is_empty() {
            let attempts = noted.into_iter().collect();
            // An answer that is not noted is a line less in an event's history; the event waits all the same.
            drop(self.writer.settle(Settlement { attempts, ..Settlement::default() }));
            return;
        }
        self.settle(rows, keys, read_version);
    }

    /// Settles rows; these ordering keys stand still until that is durable.
    fn settle(&mut self, rows: Vec<(i64, Settled)>, keys: Vec<OrderingKey>, read_version: Option<u64>) {
        let (writer, stalled) = (self.writer.clone(), self.stalled.clone());
        let may_wait = !self.scheduler.awaits(&keys, rows.len());
        self.commits.spawn(async move {
            let seqs = rows.iter().map(|(seq, _)| *seq).collect();
            commit(&writer, Settlement { rows, read_version, may_wait, ..Settlement::default() }, &stalled)
                .await?;
            Ok((keys, seqs))
        });
    }

    fn committed(&mut self, committed: Result<Committed, tokio::task::JoinError>) -> Result<(), Fatal> {
        // A commit's task is not aborted, so it has panicked.
        let (keys, seqs) = committed.map_err(|_| Fatal::Defect("sender"))?.map_err(Fatal::Outbox)?;
        self.scheduler.settled(&keys, &seqs);
        if self.searched < self.known {
            // Their rows may be there yet when the search gets to them.
            self.delivered.extend(seqs);
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<(), Fatal> {
        self.batcher.queue().release().map_err(fatal)?;
        let finish = async {
            while let Some(answered) = self.requests.join_next().await {
                if let Ok((in_flight, read_version, verdict)) = answered {
                    self.answered(in_flight, read_version, verdict);
                }
            }
        };
        if tokio::time::timeout(GRACE, finish).await.is_err() {
            tracing::info!(
                "{} requests were not answered in time; their events stay pending",
                self.requests.len()
            );
        }
        let marked = async {
            while let Some(committed) = self.commits.join_next().await {
                self.committed(committed)?;
            }
            Ok(())
        };
        let marked = tokio::time::timeout(GRACE / 2, marked).await.unwrap_or(Ok(()));
        // A disk that hangs must not keep the time-out of the stop from being noticed.
        let _ = tokio::task::spawn_blocking(move || self.batcher.stop()).await;
        marked
    }

    /// Publishes the destination's state where it has changed, and keeps the receiver's own wish.
    fn publish(&mut self) {
        let now = self.clock.moment();
        let retry_after_deadline = self.scheduler.destination.retry_after_deadline(now);
        if retry_after_deadline.is_some() != self.retry_after_deadline.is_some()
            || retry_after_deadline > self.retry_after_deadline
        {
            self.retry_after_deadline = retry_after_deadline;
            self.writer.set_retry_after_deadline(retry_after_deadline);
        }
        self.reporter.report(shown(&self.scheduler.destination, self.client.is_some(), now), now.wall);
    }
}

fn fatal(e: OutboxError) -> Fatal {
    Fatal::Outbox(Arc::new(e))
}

/// Settles rows, however long the outbox has no room to write it down.
async fn commit(
    writer: &Writer,
    settlement: Settlement,
    stalled: &watch::Sender<usize>,
) -> Result<(), Arc<OutboxError>> {
    let mut waited = false;
    let done = loop {
        match writer.settle(settlement.clone()).wait().await {
            Err(e) if e.is_transient() => {
                if !waited {
                    let mut is_first = false;
                    stalled.send_modify(|n| {
                        *n += 1;
                        is_first = *n == 1;
                    });
                    if is_first {
                        tracing::warn!("{e}; nothing more is sent until it can be marked as delivered");
                    }
                    waited = true;
                }
                tokio::time::sleep(OUTBOX_RETRY).await;
            }
            done => break done,
        }
    };
    if waited {
        stalled.send_modify(|n| *n -= 1);
    }
    done
}

fn shown(destination: &Destination, has_key: bool, now: Moment) -> status::Destination {
    let mut shown = status::Destination {
        kind: String::new(),
        endpoint: String::new(),
        state: destination.state(),
        since: Some(destination.since()),
        reason: destination.reason().cloned(),
        retry_at: destination.retry_at(now),
        last_delivery: destination.last_delivery(),
    };
    if !has_key {
        shown.state = DestinationState::Unknown;
        shown.reason = Some(Reason::new(Code::NoKey, "there is no public key yet"));
        shown.retry_at = None;
    }
    shown
}
