//! The sender: brings events from the outbox to the receiver. It joins the parts below it and decides nothing: the
//! [`Scheduler`] decides whose events are next, and what an answer means for them.
//!
//! ```text
//!   scheduler.next ──plan──▶ batcher ──request──▶ client ──verdict──▶ scheduler.answered
//!        ▲                                                                  │
//!        └────── scheduler.settled ◀── commit ◀── writer.settle ◀──effects───┘
//! ```

use super::batcher::{BatchJob, Batcher, BuiltBatch, BuiltRequest};
use super::destination::Destination;
use super::error::Fatal;
use super::heartbeat::Heartbeat;
use super::key_renewal;
use super::queue_search::{Met, QueueSearch};
use super::request_log::{self, RequestLine};
use super::scheduler::{AnswerEffects, BatchPlan, InFlight, NextAction, Scheduler};
use super::settings::Settings;
use super::settler::Settler;
use super::state_reporter::{StateReporter, status_of};
use super::withdrawals::{Withdrawals, Withdrawn};
use crate::clock::{Clock, Timestamp};
use crate::item::OrderingKey;
use crate::koala::{Client, Verdict};
use crate::mapping::Mappings;
use crate::outbox::{Enqueued, KeyRenewal, OutboxError, Settlement, Writer};
use crate::reason::Reason;
use crate::status::{DestinationState, DestinationStatus, RequestCounts};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time for requests in flight to finish when the agent stops; slower ones are sent again under the same ids. The
/// whole agent has ten seconds.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A command to the sender.
#[derive(Debug)]
pub enum SenderCommand {
    /// Send these events, which were stored just now.
    Stored(Enqueued),
    /// Send these events, which were put back just now.
    Requeued(Enqueued),
    /// Start no request with these items any more; reply when nothing of them is in flight, or that did not come in time.
    Withdraw(Vec<i64>, oneshot::Sender<Withdrawn>),
    /// The withdrawal of these items has ended: send what is still pending of them.
    GiveBack(Vec<i64>),
    /// Try the receiver at once.
    RetryNow,
}

/// The answer to a request.
struct Answered {
    in_flight: InFlight,
    /// See [`Settlement::are_alone`].
    are_alone: bool,
    line: Option<RequestLine>,
    verdict: Verdict,
    status: Option<u16>,
}

/// Events that a commit has settled, and their ordering keys; `None`: it was a step in the renewal of ordering keys.
type CommitResult = Result<Option<(Vec<OrderingKey>, Vec<i64>)>, Arc<OutboxError>>;

/// The sender's state; [`Sender::run`] is its loop.
pub struct Sender {
    settings: watch::Receiver<Settings>,
    /// The client, or why there is none.
    client: Result<Client, Reason>,
    mappings: Arc<Mappings>,
    /// Nothing is sent until every ordering key is known to be by the mappings in force.
    is_held: bool,
    /// The log has told that nothing is sent.
    is_hold_logged: bool,
    /// Ordering keys are being renewed; the search does not go on meanwhile.
    is_renewing: bool,
    writer: Writer,
    batcher: Batcher,
    clock: Clock,
    scheduler: Scheduler,
    search: QueueSearch,
    requests: JoinSet<Answered>,
    /// At most one request to `/auth`.
    auth: JoinSet<Verdict>,
    commits: JoinSet<CommitResult>,
    withdrawals: Withdrawals,
    settler: Settler,
    /// The receiver and key that accepted something, as the outbox has it.
    accepted_by: Option<i64>,
    /// The receiver's deadline as the outbox has it.
    retry_after_deadline: Option<Timestamp>,
    reporter: StateReporter,
    /// The states of the paths as they were reported last.
    published: [DestinationState; 2],
    /// Requests with events since the start.
    requests_answered: RequestCounts,
    heartbeat: Heartbeat,
}

