//! The process as the commands see it, and the command lines that they recommend.

use super::{CliError, output};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, ConfigOptions, Environment, Scope};
use crate::outbox::holder;
use crate::spool::shell_quoted;
use crate::status::Status;
use std::ffi::{OsStr, OsString};

/// Arguments, environment and clock of the process.
pub struct CommandContext {
    /// `--config`, `--user` and `--instance`.
    pub options: ConfigOptions,
    /// The environment variables.
    pub environment: Environment,
    /// The machine's clock.
    pub clock: Clock,
    /// The command line, beginning with the program's name.
    pub arguments: Vec<OsString>,
}

impl CommandContext {
    /// The context of this process, before its options are parsed.
    pub fn of_process() -> CommandContext {
        CommandContext {
            options: ConfigOptions::default(),
            environment: Environment::of_process(),
            clock: Clock::system(),
            arguments: std::env::args_os().collect(),
        }
    }

    /// Loads the configuration and prints its warnings to stderr.
    ///
    /// # Errors
    /// See [`config::load`].
    pub fn config(&self) -> Result<Config, CliError> {
        let config = config::load(&self.options, &self.environment)?;
        for warning in &config.warnings {
            output::hint(format_args!("warning: {}", output::escaped(warning)));
        }
        Ok(config)
    }

    /// Loads the configuration for a command that needs little more of it than the places of spool and outbox. If the file
    /// is broken, those are used that an agent has published which ran with this very file before: a slip in it must not
    /// stop the producers. The problems are printed as warnings.
    ///
    /// # Errors
    /// See [`config::load`]. A broken file is one only if no agent has run with it.
    pub fn config_beside_agent(&self) -> Result<Config, CliError> {
        let error = match self.config() {
            Err(CliError::Config(error)) => error,
            loaded => return loaded,
        };
        let ConfigError::Invalid { rest: Some(rest), .. } = &error else { return Err(error.into()) };
        let mut config = Config::clone(rest);
        let published = Status::read(&config.status_file).filter(|status| status.config == config.path);
        let Some(published) = published else { return Err(error.into()) };
        for problem in error.to_string().lines() {
            output::hint(format_args!("warning: {}", output::escaped(problem)));
        }
        for (variable, place, published) in [
            ("KOALA_AGENT_SPOOL__DIR", &mut config.spool.dir, published.spool.dir),
            ("KOALA_AGENT_OUTBOX__PATH", &mut config.outbox.path, published.outbox.path),
        ] {
            if self.environment.get(variable).is_none() {
                *place = published;
            }
        }
        output::hint(format_args!(
            "warning: the configuration is broken; using the agent's spool {} and outbox {} instead",
            config.spool.dir.display(),
            config.outbox.path.display()
        ));
        Ok(config)
    }

    /// The same command line with sudo, quoted for a shell.
    pub fn sudo_line(&self) -> String {
        let mut arguments = self.arguments.iter();
        let mut line = String::from("sudo ");
        line += &shell_quoted(arguments.next().map_or(OsStr::new("koala-agent"), OsString::as_os_str));
        // sudo does not pass the environment on.
        let is_chosen = self.options.config.is_some() || self.options.instance.is_some();
        if let (false, Some(path)) = (is_chosen, self.environment.get("KOALA_AGENT_CONFIG")) {
            line += &format!(" --config {}", shell_quoted(path));
        }
        for argument in arguments {
            line.push(' ');
            line += &shell_quoted(argument);
        }
        line
    }
}

/// A koala-agent command line that uses this configuration, quoted for a shell.
pub fn agent_command(config: &Config, arguments: &str) -> String {
    match (config.scope, &config.instance) {
        (_, Some(name)) => format!("koala-agent --instance {name} {arguments}"),
        (Scope::System, None) => format!("koala-agent {arguments}"),
        (Scope::User, None) => format!("koala-agent --user {arguments}"),
        (Scope::Named, None) => {
            format!("koala-agent --config {} {arguments}", shell_quoted(config.path.as_os_str()))
        }
    }
}

/// The systemctl command line for the service; `None` for an agent that is run by hand.
pub fn service_command(config: &Config, verb: &str) -> Option<String> {
    match config.scope {
        Scope::System => Some(format!("systemctl {verb} {}", config.unit()?)),
        Scope::User if is_run_by_hand(config) => None,
        Scope::User => Some(format!("systemctl --user {verb} koala-agent")),
        Scope::Named => None,
    }
}

/// Whether the running agent of a user was started as `koala-agent --user run`: its control group is that of a unit
/// with another name.
fn is_run_by_hand(config: &Config) -> bool {
    let group = holder(&config.outbox.path)
        .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    group.is_some_and(|group| !group.contains("koala-agent.service"))
}

/// The command line that has the running agent read its configuration again; `None`: its process is not known.
pub fn reload_command(config: &Config) -> Option<String> {
    let by_signal = || holder(&config.outbox.path).map(|pid| format!("kill -HUP {pid}"));
    service_command(config, "reload").or_else(by_signal)
}

/// The command line that starts the agent.
pub fn start_command(config: &Config) -> String {
    service_command(config, "start").unwrap_or_else(|| agent_command(config, "run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(arguments: &[&str], environment: &[(&str, &str)]) -> CommandContext {
        let instance = arguments.iter().skip_while(|argument| **argument != "--instance").nth(1);
        CommandContext {
            options: ConfigOptions {
                instance: instance.map(|name| name.parse().unwrap()),
                ..ConfigOptions::default()
            },
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: environment.iter().map(|(k, v)| (*k, *v)).collect(),
            ..CommandContext::of_process()
        }
    }

    #[test]
    fn the_sudo_line_is_the_line_that_was_typed() {
        for (arguments, environment, line) in [
            (vec!["koala-agent", "list"], vec![], "sudo koala-agent list"),
            (
                vec!["./koala-agent", "list", "--event", "Signed 'Up'"],
                vec![],
                r"sudo ./koala-agent list --event 'Signed '\''Up'\'''",
            ),
            (
                vec!["koala-agent", "retry", "a b"],
                vec![("KOALA_AGENT_CONFIG", "/etc/k.toml")],
                "sudo koala-agent --config /etc/k.toml retry 'a b'",
            ),
            (
                vec!["koala-agent", "--instance", "shop", "list"],
                vec![("KOALA_AGENT_CONFIG", "/etc/k.toml")],
                "sudo koala-agent --instance shop list",
            ),
        ] {
            assert_eq!(context(&arguments, &environment).sudo_line(), line);
        }
    }
}
