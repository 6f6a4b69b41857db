//! Has a change made: by the agent that owns the outbox, or by this process, with the same code, where none does.

use super::{CliError, CommandContext, ExitCode, output};
use crate::agent::Executor;
use crate::config::Config;
use crate::outbox::{
    Applied, AskedCommand, Asker, Change, ClaimedCommand, Command, Outbox, OutboxError, Progress, Reader,
    Report, Work, holder,
};
use std::time::{Duration, Instant};

/// The time for the agent to begin: it looks within seconds, and another command may be before this one, which waits for a
/// request in flight (`koala.timeout`, 30 s).
const TIMEOUT: Duration = Duration::from_secs(60);
/// The time for an agent that has stopped to come back: a service that restarts is not to find its outbox held.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);
/// The waits between two looks at the result.
const FIRST_POLL: Duration = Duration::from_millis(2);
const LAST_POLL: Duration = Duration::from_millis(50);
/// The wait after which a person is told what for.
const TOLD_AFTER: Duration = Duration::from_secs(3);

/// The user of this process, as acts name it. To be called before the process becomes another user.
pub fn asker(context: &CommandContext) -> Asker {
    let sudo = context.environment.get("SUDO_USER");
    Asker::of_process(sudo.map(|name| name.to_string_lossy().into_owned()))
}

/// Has a command carried out. When this returns a report, what it says is on the disk.
///
/// # Errors
/// The agent does not answer: then nothing was changed. The outbox cannot be changed: then to ask again does the rest.
pub fn carry_out(
    context: &CommandContext,
    config: &Config,
    asker: &Asker,
    command: &Command,
) -> Result<Report, CliError> {
    let report = Asking { context, config, asker, command, asked: None, began: Instant::now() }.run()?;
    match report {
        Report::Failed { is_transient, text } => {
            let code = if is_transient { ExitCode::TryAgain } else { ExitCode::Io };
            Err(CliError::new(code, text))
        }
        report => Ok(report),
    }
}

/// A report of another kind than was asked for.
pub fn wrong_report() -> CliError {
    CliError::new(ExitCode::Bug, "the agent's answer is to another command; is it of another version?")
}

struct Asking<'a> {
    context: &'a CommandContext,
    config: &'a Config,
    asker: &'a Asker,
    command: &'a Command,
    asked: Option<AskedCommand>,
    began: Instant,
}

impl Asking<'_> {
    fn run(mut self) -> Result<Report, CliError> {
        let path = &self.config.outbox.path;
        let (mut poll, mut is_told, mut last_held) = (FIRST_POLL, false, None::<Instant>);
        loop {
            let pid = holder(path);
            last_held = pid.map(|_| Instant::now()).or(last_held);
            if pid.is_none()
                && last_held.is_none_or(|at| at.elapsed() >= RESTART_TIMEOUT)
                && let Some(report) = self.carry_out_here()?
            {
                return Ok(report);
            }
            let Some(asked) = &self.asked else {
                if pid.is_some() {
                    let now = self.context.clock.now();
                    self.asked = Some(AskedCommand::ask(path, self.command, self.asker, now)?);
                }
                continue;
            };
            match asked.progress()? {
                Progress::Finished(report) => return Ok(report),
                Progress::Gone => return Err(self.not_taken("has dropped the command")),
                Progress::Replaced => {
                    let text = "the outbox was replaced; whether anything was changed is not known";
                    return Err(CliError::new(ExitCode::TryAgain, text));
                }
                Progress::Waiting if self.began.elapsed() >= TIMEOUT => {
                    if asked.withdraw()? {
                        return Err(self.not_taken(&format!("has not answered for {} s", TIMEOUT.as_secs())));
                    }
                }
                Progress::Waiting | Progress::Claimed => {}
            }
            if self.began.elapsed() >= TOLD_AFTER && !std::mem::replace(&mut is_told, true) {
                output::hint("waiting for the agent");
            }
            std::thread::sleep(poll);
            poll = (2 * poll).min(LAST_POLL);
        }
    }

    fn not_taken(&self, what: &str) -> CliError {
        let who = match holder(&self.config.outbox.path) {
            Some(pid) => format!("the agent, pid {pid},"),
            None => "the agent".to_owned(),
        };
        CliError::new(ExitCode::TryAgain, format!("{who} {what}; nothing was changed"))
    }

    /// Carries the command out in this process; `None`: another one owns the outbox.
    fn carry_out_here(&self) -> Result<Option<Report>, CliError> {
        let (config, clock) = (&self.config.outbox, &self.context.clock);
        // An outbox is not created here. Where this process has it open, to open and close its file would drop its locks.
        drop(match self.asked {
            None => Reader::open(&config.path)?,
            Some(_) => Reader::open_in_process(&config.path)?,
        });
        let outbox = match Outbox::open(config, clock.clone()) {
            Err(OutboxError::Held { .. }) => return Ok(None),
            outbox => outbox?,
        };
        let mappings = self.config.mappings.clone();
        let executor = Executor::without_agent(&outbox, mappings);
        let report = self.claim(&outbox).and_then(|claimed| match claimed {
            Ok(command) => {
                executor.carry_out(command).map_err(|e| CliError::new(exit_code(&e), e.to_string()))
            }
            Err(report) => Ok(report),
        });
        if let (Some(asked), Ok(_)) = (&self.asked, &report) {
            // It names what it is about. One that stays is deleted by whoever opens the outbox next.
            let drop = Change { work: Work::Drop(vec![asked.id()]), of: None, is_last: false };
            let _ = outbox.writer.change(drop).block();
        }
        outbox.close();
        report.map(Some)
    }

    /// The command, as far as an agent has come with it that is gone; or its report.
    fn claim(&self, outbox: &Outbox) -> Result<Result<ClaimedCommand, Report>, CliError> {
        let own = || ClaimedCommand::own(self.asker.clone(), self.command.clone());
        let Some(asked) = &self.asked else { return Ok(Ok(own())) };
        let change = |work| {
            let changed = outbox.writer.change(Change { work, of: None, is_last: false }).block();
            changed.map_err(|e| CliError::new(exit_code(&e), e.to_string()))
        };
        if let Progress::Finished(report) = asked.progress()? {
            return Ok(Err(report));
        }
        change(Work::Unclaim)?;
        Ok(match change(Work::Claim(asked.id()))? {
            Applied::Claimed(Some(command)) => Ok(*command),
            // It cannot be read, or it is gone.
            _ => match asked.progress()? {
                Progress::Finished(report) => Err(report),
                _ => Ok(own()),
            },
        })
    }
}

fn exit_code(error: &OutboxError) -> ExitCode {
    if error.is_transient() { ExitCode::TryAgain } else { ExitCode::Io }
}
