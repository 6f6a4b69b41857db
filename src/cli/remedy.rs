//! The meaning of each reason code, and what a person can do about it, in one place.

use super::context::{agent_command, reload_command, service_command, start_command};
use super::output::{escaped, indented};
use crate::config::{Config, KoalaConfig, Scope};
use crate::outbox::holder;
use crate::reason::Code;
use crate::spool::shell_quoted;
use std::fmt;
use unicode_width::UnicodeWidthStr;

/// Something that a person can do: a sentence, and the command line that does it where there is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Remedy {
    /// Imperative, without a full stop.
    pub text: String,
    /// To be pasted into a shell.
    pub command: Option<String>,
}

impl Remedy {
    /// A remedy without a command line.
    pub fn text(text: impl Into<String>) -> Remedy {
        Remedy { text: text.into(), command: None }
    }

    /// A remedy with the command line that does it.
    pub fn run(text: impl Into<String>, command: impl Into<String>) -> Remedy {
        Remedy { text: text.into(), command: Some(command.into()) }
    }

    /// The remedy as text that begins at `indent` of the current line. Where it does not fit into that line, the command
    /// has a line of its own, unbroken, to be copied.
    pub fn render(&self, indent: usize, width: Option<usize>) -> String {
        let line = self.to_string();
        let has_room = width.is_none_or(|width| indent + line.width() <= width);
        match &self.command {
            Some(command) if !has_room => {
                let text = indented(&escaped(&self.text), indent, width);
                format!("{text}:\n{:indent$}  {}", "", escaped(command))
            }
            _ => indented(&escaped(&line), indent, width),
        }
    }

    /// A change that is in force after the agent has read its configuration again.
    fn then_reload(config: &Config, text: impl fmt::Display) -> Remedy {
        match reload_command(config) {
            Some(command) => Remedy::run(format!("{text}, then run"), command),
            None => Remedy::text(format!("{text}, then send SIGHUP to the agent if it runs")),
        }
    }

