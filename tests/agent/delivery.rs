//! The way from a file in the spool to the receiver, in one process.

use crate::common::world::{World, names, track};
use koala_agent::receiver::Faults;
use koala_agent::status::Status;
use std::time::{Duration, Instant};

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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_shows_in_the_published_status_at_once() {
    let mut world = World::new(Faults::default()).await;
    world.start().await;
    world.track("m-1", "ana@acme.dev");
    world.until_held(1).await;
    let published = |w: &World| {
        let spool = Status::read(&w.config().status_file).unwrap().spool;
        (spool.rejected_files, spool.waiting_files)
    };
    let soon = Instant::now() + Duration::from_secs(10);
    world.until("nothing waits", |w| published(w) == (0, 0) || Instant::now() > soon).await;
    world.drop_file("broken.json", "7");
    world.until("one is set aside", |w| published(w) == (1, 0) || Instant::now() > soon).await;
    assert_eq!(published(&world), (1, 0));
    world.drop_file("reused.json", track("m-1", "bob@acme.dev"));
    world.until("two are set aside", |w| published(w) == (2, 0) || Instant::now() > soon).await;
    assert_eq!(published(&world), (2, 0));
    world.stop().await;
}
