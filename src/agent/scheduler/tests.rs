//! The scheduler against a model: a simulated outbox, receiver and clock, driven through random scenarios.

use super::*;
use crate::clock::Timestamp;
use crate::config::Concurrency;
use crate::status::DestinationState;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const CONCURRENCY: usize = 4;
const HOUR: u64 = 3_600_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum EventKind {
    Good,
    /// Every request with it is answered 400.
    Refused,
    /// Every request with it is answered 500.
    Failing,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: u64,
    person: i64,
    kind: EventKind,
    bytes: usize,
}

/// The receiver's behaviour for a while; after all of them it is healthy.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    Healthy,
    /// This percentage is answered 503, with this Retry-After in seconds.
    Trouble(u8, Option<u64>),
    RateLimited(u64),
    /// Everything is answered 401.
    Closed,
    /// Everything is answered 400.
    RefusesAll,
    /// Larger requests than this are answered 413.
    Small(usize),
    /// Of this percentage of the accepted requests, the answer is lost.
    LosesAnswers(u8),
}

#[derive(Debug, Clone)]
struct Scenario {
    seed: u64,
    arrivals: Vec<Arrival>,
    /// Each with its length in milliseconds.
    behaviour: Vec<(u64, Behaviour)>,
    retries: Vec<u64>,
}

struct Simulation {
    scenario: Scenario,
    now: u64,
    scheduler: Scheduler,
    rng: fastrand::Rng,
    /// All pending events.
    outbox: BTreeMap<i64, Arrival>,
    arrived_events: BTreeMap<i64, Arrival>,
    arrived: usize,
    retried: usize,
    searched: i64,
    /// The plans of requests that are being built, and until when.
    building: Vec<(u64, BatchPlan)>,
    in_flight: Vec<(u64, u64, OrderingKey, InFlight, Verdict)>,
    commits: Vec<(u64, AnswerEffects)>,
    /// The events that the receiver accepted, by person, in the order of the first time.
    accepted_in_order: BTreeMap<i64, Vec<i64>>,
    delivered: BTreeSet<i64>,
    failed: BTreeSet<i64>,
    /// The number of requests sent when each event was last refused alone.
    refused_alone: BTreeMap<i64, u64>,
    sent_count: u64,
    /// When each request was sent.
    requests: Vec<u64>,
    ever_accepted: bool,
    retry_after_deadline: u64,
}

fn moment(ms: u64) -> Moment {
    Moment { wall: Timestamp(1_000_000_000 + ms as i64), mono: Duration::from_millis(ms) }
}

impl Simulation {
    fn new(scenario: Scenario) -> Simulation {
        let rng = fastrand::Rng::with_seed(scenario.seed);
        let destination = Destination::new(Concurrency::Fixed(CONCURRENCY), None, moment(0), rng.clone());
        Simulation {
            scheduler: Scheduler::new(destination, rng.clone()),
            scenario,
            now: 0,
            rng,
            outbox: BTreeMap::new(),
            arrived_events: BTreeMap::new(),
            arrived: 0,
            retried: 0,
            searched: 0,
            building: Vec::new(),
            in_flight: Vec::new(),
            commits: Vec::new(),
            accepted_in_order: BTreeMap::new(),
            delivered: BTreeSet::new(),
            failed: BTreeSet::new(),
            refused_alone: BTreeMap::new(),
            sent_count: 0,
            requests: Vec::new(),
            ever_accepted: false,
            retry_after_deadline: 0,
        }
    }

    fn behaviour(&self) -> Behaviour {
        let mut until = 0;
        for (lasts, behaviour) in &self.scenario.behaviour {
            until += lasts;
            if self.now < until {
                return *behaviour;
            }
        }
        Behaviour::Healthy
    }

