//! `koala-agent init`: writes the receiver's address and the key where the agent reads them, and tries them.
//!
//! It writes no more than a person would: one line of the configuration, and the key file. A format of its own, such as a
//! second configuration that goes before the first, would be one more place to look at. The key is read from the terminal,
//! a file or standard input, and is no option: every user sees the options of every process.

use super::check::{Report, check_receiver};
use super::context::{agent_command, reload_command, service_command, start_command};
use super::output::{self, BOLD, hint, styled, terminal_width};
use super::permission::service_user;
use super::prompt::{ask, ask_secret};
use super::remedy::Remedy;
use super::replace_file::{Access, Replacement};
use super::{
    CliError, CommandContext, ExitCode,
    error::{without_number, write_exit_code},
};
use crate::config::{self, Config, KoalaConfig, MAX_KEY_FILE_BYTES, PublicKey, Scope, system_key_file};
use crate::outbox::holder;
use clap::Args;
use nix::unistd::{Gid, Uid, User};
use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Set up the agent: the receiver's address and the public key
///
/// Asks for what is not given, writes the configuration and the key file, and asks the receiver whether it accepts the
/// key. The key is not shown; without a terminal, it is read from standard input. Of a configuration that exists, only the
/// line of the address is changed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  koala-agent init\n  koala-agent init --endpoint https://koala.example.com --key-file key.txt\n  pass show koala | koala-agent init --endpoint https://koala.example.com"
)]
pub struct InitArgs {
    /// Deliver to this service, at its own address unless --endpoint names another
    #[arg(long, value_name = "NAME", value_parser = ["koala"])]
    to: Option<String>,
    /// The address of the receiver: scheme and host
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Copy the key from this file
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Written,
    Unchanged,
}

/// Sets up the agent.
///
/// # Errors
/// This user may not, an answer is missing or wrong, or a file cannot be read, changed or written.
pub fn run(context: &CommandContext, args: &InitArgs) -> Result<ExitCode, CliError> {
    let before = config::load_before_it_exists(&context.options, &context.environment)?;
    may_set_up(context, &before)?;
    let key_file = key_file_of(&before)?;
    let koala = choose_address(&before, args)?;
    let text = new_text(&before, &koala.endpoint)?;
    is_own_key(&before, &key_file)?;
    let key = choose_key(&before, args)?;

    let new_config = prepare_config(&before, &text)?;
    let new_key = key.map(|key| prepare_key(&before, &key_file, &key)).transpose()?;
    // The key comes last: an agent that lacks one reads both by itself, and must not send it to the former address.
    let configured = put_in_place(new_config, &before.path)?;
    let key_change = put_in_place(new_key, &key_file).map_err(|e| match configured {
        Change::Written => CliError::new(
            e.exit_code(),
            format!("{e}; {} has the new address already", before.path.display()),
        ),
        Change::Unchanged => e,
    })?;
    let after = config::load(&context.options, &context.environment)?;

    let mut report = Report::for_terminal();
    let (file, endpoint) = (after.path.display(), &koala.endpoint);
    report.ok(
        "configuration",
        match configured {
            Change::Written => format!("wrote {file}: koala.endpoint is {endpoint}"),
            Change::Unchanged => format!("{file} is unchanged: koala.endpoint is {endpoint}"),
        },
    );
    if after.koala.endpoint != *endpoint {
        let text =
            format!("the environment sets another address, which goes before it: {}", after.koala.endpoint);
        report.fail("configuration", text);
    }
    let key_text = match key_change {
        Change::Written => {
            format!("wrote {}, which only {} can read", key_file.display(), reader_of(&key_file))
        }
        Change::Unchanged => format!("{} is unchanged", key_file.display()),
    };
    report.ok("key", key_text);
    for warning in &after.koala.key_warnings {
        report.fail("key", warning);
    }
    check_receiver(context, &after, &mut report);

    let had_no_key = before.koala.public_key.is_none();
    let mut text = format!("{}\n{}\n", report.render(), styled(BOLD, "What to do next"));
    for step in next_steps(&after, configured, key_change, had_no_key) {
        text += &format!("  - {}\n", step.render(4, terminal_width()));
    }
    output::print(&text)?;
    Ok(if report.has_failed() { ExitCode::No } else { ExitCode::Success })
}

fn may_set_up(context: &CommandContext, config: &Config) -> Result<(), CliError> {
    if config.scope != Scope::System || Uid::effective().is_root() {
        return Ok(());
    }
    Err(CliError::Denied {
        text: "only root may set up the agent of this machine; for an agent of your own: koala-agent --user init"
            .to_owned(),
        command: Some(context.sudo_line()),
    })
}

