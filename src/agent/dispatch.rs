//! Whose events are sent next, and what an answer does to them: the courier's judgement. Pure.
//!
//! Every person is a lane. A lane's events go out in order, one request at a time; lanes go side by side, the
//! one with the oldest event first. What the answers decide:
//!
//! - trouble: the destination as a whole waits; a lane that meets it alone three times waits alone;
//! - doubt (a 400): first a control, the oldest waiting event of another lane. Is that refused too, everybody is:
//!   the destination is `refused` and nothing is split. Is it taken, the doubtful request is split in order until
//!   one event is refused alone, and that one has failed once a control sent after its refusal is taken.
//!
//! Nothing here ever gives an event up: an event fails by the receiver's refusal beside proof that it takes others.

use super::destination::{Destination, Gate, backoff};
use crate::clock::{Moment, Mono};
use crate::item::Lane;
use crate::koala::Verdict;
use crate::outbox::Settled;
use crate::reason::{Code, Reason};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Requests accepted but not yet marked: what a crash may send again, each whole, under the same ids.
const MAX_UNSETTLED: usize = 64;
/// 5xx answers to one lane, with others taken in between, after which it waits alone.
const STRIKES: u32 = 3;
/// Requests are kept below Segment's own limit for one, until the receiver teaches a smaller one.
const MAX_REQUEST_BYTES: usize = 500_000;
/// What the receiver can teach: no smaller, or a single event would look like a crowd.
const MIN_REQUEST_BYTES: usize = 1 << 10;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send this, then say [`Dispatch::sent`] or [`Dispatch::nothing`].
    Launch(Order),
    /// Look for lanes in the outbox, then say [`Dispatch::discovered`] and [`Dispatch::exhausted`].
    Discover,
    /// Wait for an answer, a commit, an event, or for this moment.
    Wait(Option<Mono>),
}

/// A request to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Whose events.
    pub lane: Lane,
    /// Which of them.
    pub take: Take,
}

/// Which of a lane's pending events go into the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// As many of the oldest as the rules allow, at most so many.
    First(usize),
    /// The second oldest alone: a control for the oldest, where no other person has anything.
    Second,
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    order: Order,
    /// The events in it.
    pub seqs: Vec<i64>,
    size: usize,
    launched: u64,
}

/// What an answer does, to be made durable in one commit; then say [`Dispatch::settled`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events that are settled.
    pub rows: Vec<(i64, Settled)>,
    /// Whose they are: these lanes stand still until the commit.
    pub lanes: Vec<Lane>,
    /// Events that wait on, and what they were answered with.
    pub noted: Option<(Vec<i64>, Reason)>,
}

impl Outcome {
    fn noted(seqs: Vec<i64>, reason: Reason) -> Outcome {
        Outcome { noted: Some((seqs, reason)), ..Outcome::default() }
    }
}

/// What is known of a lane that has pending events.
#[derive(Debug)]
struct State {
    place: Place,
    /// 5xx answers, and how many requests had been accepted at the last one.
    strikes: u32,
    struck_at: u64,
    /// So many of the oldest events hold one that was refused in their company.
    suspects: usize,
    doubt: Option<Doubt>,
    /// An event was found while the lane was busy.
    more: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its oldest event is this one, and may be sent.
    Ready(i64),
    /// In flight, or being marked.
    Busy,
    /// Waits alone.
    Waiting(Mono, i64),
    /// Held back by its doubt.
    Held,
}

/// Events that were refused, and nobody knows yet whether the fault is theirs.
#[derive(Debug, Clone)]
struct Doubt {
    first: i64,
    count: usize,
    refused: u64,
    reason: Reason,
    /// The lane has no second event to serve as a control.
    no_second: bool,
}

/// The courier's judgement.
#[derive(Debug)]
pub struct Dispatch {
    /// How the destination is.
    pub destination: Destination,
    lanes: HashMap<Lane, State>,
    ready: BTreeMap<i64, Lane>,
    waiting: BTreeSet<(Mono, Lane)>,
    in_flight: usize,
    unsettled: usize,
    /// Everything pending has been discovered.
    exhausted: bool,
    /// Counts launches and answers, so that it can be said what was sent after what.
    tick: u64,
    /// The tick at which the destination's state last changed.
    entered: u64,
    accepted: u64,
    /// The tick of the refusal that waits for a control.
    suspicion: Option<u64>,
    control_in_flight: bool,
    /// The oldest event of the last probe: the next one is another person's.
    last_probe: i64,
    max_bytes: usize,
    rng: fastrand::Rng,
}

