//! The built-in receiver as a sender sees it: raw HTTP, no client in between.

use koala_agent::reason::SUSPENDED;
use koala_agent::receiver::{Faults, Receiver, ReceiverOptions};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const BATCH: &str = "/web/projects/pk_test/batch";
const ACCOUNTS: &str = "/web/projects/pk_test/accounts/batch";
const AUTH: &str = "/web/projects/pk_test/auth";
const AGENT: &str = "User-Agent: test/1\r\n";

struct World {
    runtime: Runtime,
    receiver: Receiver,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

fn world() -> World {
    with(ReceiverOptions { seed: Some(7), ..ReceiverOptions::default() })
}

fn faulty(faults: Faults) -> World {
    with(ReceiverOptions { seed: Some(7), faults, ..ReceiverOptions::default() })
}

fn with(options: ReceiverOptions) -> World {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
    World { runtime, receiver }
}

impl World {
    /// The answer, or `None` when the connection was broken without one.
    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Option<Reply> {
        let mut stream = connect(self.receiver.addr());
        let length = body.len();
        let host = if headers.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}");
        // A receiver that breaks the connection may do so before everything is written.
        let _ = write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}");
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Reply { status, head: head.to_lowercase(), body: body.to_owned() })
    }

    fn post(&self, path: &str, body: impl ToString) -> Reply {
        self.request("POST", path, AGENT, &body.to_string()).unwrap()
    }

    fn get(&self, path: &str) -> Reply {
        self.request("GET", path, AGENT, "").unwrap()
    }

    fn put_faults(&self, faults: &str) -> Reply {
        self.request("PUT", "/receiver/faults", "", faults).unwrap()
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn track(id: &str) -> Value {
    json!({"type": "track", "event": "Signed Up", "sent_at": "2026-01-02T03:04:05Z", "message_id": id})
}

fn identify(id: &str) -> Value {
    json!({"type": "identify", "traits": {}, "sent_at": "2026-01-02T03:04:05Z", "message_id": id})
}

fn ana(events: &[Value]) -> Value {
    json!({"email": "ana@acme.dev", "traits": {}, "events": events})
}

fn without(mut item: Value, member: &str) -> Value {
    item.as_object_mut().unwrap().remove(member);
    item
}

fn put(mut item: Value, member: &str, value: Value) -> Value {
    item[member] = value;
    item
}

#[test]
fn a_request_that_keeps_the_rules_is_accepted() {
    let thirty: Vec<_> = (0..30).map(|n| track(&format!("t{n}"))).collect();
    let page = json!({"type": "page", "sent_at": "2026-01-02T03:04:05Z", "message_id": "p"});
    let account = json!({"type": "identify", "traits": {"group_id": "eu"}});
    for (path, body) in [
        (BATCH, ana(&[track("a")])),
        (BATCH, ana(&thirty)),
        (BATCH, ana(&[])),
        (BATCH, json!({"profile_id": "7f0d3d1c-94ba-4f2e-9a1d-0b3f6c7d8e9f", "identifies": [identify("i")]})),
        (BATCH, json!({"profile_id": 7, "email": null, "ip": "::1", "page_views": [page]})),
        (
            BATCH,
            json!({"email": "ana@acme.dev", "unknown": 1, "events": [put(track("b"), "more", json!([1]))]}),
        ),
        (ACCOUNTS, json!({"domain": "acme.dev", "identifies": [account, account]})),
        (ACCOUNTS, json!({"account_id": "a1", "events": [track("c")]})),
    ] {
        let world = world();
        let reply = world.post(path, &body);
        assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{body}");
        let items = ["events", "identifies", "page_views"].iter();
        let items: usize = items.filter_map(|list| body[list].as_array()).map(Vec::len).sum();
        assert_eq!(world.receiver.events().len(), items, "{body}");
    }
}

#[test]
fn each_broken_rule_is_named_and_nothing_is_stored() {
    let many: Vec<_> = (0..31).map(|n| track(&n.to_string())).collect();

    for (path, body, rule) in [
        (BATCH, String::new(), "the body must be a JSON object: "),
        (BATCH, "{".into(), "the body must be a JSON object: "),
        (BATCH, "[]".into(), "the body must be a JSON object: "),
        (BATCH, "{\"email\":\"a\"}x".into(), "the body must be a JSON object: "),
        (BATCH, json!({"events": []}).to_string(), "profile_id or email must stand at the top level"),
        (BATCH, json!({"email": "", "profile_id": null}).to_string(), "profile_id or email must stand"),
        (BATCH, json!({"email": 0, "profile_id": false}).to_string(), "profile_id or email must stand"),
        (BATCH, json!({"domain": "acme.dev"}).to_string(), "profile_id or email must stand"),
        (BATCH, json!({"email": "a", "events": {}}).to_string(), "events must be an array"),
        (BATCH, json!({"email": "a", "identifies": null}).to_string(), "identifies must be an array"),
        (BATCH, ana(&many).to_string(), "events must have at most 30 items and has 31"),
        (BATCH, json!({"email": "a", "page_views": many}).to_string(), "page_views must have at most 30"),
        (BATCH, json!({"email": "a", "identifies": many}).to_string(), "identifies must have at most 30"),
        (BATCH, ana(&[track("a"), json!("b")]).to_string(), "events[1] must be an object"),
        (BATCH, ana(&[without(track("a"), "type")]).to_string(), "events[0].type must be \"track\""),
        (BATCH, ana(&[identify("a")]).to_string(), "events[0].type must be \"track\""),
        (
            BATCH,
            json!({"email": "a", "identifies": [track("a")]}).to_string(),
            "identifies[0].type must be \"id",
        ),
        (
            BATCH,
            ana(&[without(track("a"), "message_id")]).to_string(),
            "events[0].message_id must be a string",
        ),
        (BATCH, ana(&[put(track("a"), "message_id", json!(7))]).to_string(), "events[0].message_id must be"),
        (BATCH, ana(&[track("")]).to_string(), "events[0].message_id must be a string that is not empty"),
        (BATCH, ana(&[without(track("a"), "sent_at")]).to_string(), "events[0].sent_at must be a date-time"),
        (BATCH, ana(&[put(track("a"), "sent_at", json!("soon"))]).to_string(), "events[0].sent_at must be"),
        (
            BATCH,
            ana(&[put(track("a"), "sent_at", json!(1767323045))]).to_string(),
            "events[0].sent_at must be",
        ),
        (BATCH, ana(&[without(track("a"), "event")]).to_string(), "events[0].event must be a string that is"),
        (BATCH, ana(&[put(track("a"), "event", json!(""))]).to_string(), "events[0].event must be a string"),
        (ACCOUNTS, ana(&[track("a")]).to_string(), "account_id or domain must stand at the top level"),
        (
            ACCOUNTS,
            json!({"domain": "a", "identifies": [{"type": "identify"}]}).to_string(),
            "identifies[0].traits",
        ),
        (
            ACCOUNTS,
            json!({"domain": "a", "events": [without(track("a"), "message_id")]}).to_string(),
            "events[0].m",
        ),
    ] {
        let world = world();
        let reply = world.post(path, &body);
        assert_eq!(reply.status, 400, "{body}");
        assert!(reply.error().starts_with(rule), "{body}: {}", reply.error());
        assert!(world.receiver.events().is_empty(), "{body}");
    }
}

#[test]
fn every_request_of_the_vectors_keeps_the_rules() {
    let world = world();
    let mut sent = 0;
    for line in include_str!("../vectors/koala.jsonl").lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        for request in vector["expect"]["requests"].as_array().into_iter().flatten() {
            let reply = world.post(BATCH, &request["body"]);
            assert_eq!(reply.status, 204, "{}: {}", vector["name"], reply.body);
            sent += 1;
        }
    }
    assert!(sent > 20, "{sent}");
}

