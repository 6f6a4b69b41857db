//! The judgement against a model: an outbox, a receiver and a clock, driven through random weather.

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
enum Kind {
    Good,
    /// Refused in whatever company.
    Poison,
    /// Answered 500, for ever.
    Cursed,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: u64,
    person: i64,
    kind: Kind,
    bytes: usize,
}

/// What the receiver does for a while; afterwards it is well.
#[derive(Debug, Clone, Copy)]
enum Weather {
    Well,
    /// So many per cent are answered 503, with that Retry-After in seconds.
    Trouble(u8, Option<u64>),
    RateLimited(u64),
    /// 401.
    Closed,
    /// 400 to everything.
    RefusesAll,
    /// 413 above so many bytes.
    Small(usize),
    /// So many per cent are taken, and the answer is lost.
    LosesAnswers(u8),
}

#[derive(Debug, Clone)]
struct Story {
    seed: u64,
    arrivals: Vec<Arrival>,
    /// Each lasts for so many milliseconds.
    weather: Vec<(u64, Weather)>,
    kicks: Vec<u64>,
}

struct World {
    story: Story,
    now: u64,
    scheduler: Scheduler,
    rng: fastrand::Rng,
    /// Everything pending.
    outbox: BTreeMap<i64, Arrival>,
    kinds: BTreeMap<i64, Arrival>,
    arrived: usize,
    retried_now: usize,
    searched: i64,
    /// Requests that are being made, and until when.
    making: Vec<(u64, BatchPlan)>,
    in_flight: Vec<(u64, u64, OrderingKey, InFlight, Verdict)>,
    commits: Vec<(u64, AnswerEffects)>,
    /// By person, what the receiver took, in the order of the first time.
    taken: BTreeMap<i64, Vec<i64>>,
    delivered: BTreeSet<i64>,
    failed: BTreeSet<i64>,
    /// When each event was last refused alone.
    refused_alone: BTreeMap<i64, u64>,
    /// The number of the launch, and when a request after it was last accepted.
    launches: u64,
    requests: Vec<u64>,
    ever_accepted: bool,
    retry_after_deadline: u64,
}

fn moment(ms: u64) -> Moment {
    Moment { wall: Timestamp(1_000_000_000 + ms as i64), mono: Duration::from_millis(ms) }
}

impl World {
    fn new(story: Story) -> World {
        let rng = fastrand::Rng::with_seed(story.seed);
        let destination = Destination::new(Concurrency::Fixed(CONCURRENCY), None, moment(0), rng.clone());
        World {
            scheduler: Scheduler::new(destination, rng.clone()),
            story,
            now: 0,
            rng,
            outbox: BTreeMap::new(),
            kinds: BTreeMap::new(),
            arrived: 0,
            retried_now: 0,
            searched: 0,
            making: Vec::new(),
            in_flight: Vec::new(),
            commits: Vec::new(),
            taken: BTreeMap::new(),
            delivered: BTreeSet::new(),
            failed: BTreeSet::new(),
            refused_alone: BTreeMap::new(),
            launches: 0,
            requests: Vec::new(),
            ever_accepted: false,
            retry_after_deadline: 0,
        }
    }

    fn weather(&self) -> Weather {
        let mut until = 0;
        for (lasts, weather) in &self.story.weather {
            until += lasts;
            if self.now < until {
                return *weather;
            }
        }
        Weather::Well
    }

    /// Lives until then, or until nothing more can happen.
    fn live(&mut self, until: u64) {
        let mut idle_calls = 0;
        loop {
            idle_calls += 1;
            assert!(idle_calls < 200, "it turns without time or progress at {}", self.now);
            let wake = match self.scheduler.next(moment(self.now)) {
                Next::Start(plan) => {
                    self.start(plan);
                    continue;
                }
                Next::Discover => {
                    let found: Vec<_> = self
                        .outbox
                        .range(self.searched + 1..)
                        .take(3)
                        .map(|(seq, event)| (*seq, OrderingKey(event.person)))
                        .collect();
                    self.scheduler.exhausted(found.len() < 3);
                    for (seq, key) in found {
                        self.searched = seq;
                        self.scheduler.discovered(seq, key);
                        idle_calls = 0;
                    }
                    continue;
                }
                Next::Wait(wake) => wake.map(|at| at.as_nanos().div_ceil(1_000_000) as u64),
            };
            let next = self
                .in_flight
                .iter()
                .map(|flight| flight.0)
                .chain(self.making.iter().map(|made| made.0))
                .chain(self.commits.iter().map(|commit| commit.0))
                .chain(self.story.arrivals.get(self.arrived).map(|arrival| arrival.at))
                .chain(self.story.kicks.get(self.retried_now).copied())
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
            self.happen();
        }
    }

