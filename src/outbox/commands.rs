//! The commands that change events by hand: what is asked, what came of it, and the table by which one process asks
//! another.
//!
//! ```text
//!   asked ──claim──▶ claimed ──step, step──▶ finished ──the asker is gone──▶ deleted
//!     └──withdrawn by its asker──▶ deleted
//! ```
//!
//! One process changes the rows of the outbox: the one that holds its lock. A command is asked of it by a row here, and not
//! over a socket: the database is there for both, with its permissions and its transactions, so what was claimed, changed
//! and reported is one commit, and a crash leaves all of a step or none of it. Each step writes how far the command has
//! come; a process that takes over goes on from there.

use super::acts::Asker;
use super::appended::Enqueued;
use super::event_queries::EventFilter;
use super::row::State;
use crate::clock::Timestamp;
use crate::reason::Code;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Events that one transaction changes at most, so that the commits of the agent do not wait longer for it than for its own.
pub const STEP: usize = 1_000;

/// What is asked. Nothing in it names a person who is to be erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Makes events pending again.
    Retry(Vec<String>),
    /// Makes all events pending again that match and whose bodies are kept.
    RetryAll(EventFilter),
    /// Drops events for good.
    Discard(Vec<String>),
    /// Skips later events of a person, by the keyed hash of the name.
    Suppress(String),
    /// Accepts later events of a person again.
    Unsuppress(String),
    /// Erases what is kept of a person.
    Erase(Erasure),
}

impl Command {
    /// The kind of the act; `None`: the command is a part of another one.
    pub(super) fn act(&self) -> Option<&'static str> {
        match self {
            Command::Retry(_) | Command::RetryAll(_) => Some("retry"),
            Command::Discard(_) => Some("discard"),
            Command::Erase(_) => Some("erase"),
            Command::Unsuppress(_) => Some("let_in"),
            Command::Suppress(_) => None,
        }
    }

    /// The keyed hash of the person.
    pub(super) fn person(&self) -> Option<&str> {
        match self {
            Command::Suppress(hash) | Command::Unsuppress(hash) => Some(hash),
            Command::Erase(erasure) => Some(&erasure.person),
            Command::Retry(_) | Command::RetryAll(_) | Command::Discard(_) => None,
        }
    }

    /// The report of a command of which nothing is done yet.
    pub fn report(&self) -> Report {
        match self {
            Command::Retry(_) | Command::Discard(_) => Report::Events(Vec::new()),
            Command::RetryAll(_) => Report::Retried(Retried::default()),
            Command::Suppress(_) | Command::Unsuppress(_) => Report::WasSuppressed(false),
            Command::Erase(_) => Report::Erased(Erased::default()),
        }
    }
}

/// What is to be erased, as a search has found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasure {
    /// The keyed hash of the person's name.
    pub person: String,
    /// The numbers of the events.
    pub events: Vec<i64>,
    /// The identities of ingested files that are named after the person.
    pub files: Vec<(i64, i64, i64)>,
}

/// What has come of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Of each event that was named, in that order.
    Events(Vec<EventReport>),
    /// Of all that matched.
    Retried(Retried),
    /// Whether the person was suppressed before.
    WasSuppressed(bool),
    /// What was erased.
    Erased(Erased),
    /// The command ended early, by that error.
    Failed {
        /// Whether it may succeed later.
        is_transient: bool,
        /// What has failed.
        text: String,
    },
}

/// What has come of one event that was named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReport {
    /// The event's id.
    pub message_id: String,
    /// The event's number; `None`: there is no such event.
    pub seq: Option<i64>,
    /// What has come of it.
    pub outcome: EventOutcome,
}

/// What a command has found or changed about an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventOutcome {
    /// It is pending again.
    Requeued,
    /// It is pending, as it was.
    Pending,
    /// Under the mappings in force it cannot be sent.
    Unsendable(State, Code, String),
    /// It cannot be sent again: the body is not kept any more.
    BodyGone(State),
    /// It is dropped. `is_unanswered`: a request with it has got no answer, so that the receiver may have it.
    Discarded {
        /// See above.
        is_unanswered: bool,
    },
    /// The receiver has accepted it. `is_meanwhile`: while the command waited for the answer.
    Delivered {
        /// See above.
        is_meanwhile: bool,
    },
    /// It was dropped before.
    AlreadyDiscarded,
    /// It is being sent, and the answer did not come in time: nothing has changed.
    InFlight,
    /// No event has that id.
    Unknown,
}

/// How far all matching events are made pending again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// Events that match, whether their bodies are kept or not.
    pub total: u64,
    /// Events whose bodies are kept, as far as they were looked at.
    pub examined: u64,
    /// Events that are pending again.
    pub requeued: u64,
    /// Events that cannot be sent under the mappings in force, by the reason.
    pub unsendable: BTreeMap<String, u64>,
    /// The number of the last event that was looked at.
    pub after: i64,
}

