//! The real program on folders of its own.

use koala_agent::status::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The key of every daemon here: it must never be seen again.
pub const KEY: &str = "pk_never_to_be_seen_0123456789";

/// A process that takes longer than this to end does not end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has the folders of a daemon.
enum Home {
    /// Gone with it.
    Own(tempfile::TempDir),
    /// Somebody else's: a mount.
    Given(PathBuf),
}

pub struct Daemon {
    home: Home,
    program: PathBuf,
    /// What stands before the program: a tracer and its options.
    before: Vec<OsString>,
    settings: Vec<String>,
    /// All that the program and its commands see of an environment.
    environment: Vec<(OsString, OsString)>,
    /// Options of `run`.
    options: Vec<OsString>,
    child: Option<Child>,
}

impl Daemon {
    /// Its folders and its configuration; it does not run yet.
    pub fn new(endpoint: &str) -> Daemon {
        Daemon::at(Home::Own(tempfile::tempdir().unwrap()), endpoint)
    }

    /// The same with folders in a given place.
    pub fn within(folder: &Path, endpoint: &str) -> Daemon {
        Daemon::at(Home::Given(folder.to_owned()), endpoint)
    }

    fn at(home: Home, endpoint: &str) -> Daemon {
        let program = env!("CARGO_BIN_EXE_koala-agent").into();
        let mut daemon = Daemon {
            home,
            program,
            before: Vec::new(),
            settings: Vec::new(),
            environment: Vec::new(),
            options: Vec::new(),
            child: None,
        };
        for folder in ["spool", "aside"] {
            fs::create_dir_all(daemon.path(folder)).unwrap();
        }
        let at = daemon.path("").display().to_string();
        daemon.settings = vec![
            format!("spool.dir = \"{at}spool\""),
            "spool.incomplete_after = \"1s\"".to_owned(),
            format!("outbox.path = \"{at}state/outbox.db\""),
            "outbox.min_free = \"0%\"".to_owned(),
            format!("koala.endpoint = \"{endpoint}\""),
            format!("koala.public_key = \"{KEY}\""),
        ];
        daemon.configure();
        daemon
    }

    /// Adds a line to the configuration, `section.key = value`, in place of one of the same key.
    pub fn set(&mut self, line: &str) {
        self.unset(line.split('=').next().unwrap().trim());
        self.settings.push(line.to_owned());
        self.configure();
    }

    /// Takes the line of that key out of the configuration.
    pub fn unset(&mut self, key: &str) {
        self.settings.retain(|line| line.split('=').next().unwrap().trim() != key);
        self.configure();
    }

    /// A variable of the environment, for the program and its commands.
    pub fn env(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// An option of `run`.
    pub fn option(&mut self, option: &str) {
        self.options.push(option.into());
    }

    fn configure(&self) {
        fs::write(self.path("config.toml"), self.settings.join("\n") + "\n").unwrap();
    }

    /// Another program in place of the agent: a control.
    pub fn program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Starts the program from now on by this command: a tracer. [`Daemon::kill`] and [`Daemon::stop`] then mean the
    /// tracer; the agent itself is [`Daemon::pid`].
    pub fn under<S: Into<OsString>>(&mut self, before: impl IntoIterator<Item = S>) {
        self.before = before.into_iter().map(Into::into).collect();
    }

    /// A place in its home.
    pub fn path(&self, name: &str) -> PathBuf {
        match &self.home {
            Home::Own(dir) => dir.path().join(name),
            Home::Given(path) => path.join(name),
        }
    }

    pub fn spool(&self) -> PathBuf {
        self.path("spool")
    }

    pub fn outbox(&self) -> PathBuf {
        self.path("state/outbox.db")
    }

    /// One of its commands on the same configuration.
    pub fn command(&self, command: &str) -> Command {
        let mut program = Command::new(&self.program);
        program.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        program.arg("--config").arg(self.path("config.toml")).arg(command).stdin(Stdio::null());
        program
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = match self.before.split_first() {
            None => self.command("run"),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program).arg("--config").arg(self.path("config.toml"));
                command.arg("run").stdin(Stdio::null());
                command.envs(self.environment.iter().map(|(name, value)| (name, value)));
                command
            }
        };
        self.child = Some(command.args(&self.options).stderr(log).spawn().unwrap());
    }

    /// The process that was started; the program itself, unless it runs under a tracer.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("it runs").id().try_into().unwrap()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let ended = self.child.as_mut()?.try_wait().unwrap();
        if ended.is_some() {
            self.child = None;
        }
        ended
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself:\n{}", self.log());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// SIGTERM; it ends well.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let ended = self.wait();
        assert!(ended.success(), "{ended}\n{}", self.log());
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// What `status --json` prints.
    pub fn status(&self) -> Status {
        let output = self.command("status").arg("--json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Where the log goes; never into a folder that a fault strikes.
    fn log_file(&self) -> PathBuf {
        match &self.home {
            Home::Own(dir) => dir.path().join("log"),
            Home::Given(path) => {
                let mut beside = path.clone().into_os_string();
                beside.push(".log");
                beside.into()
            }
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The ids that the outbox holds as pending.
    pub fn pending(&self) -> HashSet<String> {
        if !self.outbox().exists() {
            return HashSet::new();
        }
        let outbox = self.database();
        let sql = "SELECT message_id FROM outbox_events WHERE state = 'pending'";
        let mut rows = match outbox.prepare(sql) {
            // It was ended before it had made its tables, or while it made the file.
            Err(e) if e.to_string().contains("no such table") || has_journal(&e) => return HashSet::new(),
            rows => rows.unwrap(),
        };
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// The outbox, to be read.
    pub fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        rusqlite::Connection::open_with_flags(self.outbox(), flags).unwrap()
    }

    /// The processor time that it has used; `None` where the system does not tell (proc(5): fields 14 and 15 of
    /// stat, in hundredths of a second).
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.as_ref()?.id())).ok()?;
        let fields = stat.rsplit_once(')')?.1.split_whitespace();
        let hundredths: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Duration::from_millis(hundredths * 10))
    }

    /// The most memory that it has ever had, in bytes; 0 where the system does not tell (proc(5): VmHWM).
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that it has, in bytes.
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }

    /// The descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

/// Whether a database cannot be read because a transaction of the time before its write-ahead log was cut.
fn has_journal(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

impl Drop for Daemon {
    /// A test that has failed leaves no process.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
