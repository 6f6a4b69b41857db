//! What every command starts from.

use super::{CliError, output};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigOptions, Environment, Scope};
use std::ffi::{OsStr, OsString};

/// The process as the commands see it.
pub struct Context {
    /// `--config` and `--user`.
    pub options: ConfigOptions,
    /// The environment variables.
    pub environment: Environment,
    /// The machine's clock.
    pub clock: Clock,
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
}

impl Context {
    /// That of this process, its options still unread.
    pub fn of_process() -> Context {
        Context {
            options: ConfigOptions::default(),
            environment: Environment::of_process(),
            clock: Clock::system(),
            arguments: std::env::args_os().collect(),
        }
    }

    /// The configuration in force; what is odd about it is told on stderr.
    ///
    /// # Errors
    /// See [`config::load`].
    pub fn config(&self) -> Result<Config, CliError> {
        let config = config::load(&self.options, &self.environment)?;
        for warning in &config.warnings {
            output::hint(format_args!("warning: {}", output::plain(warning)));
        }
        Ok(config)
    }

    /// The same command line by root, fit to be pasted into a shell.
    pub fn by_root(&self) -> String {
        let mut arguments = self.arguments.iter();
        let mut line = String::from("sudo ");
        line += &quoted(arguments.next().map_or(OsStr::new("koala-agent"), OsString::as_os_str));
        // sudo does not pass the environment on.
        if let (None, Some(path)) = (&self.options.config, self.environment.get("KOALA_AGENT_CONFIG")) {
            line += &format!(" --config {}", quoted(path));
        }
        for argument in arguments {
            line.push(' ');
            line += &quoted(argument);
        }
        line
    }
}

/// A command line of ours under the same configuration, to be pasted into a shell.
pub fn ours(config: &Config, command: &str) -> String {
    match config.scope {
        Scope::System => format!("koala-agent {command}"),
        Scope::User => format!("koala-agent --user {command}"),
        Scope::Named => format!("koala-agent --config {} {command}", quoted(config.path.as_os_str())),
    }
}

/// A command of systemd's for the service, or what stands for it where the agent is run by hand.
pub fn service(config: &Config, operation: &str) -> String {
    match (config.scope, operation) {
        (Scope::System, _) => format!("systemctl {operation} koala-agent"),
        (Scope::User, _) => format!("systemctl --user {operation} koala-agent"),
        (Scope::Named, "start") => ours(config, "run"),
        (Scope::Named, _) => format!("{operation} the agent"),
    }
}

/// A word for a POSIX shell.
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let safe = |c: char| c.is_alphanumeric() || "-_./=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(arguments: &[&str], environment: &[(&str, &str)]) -> Context {
        Context {
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: environment.iter().map(|(k, v)| (*k, *v)).collect(),
            ..Context::of_process()
        }
    }

    #[test]
    fn the_line_for_root_is_the_line_that_was_typed() {
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
        ] {
            assert_eq!(context(&arguments, &environment).by_root(), line);
        }
    }
}
