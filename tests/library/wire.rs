//! The client against servers that do everything to a connection that a server may do.

use crate::common::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, INTERNAL_ERROR,
    NO_ERROR, REFUSED_STREAM, RST_STREAM, STATUS_200, Talk, http2,
};
use crate::common::server::{Server, head, message, pem, tls, tls_config, tls_offering};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::USER_AGENT;
use hyper::{Method, Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{Config, ConfigOptions, Environment, load};
use koala_agent::item::Endpoint;
use koala_agent::koala::{Client, Verdict};
use koala_agent::reason::{Code, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio_rustls::TlsAcceptor;

const KEY: &str = "pk_wire_0123456789";

fn config(lines: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let timeout = if lines.contains("koala.timeout") { "" } else { "koala.timeout = \"2s\"" };
    std::fs::write(&file, format!("koala.public_key = \"{KEY}\"\n{timeout}\n{lines}\n")).unwrap();
    let nothing: [(&str, &str); 0] = [];
    load(&ConfigOptions::with_file(file), &nothing.into_iter().collect::<Environment>()).unwrap()
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
        Verdict::Unavailable { reason, retry_after } => (reason, retry_after),
        Verdict::Trouble(reason) => (reason, None),
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
async fn the_body_of_an_answer_decides_and_not_its_content_type() {
    let length = |body: &str| format!("Content-Length: {}\r\n\r\n{body}", body.len());
    for (head, body, is_accepted) in [
        ("204 No Content\r\nContent-Type: text/html", "", true),
        ("200 OK\r\nContent-Type: text/html; charset=utf-8", "", true),
        ("200 OK\r\nContent-Type: text/html", "ok", true),
        ("202 Accepted\r\nContent-Type: application/xhtml+xml", "{}", true),
        ("200 OK\r\nContent-Type: application/json", "\u{feff}\r\n <title>Log in</title>", false),
        ("201 Created", "<html>", false),
    ] {
        let end =
            if head.starts_with("204") { "\r\n\r\n".to_owned() } else { format!("\r\n{}", length(body)) };
        let server = Server::answering(format!("HTTP/1.1 {head}{end}"));
        match send(&server.endpoint(), "").await {
            Verdict::Accepted if is_accepted => {}
            Verdict::Closed(reason) if !is_accepted => assert_eq!(reason.code, Code::NotTheReceiver),
            other => panic!("{head}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_asked_for_in_seconds_or_as_a_date_by_the_answers_own() {
    // Nothing of it is near this machine's time.
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    for (headers, seconds) in [
        (format!("{date}Retry-After: 6.5\r\n"), Some(7)),
        (format!("{date}Retry-After: Sun, 06 Nov 1994 08:49:47 GMT\r\n"), Some(10)),
        (format!("{date}Retry-After: Sunday, 06-Nov-94 08:50:37 GMT\r\n"), Some(60)),
        (format!("{date}Retry-After: Sun Nov  6 10:00:00 1994\r\n"), Some(3600)),
        (format!("{date}Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), None),
        (format!("{date}Retry-After: 3\r\nRetry-After: 120\r\n"), Some(120)),
        ("Retry-After: Sun, 06 Nov 1994 08:49:47 GMT\r\n".to_owned(), None),
        ("Date: today\r\nRetry-After: 7\r\n".to_owned(), Some(7)),
    ] {
        for status in [429, 503] {
            let server =
                Server::answering(format!("HTTP/1.1 {status} No\r\n{headers}Content-Length: 0\r\n\r\n"));
            let (_, pause) = trouble(send(&server.endpoint(), "").await);
            assert_eq!(pause, seconds.map(Duration::from_secs), "{headers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_comes_before_the_body_is_read_is_read_though_the_connection_is_reset() {
    let server = Server::start(|stream| {
        let heard = head(stream).unwrap();
        stream.write_all(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        // The rest of the body is not read, so the end of the connection is a reset.
        heard
    });
    let client = client(&server.endpoint(), "");
    let verdict = client.batch(Endpoint::People, "x".repeat(1 << 20)).await;
    assert!(matches!(verdict, Verdict::TooLarge(_)), "{verdict:?}");
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
    let (plain, shared) = (taking(), http2(accept_all));
    for (server, (endpoint, lines)) in
        [(&plain, (plain.endpoint(), String::new())), (&shared, trusted(shared.port))]
    {
        let clock = Clock::manual(Timestamp(0));
        let client = client_by(&endpoint, &lines, clock.clone());
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_and_a_port_where_nobody_listens_are_told_apart() {
    let (reason, _) = trouble(send("https://koala.invalid", "").await);
    assert_eq!(reason.code, Code::Dns);
    assert!(reason.text.starts_with("the name koala.invalid cannot be resolved: "), "{}", reason.text);
    // A port that was free a moment ago may be another test's by now.
    let (reason, _) = trouble(send("http://127.0.0.1:1", "").await);
    assert_eq!(reason.code, Code::Connect);
    assert!(reason.text.starts_with("no connection to 127.0.0.1:1: "), "{}", reason.text);
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

/// Where a server on this port with `good.pem` is, and what makes a client trust it; it has time on a busy machine.
fn trusted(port: u16) -> (String, String) {
    let lines = format!("koala.timeout = \"30s\"\nkoala.ca_file = {:?}", pem("ca.pem"));
    (format!("https://localhost:{port}"), lines)
}

/// The requests that were processed: each one's body, and the number of its connection.
type Processed = Arc<Mutex<Vec<(String, usize)>>>;

/// A receiver that takes so many requests at once on a connection, and answers none before so many have come.
async fn receiver(certificate: &str, streams: u32, together: usize) -> (u16, Processed) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = TlsAcceptor::from(tls_config(certificate, &["h2", "http/1.1"]));
    let (processed, all_here) = (Processed::default(), Arc::new(Barrier::new(together)));
    let seen = processed.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, processed, all_here) = (tls.clone(), processed.clone(), all_here.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request: Request<Incoming>| {
                    let (processed, all_here) = (processed.clone(), all_here.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = String::from_utf8(body.collect().await?.to_bytes().into()).unwrap();
                        assert_eq!(head.version, Version::HTTP_2);
                        assert_eq!(head.headers[USER_AGENT], koala_agent::koala::USER_AGENT);
                        if head.method == Method::POST {
                            processed.lock().unwrap().push((body, number));
                            all_here.wait().await;
                        }
                        let answer = hyper::Response::builder().status(204).body(Empty::<Bytes>::new());
                        Ok::<_, hyper::Error>(answer.unwrap())
                    }
                });
                // A client that has found another connection meanwhile lets this one go.
                let Ok(stream) = tls.accept(stream).await else { return };
                let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http
                    .max_concurrent_streams(streams)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (port, seen)
}

/// Sends these bodies at the same time.
async fn send_all(client: &Client, bodies: &[String]) -> Vec<Verdict> {
    let send = |body: &String| {
        let (client, body) = (client.clone(), body.clone());
        tokio::spawn(async move { client.batch(Endpoint::People, body).await })
    };
    let mut verdicts = Vec::new();
    for sent in bodies.iter().map(send).collect::<Vec<_>>() {
        verdicts.push(sent.await.unwrap());
    }
    verdicts
}

/// How often each body was processed.
fn times(processed: &Processed) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for (body, _) in processed.lock().unwrap().iter() {
        *times.entry(body.clone()).or_default() += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_share_one_connection_where_the_receiver_offers_http_2() {
    let (direct, behind) = (receiver("good.pem", 64, 64).await, receiver("proxied.pem", 64, 64).await);
    let through = proxy("200 Connection established", behind.0);
    let (endpoint, lines) = trusted(direct.0);
    let proxied = format!("{lines}\nkoala.proxy = {:?}", through.endpoint());
    // Some of them larger than what may be on its way before the receiver has read it.
    let bodies: Vec<_> = (0..64).map(|n| format!("{n} {}", "x".repeat(n * n * 64))).collect();
    for (processed, endpoint, lines) in
        [(direct.1, endpoint, lines), (behind.1, "https://koala.invalid".into(), proxied)]
    {
        let client = client(&endpoint, &lines);
        assert_eq!(client.auth().await, Verdict::Accepted);
        assert_eq!(send_all(&client, &bodies).await, vec![Verdict::Accepted; 64]);
        assert_eq!(times(&processed), bodies.iter().map(|body| (body.clone(), 1)).collect());
        let connections: BTreeSet<_> = processed.lock().unwrap().iter().map(|(_, number)| *number).collect();
        assert_eq!(connections.len(), 1, "{endpoint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_offers_http_1_1_alone_is_spoken_to_in_it() {
    let server = tls_offering("good.pem", &["http/1.1"], |stream| {
        let heard = message(stream).unwrap_or_default();
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        heard
    });
    let (endpoint, lines) = trusted(server.port);
    assert_eq!(send(&endpoint, &lines).await, Verdict::Accepted);
    while server.heard().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(server.heard()[0].starts_with(&format!("POST /web/projects/{KEY}/batch HTTP/1.1\r\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_fewer_requests_at_once_than_there_are_is_not_in_trouble() {
    for streams in [1, 8] {
        let (port, processed) = receiver("good.pem", streams, 1).await;
        let (endpoint, lines) = trusted(port);
        let client = client(&endpoint, &lines);
        // How few it takes is not known yet: it refuses the others.
        let bodies: Vec<_> = (0..64).map(|n| n.to_string()).collect();
        assert_eq!(send_all(&client, &bodies).await, vec![Verdict::Accepted; 64]);
        assert_eq!(times(&processed), bodies.into_iter().map(|body| (body, 1)).collect());
    }
}

fn accept_all(talk: &mut Talk) {
    while let Some((stream, _)) = talk.request() {
        talk.accept(stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_receivers_farewell_is_sent_again_and_what_came_before_is_not() {
    let (processed, connections) = (Processed::default(), AtomicUsize::new(0));
    let seen = processed.clone();
    let server = http2(move |talk| {
        let number = connections.fetch_add(1, Ordering::Relaxed);
        let process = |body: &str| processed.lock().unwrap().push((body.to_owned(), number));
        if number > 0 {
            while let Some((stream, body)) = talk.request() {
                process(&body);
                talk.accept(stream);
            }
            return;
        }
        let (first, _) = talk.request().unwrap();
        talk.accept(first);
        let mut requests: Vec<_> = (0..3).map(|_| talk.request().unwrap()).collect();
        requests.sort();
        process(&requests[0].1);
        process(&requests[1].1);
        talk.accept(requests[0].0);
        talk.go_away(requests[1].0, NO_ERROR, b"");
        talk.close();
    });
    let (endpoint, lines) = trusted(server.port);
    let client = client(&endpoint, &lines);
    assert_eq!(client.batch(Endpoint::People, "{}".into()).await, Verdict::Accepted);
    let bodies = ["a", "b", "c"].map(str::to_owned);
    let verdicts = send_all(&client, &bodies).await;
    assert_eq!(times(&seen), bodies.iter().map(|body| (body.clone(), 1)).collect());
    let unanswered = seen.lock().unwrap()[1].0.clone();
    for (body, verdict) in bodies.into_iter().zip(verdicts) {
        match body == unanswered {
            true => assert_eq!(trouble(verdict).0.code, Code::Connect),
            false => assert_eq!(verdict, Verdict::Accepted),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_under_many_requests_let_none_be_processed_twice() {
    let (processed, connections) = (Processed::default(), AtomicUsize::new(0));
    let seen = processed.clone();
    let server = http2(move |talk| {
        let number = connections.fetch_add(1, Ordering::Relaxed);
        let mut last = 0;
        for _ in 0..5 {
            let Some((stream, body)) = talk.request() else { return };
            processed.lock().unwrap().push((body, number));
            last = last.max(stream);
            talk.accept(stream);
        }
        // One that was processed has no answer.
        if let Some((stream, body)) = talk.request() {
            processed.lock().unwrap().push((body, number));
            last = last.max(stream);
        }
        match number % 4 {
            0 => talk.go_away(last, NO_ERROR, b""),
            // A receiver that is going to end, and then does.
            1 => {
                talk.go_away(u32::MAX >> 1, NO_ERROR, b"");
                talk.go_away(last, NO_ERROR, b"");
            }
            2 => talk.go_away(u32::MAX >> 1, NO_ERROR, b""),
            // Bytes have come that were not read, so TCP resets the connection.
            _ => return,
        }
        talk.close();
    });
    let (endpoint, lines) = trusted(server.port);
    let client = client(&endpoint, &lines);
    let mut answered = 0;
    for round in 0..8 {
        let bodies: Vec<_> = (0..64).map(|n| format!("{round} {n}")).collect();
        let verdicts = send_all(&client, &bodies).await;
        let times = times(&seen);
        for (body, verdict) in bodies.iter().zip(verdicts) {
            match (times.get(body), verdict) {
                (Some(1), Verdict::Accepted) => answered += 1,
                (None | Some(1), Verdict::Trouble(reason) | Verdict::Unavailable { reason, .. }) => {
                    assert_eq!(reason.code, Code::Connect)
                }
                (times, verdict) => panic!("{body} was processed {times:?} times: {verdict:?}"),
            }
        }
    }
    assert!(answered > 8, "{answered}");
}

/// The beginning of an answer that accepts.
fn half<'t, 'a, 'b>(talk: &'t mut Talk<'a, 'b>, stream: u32) -> &'t mut Talk<'a, 'b> {
    talk.send(HEADERS, END_HEADERS, stream, &[STATUS_200]);
    talk.send(DATA, 0, stream, b"{\"half\":");
    talk
}

/// A whole answer that accepts, with so many header fields of 133 bytes, as HTTP/2 counts them.
fn headers(talk: &mut Talk, stream: u32, fields: usize) {
    let field = [&[0, 1, b'x', 100][..], &[b'y'; 100]].concat();
    let block = [&[STATUS_200][..], &field.repeat(fields)].concat();
    let mut kind = HEADERS;
    for chunk in block.chunks(16 << 10) {
        let flags = if kind == HEADERS { END_STREAM } else { 0 };
        talk.send(kind, flags, stream, chunk);
        kind = CONTINUATION;
    }
    talk.send(CONTINUATION, END_HEADERS, stream, b"");
}

/// A server's behaviour towards a request, with its name; the trouble that it is, and how often the request comes.
type Deed = (&'static str, fn(&mut Talk, u32), Code, usize);

const DEEDS: [Deed; 12] = [
    ("closed", |talk, _| talk.close(), Code::Connect, 1),
    ("silence", |_, _| (), Code::Timeout, 1),
    ("refused", |talk, stream| talk.reset(stream, REFUSED_STREAM), Code::Connect, 3),
    ("reset", |talk, stream| talk.reset(stream, INTERNAL_ERROR), Code::Connect, 1),
    ("reset for no error", |talk, stream| talk.reset(stream, NO_ERROR), Code::Connect, 1),
    ("told to go away", |talk, _| talk.go_away(0, ENHANCE_YOUR_CALM, &at_length()), Code::Connect, 1),
    ("headers without end", |talk, stream| headers(talk, stream, 1000), Code::Connect, 1),
    ("half, closed", |talk, stream| half(talk, stream).close(), Code::Connect, 1),
    ("half, silence", |talk, stream| half(talk, stream).send(DATA, 0, stream, b"1"), Code::Timeout, 1),
    ("half, reset", |talk, stream| half(talk, stream).reset(stream, CANCEL), Code::Connect, 1),
    ("half, reset for no error", |talk, stream| half(talk, stream).reset(stream, NO_ERROR), Code::Connect, 1),
    ("half, a farewell", |talk, stream| half(talk, stream).go_away(0, NO_ERROR, b""), Code::Connect, 1),
];

/// A text that must not be shown.
fn at_length() -> Vec<u8> {
    format!("/web/projects/{KEY} ana@acme.dev {}", "too much ".repeat(1000)).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_an_http_2_request_is_trouble_and_the_next_one_has_another_connection() {
    for (name, operation, code, tries) in DEEDS {
        let (processed, connections) = (Processed::default(), AtomicUsize::new(0));
        let seen = processed.clone();
        let server = http2(move |talk| {
            let number = connections.fetch_add(1, Ordering::Relaxed);
            while let Some((stream, body)) = talk.request() {
                processed.lock().unwrap().push((body, number));
                match number {
                    0 => operation(talk, stream),
                    _ => talk.accept(stream),
                }
            }
        });
        let (endpoint, lines) = trusted(server.port);
        let client = client(&endpoint, &lines.replace("30s", "1s"));
        let (reason, _) = trouble(client.batch(Endpoint::People, "first".into()).await);
        assert_eq!(reason.code, code, "{name}: {}", reason.text);
        let told = &reason.text;
        assert!(told.contains("localhost") && told.chars().count() < 300, "{name}: {told}");
        assert!(!told.contains(KEY) && !told.contains("ana@"), "{name}: {told}");
        assert_eq!(client.batch(Endpoint::People, "next".into()).await, Verdict::Accepted, "{name}");
        let mut came = vec![("first".to_owned(), 0); tries];
        came.push(("next".to_owned(), 1));
        assert_eq!(*seen.lock().unwrap(), came, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_answer_as_much_is_read_over_http_2_as_a_verdict_needs() {
    let resets = Arc::new(AtomicUsize::new(0));
    let counts = resets.clone();
    let server = http2(move |talk| {
        let (stream, _) = talk.request().unwrap();
        headers(talk, stream, 400);
        let (long, _) = talk.request().unwrap();
        talk.send(HEADERS, END_HEADERS, long, &[STATUS_200]);
        for _ in 0..4 {
            talk.send(DATA, 0, long, &[b'z'; 16 << 10]);
        }
        // The next request may come before the reset: the client has its verdict before its connection sends that.
        while let Some((kind, flags, stream, _)) = talk.frame() {
            if kind == RST_STREAM && stream == long {
                counts.fetch_add(1, Ordering::Relaxed);
            } else if flags & END_STREAM != 0 {
                talk.accept(stream);
            }
        }
    });
    let (endpoint, lines) = trusted(server.port);
    let client = client(&endpoint, &lines);
    for _ in 0..3 {
        assert_eq!(client.batch(Endpoint::People, "{}".into()).await, Verdict::Accepted);
    }
    let began = Instant::now();
    while resets.load(Ordering::Relaxed) == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "the rest is awaited");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