    /// Runs until that time, or until nothing more can happen.
    fn run_until(&mut self, until: u64) {
        let mut idle_calls = 0;
        loop {
            idle_calls += 1;
            assert!(idle_calls < 200, "it loops without time or progress at {}", self.now);
            let wake = match self.scheduler.next(moment(self.now)) {
                NextAction::Start(plan) => {
                    self.start(plan);
                    continue;
                }
                NextAction::Discover => {
                    let found: Vec<_> = self
                        .outbox
                        .range(self.searched + 1..)
                        .take(3)
                        .map(|(seq, event)| (*seq, OrderingKey(event.person)))
                        .collect();
                    self.scheduler.set_exhausted(found.len() < 3);
                    for (seq, key) in found {
                        self.searched = seq;
                        self.scheduler.discovered(seq, key);
                        idle_calls = 0;
                    }
                    continue;
                }
                NextAction::Wait(wake) => wake.map(|at| at.as_nanos().div_ceil(1_000_000) as u64),
            };
            let next = self
                .in_flight
                .iter()
                .map(|flight| flight.0)
                .chain(self.building.iter().map(|built| built.0))
                .chain(self.commits.iter().map(|commit| commit.0))
                .chain(self.scenario.arrivals.get(self.arrived).map(|arrival| arrival.at))
                .chain(self.scenario.retries.get(self.retried).copied())
                .chain(wake)
                .min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            if next > self.now {
                idle_calls = 0;
            }
            self.now = self.now.max(next);
            self.handle_due();
        }
    }

    /// Handles everything whose time has come.
    fn handle_due(&mut self) {
        while let Some(arrival) = self.scenario.arrivals.get(self.arrived).filter(|a| a.at <= self.now) {
            self.arrived += 1;
            let seq = 10 * self.arrived as i64;
            self.outbox.insert(seq, *arrival);
            self.arrived_events.insert(seq, *arrival);
            self.scheduler.set_exhausted(false);
        }
        while self.scenario.retries.get(self.retried).is_some_and(|at| *at <= self.now) {
            self.retried += 1;
            self.scheduler.destination.retry_now();
            self.searched = 0;
            self.scheduler.set_exhausted(false);
        }
        while let Some(at) = self.commits.iter().position(|commit| commit.0 <= self.now) {
            let (_, effects) = self.commits.swap_remove(at);
            for (seq, settled) in &effects.rows {
                assert!(self.outbox.remove(seq).is_some(), "{seq} is settled twice");
                match settled {
                    Settled::Delivered => self.delivered.insert(*seq),
                    Settled::Failed(_) => self.failed.insert(*seq),
                    other => panic!("{other:?}"),
                };
            }
            let seqs: Vec<i64> = effects.rows.iter().map(|(seq, _)| *seq).collect();
            self.scheduler.settled(&effects.keys, &seqs);
        }
        while let Some(at) = self.building.iter().position(|built| built.0 <= self.now) {
            let (_, plan) = self.building.swap_remove(at);
            self.send(plan);
        }
        while let Some(at) = self.in_flight.iter().position(|flight| flight.0 <= self.now) {
            let (_, number, key, in_flight, verdict) = self.in_flight.swap_remove(at);
            self.answer(number, key, in_flight, verdict);
        }
    }

    fn start(&mut self, plan: BatchPlan) {
        let busy = self.in_flight.iter().any(|flight| flight.2 == plan.key)
            || self.building.iter().any(|built| built.1.key == plan.key)
            || self.commits.iter().any(|commit| commit.1.keys.contains(&plan.key));
        assert!(!busy, "two requests of {:?} at {}", plan.key, self.now);
        match self.rng.u64(0..6) {
            0 | 1 => self.send(plan),
            takes => self.building.push((self.now + 50 * takes, plan)),
        }
    }

    fn send(&mut self, plan: BatchPlan) {
        if !self.scheduler.is_current(plan) {
            return self.scheduler.nothing_sent(plan);
        }
        let (mut seqs, mut size, mut events) = (Vec::new(), 0, Vec::new());
        for seq in self.scheduler.events(plan) {
            let event = self.outbox[&seq];
            assert_eq!(event.person, plan.key.0);
            let full = !seqs.is_empty() && size + event.bytes > self.scheduler.max_bytes();
            if full || seqs.len() == 30 {
                break;
            }
            size += event.bytes;
            seqs.push(seq);
            events.push(event);
        }
        if seqs.is_empty() {
            return self.scheduler.nothing_sent(plan);
        }
        let limit = match self.scheduler.destination.state() {
            DestinationState::Online => CONCURRENCY,
            _ => 1,
        };
        assert!(self.in_flight.len() < limit, "{} in flight at {}", self.in_flight.len() + 1, self.now);
        assert!(
            self.now >= self.retry_after_deadline,
            "sent at {} before {}",
            self.now,
            self.retry_after_deadline
        );
        self.sent_count += 1;
        self.requests.push(self.now);
        let verdict = self.verdict(&seqs, &events, size);
        let in_flight = self.scheduler.sent(plan, seqs, size, moment(self.now).mono);
        let done = self.now + 1 + self.rng.u64(0..300);
        self.in_flight.push((done, self.sent_count, plan.key, in_flight, verdict));
    }

