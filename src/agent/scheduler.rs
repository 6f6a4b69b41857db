//! Decides whose events are sent next, and what an answer means for them. Pure.
//!
//! Every person is an ordering key. Their events are sent in order, one request at a time; persons are sent side by side,
//! the one with the oldest event first.
//!
//! ```text
//!   a person                                                 a path (`path`)
//!     untried ──trouble──▶ suspect ──accepted──▶ untried       open ──everybody's──▶ concluded ──accepted──▶ open
//!                           │  ▲
//!                 own wait: └──┘ trouble: 1 s, doubled, at most 60 s, full jitter
//!                                refused with others: split at once
//!                                refused alone: 10 to 12 s, until it is proven (`suspicion`) ──▶ the event has failed
//! ```
//!
//! - A person's trouble is that person's: suspects wait alone, and are tried beside the others, who go on at full width.
//!   While there are suspects, half of the requests begin at the newest persons, so that bad ones in front do not stand
//!   in the way.
//! - A person that was never tried tells more about everybody than a suspect does, so suspects are not tried while a
//!   path is in doubt and such persons are ready.
//! - Six persons in a row, or all if they are fewer, conclude a path: it waits, and rounds of few persons go on to look
//!   for one that is accepted.
//! - What is out of reach, or asks for a pause, makes the destination wait as a whole (`destination`).
//! - `/auth` is asked where a round begins, and before an event is tried alone again while nothing else has shown that
//!   the receiver is well.
//!
//! A separate trial, in which one refused event holds everybody else, was simpler to reason about, but stopped all others
//! for each bad event, and two bad persons could keep each other from a conclusion. No event is ever dropped.

use super::destination::Destination;
use super::in_flight::{InFlightCounts, Lane};
use super::ordering_keys::{OrderingKeys, Side};
use super::path::PathGate;
pub use super::plan::{AnswerEffects, BatchPlan, InFlight, NextAction, PathView, Selection};
use super::suspicion::Refusal;
use crate::clock::{Moment, Mono};
use crate::item::{Endpoint, MAX_OF_A_KIND, OrderingKey};
use crate::koala::Verdict;
use crate::outbox::{QueuedItem, Settled};
use crate::reason::{Code, Reason};
use crate::status::DestinationState;
use std::collections::HashSet;
use std::time::Duration;

/// Accepted events whose settlement is not durable yet, at which no further request is sent. With the requests in flight
/// at that time, a crash makes the agent send them again, in whole requests and under the same ids. The number lets
/// requests of one event each go on without waiting for every commit.
const MAX_UNSETTLED: usize = 400;
/// The memory for pending events, so that the events of a person can be gathered from all over the outbox: a million
/// events of 80,000 persons. If none of those may be sent, more are discovered all the same.
const WINDOW: usize = 28 << 20;
/// More events are discovered when so little of the window is left.
const REFILL: usize = WINDOW / 8;
/// Events planned for one request: both kinds full, and one more that shows where the next request begins.
const GATHER_LIMIT: usize = 2 * MAX_OF_A_KIND;
/// Requests stay below Segment's own limit for one, until the receiver teaches a smaller one.
const MAX_REQUEST_BYTES: usize = 500_000;

/// All paths, and those of persons whose path is not known.
const ANY_PATH: [Option<Endpoint>; 3] = [Some(Endpoint::People), Some(Endpoint::Accounts), None];

/// The scheduler's state.
#[derive(Debug)]
pub struct Scheduler {
    /// The state of the destination.
    pub destination: Destination,
    keys: OrderingKeys,
    /// Events that a command is about to settle: no request with them is started.
    withdrawn: HashSet<i64>,
    in_flight: InFlightCounts,
    /// The part of those of untried persons that are still being built.
    building: usize,
    /// Events whose settlement is being committed.
    unsettled: usize,
    /// Whether all pending events are discovered.
    is_exhausted: bool,
    /// Whether the window is being filled. It is almost emptied before it is filled again: the events delivered meanwhile
    /// then lie close together, so that their rows stand on few pages.
    is_filling: bool,
    /// The end that the last untried person was taken from.
    last_side: Side,
    /// The last person that was tried in a round.
    last_in_round: Option<OrderingKey>,
    /// Whether `/auth` is being asked, and when its last answer came.
    is_asking: bool,
    auth_at: Option<Mono>,
    /// Counts the receivers: an answer of another one says nothing.
    receiver: u64,
    max_bytes: usize,
}

