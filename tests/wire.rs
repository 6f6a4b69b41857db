//! What a server may do to a connection, and what the client makes of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "common/server.rs"]
mod server;

use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{Config, Environment, Options, load};
use koala_agent::item::Endpoint;
use koala_agent::koala::{Client, Verdict};
use koala_agent::reason::{Code, Reason};
use server::{Server, message, pem, tls};
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const KEY: &str = "pk_wire_0123456789";

fn config(lines: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, format!("koala.public_key = \"{KEY}\"\nkoala.timeout = \"2s\"\n{lines}\n"))
        .unwrap();
    let nothing: [(&str, &str); 0] = [];
    load(&Options { config: Some(file), user: false }, &nothing.into_iter().collect::<Environment>()).unwrap()
}

fn client(endpoint: &str, lines: &str) -> Client {
    client_by(endpoint, lines, Clock::system())
}

fn client_by(endpoint: &str, lines: &str, clock: Clock) -> Client {
    let config = config(&format!("koala.endpoint = \"{endpoint}\"\n{lines}"));
    Client::new(&config.koala, clock).unwrap().unwrap()
}

/// Takes every request of a connection, until its client lets it go.
fn taking() -> Server {
    Server::start(|stream| {
        let mut heard = Vec::new();
        while let Some(request) = message(stream) {
            heard.extend(request);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        }
        heard
    })
}

async fn send(endpoint: &str, lines: &str) -> Verdict {
    let verdict = client(endpoint, lines).batch(Endpoint::People, "{\"secret\":1}".to_owned()).await;
    assert!(!format!("{verdict:?}").contains(KEY), "{verdict:?}");
    verdict
}

fn trouble(verdict: Verdict) -> (Reason, Option<Duration>) {
    match verdict {
        Verdict::Trouble { reason, retry_after } => (reason, retry_after),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_no_acceptance() {
    for answer in [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let server = Server::answering(answer);
        let (reason, _) = trouble(send(&server.endpoint(), "").await);
        assert_eq!(reason.code, Code::Connect, "{answer:?}");
    }
    let whole = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    assert_eq!(send(&whole.endpoint(), "").await, Verdict::Accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_other_than_acceptance_says_enough_though_its_body_breaks_off() {
    let server =
        Server::answering("HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\n{\"error\":");
    let (reason, wish) = trouble(send(&server.endpoint(), "").await);
    assert_eq!((reason.code, wish), (Code::RateLimited, Some(Duration::from_secs(7))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_and_every_request_says_who_sends_it() {
    let server = taking();
    let client = client(&server.endpoint(), "");
    for _ in 0..30 {
        assert_eq!(client.batch(Endpoint::People, "{}".into()).await, Verdict::Accepted);
    }
    drop(client);
    let heard = || server.heard().concat();
    let line = format!("POST /web/projects/{KEY}/batch HTTP/1.1\r\n");
    while heard().matches(&line).count() < 30 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let agent = format!("user-agent: koala-agent/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(heard().to_lowercase().matches(&agent).count(), 30);
    // An answer can be here before its connection is free again.
    assert!(server.heard().len() < 15, "{} connections", server.heard().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_let_go_after_minutes_though_it_is_busy() {
    let server = taking();
    let clock = Clock::manual(Timestamp(0));
    let client = client_by(&server.endpoint(), "", clock.clone());
    let began = Instant::now();
    while server.heard().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is kept");
        assert_eq!(client.batch(Endpoint::People, "{}".into()).await, Verdict::Accepted);
        clock.advance(Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let minutes = clock.mono().as_secs() / 60;
    assert!(minutes >= 4, "after {minutes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_and_a_port_where_nobody_listens_are_told_apart() {
    let (reason, _) = trouble(send("https://koala.invalid", "").await);
    assert_eq!(reason.code, Code::Dns);
    assert!(reason.text.starts_with("the name koala.invalid cannot be resolved: "), "{}", reason.text);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (reason, _) = trouble(send(&format!("http://127.0.0.1:{port}"), "").await);
    assert_eq!(reason.code, Code::Connect);
    assert!(reason.text.starts_with(&format!("no connection to 127.0.0.1:{port}: ")), "{}", reason.text);
}

/// A proxy that answers CONNECT with this status line, and on 200 joins both ends.
fn proxy(status: &'static str, to: u16) -> Server {
    Server::start(move |stream| {
        let heard = message(stream).unwrap_or_default();
        let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes());
        if status.starts_with("200") {
            let mut there = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut back, mut from) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
            let joined = std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Both);
            });
            match std::io::copy(stream, &mut there) {
                Err(e) if e.kind() != ErrorKind::ConnectionReset => panic!("{e}"),
                _ => there.shutdown(std::net::Shutdown::Both).unwrap_or_default(),
            }
            joined.join().unwrap();
        }
        heard
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_sees_where_the_request_goes_and_nothing_of_it() {
    let server = tls("proxied.pem", |stream| {
        let heard = message(stream).unwrap_or_default();
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        heard
    });
    let through = proxy("200 Connection established", server.port);
    let lines = format!("koala.proxy = {:?}\nkoala.ca_file = {:?}", through.endpoint(), pem("ca.pem"));
    assert_eq!(send("https://koala.invalid", &lines).await, Verdict::Accepted);
    while through.heard().is_empty() || server.heard().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(through.heard()[0].starts_with("CONNECT koala.invalid:443 HTTP/1.1\r\n"));
    assert!(server.heard()[0].contains(KEY) && !through.heard()[0].contains(KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_lets_nothing_through_is_named_as_the_trouble() {
    for status in ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"] {
        let through = proxy(status, 0);
        let lines = format!("koala.proxy = {:?}", through.endpoint());
        let (reason, _) = trouble(send("https://koala.invalid", &lines).await);
        assert_eq!(reason.code, Code::Proxy, "{status}: {}", reason.text);
    }
    let (reason, _) =
        trouble(send("https://koala.invalid", "koala.proxy = \"http://proxy.invalid:3128\"").await);
    assert_eq!(reason.code, Code::Dns);
    assert!(reason.text.contains("proxy.invalid"), "{}", reason.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_on_this_machine_is_never_asked_through_a_proxy() {
    let server = Server::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let lines = "koala.proxy = \"http://proxy.invalid:3128\"";
    assert_eq!(send(&server.endpoint(), lines).await, Verdict::Accepted);
}
