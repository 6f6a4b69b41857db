//! `koala-agent run`: the daemon, and its messages to the service manager.

use super::output::hint;
use super::remedy::spool_remedy;
use super::{CliError, CommandContext, ExitCode};
use crate::agent::{Agent, StartError, publish_given_up, publish_waiting};
use crate::config::{Config, ConfigError, Scope, load};
use crate::limits;
use crate::spool::SpoolError;
use crate::telemetry::{self, Log};
use clap::Args;
use sd_notify::NotifyState;
use std::error::Error;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};

/// The longest stop: half a second less than what was promised, of which the last lines of the log have a part. The loops
/// end within five seconds; the rest is for the last commit.
const STOP_TIMEOUT: Duration = Duration::from_millis(9_500);
/// The interval at which a missing key is looked for.
const KEY_INTERVAL: Duration = Duration::from_secs(30);
/// The interval at which a start is tried again that failed for want of disk space, or of the right to write.
const START_RETRY: Duration = Duration::from_secs(5);
/// The extension of the start timeout, in microseconds, that each of these tries asks of the service manager: several
/// times the interval.
const START_EXTENSION: u32 = 30_000_000;

/// Names that are looked up at once, each in a thread; systemd's limit of tasks counts with that.
const MAX_LOOKUPS: usize = 16;

/// Run the agent in the foreground, as systemd does
///
/// SIGTERM or SIGINT stops it within 10 s, after the requests in flight; a second signal stops it at once. SIGHUP
/// reloads the configuration.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Log also a line for each request, whatever log.level says
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the agent until a signal stops it. An error is logged instead of printed, so that it has the priority that
/// `journalctl --priority=err` selects.
pub fn run(context: &CommandContext, args: RunArgs) -> ExitCode {
    let log = match telemetry::start(args.verbose) {
        Ok(log) => log,
        Err(e) => {
            hint(format_args!("cannot start the log: {e}"));
            return ExitCode::TryAgain;
        }
    };
    std::panic::set_hook(Box::new(|panic| tracing::error!("{}", super::bug_report(panic))));
    daemon(context, &log).unwrap_or_else(|error| {
        error.to_string().lines().for_each(|line| tracing::error!("{line}"));
        if error.exit_code() == ExitCode::NoPermission && !context.options.user {
            tracing::error!(
                "the service runs as a user of its own; for an agent of your own: koala-agent --user run"
            );
        }
        error.exit_code()
    })
}

fn daemon(context: &CommandContext, log: &Log) -> Result<ExitCode, CliError> {
    wait_for_descriptors();
    let config = load_for_daemon(context)?;
    log.set_level(config.log.level);
    if config.scope != Scope::System {
        create_spool(&config)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_LOOKUPS)
        .build()?;
    let ended = runtime.block_on(serve(context, config, log));
    // A name lookup that hangs must not delay the end of the process.
    runtime.shutdown_background();
    ended
}

/// Loads the configuration that the daemon can run with.
fn load_for_daemon(context: &CommandContext) -> Result<Config, ConfigError> {
    let mut config = load(&context.options, &context.environment)?.for_daemon()?;
    let connections = limits::max_connections(limits::raise_open_files());
    config.koala.concurrency = config.koala.concurrency.within(connections);
    Ok(config)
}

/// Returns once the agent may open as many files as it needs. To end would not help: the limit stays the same.
fn wait_for_descriptors() {
    let mut is_logged = false;
    loop {
        let allowed = limits::raise_open_files();
        if allowed >= limits::MIN_OPEN_FILES && !limits::is_out_of_files_now() {
            return;
        }
        let line = format!(
            "waiting to start: {allowed} files may be open, and {} must be free: raise LimitNOFILE= or `ulimit -n`",
            limits::MIN_OPEN_FILES
        );
        if !is_logged {
            tracing::error!("{line}; files wait in the spool");
            is_logged = true;
        }
        notify_manager(&[NotifyState::Status(&line), NotifyState::ExtendTimeoutUsec(START_EXTENSION)]);
        std::thread::sleep(START_RETRY);
    }
}

/// Creates the spool of a user's own agent. tmpfiles.d creates the system's, with its owner and ACL.
fn create_spool(config: &Config) -> Result<(), CliError> {
    let dir = &config.spool.dir;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(|e| {
        CliError::new(
            super::error::io_exit_code(&e),
            format!("cannot create the spool {}: {e}", dir.display()),
        )
    })
}

