//! What a server may do to a connection, and what the client makes of it. The servers here speak bytes, not HTTP.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use koala_agent::clock::Clock;
use koala_agent::config::{Config, Environment, Options, load};
use koala_agent::koala::{Client, Verdict};
use koala_agent::reason::{Code, Reason};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const KEY: &str = "pk_wire_0123456789";

/// A server that hands every connection to a function, and remembers the bytes that came in.
struct Server {
    port: u16,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Server {
    fn start(serve: impl Fn(&mut TcpStream) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (serve, hears) = (Arc::new(serve), heard.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (serve, hears) = (serve.clone(), hears.clone());
                std::thread::spawn(move || {
                    let heard = serve(&mut connection.unwrap());
                    hears.lock().unwrap().push(heard);
                });
            }
        });
        Server { port, heard }
    }

    /// Answers each connection's first request so, then closes it.
    fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Server {
        Server::start(move |stream| {
            let heard = request(stream).unwrap_or_default();
            // The client may have gone already.
            let _ = stream.write_all(answer.as_ref());
            heard
        })
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

/// One request with a body of known length, or one without a body; `None` when the client is gone.
fn request(stream: &mut impl Read) -> Option<Vec<u8>> {
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        heard.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&heard).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    heard.extend(body);
    Some(heard)
}

fn config(lines: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, format!("koala.public_key = \"{KEY}\"\nkoala.timeout = \"2s\"\n{lines}\n"))
        .unwrap();
    let nothing: [(&str, &str); 0] = [];
    load(&Options { config: Some(file), user: false }, &nothing.into_iter().collect::<Environment>()).unwrap()
}

fn client(endpoint: &str, lines: &str) -> Client {
    let config = config(&format!("koala.endpoint = \"{endpoint}\"\n{lines}"));
    Client::new(&config.koala, Clock::system()).unwrap().unwrap()
}

async fn send(endpoint: &str, lines: &str) -> Verdict {
    let verdict = client(endpoint, lines).batch("{\"secret\":1}".to_owned()).await;
    assert!(!format!("{verdict:?}").contains(KEY), "{verdict:?}");
    verdict
}

fn trouble(verdict: Verdict) -> (Reason, Option<Duration>) {
    match verdict {
        Verdict::Trouble { reason, retry_after } => (reason, retry_after),
        other => panic!("{other:?}"),
    }
}

