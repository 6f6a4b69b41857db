//! Answers that say "later", and answers that say "not with this key, not here".

use crate::common::agent::TestAgent;
use crate::common::ledger::Ledger;
use crate::common::proxy::{Proxy, treat};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::{Backoff, Online, Refused};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The longest wait between two attempts at a receiver that refuses: a quarter of an hour, and a tenth of that.
const LONGEST_REFUSED: Duration = Duration::from_secs(990);

/// Time for a request that should not come.
const A_MOMENT: Duration = Duration::from_millis(30);

pub fn pauses(scale: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for status in [429, 503] {
        for (wish, pause) in [
            ("7", 7),
            ("6.5", 7),
            ("6.000", 6),
            ("date", 1_000),
            ("far date", 3600),
            ("0", 0),
            ("-1", 0),
            ("1000000000", 3600),
            ("1e9", 0),
            ("soon", 0),
        ] {
            figures.add(pause_of(scale, status, wish, Duration::from_secs(pause)));
        }
    }
    figures.into()
}

/// The receiver asks for a pause, and the agent is started again in the midst of it.
fn pause_of(scale: &Scale, status: u16, wish: &str, pause: Duration) -> Figures {
    let mut agent = TestAgent::seeded(scale.seed, Faults::default());
    let date = |after: u64| {
        let now = u64::try_from(agent.clock.now().0).unwrap();
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(now) + Duration::from_secs(after))
    };
    let retry_after = match wish {
        "date" => date(1_000),
        "far date" => date(100_000),
        wish => wish.to_owned(),
    };
    let asks = Faults { status: Some(status), retry_after: Some(retry_after), ..Faults::default() };
    agent.receiver.set_faults(asks);
    agent.drop_lines(20, 5);
    agent.start();
    agent.until_stored();
    agent.until_destination(Backoff);
    let wait = agent.next_attempt_in().unwrap();
    // A wait that the receiver does not ask for is the first of the agent's own.
    let most = if pause.is_zero() { SECOND } else { pause + SECOND / 10 };
    assert!((pause..=most).contains(&wait), "{status}, {wish}: {wait:?}");

    if !pause.is_zero() {
        assert_eq!(agent.receiver.stats().requests, 1);
        let early = pause.saturating_sub(SECOND);
        agent.advance(early / 2);
        agent.stop();
        agent.receiver.set_faults(Faults::default());
        agent.start();
        agent.advance(early / 2);
        agent.sleep(A_MOMENT);
        let next = agent.next_attempt_in();
        assert_eq!(agent.receiver.stats().requests, 1, "{wish}: asked {next:?} too early");
    }

    agent.receiver.set_faults(Faults::default());
    agent.pass_by_attempts_until(2 * SECOND, "all delivered", |agent| agent.receiver.stats().held == 20);
    agent.end_settled()
}

pub fn trouble(scale: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for status in [500, 502, 503, 504, 408, 425, 429] {
        let mut agent = TestAgent::seeded(scale.seed, Faults { status: Some(status), ..Faults::default() });
        agent.drop_lines(300, 50);
        agent.start();
        agent.until_stored();
        agent.until_destination(Backoff);
        let waits = agent.pass_by_attempts(HOUR);
        assert!(waits.iter().all(|wait| *wait <= MINUTE), "{status}: {waits:?}");
        assert!(waits.len() > 60, "{status}: {} attempts", waits.len());
        let seen = agent.status();
        assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0), "{status}");
        assert_eq!(seen.destination.state, Backoff);
        agent.receiver.set_faults(Faults::default());
        agent.pass_by_attempts_until(MINUTE, "all delivered", |agent| agent.receiver.stats().held == 300);
        figures.add(agent.end_settled());
    }
    figures.into()
}

/// The text in the one event that is always answered 500.
const CURSED: &str = "cursed";