impl Sender {
    /// A sender of the pending events of an outbox.
    pub fn new(
        mut settings: watch::Receiver<Settings>,
        writer: Writer,
        batcher: Batcher,
        clock: Clock,
        reporter: StateReporter,
        heartbeat: Heartbeat,
    ) -> Sender {
        let (retry_after_deadline, accepted_by) = (writer.retry_after_deadline(), writer.accepted_by());
        let Settings { config, client } = settings.borrow_and_update().clone();
        let destination = Destination::new(
            config.koala.concurrency,
            retry_after_deadline,
            clock.moment(),
            fastrand::Rng::new(),
        );
        let settler = Settler::new(writer.clone());
        Sender {
            settings,
            client,
            mappings: config.mappings.clone(),
            is_held: false,
            is_hold_logged: false,
            is_renewing: false,
            writer,
            batcher,
            clock,
            scheduler: Scheduler::new(destination),
            search: QueueSearch::default(),
            requests: JoinSet::new(),
            auth: JoinSet::new(),
            commits: JoinSet::new(),
            withdrawals: Withdrawals::default(),
            settler,
            accepted_by,
            retry_after_deadline,
            reporter,
            published: [DestinationState::Unknown; 2],
            requests_answered: RequestCounts::default(),
            heartbeat,
        }
    }

