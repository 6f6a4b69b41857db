//! How fast the agent is, as ratios to floors measured in the same run: a figure alone says more of the machine.
//!
//! ```sh
//! cargo bench --profile dist --bench agent                  # some 20 s, on the program as packages have it
//! KOALA_BENCH=20 cargo bench --profile dist --bench agent   # that many per cent of the load
//! ```
//!
//! Ten mappings promise less than twice the CPU of the presets. Nothing is asserted about time. The agent is the real
//! binary, durable as always; the receiver is the built-in one, in this process, so its work is not counted with the
//! agent's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a benchmark")]

mod floors;

use koala_agent::receiver::{Faults, Receiver, ReceiverOptions};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Persons among whom the events are spread: Koala takes one person a request.
const PERSONS: usize = 6_000;
/// Longer than any run on any machine that is worth measuring on.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    let percent: usize = std::env::var("KOALA_BENCH").ok().and_then(|p| p.parse().ok()).unwrap_or(100);
    let (events, files) = (1_000 * percent, 50 * percent);
    println!("floors of this machine, in this run");
    let insert = floors::insert(events);
    let deliver = floors::deliver(events);
    let post = floors::post(files);
    let unlink = floors::unlink(files);
    println!("  insert into SQLite, durable, 5,000 a commit   {insert:>9.0} rows/s");
    println!("  the same, gathered by person, sent and noted  {deliver:>9.0} events/s");
    println!("  POST to loopback, 8 at once                   {post:>9.0} requests/s");
    println!("  read and remove a file                        {unlink:>9.0} files/s\n");

    let lines = |events: usize| {
        move |spool: &Path| {
            let aside = spool.join(".events");
            let mut out = std::io::BufWriter::new(fs::File::create(&aside).unwrap());
            for n in 0..events {
                writeln!(out, "{}", event(n)).unwrap();
            }
            out.into_inner().unwrap().sync_all().unwrap();
            fs::rename(aside, spool.join("events.ndjson")).unwrap();
        }
    };
    println!("{events} events in one NDJSON file, {PERSONS} persons");
    let near = Faults::default();
    let both = [(deliver, "delivery floor"), (insert, "insert floor")];
    let presets = run(events, "", near.clone(), &both, lines(events));
    println!("the same through ten mappings, of which one takes each event");
    let ten = run(events, &ten_mappings(), near.clone(), &both, lines(events));
    println!("  {:>9.2} times the CPU of the presets\n", ten / presets);
    println!("{} of them to a receiver that is 50 ms away", events / 4);
    let far = Faults { latency_ms: 50, ..Faults::default() };
    run(events / 4, "", far, &[(post, "POST floor")], lines(events / 4));
    println!("{files} files of one event");
    run(files, "", near, &[(unlink, "file floor")], |spool| {
        for n in 0..files {
            let aside = spool.join(".event");
            fs::write(&aside, event(n)).unwrap();
            fs::rename(aside, spool.join(format!("{n:07}.json"))).unwrap();
        }
    });
}

/// Whose an event is.
fn person(n: usize) -> usize {
    n.wrapping_mul(2_654_435_761) % PERSONS
}

/// A track of some 600 bytes, as servers send them.
fn event(n: usize) -> String {
    let person = person(n);
    let share = n.wrapping_mul(40_503) % 100;
    format!(
        r#"{{"type":"track","messageId":"{n:08x}-0000-4000-a000-{person:012x}","timestamp":"2026-03-01T00:00:00.000Z","userId":"user_{person:06}","event":"Feature Used","properties":{{"email":"person{person}@example.com","plan":"team","url":"https://app.example.com/projects/alpha/reports?ref={n:x}","value":{n}.5,"share":0.{share:02},"seq":{n}}},"context":{{"ip":"203.0.113.7","userAgent":"Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0 (extended support build, en-US, ci-7)","locale":"en-US","timezone":"Europe/Berlin","library":{{"name":"analytics-node","version":"6.2.0"}},"app":{{"name":"web","build":"217"}}}}}}"#
    )
}

