//! The receiver refuses events: one of them, every one, those that are too large.

use super::answers::refused_for_an_hour;
use crate::common::world::World;
use crate::hours::{Hours, play};
use crate::stage::{Figures, Played, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::{Backoff, Online, Refused};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LONGEST_REFUSED: Duration = Duration::from_secs(990);
const POISON: &str = "poison";

/// Events of a full request.
const B: f64 = 30.0;

pub fn poisoned(scale: &Scale) -> Played {
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
        let (round, extra) = play(scale, poisoned_at(&poisoned));
        let each = extra as f64 / poisoned.len() as f64;
        assert!(each <= 2.0 * B.log2().ceil() + 1.0, "{extra} extra requests for {poisoned:?}");
        most = most.max(each);
        figures.add(round);
    }
    figures.note(format!("at most {most:.1} extra requests for each poisoned event")).into()
}

/// A thousand events by twenty people, and these are poisoned: exactly they fail. Returns the requests that were made
/// beyond those without poison.
async fn poisoned_at(poisoned: &BTreeSet<u64>) -> (Figures, u64) {
    // Away until everything is stored, so that what goes into a request does not depend on when it is looked at.
    let mut hours = Hours::new(Faults { offline: true, ..Faults::default() }).await;
    let lines: Vec<String> = (0..1_000)
        .map(|n| {
            let id = if poisoned.contains(&n) { format!("{POISON}-{n}") } else { format!("event-{n}") };
            hours.books.event_with(n % 20, &id, "")
        })
        .collect();
    hours.drop_text(&lines.join("\n"));
    hours.start().await;
    hours.until_state(Backoff).await;
    let before = hours.world.receiver.stats().requests;
    hours.world.receiver.set_faults(Faults { poison: Some(POISON.into()), ..Faults::default() });

    let settled = |w: &World| {
        let outbox = w.status().outbox;
        outbox.pending == 0 && outbox.failed == poisoned.len() as u64
    };
    let refused = |w: &World| w.status().destination.state == Refused;
    let requests = |hours: &Hours| hours.world.receiver.stats().requests;
    let mut proofs = 0;
    loop {
        hours.drive(HOUR, "all is settled or refused", |w| settled(w) || refused(w)).await;
        if settled(&hours.world) {
            break;
        }
        // The poisoned stand next to each other, or nobody is left: one more event is the proof that others are taken.
        let (before, proof) = (requests(&hours), hours.books.event_with(20, &format!("proof-{proofs}"), ""));
        hours.drop_text(&proof);
        hours.stored().await;
        proofs += 1;
        hours.drive(HOUR, "an answer", |w| w.receiver.stats().requests > before).await;
    }
    // Each person's fifty events in two requests, and the proofs.
    let extra = requests(&hours) - before - 40 - proofs;
    assert_failed(&hours.world.outbox(), poisoned);
    (hours.end().await, extra)
}

/// Exactly these have failed, and each keeps the answer.
fn assert_failed(outbox: &Path, poisoned: &BTreeSet<u64>) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let outbox = rusqlite::Connection::open_with_flags(outbox, flags).unwrap();
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

pub fn everything(scale: &Scale) -> Played {
    play(scale, async {
        let refuse = Faults { refuse_all: Some("Koala ingest suspended".into()), ..Faults::default() };
        let mut hours = Hours::new(refuse).await;
        hours.drop_lines(10_000, 500);
        hours.start().await;
        hours.until_state(Refused).await;
        let waits = hours.attempts(HOUR).await;
        let asked = hours.world.receiver.stats().requests;
        assert!(waits.iter().all(|wait| *wait >= MINUTE) && asked <= 10, "{asked} requests, {waits:?}");
        let seen = hours.world.status();
        assert_eq!((seen.outbox.pending, seen.outbox.failed), (10_000, 0));
        let reason = seen.destination.reason.unwrap();
        assert_eq!((seen.destination.state, reason.code), (Refused, Code::RefusesAll));
        for said in [r#"400: {"error":"Koala ingest suspended"}"#, "koala.endpoint"] {
            assert!(reason.text.contains(said), "{}", reason.text);
        }
        hours.world.receiver.set_faults(Faults::default());
        hours.drive(LONGEST_REFUSED, "all delivered", |w| w.receiver.stats().held == 10_000).await;
        assert_eq!(hours.world.status().destination.state, Online);
        hours.end().await.note(format!("{asked} requests in the hour")).into()
    })
}

pub fn portal(scale: &Scale) -> Played {
    let page = Faults { html: true, ..Faults::default() };
    play(scale, refused_for_an_hour(page, Code::NotTheReceiver)).into()
}

pub fn too_large(scale: &Scale) -> Played {
    let mut figures = play(scale, too_large_above(2_000));
    figures.add(play(scale, too_large_above(1)));
    figures.into()
}

/// A size above which the receiver takes nothing. One event is larger than that alone; where all are, nobody fails.
async fn too_large_above(size: usize) -> Figures {
    let mut hours = Hours::new(Faults { too_large: Some(size), ..Faults::default() }).await;
    let pad = format!(r#""pad":"{}","#, "x".repeat(3_000));
    let lines: Vec<String> = (0..300)
        .map(|n| match n {
            155 => hours.books.event_with(5, "giant", &pad),
            _ => hours.books.event(n % 10),
        })
        .collect();
    hours.drop_text(&lines.join("\n"));
    hours.start().await;
    if size > 1 {
        hours.drive(MINUTE, "all others are delivered", |w| w.receiver.stats().held == 299).await;
        hours.drive(MINUTE, "the large one has failed", |w| w.status().outbox.failed == 1).await;
        let reasons = hours.world.status().reasons;
        let failed = reasons.iter().find(|reason| reason.state == "failed").unwrap();
        assert_eq!(failed.code, Code::TooLarge.to_string());
        // The size is learnt in a few halvings, once; the large one and its neighbours take as many again.
        let refused = hours.world.receiver.stats().refused_requests;
        assert!((1..=20).contains(&refused), "{refused}");
        return hours
            .end()
            .await
            .note(format!("{refused} requests were too large until the size was learnt"));
    }
    hours.until_state(Refused).await;
    let waits = hours.attempts(HOUR).await;
    let seen = hours.world.status();
    assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0));
    let asked = hours.world.receiver.stats().requests;
    assert!(asked <= 30, "{asked} requests, {waits:?}");
    hours.world.receiver.set_faults(Faults::default());
    hours.drive(LONGEST_REFUSED, "all delivered", |w| w.receiver.stats().held == 300).await;
    hours.end().await
}
