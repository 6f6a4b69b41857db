//! The floors: what each part of the work takes where nothing else is done, in the same run.

use super::{event, person};
use koala_agent::receiver::{Receiver, ReceiverOptions};
use reqwest::{Client, RequestBuilder};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

/// Rows a second of a durable insert.
pub fn insert(rows: usize) -> f64 {
    let (dir, events) = (tempfile::tempdir().unwrap(), texts(rows));
    let began = Instant::now();
    stored(dir.path(), &events);
    rows as f64 / began.elapsed().as_secs_f64()
}

/// Events a second of the least that delivers them as the agent does: they are stored, then a person's are gathered, at
/// most 30 a request, sent, 8 requests at once, and noted durably. Nothing is checked, mapped, compared or remembered.
pub fn deliver(events: usize) -> f64 {
    let (dir, texts) = (tempfile::tempdir().unwrap(), texts(events));
    let began = Instant::now();
    let writer = stored(dir.path(), &texts);
    let (notes, accepted) = mpsc::channel::<Vec<i64>>();
    let noting = std::thread::spawn(move || {
        while let Ok(first) = accepted.recv() {
            let seqs: Vec<i64> = std::iter::once(first).chain(accepted.try_iter()).flatten().collect();
            let mut note = writer.prepare_cached("INSERT INTO notes VALUES (?)").unwrap();
            note.execute([serde_json::to_string(&seqs).unwrap()]).unwrap();
        }
    });
    let mut persons = BTreeMap::<usize, Vec<i64>>::new();
    (0..events).for_each(|n| persons.entry(person(n)).or_default().push(n as i64 + 1));
    let requests = persons.values().flat_map(|seqs| seqs.chunks(30));
    let reader = open(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_receiver, client, url) = receiver().await;
        let mut tasks = tokio::task::JoinSet::new();
        for seqs in requests {
            let item = |seq: &i64| {
                let mut read = reader.prepare_cached("SELECT body FROM t WHERE seq = ?").unwrap();
                let body: String = read.query_row([seq], |row| row.get(0)).unwrap();
                item(*seq as usize, &body)
            };
            let request = request(&client, &url, &seqs.iter().map(item).collect::<Vec<_>>().join(","));
            let (notes, seqs) = (notes.clone(), seqs.to_vec());
            if tasks.len() == 8 {
                tasks.join_next().await.unwrap().unwrap();
            }
            tasks.spawn(async move {
                assert_eq!(request.send().await.unwrap().status(), 204);
                notes.send(seqs).unwrap();
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    drop(notes);
    noting.join().unwrap();
    events as f64 / began.elapsed().as_secs_f64()
}

fn texts(events: usize) -> Vec<String> {
    (0..events).map(event).collect()
}

/// An outbox of one table, with these events in it.
fn stored(dir: &Path, events: &[String]) -> Connection {
    let db = open(dir);
    db.execute_batch("CREATE TABLE t (seq INTEGER PRIMARY KEY, body TEXT); CREATE TABLE notes (seqs TEXT)")
        .unwrap();
    for chunk in events.chunks(5_000) {
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        for event in chunk {
            db.prepare_cached("INSERT INTO t (body) VALUES (?)").unwrap().execute([event]).unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
    }
    db
}

fn open(dir: &Path) -> Connection {
    let db = Connection::open(dir.join("floor.db")).unwrap();
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    db.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4096").unwrap();
    db
}

async fn receiver() -> (Receiver, Client, String) {
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), ReceiverOptions::default()).await.unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("{}/web/projects/pk_bench/batch", receiver.endpoint());
    (receiver, Client::builder().no_proxy().build().unwrap(), url)
}

fn request(client: &Client, url: &str, items: &str) -> RequestBuilder {
    let body = format!(r#"{{"email":"a@acme.dev","traits":{{}},"events":[{items}]}}"#);
    client.post(url).header("user-agent", "bench").body(body)
}

fn item(n: usize, properties: &str) -> String {
    format!(
        r#"{{"type":"track","event":"E","sent_at":"2026-03-01T00:00:00Z","message_id":"{n}","properties":{properties}}}"#
    )
}

/// Requests a second, of one event each, 8 at once.
pub fn post(requests: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_receiver, client, url) = receiver().await;
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let (client, url) = (client.clone(), url.clone());
            tasks.spawn(async move {
                for n in (task..requests).step_by(8) {
                    let request = request(&client, &url, &item(n, "{}"));
                    assert_eq!(request.send().await.unwrap().status(), 204);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        requests as f64 / began.elapsed().as_secs_f64()
    })
}

/// Files a second, read and removed.
pub fn unlink(files: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let name = |n| dir.path().join(format!("{n:07}.json"));
    for n in 0..files {
        fs::write(name(n), event(n)).unwrap();
    }
    let began = Instant::now();
    for n in 0..files {
        fs::read(name(n)).unwrap();
        fs::remove_file(name(n)).unwrap();
    }
    files as f64 / began.elapsed().as_secs_f64()
}
