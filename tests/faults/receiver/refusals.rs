//! The receiver refuses events: one of them, every one, those that are too large.

use super::answers::refused_for_an_hour;
use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::{Faults, ReceiverStats};
use koala_agent::status::DestinationState::{Backoff, Online, Refused};
use std::collections::BTreeSet;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LONGEST_REFUSED: Duration = Duration::from_secs(990);
const POISON: &str = "poison";

/// Events of a full request.
const B: f64 = 30.0;
/// The time within which poisoned events fail while others are accepted.
const PROOF: Duration = Duration::from_secs(120);

pub fn poisoned(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut figures = Figures::default();
    let mut most = 0.0_f64;
    for round in 0..scale.of(12, 300) {
        // The very first, the very last, then one to three anywhere.
        let poisoned: BTreeSet<u64> = match round {
            0 => [0].into(),
            1 => [999].into(),
            _ => (0..=round % 3).map(|_| rng.u64(0..1_000)).collect(),
        };
        let (round, extra) = poisoned_at(scale, &poisoned);
        let each = extra as f64 / poisoned.len() as f64;
        assert!(each <= 2.0 * B.log2().ceil() + 8.0, "{extra} extra requests for {poisoned:?}");
        most = most.max(each);
        figures.add(round);
    }
    figures.note(format!("at most {most:.1} extra requests for each poisoned event")).into()
}

/// A thousand events by twenty people, of which these are poisoned, and then a trickle of others': exactly the poisoned
/// fail, and nobody else waits for that. Returns the requests that were made beyond those without poison.
fn poisoned_at(scale: &Scale, poisoned: &BTreeSet<u64>) -> (Figures, u64) {
    // Away until everything is stored, so that what goes into a request does not depend on when it is looked at.
    let mut agent = TestAgent::seeded(scale.seed, Faults { offline: true, ..Faults::default() });
    let lines: Vec<String> = (0..1_000)
        .map(|n| {
            let id = if poisoned.contains(&n) { format!("{POISON}-{n}") } else { format!("event-{n}") };
            agent.ledger.event_with(n % 20, &id, "")
        })
        .collect();
    agent.drop_next("ndjson", lines.join("\n"));
    agent.start();
    agent.until_stored();
    agent.until_destination(Backoff);
    let before = agent.receiver.stats();
    agent.receiver.set_faults(Faults { poison: Some(POISON.into()), ..Faults::default() });

    let suspects: BTreeSet<u64> = poisoned.iter().map(|n| n % 20).collect();
    let others = 1_000 - 50 * suspects.len();
    agent.pass_by_attempts_until(MINUTE, "all others' are delivered", |agent| {
        agent.receiver.stats().held >= others
    });
    let mut trickle = 0;
    let began = agent.clock.now();
    while agent.status().outbox.failed < poisoned.len() as u64 {
        let passed = agent.clock.now().since(began);
        assert!(passed < PROOF * 3, "{:?} after {passed:?}", agent.status().outbox);
        let event = agent.ledger.event_with(20 + trickle, &format!("trickle-{trickle}"), "");
        let held = agent.receiver.stats().held;
        agent.drop_next("json", event);
        agent.until("the trickle flows", |agent| agent.receiver.stats().held > held);
        trickle += 1;
        agent.pass(Duration::from_secs(2), Duration::from_secs(1));
    }
    let took = agent.clock.now().since(began);
    // Events of one person that are poisoned one after the other take their time one after the other.
    assert!(took < PROOF * poisoned.len() as u32, "{took:?}");
    agent.pass_until("all is delivered", |agent| agent.status().outbox.pending == 0);
    // Each person's fifty events in two requests, and the trickle; those to /auth are no batches.
    let after = agent.receiver.stats();
    let batches_of = |stats: &ReceiverStats| stats.accepted_requests + stats.refused_requests;
    let batches = batches_of(&after) - batches_of(&before);
    assert_failed(&agent, poisoned);
    (agent.end_settled(), batches.saturating_sub(40 + trickle))
}

/// Exactly these have failed, and each keeps the answer.
fn assert_failed(agent: &TestAgent, poisoned: &BTreeSet<u64>) {
    let outbox = agent.database();
    let sql = "SELECT message_id, reason_code, reason FROM outbox_events WHERE state = 'failed'";
    let mut rows = outbox.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let rows: Vec<(String, String, String)> = rows.map(Result::unwrap).collect();
    let ids: BTreeSet<String> = rows.iter().map(|(id, ..)| id.clone()).collect();
    assert_eq!(ids, poisoned.iter().map(|n| format!("{POISON}-{n}")).collect());
    for (id, code, reason) in rows {
        assert_eq!(code, "refused");
        assert!(reason.contains("answered 400") && reason.contains(&id), "{reason}");
    }
}

