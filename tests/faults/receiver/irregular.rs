//! Answers that are odd but lawful, that are broken, that have no end, that point elsewhere.

use crate::common::agent::TestAgent;
use crate::common::proxy::{Exchange, Proxy, Treatment, gone, pass_on, treat};
use crate::common::server::{self, Server};
use crate::common::setup::KEY;
use crate::runner::{Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::Refused;
use nix::sys::signal::Signal;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The result of a request that is treated so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The receiver has accepted it, and the agent knows.
    Known,
    /// The receiver has accepted it, and it is sent again.
    Repeated,
    /// The receiver has not seen it, and it is sent again.
    Again,
}

use Then::{Again, Known, Repeated};

/// Passes the request on, and answers this.
fn answer(answer: &'static str) -> Treatment {
    treat(move |exchange| exchange.answer(answer.as_bytes()))
}

/// Passes the request on, answers this, and ends the connection.
fn answer_and_close(answer: &'static str) -> Treatment {
    treat(move |exchange| {
        exchange.answer(answer.as_bytes())?;
        exchange.close()
    })
}

/// Treatments, each with its name and its result.
fn treatments() -> Vec<(&'static str, Then, Treatment)> {
    vec![
        ("200", Known, answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
        ("201", Known, answer("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")),
        ("202", Known, answer("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")),
        ("204", Known, answer("HTTP/1.1 204 No Content\r\n\r\n")),
        (
            "204 that calls itself a page",
            Known,
            answer("HTTP/1.1 204 No Content\r\nContent-Type: text/html\r\n\r\n"),
        ),
        // Any 2xx that is not a page is acceptance, whatever its body says.
        (
            "200 that tells of an error",
            Known,
            answer(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}",
            ),
        ),
        (
            "chunks",
            Known,
            answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ),
        ("HTTP/1.0", Known, answer_and_close("HTTP/1.0 200 OK\r\n\r\n{}")),
        ("no keep-alive", Known, answer_and_close("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}")),
        ("closed without a word", Known, answer_and_close("HTTP/1.1 204 No Content\r\n\r\n")),
        (
            "100 before the answer",
            Known,
            answer("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
        ),
        (
            "103 before the answer",
            Known,
            answer("HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
        ),
        ("an answer before the body", Known, treat(early)),
        ("read a byte at a time", Known, treat(slow_reader)),
        ("closed as the next request comes", Again, treat(|exchange| exchange.close())),
        // The second of two answers is nobody's: were it taken for the next request's, those events would be lost.
        (
            "two answers at once",
            Known,
            treat(|exchange| {
                exchange.answer(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")?;
                sleep(Duration::from_millis(50));
                exchange.close()
            }),
        ),
        ("half a request, then nothing", Again, treat(|exchange| stall(exchange, 60))),
        ("no answer on an open connection", Again, treat(|exchange| stall(exchange, usize::MAX))),
        ("half-closed at once", Again, treat(half_closed)),
        (
            "chunks that are none",
            Repeated,
            answer_and_close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        ),
        ("a body cut short", Repeated, answer_and_close("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")),
        ("a status cut short", Repeated, answer_and_close("HTTP/1.1 2")),
        (
            "two lengths",
            Repeated,
            answer_and_close("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        ),
        (
            "a length that is no number",
            Repeated,
            answer_and_close("HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}"),
        ),
        ("another protocol", Repeated, answer_and_close("SSH-2.0-OpenSSH_9.2\r\n")),
    ]
}

/// Answers when it has the head, then reads the body, and the receiver gets all of it.
fn early(exchange: &mut Exchange) -> io::Result<()> {
    let mut request = server::head(&mut exchange.stream).ok_or_else(gone)?;
    exchange.stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    let mut body = vec![0; server::length(&request)];
    exchange.stream.read_exact(&mut body)?;
    request.extend(body);
    exchange.forward(&request).map(drop)
}

/// Reads the request in small pieces with pauses, all of it in good time.
fn slow_reader(exchange: &mut Exchange) -> io::Result<()> {
    let mut request = server::head(&mut exchange.stream).ok_or_else(gone)?;
    let mut body = vec![0; server::length(&request)];
    for piece in body.chunks_mut(64) {
        sleep(Duration::from_millis(10));
        exchange.stream.read_exact(piece)?;
    }
    request.extend(body);
    let answer = exchange.forward(&request)?;
    exchange.stream.write_all(&answer)
}

/// Reads so many bytes at most, and then does nothing until the other side gives up.
fn stall(exchange: &mut Exchange, bytes: usize) -> io::Result<()> {
    let mut left = vec![0; bytes.min(100)];
    exchange.stream.read_exact(&mut left)?;
    if bytes > left.len() {
        while exchange.stream.read(&mut left)? > 0 {}
    } else {
        // Unread bytes stay in the kernel, so only a write would show that the other side has gone.
        sleep(TIMEOUT * 2);
    }
    exchange.close()
}

/// Says that it will say nothing, and reads on.
fn half_closed(exchange: &mut Exchange) -> io::Result<()> {
    exchange.stream.shutdown(Shutdown::Write)?;
    while exchange.stream.read(&mut [0; 1024])? > 0 {}
    exchange.close()
}

/// The agent's time-out in these faults.
const TIMEOUT: Duration = Duration::from_secs(1);

pub fn oddities(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let proxy = Proxy::before(agent.receiver.addr(), pass_on());
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.set(&format!("koala.timeout = \"{}s\"", TIMEOUT.as_secs()));
    agent.start();
    let treatments = treatments();
    let requests = scale.of(1, 5);
    for (name, then, treatment) in &treatments {
        let before = agent.receiver.stats().repeats;
        proxy.next(requests, treatment);
        // No request of these people is in flight, so each treatment is applied to one of their requests.
        agent.drop_lines(10, 5);
        agent.until_delivered();
        agent.until("each treatment was met", |_| proxy.left() == 0);
        agent.until_status("all is acknowledged", |status| status.outbox.pending == 0);
        let repeated = agent.receiver.stats().repeats - before;
        assert_eq!(repeated > 0, *then == Repeated, "{name}: {repeated} events were repeated");
    }
    agent.end().note(format!("{} kinds of answers and connections", treatments.len())).into()
}

/// Bytes that a server gets rid of before the other side stops reading: what is read, and the kernel's buffers.
const MOST_SENT: u64 = 4 << 20;
/// Memory that such answers may take: the buffers of the connections that they come over.
const MOST_MEMORY: u64 = 8 << 20;

/// Sends a head, and then pieces for as long as anybody reads.
fn endless(head: &'static str, piece: String, pause: Duration, sent: &Arc<AtomicU64>) -> Treatment {
    let (sent, piece) = (sent.clone(), Arc::new(piece));
    treat(move |exchange| {
        // The less the kernel keeps, the closer is what was sent to what was read.
        let socket = tokio::net::TcpSocket::from_std_stream(exchange.stream.try_clone()?);
        socket.set_send_buffer_size(1 << 12)?;
        exchange.answer(head.as_bytes())?;
        let began = Instant::now();
        let mut here = 0;
        while exchange.stream.write_all(piece.as_bytes()).is_ok() {
            here += piece.len() as u64;
            sent.fetch_max(here, Relaxed);
            sleep(pause);
            // A byte a second keeps no connection for longer than the time-out.
            if began.elapsed() > TIMEOUT * 20 {
                sent.store(u64::MAX, Relaxed);
                break;
            }
        }
        exchange.close()
    })
}

pub fn without_end(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let proxy = Proxy::before(agent.receiver.addr(), pass_on());
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.set(&format!("koala.timeout = \"{}s\"", TIMEOUT.as_secs()));
    agent.start();
    // The memory of ordinary work comes first.
    agent.drop_lines(1_000, 20);
    agent.until_delivered();
    let before = agent.process().peak_memory();

    let sent = Arc::new(AtomicU64::new(0));
    let at_once = |head, piece| endless(head, piece, Duration::ZERO, &sent);
    let uncounted = Arc::default();
    let wide = "x".repeat(1 << 16);
    let treatments = [
        (
            "a byte a second",
            endless(
                "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                "x".into(),
                Duration::from_secs(1),
                &sent,
            ),
        ),
        ("a body of a GiB", at_once("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", wide.clone())),
        ("a body without end", at_once("HTTP/1.1 200 OK\r\n\r\n", wide.clone())),
        (
            "chunks without end",
            at_once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", format!("10000\r\n{wide}\r\n")),
        ),
        ("an error's body without end", at_once("HTTP/1.1 503 No\r\n\r\n", wide.clone())),
        ("100,000 headers", at_once("HTTP/1.1 200 OK\r\n", "x: 1234567890\r\n".repeat(4_096))),
        ("a header without end", at_once("HTTP/1.1 200 OK\r\nx: ", wide.clone())),
        // Interim answers are no answer, and end with the time-out for one.
        (
            "100s without end",
            endless("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000), Duration::ZERO, &uncounted),
        ),
    ];
    for (name, treatment) in (0..scale.of(1, 10)).flat_map(|_| &treatments) {
        proxy.next(2, treatment);
        agent.drop_lines(20, 10);
        agent.until_delivered();
        agent.until("each treatment was met", |_| proxy.left() == 0);
        agent.until_status(name, |status| status.outbox.pending == 0);
        let sent = sent.load(Relaxed);
        assert!(sent < MOST_SENT, "{name}: {sent} bytes were sent before it was left");
    }
    let grown = agent.process().peak_memory().saturating_sub(before);
    assert!(grown < MOST_MEMORY, "{grown} bytes more memory");
    let note = format!("{} KiB more memory, {} KiB sent at most", grown >> 10, sent.load(Relaxed) >> 10);
    agent.end().note(note).into()
}

pub fn redirects(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let other = Server::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let to = format!("{}/web/projects/{KEY}/batch", other.endpoint());
    let status = Arc::new(AtomicU16::new(0));
    let now = status.clone();
    let redirecting = treat(move |exchange| match now.load(Relaxed) {
        0 => exchange.pass(),
        status => {
            exchange.request()?;
            let answer = format!("HTTP/1.1 {status} Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            exchange.stream.write_all(answer.as_bytes())
        }
    });
    let proxy = Proxy::before(agent.receiver.addr(), redirecting);
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.drop_lines(20, 5);
    for answered in [301, 302, 303, 307, 308] {
        status.store(answered, Relaxed);
        match agent.is_started() {
            false => agent.start(),
            // A reload makes the agent try at once.
            true => agent.signal(Signal::SIGHUP),
        }
        agent.until_status("it is told", |seen| {
            let reason = seen.destination.reason.as_ref();
            let told =
                reason.is_some_and(|r| r.code == Code::Redirect && r.text.contains(&answered.to_string()));
            seen.destination.state == Refused && told
        });
    }
    let seen = agent.status();
    assert_eq!((seen.outbox.pending, seen.outbox.failed), (20, 0));
    let to = format!("{}/web/projects/<public_key>/batch", other.endpoint());
    assert!(seen.destination.reason.unwrap().text.contains(&to), "where to is not told");
    assert_eq!(agent.receiver.stats().requests, 0);
    status.store(0, Relaxed);
    agent.signal(Signal::SIGHUP);
    agent.until_delivered();
    assert_eq!(other.heard().len(), 0, "the redirect was followed");
    agent.end().into()
}