/// What was erased.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// The events, each in its last state.
    pub events: Vec<ErasedEvent>,
    /// The log is emptied, so that nothing of the events is left in it.
    pub is_log_empty: bool,
    /// The processes that prevent that.
    pub log_held_by: Vec<i32>,
}

/// An event that was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedEvent {
    /// The event's number.
    pub seq: i64,
    /// Its state when it was erased.
    pub state: State,
    /// When it was settled.
    pub settled_at: Option<Timestamp>,
    /// A request with it has got no answer, so that the receiver may have it.
    pub is_in_flight: bool,
}

impl Report {
    /// Adds what a step has changed.
    pub(super) fn add(&mut self, applied: &Applied) {
        match (self, applied) {
            (Report::Events(events), Applied::Events { outcomes, .. }) => {
                for (seq, outcome) in outcomes {
                    let known = events.iter_mut().rev().find(|event| event.seq == Some(*seq));
                    known.into_iter().for_each(|event| event.outcome.clone_from(outcome));
                }
            }
            (Report::Retried(retried), Applied::Events { outcomes, .. }) => {
                let count = |is: fn(&EventOutcome) -> bool| {
                    outcomes.iter().filter(|(_, outcome)| is(outcome)).count() as u64
                };
                retried.requeued += count(|outcome| *outcome == EventOutcome::Requeued);
                // Its body was given up between the look at it and the change.
                retried.examined -= count(|outcome| matches!(outcome, EventOutcome::BodyGone(_)));
            }
            (Report::Erased(erased), Applied::Erased(events)) => erased.events.extend_from_slice(events),
            (Report::WasSuppressed(was), Applied::WasSuppressed(is)) => *was = *is,
            _ => {}
        }
    }
}

/// A command that is being carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedCommand {
    /// The row of the command; `None`: its asker carries it out.
    pub id: Option<i64>,
    /// Who asks.
    pub asker: Asker,
    /// What is asked.
    pub command: Command,
    /// The row of the act, as soon as anything has changed.
    pub act: Option<i64>,
    /// What has changed so far.
    pub report: Report,
}

impl ClaimedCommand {
    /// A command that its asker carries out.
    pub fn own(asker: Asker, command: Command) -> ClaimedCommand {
        ClaimedCommand { id: None, asker, report: command.report(), command, act: None }
    }
}

/// What a change has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// What it says.
    Done,
    /// The command that was claimed; `None`: it was withdrawn.
    Claimed(Option<Box<ClaimedCommand>>),
    /// A command as far as it has come by the change.
    Step {
        /// The command.
        command: Box<ClaimedCommand>,
        /// The items that wait now.
        enqueued: Enqueued,
    },
    /// The events, and the items that wait now.
    Events {
        /// What came of each.
        outcomes: Vec<(i64, EventOutcome)>,
        /// What the sender is to know.
        enqueued: Enqueued,
    },
    /// Whether the person was suppressed.
    WasSuppressed(bool),
    /// The events.
    Erased(Vec<ErasedEvent>),
}

impl Applied {
    /// The items that wait now.
    pub(super) fn enqueued(self) -> Enqueued {
        match self {
            Applied::Events { enqueued, .. } | Applied::Step { enqueued, .. } => enqueued,
            _ => Enqueued::default(),
        }
    }
}

/// A command in the table, as far as it decides what is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCommand {
    /// Its row.
    pub id: i64,
    /// Whether somebody has claimed it.
    pub is_claimed: bool,
    /// Whether it is done, and only its asker is missing.
    pub is_finished: bool,
}

/// What an asker sees of its command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nobody has claimed it.
    Waiting,
    /// It is being carried out.
    Claimed,
    /// It is done.
    Finished(Report),
    /// There is no such command: it was dropped, and nothing was changed.
    Gone,
    /// The outbox was removed or replaced by another since: what becomes of the command will not be seen here.
    Replaced,
}

/// The table, over a connection.
pub(super) struct Commands<'a>(pub(super) &'a Connection);