    /// A change that is in force after the agent has been started again.
    fn then_restart(config: &Config, text: impl fmt::Display) -> Remedy {
        match service_command(config, "restart") {
            Some(command) => Remedy::run(format!("{text}, then run"), command),
            None => Remedy::text(format!("{text}, then restart the agent")),
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.command {
            Some(command) => write!(f, "{}: {command}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Putting a changed configuration in force.
pub fn reload_remedy(config: &Config) -> Remedy {
    match service_command(config, "reload") {
        Some(command) => Remedy::run("put the changed configuration in force", command),
        None => Remedy::text("put the changed configuration in force: send SIGHUP to the agent"),
    }
}

/// The remedy for a wrong clock.
pub fn clock_remedy() -> Remedy {
    Remedy::run("set the clock, or have it set", "timedatectl set-ntp true")
}

/// The remedy for an agent that is not running.
pub fn start_remedy(config: &Config) -> Remedy {
    Remedy::run("start the agent", start_command(config))
}

/// The remedy for an outbox that is damaged.
pub fn damaged_outbox_remedy(config: &Config) -> Remedy {
    let (verb, command) = match holder(&config.outbox.path) {
        None => ("start", Some(start_command(config))),
        Some(_) => ("restart", service_command(config, "restart")),
    };
    Remedy { text: format!("{verb} the agent, which recovers what can be read"), command }
}

/// The remedy for a spool folder that is missing, or that the agent may not use.
pub fn spool_remedy(config: &Config) -> Remedy {
    let dir = shell_quoted(config.spool.dir.as_os_str());
    let restart = service_command(config, "restart").unwrap_or_default();
    let command = match config.scope {
        // The unit of an instance makes its folder.
        Scope::System if config.has_packaged_spool() && config.instance.is_some() => restart,
        // tmpfiles.d gives the folder its owner and its ACL. A running service still sees the old folder.
        Scope::System if config.has_packaged_spool() => format!("systemd-tmpfiles --create && {restart}"),
        Scope::System => {
            format!("mkdir -p {dir} && chown koala-agent:koala-drop {dir} && chmod 3730 {dir} && {restart}")
        }
        Scope::User | Scope::Named => format!("mkdir -p {dir} && chmod u+rwx {dir}"),
    };
    Remedy::run("create the spool folder", command)
}

/// The remedy for a full outbox. Without pending events it holds failed ones, which no delivery removes.
pub fn full_outbox_remedy(pending: u64, config: &Config) -> Remedy {
    let file = config.path.display();
    let text = match pending {
        0 => format!("retry or discard failed events, or raise outbox.max_bytes in {file}"),
        _ => format!("wait until events have been delivered, or raise outbox.max_bytes in {file}"),
    };
    Remedy::then_reload(config, text)
}

/// The remedy for a reason; `None`: it passes without anybody's help, or nothing can be done.
pub fn remedy(code: Code, config: &Config) -> Option<Remedy> {
    let file = config.path.display();
    let endpoint = &config.koala.endpoint;
    let key = &config.koala.key_source;
    Some(match code {
        Code::Http5xx | Code::RateLimited | Code::Suspect => return None,
        Code::Dns => Remedy::text(format!(
            "check this machine's network, and the host name in koala.endpoint ({endpoint})"
        )),
        Code::Connect => {
            Remedy::run("check that this machine reaches the receiver", format!("curl -I {endpoint}"))
        }
        Code::Tls => Remedy::text(
            "check the scheme and port of koala.endpoint, and this machine's clock; if a certificate authority of \
             your own has signed the certificate, name it in koala.ca_file",
        ),
        Code::Timeout => {
            Remedy::text(format!("check the network to {endpoint}, or raise koala.timeout in {file}"))
        }
        Code::Proxy => Remedy::text(format!("check koala.proxy in {file}, or HTTPS_PROXY")),
        // Which also says how the agent comes to read it.
        Code::NoKey | Code::KeyRefused => {
            let wanted =
                if code == Code::NoKey { "public key of your Koala workspace" } else { "right public key" };
            Remedy::run(
                format!("put the {wanted} into {key}; this asks for it"),
                agent_command(config, "init"),
            )
        }
        Code::NotFound => Remedy::then_reload(
            config,
            format!("{endpoint} is not a Koala receiver: correct koala.endpoint in {file}"),
        ),
        Code::RefusesAll if *endpoint == KoalaConfig::default().endpoint => Remedy::then_reload(
            config,
            format!(
                "Koala's hosted service is shut down: set koala.endpoint in {file} to a receiver that accepts events"
            ),
        ),
        Code::RefusesAll => Remedy::then_reload(
            config,
            format!("{endpoint} refuses all events: set koala.endpoint in {file} to another receiver"),
        ),
        Code::NotTheReceiver => Remedy::text(format!(
            "log in to the network's portal, or correct koala.proxy or koala.endpoint in {file}"
        )),
        Code::Redirect => Remedy::then_reload(
            config,
            format!("set koala.endpoint in {file} to the receiver's new address; its operator knows it"),
        ),
        Code::MaxBytes => full_outbox_remedy(1, config),
        Code::OwnerShare => Remedy::text(format!(
            "wait until events have been delivered, or raise outbox.max_bytes in {file}; others' files are taken"
        )),
        Code::Locked => {
            Remedy::text("stop the other process that the reason names; the agent then goes on by itself")
        }
        Code::NotWritable => Remedy::text(
            "run, as root, the command that the reason ends with; the agent then goes on by itself",
        ),
        Code::MinFree => {
            Remedy::text(format!("free space on the file system of {}", config.outbox.path.display()))
        }
        Code::DiskFull => Remedy::text(format!(
            "free space on the file system of {}, or raise the limit that the reason names",
            config.outbox.path.display()
        )),
        Code::ReadOnly => {
            let (outbox, spool) = (config.outbox.path.display(), config.spool.dir.display());
            let text = format!(
                "make the file systems of {outbox} and {spool} writable; if the spool was created again"
            );
            Remedy::then_restart(config, text)
        }
        Code::Unreadable => Remedy::run(
            "see which files the agent cannot read, and what their owners can do",
            agent_command(config, "list --unreadable"),
        ),
        Code::NoMapping
        | Code::NoIdentity
        | Code::BrowserLibrary
        | Code::IntegrationsOff
        | Code::NoConsent
        | Code::Erased => return None,
        Code::InvalidField | Code::TooLarge | Code::Refused => Remedy::run(
            "fix the program that writes these events, then send them again",
            agent_command(config, &format!("retry --state failed --reason {code}")),
        ),
        Code::NotJson | Code::NotAnEvent | Code::MessageIdReused | Code::TooDeep => Remedy::run(
            "fix the file, then put it back into the spool",
            agent_command(config, "retry --rejected NAME"),
        ),
    })
}

/// The meaning of a code that a settled event can have, for lists that have no reason text.
pub fn meaning(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::NoMapping => "no mapping selects the event",
        Code::NoIdentity => "the event has neither a profile_id nor an email",
        Code::BrowserLibrary => "the browser library has already sent the event to Koala",
        Code::IntegrationsOff => "the event's integrations turn Koala off",
        Code::NoConsent => "the person has not consented",
        Code::Erased => "the person was erased before the event came",
        Code::InvalidField => "a field is missing or has the wrong type",
        Code::TooLarge => "the event is larger than a limit",
        Code::Refused => "the receiver refused the event but accepts others",
        _ => return None,
    })
}