/// Mappings that share the events among them, and make the items that the presets make: each by two conditions on the
/// event and one on a property, and by paths, templates and a choice.
fn ten_mappings() -> String {
    let mapping = |n: usize| {
        let (from, to) = (n as f64 / 10.0, (n + 1) as f64 / 10.0);
        format!(
            r#"
[[mapping]]
name = "Share {n}"
trigger = 'type = "track" and event = "Feature Used" and properties.share >= {from} and properties.share < {to}'
action = "track"
[mapping.fields]
event = {{ "@template" = "{{{{event}}}}" }}
properties = {{ "@path" = "$.properties" }}
sent_at = {{ "@path" = "$.timestamp" }}
context = {{ "@path" = "$.context" }}
device_ip = {{ "@path" = "$.context.ip" }}
message_id = {{ "@path" = "$.messageId" }}
[mapping.fields.email."@if"]
exists = {{ "@path" = "$.traits.email" }}
then = {{ "@path" = "$.traits.email" }}
else = {{ "@path" = "$.email" }}
"#
        )
    };
    (0..10).map(mapping).collect()
}

/// Lets the agent bring what `fill` drops to a receiver with these faults under these mappings, and prints how that went
/// beside floors. Returns the CPU seconds.
fn run(events: usize, mappings: &str, faults: Faults, floors: &[(f64, &str)], fill: impl Fn(&Path)) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let receiver = runtime.block_on(Receiver::start(
        ([127, 0, 0, 1], 0).into(),
        ReceiverOptions { faults, ..ReceiverOptions::default() },
    ));
    let receiver = receiver.unwrap();
    fill(&spool);
    let bytes: u64 = fs::read_dir(&spool).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let config = dir.path().join("config.toml");
    let text = format!(
        "[spool]\ndir = \"{0}/spool\"\nsettle = \"0s\"\n[outbox]\npath = \"{0}/outbox.db\"\nmin_free = 0\n\
         max_bytes = \"8GiB\"\n[koala]\nendpoint = \"{1}\"\npublic_key = \"pk_bench\"\n{mappings}",
        dir.path().display(),
        receiver.endpoint()
    );
    fs::write(&config, text).unwrap();
    let began = Instant::now();
    let mut agent = start(&config);
    while receiver.stats().held < events {
        assert!(began.elapsed() < PATIENCE, "{} of {events} in {PATIENCE:?}", receiver.stats().held);
        std::thread::sleep(Duration::from_millis(5));
    }
    let rate = events as f64 / began.elapsed().as_secs_f64();
    let (cpu, written, memory) = usage(&agent);
    let requests = receiver.stats().requests;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let shares = floors.iter().map(|(floor, name)| format!(", {:.2} of the {name}", rate / floor));
    println!("  {rate:>9.0} events/s{}", shares.collect::<String>());
    println!("  {:>9.2} CPU s per 100,000", cpu / events as f64 * 1e5);
    println!("  {:>9.1} bytes written for each byte of input", written as f64 / bytes as f64);
    println!("  {:>9.1} events a request", events as f64 / requests as f64);
    println!("  {memory:>9} MB of memory at most\n");
    assert_eq!(receiver.stats().repeats, 0);
    cpu
}

fn start(config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_koala-agent"))
        .arg("--config")
        .arg(config)
        .arg("run")
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// CPU seconds, bytes that went to the disk, and the peak of memory in MB, as Linux tells them.
fn usage(agent: &Child) -> (f64, u64, u64) {
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", agent.id())).unwrap_or_default();
    let number = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let stat = proc("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, in hundredths of a second on every Linux of today.
    let ticks: f64 = [11, 12].iter().filter_map(|&i| fields.get(i)?.parse::<f64>().ok()).sum();
    (ticks / 100.0, number(&proc("io"), "write_bytes:"), number(&proc("status"), "VmHWM:") / 1024)
}
