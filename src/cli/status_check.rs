//! `koala-agent status --check`: the status as one line for Nagios, Icinga and other programs that run their plugins.
//! Pure.
//!
//! It keeps nothing between two runs, so "new" is a matter of age: a monitoring system may run it on several machines, or
//! skip runs, and gets the same answer.

use super::ExitCode;
use super::output::{counted, grouped};
use super::status_text::is_full;
use super::time::duration_text;
use crate::reason::Reason;
use crate::status::{DestinationState, IntakeState, Status, backoff_word};
use std::time::Duration;

/// Trouble with the receiver that is shorter passes by itself.
const LASTING: Duration = Duration::from_secs(5 * 60);
/// Events that failed and files that were rejected are new for so long: enough for a check every half hour to see each.
const NEW_FOR: Duration = Duration::from_secs(3600);

/// An agent that runs publishes its state once a minute at least; one that hangs does not.
const SILENT: Duration = Duration::from_secs(3 * 60);

/// How bad a finding is, by the states of the plugin conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong.
    Ok,
    /// The status is not known.
    Unknown,
    /// Somebody should look at it today.
    Warning,
    /// Events wait, or are in danger, until somebody acts.
    Critical,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "OK",
            Severity::Unknown => "UNKNOWN",
            Severity::Warning => "WARNING",
            Severity::Critical => "CRITICAL",
        }
    }
}

/// The ages of the oldest pending event from which on it is a finding.
#[derive(Debug, Clone, Copy)]
pub struct AgeLimits {
    /// An older one is a warning.
    pub warning: Duration,
    /// An older one is critical.
    pub critical: Duration,
}

/// The answer of a check.
#[derive(Debug)]
pub struct CheckResult {
    severity: Severity,
    text: String,
    /// The figures, as plugins append them.
    perfdata: Option<String>,
}

impl CheckResult {
    /// The answer of a status.
    pub fn of(status: &Status, limits: AgeLimits) -> CheckResult {
        let mut findings = findings(status, limits);
        findings.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
        let severity = findings.first().map_or(Severity::Ok, |(severity, _)| *severity);
        let text = match severity {
            Severity::Ok => format!(
                "{}, {} pending, {} delivered",
                status.destination.state.as_str(),
                grouped(status.outbox.pending),
                grouped(status.outbox.delivered)
            ),
            _ => findings.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; "),
        };
        CheckResult { severity, text, perfdata: Some(perfdata(status, limits)) }
    }

    /// The answer where the status is not known.
    pub fn unknown(why: &str) -> CheckResult {
        CheckResult { severity: Severity::Unknown, text: why.to_owned(), perfdata: None }
    }

    /// How the command ends.
    pub fn exit_code(&self) -> ExitCode {
        match self.severity {
            Severity::Ok => ExitCode::Success,
            Severity::Warning => ExitCode::No,
            Severity::Critical => ExitCode::Critical,
            Severity::Unknown => ExitCode::Unknown,
        }
    }

    /// The one line.
    pub fn line(&self) -> String {
        // The figures begin at the first bar, and a second line would not be shown.
        let text = self.text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
        let figures = self.perfdata.iter().map(|figures| format!(" | {figures}")).collect::<String>();
        format!("KOALA-AGENT {} - {text}{figures}\n", self.severity.as_str())
    }
}

/// All that is wrong, in the order of the way of an event.
fn findings(status: &Status, limits: AgeLimits) -> Vec<(Severity, String)> {
    use Severity::{Critical, Warning};
    let mut findings = Vec::new();
    let age = |at| status.now.since(at);
    match status.agent.since {
        _ if status.agent.running => {
            if let Some(silent) = status.published_at.map(age).filter(|age| *age > SILENT) {
                findings
                    .push((Critical, format!("the agent has said nothing for {}", duration_text(silent))));
            }
        }
        Some(since) => {
            findings.push((Critical, format!("the agent has not run for {}", duration_text(age(since)))))
        }
        None => findings.push((Critical, "the agent has never run".to_owned())),
    }
    if let Some(incident) = &status.outbox.incident {
        let severity = if incident.is_settled(status.now) { Warning } else { Critical };
        let text = format!("the outbox was damaged {} ago", duration_text(age(incident.at)));
        findings.push((severity, text));
    }
    match &status.intake {
        intake if intake.state == IntakeState::Blocked => {
            findings.push((Critical, format!("no files are read{}", code(intake.reason.as_ref()))));
        }
        _ if is_full(&status.outbox) => findings.push((Critical, "the outbox is full".to_owned())),
        _ => {}
    }
    let destination = &status.destination;
    let own = ("", destination.state, destination.since, destination.reason.as_ref());
    let paths = destination.paths.iter();
    let paths = paths.map(|path| (&*path.path, path.state, Some(path.since), path.reason.as_ref()));
    for (path, state, since, reason) in std::iter::once(own).chain(paths) {
        let lasts = since.map(age).unwrap_or_default();
        let (severity, what) = match state {
            DestinationState::Refused => (Critical, "refused events".to_owned()),
            DestinationState::Backoff if lasts > LASTING => {
                (Warning, format!("been {}", backoff_word(reason)))
            }
            DestinationState::Unknown if reason.is_some() => (Warning, "been sent nothing".to_owned()),
            _ => continue,
        };
        let path = if path.is_empty() { String::new() } else { format!(" {path}") };
        let text = format!("the receiver{path} has {what} for {}{}", duration_text(lasts), code(reason));
        findings.push((severity, text));
    }
    let oldest = Duration::from_secs(status.outbox.oldest_pending_seconds.unwrap_or(0));
    let is_old = [(limits.critical, Critical), (limits.warning, Warning)];
    if let Some((_, severity)) = is_old.into_iter().find(|(limit, _)| oldest > *limit) {
        findings.push((severity, format!("an event has waited for {}", duration_text(oldest))));
    }
    for (number, noun, verb, newest) in [
        (status.outbox.failed, "event", "failed", status.outbox.last_failed),
        (status.spool.rejected_files.unwrap_or(0), "file", "rejected", status.spool.last_rejected),
    ] {
        if let Some(age) = newest.map(age).filter(|age| number > 0 && *age < NEW_FOR) {
            let (number, age) = (counted(number, noun), duration_text(age));
            findings.push((Warning, format!("{number} {verb}, the newest {age} ago")));
        }
    }
    findings
}

