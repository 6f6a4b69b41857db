//! The courier: takes events from the outbox to the receiver. It joins what stands below it and decides nothing:
//! [`Dispatch`] says whose events are next and what an answer means for them.
//!
//! ```text
//!   dispatch.next ──order──▶ gatherer ──request──▶ client ──verdict──▶ dispatch.answered
//!        ▲                                                                  │
//!        └────── dispatch.settled ◀── commit ◀── writer.settle ◀──outcome───┘
//! ```

use super::destination::Destination;
use super::dispatch::{Dispatch, Next, Order, Outcome, Ticket};
use super::gatherer::{Ask, Gatherer, Made, Request};
use super::news::News;
use super::{Fatal, Pulse};
use crate::clock::{Clock, Moment, Timestamp};
use crate::config::{Concurrency, Config};
use crate::item::Lane;
use crate::koala::{Client, Verdict};
use crate::mapping::Mappings;
use crate::outbox::{OutboxError, Settled, Settlement, Waiting, Writer};
use crate::reason::{Code, Reason};
use crate::status::{self, DestinationState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Pending events looked at in one search for lanes.
const DISCOVER_AT_ONCE: usize = 1_000;
/// How long the courier lets requests finish when it is stopped; what is left then is sent again, under the
/// same ids. Well within the ten seconds that the whole agent has.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait before asking a full or locked outbox again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);

/// What the courier is told from outside.
#[derive(Debug)]
pub enum Signal {
    /// Events were stored.
    Stored(Waiting),
    /// Ask the receiver at once, and look at the whole outbox again: something was put back.
    Kick,
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
type Committed = Result<(Vec<Lane>, Vec<i64>), Arc<OutboxError>>;

/// The courier's state; [`Courier::run`] is its loop.
pub struct Courier {
    client: Option<Client>,
    mappings: Arc<Mappings>,
    writer: Writer,
    gatherer: Gatherer,
    clock: Clock,
    dispatch: Dispatch,
    /// Up to this event the outbox was searched for lanes.
    searched: i64,
    /// The first number that was free when something was last stored.
    stored: Option<i64>,
    /// Up to this one it had been before it was searched again.
    known: i64,
    /// Events up to there that are delivered, and whose rows may still be met.
    delivered: BTreeSet<i64>,
    requests: JoinSet<(Ticket, Option<u64>, Verdict)>,
    commits: JoinSet<Committed>,
    /// Commits that could not be made yet: nothing more is sent that could not be marked either.
    stalled: watch::Sender<usize>,
    not_before: Option<Timestamp>,
    news: News,
    pulse: Pulse,
}

impl Courier {
    /// A courier for that outbox. What it knows of the destination it tells as news.
    pub fn new(
        client: Option<Client>,
        config: &Config,
        writer: Writer,
        gatherer: Gatherer,
        clock: Clock,
        news: News,
        pulse: Pulse,
    ) -> Courier {
        let not_before = writer.not_before();
        let (concurrency, mappings) = (config.koala.concurrency, config.mappings.clone());
        let destination = Destination::new(concurrency, not_before, clock.moment(), fastrand::Rng::new());
        Courier {
            client,
            mappings,
            writer,
            gatherer,
            clock,
            dispatch: Dispatch::new(destination, fastrand::Rng::new()),
            searched: 0,
            stored: None,
            known: 0,
            delivered: BTreeSet::new(),
            requests: JoinSet::new(),
            commits: JoinSet::new(),
            stalled: watch::Sender::new(0),
            not_before,
            news,
            pulse,
        }
    }

    /// Runs until it is told to stop. When it returns `Ok`, everything that was answered is durable.
    ///
    /// # Errors
    /// The outbox failed in a way that waiting does not mend.
    pub async fn run(mut self, mut signals: mpsc::UnboundedReceiver<Signal>) -> Result<(), Fatal> {
        self.search_again()?;
        self.publish();
        loop {
            self.pulse.beat();
            let now = self.clock.moment();
            let mut is_searching = false;
            let wait = if self.client.is_none() || *self.stalled.borrow() > 0 {
                None
            } else {
                match self.dispatch.next(now) {
                    Next::Launch(order) => {
                        self.launch(order)?;
                        continue;
                    }
                    Next::Discover => {
                        self.discover()?;
                        is_searching = true;
                        None
                    }
                    Next::Wait(until) => {
                        // It may have found that there is nobody left to compare a refused event with.
                        if self.dispatch.destination.state() != self.news.state() {
                            self.publish();
                        }
                        if !self.dispatch.has_more() {
                            self.gatherer.backlog().let_go().map_err(fatal)?;
                        }
                        until
                    }
                }
            };
            let held = self.gatherer.backlog().held_until();
            tokio::select! {
                made = self.gatherer.made() => {
                    let made = made.ok_or(Fatal::Defect("gatherer"))?.map_err(fatal)?;
                    self.made(made);
                }
                Some(answered) = self.requests.join_next() => {
                    // A request's task is not aborted while this loop runs, so it has panicked.
                    let (ticket, seen, verdict) = answered.map_err(|_| Fatal::Defect("courier"))?;
                    self.answered(ticket, seen, verdict);
                }
                Some(committed) = self.commits.join_next() => self.committed(committed)?,
                signal = signals.recv() => match signal {
                    Some(Signal::Stored(waiting)) => {
                        self.gatherer.renew().map_err(fatal)?;
                        self.stored(waiting);
                    }
                    Some(Signal::Kick) => self.kick()?,
                    Some(Signal::Client { client, endpoint, concurrency }) => {
                        self.client = client;
                        self.news.move_to(endpoint);
                        self.dispatch.renewed();
                        self.dispatch.destination.set_concurrency(concurrency);
                        self.kick()?;
                    }
                    Some(Signal::Mappings(mappings)) => self.mappings = mappings,
                    Some(Signal::Stop) | None => return self.stop().await,
                },
                () = self.clock.sleep_until(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.clock.sleep_until(held.unwrap_or_default()), if held.is_some() => {
                    self.gatherer.backlog().let_go().map_err(fatal)?;
                }
                () = self.pulse.asked() => self.gatherer.beat(),
                // A search of the whole outbox is long; answers have their turn amid it.
                () = tokio::task::yield_now(), if is_searching => {}
            }
        }
    }

    fn kick(&mut self) -> Result<(), Fatal> {
        self.dispatch.destination.kick();
        self.search_again()?;
        self.publish();
        Ok(())
    }

    /// Begins at the start of the outbox: something may have been put back there.
    fn search_again(&mut self) -> Result<(), Fatal> {
        self.delivered = self.gatherer.backlog().marked().map_err(fatal)?;
        let last = self.delivered.last().copied().unwrap_or(0);
        self.known = self.known.max(self.searched).max(last);
        self.searched = 0;
        self.dispatch.exhausted(false);
        Ok(())
    }

    /// What was stored right behind what is known is known with that; anything else is looked for.
    fn stored(&mut self, waiting: Waiting) {
        let is_next = self.stored.replace(waiting.to).is_none_or(|to| to == waiting.from);
        if !is_next || !self.dispatch.knows_all() {
            return self.dispatch.exhausted(false);
        }
        for (seq, lane) in waiting.items {
            // A search may have found it before this was told.
            if seq > self.searched {
                self.searched = seq;
                self.dispatch.discovered(seq, lane);
            }
        }
    }

    fn discover(&mut self) -> Result<(), Fatal> {
        let found = self.gatherer.backlog().discover(self.searched, DISCOVER_AT_ONCE).map_err(fatal)?;
        self.gatherer.renew().map_err(fatal)?;
        self.dispatch.exhausted(found.len() < DISCOVER_AT_ONCE);
        for (seq, lane) in found {
            self.searched = seq;
            if !self.delivered.contains(&seq) {
                self.dispatch.discovered(seq, lane);
            }
        }
        if self.searched >= self.known {
            self.delivered = BTreeSet::new();
        }
        Ok(())
    }

    /// Has the request of an order made.
    fn launch(&mut self, order: Order) -> Result<(), Fatal> {
        let (events, max_bytes) = (self.dispatch.events(order), self.dispatch.max_bytes());
        let ask = Ask { order, events, mappings: self.mappings.clone(), max_bytes };
        let made = self.gatherer.ask(ask).map_err(fatal)?;
        made.into_iter().for_each(|made| self.made(made));
        Ok(())
    }

    /// Sends the request that was made, unless something has changed meanwhile that speaks against it.
    fn made(&mut self, made: Made) {
        let Made { order, mappings, gone, settled, request } = made;
        self.dispatch.gone(order, &gone);
        let is_current = Arc::ptr_eq(&mappings, &self.mappings) && self.dispatch.stands(order);
        let may_go = is_current && *self.stalled.borrow() == 0;
        let Some(client) = self.client.clone().filter(|_| may_go) else {
            return self.dispatch.nothing(order);
        };
        if !settled.is_empty() {
            let unsent: Vec<i64> = settled.iter().map(|(seq, _)| *seq).collect();
            let lanes = self.dispatch.unsent(order, &unsent);
            self.settle(settled, lanes, None);
        } else if let Some(Request { endpoint, body, seqs, seen }) = request {
            let ticket = self.dispatch.sent(order, seqs, body.len(), self.clock.mono());
            self.requests.spawn(async move { (ticket, seen, client.batch(endpoint, body).await) });
        } else {
            self.dispatch.nothing(order);
        }
    }

    /// `seen`: see [`Settlement::seen`].
    fn answered(&mut self, ticket: Ticket, seen: Option<u64>, verdict: Verdict) {
        let outcome = self.dispatch.answered(ticket, verdict, self.clock.moment());
        self.publish();
        let Outcome { rows, lanes, noted } = outcome;
        if rows.is_empty() {
            let attempts = noted.into_iter().collect();
            // An answer that is not noted is a line less in an event's history; the event waits all the same.
            drop(self.writer.settle(Settlement { attempts, ..Settlement::default() }));
            return;
        }
        self.settle(rows, lanes, seen);
    }

    /// Settles rows; these lanes stand still until that is durable.
    fn settle(&mut self, rows: Vec<(i64, Settled)>, lanes: Vec<Lane>, seen: Option<u64>) {
        let (writer, stalled) = (self.writer.clone(), self.stalled.clone());
        let may_wait = !self.dispatch.awaits(&lanes, rows.len());
        self.commits.spawn(async move {
            let seqs = rows.iter().map(|(seq, _)| *seq).collect();
            commit(&writer, Settlement { rows, seen, may_wait, ..Settlement::default() }, &stalled).await?;
            Ok((lanes, seqs))
        });
    }

    fn committed(&mut self, committed: Result<Committed, tokio::task::JoinError>) -> Result<(), Fatal> {
        // A commit's task is not aborted, so it has panicked.
        let (lanes, seqs) = committed.map_err(|_| Fatal::Defect("courier"))?.map_err(Fatal::Outbox)?;
        self.dispatch.settled(&lanes, &seqs);
        if self.searched < self.known {
            // Their rows may be there yet when the search gets to them.
            self.delivered.extend(seqs);
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<(), Fatal> {
        self.gatherer.backlog().let_go().map_err(fatal)?;
        let finish = async {
            while let Some(answered) = self.requests.join_next().await {
                if let Ok((ticket, seen, verdict)) = answered {
                    self.answered(ticket, seen, verdict);
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
        let _ = tokio::task::spawn_blocking(move || self.gatherer.stop()).await;
        marked
    }

    /// Publishes the destination's state where it has changed, and keeps the receiver's own wish.
    fn publish(&mut self) {
        let now = self.clock.moment();
        let not_before = self.dispatch.destination.not_before(now);
        if not_before.is_some() != self.not_before.is_some() || not_before > self.not_before {
            self.not_before = not_before;
            self.writer.set_not_before(not_before);
        }
        self.news.tell(shown(&self.dispatch.destination, self.client.is_some(), now), now.wall);
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
            Err(e) if e.is_passing() => {
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