#[test]
fn the_head_of_a_request_is_checked_too() {
    let world = with(ReceiverOptions { expected_key: Some("pk_test".into()), ..ReceiverOptions::default() });
    let good = ana(&[track("a")]).to_string();
    for (method, path, headers, status, error) in [
        ("POST", BATCH, "", 400, "User-Agent must be there"),
        ("POST", BATCH, "User-Agent:\r\n", 400, "User-Agent must be there"),
        ("GET", AUTH, AGENT, 204, ""),
        ("GET", "/web/projects/other/auth", AGENT, 401, "the key is not the one"),
        ("POST", "/web/projects/other/batch", AGENT, 401, "the key is not the one"),
        ("PUT", BATCH, AGENT, 405, "/web/projects/<public_key>/batch takes POST"),
        ("POST", AUTH, AGENT, 405, "/web/projects/<public_key>/auth takes GET"),
        ("POST", "/web/projects/pk_test/other", AGENT, 404, "Koala has batch"),
        ("POST", "/web/projects//batch", AGENT, 404, "Koala has batch"),
        ("POST", "/batch", AGENT, 404, "only Koala's paths"),
        ("GET", "/receiver/other", AGENT, 404, "the receiver has"),
        ("PUT", "/receiver/events", AGENT, 405, "/receiver/events takes GET, DELETE"),
    ] {
        let reply = world.request(method, path, headers, &good).unwrap();
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(status == 204 || reply.error().starts_with(error), "{method} {path}: {}", reply.body);
        assert_eq!(status == 405, reply.head.contains("\r\nallow: "), "{method} {path}");
    }
    assert!(world.receiver.events().is_empty());
}