    fn verdict(&mut self, seqs: &[i64], events: &[Arrival], size: usize) -> Verdict {
        let reason = |code| Reason::new(code, "as the scenario says");
        let trouble = |code, pause: Option<u64>| Verdict::Trouble {
            reason: reason(code),
            retry_after: pause.map(Duration::from_secs),
        };
        let is_hit = |share: u8, rng: &mut fastrand::Rng| rng.u8(0..100) < share;
        let mut lost = false;
        match self.behaviour() {
            Behaviour::Trouble(share, pause) if is_hit(share, &mut self.rng) => {
                return trouble(Code::Http5xx, pause);
            }
            Behaviour::RateLimited(pause) => return trouble(Code::RateLimited, Some(pause)),
            Behaviour::Closed => return Verdict::Closed(reason(Code::KeyRefused)),
            Behaviour::RefusesAll => return Verdict::Doubtful(reason(Code::Refused)),
            Behaviour::Small(most) if size > most => return Verdict::TooLarge(reason(Code::TooLarge)),
            Behaviour::LosesAnswers(share) => lost = is_hit(share, &mut self.rng),
            _ => {}
        }
        if events.iter().any(|event| event.kind == EventKind::Refused) {
            return Verdict::Doubtful(reason(Code::Refused));
        }
        if events.iter().any(|event| event.kind == EventKind::Failing) {
            return trouble(Code::Http5xx, None);
        }
        for seq in seqs {
            let accepted_in_order = self.accepted_in_order.entry(events[0].person).or_default();
            if !accepted_in_order.contains(seq) {
                assert!(
                    accepted_in_order.last().is_none_or(|last| last < seq),
                    "{seq} came after {accepted_in_order:?}"
                );
                accepted_in_order.push(*seq);
            }
        }
        if lost { trouble(Code::Connect, None) } else { Verdict::Accepted }
    }

    fn answer(&mut self, number: u64, key: OrderingKey, in_flight: InFlight, verdict: Verdict) {
        let alone = (in_flight.seqs.len() == 1).then(|| in_flight.seqs[0]);
        let accepted = verdict == Verdict::Accepted;
        self.ever_accepted |= accepted;
        if let Verdict::Trouble { retry_after: Some(pause), .. } = &verdict {
            self.retry_after_deadline = self.retry_after_deadline.max(self.now + pause.as_millis() as u64);
        }
        if let (Verdict::Doubtful(_) | Verdict::TooLarge(_), Some(seq)) = (&verdict, alone) {
            self.refused_alone.insert(seq, self.sent_count);
        }
        let effects = self.scheduler.answered(in_flight, verdict, moment(self.now));
        for (seq, settled) in &effects.rows {
            if let Settled::Failed(_) = settled {
                let refused = self.refused_alone.get(seq);
                assert!(
                    accepted && refused.is_some_and(|refused| number > *refused),
                    "{seq} of {key:?} failed without a canary"
                );
            }
        }
        if !effects.rows.is_empty() {
            self.commits.push((self.now + self.rng.u64(0..50), effects));
        }
    }
}

fn arrivals(most: usize, failing: bool) -> impl Strategy<Value = Vec<Arrival>> {
    let kind = if failing {
        prop_oneof![12 => Just(EventKind::Good), 2 => Just(EventKind::Refused), 1 => Just(EventKind::Failing)]
            .boxed()
    } else {
        prop_oneof![9 => Just(EventKind::Good), 1 => Just(EventKind::Refused)].boxed()
    };
    let one = (0..20_000u64, 1..7i64, kind, prop_oneof![Just(100usize), Just(300), Just(2_000)])
        .prop_map(|(at, person, kind, bytes)| Arrival { at, person, kind, bytes });
    proptest::collection::vec(one, 1..most).prop_map(|mut all| {
        all.sort_by_key(|arrival| arrival.at);
        all
    })
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        Just(Behaviour::Healthy),
        (1..101u8, proptest::option::of(1..100u64)).prop_map(|(s, w)| Behaviour::Trouble(s, w)),
        (1..100u64).prop_map(Behaviour::RateLimited),
        Just(Behaviour::Closed),
        Just(Behaviour::RefusesAll),
        (50..2_500usize).prop_map(Behaviour::Small),
        (1..90u8).prop_map(Behaviour::LosesAnswers),
    ]
}