pub fn everything(scale: &Scale) -> Outcome {
    let refuse = Faults { refuse_all: Some("Koala ingest suspended".into()), ..Faults::default() };
    let mut agent = TestAgent::seeded(scale.seed, refuse);
    agent.drop_lines(10_000, 500);
    agent.start();
    agent.until_stored();
    agent.until_destination(Refused);
    agent.until("the wait is known", |agent| agent.next_attempt_in().is_some_and(|wait| wait >= MINUTE));
    let waits = agent.pass_by_attempts(HOUR);
    let asked = agent.receiver.stats().requests;
    assert!(waits.iter().all(|wait| *wait >= MINUTE) && asked <= 20, "{asked} requests, {waits:?}");
    let seen = agent.status();
    assert_eq!((seen.outbox.pending, seen.outbox.failed), (10_000, 0));
    let reason = seen.destination.reason.unwrap();
    assert_eq!((seen.destination.state, reason.code), (Refused, Code::RefusesAll));
    let answer =
        r#"the receiver answered 400: {"error":"Koala ingest suspended"}: the hosted service is shut down"#;
    assert!(reason.text.starts_with(answer), "{reason}");
    agent.receiver.set_faults(Faults::default());
    agent.pass_by_attempts_until(LONGEST_REFUSED, "all delivered", |agent| {
        agent.receiver.stats().held == 10_000
    });
    assert_eq!(agent.status().destination.state, Online);
    agent.end_settled().note(format!("{asked} requests in the hour")).into()
}

pub fn portal(scale: &Scale) -> Outcome {
    let page = Faults { html: true, ..Faults::default() };
    refused_for_an_hour(scale, page, Code::NotTheReceiver).into()
}

pub fn too_large(scale: &Scale) -> Outcome {
    let mut figures = too_large_above(scale, 2_000);
    figures.add(too_large_above(scale, 1));
    figures.into()
}

/// A size above which the receiver takes nothing. One event is larger than that alone; where all are, nobody fails.
fn too_large_above(scale: &Scale, size: usize) -> Figures {
    let mut agent = TestAgent::seeded(scale.seed, Faults { too_large: Some(size), ..Faults::default() });
    let pad = format!(r#""pad":"{}","#, "x".repeat(3_000));
    let lines: Vec<String> = (0..300)
        .map(|n| match n {
            155 => agent.ledger.event_with(5, "giant", &pad),
            _ => agent.ledger.event(n % 10),
        })
        .collect();
    agent.drop_next("ndjson", lines.join("\n"));
    agent.start();
    agent.until_stored();
    if size > 1 {
        agent.pass_by_attempts_until(MINUTE, "all others are delivered", |agent| {
            agent.receiver.stats().held == 270 + 15
        });
        // One more event shows that the receiver still accepts others.
        agent.pass(SECOND, SECOND);
        let other = agent.ledger.event(11);
        agent.drop_next("json", other);
        agent.pass_until("the large one has failed", |agent| agent.status().outbox.failed == 1);
        let reasons = agent.status().reasons;
        let failed = reasons.iter().find(|reason| reason.state == "failed").unwrap();
        assert_eq!(failed.code, Code::TooLarge.to_string());
        // The size is learnt in a few halvings, once; the large one and its neighbours take as many again.
        let refused = agent.receiver.stats().refused_requests;
        assert!((1..=20).contains(&refused), "{refused}");
        return agent
            .end_settled()
            .note(format!("{refused} requests were too large until the size was learnt"));
    }
    agent.until_destination(Refused);
    let waits = agent.pass_by_attempts(HOUR);
    let seen = agent.status();
    assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0));
    let asked = agent.receiver.stats().requests;
    // Where /auth is well, 32 persons are tried in a quarter of an hour, and it is asked before each.
    assert!(asked <= 300, "{asked} requests, {waits:?}");
    agent.receiver.set_faults(Faults::default());
    agent
        .pass_by_attempts_until(LONGEST_REFUSED, "all delivered", |agent| agent.receiver.stats().held == 300);
    agent.end_settled()
}
