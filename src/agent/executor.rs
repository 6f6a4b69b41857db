//! Carries out the commands that change events by hand: in the agent, on a thread of its own that sleeps until it is woken,
//! or in the command's own process where no agent runs.
//!
//! ```text
//!   commands ──claim──▶ Executor ──withdraw──▶ sender: nothing of these events is in flight any more
//!                           │    ──change──▶ writer: rows, act and report, in one commit
//!                           └────requeued──▶ sender
//! ```
//!
//! One command at a time, in steps of bounded size, between which everybody else's commits go on. It is not a part of the
//! sender, which must not read and map a thousand bodies between two answers, nor of the writer, which knows no mappings. A
//! step is whole or has not been: whoever takes over after a crash goes on from the report.

use super::new_event::disposition;
use super::sender::SenderCommand;
use super::withdrawals::Withdrawn;
use crate::event::Event;
use crate::item::Disposition;
use crate::mapping::Mappings;
use crate::outbox::{
    Applied, Change, ClaimedCommand, Command, Enqueued, EventFilter, EventOutcome, EventReport, NewItem,
    Outbox, OutboxError, Reader, Report, Retained, STEP, State, Work, Writer, open_commands,
};
use crate::reason::Reason;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Reasons that are told apart for events that cannot be sent.
const MAX_REASONS: usize = 100;
/// The time for the log to be emptied after an erasure. The agent's own readers let go of it within milliseconds.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_RETRY: Duration = Duration::from_millis(20);
/// The wait before a result is recorded again that a full or locked outbox refused.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// Why a command is not finished.
enum Interruption {
    /// The agent stops: the next one goes on.
    Stopping,
    /// It has failed.
    Failed(Arc<OutboxError>),
}

impl From<OutboxError> for Interruption {
    fn from(e: OutboxError) -> Interruption {
        Interruption::Failed(Arc::new(e))
    }
}

impl From<Arc<OutboxError>> for Interruption {
    fn from(e: Arc<OutboxError>) -> Interruption {
        Interruption::Failed(e)
    }
}

/// Carries out commands.
pub struct Executor {
    outbox: PathBuf,
    /// Pending events up to this number may have been sent by an agent that is gone.
    maybe_sent_upto: i64,
    writer: Writer,
    /// `None`: no agent runs, and nothing is in flight any more.
    sender: Option<mpsc::UnboundedSender<SenderCommand>>,
    mappings: Box<dyn Fn() -> Arc<Mappings> + Send>,
    stopping: CancellationToken,
}

impl Executor {
    /// An executor on the outbox that this process owns.
    pub(super) fn new(
        outbox: &Outbox,
        sender: mpsc::UnboundedSender<SenderCommand>,
        mappings: impl Fn() -> Arc<Mappings> + Send + 'static,
        stopping: CancellationToken,
    ) -> Executor {
        Executor {
            outbox: outbox.path().to_owned(),
            maybe_sent_upto: outbox.maybe_sent_upto(),
            writer: outbox.writer.clone(),
            sender: Some(sender),
            mappings: Box::new(mappings),
            stopping,
        }
    }

    /// An executor in a command's own process, which owns the outbox and sends nothing.
    pub fn without_agent(outbox: &Outbox, mappings: Arc<Mappings>) -> Executor {
        Executor {
            outbox: outbox.path().to_owned(),
            maybe_sent_upto: outbox.maybe_sent_upto(),
            writer: outbox.writer.clone(),
            sender: None,
            mappings: Box::new(move || mappings.clone()),
            stopping: CancellationToken::new(),
        }
    }

    /// Carries out what is asked, whenever it is woken, until the agent stops.
    pub(super) fn run(self, wakes: &Receiver<()>) {
        let unclaim = Change { work: Work::Unclaim, of: None, is_last: false };
        let mut is_begun = false;
        while wakes.recv().is_ok() && !self.stopping.is_cancelled() {
            // Claimed is what an agent had claimed that is gone.
            is_begun = is_begun || self.writer.change(unclaim.clone()).block().is_ok();
            if is_begun && let Err(Interruption::Failed(e)) = self.carry_out_all() {
                tracing::warn!("a command could not be carried out: {e}");
            }
        }
    }