impl Scheduler {
    /// A scheduler that knows no event yet.
    pub fn new(destination: Destination) -> Scheduler {
        Scheduler {
            destination,
            keys: OrderingKeys::default(),
            withdrawn: HashSet::new(),
            in_flight: InFlightCounts::default(),
            building: 0,
            unsettled: 0,
            is_exhausted: false,
            is_filling: true,
            last_side: Side::Newest,
            last_in_round: None,
            is_asking: false,
            auth_at: None,
            receiver: 0,
            max_bytes: MAX_REQUEST_BYTES,
        }
    }

    /// The most bytes of a request's events together; a single event may be larger.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Adds a pending event, unless it is withdrawn. The events of an ordering key may come in any order.
    pub fn discovered(&mut self, item: QueuedItem) {
        if !self.withdrawn.contains(&item.seq) {
            self.keys.discovered(item);
        }
    }

    /// Starts no request with these events any more, until they are given back.
    /// `items` are those of them that are in the queue.
    pub fn withdraw(&mut self, seqs: &[i64], items: &[QueuedItem]) {
        self.withdrawn.extend(seqs);
        items.iter().for_each(|item| self.keys.withdraw(item.key, &[item.seq]));
    }

    /// Whether any of these events is withdrawn.
    pub fn has_withdrawn(&self, mut seqs: impl Iterator<Item = i64>) -> bool {
        !self.withdrawn.is_empty() && seqs.any(|seq| self.withdrawn.contains(&seq))
    }

    /// Ends a withdrawal. The events that are still pending may be discovered again.
    pub fn give_back(&mut self, seqs: &[i64]) {
        seqs.iter().for_each(|seq| _ = self.withdrawn.remove(seq));
    }

    /// Whether a request of the ordering key is planned, in flight or being settled.
    pub fn is_busy(&self, key: OrderingKey) -> bool {
        self.keys.is_busy(key)
    }

    /// Sets whether all pending events are discovered. An event that is stored later makes it `false` again.
    pub fn set_exhausted(&mut self, is_exhausted: bool) {
        self.is_exhausted = is_exhausted;
    }

    /// Whether all pending events are discovered.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// Whether the window has room for more.
    pub fn has_window(&self) -> bool {
        self.keys.bytes() < WINDOW
    }

    /// Whether any person that was never tried is ready to be sent.
    pub fn has_ready(&self) -> bool {
        self.keys.untried(&ANY_PATH, Side::Oldest).is_some()
    }

    /// Forgets all persons, none of whom has a request in flight or a commit ahead: their ordering keys have changed.
    pub fn forget_persons(&mut self) {
        self.keys = OrderingKeys::default();
        self.in_flight = InFlightCounts::default();
        (self.building, self.is_filling) = (0, true);
    }

    /// Notes that requests go to another receiver from now on: what the last one answered proves nothing any more.
    pub fn receiver_replaced(&mut self, now: Moment) {
        self.receiver += 1;
        (self.is_asking, self.auth_at) = (false, None);
        self.max_bytes = MAX_REQUEST_BYTES;
        self.keys.clear_all();
        self.destination.receiver_replaced(now);
    }

    /// Tries the receiver, and all suspects, at once.
    pub fn retry_now(&mut self, now: Mono) {
        self.destination.retry_now(now);
        self.keys.end_waits(now);
    }

    /// The next action.
    pub fn next(&mut self, now: Moment) -> NextAction {
        if let Some(until) = self.destination.paused_until(now.mono) {
            return NextAction::Wait(Some(until));
        }
        let is_full =
            self.unsettled >= MAX_UNSETTLED || !self.destination.has_room(&self.in_flight, false, now.mono);
        // The more events of a person are known, the more fit into one request; until then one request at a time is sent.
        self.is_filling = self.keys.bytes() < if self.is_filling { WINDOW } else { REFILL };
        if (is_full || self.in_flight.all() > 0) && !self.is_exhausted && self.is_filling {
            return NextAction::Discover;
        }
        if self.unsettled >= MAX_UNSETTLED {
            return NextAction::Wait(None);
        }
        let mut wakes = [None; 2];
        for (path, wake) in Endpoint::ALL.into_iter().zip(&mut wakes) {
            self.conclude_if_everybodys(path, now);
            match self.destination.path(path).gate(self.has_untried(path), now.mono) {
                PathGate::Open => match self.due_suspect(path, now.mono) {
                    Due::Plan(plan) => return self.start(plan),
                    Due::AskAuth => return self.ask_auth(),
                    Due::At(at) => *wake = at,
                },
                PathGate::Round => {
                    if let Some(plan) = self.plan_round(path, now.mono) {
                        return self.start(plan);
                    }
                }
                PathGate::AskAuth if !self.is_asking => return self.ask_auth(),
                PathGate::AskAuth => {}
                PathGate::ShutUntil(at) => *wake = at,
            }
        }
        if let Some(plan) = self.plan_untried(now.mono) {
            return self.start(plan);
        }
        if self.can_discover() {
            self.is_filling = true;
            return NextAction::Discover;
        }
        // What is ready and has no room may have it when the requests in flight turn out to hang.
        let silent_at = self.in_flight.silent_at(now.mono).filter(|_| self.has_ready());
        NextAction::Wait(wakes.into_iter().chain([silent_at]).flatten().min())
    }

