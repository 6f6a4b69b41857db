//! Watching the agent: `metrics`, `status --check`, the alerts and the dashboard.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::setup::{Ran, Setup, assert_says, run_command};
use koala_agent::outbox::State;
use koala_agent::receiver::Faults;
use koala_agent::status::{DestinationState, IntakeState};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const RULES: &str = include_str!("../../packaging/prometheus/koala-agent.rules.yml");
const DASHBOARD: &str = include_str!("../../packaging/grafana/koala-agent.json");

const PAGE: &str = include_str!("../../packaging/man/koala-agent-monitoring.7");

/// Every metric that is promised, after `koala_agent_`.
const NAMES: [&str; 22] = [
    "build_info",
    "destination_state",
    "disk_free_bytes",
    "events_accepted_total",
    "events_duplicate_total",
    "events_rejected_total",
    "intake_state",
    "items_created_total",
    "items_requeued_total",
    "items_settled_total",
    "last_delivery_timestamp_seconds",
    "log_lines_dropped_total",
    "metrics_written_timestamp_seconds",
    "outbox_bytes",
    "outbox_limit_bytes",
    "pending",
    "pending_oldest_age_seconds",
    "rejected_files",
    "requests_total",
    "retry_after_seconds",
    "unreadable_files",
    "waiting_files",
];

/// The samples of one scrape, by name and labels.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(setup: &Setup) -> Scrape {
        let ran = setup.run(&["metrics"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        Scrape::parse(&ran.out)
    }

    fn parse(text: &str) -> Scrape {
        let (comments, samples): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with('#'));
        let typed = comments.iter().filter_map(|line| line.strip_prefix("# TYPE koala_agent_"));
        let typed: Vec<&str> = typed.map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(typed, NAMES);
        let sample = |line: &str| {
            let (name, number) = line.rsplit_once(' ').unwrap();
            (name.strip_prefix("koala_agent_").unwrap().to_owned(), number.parse().unwrap())
        };
        Scrape(samples.into_iter().map(sample).collect())
    }

    /// The sum of a metric's samples whose labels contain that.
    fn sum(&self, name: &str, label: &str) -> u64 {
        let is_of = |sample: &str| sample.split('{').next() == Some(name) && sample.contains(label);
        self.0.iter().filter(|(sample, _)| is_of(sample)).map(|(_, number)| number).sum::<f64>() as u64
    }

    /// What came in is pending or settled, and nothing else.
    fn assert_balanced(&self) {
        let [created, settled, requeued] = ["created", "settled", "requeued"]
            .map(|what| self.sum(&format!("items_{what}_total"), "destination=\"koala\""));
        assert_eq!(created + requeued, self.sum("pending", "") + settled, "{:#?}", self.0);
    }

    /// No counter has fallen since.
    fn assert_follows(&self, before: &Scrape) {
        for (sample, was) in before.0.iter().filter(|(sample, _)| sample.contains("_total")) {
            assert!(self.0[sample] >= *was, "{sample} was {was} and is {}", self.0[sample]);
        }
    }
}

/// The totals as the outbox has them at this moment.
fn assert_outbox_is_balanced(setup: &Setup) {
    let counts = setup.reader().counts().unwrap();
    let settled: u64 = counts.totals.settled.iter().map(|count| count.events).sum();
    let totals = &counts.totals;
    assert_eq!(totals.created + totals.requeued, counts.of(State::Pending) + settled, "{counts:#?}");
}