#[test]
fn a_web_page_can_neither_read_nor_change_anything() {
    let w = world();
    w.post(BATCH, ana(&[track("a")]));
    for (headers, status) in [
        ("", 200),
        ("Host: localhost\r\n", 200),
        ("Host: LOCALHOST:8017\r\n", 200),
        ("Host: 127.0.0.1:8017\r\n", 200),
        ("Host: 192.168.7.9\r\n", 200),
        ("Host: [::1]:8017\r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("Host: evil.example:8017\r\n", 403),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: 127.0.0.1.evil.example\r\n", 403),
        ("Host: evil.example@localhost\r\n", 200),
        ("Host: localhost@evil.example\r\n", 403),
        ("Host: \r\n", 403),
        ("Host: a b\r\n", 403),
        ("Host: localhost\r\nHost: evil.example\r\n", 400),
        ("Host: evil.example\r\nHost: localhost\r\n", 400),
        ("Origin: https://evil.example\r\n", 403),
        ("Origin: http://127.0.0.1:8017\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
    ] {
        let read = w.request("GET", "/receiver/events", headers, "").unwrap();
        assert_eq!(read.status, status, "{headers:?}");
        assert_eq!(read.body.contains("ana@acme.dev"), status == 200, "{headers:?}");
        if status != 200 {
            assert!(read.error().contains("Host") || read.error().contains("Origin"), "{}", read.error());
            let set = w.request("PUT", "/receiver/faults", headers, r#"{"offline": true}"#).unwrap();
            assert_eq!((set.status, w.receiver.faults()), (status, Faults::default()), "{headers:?}");
            let headers = format!("{headers}{AGENT}Content-Type: text/plain\r\n");
            let sent = w.request("POST", BATCH, &headers, &ana(&[track("b")]).to_string()).unwrap();
            assert_eq!((sent.status, w.receiver.stats().held), (status, 1), "{headers:?}");
        }
    }
    // As to a proxy: the first line names the host as well.
    assert_eq!(w.get("http://localhost/receiver/events").status, 200);
    assert_eq!(w.get("http://evil.example/receiver/events").status, 403);
}

#[test]
fn a_head_is_read_up_to_a_limit() {
    let w = world();
    let padded = |bytes: usize| w.request("GET", AUTH, &format!("{AGENT}X: {}\r\n", "x".repeat(bytes)), "");
    assert_eq!(padded(8 << 10).unwrap().status, 204);
    assert_eq!(padded(64 << 10).map(|reply| reply.status), Some(431));
}

#[test]
fn a_body_above_the_limit_is_answered_413() {
    let world = world();
    let head = format!("{AGENT}Expect: 100-continue\r\nContent-Length: 10485761\r\n");
    let mut stream = connect(world.receiver.addr());
    write!(stream, "POST {BATCH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[test]
fn an_item_is_stored_once_in_the_bytes_it_came_in() {
    let world = world();
    let item = r#"{"type":"track", "event":"A","sent_at":"2026-01-02T03:04:05Z","n":9007199254740993,"x":1.0,"message_id":"\u0061"}"#;
    let later = track("a");
    world.post(
        BATCH,
        format!(r#"{{"email":null,"profile_id":1.0,"traits":{{"z":1,"a":2}},"events":[{item}]}}"#),
    );
    world.post(BATCH, ana(&[track("b"), later.clone(), track("b")]));
    world
        .post(BATCH, json!({"email": "ana@acme.dev", "events": [track("c")], "identifies": [identify("d")]}));

    let held = world.receiver.events();
    let ids: Vec<_> = held.iter().map(|held| &*held.message_id).collect();
    assert_eq!(ids, ["a", "b", "d", "c"], "in a request the identifies come first");
    assert_eq!(held.iter().map(|held| held.repeats).collect::<Vec<_>>(), [1, 1, 0, 0]);
    assert_eq!(held.iter().map(|held| held.request).collect::<Vec<_>>(), [1, 2, 3, 3]);
    assert_eq!(held[0].item.get(), item);
    assert_eq!((held[0].top("profile_id"), held[0].top("email")), (Some("1.0"), Some("null")));
    assert_eq!((held[0].top("traits"), held[0].top("ip")), (Some(r#"{"z":1,"a":2}"#), None));

    let listed = world.get("/receiver/events");
    assert!(listed.body.contains(&format!(r#""item":{item}"#)), "{}", listed.body);
    let listed = listed.json();
    assert_eq!(listed[1]["message_id"], "b");
    assert_eq!(listed[1]["kind"], "track");
    assert_eq!(listed[1]["email"], "ana@acme.dev");
    assert_eq!(listed[1].get("profile_id"), None);
    assert_eq!(listed[2]["kind"], "identify");

    let stats = json!({"requests": 3, "accepted_requests": 3, "refused_requests": 0, "dropped_requests": 0,
        "events": 4, "repeats": 2, "held": 4, "by_status": {"204": 3}});
    assert_eq!(world.get("/receiver/stats").json(), stats);

    assert_eq!(world.request("DELETE", "/receiver/events", "", "").unwrap().status, 204);
    assert_eq!(world.get("/receiver/events").body, "[]");
    world.post(BATCH, ana(&[later]));
    assert_eq!(world.receiver.events()[0].repeats, 0);
}

#[test]
fn every_request_is_remembered_without_the_key() {
    let world = world();
    world.post(BATCH, ana(&[track("a"), track("b")]));
    world.post(BATCH, ana(&[track("")]));
    world.receiver.set_faults(Faults { offline: true, ..Faults::default() });
    assert!(world.request("POST", BATCH, AGENT, "{}").is_none());
    world.receiver.set_faults(Faults::default());

    let log = world.receiver.requests();
    assert_eq!(
        log.iter().map(|it| (it.number, it.status)).collect::<Vec<_>>(),
        [(1, Some(204)), (2, Some(400)), (3, None)]
    );
    assert_eq!(
        (log[0].who.as_deref(), log[0].message_ids.as_slice()),
        (Some("ana@acme.dev"), ["a", "b"].map(String::from).as_slice())
    );
    assert_eq!(log[1].why.as_deref(), Some("events[0].message_id must be a string that is not empty"));
    let listed = world.get("/receiver/requests");
    assert_eq!(listed.json()[2]["why"], "offline, on purpose");
    assert!(!listed.body.contains("pk_test"));
}

#[test]
fn a_fault_answers_in_the_place_of_koala() {
    let none = Faults::default;
    let good = ana(&[track("a")]);
    for (faults, status, body) in [
        (Faults { fail_share: 1.0, ..none() }, 503, "unavailable, on purpose"),
        (Faults { rate_limited: 1.0, ..none() }, 429, "too many requests"),
        (
            Faults { refuse_all: Some(SUSPENDED.into()), ..none() },
            400,
            "{\"error\":\"Koala ingest suspended\"}",
        ),
        (Faults { status: Some(410), ..none() }, 410, "on purpose"),
        (Faults { html: true, ..none() }, 200, "<!DOCTYPE html>"),
        (Faults { too_large: Some(50), ..none() }, 413, "more than 50"),
        (Faults { poison: Some("a".into()), ..none() }, 400, "\\\"a\\\" is poisoned"),
    ] {
        let world = faulty(faults.clone());
        let reply = world.post(BATCH, &good);
        assert_eq!(reply.status, status, "{faults}");
        assert!(reply.body.contains(body), "{faults}: {}", reply.body);
        assert!(world.receiver.events().is_empty(), "{faults}");
        assert_eq!(world.receiver.stats().refused_requests, 1, "{faults}");
        assert_eq!(world.receiver.requests()[0].message_ids, ["a"], "{faults}");
        assert_eq!(world.get("/receiver/events").body, "[]", "{faults}");
    }
    let spared = faulty(Faults { too_large: Some(5_000), poison: Some("b".into()), ..none() });
    assert_eq!(spared.post(BATCH, &good).status, 204);
}

#[test]
fn a_suspended_service_answers_every_path_with_the_same() {
    let world = faulty(Faults { refuse_all: Some(SUSPENDED.into()), ..Faults::default() });
    for (method, path) in [("GET", AUTH), ("POST", "/web/other"), ("POST", BATCH)] {
        let reply = world.request(method, path, "", "").unwrap();
        assert_eq!((reply.status, reply.error().as_str()), (400, SUSPENDED), "{method} {path}");
    }
}

#[test]
fn retry_after_goes_with_429_and_503_alone() {
    for (status, goes) in [(429, true), (503, true), (400, false)] {
        let faults = Faults { status: Some(status), retry_after: Some("-1".into()), ..Faults::default() };
        let reply = faulty(faults).post(BATCH, "{}");
        assert_eq!(reply.head.contains("\r\nretry-after: -1"), goes, "{status}");
    }
}

#[test]
fn an_offline_receiver_breaks_the_connection_and_keeps_its_own_paths() {
    let world = faulty(Faults { offline: true, ..Faults::default() });
    assert!(world.request("POST", BATCH, AGENT, &ana(&[track("a")]).to_string()).is_none());
    assert!(world.receiver.events().is_empty());
    assert_eq!(world.get("/receiver/stats").json()["dropped_requests"], 1);
}

#[test]
fn an_event_is_stored_though_its_answer_is_dropped() {
    let world = faulty(Faults { drop_after_accept: 1.0, ..Faults::default() });
    assert!(world.request("POST", BATCH, AGENT, &ana(&[track("a")]).to_string()).is_none());
    world.receiver.set_faults(Faults::default());
    world.post(BATCH, ana(&[track("a")]));
    assert_eq!(world.receiver.events()[0].repeats, 1);
    let stats = world.receiver.stats();
    assert_eq!((stats.accepted_requests, stats.dropped_requests, stats.refused_requests), (2, 1, 0));
}

#[test]
fn an_answer_is_delayed_by_the_latency() {
    let world = faulty(Faults { latency_ms: 80, ..Faults::default() });
    let start = Instant::now();
    assert_eq!(world.get(AUTH).status, 204);
    assert!(start.elapsed() >= Duration::from_millis(80));
}

#[test]
fn faults_are_replaced_at_run_time() {
    let world = faulty(Faults { html: true, ..Faults::default() });
    assert_eq!(world.put_faults(r#"{"status": 503, "retry_after": "7"}"#).status, 204);
    let now = Faults { status: Some(503), retry_after: Some("7".into()), ..Faults::default() };
    assert_eq!(world.receiver.faults(), now);
    assert_eq!(world.get("/receiver/faults").json(), serde_json::to_value(&now).unwrap());
    for (faults, error) in [
        (r#"{"latency": 5}"#, "unknown field `latency`, expected one of `latency_ms`, `offline`"),
        (r#"{"fail_share": 1.5}"#, "fail_share must be a share from 0 to 1, not 1.5"),
        (r#"{"drop_after_accept": -0.5}"#, "drop_after_accept must be a share from 0"),
        (r#"{"status": 100}"#, "status must be a number from 200 to 599"),
        (r#"{"latency_ms": 18446744073709551615}"#, "latency_ms must be at most 3600000"),
        ("{\"retry_after\": \"a\\nb\"}", "retry_after must be the value of an HTTP header"),
        ("", "EOF"),
    ] {
        let reply = world.put_faults(faults);
        assert_eq!(reply.status, 400, "{faults}");
        assert!(reply.error().starts_with(error), "{faults}: {}", reply.error());
    }
    assert_eq!(world.receiver.faults(), now);
    assert_eq!(world.put_faults("{}").status, 204);
    assert_eq!(world.receiver.faults(), Faults::default());
}

#[test]
fn a_connection_carries_many_requests() {
    let world = world();
    let mut stream = connect(world.receiver.addr());
    for n in 0..50 {
        let body = ana(&[track(&n.to_string())]).to_string();
        write!(
            stream,
            "POST {BATCH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{AGENT}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        assert!(answer.starts_with(b"HTTP/1.1 204"));
    }
    assert_eq!(world.receiver.events().len(), 50);
}

#[test]
fn a_stop_waits_for_a_second_only_and_frees_the_address() {
    let World { runtime, receiver } = faulty(Faults { latency_ms: 60_000, ..Faults::default() });
    let addr = receiver.addr();
    let idle = connect(addr);
    let mut waiting = connect(addr);
    write!(waiting, "GET {AUTH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{AGENT}\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));

    let start = Instant::now();
    runtime.block_on(receiver.stop());
    assert!(start.elapsed() < Duration::from_millis(7_500));
    let again = runtime.block_on(Receiver::start(addr, ReceiverOptions::default())).unwrap();
    drop((idle, again));
}

#[test]
fn requests_and_faults_are_reported_as_notices() {
    use koala_agent::receiver::Notice;
    let (tell, told) = std::sync::mpsc::channel();
    let on_notice = move |notice| tell.send(notice).unwrap();
    let world = with(ReceiverOptions { on_notice: Some(Box::new(on_notice)), ..ReceiverOptions::default() });
    world.post(BATCH, json!({"profile_id": "u-1", "anonymous": 1, "events": [track("a")]}));
    world.post(BATCH, json!({"email": "a", "events": [track("a")]}));
    world.post(BATCH, "{}");
    world.receiver.set_faults(Faults { html: true, ..Faults::default() });
    let told: Vec<_> = told.try_iter().collect();
    let accepted = |who: &str, repeats| Notice::Accepted { who: who.into(), items: 1, repeats };
    assert_eq!(
        told,
        [
            Notice::Note("anonymous is no top-level member that Koala knows".into()),
            Notice::Note("profile_id \"u-1\" is no UUID v4, which is what Koala's ko_id cookie holds".into()),
            accepted("u-1", 0),
            accepted("a", 1),
            Notice::Refused {
                status: 400,
                why: "profile_id or email must stand at the top level and not be empty".into()
            },
            Notice::Faults(Faults { html: true, ..Faults::default() }),
        ]
    );
}
