//! Receivers that cannot be trusted.

use crate::common::agent::TestAgent;
use crate::common::server::{self, Server, message, pem};
use crate::runner::{Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

/// A receiver behind TLS with one of the certificates of `tests/tls`.
fn behind(certificate: &str, receiver: SocketAddr) -> Server {
    server::tls(certificate, move |session| {
        let mut heard = Vec::new();
        while let Some(request) = message(session) {
            let mut receiver = TcpStream::connect(receiver).unwrap();
            receiver.write_all(&request).unwrap();
            heard.extend(request);
            if session.write_all(&message(&mut receiver).unwrap()).is_err() {
                break;
            }
        }
        heard
    })
}

pub fn untrusted(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    agent.drop_events(50, 5);
    let trusted = format!("koala.ca_file = {:?}", pem("ca.pem"));
    let mut reasons = BTreeSet::new();
    // The authority of good.pem is not the system's, so it is the unknown one until it is trusted.
    for (certificate, lines, why) in [
        ("good.pem", "koala.concurrency = 8", "an authority that is not trusted"),
        ("expired.pem", &trusted, "has expired"),
        ("other.pem", &trusted, "for another name"),
        ("selfsigned.pem", &trusted, "an authority that is not trusted"),
        ("", &trusted, "does not speak TLS"),
    ] {
        let server = match certificate {
            "" => Server::start(|stream| {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                message(stream).unwrap_or_default()
            }),
            certificate => behind(certificate, agent.receiver.addr()),
        };
        agent.set(&format!("koala.endpoint = \"https://localhost:{}\"", server.port));
        agent.set(lines);
        agent.start();
        agent.until_status("the reason is told", |status| {
            let reason = status.destination.reason.as_ref();
            reason.is_some_and(|reason| reason.code == Code::Tls && reason.text.contains(why))
        });
        let seen = agent.status();
        assert_eq!((seen.outbox.pending, seen.outbox.failed), (50, 0), "{certificate}");
        reasons.insert(seen.destination.reason.unwrap().text);
        agent.stop();
        assert!(server.heard().iter().all(String::is_empty), "{certificate}: {:?}", server.heard());
        assert_eq!(agent.receiver.stats().requests, 0, "{certificate}");
    }
    // A self-signed certificate and one of an unknown authority have the same reason.
    assert_eq!(reasons.len(), 4, "{reasons:#?}");

    plain_only_when_asked_for(&mut agent);
    let server = behind("good.pem", agent.receiver.addr());
    agent.set(&format!("koala.endpoint = \"https://localhost:{}\"", server.port));
    agent.set("koala.allow_plain_http = false");
    agent.start();
    agent.end().note(format!("{} distinct reasons", reasons.len())).into()
}

/// Plain HTTP to another machine is refused in the configuration, unless it is asked for there.
fn plain_only_when_asked_for(agent: &mut TestAgent) {
    agent.set("koala.endpoint = \"http://192.0.2.1\"");
    agent.start();
    assert_eq!(agent.wait_for_exit().code(), Some(78));
    assert!(agent.log().contains("koala.allow_plain_http"), "{}", agent.log());
    agent.set("koala.allow_plain_http = true");
    let checked = agent.command("check").arg("--config-only").output().unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    assert!(told.starts_with("ok    configuration"), "{told}");
}
