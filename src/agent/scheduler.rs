//! Whose events are sent next, and what an answer does to them: the sender's judgement. Pure.
//!
//! Every person is an ordering key. An ordering key's events go out in order, one request at a time; ordering keys go side by side, the
//! one with the oldest event first. What the answers decide:
//!
//! - trouble: the destination as a whole waits; an ordering key that meets it alone three times waits alone;
//! - doubt (a 400): an isolation, which finds out whether an event is at fault or everybody is refused.
//!
//! Nothing here ever gives an event up.

mod isolation;

use super::destination::{Destination, Gate, backoff};
use super::ordering_keys::OrderingKeys;
use crate::clock::{Moment, Mono};
use crate::item::OrderingKey;
use crate::koala::Verdict;
use crate::koala::batch::MAX_OF_A_KIND;
use crate::outbox::Settled;
use crate::reason::{Code, Reason};
use isolation::{AwaitedCanary, Isolation};

/// Events accepted but not yet marked, beyond which no request is begun: with those that are in flight by then, what a
/// crash may send again, in whole requests and under the same ids. Enough that requests of one event each need not wait
/// for every commit.
const MAX_UNSETTLED: usize = 400;
/// Troubles of one ordering key, with others taken in between, after which it waits alone.
const FAILURES_ALONE: u32 = 3;
/// Memory for pending events that are known by number, so that a person's can be gathered from all over the queue: a
/// million of them of 80,000 persons. Where none of them may be sent, more are looked for all the same.
const WINDOW: usize = 28 << 20;
/// What is left of it when more is looked for.
const REFILL: usize = WINDOW / 8;
/// Events looked at for one request: both kinds full, and one more to see where the next begins.
const GATHER_AT_ONCE: usize = 2 * MAX_OF_A_KIND;
/// Requests are kept below Segment's own limit for one, until the receiver teaches a smaller one.
const MAX_REQUEST_BYTES: usize = 500_000;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send this, of [`Scheduler::events`], then say [`Scheduler::sent`], [`Scheduler::unsent`] or [`Scheduler::nothing`].
    Start(BatchPlan),
    /// Look for ordering keys in the outbox, then say [`Scheduler::discovered`] and [`Scheduler::exhausted`].
    Discover,
    /// Wait for an answer, a commit, an event, or for this moment.
    Wait(Option<Mono>),
}

/// A request to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Whose events.
    pub key: OrderingKey,
    /// Which of them.
    pub selection: Selection,
    /// The tick at which it was given.
    given: u64,
}

#[cfg(test)]
impl BatchPlan {
    /// One that nobody has judged.
    pub fn of(key: OrderingKey, selection: Selection) -> BatchPlan {
        BatchPlan { key, selection, given: 0 }
    }
}

/// Which of an ordering key's pending events go into the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// As many of the oldest as the rules allow, at most so many.
    First(usize),
    /// The second oldest alone: a canary for the oldest, where no other person has anything.
    Second,
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    plan: BatchPlan,
    /// The events in it.
    pub seqs: Vec<i64>,
    size: usize,
    at: Mono,
    started: u64,
}

/// What an answer does, to be made durable in one commit; then say [`Scheduler::settled`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerEffects {
    /// Events that are settled.
    pub rows: Vec<(i64, Settled)>,
    /// Whose they are: these ordering keys stand still until the commit.
    pub keys: Vec<OrderingKey>,
    /// Events that wait on, and what they were answered with.
    pub noted: Option<(Vec<i64>, Reason)>,
}

