//! The status of an agent that waits to start, because its outbox or another file cannot be written for now.
//!
//! It is published like that of one that runs: there is a process, it takes no files, and here is why. The counts are those
//! that were published last.

use super::error::StartError;
use super::publisher::write_status;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::status::{
    AgentStatus, DestinationStatus, IntakeState, IntakeStatus, OutboxStatus, SCHEMA, SpoolStatus, Status,
};

/// Publishes that the agent waits to start, as far as the file can be written.
pub fn publish_waiting(config: &Config, since: Timestamp, now: Timestamp, error: &StartError) {
    let mut status = last_published(config);
    status.now = now;
    status.agent = AgentStatus {
        running: true,
        waits_to_start: true,
        pid: Some(std::process::id()),
        since: Some(since),
        ..status.agent
    };
    status.intake = IntakeStatus { state: IntakeState::Blocked, reason: Some(error.reason()) };
    write(config, &status);
}

/// Publishes that the agent has stopped before it could start.
pub fn publish_given_up(config: &Config, now: Timestamp) {
    let mut status = last_published(config);
    status.now = now;
    status.agent =
        AgentStatus { running: false, waits_to_start: false, pid: None, since: Some(now), ..status.agent };
    write(config, &status);
}

fn last_published(config: &Config) -> Status {
    let mut status = Status::read(&config.status_file).unwrap_or_else(|| never_started(config));
    (status.config_in_force, status.published_at) = (None, None);
    status.agent.version = env!("CARGO_PKG_VERSION").to_owned();
    status.config.clone_from(&config.path);
    status.outbox.path.clone_from(&config.outbox.path);
    status
}

fn write(config: &Config, status: &Status) {
    if let Err(e) = write_status(config, status) {
        tracing::debug!("the status cannot be published: {e}");
    }
}

/// The status before the agent's first start.
pub fn never_started(config: &Config) -> Status {
    Status {
        schema: SCHEMA,
        now: Timestamp(0),
        published_at: None,
        config: config.path.clone(),
        config_in_force: None,
        agent: AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: false,
            waits_to_start: false,
            pid: None,
            since: None,
            log_lines_dropped: 0,
        },
        spool: SpoolStatus { dir: config.spool.dir.clone(), ..SpoolStatus::default() },
        intake: IntakeStatus { state: IntakeState::Open, reason: None },
        outbox: OutboxStatus { max_bytes: config.outbox.max_bytes, ..Default::default() },
        clock_step: None,
        clock_ahead_seconds: None,
        reasons: Vec::new(),
        destination: DestinationStatus::unknown(config.koala.endpoint.clone()),
        longest_waiting: Vec::new(),
    }
}
