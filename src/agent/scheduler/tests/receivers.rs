//! Receivers that misbehave, played on a simulated clock: how long the good events take, what it costs in requests, and
//! who is blamed. `cargo test --lib receivers -- --nocapture` prints the table.

#![expect(clippy::print_stdout, reason = "the table is for people")]

use super::super::*;
use super::simulation::{Arrival, Kind, Receiver, Reply, Request, Simulation, reason};
use crate::config::Concurrency;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The events of so many persons, each with that many in turn, all there at the start.
fn events(persons: std::ops::Range<i64>, each: usize, kind: Kind) -> Vec<Arrival> {
    let all = (0..each).flat_map(|_| persons.clone());
    all.map(|person| Arrival { at: 0, person, path: Endpoint::People, kind, bytes: 500 }).collect()
}

/// A good event of a new person so often, for that time.
fn trickle(every: u64, time: u64) -> Vec<Arrival> {
    let good = |at| Arrival {
        at,
        person: 1_000_000 + at as i64,
        path: Endpoint::People,
        kind: Kind::Good,
        bytes: 500,
    };
    (1..time / every).map(|n| good(n * every)).collect()
}

fn doubtful() -> Verdict {
    Verdict::Doubtful(reason(Code::Refused))
}

/// A receiver that answers after `latency`, refuses requests with a bad event by that verdict after `takes`, and whose
/// `/auth` is well.
fn refusing(latency: u64, takes: u64, verdict: Verdict) -> Receiver {
    by(move |request, _| match request.events.iter().any(|event| event.kind == Kind::Bad) {
        true => Reply::after(takes, verdict.clone()),
        false => Reply::after(latency, Verdict::Accepted),
    })
}