async fn serve(context: &CommandContext, config: Config, log: &Log) -> Result<ExitCode, CliError> {
    let mut stop = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let mut hangup = signal(SignalKind::hangup())?;
    log_warnings(&config);
    let started = start(&config, context, &mut stop).await.map_err(|error| match error {
        StartError::Spool(SpoolError::Missing { path }) => CliError::new(
            ExitCode::CannotCreate,
            format!(
                "there is no spool folder {}; set spool.dir in {}, or {}",
                path.display(),
                config.path.display(),
                spool_remedy(&config)
            ),
        ),
        error => error.into(),
    })?;
    let Some(mut agent) = started else { return Ok(ExitCode::Success) };
    tracing::info!(
        notice = "started",
        version = env!("CARGO_PKG_VERSION"),
        config = %config.path.display(),
        spool = %config.spool.dir.display(),
        outbox = %config.outbox.path.display(),
        endpoint = config.koala.endpoint,
        "koala-agent takes files from the spool and delivers their events"
    );
    notify_manager(&[NotifyState::Ready]);

    let watchdog = sd_notify::watchdog_enabled().map(|timeout| timeout / 3);
    let mut last_heartbeats = agent.heartbeats();
    let mut next_check = Instant::now() + watchdog.unwrap_or(KEY_INTERVAL);
    let mut next_key_read = Instant::now() + KEY_INTERVAL;
    loop {
        tokio::select! {
            () = received(&mut stop) => break,
            Some(()) = hangup.recv() => {
                match load_for_daemon(context) {
                    Ok(new) => reload(&agent, new, log),
                    Err(e) => log_refused(&agent.config().path, &e),
                }
            }
            () = tokio::time::sleep_until(next_check), if watchdog.is_some() => {
                let heartbeats = agent.heartbeats();
                let pairs = heartbeats.iter().zip(&last_heartbeats);
                let stuck: Vec<_> = pairs.filter(|(now, last)| now.1 == last.1).map(|(now, _)| now.0).collect();
                if stuck.is_empty() {
                    notify_manager(&[NotifyState::Watchdog]);
                } else {
                    tracing::warn!("no sign of life: {}", stuck.join(", "));
                }
                last_heartbeats = heartbeats;
                next_check += watchdog.unwrap_or(KEY_INTERVAL);
            }
            () = tokio::time::sleep_until(next_key_read), if agent.config().koala.public_key.is_none() => {
                next_key_read += KEY_INTERVAL;
                if has_key_now(&agent) {
                    // The whole of it: the key may be one for another address than that in force.
                    match load_for_daemon(context) {
                        Ok(new) => reload(&agent, new, log),
                        Err(e) => tracing::warn!("there is a key now, but the configuration cannot be used: {e}"),
                    }
                }
            }
            fatal = agent.failed() => return Err(fatal.into()),
        }
    }
    notify_manager(&[NotifyState::Stopping]);
    tracing::info!(notice = "stopping", "stopping after the requests in flight");
    tokio::select! {
        stopped = timeout(STOP_TIMEOUT, agent.stop()) => match stopped {
            Ok(done) => done?,
            Err(_) => tracing::warn!("the outbox did not answer in time; committed events are safe"),
        },
        () = received(&mut stop) => tracing::warn!("stopped at once; the requests in flight will be sent again, with the same ids"),
    }
    Ok(ExitCode::Success)
}

/// Starts the agent as soon as its outbox can be written: ending, to be restarted by systemd, would not help, and the
/// reason would be harder to find. `None`: a signal stopped it before.
async fn start(
    config: &Config,
    context: &CommandContext,
    stop: &mut [Signal; 2],
) -> Result<Option<Agent>, StartError> {
    let (mut logged, since) = (String::new(), context.clock.now());
    loop {
        match Agent::start(config.clone(), context.clock.clone()).await {
            Err(e) if e.is_transient() => {
                let line = format!("waiting to start: {e}");
                if logged != line {
                    tracing::warn!(
                        "{e}; files wait in the spool, the start is tried again every {START_RETRY:?}"
                    );
                    logged.clone_from(&line);
                }
                publish_waiting(config, since, context.clock.now(), &e);
                notify_manager(&[
                    NotifyState::Status(&line),
                    NotifyState::ExtendTimeoutUsec(START_EXTENSION),
                ]);
                tokio::select! {
                    () = tokio::time::sleep(START_RETRY) => {}
                    () = received(stop) => {
                        publish_given_up(config, context.clock.now());
                        return Ok(None);
                    }
                }
            }
            started => return started.map(Some),
        }
    }
}

/// Whether the file of the key, which was missing or held none, holds one now.
fn has_key_now(agent: &Agent) -> bool {
    let mut koala = agent.config().koala.clone();
    koala.reread_key();
    koala.public_key.is_some()
}

/// Puts another configuration in force, and says so.
fn reload(agent: &Agent, new: Config, log: &Log) {
    log_warnings(&new);
    let (path, level) = (new.path.clone(), new.log.level);
    match agent.reload(new) {
        Ok(need_restart) => {
            // The line is of interest to whoever asks for less of them, or for more.
            log_in_force(&path, &need_restart);
            log.set_level(level);
        }
        Err(e) => log_refused(&path, &e),
    }
}

fn log_in_force(path: &Path, need_restart: &[&str]) {
    let config = path.display();
    match need_restart {
        [] => tracing::info!(notice = "config_in_force", %config, "the configuration is in force"),
        keys => tracing::warn!(
            notice = "config_in_force",
            %config,
            needs_restart = keys.join(","),
            "the configuration is in force, except {}, which needs a restart",
            keys.join(" and ")
        ),
    }
}

fn log_refused(path: &Path, error: &dyn Error) {
    tracing::warn!(
        notice = "config_refused",
        config = %path.display(),
        "the new configuration is not used, the old one stays in force: {}",
        error.to_string().replace('\n', "; ")
    );
}

fn log_warnings(config: &Config) {
    for warning in config.warnings.iter().chain(&config.koala.key_warnings) {
        tracing::warn!("{warning}");
    }
}

async fn received(signals: &mut [Signal; 2]) {
    let [first, second] = signals;
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// Sends a message to the service manager, if there is one.
fn notify_manager(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
