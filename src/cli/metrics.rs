//! `koala-agent metrics`: what the agent published last, for Prometheus, in its text format 0.0.4.
//!
//! It reads the file that the agent publishes for everybody, not the database: so anybody may run it, it costs the agent
//! nothing, and all numbers are of one moment. It does not listen on a port either: a textfile collector needs no
//! firewall, and OpenMetrics is not what older tools of Prometheus read.

use super::context::start_command;
use super::error::write_exit_code;
use super::output;
use super::status::is_publisher_alive;
use super::time::time_and_age;
use super::{CliError, CommandContext, ExitCode};
use crate::clock::Timestamp;
use crate::config::Instance;
use crate::reason::Code;
use crate::status::{DestinationState, IntakeState, Status};
use clap::Args;
use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Print metrics for Prometheus, or write them for its textfile collector
///
/// The numbers are those that the agent published last, at most a minute ago while it runs;
/// koala_agent_metrics_written_timestamp_seconds says when. Works for every user.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  koala-agent metrics --out /var/lib/prometheus/node-exporter/koala-agent.prom"
)]
pub struct MetricsArgs {
    /// Write to this file, which readers see whole: the old one or the new one
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Samples of a metric: the values of its labels, and the number.
type Samples = Vec<(Vec<String>, f64)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}
use Kind::{Counter, Gauge};

/// A metric: its kind, its name after `koala_agent_`, its labels, its help, and its samples.
struct Metric(Kind, &'static str, &'static [&'static str], &'static str, fn(&Status) -> Samples);

const DESTINATION: &[&str] = &["destination"];

/// Every metric. A counter counts from the creation of the outbox or from the start of the agent, as its help says.
#[rustfmt::skip]
const METRICS: [Metric; 22] = [
    Metric(Gauge, "pending", DESTINATION, "Items that wait for delivery.",
        |s| of_destination(s, s.outbox.pending as f64)),
    Metric(Gauge, "pending_oldest_age_seconds", DESTINATION, "Age of the oldest item that waits.",
        |s| of_destination(s, s.outbox.oldest_pending_seconds.unwrap_or(0) as f64)),
    Metric(Gauge, "outbox_bytes", &[], "Bytes that pending and failed events take in the outbox.",
        |s| one(s.outbox.needed_bytes as f64)),
    Metric(Gauge, "outbox_limit_bytes", &[], "Bytes of the outbox at which no more files are read.",
        |s| one(s.outbox.max_bytes as f64)),
    Metric(Gauge, "disk_free_bytes", &[], "Free bytes of the file system of the outbox; NaN: not known.",
        |s| one(s.outbox.disk_free.map_or(f64::NAN, |free| free as f64))),
    Metric(Gauge, "waiting_files", &[], "Files in the spool that have not been read yet.",
        |s| one(s.spool.waiting_files.unwrap_or(0) as f64)),
    Metric(Gauge, "unreadable_files", &[], "Files in the spool that the agent may not read.",
        |s| one(s.spool.unreadable_files.unwrap_or(0) as f64)),
    Metric(Gauge, "rejected_files", &[], "Files in rejected/.",
        |s| one(s.spool.rejected_files.unwrap_or(0) as f64)),
    Metric(Gauge, "destination_state", &["destination", "state"], "1 for the state of the destination.",
        destination_states),
    Metric(Gauge, "intake_state", &["state"], "1 for the state of the intake, which reads files.",
        intake_states),
    Metric(Gauge, "retry_after_seconds", DESTINATION, "Time until the next try; 0: now, or none waits.",
        |s| of_destination(s, s.destination.retry_at.map_or(0.0, |at| at.since(s.now).as_secs_f64()))),
    Metric(Gauge, "last_delivery_timestamp_seconds", DESTINATION, "When an item was last accepted; 0: never.",
        |s| of_destination(s, seconds(s.destination.last_delivery.unwrap_or(Timestamp(0))))),
    Metric(Gauge, "metrics_written_timestamp_seconds", &[], "When the agent published these numbers.",
        |s| one(seconds(s.now))),
    Metric(Gauge, "build_info", &["version"], "1 for the version of the agent.",
        |s| vec![(vec![s.agent.version.clone()], 1.0)]),
    Metric(Counter, "events_accepted_total", &["source"], "Events stored, without duplicates, since the outbox was created.",
        |s| vec![(vec!["spool".to_owned()], created(s))]),
    Metric(Counter, "events_rejected_total", &["reason"], "Files and parts of files rejected since the agent started.",
        rejections),
    Metric(Counter, "events_duplicate_total", &[], "Events dropped as stored before, since the outbox was created.",
        |s| one(s.spool.duplicates as f64)),
    Metric(Counter, "items_created_total", DESTINATION, "Items that came in since the outbox was created: pending + settled - requeued.",
        |s| of_destination(s, created(s))),
    Metric(Counter, "items_settled_total", &["destination", "state", "reason"], "Items settled since the outbox was created.",
        settled),
    Metric(Counter, "items_requeued_total", DESTINATION, "Items made pending again since the outbox was created.",
        |s| of_destination(s, s.outbox.totals.as_ref().map_or(0.0, |totals| totals.requeued as f64))),
    Metric(Counter, "requests_total", &["destination", "class"], "Requests with items since the agent started, by the answer.",
        requests),
    Metric(Counter, "log_lines_dropped_total", &[], "Lines of the log that could not be written since the agent started.",
        |s| one(s.agent.log_lines_dropped as f64)),
];

/// The reasons for which files are rejected; a counter that begins with its first event shows no growth.
const REJECTION_CODES: [Code; 5] =
    [Code::NotJson, Code::NotAnEvent, Code::MessageIdReused, Code::TooDeep, Code::TooLarge];

/// The states in which items are settled, each with its usual reasons.
const SETTLED: [(&str, &str); 12] = [
    ("delivered", ""),
    ("skipped", "no_mapping"),
    ("skipped", "no_identity"),
    ("skipped", "browser_library"),
    ("skipped", "integrations_off"),
    ("skipped", "no_consent"),
    ("skipped", "erased"),
    ("failed", "invalid_field"),
    ("failed", "too_large"),
    ("failed", "refused"),
    ("discarded", ""),
    ("lost", ""),
];

fn one(value: f64) -> Samples {
    vec![(Vec::new(), value)]
}

fn of_destination(status: &Status, value: f64) -> Samples {
    vec![(vec![status.destination.kind.clone()], value)]
}

fn created(status: &Status) -> f64 {
    status.outbox.totals.as_ref().map_or(0.0, |totals| totals.created as f64)
}

fn destination_states(status: &Status) -> Samples {
    let own = status.destination.state;
    let sample = |state: DestinationState| {
        (vec![status.destination.kind.clone(), state.as_str().to_owned()], f64::from(state == own))
    };
    DestinationState::ALL.map(sample).into()
}

fn intake_states(status: &Status) -> Samples {
    let own = status.intake.state;
    let sample = |state: IntakeState| (vec![state.as_str().to_owned()], f64::from(state == own));
    IntakeState::ALL.map(sample).into()
}

fn rejections(status: &Status) -> Samples {
    let known = REJECTION_CODES.iter().map(|code| vec![code.to_string()]);
    let counted = status.spool.rejections.iter();
    with_zeros(known, counted.map(|count| (vec![count.code.clone()], count.rejections)))
}

fn settled(status: &Status) -> Samples {
    let labels =
        |state: &str, code: &str| vec![status.destination.kind.clone(), state.to_owned(), code.to_owned()];
    let known = SETTLED.iter().map(|(state, code)| labels(state, code));
    let counted = status.outbox.totals.iter().flat_map(|totals| &totals.settled);
    with_zeros(known, counted.map(|count| (labels(&count.state, &count.code), count.events)))
}

fn requests(status: &Status) -> Samples {
    let classes = status.destination.requests.by_class();
    classes.map(|(class, n)| (vec![status.destination.kind.clone(), class.to_owned()], n as f64)).into()
}

fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1000.0
}