    /// Whether the search may go on. Beside a path that waits, no more is discovered than the window holds.
    fn can_discover(&self) -> bool {
        let has_rounds = || Endpoint::ALL.into_iter().any(|path| self.destination.path(path).has_rounds());
        !self.is_exhausted && (self.keys.bytes() < WINDOW || !has_rounds())
    }

    /// Whether persons are there for a path that were never tried, or may be.
    fn has_untried(&self, path: Endpoint) -> bool {
        self.can_discover() || self.keys.untried(&[Some(path), None], Side::Oldest).is_some()
    }

    /// Concludes a path on which nobody but suspects waits, if any of them is new since the last acceptance.
    fn conclude_if_everybodys(&mut self, path: Endpoint, now: Moment) {
        let state = self.destination.path(path);
        if self.is_exhausted
            && state.is_in_doubt()
            && !state.is_concluded()
            && self.keys.are_all_suspects(path)
        {
            self.destination.path_mut(path).conclude(true, now);
        }
    }

    fn ask_auth(&mut self) -> NextAction {
        self.is_asking = true;
        Endpoint::ALL.into_iter().for_each(|path| self.destination.path_mut(path).auth_asked());
        NextAction::AskAuth
    }

    /// The first suspect of an open path, if its wait is over.
    fn due_suspect(&self, path: Endpoint, now: Mono) -> Due {
        let state = self.destination.path(path);
        let is_held = state.is_in_doubt() && self.keys.untried(&[Some(path), None], Side::Oldest).is_some();
        let Some((until, key)) = self.keys.suspects(path).next().filter(|_| !is_held) else {
            return Due::At(None);
        };
        if until > now {
            return Due::At(Some(until));
        }
        let Some(suspicion) = self.keys.suspicion(key) else { return Due::At(None) };
        if !self.destination.has_room(&self.in_flight, true, now) {
            return Due::At(None);
        }
        let plan = |selection| Due::Plan(BatchPlan { key, selection, lane: Lane::Suspect, started_at: now });
        if let Some(before) = suspicion.witness(now).filter(|n| *n < self.keys.pending_count(key)) {
            return plan(Selection::Witness(before));
        }
        if suspicion.needs_well(state.evidence) && self.auth_at.is_none_or(|at| at < until) {
            return if self.is_asking { Due::At(None) } else { Due::AskAuth };
        }
        plan(Selection::First(suspicion.most()))
    }

    /// The next request of a path's present round: of a person that was never tried, else of the suspect that has waited
    /// longest, and never of the last one again.
    fn plan_round(&mut self, path: Endpoint, now: Mono) -> Option<BatchPlan> {
        if !self.destination.limiter.has_room(self.in_flight.untried(), self.in_flight.suspects(), true) {
            return None;
        }
        let side = self.last_side.other();
        let untried = self.keys.untried(&[Some(path), None], side);
        if untried.is_none() && self.can_discover() {
            return None;
        }
        let is_for_untried = self.destination.path(path).left_in_round() > 1;
        let suspects = || self.keys.suspects(path).map(|(_, key)| key);
        let other = || suspects().find(|key| Some(*key) != self.last_in_round);
        let suspect = || other().or_else(|| suspects().next()).filter(|_| !is_for_untried);
        let Some(key) = untried.or_else(suspect) else {
            self.destination.path_mut(path).tried_in_round(true);
            return None;
        };
        self.destination.path_mut(path).tried_in_round(false);
        (self.last_in_round, self.last_side) = (Some(key), side);
        Some(BatchPlan { key, selection: Selection::First(1), lane: Lane::Round(path), started_at: now })
    }