    /// Carries out every command that somebody waits for, and deletes the others.
    fn carry_out_all(&self) -> Result<(), Interruption> {
        loop {
            let commands = open_commands(&Reader::open_in_process(&self.outbox)?)?;
            let is_dropped = |is_awaited: bool, is_claimed: bool| !is_awaited && !is_claimed;
            let gone: Vec<i64> = commands
                .iter()
                .filter(|(command, is_awaited)| {
                    is_dropped(*is_awaited, command.is_claimed && !command.is_finished)
                })
                .map(|(command, _)| command.id)
                .collect();
            if !gone.is_empty() {
                self.change(Work::Drop(gone))?;
            }
            let mut next = commands
                .iter()
                .filter(|(command, is_awaited)| *is_awaited && !command.is_claimed && !command.is_finished);
            let Some((next, _)) = next.next() else { return Ok(()) };
            if let Applied::Claimed(Some(command)) = self.change(Work::Claim(next.id))? {
                match self.carry_out_claimed(*command) {
                    Err(Interruption::Failed(e)) => tracing::warn!("a command has failed: {e}"),
                    carried_out => carried_out?,
                }
            }
        }
    }

    fn carry_out_claimed(&self, command: ClaimedCommand) -> Result<(), Interruption> {
        let mut unfinished = command.clone();
        match self.carry_out_from(command) {
            Err(Interruption::Failed(e)) => {
                // Its asker waits for a result.
                unfinished.report = Report::Failed { is_transient: e.is_transient(), text: e.to_string() };
                let change = Change { work: Work::Nothing, of: Some(unfinished), is_last: true };
                while self.writer.change(change.clone()).block().is_err_and(|e| e.is_transient()) {
                    if self.stopping.is_cancelled() {
                        return Err(Interruption::Stopping);
                    }
                    std::thread::sleep(RECORD_RETRY);
                }
                Err(Interruption::Failed(e))
            }
            carried_out => carried_out.map(drop),
        }
    }

    /// Carries out a command, and returns what has come of it. When this returns `Ok`, that is on the disk.
    ///
    /// # Errors
    /// SQLite's; then some of it may be done, and to ask again does the rest.
    pub fn carry_out(&self, command: ClaimedCommand) -> Result<Report, Arc<OutboxError>> {
        match self.carry_out_from(command) {
            Ok(report) => Ok(report),
            Err(Interruption::Failed(e)) => Err(e),
            Err(Interruption::Stopping) => Err(Arc::new(OutboxError::Closed)),
        }
    }

    fn carry_out_from(&self, command: ClaimedCommand) -> Result<Report, Interruption> {
        match command.command.clone() {
            Command::Retry(ids) => self.retry(command, &ids),
            Command::RetryAll(filter) => self.retry_all(command, &filter),
            Command::Discard(ids) => self.discard(command, &ids),
            Command::Suppress(person) => self.finish(command, Work::Suppress(person)),
            Command::Unsuppress(person) => self.finish(command, Work::Unsuppress(person)),
            Command::Erase(erasure) => self.erase(command, &erasure.events, erasure.files.clone()),
        }
    }

    /// Makes events pending again that are named.
    fn retry(&self, mut command: ClaimedCommand, ids: &[String]) -> Result<Report, Interruption> {
        let reader = self.reader()?;
        let mappings = (self.mappings)();
        for some in ids[self.done(&command)..].chunks(STEP) {
            let mut events = Vec::new();
            let Report::Events(reports) = &mut command.report else { break };
            for id in some {
                let (seq, outcome) = match reader.events().retained(id)? {
                    None => (None, EventOutcome::Unknown),
                    Some(Err(State::Pending)) => (None, EventOutcome::Pending),
                    Some(Err(state)) => (None, EventOutcome::BodyGone(state)),
                    Some(Ok(event)) => match remapped(&mappings, &event) {
                        Ok(items) => {
                            events.push((event.seq, items));
                            (Some(event.seq), EventOutcome::Requeued)
                        }
                        Err(reason) => {
                            (None, EventOutcome::Unsendable(event.state, reason.code, reason.text))
                        }
                    },
                };
                reports.push(EventReport { message_id: id.clone(), seq, outcome });
            }
            let is_last = reports.len() == ids.len();
            command = self.requeue(command, events, is_last)?;
        }
        self.retry_now();
        Ok(command.report)
    }

    /// Makes events pending again that match.
    fn retry_all(&self, mut command: ClaimedCommand, filter: &EventFilter) -> Result<Report, Interruption> {
        let reader = self.reader()?;
        let mappings = (self.mappings)();
        while let Report::Retried(retried) = &mut command.report {
            if retried.after == 0 {
                retried.total = reader.events().list(filter, 0)?.total;
            }
            let page = reader.events().all_retained(filter, retried.after, STEP)?;
            let is_last = page.len() < STEP;
            retried.examined += page.len() as u64;
            retried.after = page.last().map_or(retried.after, |last| last.seq);
            let mut events = Vec::with_capacity(page.len());
            for event in &page {
                match remapped(&mappings, event) {
                    Ok(items) => events.push((event.seq, items)),
                    Err(reason) => count_reason(&mut retried.unsendable, &reason),
                }
            }
            command = self.requeue(command, events, is_last)?;
            if is_last {
                break;
            }
        }
        // An agent that waits for the receiver is to try it now, even if no event has changed.
        self.retry_now();
        Ok(command.report)
    }