/// The counted samples, and zeros for the known ones of which none was counted.
fn with_zeros(
    known: impl Iterator<Item = Vec<String>>,
    counted: impl Iterator<Item = (Vec<String>, u64)>,
) -> Samples {
    let mut samples: BTreeMap<Vec<String>, f64> = known.map(|labels| (labels, 0.0)).collect();
    samples.extend(counted.map(|(labels, count)| (labels, count as f64)));
    samples.into_iter().collect()
}

/// Prints or writes the metrics.
///
/// # Errors
/// The configuration is wrong, nothing was published, or the output cannot be written.
pub fn run(context: &CommandContext, args: &MetricsArgs) -> Result<ExitCode, CliError> {
    let config = context.config_beside_agent()?;
    let published = Status::read(&config.status_file);
    let Some(status) = published.filter(|status| status.outbox.totals.is_some()) else {
        let file = config.status_file.display().to_string();
        return Err(match File::open(&config.status_file) {
            Ok(_) => CliError::new(
                ExitCode::TryAgain,
                format!("an agent of another version has written {file}: restart it"),
            ),
            Err(e) if e.kind() == ErrorKind::NotFound => CliError::new(
                ExitCode::Unavailable,
                format!("no agent has published {file}: start it with {}", start_command(&config)),
            ),
            Err(source) => CliError::Input { name: file, source },
        });
    };
    if !is_publisher_alive(&status) {
        let at = time_and_age(status.now, context.clock.now());
        output::hint(format_args!("warning: the agent does not run; these are its last numbers, of {at}"));
    }
    let text = render(&status, config.instance.as_ref())
        .map_err(|e| CliError::new(ExitCode::Bug, format!("the metrics cannot be rendered: {e}")))?;
    match &args.out {
        None => output::print(&text)?,
        Some(file) => write(file, &text).map_err(|e| {
            CliError::new(write_exit_code(&e), format!("cannot write {}: {e}", file.display()))
        })?,
    }
    Ok(ExitCode::Success)
}