/// The code of a reason; its text may have the receiver's words.
fn code(reason: Option<&Reason>) -> String {
    reason.map(|reason| format!(" ({})", reason.code)).unwrap_or_default()
}

/// The figures as `label=value[unit];warning;critical;least;most`, where U stands for what is not known.
fn perfdata(status: &Status, limits: AgeLimits) -> String {
    let known = |number: Option<u64>| number.map_or("U".to_owned(), |number| number.to_string());
    let (outbox, spool) = (&status.outbox, &status.spool);
    format!(
        "pending={};;;0 oldest={}s;{};{};0 failed={};;;0 rejected={};;;0 waiting_files={};;;0 outbox={}B;;;0;{}",
        outbox.pending,
        outbox.oldest_pending_seconds.unwrap_or(0),
        limits.warning.as_secs(),
        limits.critical.as_secs(),
        outbox.failed,
        known(spool.rejected_files),
        known(spool.waiting_files),
        outbox.needed_bytes,
        outbox.max_bytes
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::reason::Code;
    use crate::status::{Incident, PathStatus};
    use serde_json::json;

    const MINUTE: u64 = 60;

    /// A running agent that has nothing to complain of.
    fn well() -> Status {
        let status = json!({
            "schema": 1, "now": "2026-01-02T12:00:00Z", "config": "/c.toml", "config_in_force": true,
            "agent": {"version": "0", "running": true, "pid": 1, "since": "2026-01-01T00:00:00Z"},
            "spool": {"dir": "/spool", "waiting_files": 2, "waiting_bytes": 9, "unreadable_files": 0,
                      "rejected_files": 0, "duplicates": 0, "scanned_at": null},
            "intake": {"state": "open", "reason": null},
            "outbox": {"path": "/o.db", "pending": 3, "delivered": 7, "skipped": 0, "failed": 0, "discarded": 0,
                       "oldest_pending": null, "oldest_pending_seconds": 4, "bytes": 10, "needed_bytes": 10, "max_bytes": 100,
                       "disk_free": 1},
            "reasons": [],
            "destination": {"kind": "koala", "endpoint": "https://koala.test", "state": "online", "since": null,
                            "reason": null, "retry_at": null, "last_delivery": null},
        });
        serde_json::from_value(status).unwrap()
    }

    fn minutes_ago(minutes: u64) -> Timestamp {
        well().now.minus(Duration::from_secs(minutes * MINUTE))
    }

    fn destination(status: &mut Status, state: DestinationState, minutes: u64, code: Code) {
        status.destination.state = state;
        status.destination.since = Some(minutes_ago(minutes));
        status.destination.reason = Some(Reason::new(code, "a | b\nc"));
    }

    fn incident(status: &mut Status, minutes: u64, files: Option<&str>) {
        let (at, files) = (minutes_ago(minutes), files.map(Into::into));
        status.outbox.incident = Some(Incident { at, text: "damaged".to_owned(), files });
    }

    #[test]
    fn every_state_has_its_severity_and_the_worst_stands_first() {
        use DestinationState::{Backoff, Online, Refused, Unknown};
        type Change = fn(&mut Status);
        let table: &[(Change, &str)] = &[
            (|_| {}, "OK - online, 3 pending, 7 delivered"),
            (
                |s| {
                    s.agent.running = false;
                    s.agent.since = Some(minutes_ago(3));
                },
                "CRITICAL - the agent has not run for 3 min",
            ),
            (
                |s| {
                    s.agent.running = false;
                    s.agent.since = None;
                },
                "CRITICAL - the agent has never run",
            ),
            (|s| s.published_at = Some(minutes_ago(4)), "CRITICAL - the agent has said nothing for 4 min"),
            (|s| s.published_at = Some(minutes_ago(2)), "OK - online, 3 pending, 7 delivered"),
            (|s| incident(s, 0, None), "CRITICAL - the outbox was damaged 0 s ago"),
            (|s| incident(s, 60, Some("/damaged")), "CRITICAL - the outbox was damaged 1 h ago"),
            (|s| incident(s, 60, None), "WARNING - the outbox was damaged 1 h ago"),
            (
                |s| {
                    s.intake.state = IntakeState::Blocked;
                    s.intake.reason = Some(Reason::new(Code::MinFree, "a | b"));
                },
                "CRITICAL - no files are read (min_free)",
            ),
            (|s| s.outbox.needed_bytes = 100, "CRITICAL - the outbox is full"),
            (
                |s| destination(s, Refused, 61, Code::KeyRefused),
                "CRITICAL - the receiver has refused events for 1 h 1 min (key_refused)",
            ),
            (
                |s| destination(s, Backoff, 6, Code::Http5xx),
                "WARNING - the receiver has been failing for 6 min (http_5xx)",
            ),
            (|s| destination(s, Backoff, 5, Code::Dns), "OK - backoff, 3 pending, 7 delivered"),
            (
                |s| destination(s, Backoff, 6, Code::Dns),
                "WARNING - the receiver has been unreachable for 6 min (dns)",
            ),
            (
                |s| destination(s, Unknown, 1, Code::NoKey),
                "WARNING - the receiver has been sent nothing for 1 min (no_key)",
            ),
            (|s| s.destination.state = Unknown, "OK - unknown, 3 pending, 7 delivered"),
            (
                |s| {
                    s.destination.paths.push(PathStatus {
                        path: "/accounts/batch".to_owned(),
                        state: Refused,
                        since: minutes_ago(1),
                        reason: None,
                        retry_at: None,
                    });
                },
                "CRITICAL - the receiver /accounts/batch has refused events for 1 min",
            ),
            (|s| s.outbox.oldest_pending_seconds = Some(600), "OK - online, 3 pending, 7 delivered"),
            (|s| s.outbox.oldest_pending_seconds = Some(601), "WARNING - an event has waited for 10 min 1 s"),
            (|s| s.outbox.oldest_pending_seconds = Some(3601), "CRITICAL - an event has waited for 1 h"),
            (
                |s| {
                    s.outbox.failed = 2;
                    s.outbox.last_failed = Some(minutes_ago(59));
                },
                "WARNING - 2 events failed, the newest 59 min ago",
            ),
            (
                |s| {
                    s.outbox.failed = 2;
                    s.outbox.last_failed = Some(minutes_ago(60));
                },
                "OK - online, 3 pending, 7 delivered",
            ),
            (
                |s| {
                    s.spool.rejected_files = Some(1);
                    s.spool.last_rejected = Some(minutes_ago(2));
                },
                "WARNING - 1 file rejected, the newest 2 min ago",
            ),
            (
                |s| {
                    s.outbox.failed = 1;
                    s.outbox.last_failed = Some(minutes_ago(1));
                    destination(s, Online, 0, Code::Dns);
                    destination(s, Refused, 1, Code::Redirect);
                    s.outbox.oldest_pending_seconds = Some(700);
                },
                "CRITICAL - the receiver has refused events for 1 min (redirect); an event has waited for 11 min 40 s; \
                 1 event failed, the newest 1 min ago",
            ),
        ];
        let limits = AgeLimits { warning: Duration::from_secs(600), critical: Duration::from_secs(3600) };
        for (change, expected) in table {
            let mut status = well();
            change(&mut status);
            let result = CheckResult::of(&status, limits);
            let line = result.line();
            let (text, figures) = line.split_once(" | ").unwrap();
            assert_eq!(text, format!("KOALA-AGENT {expected}"));
            let code = match expected.split(' ').next().unwrap() {
                "OK" => 0,
                "WARNING" => 1,
                _ => 2,
            };
            assert_eq!(result.exit_code() as u8, code, "{line}");
            assert!(figures.starts_with("pending=3;;;0 oldest="), "{line}");
            assert_eq!(line.matches(['\n', '|']).count(), 2, "{line}");
        }
        let figures = CheckResult::of(&well(), limits).perfdata.unwrap();
        assert_eq!(
            figures,
            "pending=3;;;0 oldest=4s;600;3600;0 failed=0;;;0 rejected=0;;;0 waiting_files=2;;;0 outbox=10B;;;0;100"
        );
    }

    #[test]
    fn what_is_not_known_is_said_in_one_line() {
        let result = CheckResult::unknown("cannot read\n  /a|b");
        assert_eq!(result.line(), "KOALA-AGENT UNKNOWN - cannot read /a/b\n");
        assert_eq!(result.exit_code() as u8, 3);
    }
}