pub fn trouble_for_one(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::seeded(scale.seed, Faults::default());
    let (lifted, proxy) = cursing_proxy(&agent);
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    let cursed_person = 7;
    let lines: Vec<String> = (0..200)
        .map(|n| match n {
            67 => agent.ledger.event_with(cursed_person, CURSED, ""),
            _ => agent.ledger.event(n % 20),
        })
        .collect();
    agent.drop_next("ndjson", lines.join("\n"));
    agent.start();
    agent.until_stored();
    let held = |agent: &TestAgent| agent.receiver.stats().held;
    agent.pass_by_attempts_until(10 * MINUTE, "all others' are delivered", |agent| {
        agent.receiver.stats().held >= 190
    });
    let mut late = 0;
    for minute in 0..60 {
        let before = held(&agent);
        let event = agent.ledger.event(minute % 5);
        agent.drop_next("ndjson", event);
        agent.until_stored();
        let took = agent.pass_until("others go on", |agent| agent.receiver.stats().held > before);
        late += u32::from(took > MINUTE);
        agent.advance(MINUTE.saturating_sub(took));
    }
    // A machine that stands still while the clock goes on makes some late.
    assert!(late <= 10, "{late} of 60 events of others waited for more than a minute");
    agent.until_status("others' are settled", |status| status.outbox.pending <= 10);
    let seen = agent.status();
    assert!(seen.outbox.failed == 0 && seen.outbox.pending > 0, "{seen:#?}");
    assert!(only_of(&agent.ledger, cursed_person, &agent), "others wait as well");
    lifted.store(true, Relaxed);
    let all = agent.ledger.dropped.len();
    agent.pass_until("all delivered", |agent| agent.receiver.stats().held == all);
    agent.end_settled().into()
}

/// A proxy that answers 500 to a request with the cursed event until the curse is lifted.
fn cursing_proxy(agent: &TestAgent) -> (Arc<AtomicBool>, Proxy) {
    let lifted = Arc::new(AtomicBool::new(false));
    let is_lifted = lifted.clone();
    let proxy = Proxy::before(
        agent.receiver.addr(),
        treat(move |exchange| {
            let request = exchange.request()?;
            let cursed = memchr::memmem::find(&request, CURSED.as_bytes()).is_some();
            let answer = match cursed && !is_lifted.load(Relaxed) {
                true => b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
                false => exchange.forward(&request)?,
            };
            exchange.stream.write_all(&answer)
        }),
    );
    (lifted, proxy)
}

/// Whether everything that the receiver does not hold is that person's.
fn only_of(ledger: &Ledger, person: u64, agent: &TestAgent) -> bool {
    let held: Vec<u64> = agent.receiver.events().iter().map(|held| number(held.item.get())).collect();
    ledger.dropped.iter().all(|(n, dropped)| dropped.person == person.to_string() || held.contains(n))
}

fn number(item: &str) -> u64 {
    let item: serde_json::Value = serde_json::from_str(item).unwrap();
    item["properties"]["n"].as_u64().unwrap()
}

pub fn closed(scale: &Scale) -> Outcome {
    let mut figures = Figures::default();
    let answering = |status| Faults { status: Some(status), ..Faults::default() };
    for (status, code) in [
        (401, Code::KeyRefused),
        (403, Code::KeyRefused),
        (404, Code::NotFound),
        (405, Code::NotFound),
        (410, Code::NotFound),
        (302, Code::Redirect),
    ] {
        figures.add(refused_for_an_hour(scale, answering(status), code));
    }
    figures.into()
}

/// Nobody fails, it is tried at most once a minute, and it goes on by itself.
pub fn refused_for_an_hour(scale: &Scale, faults: Faults, code: Code) -> Figures {
    let mut agent = TestAgent::seeded(scale.seed, faults);
    agent.drop_lines(300, 50);
    agent.start();
    agent.until_stored();
    agent.until_destination(Refused);
    agent.until("/auth was asked", |agent| agent.receiver.stats().requests == 2);
    agent.until("the wait is known", |agent| agent.next_attempt_in().is_some_and(|wait| wait >= MINUTE));
    let waits = agent.pass_by_attempts(HOUR);
    assert!(waits.iter().all(|wait| (MINUTE..=LONGEST_REFUSED).contains(wait)), "{code}: {waits:?}");
    // Each attempt asks /auth, and then for one person.
    let attempts = waits.len() as u64;
    agent.until("the last attempt", |agent| agent.receiver.stats().requests == 2 + 2 * attempts);
    let seen = agent.status();
    assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0), "{code}");
    assert_eq!((seen.destination.state, seen.destination.reason.unwrap().code), (Refused, code));
    agent.receiver.set_faults(Faults::default());
    agent
        .pass_by_attempts_until(LONGEST_REFUSED, "all delivered", |agent| agent.receiver.stats().held == 300);
    assert_eq!(agent.status().destination.state, Online);
    agent.end_settled()
}
