//! Whose events are sent next, and what an answer does to them: the courier's judgement. Pure.
//!
//! Every person is a lane. A lane's events go out in order, one request at a time; lanes go side by side, the
//! one with the oldest event first. What the answers decide:
//!
//! - trouble: the destination as a whole waits; a lane that meets it alone three times waits alone;
//! - doubt (a 400): a trial, which finds out whether an event is at fault or everybody is refused.
//!
//! Nothing here ever gives an event up.

mod trial;

use super::destination::{Destination, Gate, backoff};
use super::lanes::Lanes;
use crate::clock::{Moment, Mono};
use crate::item::Lane;
use crate::koala::Verdict;
use crate::koala::batch::MAX_OF_A_KIND;
use crate::outbox::Settled;
use crate::reason::{Code, Reason};
use trial::{Lonely, Trial};

/// Events accepted but not yet marked, beyond which no request is begun: with those that are in flight by then, what a
/// crash may send again, in whole requests and under the same ids. Enough that requests of one event each need not wait
/// for every commit.
const MAX_UNSETTLED: usize = 400;
/// Troubles of one lane, with others taken in between, after which it waits alone.
const STRIKES: u32 = 3;
/// Memory for pending events that are known by number, so that a person's can be gathered from all over the backlog: a
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
    /// Send this, of [`Dispatch::events`], then say [`Dispatch::sent`], [`Dispatch::unsent`] or [`Dispatch::nothing`].
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
    /// The tick at which it was given.
    given: u64,
}