/// The sender's judgement.
#[derive(Debug)]
pub struct Scheduler {
    /// How the destination is.
    pub destination: Destination,
    keys: OrderingKeys,
    /// Requests that were ordered and not answered, and how many of them are being made.
    in_flight_count: usize,
    making: usize,
    /// Events whose settling is on its way to the disk.
    unsettled: usize,
    /// Everything pending has been discovered.
    exhausted: bool,
    /// The window is being filled. It is then sent all but empty before more is looked for: what was delivered lies close
    /// together then, and the rows that are moved for it stand on few pages.
    is_filling: bool,
    /// Counts launches and answers, so that it can be said what was sent after what.
    tick: u64,
    /// The tick at which the destination's state last changed: answers to older requests do not tell how it is.
    entered: u64,
    /// The tick at which another receiver took the last one's place.
    renewed: u64,
    accepted: u64,
    isolation: Option<Isolation>,
    awaited_canary: Option<AwaitedCanary>,
    /// The ordering key of a canary or of a suspect in flight: nothing else is sent until the answer, so that what
    /// waits can serve as its canary.
    exclusive: Option<OrderingKey>,
    /// The oldest event of the last request that was no canary: a probe is another person's.
    last: i64,
    max_bytes: usize,
    rng: fastrand::Rng,
}

impl Scheduler {
    /// Nothing is known of the outbox yet.
    pub fn new(destination: Destination, rng: fastrand::Rng) -> Scheduler {
        Scheduler {
            destination,
            keys: OrderingKeys::default(),
            in_flight_count: 0,
            making: 0,
            unsettled: 0,
            exhausted: false,
            is_filling: true,
            tick: 0,
            entered: 0,
            renewed: 0,
            accepted: 0,
            isolation: None,
            awaited_canary: None,
            exclusive: None,
            last: 0,
            max_bytes: MAX_REQUEST_BYTES,
            rng,
        }
    }

    /// The most that a request's events may come to, but for a single one.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// A pending event was found. Events of one ordering key may come in any order.
    pub fn discovered(&mut self, seq: i64, key: OrderingKey) {
        self.keys.discovered(seq, key);
        self.arrived(key);
    }

    /// Whether everything pending has been discovered; an event that is stored later says `false` again.
    pub fn exhausted(&mut self, exhausted: bool) {
        self.exhausted = exhausted;
    }

    /// Whether everything pending has been discovered, and more could be.
    pub fn knows_all(&self) -> bool {
        self.exhausted && self.keys.bytes() < WINDOW
    }

    /// Whether there is more to be sent as soon as an answer is there.
    pub fn has_more(&self) -> bool {
        self.keys.oldest().is_some()
    }

