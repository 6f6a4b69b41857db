//! Decides whose events are sent next, and what an answer means for them. Pure.
//!
//! Every person is an ordering key. The events of an ordering key are sent in order, one request at a time; ordering keys
//! are sent side by side, the one with the oldest event first. An answer other than acceptance leads to one of these:
//!
//! - after trouble the destination as a whole waits; an ordering key that meets trouble alone three times waits alone;
//! - after a refusal (a 400) an isolation finds out whether an event is to blame or everybody is refused.
//!
//! The scheduler never drops an event.

use super::destination::{Destination, Gate, backoff};
use super::isolation::{AwaitedCanary, Isolation, WithoutCanary};
use super::ordering_keys::OrderingKeys;
use crate::clock::{Moment, Mono};
use crate::item::{MAX_OF_A_KIND, OrderingKey};
use crate::koala::Verdict;
use crate::outbox::Settled;
use crate::reason::{Code, Reason};

/// Accepted events whose settlement is not durable yet, at which no further request is sent. With the requests in flight
/// at that time, a crash makes the agent send them again, in whole requests and under the same ids. The number lets
/// requests of one event each go on without waiting for every commit.
const MAX_UNSETTLED: usize = 400;
/// Failures of an ordering key, with other requests accepted in between, after which it waits alone.
const FAILURES_ALONE: u32 = 3;
/// The memory for pending events, so that the events of a person can be gathered from all over the outbox: a million
/// events of 80,000 persons. If none of those may be sent, more are discovered all the same.
const WINDOW: usize = 28 << 20;
/// More events are discovered when so little of the window is left.
const REFILL: usize = WINDOW / 8;
/// Events planned for one request: both kinds full, and one more that shows where the next request begins.
const GATHER_LIMIT: usize = 2 * MAX_OF_A_KIND;
/// Requests stay below Segment's own limit for one, until the receiver teaches a smaller one.
const MAX_REQUEST_BYTES: usize = 500_000;

/// The next action of the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextAction {
    /// Build and send the request of [`Scheduler::events`], then call [`Scheduler::sent`], [`Scheduler::settled_unsent`] or
    /// [`Scheduler::nothing_sent`].
    Start(BatchPlan),
    /// Search the outbox for pending events, then call [`Scheduler::discovered`] and [`Scheduler::set_exhausted`].
    Discover,
    /// Wait for an answer, a commit or an event, or until this moment.
    Wait(Option<Mono>),
}

/// A request to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// The ordering key of the events.
    pub key: OrderingKey,
    /// Which of its events.
    pub selection: Selection,
    /// The tick at which it was planned.
    planned_at: u64,
}

#[cfg(test)]
impl BatchPlan {
    /// A plan that no scheduler has made.
    pub fn unscheduled(key: OrderingKey, selection: Selection) -> BatchPlan {
        BatchPlan { key, selection, planned_at: 0 }
    }
}

/// Which of an ordering key's pending events are planned for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The oldest, at most this many.
    First(usize),
    /// The second oldest alone: a canary for the oldest, where no other person has a pending event.
    Second,
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    plan: BatchPlan,
    /// The events in it.
    pub seqs: Vec<i64>,
    size: usize,
    sent_at: Mono,
    /// The tick at which it was sent.
    tick: u64,
}

/// The changes that an answer makes to the outbox, in one commit; after that, call [`Scheduler::settled`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerEffects {
    /// Events that are settled.
    pub rows: Vec<(i64, Settled)>,
    /// The ordering keys of those events; nothing of them is sent before the commit.
    pub keys: Vec<OrderingKey>,
    /// Events that stay pending, and the answer to be noted with them.
    pub noted: Option<(Vec<i64>, Reason)>,
}

