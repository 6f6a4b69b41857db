//! What the log says at the normal level.

use crate::common::world::{KEY, Log, World};
use koala_agent::receiver::Faults;
use std::time::Duration;

#[tokio::test]
async fn fifty_requests_are_one_line_in_the_hour_and_name_nobody() {
    let log = Log::everywhere();
    let mut world = World::manual(Faults::default()).await;
    world.start().await;
    for n in 0..50 {
        world.track(&format!("m-{n}"), &format!("person{n}@acme.dev"));
    }
    world.until("they are marked", |w| w.status().outbox.delivered == 50).await;
    world.clock.advance(Duration::from_secs(3600));
    let told = "events of the last hour: 50 taken, 50 delivered; 0 pending";
    world.until("the hour is summed up", |_| log.text().contains(told)).await;
    world.stop().await;

    let text = log.text();
    assert!(text.lines().count() < 10, "{text}");
    assert!(!text.contains("acme.dev") && !text.contains(KEY), "{text}");
}