    /// Runs until `stopping` is cancelled. When this returns `Ok`, everything that was answered is durable.
    ///
    /// # Errors
    /// The outbox failed in a way that waiting does not fix.
    pub async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<SenderCommand>,
        stopping: CancellationToken,
    ) -> Result<(), Fatal> {
        self.scheduler.destination.has_ever_accepted = self.has_ever_accepted();
        // The mappings may have changed since the last run, or the agent crashed while it renewed the ordering keys.
        self.hold()?;
        self.publish();
        loop {
            self.heartbeat.tick();
            self.withdrawals.end(&self.scheduler);
            self.search.add_put_off(self.batcher.queue(), &mut self.scheduler)?;
            if self.is_held && self.requests.is_empty() && self.commits.is_empty() {
                self.renew_keys()?;
            }
            let now = self.clock.moment();
            let mut is_searching = false;
            let wait = if self.is_held || self.client.is_err() || self.settler.is_stalled() {
                None
            } else {
                match self.scheduler.next(now) {
                    NextAction::Start(plan) => {
                        self.start(plan)?;
                        continue;
                    }
                    NextAction::Discover if self.is_renewing => None,
                    NextAction::Discover => {
                        self.discover()?;
                        is_searching = true;
                        None
                    }
                    NextAction::AskAuth => {
                        self.ask_auth();
                        continue;
                    }
                    NextAction::Wait(until) => {
                        // A path may just have been concluded because nobody is left to be tried.
                        if self.scheduler.destination.states() != self.published {
                            self.publish();
                        }
                        if !self.scheduler.has_ready() {
                            self.batcher.queue().release()?;
                        }
                        until
                    }
                }
            };
            let held_until = self.batcher.queue().held_until();
            let withdrawn_until = self.withdrawals.until();
            tokio::select! {
                built = self.batcher.built() => {
                    let built = built.ok_or(Fatal::Defect("batcher"))??;
                    self.send(built);
                }
                Some(answered) = self.requests.join_next() => {
                    // The task of a request is not aborted while this loop runs, so it has panicked.
                    self.answered(answered.map_err(|_| Fatal::Defect("sender"))?);
                }
                Some(answered) = self.auth.join_next() => {
                    let verdict = answered.map_err(|_| Fatal::Defect("sender"))?;
                    let effects = self.scheduler.auth_answered(verdict, self.clock.moment());
                    self.apply(effects, false, None);
                }
                Some(committed) = self.commits.join_next() => self.committed(committed)?,
                Ok(()) = self.settings.changed() => self.take_settings()?,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command)?,
                    // The agent is gone.
                    None => return self.stop().await,
                },
                () = stopping.cancelled() => return self.stop().await,
                () = self.clock.sleep_until(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.clock.sleep_until(held_until.unwrap_or_default()), if held_until.is_some() => {
                    self.batcher.queue().release()?;
                }
                () = tokio::time::sleep_until(withdrawn_until.unwrap_or_else(Instant::now)),
                    if withdrawn_until.is_some() => {}
                () = self.heartbeat.pinged() => self.batcher.ping(),
                // A search of the whole outbox takes long; answers are handled between its steps.
                () = tokio::task::yield_now(), if is_searching => {}
            }
        }
    }

    fn obey(&mut self, command: SenderCommand) -> Result<(), Fatal> {
        // The intake may have seen changed settings already, and have stored events by them.
        if self.settings.has_changed().unwrap_or(false) {
            self.take_settings()?;
        }
        self.batcher.refresh()?;
        match command {
            SenderCommand::Stored(waiting) => self.search.add_stored(waiting, &mut self.scheduler),
            SenderCommand::Requeued(waiting) => {
                self.search.add_requeued(waiting, self.batcher.queue(), &mut self.scheduler)?;
            }
            SenderCommand::Withdraw(seqs, reply) => {
                // Read here: the ordering keys may have been renewed since the command was sent.
                let items = self.batcher.queue().reader().events().queued_items(&seqs)?;
                self.scheduler.withdraw(&seqs, &items);
                self.withdrawals.begin(items, reply, self.settings.borrow().config.koala.timeout);
            }
            SenderCommand::GiveBack(seqs) => {
                let pending = self.batcher.queue().reader().events().still_pending(&seqs)?;
                self.scheduler.give_back(&seqs);
                self.search.add_back(pending, self.batcher.queue(), &mut self.scheduler)?;
            }
            SenderCommand::RetryNow => self.retry_now(),
        }
        Ok(())
    }

    /// Goes on with the settings in force, and tries the receiver at once.
    fn take_settings(&mut self) -> Result<(), Fatal> {
        let Settings { config, client } = self.settings.borrow_and_update().clone();
        if *config.mappings != *self.mappings {
            self.mappings = config.mappings.clone();
            self.hold()?;
        }
        self.client = client;
        self.reporter.move_to(config.koala.endpoint.clone());
        self.auth = JoinSet::new();
        self.scheduler.receiver_replaced(self.clock.moment());
        self.scheduler.destination.set_concurrency(config.koala.concurrency);
        self.scheduler.destination.has_ever_accepted = self.has_ever_accepted();
        self.retry_now();
        Ok(())
    }

    fn retry_now(&mut self) {
        self.scheduler.retry_now(self.clock.mono());
        self.publish();
    }

    /// Sends nothing until the requests in flight are answered and every ordering key is by the mappings in force.
    fn hold(&mut self) -> Result<(), Fatal> {
        self.is_held = true;
        // What is being built is recognized by its mappings, and not sent.
        self.mappings = Arc::new((*self.mappings).clone());
        Ok(self.search.restart(self.batcher.queue(), &mut self.scheduler)?)
    }

    /// Makes a step in the renewal of ordering keys. When there is nothing left to do, what waits is searched for anew.
    fn renew_keys(&mut self) -> Result<(), Fatal> {
        if let Some(step) =
            key_renewal::next_step(self.batcher.queue(), &self.mappings, self.search.delivered())?
        {
            self.is_renewing = true;
            let is_renewed = matches!(step, KeyRenewal::Renewed { .. });
            if self.is_held && is_renewed && !std::mem::replace(&mut self.is_hold_logged, true) {
                tracing::info!(
                    "the mappings have changed: nothing is sent until all waiting events are ordered by them"
                );
            }
            let settlement = Settlement { renewal: Some(step), ..Settlement::default() };
            let settler = self.settler.clone();
            self.commits.spawn(async move {
                settler.settle(settlement).await?;
                Ok(None)
            });
        } else if std::mem::take(&mut self.is_held) {
            if std::mem::take(&mut self.is_hold_logged) {
                tracing::info!("all waiting events are ordered by the mappings in force");
            }
            self.scheduler.forget_persons();
            self.batcher.refresh()?;
            self.search.begin_anew(self.batcher.queue(), &mut self.scheduler)?;
        }
        Ok(())
    }

    /// Makes one step of the search for pending events.
    fn discover(&mut self) -> Result<(), Fatal> {
        let met = self.search.step(self.batcher.queue(), &mut self.scheduler)?;
        self.batcher.refresh()?;
        match met {
            Met::Queue => Ok(()),
            Met::StaleKeys => self.renew_keys(),
            Met::StaleKnownKeys => self.hold(),
        }
    }

    /// Has the request of a plan built.
    fn start(&mut self, plan: BatchPlan) -> Result<(), Fatal> {
        let (events, max_bytes) = (self.scheduler.events(plan), self.scheduler.max_bytes());
        let job = BatchJob { plan, events, mappings: self.mappings.clone(), max_bytes };
        if let Some(built) = self.batcher.submit(job)? {
            self.send(built);
        }
        Ok(())
    }

    /// Sends a request, unless something has changed since it was planned.
    fn send(&mut self, built: BuiltBatch) {
        let BuiltBatch { plan, mappings, gone, settled, request } = built;
        if !Arc::ptr_eq(&mappings, &self.mappings) {
            // It was planned before everything was held, by a scheduler that is gone or will be.
            return;
        }
        self.scheduler.remove_gone(plan, &gone);
        let in_request = request.iter().flat_map(|request| &request.seqs).copied();
        if self.scheduler.has_withdrawn(in_request.chain(settled.iter().map(|(seq, _)| *seq))) {
            return self.scheduler.nothing_sent(plan);
        }
        let may_send = !self.settler.is_stalled();
        let Some(client) = self.client.as_ref().ok().filter(|_| may_send).cloned() else {
            return self.scheduler.nothing_sent(plan);
        };
        if !settled.is_empty() {
            let unsent: Vec<i64> = settled.iter().map(|(seq, _)| *seq).collect();
            let keys = self.scheduler.settled_unsent(plan, &unsent);
            self.settle(keys, settled.into());
        } else if let Some(BuiltRequest { endpoint, body, seqs, are_alone, line }) =
            request.filter(|request| self.scheduler.may_send(plan, request.endpoint, self.clock.mono()))
        {
            let mut pool = client.pool();
            if self.scheduler.needs_connection(plan, pool.number) {
                client.mark_spent(pool.number);
                pool = client.pool();
            }
            let (size, now) = (body.len(), self.clock.mono());
            let in_flight = self.scheduler.sent(plan, endpoint, seqs, size, pool.number, now);
            let line = line.map(|line| line.sent(now));
            self.requests.spawn(async move {
                let (verdict, status) = client.batch_over(pool, endpoint, body).await;
                Answered { in_flight, are_alone, line, verdict, status }
            });
        } else {
            self.scheduler.nothing_sent(plan);
        }
    }

    fn answered(&mut self, answered: Answered) {
        let Answered { in_flight, are_alone, line, verdict, status } = answered;
        if let Some(line) = line {
            line.answered(&verdict, status, self.clock.mono());
        }
        self.requests_answered.add(status);
        if status.is_none() {
            self.withdrawals.unanswered(&in_flight.seqs);
        }
        let had_accepted = self.scheduler.destination.has_ever_accepted;
        let effects = self.scheduler.answered(in_flight, verdict, self.clock.moment());
        if self.scheduler.destination.has_ever_accepted && !had_accepted {
            self.accepted_by = self.client.as_ref().ok().map(Client::identity);
            self.accepted_by.into_iter().for_each(|receiver| self.writer.set_accepted_by(receiver));
        }
        self.apply(effects, are_alone, status);
    }

    /// Asks `/auth` whether the receiver is well.
    fn ask_auth(&mut self) {
        if let Ok(client) = self.client.clone() {
            self.auth.spawn(request_log::ask_auth(client, self.clock.clone()));
        }
    }

    /// Makes the changes that an answer asks for.
    fn apply(&mut self, effects: AnswerEffects, are_alone: bool, status: Option<u16>) {
        self.publish();
        let AnswerEffects { rows, keys, noted } = effects;
        if let Some(attempts) = noted {
            // Nobody waits for the commit: if it is lost, a line of the events' history is missing.
            drop(self.writer.settle(Settlement { attempts: vec![attempts], ..Settlement::default() }));
        }
        if !rows.is_empty() {
            self.settle(keys, Settlement { rows, are_alone, status, ..Settlement::default() });
        }
    }

    /// Whether the receiver in use has ever accepted anything with this key.
    fn has_ever_accepted(&self) -> bool {
        self.client.as_ref().is_ok_and(|client| self.accepted_by == Some(client.identity()))
    }

    /// Settles rows. Nothing of these ordering keys is sent until that is durable.
    fn settle(&mut self, keys: Vec<OrderingKey>, settlement: Settlement) {
        let settler = self.settler.clone();
        let may_wait = !self.scheduler.awaits(&keys, settlement.rows.len());
        self.commits.spawn(async move {
            let seqs = settlement.rows.iter().map(|(seq, _)| *seq).collect();
            let settlement = Settlement { may_wait, ..settlement };
            settler.settle(settlement).await?;
            Ok(Some((keys, seqs)))
        });
    }

    fn committed(&mut self, committed: Result<CommitResult, JoinError>) -> Result<(), Fatal> {
        // The task of a commit is not aborted, so it has panicked.
        let committed = committed.map_err(|_| Fatal::Defect("sender"))?.map_err(Fatal::Outbox)?;
        let Some((keys, seqs)) = committed else {
            self.is_renewing = false;
            return Ok(());
        };
        self.scheduler.settled(&keys, &seqs);
        self.search.settled(seqs);
        Ok(())
    }

    async fn stop(mut self) -> Result<(), Fatal> {
        self.batcher.queue().release()?;
        // The next agent carries out the command.
        self.withdrawals = Withdrawals::default();
        let finish_requests = async {
            while let Some(answered) = self.requests.join_next().await {
                if let Ok(answered) = answered {
                    self.answered(answered);
                }
            }
        };
        if tokio::time::timeout(STOP_GRACE, finish_requests).await.is_err() {
            tracing::info!(
                "{} requests were not answered in time; their events stay pending",
                self.requests.len()
            );
        }
        let finish_commits = async {
            while let Some(committed) = self.commits.join_next().await {
                self.committed(committed)?;
            }
            Ok(())
        };
        let finished = tokio::time::timeout(STOP_GRACE / 2, finish_commits).await.unwrap_or(Ok(()));
        // A hanging disk must not keep the agent from noticing that its time for the stop is over.
        let _ = tokio::task::spawn_blocking(move || self.batcher.stop()).await;
        finished
    }

    /// Publishes the destination's state, and stores the receiver's deadline where it has changed.
    fn publish(&mut self) {
        let now = self.clock.moment();
        let retry_after_deadline = self.scheduler.destination.retry_after_deadline(now);
        if retry_after_deadline.is_some() != self.retry_after_deadline.is_some()
            || retry_after_deadline > self.retry_after_deadline
        {
            self.retry_after_deadline = retry_after_deadline;
            self.writer.set_retry_after_deadline(retry_after_deadline);
        }
        self.published = self.scheduler.destination.states();
        let status = status_of(&self.scheduler, self.client.as_ref().err(), now);
        let status = DestinationStatus { requests: self.requests_answered, ..status };
        self.reporter.report(status, now.wall);
    }
}