    /// Everything whose time has come.
    fn happen(&mut self) {
        while let Some(arrival) = self.story.arrivals.get(self.arrived).filter(|a| a.at <= self.now) {
            self.arrived += 1;
            let seq = 10 * self.arrived as i64;
            self.outbox.insert(seq, *arrival);
            self.kinds.insert(seq, *arrival);
            self.scheduler.exhausted(false);
        }
        while self.story.kicks.get(self.retried_now).is_some_and(|at| *at <= self.now) {
            self.retried_now += 1;
            self.scheduler.destination.retry_now();
            self.searched = 0;
            self.scheduler.exhausted(false);
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
        while let Some(at) = self.making.iter().position(|made| made.0 <= self.now) {
            let (_, plan) = self.making.swap_remove(at);
            self.made(plan);
        }
        while let Some(at) = self.in_flight.iter().position(|flight| flight.0 <= self.now) {
            let (_, number, key, in_flight, verdict) = self.in_flight.swap_remove(at);
            self.answer(number, key, in_flight, verdict);
        }
    }

    fn start(&mut self, plan: BatchPlan) {
        let busy = self.in_flight.iter().any(|flight| flight.2 == plan.key)
            || self.making.iter().any(|made| made.1.key == plan.key)
            || self.commits.iter().any(|commit| commit.1.keys.contains(&plan.key));
        assert!(!busy, "two requests of {:?} at {}", plan.key, self.now);
        match self.rng.u64(0..6) {
            0 | 1 => self.made(plan),
            takes => self.making.push((self.now + 50 * takes, plan)),
        }
    }

    fn made(&mut self, plan: BatchPlan) {
        if !self.scheduler.stands(plan) {
            return self.scheduler.nothing(plan);
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
            return self.scheduler.nothing(plan);
        }
        let width = match self.scheduler.destination.state() {
            DestinationState::Online => CONCURRENCY,
            _ => 1,
        };
        assert!(self.in_flight.len() < width, "{} in flight at {}", self.in_flight.len() + 1, self.now);
        assert!(
            self.now >= self.retry_after_deadline,
            "asked at {} before {}",
            self.now,
            self.retry_after_deadline
        );
        self.launches += 1;
        self.requests.push(self.now);
        let verdict = self.verdict(&seqs, &events, size);
        let in_flight = self.scheduler.sent(plan, seqs, size, moment(self.now).mono);
        let done = self.now + 1 + self.rng.u64(0..300);
        self.in_flight.push((done, self.launches, plan.key, in_flight, verdict));
    }

    fn verdict(&mut self, seqs: &[i64], events: &[Arrival], size: usize) -> Verdict {
        let reason = |code| Reason::new(code, "as the weather is");
        let trouble = |code, wish: Option<u64>| Verdict::Trouble {
            reason: reason(code),
            retry_after: wish.map(Duration::from_secs),
        };
        let struck = |share: u8, rng: &mut fastrand::Rng| rng.u8(0..100) < share;
        let mut lost = false;
        match self.weather() {
            Weather::Trouble(share, wish) if struck(share, &mut self.rng) => {
                return trouble(Code::Http5xx, wish);
            }
            Weather::RateLimited(wish) => return trouble(Code::RateLimited, Some(wish)),
            Weather::Closed => return Verdict::Closed(reason(Code::KeyRefused)),
            Weather::RefusesAll => return Verdict::Doubtful(reason(Code::Refused)),
            Weather::Small(most) if size > most => return Verdict::TooLarge(reason(Code::TooLarge)),
            Weather::LosesAnswers(share) => lost = struck(share, &mut self.rng),
            _ => {}
        }
        if events.iter().any(|event| event.kind == Kind::Poison) {
            return Verdict::Doubtful(reason(Code::Refused));
        }
        if events.iter().any(|event| event.kind == Kind::Cursed) {
            return trouble(Code::Http5xx, None);
        }
        for seq in seqs {
            let taken = self.taken.entry(events[0].person).or_default();
            if !taken.contains(seq) {
                assert!(taken.last().is_none_or(|last| last < seq), "{seq} came after {taken:?}");
                taken.push(*seq);
            }
        }
        if lost { trouble(Code::Connect, None) } else { Verdict::Accepted }
    }

    fn answer(&mut self, number: u64, key: OrderingKey, in_flight: InFlight, verdict: Verdict) {
        let alone = (in_flight.seqs.len() == 1).then(|| in_flight.seqs[0]);
        let accepted = verdict == Verdict::Accepted;
        self.ever_accepted |= accepted;
        if let Verdict::Trouble { retry_after: Some(wish), .. } = &verdict {
            self.retry_after_deadline = self.retry_after_deadline.max(self.now + wish.as_millis() as u64);
        }
        if let (Verdict::Doubtful(_) | Verdict::TooLarge(_), Some(seq)) = (&verdict, alone) {
            self.refused_alone.insert(seq, self.launches);
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

fn arrivals(most: usize, cursed: bool) -> impl Strategy<Value = Vec<Arrival>> {
    let kind = if cursed {
        prop_oneof![12 => Just(Kind::Good), 2 => Just(Kind::Poison), 1 => Just(Kind::Cursed)].boxed()
    } else {
        prop_oneof![9 => Just(Kind::Good), 1 => Just(Kind::Poison)].boxed()
    };
    let one = (0..20_000u64, 1..7i64, kind, prop_oneof![Just(100usize), Just(300), Just(2_000)])
        .prop_map(|(at, person, kind, bytes)| Arrival { at, person, kind, bytes });
    proptest::collection::vec(one, 1..most).prop_map(|mut all| {
        all.sort_by_key(|arrival| arrival.at);
        all
    })
}

fn weather() -> impl Strategy<Value = Weather> {
    prop_oneof![
        Just(Weather::Well),
        (1..101u8, proptest::option::of(1..100u64)).prop_map(|(s, w)| Weather::Trouble(s, w)),
        (1..100u64).prop_map(Weather::RateLimited),
        Just(Weather::Closed),
        Just(Weather::RefusesAll),
        (50..2_500usize).prop_map(Weather::Small),
        (1..90u8).prop_map(Weather::LosesAnswers),
    ]
}

prop_compose! {
    fn story()(
        seed in any::<u64>(),
        arrivals in arrivals(60, true),
        weather in proptest::collection::vec((1..40_000u64, weather()), 0..5),
        mut kicks in proptest::collection::vec(0..100_000u64, 0..3),
    ) -> Story {
        kicks.sort_unstable();
        Story { seed, arrivals, weather, kicks }
    }
}

/// People nobody has heard of, one every twenty minutes: a canary for each that is in doubt.
fn passers_by(story: &mut Story, from: u64, count: i64) {
    story.arrivals.extend((0..count).map(|n| Arrival {
        at: from + n as u64 * 20 * 60_000,
        person: 100 + n,
        kind: Kind::Good,
        bytes: 10,
    }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_weather_nothing_is_lost_and_only_what_is_refused_beside_others_fails(story in story()) {
        let mut story = story;
        let doubts = story.arrivals.len() as i64;
        passers_by(&mut story, 3 * HOUR, doubts + 2);
        let mut world = World::new(story.clone());
        world.live(3 * HOUR + (doubts as u64 + 6) * 20 * 60_000);
        let calm = story.weather.iter().all(|(_, w)| !matches!(w, Weather::RefusesAll | Weather::Small(_)));
        let cursed: BTreeSet<i64> =
            world.kinds.values().filter(|event| event.kind == Kind::Cursed).map(|event| event.person).collect();
        for (seq, event) in &world.kinds {
            let settled = (world.delivered.contains(seq), world.failed.contains(seq));
            match event.kind {
                _ if cursed.contains(&event.person) => {}
                Kind::Poison => prop_assert_eq!(settled, (false, true), "poisoned {}", seq),
                _ if calm => prop_assert_eq!(settled, (true, false), "good {}", seq),
                _ => prop_assert!(settled.0 != settled.1, "{} is not settled once: {:?}", seq, settled),
            }
        }
    }

    #[test]
    fn a_receiver_that_refuses_everybody_is_asked_at_most_twenty_times_an_hour(
        seed in any::<u64>(),
        mut arrivals in arrivals(200, false),
        spread in 1..180u64,
        well_for in prop_oneof![Just(0u64), 1..3_000u64],
    ) {
        arrivals.iter_mut().for_each(|arrival| arrival.at *= spread);
        let weather = vec![(well_for, Weather::Well), (100 * HOUR, Weather::RefusesAll)];
        let mut world = World::new(Story { seed, arrivals, weather, kicks: Vec::new() });
        world.live(well_for + HOUR);
        let asked = world.requests.iter().filter(|at| **at >= well_for).count();
        prop_assert!(asked <= 20, "{} requests", asked);
    }
}

#[test]
fn what_is_accepted_and_not_marked_holds_up_the_rest() {
    for of_a_person in [1, 30] {
        let rng = || fastrand::Rng::with_seed(1);
        let destination = Destination::new(Concurrency::Fixed(CONCURRENCY), None, moment(0), rng());
        let mut scheduler = Scheduler::new(destination, rng());
        let all = 3 * MAX_UNSETTLED as i64;
        (0..all).for_each(|seq| scheduler.discovered(seq, OrderingKey(seq / of_a_person)));
        scheduler.exhausted(true);
        let mut unmarked = Vec::new();
        while let Next::Start(plan) = scheduler.next(moment(0)) {
            let seqs = scheduler.events(plan);
            let in_flight = scheduler.sent(plan, seqs, 100, moment(0).mono);
            unmarked.push(scheduler.answered(in_flight, Verdict::Accepted, moment(0)));
        }
        assert_eq!(unmarked.len(), MAX_UNSETTLED.div_ceil(of_a_person as usize));
        // Enough is marked for one more request to be sent.
        let AnswerEffects { keys, rows, .. } = unmarked.pop().unwrap();
        scheduler.settled(&keys, &rows.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        assert!(matches!(scheduler.next(moment(0)), Next::Start(_)));
    }
}