impl Dispatch {
    /// Nothing is known of the outbox yet.
    pub fn new(destination: Destination, rng: fastrand::Rng) -> Dispatch {
        Dispatch {
            destination,
            lanes: HashMap::new(),
            ready: BTreeMap::new(),
            waiting: BTreeSet::new(),
            in_flight: 0,
            unsettled: 0,
            exhausted: false,
            tick: 0,
            entered: 0,
            accepted: 0,
            suspicion: None,
            control_in_flight: false,
            last_probe: 0,
            max_bytes: MAX_REQUEST_BYTES,
            rng,
        }
    }

    /// The most that a request's events may come to, but for a single one.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// A pending event was found. Events of one lane may come in any order.
    pub fn discovered(&mut self, seq: i64, lane: Lane) {
        let Some(state) = self.lanes.get_mut(&lane) else {
            let state = State {
                place: Place::Ready(seq),
                strikes: 0,
                struck_at: 0,
                suspects: 0,
                doubt: None,
                more: None,
            };
            self.lanes.insert(lane, state);
            self.ready.insert(seq, lane);
            return;
        };
        match state.place {
            Place::Ready(oldest) if seq < oldest => self.make_ready(lane, seq),
            Place::Ready(_) | Place::Waiting(..) => {}
            Place::Busy => state.more = Some(state.more.map_or(seq, |more| more.min(seq))),
            Place::Held => {
                if let Some(doubt) = &mut state.doubt {
                    doubt.no_second &= seq <= doubt.first;
                }
            }
        }
    }

    /// Whether everything pending has been discovered; an event that is stored later says `false` again.
    pub fn exhausted(&mut self, exhausted: bool) {
        self.exhausted = exhausted;
    }

    /// What to do next.
    pub fn next(&mut self, now: Moment) -> Next {
        while let Some(&(until, lane)) = self.waiting.first().filter(|(until, _)| *until <= now.mono) {
            self.waiting.remove(&(until, lane));
            if let Some(Place::Waiting(_, seq)) = self.lanes.get(&lane).map(|s| s.place) {
                self.make_ready(lane, seq);
            }
        }
        let width = match self.destination.gate(now.mono) {
            Gate::Open(width) => width,
            Gate::Probe => 1,
            Gate::ShutUntil(until) => return Next::Wait(Some(until)),
        };
        if self.in_flight >= width || self.unsettled >= MAX_UNSETTLED || self.control_in_flight {
            return Next::Wait(None);
        }
        let probe = self.destination.gate(now.mono) == Gate::Probe;
        let lane = if probe { self.probe_lane() } else { self.oldest_lane() };
        if let Some(lane) = lane {
            let Some(state) = self.lanes.get(&lane) else { return Next::Discover };
            let single = self.suspicion.is_some() || (probe && self.destination.refuses());
            let take = match state.suspects {
                _ if single => 1,
                0 => usize::MAX,
                suspects => (suspects / 2).max(1),
            };
            return self.launch(Order { lane, take: Take::First(take) });
        }
        if !self.exhausted {
            return Next::Discover;
        }
        if self.in_flight == 0 {
            if self.split_without_control() {
                return self.next(now);
            }
            if let Some(lane) = self.lane_with_second() {
                return self.launch(Order { lane, take: Take::Second });
            }
        }
        Next::Wait(self.waiting.first().map(|(until, _)| *until))
    }

    /// The lane of the oldest event. As a control serves rather one in which nothing was refused.
    fn oldest_lane(&self) -> Option<Lane> {
        let unsuspected = |lane: &&Lane| {
            self.suspicion.is_none() || self.lanes.get(lane).is_some_and(|state| state.suspects == 0)
        };
        self.ready.values().find(unsuspected).or_else(|| self.ready.values().next()).copied()
    }

    /// The next lane in the order of the spool after the last one probed, so that no two persons whose events are
    /// refused can stand in for everybody for long. `None` while others may still be discovered.
    fn probe_lane(&self) -> Option<Lane> {
        let after = self.ready.range(self.last_probe + 1..).next();
        if after.is_none() && !self.exhausted {
            return None;
        }
        after.or_else(|| self.ready.first_key_value()).map(|(_, lane)| *lane)
    }

    fn launch(&mut self, order: Order) -> Next {
        if let Some(state) = self.lanes.get_mut(&order.lane) {
            if let Place::Ready(seq) = state.place {
                self.ready.remove(&seq);
                self.last_probe = seq;
            }
            state.place = Place::Busy;
            state.more = None;
        }
        self.in_flight += 1;
        self.control_in_flight = self.suspicion.is_some();
        Next::Launch(order)
    }

