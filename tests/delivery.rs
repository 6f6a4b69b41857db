//! The way from a file in the spool to the receiver, in one process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use common::{World, names, track};
use koala_agent::receiver::Faults;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_the_spool_is_delivered_once_and_its_file_goes() {
    let mut world = World::new(Faults::default()).await;
    world.start().await;
    world.track("m-1", "ana@acme.dev");
    world.until_held(1).await;
    world.until("it is marked", |w| w.status().outbox.delivered == 1).await;
    world.until("the file is gone", |w| names(&w.spool()) == [".removing", "rejected"]).await;
    world.stop().await;
    world.start().await;
    world.drop_file("again.json", track("m-1", "ana@acme.dev"));
    world.until("the duplicate is counted", |w| w.status().spool.duplicates == 1).await;
    let status = world.status();
    assert_eq!((status.outbox.pending, status.outbox.delivered), (0, 1));
    world.stop().await;
    assert_eq!(world.receiver.stats().events, 1);
}