    /// The request of a person that was never tried, of the paths that are open. A person whose path is not known is
    /// among them: the request, once built, tells the path.
    fn plan_untried(&mut self, now: Mono) -> Option<BatchPlan> {
        if !self.destination.has_room(&self.in_flight, false, now) {
            return None;
        }
        let is_odd =
            self.keys.has_suspects() || self.in_flight.hanging() > 0 || self.in_flight.is_silent(now);
        let side = match is_odd {
            true => self.in_flight.smaller_side().unwrap_or(self.last_side.other()),
            false => Side::Oldest,
        };
        let is_open = |path: Endpoint| !self.destination.path(path).has_rounds();
        let (key, most) = match Endpoint::ALL.map(is_open) {
            [true, true] => (self.keys.untried(&ANY_PATH, side)?, usize::MAX),
            [false, false] => return None,
            [people, _] => {
                let open = if people { Endpoint::People } else { Endpoint::Accounts };
                let known = self.keys.untried(&[Some(open)], side).map(|key| (key, usize::MAX));
                known.or_else(|| Some((self.keys.untried(&[None], side)?, 1)))?
            }
        };
        self.last_side = side;
        Some(BatchPlan { key, selection: Selection::First(most), lane: Lane::Untried(side), started_at: now })
    }

    fn start(&mut self, plan: BatchPlan) -> NextAction {
        self.keys.set_busy(plan.key);
        self.in_flight.start(plan.lane, plan.key, plan.started_at);
        self.building += usize::from(plan.lane.is_untried());
        NextAction::Start(plan)
    }

    /// Whether the request of the plan, which goes to that path, is still to be sent: not if the destination or the path
    /// waits by now.
    pub fn may_send(&mut self, plan: BatchPlan, path: Endpoint, now: Mono) -> bool {
        self.keys.set_path(plan.key, path);
        let is_round = plan.lane == Lane::Round(path);
        self.destination.paused_until(now).is_none()
            && (is_round || !self.destination.path(path).has_rounds())
    }

    /// The events to build the request of, oldest first.
    pub fn events(&self, plan: BatchPlan) -> Vec<i64> {
        let (skip, most) = match plan.selection {
            Selection::First(most) => (0, most.min(GATHER_LIMIT)),
            Selection::Witness(before) => (before, 1),
        };
        self.keys.events(plan.key).skip(skip).take(most).collect()
    }

    /// Removes events of the plan that are not pending any more: they were withdrawn after it was made.
    pub fn remove_gone(&mut self, plan: BatchPlan, seqs: &[i64]) {
        self.keys.remove_events(plan.key, seqs);
    }

    /// Whether the request of the plan is to be sent over other connections than these.
    pub fn needs_connection(&self, plan: BatchPlan, connections: u64) -> bool {
        self.keys.suspicion(plan.key).is_some_and(|suspicion| suspicion.needs_connection(connections))
    }

    /// Notes that the request of the plan was sent to that path with these events, of `size` bytes in all, over these
    /// connections.
    pub fn sent(
        &mut self,
        plan: BatchPlan,
        endpoint: Endpoint,
        seqs: Vec<i64>,
        size: usize,
        connections: u64,
        now: Mono,
    ) -> InFlight {
        self.building -= usize::from(plan.lane.is_untried());
        InFlight {
            plan,
            endpoint,
            seqs,
            size,
            connections,
            sent_at: now,
            pause_count: self.destination.pause_count(),
            evidence: self.destination.path(endpoint).evidence,
            receiver: self.receiver,
        }
    }

    /// Notes that no request was sent for the plan: its events are gone, or it may not be sent any more.
    pub fn nothing_sent(&mut self, plan: BatchPlan) {
        self.drop_plan(plan);
        self.keys.set_ready(plan.key);
    }

    /// Notes that these events of the plan are settled without being sent. Returns the ordering keys of which nothing is
    /// sent until that is durable, for [`Scheduler::settled`].
    pub fn settled_unsent(&mut self, plan: BatchPlan, seqs: &[i64]) -> Vec<OrderingKey> {
        self.drop_plan(plan);
        self.unsettled += seqs.len();
        vec![plan.key]
    }

    fn drop_plan(&mut self, plan: BatchPlan) {
        self.building -= usize::from(plan.lane.is_untried());
        self.in_flight.end(plan.lane, plan.key, plan.started_at);
    }

