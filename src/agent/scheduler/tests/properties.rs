//! What holds for random events before receivers that behave at random.

use super::super::*;
use super::simulation::{Arrival, Kind, Receiver, Reply, Request, Simulation, reason};
use crate::config::Concurrency;
use proptest::prelude::*;
use std::collections::BTreeSet;

const HOUR: u64 = 3_600_000;

/// The receiver's behaviour for a while; after all of them it is healthy.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    Healthy,
    /// This percentage is answered 503, with this Retry-After in seconds.
    Trouble(u8, Option<u64>),
    RateLimited(u64),
    Unreachable,
    /// Everything is answered 401.
    Closed,
    /// Everything is answered 400.
    RefusesAll,
    /// This percentage is answered 400.
    Flaky(u8),
    /// Everything sent to accounts is answered 404.
    NoAccounts,
    /// Larger requests than this are answered 413.
    Small(usize),
    /// Of this percentage of the accepted requests, the answer is lost.
    LosesAnswers(u8),
}

#[derive(Debug, Clone)]
struct Scenario {
    seed: u64,
    concurrency: usize,
    arrivals: Vec<Arrival>,
    /// Each with its length in milliseconds.
    behaviour: Vec<(u64, Behaviour)>,
    has_auth: bool,
    retries: Vec<u64>,
}

fn at(behaviour: &[(u64, Behaviour)], now: u64) -> Behaviour {
    let mut until = 0;
    for (lasts, behaviour) in behaviour {
        until += lasts;
        if now < until {
            return *behaviour;
        }
    }
    Behaviour::Healthy
}

fn receiver(behaviour: Vec<(u64, Behaviour)>, has_auth: bool) -> Receiver {
    let of_auth = behaviour.clone();
    Receiver {
        batch: Box::new(move |request, rng| {
            let (takes, verdict) = (1 + rng.u64(0..300), answer(at(&behaviour, request.at), request, rng));
            let is_taken = verdict == Verdict::Accepted;
            let lost = match at(&behaviour, request.at) {
                Behaviour::LosesAnswers(share) => is_taken && rng.u8(0..100) < share,
                _ => false,
            };
            let verdict = if lost { Verdict::Trouble(reason(Code::Connect)) } else { verdict };
            Reply { takes, verdict, is_taken }
        }),
        auth: Box::new(move |now, rng| {
            let verdict = match at(&of_auth, now) {
                Behaviour::Closed => Verdict::Closed(reason(Code::KeyRefused)),
                Behaviour::Unreachable => {
                    Verdict::Unavailable { reason: reason(Code::Connect), retry_after: None }
                }
                _ if has_auth => Verdict::Accepted,
                _ => Verdict::Closed(reason(Code::NotFound)),
            };
            Reply::after(1 + rng.u64(0..300), verdict)
        }),
    }
}

fn answer(behaviour: Behaviour, request: &Request<'_>, rng: &mut fastrand::Rng) -> Verdict {
    let is_hit = |share: u8, rng: &mut fastrand::Rng| rng.u8(0..100) < share;
    let unavailable = |code, pause: Option<u64>| Verdict::Unavailable {
        reason: reason(code),
        retry_after: pause.map(Duration::from_secs),
    };
    match behaviour {
        Behaviour::Trouble(share, None) if is_hit(share, rng) => {
            return Verdict::Trouble(reason(Code::Http5xx));
        }
        Behaviour::Trouble(share, pause) if is_hit(share, rng) => return unavailable(Code::Http5xx, pause),
        Behaviour::RateLimited(pause) => return unavailable(Code::RateLimited, Some(pause)),
        Behaviour::Unreachable => return unavailable(Code::Connect, None),
        Behaviour::Closed => return Verdict::Closed(reason(Code::KeyRefused)),
        Behaviour::RefusesAll => return Verdict::Doubtful(reason(Code::Refused)),
        Behaviour::Flaky(share) if is_hit(share, rng) => return Verdict::Doubtful(reason(Code::Refused)),
        Behaviour::NoAccounts if request.events[0].path == Endpoint::Accounts => {
            return Verdict::Closed(reason(Code::NotFound));
        }
        Behaviour::Small(most) if request.bytes > most => return Verdict::TooLarge(reason(Code::TooLarge)),
        _ => {}
    }
    if request.events.iter().any(|event| event.kind == Kind::Bad) {
        return Verdict::Doubtful(reason(Code::Refused));
    }
    if request.events.iter().any(|event| event.kind == Kind::Cursed) {
        return Verdict::Trouble(reason(Code::Http5xx));
    }
    Verdict::Accepted
}

