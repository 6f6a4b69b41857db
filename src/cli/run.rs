//! `koala-agent run`: the daemon, and what it says to the service manager.

use super::{CliError, Context, ExitCode};
use crate::agent::{Agent, Fatal, StartError};
use crate::config::{Config, Scope, load};
use crate::telemetry;
use clap::Args;
use sd_notify::NotifyState;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};

/// What systemd gives a stopping agent, and this much less: the loops end within five seconds, the rest is for
/// the last commit.
const STOP_WITHIN: Duration = Duration::from_millis(9_500);
/// How often a missing key is looked for.
const KEY_EVERY: Duration = Duration::from_secs(30);
/// How often a start is tried again for which there was no room.
const START_RETRY: Duration = Duration::from_secs(5);
/// What the service manager is asked for at each of these tries, microseconds: several times the wait.
const START_PATIENCE: u32 = 30_000_000;

/// Run the agent in the foreground, as systemd does
///
/// SIGTERM and SIGINT finish what is in flight and end within 10 s, a second one ends at once. SIGHUP rereads the
/// configuration.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Log what only somebody who looks for a fault wants to know
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the agent until it is told to stop. Why it does not start, or ends by itself, is in the log: there it has
/// the priority that `journalctl --priority=err` asks for.
pub fn run(context: &Context, args: RunArgs) -> ExitCode {
    telemetry::start(args.verbose);
    std::panic::set_hook(Box::new(|panic| tracing::error!("{}", super::bug(panic))));
    daemon(context).unwrap_or_else(|error| {
        error.to_string().lines().for_each(|line| tracing::error!("{line}"));
        error.exit_code()
    })
}

fn daemon(context: &Context) -> Result<ExitCode, CliError> {
    let config = load(&context.options, &context.environment)?.for_daemon()?;
    if config.scope != Scope::System {
        make_spool(&config)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(context, config));
    // A look-up of a name that hangs must not hold the process.
    runtime.shutdown_background();
    ended
}

/// An agent of one's own makes its spool; the system's comes with its owner and its ACL from tmpfiles.d.
fn make_spool(config: &Config) -> Result<(), CliError> {
    let dir = &config.spool.dir;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(|e| {
        CliError::new(super::error::of_io(&e), format!("cannot make the spool {}: {e}", dir.display()))
    })
}

async fn serve(context: &Context, mut config: Config) -> Result<ExitCode, CliError> {
    let mut stop = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let mut reload = signal(SignalKind::hangup())?;
    warn(&config);
    let Some(mut agent) = start(&config, context, &mut stop).await? else { return Ok(ExitCode::Success) };
    tracing::info!(
        "koala-agent {} takes files from {} to {}; configuration {}, outbox {}",
        env!("CARGO_PKG_VERSION"),
        config.spool.dir.display(),
        config.koala.endpoint,
        config.path.display(),
        config.outbox.path.display()
    );
    tell(&[NotifyState::Ready]);

    let watchdog = sd_notify::watchdog_enabled().map(|within| within / 3);
    let mut ticks = agent.heartbeats();
    let mut look = Instant::now() + watchdog.unwrap_or(KEY_EVERY);
    let mut key_wanted = Instant::now() + KEY_EVERY;
    loop {
        tokio::select! {
            () = any(&mut stop) => break,
            Some(()) = reload.recv() => {
                match load(&context.options, &context.environment).and_then(Config::for_daemon) {
                    Ok(new) => config = take_over(&agent, config, new),
                    Err(e) => tracing::warn!("the configuration is not taken over, the old one stays: {e}"),
                }
            }
            () = tokio::time::sleep_until(look), if watchdog.is_some() => {
                let now = agent.heartbeats();
                let stuck: Vec<_> = now.iter().zip(&ticks).filter(|(n, b)| n.1 == b.1).map(|(n, _)| n.0).collect();
                if stuck.is_empty() {
                    tell(&[NotifyState::Watchdog]);
                } else {
                    tracing::warn!("no sign of life: {}", stuck.join(", "));
                }
                ticks = now;
                look += watchdog.unwrap_or(KEY_EVERY);
            }
            () = tokio::time::sleep_until(key_wanted), if config.koala.public_key.is_none() => {
                key_wanted += KEY_EVERY;
                let mut new = config.clone();
                if new.koala.reread_key().is_ok() && new.koala.public_key.is_some() {
                    config = take_over(&agent, config, new);
                }
            }
            fatal = agent.failed() => return Err(fatal.into()),
        }
    }
    tell(&[NotifyState::Stopping]);
    tracing::info!("stopping: requests in flight are finished");
    tokio::select! {
        stopped = timeout(STOP_WITHIN, agent.stop()) => match stopped {
            Ok(done) => done?,
            Err(_) => tracing::warn!("the outbox did not answer in time; what was committed is safe"),
        },
        () = any(&mut stop) => tracing::warn!("stopped at once; what was in flight is sent again, under the same ids"),
    }
    Ok(ExitCode::Success)
}

/// Starts the agent, as soon as there is room for its outbox: to end and be started again would fix nothing, and
/// says less. `None`: it was told to stop before.
async fn start(
    config: &Config,
    context: &Context,
    stop: &mut [Signal; 2],
) -> Result<Option<Agent>, StartError> {
    let mut said = false;
    loop {
        match Agent::start(config.clone(), context.clock.clone()).await {
            Err(e) if e.is_transient() => {
                if !said {
                    tracing::warn!("{e}; files wait in the spool, it is tried again every {START_RETRY:?}");
                    said = true;
                }
                let line = format!("waits to start: {e}");
                tell(&[NotifyState::Status(&line), NotifyState::ExtendTimeoutUsec(START_PATIENCE)]);
                tokio::select! {
                    () = tokio::time::sleep(START_RETRY) => {}
                    () = any(stop) => return Ok(None),
                }
            }
            started => return started.map(Some),
        }
    }
}

fn take_over(agent: &Agent, old: Config, new: Config) -> Config {
    warn(&new);
    match agent.reload(new.clone()) {
        Ok(()) => {
            tracing::info!("the configuration {} is in force", new.path.display());
            new
        }
        Err(e) => {
            tracing::warn!("the configuration is not taken over, the old one stays: {e}");
            old
        }
    }
}

fn warn(config: &Config) {
    for warning in config.warnings.iter().chain(&config.koala.key_warnings) {
        tracing::warn!("{warning}");
    }
}

async fn any(signals: &mut [Signal; 2]) {
    let [first, second] = signals;
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// Outside a service manager nobody listens.
fn tell(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> CliError {
        match error {
            StartError::Outbox(e) => e.into(),
            StartError::Spool(e) => e.into(),
            StartError::Client(e) => CliError::new(ExitCode::Configuration, e.to_string()),
            StartError::Status { ref source, .. } => {
                let code = match super::error::of_io(source) {
                    ExitCode::NotFound => ExitCode::CannotCreate,
                    code => code,
                };
                CliError::new(code, error.to_string())
            }
            StartError::Thread(_) => CliError::new(ExitCode::TryAgain, error.to_string()),
        }
    }
}

impl From<Fatal> for CliError {
    fn from(fatal: Fatal) -> CliError {
        let code = match &fatal {
            Fatal::Outbox(e) => super::error::of_outbox(e),
            Fatal::Defect(_) => ExitCode::Bug,
        };
        CliError::new(code, format!("{fatal}; the agent ends, and recovers when it is started again"))
    }
}