#[cfg(test)]
impl Order {
    /// One that nobody has judged.
    pub fn of(lane: Lane, take: Take) -> Order {
        Order { lane, take, given: 0 }
    }
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
    at: Mono,
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

/// The courier's judgement.
#[derive(Debug)]
pub struct Dispatch {
    /// How the destination is.
    pub destination: Destination,
    lanes: Lanes,
    /// Requests that were ordered and not answered, and how many of them are being made.
    in_flight: usize,
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
    trial: Option<Trial>,
    lonely: Option<Lonely>,
    /// The lane of a control or of a suspect in flight: nothing else is sent until the answer, so that what
    /// waits can serve as its control.
    decisive: Option<Lane>,
    /// The oldest event of the last request that was no control: a probe is another person's.
    last: i64,
    max_bytes: usize,
    rng: fastrand::Rng,
}

impl Dispatch {
    /// Nothing is known of the outbox yet.
    pub fn new(destination: Destination, rng: fastrand::Rng) -> Dispatch {
        Dispatch {
            destination,
            lanes: Lanes::default(),
            in_flight: 0,
            making: 0,
            unsettled: 0,
            exhausted: false,
            is_filling: true,
            tick: 0,
            entered: 0,
            renewed: 0,
            accepted: 0,
            trial: None,
            lonely: None,
            decisive: None,
            last: 0,
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
        self.lanes.discovered(seq, lane);
        self.arrived(lane);
    }

    /// Whether everything pending has been discovered; an event that is stored later says `false` again.
    pub fn exhausted(&mut self, exhausted: bool) {
        self.exhausted = exhausted;
    }

    /// Whether everything pending has been discovered, and more could be.
    pub fn knows_all(&self) -> bool {
        self.exhausted && self.lanes.bytes() < WINDOW
    }

    /// Whether there is more to be sent as soon as an answer is there.
    pub fn has_more(&self) -> bool {
        self.lanes.oldest().is_some()
    }

    /// The requests from now on go to another receiver: what the last one refused proves nothing any more.
    pub fn renewed(&mut self) {
        self.entered();
        self.renewed = self.tick;
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// What to do next.
    pub fn next(&mut self, now: Moment) -> Next {
        self.lanes.wake(now.mono);
        if self.lonely.as_ref().is_some_and(|lonely| lonely.over) {
            self.destination.reopen(now);
            self.entered();
        }
        let gate = self.destination.gate(now.mono);
        let width = match gate {
            Gate::Open(width) => width,
            Gate::Probe => 1,
            Gate::ShutUntil(_) if self.lonely.is_some() && !self.exhausted => return Next::Discover,
            Gate::ShutUntil(until) => return Next::Wait(Some(until)),
        };
        let is_full = self.in_flight >= width || self.unsettled >= MAX_UNSETTLED || self.decisive.is_some();
        // The more is known of a person, the more goes into one request; meanwhile one at a time is sent.
        self.is_filling = self.lanes.bytes() < if self.is_filling { WINDOW } else { REFILL };
        if (is_full || self.in_flight > 0) && !self.exhausted && self.is_filling {
            return Next::Discover;
        }
        if is_full {
            return Next::Wait(None);
        }
        if let Some(order) = self.order(gate == Gate::Probe) {
            return self.launch(order);
        }
        if !self.exhausted {
            self.is_filling = true;
            return Next::Discover;
        }
        if self.in_flight == 0
            && self.unsettled == 0
            && let Some(trial) = self.trial.take()
        {
            return self.without_control(trial, now);
        }
        Next::Wait(self.lanes.next_wake())
    }

    fn order(&mut self, probe: bool) -> Option<Order> {
        let lane = match &self.trial {
            Some(_) => self.lanes.control()?,
            None if probe => self.probe_lane()?,
            None => self.lanes.oldest()?,
        };
        let most = match self.lanes.suspects(lane) {
            _ if self.trial.is_some() || (probe && self.destination.refuses()) => 1,
            0 => usize::MAX,
            suspects => (suspects / 2).max(1),
        };
        Some(self.order_of(lane, Take::First(most)))
    }

    fn order_of(&mut self, lane: Lane, take: Take) -> Order {
        self.tick += 1;
        Order { lane, take, given: self.tick }
    }

    /// The next lane in the order of the spool after the last one asked, so that no two persons whose events are
    /// refused can stand in for everybody for long. `None` while others may still be discovered.
    fn probe_lane(&self) -> Option<Lane> {
        self.lanes.after(self.last).or_else(|| self.lanes.oldest().filter(|_| self.exhausted))
    }

    fn launch(&mut self, order: Order) -> Next {
        let suspected = self.lanes.suspects(order.lane) > 0;
        let oldest = self.lanes.begin(order.lane);
        if self.trial.is_none() {
            self.last = oldest.unwrap_or(self.last);
        }
        self.in_flight += 1;
        self.making += 1;
        if self.trial.is_some() || (suspected && order.take == Take::First(1)) {
            self.decisive = Some(order.lane);
        }
        Next::Launch(order)
    }

    /// Whether what was made by that order is still to be sent: not where the destination's state has changed meanwhile.
    pub fn stands(&self, order: Order) -> bool {
        order.given > self.entered
    }

    /// The events that the order is to be made of, oldest first.
    pub fn events(&self, order: Order) -> Vec<i64> {
        let (skip, most) = match order.take {
            Take::First(most) => (0, most.min(GATHER_AT_ONCE)),
            Take::Second => (1, 1),
        };
        self.lanes.events(order.lane).skip(skip).take(most).collect()
    }

    /// These of the order's events are not pending any more: somebody else has settled them.
    pub fn gone(&mut self, order: Order, seqs: &[i64]) {
        self.lanes.gone(order.lane, seqs);
    }

    /// The request of that order is on its way with these events, of so many bytes in all.
    pub fn sent(&mut self, order: Order, seqs: Vec<i64>, size: usize, at: Mono) -> Ticket {
        self.making -= 1;
        self.tick += 1;
        Ticket { order, seqs, size, at, launched: self.tick }
    }

    /// Nothing is there to be sent for that order: the events are gone, or have no second.
    pub fn nothing(&mut self, order: Order) {
        self.given_up(order);
        if order.take != Take::Second {
            self.lanes.ready(order.lane);
        }
    }

    /// These of the order's events are settled without being sent. Returns the lanes that stand still until that is
    /// durable, for [`Dispatch::settled`].
    pub fn unsent(&mut self, order: Order, seqs: &[i64]) -> Vec<Lane> {
        self.given_up(order);
        self.unsettled += seqs.len();
        match (&mut self.trial, order.take) {
            (Some(trial), Take::Second) => {
                // The trial holds the lane, and seeks another second.
                trial.sought_second = false;
                self.lanes.gone(order.lane, seqs);
                Vec::new()
            }
            _ => vec![order.lane],
        }
    }

    /// No request comes of the order.
    fn given_up(&mut self, order: Order) {
        self.making -= 1;
        self.back(order);
    }

    /// A request has come back. `true`: it was a decisive one.
    fn back(&mut self, order: Order) -> bool {
        self.in_flight -= 1;
        self.decisive.take_if(|lane| *lane == order.lane).is_some()
    }

    /// A request was answered.
    pub fn answered(&mut self, ticket: Ticket, verdict: Verdict, now: Moment) -> Outcome {
        self.tick += 1;
        let is_control = self.back(ticket.order) && self.trial.is_some();
        let current = ticket.launched > self.entered;
        let reason = match verdict {
            Verdict::Accepted => return self.accepted(ticket, is_control, current, now),
            _ if ticket.launched <= self.renewed => {
                self.again(&ticket);
                return Outcome::default();
            }
            Verdict::Trouble { reason, retry_after } => {
                if is_control {
                    self.adjourn();
                }
                if retry_after.is_some() || !self.waits_alone(&ticket, reason.code, now) {
                    self.again(&ticket);
                    if self.destination.trouble(reason.clone(), retry_after, current, now) {
                        self.entered();
                    }
                }
                reason
            }
            Verdict::Closed(reason) => {
                if is_control {
                    self.adjourn();
                }
                self.again(&ticket);
                if current {
                    self.destination.refuse(reason.clone(), now);
                    self.entered();
                }
                reason
            }
            Verdict::TooLarge(reason) if ticket.seqs.len() > 1 => {
                self.max_bytes = self.max_bytes.min(ticket.size / 2);
                self.again(&ticket);
                reason
            }
            Verdict::Doubtful(reason) | Verdict::TooLarge(reason) => {
                self.doubtful(&ticket, reason, is_control, current, now)
            }
        };
        Outcome { noted: Some((ticket.seqs, reason)), ..Outcome::default() }
    }

    fn accepted(&mut self, ticket: Ticket, is_control: bool, current: bool, now: Moment) -> Outcome {
        let lane = ticket.order.lane;
        self.destination.took(now.mono.saturating_sub(ticket.at), self.in_flight - self.making + 1);
        self.accepted += 1;
        self.lanes.begin(lane);
        self.lanes.clear(lane, ticket.seqs.len());
        let mut outcome = Outcome {
            rows: ticket.seqs.iter().map(|seq| (*seq, Settled::Delivered)).collect(),
            lanes: vec![lane],
            noted: None,
        };
        if let Some(trial) = self.trial.take_if(|_| is_control) {
            self.sentence(trial, &mut outcome);
        }
        self.unsettled += outcome.rows.len();
        if self.destination.accepted(current, now) {
            self.entered();
        }
        outcome
    }

    /// Counts a trouble against its lane. `true`: the lane now waits alone, and the destination goes on.
    fn waits_alone(&mut self, ticket: &Ticket, code: Code, now: Moment) -> bool {
        let order = ticket.order;
        let personal = matches!(code, Code::Http5xx | Code::Timeout | Code::Connect);
        if !personal || order.take == Take::Second {
            return false;
        }
        let strikes = self.lanes.strike(order.lane, self.accepted);
        if strikes < STRIKES {
            return false;
        }
        let until = now.mono + backoff(strikes, &mut self.rng);
        self.lanes.wait(order.lane, until);
        true
    }

    /// The destination's state has changed: what was found out before is found out again.
    fn entered(&mut self) {
        self.entered = self.tick;
        self.lonely = None;
        self.adjourn();
    }

    /// The request's events are to be sent again. Where it was the second event alone, its trial holds the lane.
    fn again(&mut self, ticket: &Ticket) {
        if ticket.order.take != Take::Second {
            self.lanes.ready(ticket.order.lane);
        }
    }

    /// Whether something is kept up until it is durable that so many events of these lanes are settled: more of theirs, a
    /// trial, or what anybody has to send.
    pub fn awaits(&self, lanes: &[Lane], settled: usize) -> bool {
        let [lane] = lanes else { return true };
        self.unsettled > MAX_UNSETTLED / 2 || self.trial.is_some() || self.lanes.count(*lane) > settled
    }

    /// It is durable that these events of these lanes are settled.
    pub fn settled(&mut self, lanes: &[Lane], seqs: &[i64]) {
        self.unsettled -= seqs.len();
        for lane in lanes {
            self.lanes.gone(*lane, seqs);
            self.lanes.ready(*lane);
        }
    }
}

#[cfg(test)]
mod tests;