fn arrivals(most: usize, has_cursed: bool) -> impl Strategy<Value = Vec<Arrival>> {
    let cursed = u32::from(has_cursed);
    let kind = prop_oneof![12 => Just(Kind::Good), 2 => Just(Kind::Bad), cursed => Just(Kind::Cursed)];
    let bytes = prop_oneof![Just(100usize), Just(300), Just(2_000)];
    let one = (0..20_000u64, 1..13i64, kind, bytes).prop_map(|(at, person, kind, bytes)| {
        let path = if person % 4 == 0 { Endpoint::Accounts } else { Endpoint::People };
        Arrival { at, person, path, kind, bytes }
    });
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
        Just(Behaviour::Unreachable),
        Just(Behaviour::Closed),
        Just(Behaviour::RefusesAll),
        (1..90u8).prop_map(Behaviour::Flaky),
        Just(Behaviour::NoAccounts),
        (50..2_500usize).prop_map(Behaviour::Small),
        (1..90u8).prop_map(Behaviour::LosesAnswers),
    ]
}

prop_compose! {
    fn scenario()(
        seed in any::<u64>(),
        concurrency in 1..6usize,
        arrivals in arrivals(60, true),
        behaviour in proptest::collection::vec((1..100_000u64, behaviour()), 0..5),
        has_auth in any::<bool>(),
        mut retries in proptest::collection::vec(0..400_000u64, 0..3),
    ) -> Scenario {
        retries.sort_unstable();
        Scenario { seed, concurrency, arrivals, behaviour, has_auth, retries }
    }
}

/// Adds an event of a new person of each path every five seconds for a while.
fn add_strangers(arrivals: &mut Vec<Arrival>, from: u64, count: i64) {
    for n in 0..count {
        let at = from + n as u64 * 5_000;
        let stranger = |person, path| Arrival { at, person, path, kind: Kind::Good, bytes: 10 };
        arrivals.push(stranger(100 + n, Endpoint::People));
        arrivals.push(stranger(10_000 + n, Endpoint::Accounts));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each scenario ends with a healthy receiver and a trickle of others' events: within minutes every good event is
    /// delivered, and every bad one has failed, except behind a cursed one of the same person.
    #[test]
    fn every_event_is_settled_right_once_the_receiver_is_healthy(scenario in scenario()) {
        let Scenario { seed, concurrency, mut arrivals, behaviour, has_auth, retries } = scenario;
        let arrived = arrivals.clone();
        add_strangers(&mut arrivals, HOUR, 1_500);
        let receiver = receiver(behaviour.clone(), has_auth);
        let mut simulation = Simulation::new(seed, Concurrency::Fixed(concurrency), arrivals, receiver);
        simulation.has_delays = true;
        simulation.retry_at(retries);
        let cursed: BTreeSet<i64> =
            arrived.iter().filter(|event| event.kind == Kind::Cursed).map(|event| event.person).collect();
        simulation.run_until(HOUR);
        let end = HOUR + 1_500 * 5_000;
        simulation.run_until_fact(end, |s| s.are_settled(|person| !cursed.contains(&person)));
        prop_assert!(simulation.most_in_flight <= concurrency, "{} in flight", simulation.most_in_flight);
        let is_calm = behaviour.iter().all(|(_, b)| !matches!(b, Behaviour::Small(_) | Behaviour::Flaky(_)));
        for (seq, event) in simulation.events.iter().filter(|(_, event)| event.at < HOUR) {
            let settled = (simulation.delivered.contains_key(seq), simulation.failed.contains_key(seq));
            match event.kind {
                _ if cursed.contains(&event.person) => prop_assert!(settled != (true, true)),
                Kind::Bad => prop_assert_eq!(settled, (false, true), "bad {}", seq),
                _ if is_calm => prop_assert_eq!(settled, (true, false), "good {}", seq),
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
        arrivals.iter_mut().for_each(|arrival| {
            arrival.at *= spread;
            arrival.path = Endpoint::People;
        });
        let behaviour = vec![(healthy_for, Behaviour::Healthy), (100 * HOUR, Behaviour::RefusesAll)];
        let mut simulation = Simulation::new(seed, Concurrency::Fixed(4), arrivals, receiver(behaviour, false));
        simulation.has_delays = true;
        simulation.run_until(healthy_for + HOUR);
        let batches = simulation.requests.iter().filter(|(at, _)| *at >= healthy_for).count();
        let asked = simulation.asked.iter().filter(|at| **at >= healthy_for).count();
        // Those that were in flight when it was concluded come on top.
        prop_assert!(batches + asked <= 20 + 4, "{} requests, {} to /auth", batches, asked);
    }
}
