//! The log of an agent when all goes well, and the lines that koala-agent-log(7) promises.

use crate::common::agent::TestAgent;
use crate::common::ledger::Expected;
use crate::common::server::{Server, message};
use crate::common::setup::KEY;
use crate::disk::mount::Mount;
use crate::disk::{OFFLINE, is_blocked, long_lines, online};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::clock::Timestamp;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const PAGE: &str = include_str!("../../packaging/man/koala-agent-log.7");

/// Lines of the log in an hour: of the start, of the receiver, of the hour, of the stop.
const LINES: usize = 10;

/// Fifty requests become one line in the hour, and nobody is named.
pub fn hour(_: &Scale) -> Outcome {
    let mut agent = TestAgent::driven(Faults::default());
    agent.start();
    agent.drop_events(50, 50);
    agent.until_status("all are settled", |status| status.outbox.delivered == 50);
    agent.advance(Duration::from_secs(3600));
    let summary = "events of the last hour: 50 ingested, 50 delivered; 0 pending";
    agent.until("the hour is summed up", |agent| agent.log().contains(summary));
    let figures = agent.end_settled();
    let log = agent.log();
    assert!(log.lines().count() < LINES, "{log}");
    assert!(!log.contains("acme.dev") && !log.contains(KEY), "{log}");
    figures.into()
}

/// The fields of a notice behind its name, in order.
type Fields = Vec<String>;

/// The notices of the page: those fields that are always there, and all of them.
fn documented() -> BTreeMap<String, (Fields, Fields)> {
    let items = PAGE.split(".Sh NOTICES").nth(1).unwrap().split(".Sh ").next().unwrap();
    let items = items.lines().filter_map(|line| line.strip_prefix(".It Ic "));
    items
        .map(|item| {
            let (mut always, mut all) = (Fields::new(), Fields::new());
            let mut words = item.split(' ');
            let name = words.next().unwrap().to_owned();
            let mut is_optional = false;
            for word in words {
                match word {
                    "Op" => is_optional = true,
                    "Ar" => {}
                    field => {
                        all.push(field.to_owned());
                        if !is_optional {
                            always.push(field.to_owned());
                        }
                    }
                }
            }
            (name, (always, all))
        })
        .collect()
}

/// The notices that the source can log.
fn in_the_source(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            in_the_source(&path, names);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            // Behind it are the tests.
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            let found = code.split("notice = \"").skip(1);
            names.extend(found.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
}

/// The fields of a line of the log from `notice` on; `None`: it is no notice.
fn fields(line: &str) -> Option<Vec<(String, String)>> {
    let mut rest = &line[line.find(" notice=")? + 1..];
    let mut fields = Vec::new();
    while let Some((key, after)) = rest.split_once('=') {
        let mut ends = false;
        let end = match after.strip_prefix('"') {
            Some(quoted) => {
                let close = |c: char| {
                    let closes = c == '"' && !ends;
                    ends = c == '\\' && !ends;
                    closes
                };
                quoted.find(close).map_or(after.len(), |at| at + 2)
            }
            None => after.find(' ').unwrap_or(after.len()),
        };
        fields.push((key.to_owned(), after[..end].trim_matches('"').to_owned()));
        rest = after[end..].trim_start();
    }
    assert_eq!(rest, "", "not a field: {line}");
    Some(fields)
}

/// The notices that were logged so far, each as the names of its fields.
#[derive(Default)]
struct Logged(BTreeMap<String, BTreeSet<Fields>>);

impl Logged {
    fn add(&mut self, agent: &TestAgent) {
        let log = agent.log();
        assert!(!log.contains("acme.dev") && !log.contains(KEY), "{log}");
        for fields in log.lines().filter_map(fields) {
            let names = fields.iter().skip(1).map(|(name, _)| name.clone()).collect();
            self.0.entry(fields[0].1.clone()).or_default().insert(names);
        }
    }
}

/// Each line that koala-agent-log(7) lists is logged by a real agent with the fields that it lists, and no other notice is.
pub fn notices(_: &Scale) -> Outcome {
    let documented = documented();
    let mut source = BTreeSet::new();
    in_the_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), source);

    let (mut logged, mut figures) = (Logged::default(), Figures::default());
    figures.add(a_day(&mut logged));
    figures.add(a_full_outbox(&mut logged));
    figures.add(damage(&mut logged));
    figures.add(hour_and_step(&mut logged));
    a_strange_receiver(&mut logged);
    match a_full_disk(&mut logged) {
        Ok(full) => figures.add(full),
        // Without a mount, all but one can be had.
        Err(_) => drop(logged.0.insert("reserve_used".to_owned(), [vec!["reserve".to_owned()]].into())),
    }
    for (name, (always, all)) in &documented {
        let seen = logged.0.remove(name).unwrap_or_else(|| panic!("{name} was not logged"));
        for fields in &seen {
            let in_order: Fields = all.iter().filter(|field| fields.contains(field)).cloned().collect();
            assert_eq!(*fields, in_order, "{name}");
            assert!(always.iter().all(|field| fields.contains(field)), "{name}: {fields:?}");
        }
        let missing = all.iter().find(|field| !seen.iter().flatten().any(|seen| seen == *field));
        assert_eq!(missing, None, "{name} was never logged with it");
    }
    assert!(logged.0.is_empty(), "not on the page: {:?}", logged.0.keys());
    figures.into()
}

