//! Nobody listens where the receiver was.

use crate::common::world::Log;
use crate::hours::{Hours, play};
use crate::place::Place;
use crate::stage::{Played, Scale};
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState;
use std::time::Duration;
use tokio::net::TcpSocket;

/// Events that wait for its return.
const EVENTS: u64 = 10_000;
const LINES: usize = 10;
/// The longest wait after trouble.
const LONGEST: Duration = Duration::from_secs(60);

pub fn refused(scale: &Scale) -> Played {
    play(scale, async {
        let (log, _logged) = Log::begin();
        let mut hours = Hours::new(Faults::default()).await;
        let port = hours.world.leave().await;
        hours.drop_lines(EVENTS, 500);
        hours.start().await;
        hours.until_state(DestinationState::Backoff).await;

        let waits = hours.attempts(Duration::from_secs(600)).await;
        for (n, wait) in waits.iter().enumerate() {
            let most = Duration::from_millis(100 << n.min(16)).min(LONGEST);
            assert!(*wait <= most, "wait {n} of {waits:?}");
        }
        // Ten waits double, the rest are half a minute on average.
        assert!((13..=60).contains(&waits.len()), "{waits:?}");
        assert_eq!(hours.world.status().outbox.pending, EVENTS);

        hours.world.come_back(port).await;
        let all = usize::try_from(EVENTS).unwrap();
        hours.drive(LONGEST, "all delivered", |w| w.receiver.stats().held == all).await;
        let figures = hours.end().await;
        let lines = log.text().lines().count();
        assert!(lines <= LINES, "{}", log.text());
        figures.note(format!("{} attempts, {lines} lines of log", waits.len())).into()
    })
}

pub fn refused_for_real(scale: &Scale) -> Played {
    let time = Duration::from_secs(scale.of(10, 600));
    let mut place = Place::new(Faults::default());
    // A port that is bound and not listened at refuses, and is nobody else's.
    let port = TcpSocket::new_v4().unwrap();
    port.set_reuseaddr(true).unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = port.local_addr().unwrap();
    place.daemon.set(&format!("koala.endpoint = \"http://{at}\""));
    place.drop_lines(EVENTS, 500);
    place.daemon.start();
    place.until_status("all is stored", |status| status.outbox.pending == EVENTS);
    // What the start began is over: the last of it is that the log is emptied.
    let log = place.daemon.path("state/outbox.db-wal");
    place.until("an agent at rest", |_| std::fs::metadata(&log).is_ok_and(|log| log.len() == 0));
    std::thread::sleep(Duration::from_secs(2));

    let Some(before) = place.daemon.cpu().filter(|used| !used.is_zero()) else {
        return Played::Skipped("no /proc to read the processor time from".into());
    };
    std::thread::sleep(time);
    let used = place.daemon.cpu().unwrap() - before;
    assert!(used < time / 100, "{used:?} of the processor in {time:?}");

    place.receive_at(at);
    let all = usize::try_from(EVENTS).unwrap();
    // The longest wait, and the time that a busy machine takes for the delivery.
    place.until_within(LONGEST * 2, "all delivered", |place| place.receiver.stats().held == all);
    let figures = place.end();
    let lines = place.daemon.log().lines().count();
    assert!(lines <= LINES, "{}", place.daemon.log());
    figures
        .note(format!(
            "{} ms of the processor in {} s, {lines} lines of log",
            used.as_millis(),
            time.as_secs()
        ))
        .into()
}