impl Commands<'_> {
    /// Adds a command. Returns its number, which none has had before.
    pub(super) fn insert(
        &self,
        asker: &Asker,
        command: &Command,
        now: Timestamp,
    ) -> Result<i64, rusqlite::Error> {
        self.0
            .prepare_cached("INSERT INTO commands (asked_at, asker, command) VALUES (?, ?, ?)")?
            .execute(params![now.0, to_json(asker)?, to_json(command)?])?;
        Ok(self.0.last_insert_rowid())
    }

    /// Deletes a command of which nothing was done and that nobody has claimed. Returns whether it has: then nothing ever
    /// is.
    pub(super) fn withdraw(&self, id: i64) -> Result<bool, rusqlite::Error> {
        let deleted = self
            .0
            .prepare_cached("DELETE FROM commands WHERE id = ? AND claimed_at IS NULL AND report IS NULL")?
            .execute([id])?;
        Ok(deleted > 0)
    }

    pub(super) fn progress(&self, id: i64) -> Result<Progress, rusqlite::Error> {
        let row = self
            .0
            .prepare_cached(
                "SELECT claimed_at IS NOT NULL, iif(finished_at IS NULL, NULL, report) FROM commands WHERE id = ?",
            )?
            .query_row([id], |r| Ok((r.get(0)?, r.get::<_, Option<String>>(1)?)))
            .optional()?;
        Ok(match row {
            None => Progress::Gone,
            Some((_, Some(report))) => Progress::Finished(from_json(&report)?),
            Some((true, None)) => Progress::Claimed,
            Some((false, None)) => Progress::Waiting,
        })
    }

    /// All commands, the oldest first.
    pub(super) fn open(&self) -> Result<Vec<OpenCommand>, rusqlite::Error> {
        self.0
            .prepare_cached(
                "SELECT id, claimed_at IS NOT NULL, finished_at IS NOT NULL FROM commands ORDER BY id",
            )?
            .query_map([], |r| {
                Ok(OpenCommand { id: r.get(0)?, is_claimed: r.get(1)?, is_finished: r.get(2)? })
            })?
            .collect()
    }

    pub(super) fn are_there(&self) -> Result<bool, rusqlite::Error> {
        self.0.prepare_cached("SELECT EXISTS (SELECT 1 FROM commands)")?.query_row([], |r| r.get(0))
    }

    /// Claims a command and returns it, as far as it has come. `None`: it is gone, claimed or finished. One that this
    /// version cannot read is finished by that: an error here would be taken for damage to the outbox.
    pub(super) fn claim(&self, id: i64, now: Timestamp) -> Result<Option<ClaimedCommand>, rusqlite::Error> {
        let row = self
            .0
            .prepare_cached(
                "UPDATE commands SET claimed_at = ?2 WHERE id = ?1 AND claimed_at IS NULL AND finished_at IS NULL
                 RETURNING asker, command, act, report",
            )?
            .query_row(params![id, now.0], StoredCommand::from_row)
            .optional()?;
        let Some(row) = row else { return Ok(None) };
        match row.parse(id) {
            Ok(command) => Ok(Some(command)),
            Err(_) => self.refuse(id, now).map(|()| None),
        }
    }

    /// Finishes a command that this version cannot read.
    fn refuse(&self, id: i64, now: Timestamp) -> Result<(), rusqlite::Error> {
        let text = "the agent cannot read the command: it is a command of another version".to_owned();
        self.0
            .prepare_cached("UPDATE commands SET report = ?2, finished_at = ?3 WHERE id = ?1")?
            .execute(params![id, to_json(&Report::Failed { is_transient: false, text })?, now.0])
            .map(drop)
    }

    pub(super) fn unclaim_all(&self) -> Result<(), rusqlite::Error> {
        self.0
            .prepare_cached("UPDATE commands SET claimed_at = NULL WHERE finished_at IS NULL")?
            .execute([])
            .map(drop)
    }

    pub(super) fn drop(&self, ids: &[i64]) -> Result<(), rusqlite::Error> {
        let mut delete = self.0.prepare_cached("DELETE FROM commands WHERE id = ?")?;
        ids.iter().try_for_each(|id| delete.execute([id]).map(drop))
    }

    /// Records how far a command has come. `finished`: that is its result.
    pub(super) fn record(
        &self,
        id: i64,
        command: &ClaimedCommand,
        finished: Option<Timestamp>,
    ) -> Result<(), rusqlite::Error> {
        self.0
            .prepare_cached("UPDATE commands SET act = ?2, report = ?3, finished_at = ?4 WHERE id = ?1")?
            .execute(params![id, command.act, to_json(&command.report)?, finished.map(|at| at.0)])
            .map(drop)
    }
}

/// A command as it stands in its row.
struct StoredCommand {
    asker: String,
    command: String,
    act: Option<i64>,
    report: Option<String>,
}

impl StoredCommand {
    fn from_row(row: &Row<'_>) -> Result<StoredCommand, rusqlite::Error> {
        Ok(StoredCommand { asker: row.get(0)?, command: row.get(1)?, act: row.get(2)?, report: row.get(3)? })
    }

    fn parse(&self, id: i64) -> Result<ClaimedCommand, serde_json::Error> {
        let command: Command = serde_json::from_str(&self.command)?;
        let asker = serde_json::from_str(&self.asker)?;
        let report = self.report.as_deref().map(serde_json::from_str).transpose()?;
        let report = report.unwrap_or_else(|| command.report());
        Ok(ClaimedCommand { id: Some(id), asker, command, act: self.act, report })
    }
}

fn to_json(value: &impl Serialize) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, rusqlite::Error> {
    let is_text = rusqlite::types::Type::Text;
    serde_json::from_str(text).map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, is_text, e.into()))
}