    /// Handles the answer to a request.
    pub fn answered(&mut self, in_flight: InFlight, verdict: Verdict, now: Moment) -> AnswerEffects {
        let BatchPlan { key, lane, started_at, .. } = in_flight.plan;
        self.in_flight.end(lane, key, started_at);
        self.in_flight.answered(verdict == Verdict::Accepted, started_at, now.mono);
        if verdict == Verdict::Accepted {
            return self.accepted(in_flight, now);
        }
        let path = in_flight.endpoint;
        if in_flight.receiver != self.receiver {
            self.keys.set_ready(key);
            return AnswerEffects::default();
        }
        let is_accepted_since = self.destination.path(path).evidence.accepted > in_flight.evidence.accepted;
        let noted = match verdict {
            Verdict::Unavailable { reason, retry_after } if !is_accepted_since => {
                self.destination.pause(reason.clone(), retry_after, in_flight.pause_count, now);
                reason
            }
            Verdict::TooLarge(reason) if in_flight.seqs.len() > 1 => {
                self.max_bytes = self.max_bytes.min(in_flight.size / 2);
                reason
            }
            verdict => self.met_trouble(&in_flight, verdict, now),
        };
        self.keys.set_ready(key);
        AnswerEffects { noted: Some((in_flight.seqs, noted)), ..self.conclude_suspects(path, now) }
    }

    fn accepted(&mut self, in_flight: InFlight, now: Moment) -> AnswerEffects {
        let (key, path) = (in_flight.plan.key, in_flight.endpoint);
        if in_flight.plan.lane.is_untried() {
            let round_trip = now.mono.saturating_sub(in_flight.sent_at);
            let sent = self.in_flight.untried() - self.building + 1;
            self.destination.limiter.accepted(round_trip, sent);
        }
        let mut rows: Vec<_> = in_flight.seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect();
        if in_flight.receiver == self.receiver {
            self.destination.accepted(now);
            let innocent = self.destination.path_mut(path).accepted(now);
            if !innocent.is_empty() {
                self.max_bytes = MAX_REQUEST_BYTES;
            }
            innocent.into_iter().for_each(|key| self.keys.end_wait(key, now.mono));
        }
        if let Selection::Witness(_) = in_flight.plan.selection {
            self.keys.suspect(key).witness_accepted(now.mono);
        } else if self.keys.suspicion(key).is_some() && self.keys.suspect(key).accepted(in_flight.seqs.len())
        {
            self.keys.clear(key);
        }
        self.unsettled += rows.len();
        let AnswerEffects { rows: proven, keys, .. } = self.conclude_suspects(path, now);
        rows.extend(proven);
        AnswerEffects { rows, keys: [key].into_iter().chain(keys).collect(), noted: None }
    }

