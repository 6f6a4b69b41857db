//! Answers that say "later", and answers that say "not with this key, not here".

use super::front::{Front, fate};
use crate::books::Books;
use crate::hours::{Hours, play};
use crate::stage::{Figures, Played, Scale};
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
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

pub fn pauses(scale: &Scale) -> Played {
    let mut figures = Figures::default();
    for status in [429, 503] {
        for (wish, pause) in [
            ("7", 7),
            ("date", 1_000),
            ("far date", 3600),
            ("0", 0),
            ("-1", 0),
            ("1000000000", 3600),
            ("1e9", 0),
            ("soon", 0),
        ] {
            figures.add(play(scale, pause_of(status, wish, Duration::from_secs(pause))));
        }
    }
    figures.into()
}

/// The receiver asks for a pause, and the agent is started anew in the midst of it.
async fn pause_of(status: u16, wish: &str, pause: Duration) -> Figures {
    let mut hours = Hours::new(Faults::default()).await;
    let date = |after: u64| {
        let now = u64::try_from(hours.world.clock.now().0).unwrap();
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(now) + Duration::from_secs(after))
    };
    let retry_after = match wish {
        "date" => date(1_000),
        "far date" => date(100_000),
        wish => wish.to_owned(),
    };
    let asks = Faults { status: Some(status), retry_after: Some(retry_after), ..Faults::default() };
    hours.world.receiver.set_faults(asks);
    hours.drop_lines(20, 5);
    hours.start().await;
    hours.until_state(Backoff).await;
    assert_eq!(hours.world.receiver.stats().requests, 1);
    let wait = hours.wait().unwrap();
    // A pause that the receiver does not ask for is the first of the agent's own.
    assert!((pause..=pause + SECOND / 10).contains(&wait), "{wish}: {wait:?}");

    let early = pause.saturating_sub(SECOND);
    hours.world.clock.advance(early / 2);
    if !pause.is_zero() {
        hours.world.stop().await;
        hours.world.receiver.set_faults(Faults::default());
        hours.world.start().await;
    }
    hours.world.clock.advance(early / 2);
    a_moment().await;
    assert_eq!(hours.world.receiver.stats().requests, 1, "{wish}: asked {:?} too early", hours.wait());

    hours.world.receiver.set_faults(Faults::default());
    hours.drive(2 * SECOND, "all delivered", |w| w.receiver.stats().held == 20).await;
    hours.end().await
}

pub fn trouble(scale: &Scale) -> Played {
    let mut figures = Figures::default();
    for status in [500, 502, 503, 504, 408, 425, 429] {
        figures.add(play(scale, async {
            let mut hours = Hours::new(Faults { status: Some(status), ..Faults::default() }).await;
            hours.drop_lines(300, 50);
            hours.start().await;
            hours.until_state(Backoff).await;
            let waits = hours.attempts(HOUR).await;
            assert!(waits.iter().all(|wait| *wait <= MINUTE), "{status}: {waits:?}");
            assert!(waits.len() > 60, "{status}: {} attempts", waits.len());
            let seen = hours.world.status();
            assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0), "{status}");
            assert_eq!(seen.destination.state, Backoff);
            hours.world.receiver.set_faults(Faults::default());
            hours.drive(MINUTE, "all delivered", |w| w.receiver.stats().held == 300).await;
            hours.end().await
        }));
    }
    figures.into()
}

/// The text in the one event that is always answered 500.
const CURSED: &str = "cursed";

pub fn trouble_for_one(scale: &Scale) -> Played {
    play(scale, async {
        let mut hours = Hours::new(Faults::default()).await;
        let (lifted, front) = cursing_front(&hours);
        hours.world.endpoint = front.endpoint();
        let cursed_person = 7;
        let lines: Vec<String> = (0..200)
            .map(|n| match n {
                67 => hours.books.event_with(cursed_person, CURSED, ""),
                _ => hours.books.event(n % 20),
            })
            .collect();
        hours.drop_text(&lines.join("\n"));
        hours.start().await;
        let held = |hours: &Hours| hours.world.receiver.stats().held;
        hours.drive(10 * MINUTE, "all others' are delivered", |w| w.receiver.stats().held >= 190).await;
        let mut late = 0;
        for minute in 0..60 {
            let before = held(&hours);
            let event = hours.books.event(minute % 5);
            hours.drop_text(&event);
            hours.stored().await;
            let took = hours.pass_until("others go on", |w| w.receiver.stats().held > before).await;
            late += u32::from(took > MINUTE);
            hours.world.clock.advance(MINUTE.saturating_sub(took));
        }
        // A machine that stands still while the clock goes on makes some late.
        assert!(late <= 10, "{late} of 60 events of others waited for more than a minute");
        hours.world.until("others' are marked", |w| w.status().outbox.pending <= 10).await;
        let seen = hours.world.status();
        assert!(seen.outbox.failed == 0 && seen.outbox.pending > 0, "{seen:#?}");
        assert!(only_of(&hours.books, cursed_person, &hours), "others wait as well");
        lifted.store(true, Relaxed);
        let all = hours.books.dropped.len();
        hours.pass_until("all delivered", |w| w.receiver.stats().held == all).await;
        hours.end().await.into()
    })
}

/// A front that answers 500 to a request with the cursed event until the curse is lifted.
fn cursing_front(hours: &Hours) -> (Arc<AtomicBool>, Front) {
    let lifted = Arc::new(AtomicBool::new(false));
    let is_lifted = lifted.clone();
    let front = Front::before(
        hours.world.receiver.addr(),
        fate(move |passage| {
            let request = passage.request()?;
            let cursed = memchr::memmem::find(&request, CURSED.as_bytes()).is_some();
            let answer = match cursed && !is_lifted.load(Relaxed) {
                true => b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
                false => passage.forward(&request)?,
            };
            passage.stream.write_all(&answer)
        }),
    );
    (lifted, front)
}

/// Whether everything that the receiver does not hold is that person's.
fn only_of(books: &Books, person: u64, hours: &Hours) -> bool {
    let held: Vec<u64> = hours.world.receiver.events().iter().map(|held| number(held.item.get())).collect();
    books.dropped.iter().all(|(n, dropped)| dropped.person == person || held.contains(n))
}

fn number(item: &str) -> u64 {
    let item: serde_json::Value = serde_json::from_str(item).unwrap();
    item["properties"]["n"].as_u64().unwrap()
}

pub fn closed(scale: &Scale) -> Played {
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
        figures.add(play(scale, refused_for_an_hour(answering(status), code)));
    }
    figures.into()
}

/// Nobody fails, it is asked at most once a minute, and it goes on by itself.
pub async fn refused_for_an_hour(faults: Faults, code: Code) -> Figures {
    let mut hours = Hours::new(faults).await;
    hours.drop_lines(300, 50);
    hours.start().await;
    hours.until_state(Refused).await;
    let before = hours.world.receiver.stats().requests;
    assert_eq!(before, 1, "{code}");
    let waits = hours.attempts(HOUR).await;
    assert!(waits.iter().all(|wait| (MINUTE..=LONGEST_REFUSED).contains(wait)), "{code}: {waits:?}");
    assert_eq!(hours.world.receiver.stats().requests - before, waits.len() as u64, "{code}");
    let seen = hours.world.status();
    assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0), "{code}");
    assert_eq!((seen.destination.state, seen.destination.reason.unwrap().code), (Refused, code));
    hours.world.receiver.set_faults(Faults::default());
    hours.drive(LONGEST_REFUSED, "all delivered", |w| w.receiver.stats().held == 300).await;
    assert_eq!(hours.world.status().destination.state, Online);
    hours.end().await
}
