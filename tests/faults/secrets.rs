//! The key and people's emails: where they must never be seen, whatever the trouble and wherever the key comes from.

use crate::common::agent::TestAgent;
use crate::common::setup::KEY;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

/// The domain of every person here.
const DOMAIN: &str = "acme.dev";

/// Where the key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Configuration,
    File,
    Environment,
    Credential,
}

pub fn key_is_nowhere(_: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for source in [Source::Configuration, Source::File, Source::Environment, Source::Credential] {
        figures.add(in_trouble(source));
    }
    figures.into()
}

/// A key comes for another address than that in force: it is not sent to the former one.
pub fn first_key(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let file = agent.path("first-key");
    agent.unset("koala.public_key");
    agent.set(&format!("koala.public_key_file = {file:?}"));
    agent.start();
    agent.drop_events(10, 3);
    agent.until_status("they are stored", |status| status.outbox.pending == 10);
    let former = agent.receiver.endpoint();
    agent.set("koala.endpoint = \"http://127.0.0.1:1\"");
    fs::write(&file, KEY).unwrap();
    agent.until_status("the key is in use", |status| {
        status.destination.reason.as_ref().is_some_and(|r| r.code == Code::Connect)
    });
    assert_eq!(agent.status().destination.endpoint, "http://127.0.0.1:1");
    assert_eq!(agent.receiver.stats().requests, 0);
    agent.set(&format!("koala.endpoint = \"{former}\""));
    agent.signal(Signal::SIGHUP);
    agent.until_delivered();
    agent.end().into()
}

/// A receiver that answers so, and tells the request's head, which names the key, in its address and in its body.
fn telling(status: &'static str, kind: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(move |stream: TcpStream| tell(stream, status, kind));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            // An error: the client has gone.
            std::thread::spawn(move || answer(stream).ok());
        }
    });
    endpoint
}

fn tell(mut stream: TcpStream, status: &str, kind: &str) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") && request.read_line(&mut head)? > 0 {}
    if let Some(rest) = head.to_ascii_lowercase().split("content-length: ").nth(1) {
        length = rest.lines().next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    }
    let mut body = vec![0; length];
    request.read_exact(&mut body)?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    // A page is told by how it begins.
    let begin = if kind == "text/html" { "<!doctype html>" } else { "" };
    let text = format!("{begin}no such project: {path} {head}{}", String::from_utf8_lossy(&body));
    let length = text.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nLocation: http://elsewhere.test{path}?{path}\r\n\
         Retry-After: {path}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    );
    stream.write_all(answer.as_bytes())
}

/// One agent whose receiver is in one trouble after the other, and then in none.
fn in_trouble(source: Source) -> Figures {
    let mut agent = TestAgent::program(Faults::default());
    agent.option("--verbose");
    give_key(&mut agent, source);
    let good = agent.receiver.endpoint();
    // A port that was free a moment ago may be another test's by now.
    let nobody = "http://127.0.0.1:1".to_owned();
    let troubles = [
        (telling("400 Bad Request", "application/json"), Code::RefusesAll),
        (nobody, Code::Connect),
        (good.replace("http:", "https:"), Code::Tls),
        (telling("302 Found", "text/plain"), Code::Redirect),
        (telling("401 Unauthorized", "text/plain"), Code::KeyRefused),
        (telling("404 Not Found", "text/plain"), Code::NotFound),
        (telling("429 Too Many Requests", "text/plain"), Code::RateLimited),
        (telling("500 Internal Server Error", "text/plain"), Code::Http5xx),
        (telling("200 OK", "text/html"), Code::NotTheReceiver),
    ];
    // The source of the key makes no difference to what is said of it, so one source goes through all failures.
    let few = if source == Source::Credential { troubles.len() } else { 2 };
    agent.drop_events(4, 2);
    for (n, (endpoint, code)) in troubles.iter().take(few).enumerate() {
        agent.set(&format!("koala.endpoint = \"{endpoint}\""));
        match n {
            0 => agent.start(),
            _ => agent.signal(Signal::SIGHUP),
        }
        agent.until_status(&format!("{code} from {endpoint}"), |status| {
            status.destination.endpoint == *endpoint
                && status.destination.reason.as_ref().is_some_and(|reason| reason.code == *code)
        });
        nothing_is_told(&agent, source);
    }
    agent.set(&format!("koala.endpoint = \"{good}\""));
    agent.signal(Signal::SIGHUP);
    agent.until_delivered();
    nothing_is_told(&agent, source);
    // This looks through the log, the database and the spool.
    let figures = agent.end();
    assert!(!agent.log().contains(DOMAIN), "an email is in the log:\n{}", agent.log());
    let warned = agent.log().contains("run: chmod o-r ");
    assert_eq!(warned, matches!(source, Source::Configuration | Source::File), "{}", agent.log());
    figures
}

/// Files with the key in them are such as everybody can read, but for the credential.
fn give_key(agent: &mut TestAgent, source: Source) {
    let everybody = Permissions::from_mode(0o644);
    fs::set_permissions(agent.path("config.toml"), everybody.clone()).unwrap();
    if source == Source::Configuration {
        return;
    }
    agent.unset("koala.public_key");
    match source {
        Source::Configuration => {}
        Source::File => {
            let file = agent.path("public-key");
            fs::write(&file, KEY).unwrap();
            fs::set_permissions(&file, everybody).unwrap();
            agent.set(&format!("koala.public_key_file = {file:?}"));
        }
        Source::Environment => agent.env("KOALA_AGENT_KOALA__PUBLIC_KEY", KEY),
        Source::Credential => {
            let folder = agent.path("credentials");
            let file = folder.join("koala-public-key");
            fs::create_dir(&folder).unwrap();
            fs::write(&file, KEY).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
            agent.env("CREDENTIALS_DIRECTORY", folder);
        }
    }
}

/// Looks at everything that a running agent shows of itself.
fn nothing_is_told(agent: &TestAgent, source: Source) {
    let holds = |bytes: &[u8], text: &str| memchr::memmem::find(bytes, text.as_bytes()).is_some();
    let commands =
        [&["status"][..], &["status", "--json"], &["list", "--json"], &["show", "event-0"], &["check"]];
    for arguments in commands {
        let output = agent.command(arguments[0]).args(&arguments[1..]).output().unwrap();
        for bytes in [&output.stdout, &output.stderr] {
            let said = String::from_utf8_lossy(bytes);
            assert!(!holds(bytes, KEY), "{arguments:?} with the key by {source:?}: {said}");
            assert!(arguments[0] != "status" || !holds(bytes, DOMAIN), "{arguments:?}: {said}");
        }
    }
    let of_process = |name: &str| fs::read(format!("/proc/{}/{name}", agent.pid())).unwrap();
    assert!(!holds(&of_process("cmdline"), KEY), "the command line");
    assert_eq!(holds(&of_process("environ"), KEY), source == Source::Environment, "the environment");
    assert!(!holds(agent.log().as_bytes(), KEY), "the log:\n{}", agent.log());
}