    /// Handles an answer that is the person's trouble first. Returns the reason as it is noted with the events.
    fn met_trouble(&mut self, in_flight: &InFlight, verdict: Verdict, now: Moment) -> Reason {
        let InFlight { plan, endpoint: path, .. } = *in_flight;
        let (key, count) = (plan.key, in_flight.seqs.len());
        self.destination.reached(now.mono);
        // The state if the trouble is everybody's, whether it may be an event's, and whether it is everybody's for sure
        // where nothing was ever accepted.
        let (state, is_events, is_closed) = match &verdict {
            Verdict::Unavailable { .. } | Verdict::Trouble(_) => (DestinationState::Backoff, false, false),
            Verdict::Closed(_) => (DestinationState::Refused, false, true),
            Verdict::Forbidden(_) => (DestinationState::Refused, true, true),
            _ => (DestinationState::Refused, true, false),
        };
        let is_conflict = matches!(verdict, Verdict::Conflict(_));
        let pause = match &verdict {
            Verdict::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let Some(reason) = verdict.reason().cloned() else { return Reason::new(Code::Refused, "") };
        if state == DestinationState::Backoff && plan.lane.is_untried() {
            self.destination.limiter.trouble();
        }
        let (was_suspect, has_ever_accepted) =
            (self.keys.suspicion(key).is_some(), self.destination.has_ever_accepted);
        let path_state = self.destination.path_mut(path);
        path_state.met_trouble(key, was_suspect, (state, reason.clone()), now);
        if is_closed && !has_ever_accepted {
            path_state.conclude(true, now);
        }
        let evidence = path_state.evidence;
        let rng = &mut self.destination.rng;
        let pending = self.keys.pending_count(key);
        let suspicion = self.keys.suspect(key);
        if !is_events {
            suspicion.met_trouble(pause, now.mono, rng);
            return reason;
        }
        // An event is not blamed yet; the answer may name one of several, and is noted with each of them.
        let noted = Reason { code: Code::Suspect, ..reason.clone() };
        if let Selection::Witness(_) = plan.selection {
            suspicion.witness_refused(pending, now.mono, rng);
        } else if count > 1 {
            suspicion.refused_together(count, now.mono);
            return noted.and(&format!(" (to a request with {count} events)"));
        } else if let Some(&seq) = in_flight.seqs.first() {
            let (sent, connections) = (in_flight.evidence, in_flight.connections);
            let refusal = Refusal { seq, reason, is_conflict, sent, connections };
            suspicion.refused_alone(refusal, pending, evidence, now.mono, rng);
        }
        noted.and("; not blamed yet: waiting for proof that the receiver accepts other events")
    }

    /// Handles the answer of `/auth`.
    pub fn auth_answered(&mut self, verdict: Verdict, now: Moment) -> AnswerEffects {
        (self.is_asking, self.auth_at) = (false, Some(now.mono));
        let is_well = verdict == Verdict::Accepted;
        if let Verdict::Unavailable { reason, retry_after } = verdict {
            self.destination.pause(reason, retry_after, self.destination.pause_count(), now);
        }
        let mut effects = AnswerEffects::default();
        for path in Endpoint::ALL {
            let (persons, has_untried) = (self.keys.persons(path), self.has_untried(path));
            let state = self.destination.path_mut(path);
            if !is_well && self.is_exhausted && state.have_all_met_trouble(persons) {
                state.conclude(true, now);
            }
            self.destination.auth_answered(path, is_well, persons, has_untried, now.mono);
            let concluded = self.conclude_suspects(path, now);
            effects.rows.extend(concluded.rows);
            effects.keys.extend(concluded.keys);
        }
        effects
    }

    /// Settles the events of a path against which the proof is complete.
    fn conclude_suspects(&mut self, path: Endpoint, now: Moment) -> AnswerEffects {
        let mut effects = AnswerEffects::default();
        for (key, seq, settled) in self.keys.take_proven(path, self.destination.path(path).evidence) {
            effects.rows.push((seq, settled));
            effects.keys.push(key);
        }
        if !effects.rows.is_empty() {
            self.destination.path_mut(path).trouble_explained(now);
        }
        self.unsettled += effects.rows.len();
        effects
    }

    /// Whether anything waits for the commit that settles `count` events of these ordering keys: more of their events, or
    /// the next request of anybody.
    pub fn awaits(&self, keys: &[OrderingKey], count: usize) -> bool {
        let [key] = keys else { return true };
        self.unsettled > MAX_UNSETTLED / 2 || self.keys.pending_count(*key) > count
    }

    /// Notes that the settlement of these events is durable.
    pub fn settled(&mut self, keys: &[OrderingKey], seqs: &[i64]) {
        self.unsettled -= seqs.len();
        for key in keys {
            self.keys.remove_events(*key, seqs);
            self.keys.set_ready(*key);
        }
    }

    /// A path's state as `status` shows it.
    pub fn path_view(&self, path: Endpoint, now: Moment) -> PathView<'_> {
        let (state, since, reason) = self.destination.state(path);
        let of_round = || self.destination.path(path).next_round_at(self.has_untried(path));
        let of_suspect = || self.keys.suspects(path).next().map(|(until, _)| until);
        let next = self.destination.pause_end().or_else(of_round).or_else(of_suspect);
        let is_waiting = matches!(state, DestinationState::Backoff | DestinationState::Refused);
        // One moment is the same text before and after it.
        let at = |next: Mono| match next.checked_sub(now.mono) {
            Some(wait) => now.wall.plus(wait),
            None => now.wall.minus(now.mono - next + Duration::from_nanos(999_999)),
        };
        PathView { state, since, reason, retry_at: next.filter(|_| is_waiting).map(at) }
    }
}

/// What the first suspect of a path waits for.
enum Due {
    Plan(BatchPlan),
    /// `/auth`, because nothing else has shown since the last refusal that the receiver is well.
    AskAuth,
    /// A time, or something else than time.
    At(Option<Mono>),
}

#[cfg(test)]
mod tests;