/// The file that the agent reads its key from.
fn key_file_of(config: &Config) -> Result<PathBuf, CliError> {
    config.koala.key_file.clone().ok_or_else(|| {
        let place = &config.koala.key_source;
        let text = format!(
            "{place} holds the key itself, as koala.public_key; remove that setting, then run init again, which puts the \
             key into a file; nothing was changed"
        );
        CliError::new(ExitCode::Configuration, text)
    })
}

/// Refuses to write the key of this machine's agent for another one, whose configuration names no key file.
fn is_own_key(config: &Config, key_file: &Path) -> Result<(), CliError> {
    if config.scope == Scope::Named && key_file == system_key_file() {
        let file = config.path.display();
        let text = format!(
            "{file} names no koala.public_key_file, and the default is the key of this machine's agent; set it there, then run \
             init again; nothing was changed"
        );
        return Err(CliError::new(ExitCode::Configuration, text));
    }
    Ok(())
}

/// The destination at the address that is given, asked for, or configured.
fn choose_address(config: &Config, args: &InitArgs) -> Result<KoalaConfig, CliError> {
    let of_service = || args.to.as_ref().map(|_| KoalaConfig::default().endpoint);
    if let Some(address) = args.endpoint.clone().or_else(of_service) {
        let wrong = |clause| CliError::new(ExitCode::Usage, format!("the address of --endpoint {clause}"));
        return config.koala.at(&address).map_err(wrong);
    }
    let present = &config.koala.endpoint;
    if !io::stdin().is_terminal() {
        let is_chosen = *present != KoalaConfig::default().endpoint;
        return if is_chosen { Ok(config.koala.clone()) } else { Err(not_given(config)) };
    }
    loop {
        let answer = ask(&format!("Address of the receiver [{present}]: ")).map_err(stopped)?;
        let address = if answer.trim().is_empty() { present } else { &answer };
        match config.koala.at(address) {
            Ok(koala) => return Ok(koala),
            Err(clause) => hint(format_args!("the address {clause}")),
        }
    }
}

/// The key that is given or asked for; `None`: a person keeps the one that is there.
fn choose_key(config: &Config, args: &InitArgs) -> Result<Option<PublicKey>, CliError> {
    if let Some(file) = &args.key_file {
        let name = file.display().to_string();
        let read = File::open(file)
            .and_then(read_key)
            .map_err(|source| CliError::Input { name: name.clone(), source });
        let key = PublicKey::from_file_content(&read?);
        let key = key.map_err(|e| CliError::new(ExitCode::BadData, format!("{name}: the content is {e}")))?;
        let empty =
            || CliError::new(ExitCode::BadData, format!("{name} is empty: it must hold the public key"));
        return key.ok_or_else(empty).map(Some);
    }
    if !io::stdin().is_terminal() {
        let name = "stdin".to_owned();
        let read = read_key(io::stdin()).map_err(|source| CliError::Input { name, source })?;
        let key = PublicKey::from_file_content(&read);
        let key = key.map_err(|e| CliError::new(ExitCode::BadData, format!("stdin: the input is {e}")))?;
        // An empty input does not keep the key that is there: it may be of a program that has failed to print one.
        return key.ok_or_else(|| not_given(config)).map(Some);
    }
    let has_key = config.koala.public_key.is_some();
    let question = match has_key {
        true => "Public key (not shown; nothing keeps the present one): ",
        false => "Public key (not shown): ",
    };
    loop {
        let answer = ask_secret(question).map_err(stopped)?;
        match PublicKey::from_file_content(&answer) {
            Ok(None) if !has_key => hint("without a key, nothing can be delivered; Ctrl-C ends this"),
            Ok(key) => return Ok(key),
            Err(e) => hint(format_args!("that is {e}")),
        }
    }
}