fn by(batch: impl FnMut(&Request<'_>, &mut fastrand::Rng) -> Reply + 'static) -> Receiver {
    Receiver { batch: Box::new(batch), auth: Box::new(|_, _| Reply::after(1, Verdict::Accepted)) }
}

struct Row {
    name: String,
    simulation: Simulation,
    good_after: u64,
    end: u64,
}

impl Row {
    /// Runs until all good events are delivered, which must be within `most`, and then to `end`.
    fn play(name: impl Into<String>, arrivals: Vec<Arrival>, receiver: Receiver, most: u64, end: u64) -> Row {
        let mut simulation = Simulation::new(7, Concurrency::Auto, arrivals, receiver);
        let good_after = simulation.run_until_fact(most, |s| s.are_good_delivered());
        let name = name.into();
        let pending = simulation.pending();
        let good_after = good_after.unwrap_or_else(|| panic!("{name}: {pending} pending after {most} ms"));
        simulation.run_until(end);
        Row { name, simulation, good_after, end }
    }

    /// Prints the row. Nobody good is ever blamed.
    fn print(&self) {
        let failed_at = self.simulation.failed.values().max().map_or(0, |at| *at);
        let blamed = self.simulation.failed_of(Kind::Good);
        println!(
            "{:<44} {:>9.2} {:>9} {:>7} {:>7} {:>9.1} {:>6}",
            self.name,
            self.good_after as f64 / 1e3,
            self.simulation.requests.len(),
            self.simulation.asked.len(),
            self.simulation.failed.len(),
            failed_at as f64 / 1e3,
            blamed
        );
        assert_eq!(blamed, 0, "{}", self.name);
        assert!(self.simulation.now >= self.end.min(self.good_after));
    }
}

fn heading() {
    println!(
        "\n{:<44} {:>9} {:>9} {:>7} {:>7} {:>9} {:>6}",
        "receiver", "good in s", "requests", "/auth", "failed", "by s", "blamed"
    );
}

/// The answers that line 37 of the faults names.
fn refusals() -> Vec<(&'static str, Verdict)> {
    vec![
        ("400", doubtful()),
        ("403", Verdict::Forbidden(reason(Code::KeyRefused))),
        ("404", Verdict::Closed(reason(Code::NotFound))),
        ("422", doubtful()),
        ("500", Verdict::Trouble(reason(Code::Http5xx))),
        ("302", Verdict::Closed(reason(Code::Redirect))),
    ]
}

#[test]
fn bad_persons_in_front_do_not_stop_the_good_ones_behind() {
    heading();
    for persons in [1, 3, 30, 200] {
        let arrivals = || {
            let mut all = events(0..persons, 1, Kind::Bad);
            all.extend(events(1_000..1_200, 1, Kind::Good));
            all
        };
        for (status, verdict) in refusals() {
            let most = 10 * SECOND + persons as u64 * SECOND / 2;
            let name = format!("{persons} persons at {status} in front of 200");
            Row::play(name, arrivals(), refusing(20, 20, verdict), most, most).print();
        }
        let hang = Verdict::Trouble(reason(Code::Timeout));
        let name = format!("{persons} persons that hang in front of 200");
        Row::play(name, arrivals(), refusing(20, 3 * SECOND, hang), MINUTE, MINUTE).print();
    }
}

#[test]
fn poisoned_events_cost_little_and_fail_while_others_are_accepted() {
    heading();
    for latency in [1, 200] {
        let healthy = {
            let receiver = refusing(latency, latency, doubtful());
            Row::play("healthy", events(0..200, 10, Kind::Good), receiver, HOUR, HOUR)
        };
        healthy.print();
        for (place, bad) in [("in front", 0..3), ("in the midst", 900..903), ("behind", 1_994..1_997)] {
            let name = format!("3 poisoned of 2,000, {place}, at {latency} ms");
            let mut arrivals = events(0..200, 10, Kind::Good);
            arrivals[bad].iter_mut().for_each(|event| event.kind = Kind::Bad);
            let poisoned: Vec<i64> =
                arrivals.iter().filter(|event| event.kind == Kind::Bad).map(|event| event.person).collect();
            arrivals.extend(trickle(SECOND, 4 * MINUTE));
            let receiver = refusing(latency, latency, doubtful());
            let mut simulation = Simulation::new(7, Concurrency::Auto, arrivals, receiver);
            let is_others = |event: &Arrival| event.at == 0 && !poisoned.contains(&event.person);
            let others = |s: &Simulation| {
                s.events.iter().all(|(seq, event)| !is_others(event) || s.delivered.contains_key(seq))
            };
            let others_after = simulation.run_until_fact(HOUR, others).unwrap();
            let slower = healthy.good_after * 11 / 10 + 4 * latency;
            assert!(others_after <= slower, "{name}: {others_after} ms, healthy {} ms", healthy.good_after);
            simulation.run_until(2 * MINUTE);
            assert_eq!((simulation.failed_of(Kind::Bad), simulation.failed.len()), (3, 3), "{name}");
            assert!(simulation.are_good_delivered() || simulation.pending() > 0, "{name}");
            // Without poison each person's ten events are one request, or two where some came behind an answer.
            let healthy_requests = healthy.simulation.requests.len() + 119;
            let extra = simulation.requests.len().saturating_sub(healthy_requests) as f64;
            let most = 3.0 * (2.0 * 30f64.log2() + 8.0);
            assert!(extra <= most, "{name}: {extra} extra requests");
            Row { name, simulation, good_after: others_after, end: 0 }.print();
        }
    }
}

#[test]
fn the_last_persons_that_wait_are_not_taken_for_everybody() {
    heading();
    for persons in [1, 2, 3, 5, 12] {
        // Each has good events around a bad one; a hundred others are delivered at once.
        let mut arrivals = events(0..100, 20, Kind::Good);
        for person in 1_000..1_000 + persons {
            let kinds = [Kind::Good, Kind::Good, Kind::Bad, Kind::Good, Kind::Good, Kind::Good];
            arrivals.extend(kinds.map(|kind| Arrival { kind, person, ..arrivals[0] }));
        }
        let name = format!("{persons} bad persons left at the end");
        let most = if persons < 6 { 100 * SECOND } else { 20 * MINUTE };
        let row = Row::play(&name, arrivals, refusing(5, 5, doubtful()), most, HOUR);
        assert_eq!(row.simulation.failed_of(Kind::Bad), persons as usize, "{name}");
        row.print();
    }
    // Nothing else was ever accepted.
    for persons in [1, 2, 5] {
        let mut arrivals = events(0..persons, 1, Kind::Bad);
        arrivals.extend(events(0..persons, 1, Kind::Good));
        let name = format!("{persons} bad persons alone, a good event behind each");
        let row = Row::play(name, arrivals, refusing(5, 5, doubtful()), 2 * MINUTE, HOUR);
        assert_eq!(row.simulation.failed_of(Kind::Bad), persons as usize);
        row.print();
    }
    // Where they are many, only another person's event ends the doubt.
    let mut arrivals = events(0..30, 1, Kind::Bad);
    arrivals.extend(events(0..30, 1, Kind::Good));
    let mut others = trickle(20 * SECOND, 4 * MINUTE);
    others.iter_mut().for_each(|event| event.at += HOUR);
    arrivals.extend(others);
    let name = "30 bad persons alone for an hour, then a trickle";
    let row = Row::play(name, arrivals, refusing(5, 5, doubtful()), HOUR + 6 * MINUTE, HOUR + 6 * MINUTE);
    assert_eq!(row.simulation.failed_of(Kind::Bad), 30);
    row.print();
    let row = Row::play("1 bad event alone", events(0..1, 1, Kind::Bad), refusing(5, 5, doubtful()), 1, HOUR);
    assert_eq!(row.simulation.failed.len(), 0);
    assert!(row.simulation.requests.len() <= 20, "{} requests", row.simulation.requests.len());
    row.print();
}

#[test]
fn one_bad_node_in_ten_slows_by_a_tenth_and_fails_nobody() {
    heading();
    let node = |share: f64| {
        by(move |_, rng| match rng.f64() < share {
            true => Reply::after(50, doubtful()),
            false => Reply::after(50, Verdict::Accepted),
        })
    };
    let arrivals = || events(0..10_000, 10, Kind::Good);
    let most = |s: &Simulation| s.delivered.len() >= 90_000;
    let mut times = Vec::new();
    for share in [0.0, 0.1] {
        let mut simulation = Simulation::new(7, Concurrency::Auto, arrivals(), node(share));
        times.push(simulation.run_until_fact(HOUR, most).unwrap());
        let good_after = simulation.run_until_fact(HOUR, |s| s.are_good_delivered()).unwrap();
        Row { name: format!("{share} of all requests at 400"), simulation, good_after, end: 0 }.print();
    }
    assert!(times[1] * 9 <= times[0] * 10, "90 % in {times:?} ms");
}

#[test]
fn an_event_is_not_failed_by_one_bad_connection() {
    heading();
    // Behind the first connections, one person's requests are refused, whatever is in them.
    let receiver = by(|request, _| match request.connections == 0 && request.events[0].person == 5 {
        true => Reply::after(5, doubtful()),
        false => Reply::after(5, Verdict::Accepted),
    });
    let mut arrivals = events(0..10, 1, Kind::Good);
    arrivals.extend(trickle(SECOND, 2 * MINUTE));
    Row::play("one bad connection", arrivals, receiver, 2 * MINUTE, 2 * MINUTE).print();
}

#[test]
fn persons_that_hang_are_tried_beside_the_others() {
    heading();
    let mut arrivals = events(0..20, 1, Kind::Bad);
    arrivals.extend(events(1_000..3_000, 1, Kind::Good));
    let hang = Verdict::Trouble(reason(Code::Timeout));
    let row = Row::play(
        "20 that hang for 30 s before 2,000",
        arrivals,
        refusing(20, 30 * SECOND, hang),
        40 * SECOND,
        HOUR,
    );
    row.print();
    // One person alone at 500: its own wait grows to a minute.
    let mut arrivals = events(0..1, 1, Kind::Cursed);
    arrivals.extend(trickle(SECOND, HOUR));
    let receiver = by(|request, _| match request.events.iter().any(|event| event.kind == Kind::Cursed) {
        true => Reply::after(5, Verdict::Trouble(reason(Code::Http5xx))),
        false => Reply::after(5, Verdict::Accepted),
    });
    let row = Row::play("1 person at 500 beside a trickle", arrivals, receiver, HOUR, HOUR);
    let good = row.simulation.delivered.len();
    let cursed = row.simulation.requests.len() - good;
    assert!((60..=160).contains(&cursed), "{cursed} requests for one person in an hour");
    row.print();
}

#[test]
fn a_suspended_receiver_is_asked_at_most_twenty_times_in_the_first_hour() {
    heading();
    for is_well in [false, true] {
        let receiver = Receiver {
            batch: Box::new(|request, _| match request.at < 2 * HOUR {
                true => Reply::after(20, doubtful()),
                false => Reply::after(20, Verdict::Accepted),
            }),
            auth: Box::new(move |at, _| match is_well || at >= 2 * HOUR {
                true => Reply::after(20, Verdict::Accepted),
                false => Reply::after(20, doubtful()),
            }),
        };
        let mut simulation = Simulation::new(7, Concurrency::Auto, events(0..500, 20, Kind::Good), receiver);
        simulation.run_until(HOUR);
        let (batches, asked) = (simulation.requests.len(), simulation.asked.len());
        match is_well {
            false => assert!(batches + asked <= 20, "{batches} requests, {asked} to /auth"),
            true => assert!(batches <= 500 + 6 + 4 * 32, "{batches} requests"),
        }
        simulation.run_until(2 * HOUR);
        assert_eq!((simulation.pending(), simulation.failed.len()), (10_000, 0));
        let good_after = simulation.run_until_fact(3 * HOUR, |s| s.are_good_delivered()).unwrap();
        assert!(good_after - 2 * HOUR <= 17 * MINUTE);
        let name = format!("suspended for two hours, /auth well: {is_well}");
        Row { name, simulation, good_after, end: 0 }.print();
    }
}

#[test]
fn a_path_that_is_missing_stops_no_other() {
    heading();
    for missing in [Endpoint::Accounts, Endpoint::People] {
        let mut arrivals = events(0..200, 5, Kind::Good);
        let bad = |event: Arrival| Arrival {
            kind: Kind::Bad,
            path: missing,
            person: event.person + 1_000,
            ..event
        };
        let other = if missing == Endpoint::People { Endpoint::Accounts } else { Endpoint::People };
        arrivals.iter_mut().for_each(|event| event.path = other);
        let mut all: Vec<Arrival> = arrivals.iter().copied().map(bad).collect();
        all.extend(arrivals);
        let name = format!("404 on {}, 1,000 events in front", missing.path());
        let row =
            Row::play(name, all, refusing(20, 20, Verdict::Closed(reason(Code::NotFound))), 5 * SECOND, HOUR);
        assert_eq!(row.simulation.failed.len(), 0);
        row.print();
    }
}

#[test]
fn slow_and_flaky_receivers_get_everything() {
    heading();
    let slow = by(|_, _| Reply::after(2 * SECOND, Verdict::Accepted));
    Row::play("2 s an answer", events(0..500, 4, Kind::Good), slow, 2 * MINUTE, 2 * MINUTE).print();
    let flaky = by(|_, rng| match rng.f64() < 0.3 {
        true => Reply::after(50, Verdict::Trouble(reason(Code::Http5xx))),
        false => Reply::after(50, Verdict::Accepted),
    });
    Row::play("0.3 of all requests at 503", events(0..500, 4, Kind::Good), flaky, MINUTE, MINUTE).print();
    let outage = by(|request, _| match (10 * SECOND..10 * MINUTE).contains(&request.at) {
        true => Reply::after(20, Verdict::Trouble(reason(Code::Http5xx))),
        false => Reply::after(20, Verdict::Accepted),
    });
    let arrivals = trickle(100, 10 * MINUTE);
    let row = Row::play("500 for ten minutes, /auth well", arrivals, outage, 11 * MINUTE, 11 * MINUTE);
    row.print();
}