    /// The requests from now on go to another receiver: what the last one refused proves nothing any more.
    pub fn renewed(&mut self) {
        self.entered();
        self.renewed = self.tick;
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// What to do next.
    pub fn next(&mut self, now: Moment) -> Next {
        self.keys.wake(now.mono);
        if self.awaited_canary.as_ref().is_some_and(|awaited_canary| awaited_canary.over) {
            self.destination.reopen(now);
            self.entered();
        }
        let gate = self.destination.gate(now.mono);
        let width = match gate {
            Gate::Open(width) => width,
            Gate::Probe => 1,
            Gate::ShutUntil(_) if self.awaited_canary.is_some() && !self.exhausted => return Next::Discover,
            Gate::ShutUntil(until) => return Next::Wait(Some(until)),
        };
        let is_full =
            self.in_flight_count >= width || self.unsettled >= MAX_UNSETTLED || self.exclusive.is_some();
        // The more is known of a person, the more goes into one request; meanwhile one at a time is sent.
        self.is_filling = self.keys.bytes() < if self.is_filling { WINDOW } else { REFILL };
        if (is_full || self.in_flight_count > 0) && !self.exhausted && self.is_filling {
            return Next::Discover;
        }
        if is_full {
            return Next::Wait(None);
        }
        if let Some(plan) = self.plan(gate == Gate::Probe) {
            return self.start(plan);
        }
        if !self.exhausted {
            self.is_filling = true;
            return Next::Discover;
        }
        if self.in_flight_count == 0
            && self.unsettled == 0
            && let Some(isolation) = self.isolation.take()
        {
            return self.without_canary(isolation, now);
        }
        Next::Wait(self.keys.next_wake())
    }

    fn plan(&mut self, probe: bool) -> Option<BatchPlan> {
        let key = match &self.isolation {
            Some(_) => self.keys.canary()?,
            None if probe => self.probe_key()?,
            None => self.keys.oldest()?,
        };
        let most = match self.keys.bisect_range(key) {
            _ if self.isolation.is_some() || (probe && self.destination.refuses()) => 1,
            0 => usize::MAX,
            bisect_range => (bisect_range / 2).max(1),
        };
        Some(self.plan_of(key, Selection::First(most)))
    }

    fn plan_of(&mut self, key: OrderingKey, selection: Selection) -> BatchPlan {
        self.tick += 1;
        BatchPlan { key, selection, given: self.tick }
    }

    /// The next ordering key in the order of the spool after the last one asked, so that no two persons whose events are
    /// refused can stand in for everybody for long. `None` while others may still be discovered.
    fn probe_key(&self) -> Option<OrderingKey> {
        self.keys.after(self.last).or_else(|| self.keys.oldest().filter(|_| self.exhausted))
    }

    fn start(&mut self, plan: BatchPlan) -> Next {
        let is_bisected = self.keys.bisect_range(plan.key) > 0;
        let oldest = self.keys.begin(plan.key);
        if self.isolation.is_none() {
            self.last = oldest.unwrap_or(self.last);
        }
        self.in_flight_count += 1;
        self.making += 1;
        if self.isolation.is_some() || (is_bisected && plan.selection == Selection::First(1)) {
            self.exclusive = Some(plan.key);
        }
        Next::Start(plan)
    }

    /// Whether what was made by that order is still to be sent: not where the destination's state has changed meanwhile.
    pub fn stands(&self, plan: BatchPlan) -> bool {
        plan.given > self.entered
    }

    /// The events that the order is to be made of, oldest first.
    pub fn events(&self, plan: BatchPlan) -> Vec<i64> {
        let (skip, most) = match plan.selection {
            Selection::First(most) => (0, most.min(GATHER_AT_ONCE)),
            Selection::Second => (1, 1),
        };
        self.keys.events(plan.key).skip(skip).take(most).collect()
    }

    /// These of the order's events are not pending any more: somebody else has settled them.
    pub fn gone(&mut self, plan: BatchPlan, seqs: &[i64]) {
        self.keys.gone(plan.key, seqs);
    }

    /// The request of that order is on its way with these events, of so many bytes in all.
    pub fn sent(&mut self, plan: BatchPlan, seqs: Vec<i64>, size: usize, at: Mono) -> InFlight {
        self.making -= 1;
        self.tick += 1;
        InFlight { plan, seqs, size, at, started: self.tick }
    }

    /// Nothing is there to be sent for that order: the events are gone, or have no second.
    pub fn nothing(&mut self, plan: BatchPlan) {
        self.given_up(plan);
        if plan.selection != Selection::Second {
            self.keys.ready(plan.key);
        }
    }

    /// These of the order's events are settled without being sent. Returns the ordering keys that stand still until that is
    /// durable, for [`Scheduler::settled`].
    pub fn unsent(&mut self, plan: BatchPlan, seqs: &[i64]) -> Vec<OrderingKey> {
        self.given_up(plan);
        self.unsettled += seqs.len();
        match (&mut self.isolation, plan.selection) {
            (Some(isolation), Selection::Second) => {
                // The isolation holds the ordering key, and seeks another second.
                isolation.sought_second = false;
                self.keys.gone(plan.key, seqs);
                Vec::new()
            }
            _ => vec![plan.key],
        }
    }

    /// No request comes of the order.
    fn given_up(&mut self, plan: BatchPlan) {
        self.making -= 1;
        self.back(plan);
    }

    /// A request has come back. `true`: it was a decisive one.
    fn back(&mut self, plan: BatchPlan) -> bool {
        self.in_flight_count -= 1;
        self.exclusive.take_if(|key| *key == plan.key).is_some()
    }

    /// A request was answered.
    pub fn answered(&mut self, in_flight: InFlight, verdict: Verdict, now: Moment) -> AnswerEffects {
        self.tick += 1;
        let is_canary = self.back(in_flight.plan) && self.isolation.is_some();
        let current = in_flight.started > self.entered;
        let reason = match verdict {
            Verdict::Accepted => return self.accepted(in_flight, is_canary, current, now),
            _ if in_flight.started <= self.renewed => {
                self.again(&in_flight);
                return AnswerEffects::default();
            }
            Verdict::Trouble { reason, retry_after } => {
                if is_canary {
                    self.abort();
                }
                if retry_after.is_some() || !self.waits_alone(&in_flight, reason.code, now) {
                    self.again(&in_flight);
                    if self.destination.trouble(reason.clone(), retry_after, current, now) {
                        self.entered();
                    }
                }
                reason
            }
            Verdict::Closed(reason) => {
                if is_canary {
                    self.abort();
                }
                self.again(&in_flight);
                if current {
                    self.destination.refuse(reason.clone(), now);
                    self.entered();
                }
                reason
            }
            Verdict::TooLarge(reason) if in_flight.seqs.len() > 1 => {
                self.max_bytes = self.max_bytes.min(in_flight.size / 2);
                self.again(&in_flight);
                reason
            }
            Verdict::Doubtful(reason) | Verdict::TooLarge(reason) => {
                self.doubtful(&in_flight, reason, is_canary, current, now)
            }
        };
        AnswerEffects { noted: Some((in_flight.seqs, reason)), ..AnswerEffects::default() }
    }

    fn accepted(
        &mut self,
        in_flight: InFlight,
        is_canary: bool,
        current: bool,
        now: Moment,
    ) -> AnswerEffects {
        let key = in_flight.plan.key;
        self.destination.took(now.mono.saturating_sub(in_flight.at), self.in_flight_count - self.making + 1);
        self.accepted += 1;
        self.keys.begin(key);
        self.keys.clear(key, in_flight.seqs.len());
        let mut effects = AnswerEffects {
            rows: in_flight.seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect(),
            keys: vec![key],
            noted: None,
        };
        if let Some(isolation) = self.isolation.take_if(|_| is_canary) {
            self.conclude(isolation, &mut effects);
        }
        self.unsettled += effects.rows.len();
        if self.destination.accepted(current, now) {
            self.entered();
        }
        effects
    }

    /// Counts a trouble against its ordering key. `true`: the ordering key now waits alone, and the destination goes on.
    fn waits_alone(&mut self, in_flight: &InFlight, code: Code, now: Moment) -> bool {
        let plan = in_flight.plan;
        let personal = matches!(code, Code::Http5xx | Code::Timeout | Code::Connect);
        if !personal || plan.selection == Selection::Second {
            return false;
        }
        let failures = self.keys.count_failure(plan.key, self.accepted);
        if failures < FAILURES_ALONE {
            return false;
        }
        let until = now.mono + backoff(failures, &mut self.rng);
        self.keys.wait(plan.key, until);
        true
    }

    /// The destination's state has changed: what was found out before is found out again.
    fn entered(&mut self) {
        self.entered = self.tick;
        self.awaited_canary = None;
        self.abort();
    }

    /// The request's events are to be sent again. Where it was the second event alone, its isolation holds the ordering key.
    fn again(&mut self, in_flight: &InFlight) {
        if in_flight.plan.selection != Selection::Second {
            self.keys.ready(in_flight.plan.key);
        }
    }

    /// Whether something is kept up until it is durable that so many events of these ordering keys are settled: more of theirs, a
    /// isolation, or what anybody has to send.
    pub fn awaits(&self, keys: &[OrderingKey], settled: usize) -> bool {
        let [key] = keys else { return true };
        self.unsettled > MAX_UNSETTLED / 2 || self.isolation.is_some() || self.keys.count(*key) > settled
    }

    /// It is durable that these events of these ordering keys are settled.
    pub fn settled(&mut self, keys: &[OrderingKey], seqs: &[i64]) {
        self.unsettled -= seqs.len();
        for key in keys {
            self.keys.gone(*key, seqs);
            self.keys.ready(*key);
        }
    }
}

#[cfg(test)]
mod tests;
