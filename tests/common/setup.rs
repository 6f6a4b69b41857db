//! One agent's folders and configuration, and the real program's commands on them.

use super::events::{EVENTS, new_event};
use koala_agent::clock::Clock;
use koala_agent::config::{Config, ConfigOptions, Environment, load};
use koala_agent::outbox::{Outbox, Reader, Settled, Settlement};
use koala_agent::reason::{Code, Reason};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The key of every agent here. No log, no file but the configuration, and no output may have it.
pub const KEY: &str = "pk_never_to_be_seen_0123456789";

enum Home {
    /// Removed with the setup.
    Temporary(tempfile::TempDir),
    /// Somebody else's: a mount.
    Given(PathBuf),
}

pub struct Setup {
    home: Home,
    program: PathBuf,
    /// Lines of the configuration, `section.key = value`.
    settings: Vec<String>,
    /// Tables, such as mappings, which stand behind the settings.
    tables: String,
    /// The whole environment of the program and its commands.
    environment: Vec<(OsString, OsString)>,
}

impl Setup {
    /// A spool and a configuration in a temporary folder. There is no outbox, no receiver and no key yet: the key's file
    /// is named `key`.
    pub fn new() -> Setup {
        Setup::in_home(Home::Temporary(tempfile::tempdir().unwrap()))
    }

    /// Like [`Setup::new`], in a given folder.
    pub fn within(folder: &Path) -> Setup {
        Setup::in_home(Home::Given(folder.to_owned()))
    }

    fn in_home(home: Home) -> Setup {
        let program = env!("CARGO_BIN_EXE_koala-agent").into();
        let mut setup =
            Setup { home, program, settings: Vec::new(), tables: String::new(), environment: Vec::new() };
        for folder in ["spool", "beside"] {
            fs::create_dir_all(setup.path(folder)).unwrap();
        }
        let home = setup.path("").display().to_string();
        setup.settings = vec![
            format!("spool.dir = \"{home}spool\""),
            format!("outbox.path = \"{home}state/outbox.db\""),
            "outbox.min_free = \"0%\"".to_owned(),
            "koala.endpoint = \"http://127.0.0.1:9\"".to_owned(),
            format!("koala.public_key_file = \"{home}key\""),
        ];
        setup.env("HOME", setup.path("home"));
        setup.configure();
        setup
    }

    /// An outbox with events of two persons in every state; no agent runs.
    pub fn with_events() -> Setup {
        let setup = Setup::new();
        let outbox = setup.open_outbox();
        let events = EVENTS.iter().map(|(id, json)| new_event(id, json, "a.jsonl")).collect::<Vec<_>>();
        outbox.writer.append(events, vec![]).block().unwrap();
        let refused = Reason::new(Code::Refused, "the receiver answered 400: no\u{1b}[2J");
        let trouble = Reason::new(Code::Http5xx, "the receiver answered 503");
        let seq = |id: &str| setup.reader().events().show(id).unwrap().unwrap().row.seq;
        let settlement = Settlement {
            rows: vec![
                (seq("delivered"), Settled::Delivered),
                (seq("refused"), Settled::Failed(refused.clone())),
                (seq("discarded"), Settled::Discarded),
            ],
            attempts: vec![(vec![seq("waiting"), seq("refused")], trouble), (vec![seq("refused")], refused)],
            ..Settlement::default()
        };
        outbox.writer.settle(settlement).block().unwrap();
        outbox.close();
        setup
    }

    /// A place in its home; the home itself is `""`.
    pub fn path(&self, name: &str) -> PathBuf {
        match &self.home {
            Home::Temporary(dir) => dir.path().join(name),
            Home::Given(path) => path.join(name),
        }
    }

    /// A file that is not lost with a home that is a mount.
    pub fn beside_home(&self, name: &str) -> PathBuf {
        match &self.home {
            Home::Temporary(dir) => dir.path().join(name),
            Home::Given(path) => path.with_extension(name),
        }
    }

    pub fn spool(&self) -> PathBuf {
        self.path("spool")
    }

