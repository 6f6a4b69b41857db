//! Nobody listens where the receiver was.

use crate::common::agent::TestAgent;
use crate::runner::{Outcome, Scale};
use crate::tracer::Calls;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState;
use std::time::Duration;
use tokio::net::TcpSocket;

/// Events that wait for its return.
const EVENTS: u64 = 10_000;
const LINES: usize = 10;
/// System calls in a second that waiting for the receiver may cost.
const CALLS: u64 = 200;
/// The longest wait after trouble.
const LONGEST: Duration = Duration::from_secs(60);

pub fn refused(_: &Scale) -> Outcome {
    let mut agent = TestAgent::driven(Faults::default());
    let port = agent.take_receiver_away();
    agent.drop_lines(EVENTS, 500);
    agent.start();
    agent.until_stored();
    agent.until_destination(DestinationState::Backoff);

    let waits = agent.pass_by_attempts(Duration::from_secs(600));
    for (n, wait) in waits.iter().enumerate() {
        let most = Duration::from_millis(100 << n.min(16)).min(LONGEST);
        assert!(*wait <= most, "wait {n} of {waits:?}");
    }
    // Ten waits double, the rest are half a minute on average.
    assert!((13..=60).contains(&waits.len()), "{waits:?}");
    assert_eq!(agent.status().outbox.pending, EVENTS);

    let at = port.local_addr().unwrap();
    agent.receive_at(at);
    let all = usize::try_from(EVENTS).unwrap();
    agent.pass_by_attempts_until(LONGEST, "all delivered", |agent| agent.receiver.stats().held == all);
    let figures = agent.end_settled();
    let log = agent.log();
    let lines = log.lines().count();
    assert!(lines <= LINES, "{log}");
    figures.note(format!("{} attempts, {lines} lines of log", waits.len())).into()
}

pub fn refused_for_real(scale: &Scale) -> Outcome {
    let time = Duration::from_secs(scale.of(10, 600));
    let mut agent = TestAgent::program(Faults::default());
    // A port that is bound and not listened at refuses, and is nobody else's.
    let port = TcpSocket::new_v4().unwrap();
    port.set_reuseaddr(true).unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = port.local_addr().unwrap();
    agent.set(&format!("koala.endpoint = \"http://{at}\""));
    agent.drop_lines(EVENTS, 500);
    agent.start();
    agent.until_status("all is stored", |status| status.outbox.pending == EVENTS);
    // The work of the start is over once the log is empty but for its mark.
    let log = agent.path("state/outbox.db-wal");
    agent.until("an idle agent", |_| std::fs::metadata(&log).is_ok_and(|log| log.len() <= 16 << 10));
    std::thread::sleep(Duration::from_secs(2));

    let calls = match Calls::during(&agent, time) {
        Ok(calls) => calls,
        Err(why) => return Outcome::Skipped(why),
    };
    let attempts = calls.of("connect");
    // The first ten seconds have seven attempts or so; later ones are half a minute apart.
    assert!(attempts <= 20 + time.as_secs() / 10, "{attempts} attempts in {time:?}: {calls:?}");
    assert!(calls.total() <= CALLS * time.as_secs(), "{} calls in {time:?}: {calls:?}", calls.total());

    agent.receive_at(at);
    let all = usize::try_from(EVENTS).unwrap();
    // The longest wait, and the time that a busy machine takes for the delivery.
    // Five times the longest wait.
    agent.until_within(LONGEST * 5, "all delivered", |agent| agent.receiver.stats().held == all);
    let figures = agent.end();
    let lines = agent.log().lines().count();
    assert!(lines <= LINES, "{}", agent.log());
    let (calls, seconds) = (calls.total(), time.as_secs());
    figures
        .note(format!("{attempts} attempts and {calls} system calls in {seconds} s, {lines} lines of log"))
        .into()
}