prop_compose! {
    fn scenario()(
        seed in any::<u64>(),
        arrivals in arrivals(60, true),
        behaviour in proptest::collection::vec((1..40_000u64, behaviour()), 0..5),
        mut retries in proptest::collection::vec(0..100_000u64, 0..3),
    ) -> Scenario {
        retries.sort_unstable();
        Scenario { seed, arrivals, behaviour, retries }
    }
}

/// Adds an event of a new person every twenty minutes, a canary for each refused event.
fn add_strangers(scenario: &mut Scenario, from: u64, count: i64) {
    scenario.arrivals.extend((0..count).map(|n| Arrival {
        at: from + n as u64 * 20 * 60_000,
        person: 100 + n,
        kind: EventKind::Good,
        bytes: 10,
    }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_event_is_lost_and_only_refused_ones_fail_with_a_canary_accepted(scenario in scenario()) {
        let mut scenario = scenario;
        let suspected = scenario.arrivals.len() as i64;
        add_strangers(&mut scenario, 3 * HOUR, suspected + 2);
        let mut simulation = Simulation::new(scenario.clone());
        simulation.run_until(3 * HOUR + (suspected as u64 + 6) * 20 * 60_000);
        let calm = scenario.behaviour.iter().all(|(_, w)| !matches!(w, Behaviour::RefusesAll | Behaviour::Small(_)));
        let failing: BTreeSet<i64> =
            simulation.arrived_events.values().filter(|event| event.kind == EventKind::Failing).map(|event| event.person).collect();
        for (seq, event) in &simulation.arrived_events {
            let settled = (simulation.delivered.contains(seq), simulation.failed.contains(seq));
            match event.kind {
                _ if failing.contains(&event.person) => {}
                EventKind::Refused => prop_assert_eq!(settled, (false, true), "poisoned {}", seq),
                _ if calm => prop_assert_eq!(settled, (true, false), "good {}", seq),
                _ => prop_assert!(settled.0 != settled.1, "{} is not settled once: {:?}", seq, settled),
            }
        }
    }

    #[test]
    fn a_receiver_that_refuses_everybody_is_tried_at_most_twenty_times_an_hour(
        seed in any::<u64>(),
        mut arrivals in arrivals(200, false),
        spread in 1..180u64,
        healthy_for in prop_oneof![Just(0u64), 1..3_000u64],
    ) {
        arrivals.iter_mut().for_each(|arrival| arrival.at *= spread);
        let behaviour = vec![(healthy_for, Behaviour::Healthy), (100 * HOUR, Behaviour::RefusesAll)];
        let mut simulation = Simulation::new(Scenario { seed, arrivals, behaviour, retries: Vec::new() });
        simulation.run_until(healthy_for + HOUR);
        let sent = simulation.requests.iter().filter(|at| **at >= healthy_for).count();
        prop_assert!(sent <= 20, "{} requests", sent);
    }
}

#[test]
fn nothing_is_sent_while_too_many_accepted_events_are_not_committed() {
    for of_a_person in [1, 30] {
        let rng = || fastrand::Rng::with_seed(1);
        let destination = Destination::new(Concurrency::Fixed(CONCURRENCY), None, moment(0), rng());
        let mut scheduler = Scheduler::new(destination, rng());
        let all = 3 * MAX_UNSETTLED as i64;
        (0..all).for_each(|seq| scheduler.discovered(seq, OrderingKey(seq / of_a_person)));
        scheduler.set_exhausted(true);
        let mut uncommitted = Vec::new();
        while let NextAction::Start(plan) = scheduler.next(moment(0)) {
            let seqs = scheduler.events(plan);
            let in_flight = scheduler.sent(plan, seqs, 100, moment(0).mono);
            uncommitted.push(scheduler.answered(in_flight, Verdict::Accepted, moment(0)));
        }
        assert_eq!(uncommitted.len(), MAX_UNSETTLED.div_ceil(of_a_person as usize));
        // This commit lets one more request be sent.
        let AnswerEffects { keys, rows, .. } = uncommitted.pop().unwrap();
        scheduler.settled(&keys, &rows.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        assert!(matches!(scheduler.next(moment(0)), NextAction::Start(_)));
    }
}