    /// The request of that order is on its way with these events, of so many bytes in all.
    pub fn sent(&mut self, order: Order, seqs: Vec<i64>, size: usize) -> Ticket {
        self.tick += 1;
        Ticket { order, seqs, size, launched: self.tick }
    }

    /// Nothing was there to be sent for that order: the events are gone, settled, or have no second.
    pub fn nothing(&mut self, order: Order) {
        self.in_flight -= 1;
        self.control_in_flight = false;
        if let Some(state) = self.lanes.get_mut(&order.lane)
            && let Some(doubt) = &mut state.doubt
            && order.take == Take::Second
        {
            doubt.no_second = true;
            state.place = Place::Held;
            return;
        }
        self.release(order.lane, None);
    }

    /// A request was answered.
    pub fn answered(&mut self, ticket: Ticket, verdict: Verdict, now: Moment) -> Outcome {
        self.tick += 1;
        self.in_flight -= 1;
        // While a suspicion lasts, what is launched is a control.
        let is_control = self.suspicion.is_some_and(|refused| ticket.launched > refused)
            || ticket.order.take == Take::Second;
        if is_control {
            self.control_in_flight = false;
        }
        let current = ticket.launched > self.entered;
        match verdict {
            Verdict::Accepted => self.accepted(ticket, is_control, current, now),
            Verdict::Trouble { reason, retry_after } => {
                let lane = ticket.order.lane;
                let alone = self.strike(lane, &ticket, reason.code, now);
                if !alone {
                    self.back(&ticket);
                    if current {
                        self.destination.trouble(reason.clone(), retry_after, now);
                        self.entered = self.tick;
                    } else {
                        self.destination.stale_trouble(retry_after, now);
                    }
                }
                Outcome::noted(ticket.seqs, reason)
            }
            Verdict::Closed(reason) => {
                self.back(&ticket);
                if current || !self.destination.refuses() {
                    self.destination.refuse(reason.clone(), now);
                    self.entered = self.tick;
                }
                Outcome::noted(ticket.seqs, reason)
            }
            Verdict::TooLarge(reason) if ticket.seqs.len() > 1 => {
                self.max_bytes = self.max_bytes.min((ticket.size / 2).max(MIN_REQUEST_BYTES));
                self.back(&ticket);
                Outcome::noted(ticket.seqs, reason)
            }
            Verdict::Doubtful(reason) | Verdict::TooLarge(reason) => {
                self.doubtful(ticket, reason, is_control, now)
            }
        }
    }

