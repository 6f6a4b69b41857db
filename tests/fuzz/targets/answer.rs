//! A receiver's answer, `Retry-After` among it, from the bytes on the wire to what a person is told.

#![no_main]

use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{ConfigOptions, Environment, load};
use koala_agent::item::Endpoint;
use koala_agent::koala::{Client, MAX_RETRY_AFTER, Verdict};
use libfuzzer_sys::fuzz_target;
use std::cell::LazyCell;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

const KEY: &str = "pk_never_to_be_seen";
/// Stands for the key in the input.
const KEY_HERE: u8 = 1;
const BODY: &str = "{}";
/// The quoted beginning of a body, and the sentence around it.
const MAX_TEXT: usize = 500;

thread_local! {
    static WIRE: LazyCell<(Runtime, TcpListener, Client)> = LazyCell::new(wire);
}

fuzz_target!(|bytes: &[u8]| {
    let verdict = WIRE.with(|wire| {
        let (runtime, listener, client) = &**wire;
        runtime.block_on(async {
            tokio::join!(answer(listener, bytes), client.batch(Endpoint::People, BODY.to_owned())).1
        })
    });
    if let Verdict::Unavailable { retry_after, .. } = &verdict {
        assert!(retry_after.is_none_or(|wait| Duration::ZERO < wait && wait <= MAX_RETRY_AFTER));
    }
    let Some(reason) = verdict.into_reason() else { return };
    assert!(!reason.text.contains(KEY), "the key: {reason}");
    assert!(!reason.text.replace("…@…", "").contains('@'), "an email: {reason}");
    assert!(!reason.text.chars().any(char::is_control), "a control character: {reason:?}");
    assert!(reason.text.chars().count() <= MAX_TEXT, "{reason}");
});

/// Takes one request, and answers it with these bytes.
async fn answer(listener: &TcpListener, bytes: &[u8]) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(BODY.as_bytes()) {
        stream.read_buf(&mut request).await.unwrap();
    }
    let answer: Vec<u8> = bytes
        .iter()
        .flat_map(|b| if *b == KEY_HERE { KEY.as_bytes() } else { std::slice::from_ref(b) })
        .copied()
        .collect();
    // The client may have had enough.
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

fn wire() -> (Runtime, TcpListener, Client) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let settings =
        [("KOALA_AGENT_KOALA__ENDPOINT", endpoint.as_str()), ("KOALA_AGENT_KOALA__PUBLIC_KEY", KEY)];
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = ConfigOptions::with_file(file.path());
    let config = load(&options, &settings.into_iter().collect::<Environment>()).unwrap();
    let clock = Clock::manual(Timestamp(784_111_777_000));
    (runtime, listener, Client::new(&config.koala, clock).unwrap().unwrap())
}
