//! `koala-agent retry`: settled events and rejected files get another chance.

use super::context::ours;
use super::list::{reason, state};
use super::output::{self, count, plain};
use super::permission::may_change;
use super::when::When;
use super::{CliError, Context, ExitCode};
use crate::agent::disposition;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::Event;
use crate::item::Disposition;
use crate::outbox::{Admin, EventFilter, NewItem, Retained, State};
use crate::reason::{Code, Reason};
use crate::spool::{SpoolError, rejected_beside};
use clap::{ArgGroup, Args};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;

/// Events put back in one transaction: a running agent's own commits wait no longer than its usual ones take.
const AT_ONCE: usize = 1_000;

/// Put failed or skipped events back among the pending, or rejected files into the spool
///
/// Delivered events go back as well where their bodies were kept. They are sent under the mapping in force, in
/// their old places. An agent that waits for the receiver tries it at once.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true)))]
#[command(
    after_help = "Examples:\n  koala-agent retry --state failed --reason invalid_field\n  koala-agent retry --rejected broken.json"
)]
pub struct RetryArgs {
    /// These events
    #[arg(value_name = "MESSAGE_ID", group = "which")]
    message_ids: Vec<String>,
    /// All in one of these states: failed, skipped, delivered
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = settled_state, group = "which")]
    state: Vec<State>,
    /// Of them, those with this reason
    #[arg(long, value_name = "CODE", value_parser = reason, conflicts_with_all = ["message_ids", "rejected"])]
    reason: Option<Code>,
    /// Of them, those stored at or after: 2026-01-02T03:04:05Z, 2026-01-02, or 2h, 30d ago
    #[arg(long, value_name = "TIME", conflicts_with_all = ["message_ids", "rejected"])]
    since: Option<When>,
    /// These files from rejected/, back into the spool
    #[arg(long, value_name = "NAME", num_args = 1.., group = "which")]
    rejected: Vec<OsString>,
}

fn settled_state(name: &str) -> Result<State, String> {
    match state(name)? {
        State::Pending => Err("pending events are sent anyway".to_owned()),
        State::Discarded => Err("discarded events have no body any more".to_owned()),
        settled => Ok(settled),
    }
}

/// Puts events back; when the sum is printed, they are pending on the disk.
///
/// # Errors
/// Not by this user; an id that no row carries, or whose body is gone: the others are put back.
pub fn run(context: &Context, args: RetryArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_change(context, &config, "retry events")?;
    if !args.rejected.is_empty() {
        return put_back(&config, &args.rejected);
    }
    let mut admin = Admin::open(&config.outbox)?;
    if !args.message_ids.is_empty() {
        return one_by_one(&mut admin, &config, &args.message_ids, context.clock.now());
    }
    let filter = EventFilter {
        states: args.state,
        reason: args.reason.map(|code| code.as_str().to_owned()),
        since: args.since.map(|time| time.from(context.clock.now())),
        ..EventFilter::default()
    };
    all(&mut admin, &config, &filter, context.clock.now())
}

/// What goes back: the row, and its items under the mappings in force.
fn sorted(config: &Config, kept: &Retained) -> Result<(i64, Vec<NewItem>), Reason> {
    let parsed = Event::parse(&kept.body).map_err(|flaw| Reason::new(flaw.code, flaw.to_string()))?;
    match disposition(&config.mappings, &parsed, &kept.message_id, kept.spooled_at) {
        Disposition::Send(items) => Ok((kept.seq, items)),
        Disposition::Skip(reason) | Disposition::Fail(reason) => Err(reason),
    }
}

fn all(
    admin: &mut Admin,
    config: &Config,
    filter: &EventFilter,
    now: Timestamp,
) -> Result<ExitCode, CliError> {
    let total = admin.reader().events().list(filter, 0)?.total;
    let (mut after, mut seen, mut back) = (0, 0, 0);
    let mut stay: BTreeMap<(Code, String), u64> = BTreeMap::new();
    loop {
        let page = admin.reader().events().all_retained(filter, after, AT_ONCE)?;
        let Some(last) = page.last() else { break };
        (after, seen) = (last.seq, seen + page.len() as u64);
        let mut going = Vec::with_capacity(page.len());
        for kept in &page {
            match sorted(config, kept) {
                Ok(row) => going.push(row),
                Err(reason) => *stay.entry((reason.code, reason.text)).or_default() += 1,
            }
        }
        back += admin.requeue(&going, now)?;
    }
    if seen == 0 {
        // Whoever retries wants a waiting agent to try now.
        admin.requeue(&[], now)?;
    }
    let mut text = format!("{} pending again\n", count(back, "event"));
    for ((code, reason), events) in stay {
        text += &format!("{} still cannot be sent: {code}: {}\n", count(events, "event"), plain(&reason));
    }
    if total > seen {
        text += &format!("{} without a body any more\n", count(total - seen, "event"));
    }
    if total == 0 {
        text += &format!("none matches; see {}\n", ours(config, "status"));
    }
    output::print(&text)?;
    Ok(ExitCode::Success)
}

fn one_by_one(
    admin: &mut Admin,
    config: &Config,
    ids: &[String],
    now: Timestamp,
) -> Result<ExitCode, CliError> {
    let (mut text, mut going, mut end) = (String::new(), Vec::new(), ExitCode::Success);
    for id in ids {
        let shown = plain(id);
        match admin.reader().events().retained(id)? {
            Some(Ok(kept)) => match sorted(config, &kept) {
                Ok(row) => {
                    going.push(row);
                    text += &format!("{shown}  pending again\n");
                }
                Err(reason) => {
                    end = worse(end, ExitCode::BadData);
                    let state = kept.state.as_str();
                    text += &format!("{shown}  stays {state}: {}\n", plain(&reason.to_string()));
                }
            },
            Some(Err(State::Pending)) => text += &format!("{shown}  is pending\n"),
            Some(Err(state)) => {
                end = worse(end, ExitCode::BadData);
                text += &format!("{shown}  stays {}: its body is not kept any more\n", state.as_str());
            }
            None => {
                end = ExitCode::NotFound;
                text += &format!("{shown}  no event has this messageId\n");
            }
        }
    }
    // Also with none of them: a waiting agent is to try now.
    admin.requeue(&going, now)?;
    output::print(&text)?;
    Ok(end)
}

fn worse(end: ExitCode, other: ExitCode) -> ExitCode {
    if end == ExitCode::Success { other } else { end }
}

fn put_back(config: &Config, names: &[OsString]) -> Result<ExitCode, CliError> {
    let rejects = rejected_beside(&config.spool.dir);
    for name in names {
        let shown = name.to_string_lossy();
        let back = rejects.put_back(name).map_err(|error| match error {
            SpoolError::Io { source, .. } if source.kind() == ErrorKind::NotFound => CliError::new(
                ExitCode::NotFound,
                format!("no file {shown} was set aside; see {}", ours(config, "list --rejected")),
            ),
            other => other.into(),
        })?;
        let path = config.spool.dir.join(back);
        output::print(&format!(
            "{}  back in the spool as {}\n",
            plain(&shown),
            plain(&path.display().to_string())
        ))?;
    }
    Ok(ExitCode::Success)
}