/// Starts, delivers, rejects, fails, is configured again, and stops; first without a line for each request.
fn a_day(logged: &mut Logged) -> Figures {
    let mut agent = TestAgent::program(Faults::default());
    agent.start_and_wait();
    agent.drop_events(3, 3);
    agent.until_delivered();
    agent.set("log.level = \"debug\"");
    agent.signal(Signal::SIGHUP);
    agent.until("the level is in force", |agent| agent.log().contains("notice=config_in_force"));
    assert_eq!(agent.log_lines_with(&["notice=request"]), 0, "{}", agent.log());
    agent.drop_events(3, 1);
    agent.until_delivered();
    let broken = agent.ledger.broken();
    agent.drop_next("json", broken);
    let n = agent.ledger.enter("ana", Some("m 1".to_owned()), Expected::Invalid);
    let nameless =
        format!(r#"{{"type":"track","messageId":"m 1","properties":{{"n":{n},"email":"ana@acme.dev"}}}}"#);
    agent.drop_next("json", nameless);
    for name in ["request", "file_rejected", "event_failed"] {
        agent.until(name, |agent| agent.log().contains(&format!("notice={name}")));
    }
    let failed = agent.log_lines_with(&["notice=event_failed code=invalid_field message_id=\"m 1\""]);
    assert_eq!(failed, 1, "{}", agent.log());
    // A delivered event and its request are about the same hash.
    let request = agent.log().lines().filter_map(fields).find(|fields| fields[0].1 == "request").unwrap();
    let value = |name: &str| request.iter().find(|(key, _)| key == name).unwrap().1.clone();
    assert_eq!((value("path"), value("answer")), ("/batch".to_owned(), "204".to_owned()));
    let id = value("ids").split(',').next().unwrap().to_owned();
    assert!(value("person").starts_with("hash:"), "{request:?}");
    agent.until("the event is about the same hash", |agent| {
        agent.run(&["show", &id, "--json"]).json()["person"] == value("person").as_str()
    });

    agent.set("koala.timeout = \"0s\"");
    agent.set("spool.settle = 1");
    agent.signal(Signal::SIGHUP);
    agent.until("it is refused", |agent| agent.log().contains("notice=config_refused"));
    agent.unset("koala.timeout");
    agent.unset("spool.settle");
    let (spool, elsewhere) = (agent.spool(), agent.path("elsewhere"));
    agent.set(&format!("spool.dir = \"{}\"", elsewhere.display()));
    agent.signal(Signal::SIGHUP);
    agent.until("it needs a restart", |agent| agent.log().contains("needs_restart=spool.dir"));
    agent.set(&format!("spool.dir = \"{}\"", spool.display()));
    agent.until_settled();
    agent.stop();
    logged.add(&agent);
    agent.balance()
}

/// The outbox has no room, and then it has.
fn a_full_outbox(logged: &mut Logged) -> Figures {
    let mut agent = TestAgent::program(OFFLINE);
    agent.set("outbox.max_bytes = \"1MiB\"");
    agent.start_and_wait();
    for _ in 0..20 {
        let text = long_lines(&mut agent, 50);
        agent.drop_next("ndjson", text.as_bytes());
    }
    agent.until_status("the intake is blocked", is_blocked);
    // What came before may be stored all of it.
    agent.drop_events(3, 3);
    online(&agent);
    let figures = agent.end();
    logged.add(&agent);
    figures
}

/// The database is not one.
fn damage(logged: &mut Logged) -> Figures {
    let mut agent = TestAgent::program(Faults::default());
    agent.start_and_wait();
    agent.stop();
    fs::write(agent.outbox(), "no database").unwrap();
    agent.start_and_wait();
    agent.drop_events(3, 3);
    let figures = agent.end();
    logged.add(&agent);
    figures
}

/// An hour passes, and the clock is set.
fn hour_and_step(logged: &mut Logged) -> Figures {
    let mut agent = TestAgent::driven(Faults::default());
    agent.start();
    agent.drop_events(3, 3);
    agent.until_status("all are settled", |status| status.outbox.delivered == 3);
    agent.advance(Duration::from_secs(3600));
    agent.until("the hour is summed up", |agent| agent.log().contains("events of the last hour"));
    let now = agent.clock.now();
    agent.step_clock(Timestamp(now.0 + 3_600_000));
    agent.until("the step is told", |agent| agent.log().contains("the clock was set"));
    let figures = agent.end_settled();
    logged.add(&agent);
    figures
}

/// A receiver with a clock of its own, which knows persons and no accounts.
fn a_strange_receiver(logged: &mut Logged) {
    let strange = Server::start(|stream| {
        let request = message(stream).unwrap_or_default();
        let is_of_accounts = String::from_utf8_lossy(&request).contains("/accounts/");
        let status = if is_of_accounts { "404 Not Found" } else { "200 OK" };
        let date = "Date: Thu, 01 Jan 2015 00:00:00 GMT";
        // The client may have gone already.
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\n{date}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        request
    });
    let mut agent = TestAgent::program(Faults::default());
    agent.set(&format!("koala.endpoint = \"{}\"", strange.endpoint()));
    agent.set_tables("[[mapping]]\npreset = \"Track Calls\"\n[[mapping]]\npreset = \"Group Calls\"\n");
    agent.start_and_wait();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_destination(DestinationState::Online);
    let group = r#"{"type":"group","messageId":"m-2","groupId":"7","traits":{"domain":"acme.dev","email":"ana@acme.dev"}}"#;
    agent.drop_file("group.json", group);
    agent.until("the path is told", |agent| agent.log().contains(" path=/accounts/batch"));
    agent.until("the clock is told", |agent| agent.log().contains("notice=clock_difference"));
    agent.stop();
    logged.add(&agent);
}

/// Deliveries are recorded though there is no room.
fn a_full_disk(logged: &mut Logged) -> Result<Figures, String> {
    let mut agent = TestAgent::program(OFFLINE);
    let mount = Mount::tmpfs(&agent.state(), "size=32m")?;
    agent.start();
    let text = long_lines(&mut agent, 1_000);
    agent.drop_next("ndjson", text.as_bytes());
    agent.until_status("they are stored", |status| status.outbox.pending == 1_000);
    // A log that is not copied yet would have room of its own.
    let log = agent.path("state/outbox.db-wal");
    agent.until("the log is copied", |_| fs::metadata(&log).is_ok_and(|log| log.len() <= 16 << 10));
    mount.fill();
    online(&agent);
    agent.until_status("all that was stored is acknowledged", |status| status.outbox.pending == 0);
    mount.relieve();
    let figures = agent.end();
    logged.add(&agent);
    Ok(figures)
}
