//! A simulated outbox, receiver and clock around the scheduler. It asserts what must hold at every moment: never two
//! requests of one person, each person's events in order, and no event failed without a proof of its own.

use super::super::*;
use crate::clock::Timestamp;
use crate::config::Concurrency;
use std::collections::{BTreeMap, BTreeSet};

/// An event as the receiver and the test know it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    pub at: u64,
    pub person: i64,
    pub path: Endpoint,
    pub kind: Kind,
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// What a request with it is answered; the receiver says what that means.
    Bad,
    /// Every request with it is answered 500.
    Cursed,
}

/// A request as the receiver sees it.
pub struct Request<'a> {
    pub at: u64,
    pub events: &'a [Arrival],
    pub bytes: usize,
    pub connections: u64,
}

/// The receiver's answer, and how long it takes, in milliseconds.
pub struct Reply {
    pub takes: u64,
    pub verdict: Verdict,
    /// Whether the receiver has taken the events, whatever it answers.
    pub is_taken: bool,
}

impl Reply {
    pub fn after(takes: u64, verdict: Verdict) -> Reply {
        let is_taken = verdict == Verdict::Accepted;
        Reply { takes, verdict, is_taken }
    }
}

type AnswerBatch = dyn FnMut(&Request<'_>, &mut fastrand::Rng) -> Reply;
type AnswerAuth = dyn FnMut(u64, &mut fastrand::Rng) -> Reply;

pub struct Receiver {
    pub batch: Box<AnswerBatch>,
    pub auth: Box<AnswerAuth>,
}

pub fn moment(ms: u64) -> Moment {
    Moment { wall: Timestamp(1_000_000_000 + ms as i64), mono: Duration::from_millis(ms) }
}

pub fn reason(code: Code) -> Reason {
    Reason::new(code, "as the test says")
}

/// A refusal of an event alone, as the test notes it: when, over which connections.
type Refused = (u64, u64);

pub struct Simulation {
    pub now: u64,
    pub scheduler: Scheduler,
    rng: fastrand::Rng,
    receiver: Receiver,
    /// Whether requests take time to be built, and commits to be durable.
    pub has_delays: bool,
    arrivals: Vec<Arrival>,
    arrived: usize,
    retries: Vec<u64>,
    outbox: BTreeMap<i64, Arrival>,
    pub events: BTreeMap<i64, Arrival>,
    searched: i64,
    building: Vec<(u64, BatchPlan)>,
    in_flight: Vec<(u64, InFlight, Vec<i64>, Verdict)>,
    auth: Option<(u64, Verdict)>,
    commits: Vec<(u64, AnswerEffects)>,
    connections: u64,
    /// The events that the receiver took, by person, in the order of the first time.
    taken: BTreeMap<i64, Vec<i64>>,
    /// When each event was delivered, and failed.
    pub delivered: BTreeMap<i64, u64>,
    pub failed: BTreeMap<i64, u64>,
    refused_alone: BTreeMap<i64, Vec<Refused>>,
    /// When the receiver accepted an event, and when it showed itself well in any way.
    accepted_at: Vec<(u64, i64)>,
    well_at: Vec<u64>,
    /// When each request was sent, the number of its events, and when `/auth` was asked.
    pub requests: Vec<(u64, usize)>,
    pub asked: Vec<u64>,
    pub most_in_flight: usize,
    good_left: usize,
    retry_after_deadline: u64,
}

impl Simulation {
    pub fn new(
        seed: u64,
        concurrency: Concurrency,
        arrivals: Vec<Arrival>,
        receiver: Receiver,
    ) -> Simulation {
        let rng = fastrand::Rng::with_seed(seed);
        let good_left = arrivals.iter().filter(|event| event.kind == Kind::Good).count();
        Simulation {
            now: 0,
            scheduler: Scheduler::new(Destination::new(concurrency, None, moment(0), rng.clone())),
            rng,
            receiver,
            has_delays: false,
            arrivals,
            arrived: 0,
            retries: Vec::new(),
            outbox: BTreeMap::new(),
            events: BTreeMap::new(),
            searched: 0,
            building: Vec::new(),
            in_flight: Vec::new(),
            auth: None,
            commits: Vec::new(),
            connections: 0,
            taken: BTreeMap::new(),
            delivered: BTreeMap::new(),
            failed: BTreeMap::new(),
            refused_alone: BTreeMap::new(),
            accepted_at: Vec::new(),
            well_at: Vec::new(),
            requests: Vec::new(),
            asked: Vec::new(),
            most_in_flight: 0,
            good_left,
            retry_after_deadline: 0,
        }
    }

    /// Has the agent retry at once at these times, which are in order.
    pub fn retry_at(&mut self, mut times: Vec<u64>) {
        times.reverse();
        self.retries = times;
    }

    /// Runs until that time, or until nothing more can happen.
    pub fn run_until(&mut self, until: u64) {
        self.run_until_fact(until, |_| false);
    }

    /// Runs until a fact holds, and returns when; `None`: not by then.
    pub fn run_until_fact(&mut self, until: u64, holds: impl Fn(&Simulation) -> bool) -> Option<u64> {
        let mut idle_calls = 0;
        self.handle_due();
        loop {
            if holds(self) {
                return Some(self.now);
            }
            idle_calls += 1;
            assert!(idle_calls < 2_000, "it loops without time or progress at {}", self.now);
            let wake = match self.scheduler.next(moment(self.now)) {
                NextAction::Start(plan) => {
                    self.start(plan);
                    continue;
                }
                NextAction::Discover => {
                    idle_calls -= usize::from(self.discover());
                    continue;
                }
                NextAction::AskAuth => {
                    assert!(self.auth.is_none(), "asked twice");
                    self.asked.push(self.now);
                    let reply = (self.receiver.auth)(self.now, &mut self.rng);
                    self.auth = Some((self.now + reply.takes, reply.verdict));
                    continue;
                }
                NextAction::Wait(wake) => wake.map(|at| at.as_nanos().div_ceil(1_000_000) as u64),
            };
            let Some(next) = self.next_time(wake).filter(|next| *next <= until) else {
                self.now = until;
                return None;
            };
            if next > self.now {
                idle_calls = 0;
            }
            self.now = self.now.max(next);
            self.handle_due();
        }
    }

    fn next_time(&self, wake: Option<u64>) -> Option<u64> {
        let times = self.in_flight.iter().map(|flight| flight.0);
        times
            .chain(self.building.iter().map(|built| built.0))
            .chain(self.commits.iter().map(|commit| commit.0))
            .chain(self.auth.iter().map(|auth| auth.0))
            .chain(self.arrivals.get(self.arrived).map(|arrival| arrival.at))
            .chain(self.retries.last().copied())
            .chain(wake)
            .min()
    }

    fn discover(&mut self) -> bool {
        let step = if self.has_delays { 3 } else { 1_000 };
        let found: Vec<_> = self
            .outbox
            .range(self.searched + 1..)
            .take(step)
            .map(|(seq, e)| (*seq, OrderingKey(e.person)))
            .collect();
        self.scheduler.set_exhausted(found.len() < step);
        let has_found = !found.is_empty();
        for (seq, key) in found {
            self.searched = seq;
            self.scheduler.discovered(QueuedItem { seq, key, owner: None });
        }
        has_found
    }

    /// Handles everything whose time has come.
    fn handle_due(&mut self) {
        while let Some(arrival) = self.arrivals.get(self.arrived).filter(|a| a.at <= self.now) {
            self.arrived += 1;
            let seq = 10 * self.arrived as i64;
            self.outbox.insert(seq, *arrival);
            self.events.insert(seq, *arrival);
            self.scheduler.set_exhausted(false);
        }
        while self.retries.pop_if(|at| *at <= self.now).is_some() {
            self.scheduler.retry_now(moment(self.now).mono);
            self.searched = 0;
            self.scheduler.set_exhausted(false);
        }
        while let Some(at) = self.commits.iter().position(|commit| commit.0 <= self.now) {
            let (_, effects) = self.commits.swap_remove(at);
            self.commit(&effects);
        }
        while let Some(at) = self.building.iter().position(|built| built.0 <= self.now) {
            let (_, plan) = self.building.swap_remove(at);
            self.send(plan);
        }
        if let Some((_, verdict)) = self.auth.take_if(|(at, _)| *at <= self.now) {
            if verdict == Verdict::Accepted {
                self.well_at.push(self.now);
            }
            let effects = self.scheduler.auth_answered(verdict, moment(self.now));
            self.apply(effects);
        }
        while let Some(at) = self.in_flight.iter().position(|flight| flight.0 <= self.now) {
            let (_, in_flight, seqs, verdict) = self.in_flight.swap_remove(at);
            self.answer(in_flight, &seqs, verdict);
        }
    }

    fn commit(&mut self, effects: &AnswerEffects) {
        for (seq, settled) in &effects.rows {
            assert!(self.outbox.remove(seq).is_some(), "{seq} is settled twice");
            match settled {
                Settled::Delivered => {
                    self.good_left -= usize::from(self.events[seq].kind == Kind::Good);
                    self.delivered.insert(*seq, self.now)
                }
                Settled::Failed(_) => self.failed.insert(*seq, self.now),
                other => panic!("{other:?}"),
            };
        }
        let seqs: Vec<i64> = effects.rows.iter().map(|(seq, _)| *seq).collect();
        self.scheduler.settled(&effects.keys, &seqs);
    }

    fn start(&mut self, plan: BatchPlan) {
        let is_busy = self.in_flight.iter().any(|flight| flight.1.plan.key == plan.key)
            || self.building.iter().any(|built| built.1.key == plan.key)
            || self.commits.iter().any(|commit| commit.1.keys.contains(&plan.key));
        assert!(!is_busy, "two requests of {:?} at {}", plan.key, self.now);
        match self.has_delays.then(|| self.rng.u64(0..6)) {
            None | Some(0 | 1) => self.send(plan),
            Some(takes) => self.building.push((self.now + 50 * takes, plan)),
        }
    }

    fn send(&mut self, plan: BatchPlan) {
        let (mut seqs, mut bytes, mut events) = (Vec::new(), 0, Vec::new());
        for seq in self.scheduler.events(plan) {
            let event = self.outbox[&seq];
            assert_eq!(event.person, plan.key.0);
            let is_full = !seqs.is_empty() && bytes + event.bytes > self.scheduler.max_bytes();
            if is_full || seqs.len() == 30 {
                break;
            }
            bytes += event.bytes;
            seqs.push(seq);
            events.push(event);
        }
        let now = moment(self.now).mono;
        if seqs.is_empty() || !self.scheduler.may_send(plan, events[0].path, now) {
            return self.scheduler.nothing_sent(plan);
        }
        assert!(self.now >= self.retry_after_deadline, "sent at {} too early", self.now);
        if self.scheduler.needs_connection(plan, self.connections) {
            self.connections += 1;
        }
        self.requests.push((self.now, seqs.len()));
        let request = Request { at: self.now, events: &events, bytes, connections: self.connections };
        let reply = (self.receiver.batch)(&request, &mut self.rng);
        if reply.is_taken {
            self.take(&seqs, &events);
        }
        let (path, connections) = (events[0].path, self.connections);
        let in_flight = self.scheduler.sent(plan, path, seqs.clone(), bytes, connections, now);
        self.in_flight.push((self.now + reply.takes, in_flight, seqs, reply.verdict));
        self.most_in_flight = self.most_in_flight.max(self.in_flight.len());
    }

    fn take(&mut self, seqs: &[i64], events: &[Arrival]) {
        let taken = self.taken.entry(events[0].person).or_default();
        for seq in seqs {
            if taken.contains(seq) {
                continue;
            }
            // An event may be overtaken by its witness only.
            let was_refused = self.refused_alone.contains_key(seq);
            assert!(was_refused || taken.last().is_none_or(|last| last < seq), "{seq} came after {taken:?}");
            taken.push(*seq);
        }
    }

    fn answer(&mut self, in_flight: InFlight, seqs: &[i64], verdict: Verdict) {
        let is_refusal =
            matches!(verdict, Verdict::Doubtful(_) | Verdict::Forbidden(_) | Verdict::TooLarge(_));
        if verdict == Verdict::Accepted {
            self.accepted_at.push((self.now, seqs[0]));
            self.well_at.push(self.now);
        } else if let (true, [seq]) = (is_refusal, seqs) {
            let refusals = self.refused_alone.entry(*seq).or_default();
            refusals.push((self.now, in_flight.connections));
        } else if let Verdict::Unavailable { retry_after: Some(pause), .. } = &verdict {
            let is_accepted_since =
                self.accepted_at.iter().any(|(at, _)| *at >= in_flight.sent_at.as_millis() as u64);
            if !is_accepted_since {
                self.retry_after_deadline =
                    self.retry_after_deadline.max(self.now + pause.as_millis() as u64);
            }
        }
        let effects = self.scheduler.answered(in_flight, verdict, moment(self.now));
        self.apply(effects);
    }

    fn apply(&mut self, effects: AnswerEffects) {
        for (seq, settled) in &effects.rows {
            if let Settled::Failed(_) = settled {
                self.assert_proven(*seq);
            }
        }
        if !effects.rows.is_empty() {
            let takes = if self.has_delays { self.rng.u64(0..50) } else { 2 };
            self.commits.push((self.now + takes, effects));
        }
    }

    /// The proof of koala-wire.md, worked out from what the receiver answered.
    fn assert_proven(&self, seq: i64) {
        let refusals = self.refused_alone.get(&seq).map_or(&[][..], Vec::as_slice);
        let mut counted: Vec<Refused> = Vec::new();
        for refusal in refusals {
            let is_well_since =
                |(since, _): &Refused| self.well_at.iter().any(|at| (*since..=refusal.0).contains(at));
            if counted.last().is_none_or(is_well_since) {
                counted.push(*refusal);
            }
        }
        let (Some(first), Some(last)) = (counted.first(), counted.last()) else {
            panic!("{seq} failed without a refusal")
        };
        let connections: BTreeSet<u64> = counted.iter().map(|(_, connections)| *connections).collect();
        let is_proven = counted.len() >= 7
            && last.0 - first.0 >= 60_000
            && connections.len() > 1
            && self.well_at.iter().any(|at| *at >= last.0)
            && self.accepted_at.iter().any(|(at, other)| (first.0..=last.0).contains(at) && *other != seq);
        assert!(is_proven, "{seq} failed at {} by {counted:?}", self.now);
    }

    /// Whether all events that may come to an end by then have.
    pub fn are_settled(&self, persons: impl Fn(i64) -> bool) -> bool {
        self.outbox.values().all(|event| !persons(event.person))
    }

    /// Whether all good events are delivered.
    pub fn are_good_delivered(&self) -> bool {
        self.good_left == 0
    }

    /// The number of events of a kind that failed.
    pub fn failed_of(&self, kind: Kind) -> usize {
        self.failed.keys().filter(|seq| self.events[*seq].kind == kind).count()
    }

    pub fn pending(&self) -> usize {
        self.outbox.len() + self.arrivals.len() - self.arrived
    }
}