    fn requeue(
        &self,
        command: ClaimedCommand,
        events: Vec<(i64, Vec<NewItem>)>,
        is_last: bool,
    ) -> Result<ClaimedCommand, Interruption> {
        let (command, enqueued) = self.step(command, Work::Requeue(events), is_last)?;
        if !enqueued.items.is_empty() {
            self.tell(SenderCommand::Requeued(enqueued));
        }
        Ok(command)
    }

    /// Drops events for good, once nothing of them is in flight.
    fn discard(&self, mut command: ClaimedCommand, ids: &[String]) -> Result<Report, Interruption> {
        let reader = self.reader()?;
        for some in ids[self.done(&command)..].chunks(STEP) {
            let (mut events, mut waited) = (Vec::new(), Vec::new());
            let Report::Events(reports) = &mut command.report else { break };
            for id in some {
                let row = reader.events().show(id)?.map(|event| event.row);
                let found = row.as_ref().map(|row| row.seq);
                waited.extend(row.filter(|row| row.state == State::Pending.as_str()).map(|row| row.seq));
                let is_first = found.is_some_and(|seq| !events.contains(&seq));
                events.extend(found.filter(|_| is_first));
                let outcome = match found {
                    Some(_) => EventOutcome::AlreadyDiscarded,
                    None => EventOutcome::Unknown,
                };
                let seq = found.filter(|_| is_first);
                reports.push(EventReport { message_id: id.clone(), seq, outcome });
            }
            let is_last = reports.len() == ids.len();
            let (items, withdrawn) = self.withdraw(&reader, &events)?;
            let Withdrawn { unanswered, in_flight } = withdrawn;
            let work = Work::Discard { events, waited, unanswered, in_flight };
            let changed = self.step(command, work, is_last);
            self.give_back(items);
            command = changed?.0;
        }
        Ok(command.report)
    }

    /// Erases events, once nothing of them is in flight, and then what is left of them in the files.
    fn erase(
        &self,
        mut command: ClaimedCommand,
        events: &[i64],
        files: Vec<(i64, i64, i64)>,
    ) -> Result<Report, Interruption> {
        let reader = self.reader()?;
        for some in events.chunks(STEP) {
            let (items, withdrawn) = self.withdraw(&reader, some)?;
            let Withdrawn { unanswered, in_flight } = withdrawn;
            let work = Work::Erase { events: some.to_vec(), unanswered, in_flight };
            let changed = self.step(command, work, false);
            self.give_back(items);
            command = changed?.0;
        }
        command = self.step(command, Work::ForgetNames(files), false)?.0;
        drop(reader);
        if let Report::Erased(erased) = &mut command.report {
            let began = Instant::now();
            loop {
                (erased.is_log_empty, erased.log_held_by) = self.writer.empty_log().block()?;
                if erased.is_log_empty || began.elapsed() > LOG_TIMEOUT || self.stopping.is_cancelled() {
                    break;
                }
                std::thread::sleep(LOG_RETRY);
            }
        }
        self.finish(command, Work::Nothing)
    }

    /// Has the sender send nothing of these events any more, and waits for what is in flight. Returns the numbers of the
    /// items that were withdrawn. What was in flight in an agent that was killed nobody knows: those events count as sent
    /// without an answer.
    fn withdraw(&self, reader: &Reader, events: &[i64]) -> Result<(Vec<i64>, Withdrawn), Interruption> {
        let (mut items, mut maybe_sent) = (Vec::new(), Vec::<i64>::new());
        for event in events {
            let pending: Vec<i64> =
                reader.events().pending_items(*event)?.iter().map(|item| item.seq).collect();
            if *event <= self.maybe_sent_upto {
                maybe_sent.extend(&pending);
            }
            items.extend(pending);
        }
        let mut withdrawn = Withdrawn::default();
        if self.sender.is_some() && !items.is_empty() {
            let (reply, answer) = oneshot::channel();
            self.tell(SenderCommand::Withdraw(items.clone(), reply));
            withdrawn = answer.blocking_recv().map_err(|_| Interruption::Stopping)?;
        }
        withdrawn.unanswered.extend(maybe_sent);
        Ok((items, withdrawn))
    }

    /// Lets the sender send again what is still pending.
    fn give_back(&self, withdrawn: Vec<i64>) {
        if !withdrawn.is_empty() {
            self.tell(SenderCommand::GiveBack(withdrawn));
        }
    }

    fn retry_now(&self) {
        self.tell(SenderCommand::RetryNow);
    }

