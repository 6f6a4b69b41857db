//! What the log says at the normal level.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use common::{KEY, World};
use koala_agent::receiver::Faults;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// One thread, because the log is captured on that of the test.
#[tokio::test]
async fn fifty_requests_are_one_line_in_the_hour_and_name_nobody() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO);
    let _log = tracing::subscriber::set_default(log.with_writer(move || writer.clone()).finish());

    let mut world = World::manual(Faults::default()).await;
    world.start().await;
    for n in 0..50 {
        world.track(&format!("m-{n}"), &format!("person{n}@acme.dev"));
    }
    world.until("they are marked", |w| w.status().outbox.delivered == 50).await;
    world.clock.advance(Duration::from_secs(3600));
    let told = "events of the last hour: 50 taken, 50 delivered; 0 pending";
    world.until("the hour is summed up", |_| lines.text().contains(told)).await;
    world.stop().await;

    let text = lines.text();
    assert!(text.lines().count() < 10, "{text}");
    assert!(!text.contains("acme.dev") && !text.contains(KEY), "{text}");
}