/// The metrics as text. Those of an instance have its name as a label: the collector reads the files of all instances.
fn render(status: &Status, instance: Option<&Instance>) -> Result<String, prometheus::Error> {
    let labels = instance.map(|name| [("agent".to_owned(), name.to_string())].into());
    let registry = Registry::new_custom(Some("koala_agent".to_owned()), labels)?;
    for Metric(kind, name, labels, help, samples) in &METRICS {
        let options = Opts::new(*name, *help);
        let samples = samples(status);
        let samples = samples
            .iter()
            .map(|(values, number)| (values.iter().map(String::as_str).collect::<Vec<_>>(), *number));
        match kind {
            Gauge => {
                let gauge = GaugeVec::new(options, labels)?;
                samples.for_each(|(values, number)| gauge.with_label_values(&values).set(number));
                registry.register(Box::new(gauge))?;
            }
            Counter => {
                let counter = CounterVec::new(options, labels)?;
                samples.for_each(|(values, number)| counter.with_label_values(&values).inc_by(number));
                registry.register(Box::new(counter))?;
            }
        }
    }
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// Writes a file that everybody may read. The collector reads no file whose name ends otherwise, so it never sees the
/// temporary one.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.as_file().set_permissions(Permissions::from_mode(0o644))?;
    new.write_all(text.as_bytes())?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_metric_has_samples_from_the_first_moment_on_and_counters_end_in_total() {
        let status = json!({
            "schema": 1, "now": "2026-01-02T12:00:00.5Z", "config": "/c.toml",
            "agent": {"version": "0.1.0", "running": true, "pid": 1, "since": null},
            "spool": {"dir": "/spool", "waiting_files": null, "waiting_bytes": null, "unreadable_files": null,
                      "rejected_files": null, "duplicates": 0, "scanned_at": null,
                      "rejections": [{"code": "too_deep", "rejections": 2}]},
            "intake": {"state": "blocked", "reason": null},
            "outbox": {"path": "/o.db", "pending": 3, "delivered": 7, "skipped": 0, "failed": 0, "discarded": 0,
                       "oldest_pending": null, "oldest_pending_seconds": null, "bytes": 10, "max_bytes": 100,
                       "disk_free": null,
                       "totals": {"created": 5, "requeued": 1, "settled": [
                           {"state": "delivered", "code": "", "events": 2},
                           {"state": "failed", "code": "key_refused", "events": 1}]}},
            "reasons": [],
            "destination": {"kind": "koala", "endpoint": "https://koala.test", "state": "online", "since": null,
                            "reason": null, "retry_at": null, "last_delivery": null},
        });
        let status = serde_json::from_value(status).unwrap();
        let of_instance = render(&status, Some(&"shop".parse().unwrap())).unwrap();
        assert!(of_instance.contains("koala_agent_pending{destination=\"koala\",agent=\"shop\"} 3\n"));
        let text = render(&status, None).unwrap();
        for Metric(kind, name, ..) in &METRICS {
            assert_eq!(*kind == Counter, name.ends_with("_total"), "{name}");
            for line in [format!("# HELP koala_agent_{name} "), format!("\nkoala_agent_{name}")] {
                assert!(text.contains(&line), "{line:?} is not in\n{text}");
            }
        }
        for line in [
            "koala_agent_pending{destination=\"koala\"} 3",
            "koala_agent_disk_free_bytes NaN",
            "koala_agent_intake_state{state=\"open\"} 0",
            "koala_agent_intake_state{state=\"blocked\"} 1",
            "koala_agent_destination_state{destination=\"koala\",state=\"online\"} 1",
            "koala_agent_metrics_written_timestamp_seconds 1767355200.5",
            "koala_agent_events_rejected_total{reason=\"not_json\"} 0",
            "koala_agent_events_rejected_total{reason=\"too_deep\"} 2",
            "koala_agent_items_created_total{destination=\"koala\"} 5",
            "koala_agent_items_settled_total{destination=\"koala\",reason=\"\",state=\"delivered\"} 2",
            "koala_agent_items_settled_total{destination=\"koala\",reason=\"\",state=\"lost\"} 0",
            "koala_agent_items_settled_total{destination=\"koala\",reason=\"refused\",state=\"failed\"} 0",
            "koala_agent_items_settled_total{destination=\"koala\",reason=\"key_refused\",state=\"failed\"} 1",
            "koala_agent_items_requeued_total{destination=\"koala\"} 1",
            "koala_agent_requests_total{class=\"network\",destination=\"koala\"} 0",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_file_is_replaced_and_everybody_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("koala-agent.prom");
        for text in ["one\n", "two\n"] {
            write(&file, text).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write(&folder.path().join("missing/x.prom"), "").is_err());
    }
}