/// The scheduler's state.
#[derive(Debug)]
pub struct Scheduler {
    /// The state of the destination.
    pub destination: Destination,
    keys: OrderingKeys,
    /// Requests that were planned and not answered.
    in_flight_count: usize,
    /// The part of `in_flight_count` that is still being built.
    building_count: usize,
    /// Events whose settlement is being committed.
    unsettled: usize,
    /// Whether all pending events are discovered.
    is_exhausted: bool,
    /// Whether the window is being filled. It is almost emptied before it is filled again: the events delivered meanwhile
    /// then lie close together, so that their rows stand on few pages.
    is_filling: bool,
    /// Counts requests and answers, to tell which came first.
    tick: u64,
    /// The tick at which the destination's state last changed. The answers to older requests say nothing about it.
    state_changed_at: u64,
    /// The tick at which the receiver was last replaced by another one.
    receiver_replaced_at: u64,
    /// The number of accepted requests.
    accepted_count: u64,
    isolation: Isolation,
    /// The ordering key of a canary in flight, or of a bisected event alone. Nothing else is sent until the answer, so that
    /// a pending event is left to serve as its canary.
    exclusive: Option<OrderingKey>,
    /// The oldest event of the last request that was no canary. A probe is of another person.
    last_oldest: i64,
    max_bytes: usize,
    rng: fastrand::Rng,
}

impl Scheduler {
    /// A scheduler that knows no event yet.
    pub fn new(destination: Destination, rng: fastrand::Rng) -> Scheduler {
        Scheduler {
            destination,
            keys: OrderingKeys::default(),
            in_flight_count: 0,
            building_count: 0,
            unsettled: 0,
            is_exhausted: false,
            is_filling: true,
            tick: 0,
            state_changed_at: 0,
            receiver_replaced_at: 0,
            accepted_count: 0,
            isolation: Isolation::default(),
            exclusive: None,
            last_oldest: 0,
            max_bytes: MAX_REQUEST_BYTES,
            rng,
        }
    }

    /// The most bytes of a request's events together; a single event may be larger.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Adds a pending event. The events of an ordering key may come in any order.
    pub fn discovered(&mut self, seq: i64, key: OrderingKey) {
        self.keys.discovered(seq, key);
        self.isolation.event_arrived(key, &self.keys);
    }

    /// Sets whether all pending events are discovered. An event that is stored later makes it `false` again.
    pub fn set_exhausted(&mut self, is_exhausted: bool) {
        self.is_exhausted = is_exhausted;
    }

    /// Whether all pending events are discovered, and the window has room for more.
    pub fn knows_all(&self) -> bool {
        self.is_exhausted && self.keys.bytes() < WINDOW
    }

    /// Whether any ordering key is ready to be sent.
    pub fn has_ready(&self) -> bool {
        self.keys.oldest_ready().is_some()
    }