    /// The folder of the outbox. The agent makes it.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn outbox(&self) -> PathBuf {
        self.path("state/outbox.db")
    }

    pub fn config_file(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// Sets a line of the configuration, `section.key = value`, in place of one of the same key.
    pub fn set(&mut self, line: &str) {
        self.unset(key_of(line));
        self.settings.push(line.to_owned());
        self.configure();
    }

    /// Takes the line of that key out of the configuration.
    pub fn unset(&mut self, key: &str) {
        self.settings.retain(|line| key_of(line) != key);
        self.configure();
    }

    /// Sets the tables of the configuration, in place of those before.
    pub fn set_tables(&mut self, tables: &str) {
        tables.clone_into(&mut self.tables);
        self.configure();
    }

    fn configure(&self) {
        fs::write(self.config_file(), format!("{}\n{}", self.settings.join("\n"), self.tables)).unwrap();
    }

    /// The configuration as the program would load it.
    pub fn config(&self) -> Config {
        let options = ConfigOptions::with_file(self.config_file());
        load(&options, &Environment::default()).unwrap()
    }

    /// A variable of the environment, for the program and its commands.
    pub fn env(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// Another program in place of the agent: a control.
    pub fn use_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// The program on this configuration; behind `wrapper`, a command that runs another, where it is not empty.
    pub fn wrapped_program(&self, wrapper: &[OsString]) -> Command {
        let mut words =
            wrapper.iter().chain([self.program.as_os_str().to_owned()].iter()).cloned().collect::<Vec<_>>();
        let mut command = Command::new(words.remove(0));
        // A wrapper is found by its PATH.
        if wrapper.is_empty() {
            command.env_clear();
        }
        command.args(words).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(self.config_file()).stdin(Stdio::null());
        command
    }

    /// The program on this configuration, without a command.
    pub fn program(&self) -> Command {
        self.wrapped_program(&[])
    }

    /// A command of the program, still without its arguments.
    pub fn command(&self, command: &str) -> Command {
        let mut program = self.program();
        program.arg(command);
        program
    }

    /// Runs the program with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    pub fn run_with(&self, arguments: &[&str], stdin: &str) -> Ran {
        run_command(self.program().args(arguments), stdin)
    }

    pub fn reader(&self) -> Reader {
        Reader::open(&self.outbox()).unwrap()
    }

    /// The outbox opened by this process, as an agent holds it.
    pub fn open_outbox(&self) -> Outbox {
        Outbox::open(&self.config().outbox, Clock::system()).unwrap()
    }

    /// The outbox for SQL queries.
    pub fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        rusqlite::Connection::open_with_flags(self.outbox(), flags).unwrap()
    }

    /// The state of an event; `None`: the outbox does not know it.
    pub fn state_of(&self, id: &str) -> Option<String> {
        self.reader().events().show(id).unwrap().map(|detail| detail.row.state)
    }

    /// Puts a file into the spool as a producer ought to: written under another name, then renamed.
    pub fn drop_file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.try_drop_file(name, content).unwrap();
    }

    /// Like [`Setup::drop_file`], where there may be no room for the file.
    pub fn try_drop_file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> std::io::Result<()> {
        let unfinished = self.spool().join(".unfinished");
        let dropped =
            fs::write(&unfinished, content).and_then(|()| fs::rename(&unfinished, self.spool().join(name)));
        if dropped.is_err() {
            let _ = fs::remove_file(unfinished);
        }
        dropped
    }
}

fn key_of(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}

/// The result of a run of the program.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn run_command(command: &mut Command, stdin: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = loop {
        match command.spawn() {
            // A program that was just copied is busy while another test forks with it open for writing.
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            spawned => break spawned.unwrap(),
        }
    };
    // A command that refuses before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Asserts that each of the pieces stands in the text.
pub fn assert_says(text: &str, pieces: &[&str]) {
    for piece in pieces {
        assert!(text.contains(piece), "{piece:?} is not in:\n{text}");
    }
}

/// The names in a folder, sorted.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