#[test]
fn what_came_in_is_pending_or_settled_in_every_scrape_under_load() {
    let is_full = std::env::var("KOALA_TEST_SCALE").is_ok_and(|scale| scale == "full");
    let scrapes = if is_full { 1_000 } else { 100 };
    let mut agent = TestAgent::program(Faults { fail_share: 0.1, ..Faults::default() });
    // What was delivered can be sent again.
    agent.set("outbox.keep_bodies = \"1h\"");
    agent.start_and_wait();
    agent.until("the first numbers", |agent| agent.run(&["metrics"]).code == 0);
    let mut commands: Vec<Child> = Vec::new();
    let mut moments = BTreeSet::new();
    let mut last = Scrape::of(&agent);
    for n in 0_usize..scrapes {
        let mut lines: Vec<String> =
            (0..20).map(|i| track(&format!("m-{n}-{i}"), &format!("p{}@acme.dev", i + n % 7))).collect();
        // The same again, one that is skipped, one that fails, one that is no event.
        lines.push(lines[0].clone());
        lines.push(format!(r#"{{"type":"track","event":"E","messageId":"nobody-{n}"}}"#));
        lines.push(format!(
            r#"{{"type":"track","messageId":"failed-{n}","properties":{{"email":"x@acme.dev"}}}}"#
        ));
        lines.push("17".to_owned());
        agent.drop_file(format!("{n:06}.jsonl"), lines.join("\n"));
        let (failed, person) = (format!("failed-{}", n.saturating_sub(5)), format!("p{}@acme.dev", n % 26));
        let command: Option<&[&str]> = match n % 5 {
            1 => Some(&["retry", "--state", "delivered,skipped"]),
            2 => Some(&["discard", &failed]),
            3 => Some(&["erase", "--email", &person]),
            _ => None,
        };
        if let Some(arguments) = command {
            // Two at once is as many as ever wait for each other.
            if commands.len() == 2 {
                commands.remove(0).wait().unwrap();
            }
            let mut command = agent.program();
            commands
                .push(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        }
        let scrape = Scrape::of(&agent);
        scrape.assert_balanced();
        scrape.assert_follows(&last);
        moments.insert(scrape.0["metrics_written_timestamp_seconds"].to_bits());
        last = scrape;
        assert_outbox_is_balanced(&agent);
    }
    for command in &mut commands {
        command.wait().unwrap();
    }
    agent.receiver.set_faults(Faults::default());
    agent.until_settled();
    agent.stop();
    let end = Scrape::of(&agent);
    end.assert_balanced();
    end.assert_follows(&last);
    assert_eq!(end.sum("pending", ""), 0);
    for (name, label) in [
        ("items_requeued_total", ""),
        ("items_settled_total", "state=\"delivered\""),
        ("items_settled_total", "reason=\"no_identity\""),
        ("items_settled_total", "reason=\"invalid_field\""),
        ("events_duplicate_total", ""),
        ("events_rejected_total", "reason=\"not_an_event\""),
        ("requests_total", "class=\"2xx\""),
        ("requests_total", "class=\"5xx\""),
    ] {
        assert!(end.sum(name, label) > 0, "{name} {label}: {:#?}", end.0);
    }
    assert_eq!(end.sum("items_created_total", ""), end.sum("events_accepted_total", "source=\"spool\""));
    assert!(moments.len() > 2, "the agent has published {} times", moments.len());

    // Another run goes on where this one ended.
    agent.start_and_wait();
    agent.drop_track("one-more", "ana@acme.dev");
    agent.until("one more is counted", |agent| {
        Scrape::of(agent).sum("items_created_total", "") == end.sum("items_created_total", "") + 1
    });
    Scrape::of(&agent).assert_balanced();
    agent.stop();
}

#[test]
fn metrics_are_those_of_the_agent_that_ran_last_and_it_is_said_if_it_runs_no_more() {
    let mut agent = TestAgent::program(Faults::default());
    let ran = agent.run(&["metrics"]);
    assert_eq!((ran.code, ran.out.as_str()), (69, ""));
    assert_says(&ran.err, &["no agent has published", " run"]);

    agent.start_and_wait();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_settled();
    agent.stop();
    let ran = agent.run(&["metrics"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_says(&ran.err, &["the agent does not run; these are its last numbers"]);
    let scrape = Scrape::parse(&ran.out);
    assert_eq!(scrape.sum("items_settled_total", "state=\"delivered\""), 1);
    let published = fs::metadata(agent.config().status_file).unwrap().modified().unwrap();
    let published = published.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((scrape.0["metrics_written_timestamp_seconds"] - published).abs() < 5.0);

    let file = agent.path("koala-agent.prom");
    let out = agent.run(&["metrics", "--out", file.to_str().unwrap()]);
    assert_eq!((out.code, out.out.as_str()), (0, ""), "{out:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), ran.out);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let missing = agent.path("missing/x.prom");
    let out = agent.run(&["metrics", "--out", missing.to_str().unwrap()]);
    assert_eq!(out.code, 73, "{out:?}");

    for file in [agent.config().status_file, agent.config().private_status_file] {
        fs::write(file, "{}").unwrap();
    }
    let ran = agent.run(&["metrics"]);
    assert_eq!((ran.code, ran.out.as_str()), (75, ""), "{ran:?}");
    assert_check(&agent, &[], 3, "UNKNOWN - cannot read ");
}

/// Runs `status --check`, and compares its exit code and how its one line begins.
fn assert_check(setup: &Setup, arguments: &[&str], code: i32, begins: &str) -> Ran {
    let ran = setup.run(&[&["status", "--check"], arguments].concat());
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(ran.out.starts_with(&format!("KOALA-AGENT {begins}")), "{ran:?}");
    assert_eq!(ran.out.lines().count(), 1, "{ran:?}");
    ran
}

#[test]
fn a_check_tells_how_the_agent_is() {
    let mut agent = TestAgent::program(Faults::default());
    assert_check(&agent, &[], 2, "CRITICAL - the agent has never run");
    agent.start_and_wait();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_settled();
    let ran = assert_check(
        &agent,
        &[],
        0,
        "OK - online, 0 pending, 1 delivered | pending=0;;;0 oldest=0s;600;3600;0 ",
    );
    assert_eq!(ran.err, "");

    agent.drop_file("f.json", r#"{"type":"track","messageId":"f-1","properties":{"email":"ana@acme.dev"}}"#);
    agent.until_status("it has failed", |status| status.outbox.failed == 1);
    assert_check(&agent, &[], 1, "WARNING - 1 event failed, the newest ");
    assert_eq!(agent.run(&["discard", "f-1"]).code, 0);
    assert_check(&agent, &[], 0, "OK");
    agent.drop_file("bad.json", "17");
    agent.until_status("it is rejected", |status| status.spool.last_rejected.is_some());
    assert_check(&agent, &[], 1, "WARNING - 1 file rejected, the newest ");
    for file in ["rejected/bad.json", "rejected/bad.json.why"] {
        fs::remove_file(agent.spool().join(file)).unwrap();
    }

    agent.receiver.set_faults(Faults { status: Some(401), ..Faults::default() });
    agent.drop_track("m-2", "ana@acme.dev");
    agent.until_destination(DestinationState::Refused);
    assert_check(&agent, &[], 2, "CRITICAL - the receiver has refused events for ");
    std::thread::sleep(Duration::from_millis(1_100));
    let ran =
        assert_check(&agent, &["--critical-age", "0s"], 2, "CRITICAL - the receiver has refused events for ");
    assert_says(&ran.out, &["(key_refused); an event has waited for ", "oldest="]);
    agent.stop();
    assert_check(&agent, &[], 2, "CRITICAL - the agent has not run for ");

    // The database is damaged while nothing runs.
    let length = fs::metadata(agent.outbox()).unwrap().len();
    fs::write(agent.outbox(), vec![7; length as usize]).unwrap();
    let ran = assert_check(&agent, &[], 2, "CRITICAL - the agent has not run for ");
    assert_says(&ran.out, &["; the outbox was damaged 0 s ago"]);
    agent.start_and_wait();
    let ran = assert_check(&agent, &[], 2, "CRITICAL - the outbox was damaged ");
    assert!(!ran.out.contains("has not run"), "{ran:?}");
    agent.stop();
}

#[test]
fn a_check_tells_of_an_intake_that_is_blocked() {
    let mut agent = TestAgent::program(Faults::default());
    agent.set("outbox.min_free = \"100%\"");
    agent.start_and_wait();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_status("it is blocked", |status| status.intake.state == IntakeState::Blocked);
    assert_check(&agent, &[], 2, "CRITICAL - no files are read (min_free)");
    agent.set("outbox.min_free = \"0%\"");
    agent.signal(Signal::SIGHUP);
    agent.until_status("it is open", |status| status.intake.state == IntakeState::Open);
    assert_check(&agent, &[], 0, "OK");
    agent.stop();
}

#[test]
fn a_check_that_cannot_tell_ends_with_3() {
    let setup = Setup::new();
    for arguments in [&["--json"][..], &["--warning-age", "soon"], &["--nonsense"]] {
        let ran = assert_check(&setup, arguments, 3, "UNKNOWN - the command line is wrong");
        assert!(ran.err.contains("error: "), "{ran:?}");
    }
    assert_eq!(setup.run(&["status", "--warning-age", "1h"]).code, 64);
    fs::write(setup.config_file(), "outbox = 7").unwrap();
    assert_check(&setup, &[], 3, "UNKNOWN - ");
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let names = text.split("koala_agent_").skip(1);
    names.map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap()).collect()
}

#[test]
fn the_alerts_and_the_dashboard_are_of_metrics_that_exist() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(
        panels.iter().all(|panel| panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()))
    );
    let known: BTreeSet<&str> = NAMES.into_iter().collect();
    for text in [RULES, DASHBOARD] {
        let named = named(text);
        assert!(named.len() > 5 && named.is_subset(&known), "{:?}", named.difference(&known));
    }
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(
        alerts,
        [
            "OldestTooOld",
            "DestinationRefused",
            "OutboxNearlyFull",
            "FailedGrew",
            "AgentGone",
            "NothingDeliveredWhilePending"
        ]
    );
    // The page has each metric and each alert.
    for name in NAMES.iter().chain(&alerts) {
        let names = PAGE.lines().filter_map(|line| line.strip_prefix(".It Ic "));
        assert!(
            names.flat_map(|names| names.split(" , ")).any(|own| own.split(" ").next() == Some(*name)),
            "{name}"
        );
    }
    // Each says what to run.
    assert_eq!(RULES.matches("run:").count(), alerts.len());
}

#[test]
fn promtool_accepts_the_metrics_and_every_alert_fires_and_clears() {
    let promtool = || Command::new("promtool");
    // CI has it.
    if promtool().arg("--version").output().is_err() {
        eprintln!("skipped: promtool is not installed");
        return;
    }
    let mut agent = TestAgent::program(Faults::default());
    agent.start_and_wait();
    let ran = agent.run(&["metrics"]);
    let checked = run_command(promtool().args(["check", "metrics"]), &ran.out);
    assert_eq!((checked.code, checked.out.as_str(), checked.err.as_str()), (0, "", ""));
    agent.stop();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    for arguments in
        [["check", "rules", "koala-agent.rules.yml"], ["test", "rules", "koala-agent.rules.test.yml"]]
    {
        let ran = run_command(promtool().args(arguments).current_dir(&folder), "");
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}