    fn accepted(&mut self, ticket: Ticket, is_control: bool, current: bool, now: Moment) -> Outcome {
        let lane = ticket.order.lane;
        self.accepted += 1;
        let was = self.destination.state();
        self.destination.accepted(current, now);
        if self.destination.state() != was {
            self.entered = self.tick;
        }
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.strikes = 0;
            state.suspects = state.suspects.saturating_sub(ticket.seqs.len());
        }
        if is_control {
            self.suspicion = None;
        }
        let mut outcome = Outcome {
            rows: ticket.seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect(),
            lanes: vec![lane],
            noted: None,
        };
        // Every event refused alone before this one was sent has had its control.
        let proven: Vec<Lane> = self
            .lanes
            .iter()
            .filter(|(other, state)| {
                state.doubt.as_ref().is_some_and(|doubt| doubt.refused < ticket.launched)
                    && (**other != lane || ticket.order.take == Take::Second)
            })
            .map(|(other, _)| *other)
            .collect();
        for other in proven {
            let Some(state) = self.lanes.get_mut(&other) else { continue };
            let Some(doubt) = state.doubt.take() else { continue };
            if doubt.count > 1 {
                state.suspects = doubt.count;
                self.make_ready(other, doubt.first);
                continue;
            }
            state.suspects = 0;
            state.place = Place::Busy;
            outcome.rows.push((doubt.first, Settled::Failed(doubt.reason)));
            if other != lane {
                outcome.lanes.push(other);
            }
        }
        self.unsettled += 1;
        outcome
    }

    /// Counts a 5xx against a lane. `true`: it now waits alone, and the destination goes on.
    fn strike(&mut self, lane: Lane, ticket: &Ticket, code: Code, now: Moment) -> bool {
        let Some(state) = self.lanes.get_mut(&lane) else { return false };
        if code != Code::Http5xx || state.doubt.is_some() {
            return false;
        }
        if state.strikes == 0 || self.accepted > state.struck_at {
            state.strikes += 1;
            state.struck_at = self.accepted;
        } else if state.strikes < STRIKES {
            return false;
        }
        if state.strikes < STRIKES {
            return false;
        }
        let until = now.mono + backoff(state.strikes.saturating_mul(2), &mut self.rng);
        state.strikes += 1;
        if let Some(&first) = ticket.seqs.first() {
            state.place = Place::Waiting(until, first);
            self.waiting.insert((until, lane));
        }
        true
    }

    fn doubtful(&mut self, ticket: Ticket, reason: Reason, is_control: bool, now: Moment) -> Outcome {
        let (lane, count) = (ticket.order.lane, ticket.seqs.len());
        if is_control || self.destination.refuses_all() {
            // Two persons were refused one after the other: the fault is not theirs.
            self.clear_doubts();
            self.back(&ticket);
            let everybody = Reason::new(Code::RefusesAll, reason.text.clone());
            self.destination.refuse(everybody, now);
            self.entered = self.tick;
            return Outcome::noted(ticket.seqs, reason);
        }
        if self.destination.refuses() {
            // It refused the key or the address before; now it reads what it is sent.
            self.destination.reopen(now);
            self.entered = self.tick;
        }
        let Some(state) = self.lanes.get_mut(&lane) else { return Outcome::default() };
        let splitting = state.suspects > 0;
        if splitting && count > 1 {
            state.suspects = count;
            self.back(&ticket);
            return Outcome::noted(ticket.seqs, reason);
        }
        let Some(&first) = ticket.seqs.first() else { return Outcome::default() };
        let mut shown = reason.clone();
        if count == 1 {
            shown.text.push_str("; in doubt until the receiver takes an event that is sent after this one");
        }
        state.doubt = Some(Doubt { first, count, refused: self.tick, reason, no_second: false });
        state.place = Place::Held;
        if !splitting {
            // What follows a split is ordinary traffic, and serves as the control.
            self.suspicion.get_or_insert(self.tick);
        }
        Outcome::noted(ticket.seqs, shown)
    }

    /// With nobody else to serve as a control, a refused request can still be split: that blames nobody.
    fn split_without_control(&mut self) -> bool {
        let crowds: Vec<Lane> = self
            .lanes
            .iter()
            .filter(|(_, state)| state.doubt.as_ref().is_some_and(|doubt| doubt.count > 1))
            .map(|(lane, _)| *lane)
            .collect();
        for lane in &crowds {
            if let Some(state) = self.lanes.get_mut(lane)
                && let Some(doubt) = state.doubt.take()
            {
                state.suspects = doubt.count;
                self.make_ready(*lane, doubt.first);
            }
        }
        if !crowds.is_empty() && self.lanes.values().all(|state| state.doubt.is_none()) {
            self.suspicion = None;
        }
        !crowds.is_empty()
    }

    /// A lane whose oldest event was refused alone, and which may have another to serve as its control.
    fn lane_with_second(&self) -> Option<Lane> {
        let held = |state: &State| {
            state.place == Place::Held && state.doubt.as_ref().is_some_and(|doubt| !doubt.no_second)
        };
        self.lanes.iter().find(|(_, state)| held(state)).map(|(lane, _)| *lane)
    }

    fn clear_doubts(&mut self) {
        self.suspicion = None;
        let doubts: Vec<(Lane, i64)> = self
            .lanes
            .iter_mut()
            .filter_map(|(lane, state)| {
                state.suspects = 0;
                state.doubt.take().map(|doubt| (*lane, doubt.first))
            })
            .collect();
        for (lane, first) in doubts {
            self.make_ready(lane, first);
        }
    }

    /// The request's events wait again.
    fn back(&mut self, ticket: &Ticket) {
        let lane = ticket.order.lane;
        match self.lanes.get_mut(&lane) {
            Some(state) if state.doubt.is_some() => state.place = Place::Held,
            Some(State { place: Place::Busy, .. }) => {
                if let Some(&first) = ticket.seqs.first() {
                    self.make_ready(lane, first);
                }
            }
            _ => {}
        }
    }

    /// An outcome with rows is durable. `next`: the oldest event that each of its lanes still has.
    pub fn settled(&mut self, next: Vec<(Lane, Option<i64>)>) {
        self.unsettled -= 1;
        for (lane, next) in next {
            self.release(lane, next);
        }
    }

    fn release(&mut self, lane: Lane, next: Option<i64>) {
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        let next = [next, state.more.take()].into_iter().flatten().min();
        match next {
            Some(seq) => self.make_ready(lane, seq),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    fn make_ready(&mut self, lane: Lane, seq: i64) {
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        if let Place::Ready(old) = state.place {
            self.ready.remove(&old);
        }
        state.place = Place::Ready(seq);
        self.ready.insert(seq, lane);
    }
}