    /// Notes that requests go to another receiver from now on: the refusals of the last one prove nothing any more.
    pub fn receiver_replaced(&mut self) {
        self.state_changed();
        self.receiver_replaced_at = self.tick;
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// The next action.
    pub fn next(&mut self, now: Moment) -> NextAction {
        self.keys.wake(now.mono);
        if self.isolation.has_canary_arrived() {
            self.destination.reopen(now);
            self.state_changed();
        }
        let gate = self.destination.gate(now.mono);
        let limit = match gate {
            Gate::Open(limit) => limit,
            Gate::Probe => 1,
            Gate::ShutUntil(_) if self.isolation.awaited_canary.is_some() && !self.is_exhausted => {
                return NextAction::Discover;
            }
            Gate::ShutUntil(until) => return NextAction::Wait(Some(until)),
        };
        let is_full =
            self.in_flight_count >= limit || self.unsettled >= MAX_UNSETTLED || self.exclusive.is_some();
        // The more events of a person are known, the more fit into one request; until then one request at a time is sent.
        self.is_filling = self.keys.bytes() < if self.is_filling { WINDOW } else { REFILL };
        if (is_full || self.in_flight_count > 0) && !self.is_exhausted && self.is_filling {
            return NextAction::Discover;
        }
        if is_full {
            return NextAction::Wait(None);
        }
        if let Some(plan) = self.plan(gate == Gate::Probe) {
            return self.start(plan);
        }
        if !self.is_exhausted {
            self.is_filling = true;
            return NextAction::Discover;
        }
        if self.in_flight_count == 0
            && self.unsettled == 0
            && let Some(without_canary) = self.isolation.without_canary(&mut self.keys)
        {
            return self.go_on_without_canary(without_canary, now);
        }
        NextAction::Wait(self.keys.next_wake())
    }

    fn plan(&mut self, is_probe: bool) -> Option<BatchPlan> {
        let is_isolating = self.isolation.is_running();
        let key = match is_isolating {
            true => self.keys.canary()?,
            false if is_probe => self.probe_key()?,
            false => self.keys.oldest_ready()?,
        };
        let most = match self.keys.bisect_range(key) {
            _ if is_isolating || (is_probe && self.destination.refuses()) => 1,
            0 => usize::MAX,
            bisect_range => (bisect_range / 2).max(1),
        };
        Some(self.plan_of(key, Selection::First(most)))
    }

    fn plan_of(&mut self, key: OrderingKey, selection: Selection) -> BatchPlan {
        self.tick += 1;
        BatchPlan { key, selection, planned_at: self.tick }
    }

    /// The next ordering key in the order of the spool after the last one, so that two persons whose events are refused
    /// do not stand for everybody for long. `None` while others may still be discovered.
    fn probe_key(&self) -> Option<OrderingKey> {
        let next = self.keys.oldest_ready_after(self.last_oldest);
        next.or_else(|| self.keys.oldest_ready().filter(|_| self.is_exhausted))
    }

    fn start(&mut self, plan: BatchPlan) -> NextAction {
        let is_bisected = self.keys.bisect_range(plan.key) > 0;
        let oldest = self.keys.set_busy(plan.key);
        if !self.isolation.is_running() {
            self.last_oldest = oldest.unwrap_or(self.last_oldest);
        }
        self.in_flight_count += 1;
        self.building_count += 1;
        if self.isolation.is_running() || (is_bisected && plan.selection == Selection::First(1)) {
            self.exclusive = Some(plan.key);
        }
        NextAction::Start(plan)
    }

    /// Whether the request of the plan is still to be sent: not if the destination's state has changed since it was
    /// planned.
    pub fn is_current(&self, plan: BatchPlan) -> bool {
        plan.planned_at > self.state_changed_at
    }

    /// The events to build the request of, oldest first.
    pub fn events(&self, plan: BatchPlan) -> Vec<i64> {
        let (skip, most) = match plan.selection {
            Selection::First(most) => (0, most.min(GATHER_LIMIT)),
            Selection::Second => (1, 1),
        };
        self.keys.events(plan.key).skip(skip).take(most).collect()
    }

    /// Removes events of the plan that are not pending any more, because a command has settled them.
    pub fn remove_gone(&mut self, plan: BatchPlan, seqs: &[i64]) {
        self.keys.remove_events(plan.key, seqs);
    }

    /// Notes that the request of the plan was sent with these events, of `size` bytes in all.
    pub fn sent(&mut self, plan: BatchPlan, seqs: Vec<i64>, size: usize, now: Mono) -> InFlight {
        self.building_count -= 1;
        self.tick += 1;
        InFlight { plan, seqs, size, sent_at: now, tick: self.tick }
    }

    /// Notes that no request was sent for the plan: its events are gone, there is no second one, or the plan is outdated.
    pub fn nothing_sent(&mut self, plan: BatchPlan) {
        self.drop_plan(plan);
        if plan.selection != Selection::Second {
            self.keys.set_ready(plan.key);
        }
    }

    /// Notes that these events of the plan are settled without being sent. Returns the ordering keys of which nothing is
    /// sent until that is durable, for [`Scheduler::settled`].
    pub fn settled_unsent(&mut self, plan: BatchPlan, seqs: &[i64]) -> Vec<OrderingKey> {
        self.drop_plan(plan);
        self.unsettled += seqs.len();
        if self.isolation.is_running() && plan.selection == Selection::Second {
            // The isolation holds the ordering key.
            self.isolation.second_is_settled();
            self.keys.remove_events(plan.key, seqs);
            return Vec::new();
        }
        vec![plan.key]
    }

    fn drop_plan(&mut self, plan: BatchPlan) {
        self.building_count -= 1;
        self.end_request(plan);
    }

    /// Counts a request as no longer in flight. Returns whether it was exclusive.
    fn end_request(&mut self, plan: BatchPlan) -> bool {
        self.in_flight_count -= 1;
        self.exclusive.take_if(|key| *key == plan.key).is_some()
    }

    /// Handles the answer to a request.
    pub fn answered(&mut self, in_flight: InFlight, verdict: Verdict, now: Moment) -> AnswerEffects {
        self.tick += 1;
        let is_canary = self.end_request(in_flight.plan) && self.isolation.is_running();
        let is_current = in_flight.tick > self.state_changed_at;
        let reason = match verdict {
            Verdict::Accepted => return self.accepted(in_flight, is_canary, is_current, now),
            _ if in_flight.tick <= self.receiver_replaced_at => {
                self.send_again(&in_flight);
                return AnswerEffects::default();
            }
            Verdict::Trouble { reason, retry_after } => {
                if is_canary {
                    self.isolation.abort(&mut self.keys);
                }
                if retry_after.is_some() || !self.waits_alone(&in_flight, reason.code, now) {
                    self.send_again(&in_flight);
                    if self.destination.trouble(reason.clone(), retry_after, is_current, now) {
                        self.state_changed();
                    }
                }
                reason
            }
            Verdict::Closed(reason) => {
                if is_canary {
                    self.isolation.abort(&mut self.keys);
                }
                self.send_again(&in_flight);
                if is_current {
                    self.destination.refuse(reason.clone(), now);
                    self.state_changed();
                }
                reason
            }
            Verdict::TooLarge(reason) if in_flight.seqs.len() > 1 => {
                self.max_bytes = self.max_bytes.min(in_flight.size / 2);
                self.send_again(&in_flight);
                reason
            }
            Verdict::Doubtful(reason) | Verdict::Conflict(reason) | Verdict::TooLarge(reason) => {
                let mut reason = self.refused(&in_flight, reason, is_canary, is_current, now);
                let count = in_flight.seqs.len();
                if count > 1 {
                    // The answer may name one of the events, and is noted with each of them.
                    reason.text.push_str(&format!(" (to a request with {count} events)"));
                }
                reason
            }
        };
        AnswerEffects { noted: Some((in_flight.seqs, reason)), ..AnswerEffects::default() }
    }

    fn accepted(
        &mut self,
        in_flight: InFlight,
        is_canary: bool,
        is_current: bool,
        now: Moment,
    ) -> AnswerEffects {
        let key = in_flight.plan.key;
        let round_trip = now.mono.saturating_sub(in_flight.sent_at);
        self.destination.record_round_trip(round_trip, self.in_flight_count - self.building_count + 1);
        self.accepted_count += 1;
        self.keys.set_busy(key);
        self.keys.forget_failures(key, in_flight.seqs.len());
        let mut effects = AnswerEffects {
            rows: in_flight.seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect(),
            keys: vec![key],
            noted: None,
        };
        if is_canary && let Some((key, seq, reason)) = self.isolation.canary_accepted(&mut self.keys) {
            effects.rows.push((seq, Settled::Failed(reason)));
            if !effects.keys.contains(&key) {
                effects.keys.push(key);
            }
        }
        self.unsettled += effects.rows.len();
        if self.destination.accepted(is_current, now) {
            self.state_changed();
        }
        effects
    }

    /// Counts a failure of the request's ordering key. Returns whether the ordering key now waits alone, so that the
    /// destination goes on.
    fn waits_alone(&mut self, in_flight: &InFlight, code: Code, now: Moment) -> bool {
        let plan = in_flight.plan;
        let may_be_personal = matches!(code, Code::Http5xx | Code::Timeout | Code::Connect);
        if !may_be_personal || plan.selection == Selection::Second {
            return false;
        }
        let failures = self.keys.count_failure(plan.key, self.accepted_count);
        if failures < FAILURES_ALONE {
            return false;
        }
        let until = now.mono + backoff(failures, &mut self.rng);
        self.keys.set_waiting(plan.key, until);
        true
    }

    /// Handles the refusal of a request. Returns the reason as it is noted with its events.
    fn refused(
        &mut self,
        in_flight: &InFlight,
        mut reason: Reason,
        is_canary: bool,
        is_current: bool,
        now: Moment,
    ) -> Reason {
        let (key, count) = (in_flight.plan.key, in_flight.seqs.len());
        let Some(&oldest) = in_flight.seqs.first() else { return reason };
        if is_canary {
            let awaited = self.isolation.canary_refused(key, count, &mut self.keys);
            self.refuse_all(&reason, awaited, now);
            return reason;
        }
        let is_second = in_flight.plan.selection == Selection::Second;
        let is_isolating = self.isolation.is_running() || self.exclusive.is_some();
        let is_bisecting = self.keys.bisect_range(key) > 0 && count > 1;
        let is_known = self.destination.refuses() && (self.destination.refuses_all() || !is_current);
        if is_second || is_isolating || is_bisecting || is_known {
            if !is_second {
                self.keys.set_bisect_range(key, count);
            }
            if is_known && is_current {
                let awaited = self.isolation.awaited_canary.take();
                self.refuse_all(&reason, awaited, now);
            }
            return reason;
        }
        if self.destination.refuses() {
            // The receiver refused the key or the address before; now it reads the events.
            self.destination.reopen(now);
            self.state_changed();
        }
        self.isolation.begin(key, oldest, count, reason.clone());
        if count == 1 {
            reason
                .text
                .push_str(". Perhaps it refuses every event: this one waits until another one is accepted");
        }
        reason
    }

    fn go_on_without_canary(&mut self, without_canary: WithoutCanary, now: Moment) -> NextAction {
        match without_canary {
            WithoutCanary::TrySecond(key) => {
                let plan = self.plan_of(key, Selection::Second);
                return self.start(plan);
            }
            WithoutCanary::Bisect => {}
            WithoutCanary::RefusesAll(reason, awaited) => self.refuse_all(&reason, Some(awaited), now),
        }
        self.next(now)
    }

    fn refuse_all(&mut self, reason: &Reason, awaited: Option<AwaitedCanary>, now: Moment) {
        self.destination.refuse(Reason { code: Code::RefusesAll, ..reason.clone() }, now);
        self.state_changed();
        self.isolation.awaited_canary = awaited;
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// Notes that the destination's state has changed: conclusions from before do not hold any more.
    fn state_changed(&mut self) {
        self.state_changed_at = self.tick;
        self.isolation.awaited_canary = None;
        self.isolation.abort(&mut self.keys);
    }

    /// Has the request's events sent again. An isolation goes on to hold the ordering key of a second event.
    fn send_again(&mut self, in_flight: &InFlight) {
        if in_flight.plan.selection != Selection::Second {
            self.keys.set_ready(in_flight.plan.key);
        }
    }

    /// Whether anything waits for the commit that settles `count` events of these ordering keys: more of their events,
    /// an isolation, or the next request of anybody.
    pub fn awaits(&self, keys: &[OrderingKey], count: usize) -> bool {
        let [key] = keys else { return true };
        self.unsettled > MAX_UNSETTLED / 2
            || self.isolation.is_running()
            || self.keys.pending_count(*key) > count
    }

    /// Notes that the settlement of these events is durable.
    pub fn settled(&mut self, keys: &[OrderingKey], seqs: &[i64]) {
        self.unsettled -= seqs.len();
        for key in keys {
            self.keys.remove_events(*key, seqs);
            self.keys.set_ready(*key);
        }
    }
}

#[cfg(test)]
mod tests;
