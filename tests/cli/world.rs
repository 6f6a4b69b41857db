//! An agent's places in a temporary folder, and the binary run on them.

use koala_agent::agent::disposition;
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{Config, Environment, Options, load};
use koala_agent::event::{Event, MessageId};
use koala_agent::item::Disposition;
use koala_agent::mapping::Mappings;
use koala_agent::outbox::{NewEvent, NewItem, Outbox, Reader, Settled, Settlement};
use koala_agent::reason::{Code, Reason};
use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a run of the program came to.
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

pub struct World {
    pub dir: tempfile::TempDir,
}

impl World {
    /// A configuration with its spool, and no outbox yet.
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let world = World { dir };
        fs::create_dir(world.path("spool")).unwrap();
        world.configure("");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration; the lines stand in `[koala]`.
    pub fn configure(&self, koala: &str) {
        let dir = self.dir.path().display();
        let endpoint = if koala.contains("endpoint") { "" } else { "endpoint = \"http://127.0.0.1:9\"" };
        let text = format!(
            "[spool]\ndir = \"{dir}/spool\"\n[outbox]\npath = \"{dir}/outbox.db\"\nmin_free = \"0%\"\n\
             [koala]\npublic_key_file = \"{dir}/key\"\n{endpoint}\n{koala}\n"
        );
        fs::write(self.path("config.toml"), text).unwrap();
    }

    pub fn config(&self) -> Config {
        let options = Options { config: Some(self.path("config.toml")), user: false };
        load(&options, &Environment::default()).unwrap()
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
        command.env_clear().env("HOME", self.path("home")).arg("--config").arg(self.path("config.toml"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    pub fn run_with(&self, arguments: &[&str], stdin: &str) -> Ran {
        ran(self.command().args(arguments), stdin)
    }

    pub fn reader(&self) -> Reader {
        Reader::open(&self.config().outbox.path).unwrap()
    }

    /// An open outbox, as an agent of this process would hold it.
    pub fn agent(&self) -> Outbox {
        Outbox::open(&self.config().outbox, Clock::system()).unwrap()
    }

    pub fn state_of(&self, id: &str) -> Option<String> {
        self.reader().events().show(id).unwrap().map(|detail| detail.row.state)
    }

    /// Events in every state, of two persons; no agent runs.
    pub fn with_events() -> World {
        let world = World::new();
        let outbox = world.agent();
        let writer = &outbox.writer;
        let events = EVENTS.iter().map(|(id, json)| event(id, json, "a.jsonl")).collect::<Vec<_>>();
        writer.append(events, vec![]).block().unwrap();
        let refused = Reason::new(Code::Refused, "the receiver answered 400: no\u{1b}[2J");
        let trouble = Reason::new(Code::Http5xx, "the receiver answered 503");
        let seq = |id: &str| world.reader().events().show(id).unwrap().unwrap().row.seq;
        writer
            .settle(Settlement {
                rows: vec![
                    (seq("delivered"), Settled::Delivered),
                    (seq("refused"), Settled::Failed(refused.clone())),
                    (seq("discarded"), Settled::Discarded),
                ],
                attempts: vec![
                    (vec![seq("waiting"), seq("refused")], trouble),
                    (vec![seq("refused")], refused),
                ],
                ..Settlement::default()
            })
            .block()
            .unwrap();
        outbox.close();
        world
    }
}

/// The ids and texts of [`World::with_events`]; the mapping settles two of them.
pub const EVENTS: [(&str, &str); 7] = [
    ("delivered", r#"{"type":"track","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#),
    ("waiting", r#"{"type":"track","event":"Paid","properties":{"email":"ana@acme.dev","sum":1.0}}"#),
    ("behind", r#"{"type":"identify","traits":{"email":"ana@acme.dev"}}"#),
    ("refused", r#"{"type":"track","event":"Odd","properties":{"email":"bob@acme.dev"}}"#),
    ("discarded", r#"{"type":"track","event":"Odd","properties":{"email":"bob@acme.dev"}}"#),
    ("nobody", r#"{"type":"track","event":"Seen","properties":{}}"#),
    ("invalid", r#"{"type":"track","properties":{"email":"bob@acme.dev"}}"#),
];

/// A moment that every test of a body can name.
pub const SPOOLED_AT: &str = "2026-01-02T03:04:05Z";

pub fn event(id: &str, json: &str, file: &str) -> NewEvent {
    let parsed = Event::parse(json).unwrap();
    let message_id = MessageId::new(id.to_owned()).unwrap();
    let spooled_at = Timestamp::parse(SPOOLED_AT).unwrap();
    let disposition: Disposition<Vec<NewItem>> =
        disposition(&Mappings::presets(), &parsed, &message_id, spooled_at);
    NewEvent {
        digest: parsed.digest(),
        kind: parsed.kind().map(Into::into),
        name: parsed.name().map(Into::into),
        message_id,
        file: file.into(),
        place: 1,
        spooled_at,
        body: json.to_owned(),
        disposition,
    }
}

pub fn ran(command: &mut Command, stdin: &str) -> Ran {
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

/// Every piece of the text is in there.
pub fn assert_says(text: &str, pieces: &[&str]) {
    for piece in pieces {
        assert!(text.contains(piece), "{piece:?} is not in:\n{text}");
    }
}
