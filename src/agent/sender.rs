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
use super::state_reporter::{StateReporter, status_of};
use crate::clock::{Clock, Timestamp};
use crate::item::OrderingKey;
use crate::koala::{Client, Verdict};
use crate::mapping::Mappings;
use crate::outbox::{Enqueued, KeyRenewal, OutboxError, Settlement, Writer};
use crate::reason::Reason;
use crate::status::{DestinationState, DestinationStatus, RequestCounts};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// The time for requests in flight to finish when the agent stops; slower ones are sent again under the same ids. The
/// whole agent has ten seconds.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The wait before a commit is tried again that a full or locked outbox refused.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// A command to the sender.
#[derive(Debug)]
pub enum SenderCommand {
    /// Send these events, which were stored just now.
    Stored(Enqueued),
    /// Try the receiver at once, and search the whole outbox again, because a command has put events back.
    RetryNow,
}

/// The answer to a request.
struct Answered {
    in_flight: InFlight,
    /// See [`Settlement::read_version`].
    read_version: Option<u64>,
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
    /// The number of commits that the outbox refuses for now. Nothing is sent that could not be noted as delivered.
    stalled_commits: watch::Sender<usize>,
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
            stalled_commits: watch::Sender::new(0),
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
            if self.is_held && self.requests.is_empty() && self.commits.is_empty() {
                self.renew_keys()?;
            }
            let now = self.clock.moment();
            let mut is_searching = false;
            let wait = if self.is_held || self.client.is_err() || *self.stalled_commits.borrow() > 0 {
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
                    self.apply(effects, None, None);
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
                () = self.heartbeat.pinged() => self.batcher.ping(),
                // A search of the whole outbox takes long; answers are handled between its steps.
                () = tokio::task::yield_now(), if is_searching => {}
            }
        }
    }

    fn obey(&mut self, command: SenderCommand) -> Result<(), Fatal> {
        if self.settings.has_changed().unwrap_or(false) {
            // The intake may have seen them already, and have stored events by them.
            self.take_settings()?;
        }
        match command {
            SenderCommand::Stored(waiting) => {
                self.batcher.refresh()?;
                self.search.add_stored(waiting, &mut self.scheduler);
            }
            SenderCommand::RetryNow => self.retry_now()?,
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
        self.retry_now()
    }

    fn retry_now(&mut self) -> Result<(), Fatal> {
        self.scheduler.retry_now(self.clock.mono());
        self.restart_search()?;
        self.publish();
        Ok(())
    }

    fn restart_search(&mut self) -> Result<(), Fatal> {
        Ok(self.search.restart(self.batcher.queue(), &mut self.scheduler)?)
    }

    /// Sends nothing until the requests in flight are answered and every ordering key is by the mappings in force.
    fn hold(&mut self) -> Result<(), Fatal> {
        self.is_held = true;
        // What is being built is recognized by its mappings, and not sent.
        self.mappings = Arc::new((*self.mappings).clone());
        self.restart_search()
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
            let (writer, stalled_commits) = (self.writer.clone(), self.stalled_commits.clone());
            self.commits.spawn(async move {
                commit(&writer, settlement, &stalled_commits).await?;
                Ok(None)
            });
        } else if std::mem::take(&mut self.is_held) {
            if std::mem::take(&mut self.is_hold_logged) {
                tracing::info!("all waiting events are ordered by the mappings in force");
            }
            self.scheduler.forget_persons();
            self.batcher.refresh()?;
            self.restart_search()?;
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
        let may_send = *self.stalled_commits.borrow() == 0;
        let Some(client) = self.client.as_ref().ok().filter(|_| may_send).cloned() else {
            return self.scheduler.nothing_sent(plan);
        };
        if !settled.is_empty() {
            let unsent: Vec<i64> = settled.iter().map(|(seq, _)| *seq).collect();
            let keys = self.scheduler.settled_unsent(plan, &unsent);
            self.settle(keys, settled.into());
        } else if let Some(BuiltRequest { endpoint, body, seqs, read_version, line }) =
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
                Answered { in_flight, read_version, line, verdict, status }
            });
        } else {
            self.scheduler.nothing_sent(plan);
        }
    }

    fn answered(&mut self, answered: Answered) {
        let Answered { in_flight, read_version, line, verdict, status } = answered;
        if let Some(line) = line {
            line.answered(&verdict, status, self.clock.mono());
        }
        self.requests_answered.add(status);
        let had_accepted = self.scheduler.destination.has_ever_accepted;
        let effects = self.scheduler.answered(in_flight, verdict, self.clock.moment());
        if self.scheduler.destination.has_ever_accepted && !had_accepted {
            self.accepted_by = self.client.as_ref().ok().map(Client::identity);
            self.accepted_by.into_iter().for_each(|receiver| self.writer.set_accepted_by(receiver));
        }
        self.apply(effects, read_version, status);
    }

    /// Asks `/auth` whether the receiver is well.
    fn ask_auth(&mut self) {
        if let Ok(client) = self.client.clone() {
            self.auth.spawn(request_log::ask_auth(client, self.clock.clone()));
        }
    }

    /// Makes the changes that an answer asks for.
    fn apply(&mut self, effects: AnswerEffects, read_version: Option<u64>, status: Option<u16>) {
        self.publish();
        let AnswerEffects { rows, keys, noted } = effects;
        if let Some(attempts) = noted {
            // Nobody waits for the commit: if it is lost, a line of the events' history is missing.
            drop(self.writer.settle(Settlement { attempts: vec![attempts], ..Settlement::default() }));
        }
        if !rows.is_empty() {
            self.settle(keys, Settlement { rows, read_version, status, ..Settlement::default() });
        }
    }

    /// Whether the receiver in use has ever accepted anything with this key.
    fn has_ever_accepted(&self) -> bool {
        self.client.as_ref().is_ok_and(|client| self.accepted_by == Some(client.identity()))
    }

    /// Settles rows. Nothing of these ordering keys is sent until that is durable.
    fn settle(&mut self, keys: Vec<OrderingKey>, settlement: Settlement) {
        let (writer, stalled_commits) = (self.writer.clone(), self.stalled_commits.clone());
        let may_wait = !self.scheduler.awaits(&keys, settlement.rows.len());
        self.commits.spawn(async move {
            let seqs = settlement.rows.iter().map(|(seq, _)| *seq).collect();
            let settlement = Settlement { may_wait, ..settlement };
            commit(&writer, settlement, &stalled_commits).await?;
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

/// Settles rows, however long the outbox has no room for that.
async fn commit(
    writer: &Writer,
    settlement: Settlement,
    stalled_commits: &watch::Sender<usize>,
) -> Result<(), Arc<OutboxError>> {
    let mut is_stalled = false;
    let committed = loop {
        match writer.settle(settlement.clone()).wait().await {
            Err(e) if e.is_transient() => {
                if !is_stalled {
                    let mut is_first = false;
                    stalled_commits.send_modify(|n| {
                        *n += 1;
                        is_first = *n == 1;
                    });
                    if is_first {
                        tracing::warn!("{e}; nothing more is sent until deliveries can be recorded");
                    }
                    is_stalled = true;
                }
                tokio::time::sleep(COMMIT_RETRY).await;
            }
            committed => break committed,
        }
    };
    if is_stalled {
        stalled_commits.send_modify(|n| *n -= 1);
    }
    committed
}
