//! The receiver is in trouble with some persons, or with one request in ten, and well otherwise.

use crate::common::agent::TestAgent;
use crate::common::proxy::{Exchange, Proxy, Treatment, treat};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// The number of good events behind the bad ones.
const GOOD: u64 = 200;
/// In a bad event.
const BAD: &str = "\"bad\":true";

pub fn in_front(scale: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for status in [400, 403, 404, 422, 500, 302] {
        for persons in scale.of(vec![3, 30], vec![1, 3, 30, 200]) {
            let most = 10 * SECOND + persons * SECOND / 2;
            figures.add(good_behind(
                scale,
                persons,
                most,
                treat(move |exchange| answer_bad(exchange, status)),
            ));
        }
    }
    for persons in scale.of(vec![20], vec![1, 3, 30, 200]) {
        figures.add(good_behind(scale, persons, MINUTE, treat(hang_bad)));
    }
    figures.into()
}

/// So many persons are treated badly, in front of the good ones, who are delivered within `most` on the agent's clock.
fn good_behind(scale: &Scale, persons: u32, most: Duration, treatment: Treatment) -> Figures {
    let mut agent = TestAgent::seeded(scale.seed, Faults::default());
    let proxy = Proxy::before(agent.receiver.addr(), treatment);
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.set("koala.timeout = \"3s\"");
    let bad = (0..persons).map(|n| (1_000 + u64::from(n), r#""bad":true,"#));
    let lines: Vec<String> = bad
        .chain((0..GOOD).map(|n| (n, "")))
        .enumerate()
        .map(|(n, (person, members))| agent.ledger.event_with(person, &format!("e-{n}"), members))
        .collect();
    agent.drop_next("ndjson", lines.join("\n"));
    agent.start();
    let good = usize::try_from(GOOD).unwrap();
    agent.pass_by_attempts_until(most, "the good ones are delivered", |agent| {
        agent.receiver.stats().held >= good
    });
    agent.until_status("they are settled", |status| status.outbox.delivered == GOOD);
    let outbox = agent.status().outbox;
    assert_eq!((outbox.pending, outbox.failed), (u64::from(persons), 0));
    agent.stop();
    agent.ledger.balance(&agent.setup, &agent.receiver.events())
}

fn is_bad(request: &[u8]) -> bool {
    memchr::memmem::find(request, BAD.as_bytes()).is_some()
}

fn answer_bad(exchange: &mut Exchange, status: u16) -> io::Result<()> {
    let request = exchange.request()?;
    let answer = match is_bad(&request) {
        true => format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").into_bytes(),
        false => exchange.forward(&request)?,
    };
    exchange.stream.write_all(&answer)
}

/// Answers nothing until the other side gives up.
fn hang_bad(exchange: &mut Exchange) -> io::Result<()> {
    let request = exchange.request()?;
    if is_bad(&request) {
        while exchange.stream.read(&mut [0; 64])? > 0 {}
        return exchange.close();
    }
    let answer = exchange.forward(&request)?;
    exchange.stream.write_all(&answer)
}

pub fn one_in_ten(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::seeded(scale.seed, Faults::default());
    let rng = Mutex::new(scale.rng());
    let proxy = Proxy::before(
        agent.receiver.addr(),
        treat(move |exchange| {
            let request = exchange.request()?;
            let answer = match rng.lock().unwrap().u8(..10) {
                0 => b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
                _ => exchange.forward(&request)?,
            };
            exchange.stream.write_all(&answer)
        }),
    );
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    let (events, persons) = scale.of((6_000, 300), (100_000, 5_000));
    agent.drop_lines(events, persons);
    agent.start();
    agent.until_stored();
    let nine_tenths = usize::try_from(events * 9 / 10).unwrap();
    agent.pass_by_attempts_until(20 * SECOND, "nine tenths are delivered", |agent| {
        agent.receiver.stats().held >= nine_tenths
    });
    agent.pass_until("all are delivered", |agent| agent.status().outbox.pending == 0);
    assert_eq!(agent.status().outbox.failed, 0);
    let requests = agent.receiver.stats().accepted_requests;
    agent.end_settled().note(format!("{requests} accepted requests for {persons} persons")).into()
}