fn closed(verdict: Verdict) -> Reason {
    match verdict {
        Verdict::Closed(reason) => reason,
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
async fn an_answer_that_never_ends_is_left_after_64_kib_or_in_time() {
    let slow = |stream: &mut TcpStream| {
        request(stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").unwrap();
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(300));
        }
        Vec::new()
    };
    let silent = |stream: &mut TcpStream| {
        request(stream);
        std::thread::sleep(Duration::from_secs(5));
        Vec::new()
    };
    for server in [Server::start(slow), Server::start(silent)] {
        let began = Instant::now();
        let (reason, _) = trouble(send(&server.endpoint(), "").await);
        assert_eq!(reason.code, Code::Timeout);
        assert!((1_500..4_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    }
    // A body of a GiB, announced or not, and headers without end: what is sent of them is bounded.
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: ",
        "HTTP/1.1 200 OK\r\n",
    ] {
        let piece =
            if head.ends_with("OK\r\n") { "x: 1234567890\r\n".repeat(4096) } else { "x".repeat(65536) };
        let sent = Arc::new(Mutex::new(0));
        let sending = sent.clone();
        let server = Server::start(move |stream| {
            request(stream);
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(piece.as_bytes()).is_ok() {
                *sending.lock().unwrap() += piece.len();
            }
            Vec::new()
        });
        let verdict = send(&server.endpoint(), "").await;
        if head.ends_with("\r\n\r\n") {
            assert_eq!(verdict, Verdict::Accepted);
        } else {
            assert_eq!(trouble(verdict).0.code, Code::Connect);
        }
        // The kernel's buffers on both sides take some megabytes of it.
        assert!(*sent.lock().unwrap() < 32 << 20, "{head:?}: {}", sent.lock().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_the_receiver_asks_for_is_read_in_every_form() {
    let soon = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(1000));
    for (text, seconds) in [
        ("7", 7..=7),
        (&*soon, 990..=1000),
        ("0", 0..=0),
        ("-1", 0..=0),
        ("1000000000", 3600..=3600),
        ("soon", 0..=0),
    ] {
        let server =
            Server::answering(format!("HTTP/1.1 503 No\r\nRetry-After: {text}\r\nContent-Length: 0\r\n\r\n"));
        let (_, wish) = trouble(send(&server.endpoint(), "").await);
        assert!(seconds.contains(&wish.unwrap_or_default().as_secs()), "{text}: {wish:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed_and_the_other_server_never_sees_the_key() {
    let other = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    for status in [301, 302, 303, 307, 308] {
        let to = format!("{}/web/projects/{KEY}/batch", other.endpoint());
        let answer = format!("HTTP/1.1 {status} Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        let server = Server::answering(answer);
        let reason = closed(send(&server.endpoint(), "").await);
        assert_eq!(reason.code, Code::Redirect);
        assert!(reason.text.contains(&format!("{}/web/projects/<public_key>/batch", other.endpoint())));
    }
    assert_eq!(other.heard().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_and_every_request_says_who_sends_it() {
    let server = Server::start(|stream| {
        let mut heard = Vec::new();
        while let Some(request) = request(stream) {
            heard.extend(request);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        }
        heard
    });
    let client = client(&server.endpoint(), "");
    for _ in 0..3 {
        assert_eq!(client.batch("{}".into()).await, Verdict::Accepted);
    }
    drop(client);
    while server.heard().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let heard = server.heard();
    assert_eq!(heard.len(), 1, "one connection: {heard:?}");
    let agent = format!("user-agent: koala-agent/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(heard[0].to_lowercase().matches(&agent).count(), 3);
    assert_eq!(heard[0].matches(&format!("POST /web/projects/{KEY}/batch HTTP/1.1\r\n")).count(), 3);
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

fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A TLS server with one of the certificates in `tests/tls`; what it heard is what came through the TLS.
fn tls(certificate: &str) -> Server {
    let chain = vec![CertificateDer::from_pem_file(pem(certificate)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    Server::start(move |stream| {
        let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut stream = rustls::Stream::new(&mut session, stream);
        let heard = request(&mut stream).unwrap_or_default();
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        heard
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_cannot_be_trusted_hears_nothing_and_the_reason_says_why() {
    let trusted = format!("koala.ca_file = {:?}", pem("ca.pem"));
    for (certificate, lines, why) in [
        ("good.pem", "", "nobody who is trusted"),
        ("selfsigned.pem", trusted.as_str(), "nobody who is trusted"),
        ("expired.pem", trusted.as_str(), "has expired"),
        ("other.pem", trusted.as_str(), "for another name"),
    ] {
        let server = tls(certificate);
        let (reason, _) = trouble(send(&format!("https://localhost:{}", server.port), lines).await);
        assert_eq!(reason.code, Code::Tls, "{certificate}: {}", reason.text);
        assert!(reason.text.contains(why), "{certificate}: {}", reason.text);
        assert!(server.heard().iter().all(String::is_empty), "{certificate}");
    }
    let plain = Server::start(|stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        request(stream).unwrap_or_default()
    });
    let (reason, _) = trouble(send(&format!("https://localhost:{}", plain.port), &trusted).await);
    assert_eq!(reason.code, Code::Tls, "{}", reason.text);
    assert!(reason.text.ends_with("does not speak TLS there"), "{}", reason.text);

    let server = tls("good.pem");
    assert_eq!(send(&format!("https://localhost:{}", server.port), &trusted).await, Verdict::Accepted);
    assert!(server.heard()[0].contains("{\"secret\":1}"));
}

/// A proxy that answers CONNECT with this status line, and on 200 joins both ends.
fn proxy(status: &'static str, to: u16) -> Server {
    Server::start(move |stream| {
        let heard = request(stream).unwrap_or_default();
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
    let server = tls("proxied.pem");
    let through = proxy("200 Connection established", server.port);
    let lines = format!("koala.proxy = {:?}\nkoala.ca_file = {:?}", through.endpoint(), pem("ca.pem"));
    assert_eq!(send("https://koala.invalid", &lines).await, Verdict::Accepted);
    while through.heard().is_empty() {
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