/// Reads no more than shows that something is too long for a key.
fn read_key(input: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    input.take(MAX_KEY_FILE_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// Without a terminal, nobody can be asked.
fn not_given(config: &Config) -> CliError {
    let line = agent_command(config, "init --endpoint https://HOST --key-file FILE");
    CliError::new(
        ExitCode::Usage,
        format!("there is no terminal to ask for the address and the key; run: {line}"),
    )
}

fn stopped(error: io::Error) -> CliError {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::UnexpectedEof => {
            CliError::new(ExitCode::No, "stopped; nothing was changed")
        }
        _ => CliError::Input { name: "the terminal".to_owned(), source: error },
    }
}

/// The text of the configuration with this address.
fn new_text(config: &Config, endpoint: &str) -> Result<String, CliError> {
    let text = match fs::read_to_string(&config.path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            "# The configuration of koala-agent; koala-agent.toml(5) has every key with its default.\n"
                .to_owned()
        }
        Err(source) => return Err(CliError::Input { name: config.path.display().to_string(), source }),
    };
    config::with_endpoint(&text, endpoint).ok_or_else(|| {
        let file = config.path.display();
        let text = format!(
            "{file} is written in a way that init cannot change safely; set koala.endpoint = \"{endpoint}\" there by hand, \
             then run init again; nothing was changed"
        );
        CliError::new(ExitCode::Configuration, text)
    })
}

/// `None`: the file has this text.
fn prepare_config(config: &Config, text: &str) -> Result<Option<Replacement>, CliError> {
    let path = &config.path;
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(None);
    }
    let access = match fs::metadata(path) {
        Ok(meta) => Access {
            owner: Some(Uid::from_raw(meta.uid())),
            group: Some(Gid::from_raw(meta.gid())),
            mode: meta.mode() & 0o7777,
        },
        // Every user of the commands reads it.
        Err(_) => Access { owner: None, group: None, mode: 0o644 },
    };
    prepare(path, text.as_bytes(), access).map(Some)
}

/// The key is for the agent's user alone. systemd reads it as root and hands it to the service; before its version 247
/// it cannot, and the service reads the file itself.
fn prepare_key(config: &Config, path: &Path, key: &PublicKey) -> Result<Replacement, CliError> {
    let owner = service_user(config).filter(|_| Uid::effective().is_root());
    let mode = if config.scope == Scope::System { 0o400 } else { 0o600 };
    prepare(path, format!("{}\n", key.expose()).as_bytes(), Access { owner, group: None, mode })
}

fn prepare(path: &Path, content: &[u8], access: Access) -> Result<Replacement, CliError> {
    Replacement::prepare(path, content, access).map_err(|e| cannot_write(path, &e))
}

fn put_in_place(new: Option<Replacement>, path: &Path) -> Result<Change, CliError> {
    let Some(new) = new else { return Ok(Change::Unchanged) };
    new.put_in_place().map_err(|e| cannot_write(path, &e))?;
    Ok(Change::Written)
}

fn cannot_write(path: &Path, error: &io::Error) -> CliError {
    CliError::new(
        write_exit_code(error),
        format!("cannot write {}: {}", path.display(), without_number(error)),
    )
}

/// The owner of the key file.
fn reader_of(key_file: &Path) -> String {
    let owner = fs::metadata(key_file).map_or(0, |meta| meta.uid());
    let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
    user.map_or_else(|| owner.to_string(), |user| user.name)
}

/// What is left to do until events are delivered.
fn next_steps(config: &Config, configured: Change, key: Change, had_no_key: bool) -> Vec<Remedy> {
    let spool = config.spool.dir.display();
    let mut steps = vec![put_in_force(config, configured, key, had_no_key)];
    match config.scope {
        Scope::System => {
            steps.push(Remedy::run(
                "let a user drop files, who then logs in again",
                "usermod -aG koala-drop USER",
            ));
            let check = agent_command(config, "check --producer USER");
            steps.push(Remedy::run("see that everything is in place, also for that user", check));
        }
        Scope::User | Scope::Named => {
            steps.push(Remedy::run("see that everything is in place", agent_command(config, "check")));
        }
    }
    steps.push(Remedy::run(
        format!("put events into {spool}, such as"),
        agent_command(config, "send --wait FILE"),
    ));
    steps
}

fn put_in_force(config: &Config, configured: Change, key: Change, had_no_key: bool) -> Remedy {
    let is_running = holder(&config.outbox.path).is_some();
    match (configured, key) {
        _ if !is_running => {
            let start = service_command(config, "enable --now").unwrap_or_else(|| start_command(config));
            Remedy::run("start the agent", start)
        }
        (Change::Unchanged, Change::Unchanged) => {
            Remedy::text("nothing: the agent runs, and nothing has changed")
        }
        _ if config.scope == Scope::System => {
            Remedy::run("put it in force", service_command(config, "restart").unwrap_or_default())
        }
        (Change::Unchanged, Change::Written) if had_no_key => {
            Remedy::text("nothing: the agent runs, and reads its first key within 30 s")
        }
        _ => Remedy::run("put it in force", reload_command(config).unwrap_or_default()),
    }
}
