//! The courier: takes events from the outbox to the receiver. It joins what stands below it and decides nothing:
//! [`Dispatch`] says whose events are next and what an answer means for them.
//!
//! ```text
//!   dispatch.next ──order──▶ gather, map, batch ──request──▶ client ──verdict──▶ dispatch.answered
//!        ▲                                                                            │
//!        └────────── dispatch.settled ◀── commit ◀── writer.settle ◀──────outcome─────┘
//! ```

use super::destination::Destination;
use super::dispatch::{Dispatch, Next, Order, Outcome, Take, Ticket};
use super::news::News;
use super::{Fatal, Pulse};
use crate::clock::{Clock, Moment, Timestamp};
use crate::config::{Concurrency, Config};
use crate::event::Event;
use crate::item::Lane;
use crate::koala::batch::{Batch, MAX_OF_A_KIND};
use crate::koala::{Client, Verdict};
use crate::mapping::{self, Mappings};
use crate::outbox::{OutboxError, PendingItem, Reader, Settled, Writer};
use crate::reason::{Code, Reason};
use crate::status::{self, DestinationState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Pending events looked at in one search for lanes.
const DISCOVER_AT_ONCE: usize = 1_000;
/// Events read for one request: both kinds full, and one more to see where the next begins.
const GATHER_AT_ONCE: usize = 2 * MAX_OF_A_KIND;
/// How long the courier lets requests finish when it is stopped; what is left then is sent again, under the
/// same ids. Well within the ten seconds that the whole agent has.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait before asking a full or locked outbox again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);

/// What the courier is told from outside.
#[derive(Debug)]
pub enum Signal {
    /// Events were stored.
    Stored,
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

/// The lanes of a commit, each with its oldest event that still waits.
type Committed = Result<Vec<(Lane, Option<i64>)>, Arc<OutboxError>>;

/// The courier's state; [`Courier::run`] is its loop.
pub struct Courier {
    client: Option<Client>,
    mappings: Arc<Mappings>,
    writer: Writer,
    reader: Arc<Mutex<Reader>>,
    clock: Clock,
    dispatch: Dispatch,
    /// Up to this event the outbox was searched for lanes.
    searched: i64,
    requests: JoinSet<(Ticket, Verdict)>,
    commits: JoinSet<Committed>,
    /// Commits that could not be made yet: nothing more is sent that could not be marked either.
    stalled: watch::Sender<usize>,
    not_before: Option<Timestamp>,
    published: watch::Sender<status::Destination>,
    news: News,
    pulse: Pulse,
}

impl Courier {
    /// A courier for that outbox. What it knows of the destination is published through `published`.
    pub fn new(
        client: Option<Client>,
        config: &Config,
        writer: Writer,
        reader: Reader,
        clock: Clock,
        published: watch::Sender<status::Destination>,
        pulse: Pulse,
    ) -> Courier {
        let not_before = writer.not_before();
        let (concurrency, mappings) = (config.koala.concurrency, config.mappings.clone());
        let destination = Destination::new(concurrency, not_before, clock.moment(), fastrand::Rng::new());
        Courier {
            client,
            mappings,
            writer,
            reader: Arc::new(Mutex::new(reader)),
            clock,
            dispatch: Dispatch::new(destination, fastrand::Rng::new()),
            searched: 0,
            requests: JoinSet::new(),
            commits: JoinSet::new(),
            stalled: watch::Sender::new(0),
            not_before,
            published,
            news: News::default(),
            pulse,
        }
    }

    /// Runs until it is told to stop. When it returns `Ok`, everything that was answered is durable.
    ///
    /// # Errors
    /// The outbox failed in a way that waiting does not mend.
    pub async fn run(mut self, mut signals: mpsc::UnboundedReceiver<Signal>) -> Result<(), Fatal> {
        self.publish();
        loop {
            self.pulse.beat();
            let now = self.clock.moment();
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
                        // A search of the whole outbox is long; answers have their turn amid it.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Next::Wait(until) => {
                        // It may have found that there is nobody left to compare a refused event with.
                        if self.dispatch.destination.state() != self.published.borrow().state {
                            self.publish();
                        }
                        until
                    }
                }
            };
            tokio::select! {
                Some(answered) = self.requests.join_next() => {
                    // A request's task is not aborted while this loop runs, so it has panicked.
                    let (ticket, verdict) = answered.map_err(|_| Fatal::Defect("courier"))?;
                    self.answered(ticket, verdict);
                }
                Some(committed) = self.commits.join_next() => self.committed(committed)?,
                signal = signals.recv() => match signal {
                    Some(Signal::Stored) => self.dispatch.exhausted(false),
                    Some(Signal::Kick) => self.kick(),
                    Some(Signal::Client { client, endpoint, concurrency }) => {
                        self.client = client;
                        self.published.send_modify(|published| published.endpoint = endpoint);
                        self.dispatch.renewed();
                        self.dispatch.destination.set_concurrency(concurrency);
                        self.kick();
                    }
                    Some(Signal::Mappings(mappings)) => self.mappings = mappings,
                    Some(Signal::Stop) | None => return self.stop().await,
                },
                () = self.clock.sleep_until(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.pulse.asked() => {}
            }
        }
    }

    fn kick(&mut self) {
        self.dispatch.destination.kick();
        self.searched = 0;
        self.dispatch.exhausted(false);
        self.publish();
    }

    fn discover(&mut self) -> Result<(), Fatal> {
        let after = self.searched;
        let found = self.read(|reader| reader.discover(after, DISCOVER_AT_ONCE))?;
        self.dispatch.exhausted(found.len() < DISCOVER_AT_ONCE);
        for (seq, lane) in found {
            self.searched = seq;
            self.dispatch.discovered(seq, lane);
        }
        Ok(())
    }

    /// Makes the request of an order and sends it on its way.
    fn launch(&mut self, order: Order) -> Result<(), Fatal> {
        let Some(client) = self.client.clone() else { return Ok(()) };
        let max_bytes = self.dispatch.max_bytes();
        let events = self.read(|reader| reader.gather(order.lane, GATHER_AT_ONCE, max_bytes))?;
        let Request { batch, seqs, settled } = request(&self.mappings, events, order.take, max_bytes);
        if !settled.is_empty() {
            // The mapping has changed since they were stored: they are settled first, to keep the order.
            let lanes = self.dispatch.unsent(order);
            self.settle(settled, lanes);
        } else if let Some(batch) = batch {
            let body = batch.body();
            let ticket = self.dispatch.sent(order, seqs, body.len(), self.clock.moment().mono);
            let endpoint = batch.endpoint();
            self.requests.spawn(async move { (ticket, client.batch(endpoint, body).await) });
        } else {
            self.dispatch.nothing(order);
        }
        Ok(())
    }

    fn answered(&mut self, ticket: Ticket, verdict: Verdict) {
        let outcome = self.dispatch.answered(ticket, verdict, self.clock.moment());
        self.publish();
        let Outcome { rows, lanes, noted } = outcome;
        let noted: Vec<_> = noted.into_iter().collect();
        if rows.is_empty() {
            // An answer that is not noted is a line less in an event's history; the event waits all the same.
            drop(self.writer.settle(Vec::new(), noted));
            return;
        }
        self.settle(rows, lanes);
    }

    /// Settles rows, and then asks for the oldest event that each of the lanes still has.
    fn settle(&mut self, rows: Vec<(i64, Settled)>, lanes: Vec<Lane>) {
        let (writer, reader, stalled) = (self.writer.clone(), self.reader.clone(), self.stalled.clone());
        self.commits.spawn(async move {
            commit(&writer, &rows, &stalled).await?;
            read(&reader, |reader| reader.oldest(&lanes)).map_err(Arc::new)
        });
    }

    fn committed(&mut self, committed: Result<Committed, tokio::task::JoinError>) -> Result<(), Fatal> {
        match committed {
            Ok(Ok(next)) => self.dispatch.settled(next),
            Ok(Err(e)) => return Err(Fatal::Outbox(e)),
            // The task was aborted or panicked, and the panic hook has said so.
            Err(_) => {}
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<(), Fatal> {
        let finish = async {
            while let Some(answered) = self.requests.join_next().await {
                if let Ok((ticket, verdict)) = answered {
                    self.answered(ticket, verdict);
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
        tokio::time::timeout(GRACE / 2, marked).await.unwrap_or(Ok(()))
    }

    /// Publishes the destination's state where it has changed, and keeps the receiver's own wish.
    fn publish(&mut self) {
        let now = self.clock.moment();
        let not_before = self.dispatch.destination.not_before(now);
        if not_before.is_some() != self.not_before.is_some() || not_before > self.not_before {
            self.not_before = not_before;
            self.writer.set_not_before(not_before);
        }
        let shown = shown(&self.dispatch.destination, self.client.is_some(), now);
        self.published.send_if_modified(|published| {
            let (endpoint, kind) = (published.endpoint.clone(), published.kind.clone());
            let shown = status::Destination { endpoint, kind, ..shown };
            self.news.tell(&shown, now.wall);
            let changed = *published != shown;
            *published = shown;
            changed
        });
    }

    fn read<T>(&self, what: impl FnOnce(&Reader) -> Result<T, OutboxError>) -> Result<T, Fatal> {
        read(&self.reader, what).map_err(|e| Fatal::Outbox(Arc::new(e)))
    }
}

/// Some pages from the system's memory: to hand that to another thread costs more than to do it here.
fn read<T>(
    reader: &Mutex<Reader>,
    what: impl FnOnce(&Reader) -> Result<T, OutboxError>,
) -> Result<T, OutboxError> {
    what(&reader.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Settles rows, however long the outbox has no room to write it down.
async fn commit(
    writer: &Writer,
    rows: &[(i64, Settled)],
    stalled: &watch::Sender<usize>,
) -> Result<(), Arc<OutboxError>> {
    let mut waited = false;
    let done = loop {
        match writer.settle(rows.to_vec(), Vec::new()).wait().await {
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

/// What one request is made of.
struct Request {
    batch: Option<Batch>,
    seqs: Vec<i64>,
    /// Events that the mapping in force makes no request of.
    settled: Vec<(i64, Settled)>,
}

/// The events, oldest first, as far as they fit into one request.
fn request(mappings: &Mappings, events: Vec<PendingItem>, take: Take, max_bytes: usize) -> Request {
    let mut request = Request { batch: None, seqs: Vec::new(), settled: Vec::new() };
    let (skip, most) = match take {
        Take::First(most) => (0, most),
        Take::Second => (1, 1),
    };
    for event in events.into_iter().skip(skip) {
        if request.seqs.len() == most {
            break;
        }
        let item = match mapped(mappings, &event) {
            mapping::Outcome::Send(item) => *item,
            mapping::Outcome::Skip(reason) => {
                request.settled.push((event.seq, Settled::Skipped(reason)));
                continue;
            }
            mapping::Outcome::Invalid(reason) => {
                request.settled.push((event.seq, Settled::Failed(reason)));
                continue;
            }
        };
        let fits = match &mut request.batch {
            None => {
                request.batch = Some(Batch::new(item));
                true
            }
            Some(batch) => batch.size() + item.body.len() <= max_bytes && batch.push(item).is_ok(),
        };
        if !fits {
            break;
        }
        request.seqs.push(event.seq);
    }
    request
}

fn mapped(mappings: &Mappings, event: &PendingItem) -> mapping::Outcome {
    match Event::parse(&event.body) {
        Ok(view) => mappings.map_by(&event.mapping, &view, &event.message_id, event.spooled_at),
        // It was an event when it was stored, so this is a damaged row: it fails, and is kept to be looked at.
        Err(flaw) => mapping::Outcome::Invalid(Reason::new(flaw.code, flaw.text)),
    }
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