    /// A sender that is gone has nothing in flight; the agent ends.
    fn tell(&self, command: SenderCommand) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(command);
        }
    }

    fn reader(&self) -> Result<Reader, OutboxError> {
        Reader::open_in_process(&self.outbox)
    }

    /// The events that are done of those that were named.
    fn done(&self, command: &ClaimedCommand) -> usize {
        match &command.report {
            Report::Events(events) => events.len(),
            _ => 0,
        }
    }

    /// Makes a step, which records how far the command has come.
    fn step(
        &self,
        command: ClaimedCommand,
        work: Work,
        is_last: bool,
    ) -> Result<(ClaimedCommand, Enqueued), Interruption> {
        if self.stopping.is_cancelled() {
            return Err(Interruption::Stopping);
        }
        match self.writer.change(Change { work, of: Some(command), is_last }).block()? {
            Applied::Step { command, enqueued } => Ok((*command, enqueued)),
            _ => Err(Arc::new(OutboxError::Closed).into()),
        }
    }

    fn finish(&self, command: ClaimedCommand, work: Work) -> Result<Report, Interruption> {
        Ok(self.step(command, work, true)?.0.report)
    }

    fn change(&self, work: Work) -> Result<Applied, Interruption> {
        Ok(self.writer.change(Change { work, of: None, is_last: false }).block()?)
    }
}

/// The items of an event under the mappings in force, or why it still cannot be sent.
fn remapped(mappings: &Mappings, event: &Retained) -> Result<Vec<NewItem>, Reason> {
    let parsed = Event::parse(&event.body).map_err(|flaw| Reason::new(flaw.code, flaw.to_string()))?;
    match disposition(mappings, &parsed, &event.message_id, event.spooled_at) {
        Disposition::Send(items) => Ok(items),
        Disposition::Skip(reason) | Disposition::Fail(reason) => Err(reason),
    }
}

fn count_reason(reasons: &mut BTreeMap<String, u64>, reason: &Reason) {
    let text = reason.to_string();
    let is_told = reasons.len() < MAX_REASONS || reasons.contains_key(&text);
    *reasons.entry(if is_told { text } else { "other reasons".to_owned() }).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::{ConfigOptions, Environment, load};
    use crate::outbox::fixture::{config, event};
    use crate::outbox::{Asker, Erasure};
    use std::path::Path;

    fn open(folder: &Path) -> Outbox {
        Outbox::open(&config(folder), Clock::system()).unwrap()
    }

    fn append(outbox: &Outbox, ids: &[&str]) -> Vec<i64> {
        let events: Vec<_> = ids.iter().map(|id| event((*id).to_owned(), "{}".to_owned())).collect();
        outbox.writer.append(events, vec![]).block().unwrap();
        let reader = Reader::open_in_process(outbox.path()).unwrap();
        ids.iter().map(|id| reader.events().show(id).unwrap().unwrap().row.seq).collect()
    }

    fn carry_out(outbox: &Outbox, command: Command) -> Report {
        let file = outbox.path().with_file_name("config.toml");
        let mappings = load(&ConfigOptions::with_file(file), &Environment::default()).unwrap().mappings;
        let own = ClaimedCommand::own(Asker { uid: 0, user: None, sudo: None }, command);
        Executor::without_agent(outbox, mappings).carry_out(own).unwrap()
    }

    fn discard(outbox: &Outbox, id: &str) -> EventOutcome {
        match carry_out(outbox, Command::Discard(vec![id.to_owned()])) {
            Report::Events(mut events) => events.remove(0).outcome,
            other => panic!("{other:?}"),
        }
    }

    fn is_erased_in_flight(outbox: &Outbox, event: i64) -> bool {
        let erasure = Erasure { person: "hash".to_owned(), events: vec![event], files: Vec::new() };
        match carry_out(outbox, Command::Erase(erasure)) {
            Report::Erased(erased) => erased.events[0].is_in_flight,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_pending_when_an_agent_was_killed_may_have_been_sent() {
        let (stopped, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outbox = open(stopped.path());
        let seqs = append(&outbox, &["a", "b"]);
        // The files as a kill leaves them. Another process copies them: to close one here would drop the locks on it.
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").arg(stopped.path().join(".")).arg(killed.path()).status().unwrap().success());
        outbox.close();
        for (folder, is_unanswered) in [(&stopped, false), (&killed, true)] {
            let outbox = open(folder.path());
            let later = append(&outbox, &["c", "d"]);
            assert_eq!(discard(&outbox, "a"), EventOutcome::Discarded { is_unanswered });
            assert_eq!(discard(&outbox, "c"), EventOutcome::Discarded { is_unanswered: false });
            assert_eq!(is_erased_in_flight(&outbox, seqs[1]), is_unanswered);
            assert!(!is_erased_in_flight(&outbox, later[1]));
            outbox.close();
        }
    }
}
