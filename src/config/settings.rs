//! Every key by name, and how its value is read: from a file and from the environment alike.
//!
//! A problem names the place, the key and what is wanted. It never quotes a value, so no secret can be in it.

use super::units::{Bytes, LONGEST};
use super::value::{Given, Wrong};
use super::{
    Environment, KoalaConfig, OutboxConfig, PREFIX, PublicKey, SpoolConfig, VARIABLE, address, mappings,
};
use crate::mapping::Definition;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The folder would be read in a busy loop below this.
const SHORTEST_SCAN: Duration = Duration::from_millis(100);
/// Below a second no request over the internet succeeds; a silent connection holds its person up for so long.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// Below this, ordinary events with a page's context would be refused.
const SMALLEST_EVENT_LIMIT: u64 = 1 << 10;
/// An empty outbox with its write-ahead log must fit in.
const SMALLEST_OUTBOX: u64 = 1 << 20;

/// What has been read so far; each layer that is read overwrites what it sets.
#[derive(Default)]
pub(super) struct Settings {
    pub spool: SpoolConfig,
    pub outbox: OutboxConfig,
    pub koala: KoalaConfig,
    /// `[[mapping]]`
    pub mappings: Vec<Definition>,
    /// A file of them; relative to the configuration's folder.
    pub mappings_file: Option<PathBuf>,
    /// The file that holds the key for hashes.
    pub hash_key_file: Option<PathBuf>,
    /// What was odd but no error.
    pub warnings: Vec<String>,
    /// What was wrong, a sentence each.
    pub problems: Vec<String>,
    /// The key and its file as the layer that was read last has them.
    public_key: Option<PublicKey>,
    public_key_file: Option<PathBuf>,
    /// Where each key was set last.
    places: BTreeMap<&'static str, String>,
}

/// The key as one layer gives it.
pub(super) enum GivenKey {
    /// The key itself, and the place where it stands.
    Text(PublicKey, String),
    /// The file that holds it.
    File(PathBuf),
}

/// Puts a value into its place, or says what is wrong with it.
pub(super) type Read = fn(&mut Settings, &Given) -> Result<(), Wrong>;

/// All keys, in the order of the commented defaults.
pub(super) const KEYS: &[(&str, Read)] = &[
    ("mappings_file", |s, v| put(&mut s.mappings_file, v.text().map(|text| Some(PathBuf::from(text))))),
    ("spool.dir", |s, v| put(&mut s.spool.dir, v.path())),
    ("spool.scan_interval", |s, v| put(&mut s.spool.scan_interval, v.duration(SHORTEST_SCAN..=LONGEST))),
    ("spool.settle", |s, v| put(&mut s.spool.settle, v.duration(Duration::ZERO..=LONGEST))),
    ("spool.incomplete_after", |s, v| {
        put(&mut s.spool.incomplete_after, v.duration(Duration::ZERO..=LONGEST))
    }),
    ("spool.max_file_bytes", |s, v| put(&mut s.spool.max_file_bytes, v.size(SMALLEST_EVENT_LIMIT))),
    ("spool.max_event_bytes", |s, v| put(&mut s.spool.max_event_bytes, v.size(SMALLEST_EVENT_LIMIT))),
    ("outbox.path", |s, v| put(&mut s.outbox.path, v.path())),
    ("outbox.max_bytes", |s, v| put(&mut s.outbox.max_bytes, v.size(SMALLEST_OUTBOX))),
    ("outbox.min_free", |s, v| put(&mut s.outbox.min_free, v.floor())),
    ("outbox.keep_delivered", |s, v| put(&mut s.outbox.keep_delivered, v.duration(Duration::ZERO..=LONGEST))),
    ("outbox.keep_bodies", |s, v| put(&mut s.outbox.keep_bodies, v.duration(Duration::ZERO..=LONGEST))),
    ("outbox.keep_skipped", |s, v| put(&mut s.outbox.keep_skipped, v.duration(Duration::ZERO..=LONGEST))),
    ("outbox.keep_failed", |s, v| put(&mut s.outbox.keep_failed, v.duration(Duration::ZERO..=LONGEST))),
    ("koala.endpoint", |s, v| put(&mut s.koala.endpoint, Ok(address::endpoint(v.text()?)?))),
    ("koala.public_key", |s, v| {
        put(&mut s.public_key, PublicKey::new(v.text()?).map_err(|e| format!("is {e}")))
    }),
    ("koala.public_key_file", |s, v| put(&mut s.public_key_file, v.path().map(Some))),
    ("koala.hash_key_file", |s, v| put(&mut s.hash_key_file, v.path().map(Some))),
    ("koala.consent_categories", |s, v| put(&mut s.koala.consent_categories, v.texts())),
    ("koala.concurrency", |s, v| put(&mut s.koala.concurrency, v.concurrency())),
    ("koala.timeout", |s, v| put(&mut s.koala.timeout, v.duration(TIMEOUTS))),
    ("koala.proxy", |s, v| put(&mut s.koala.proxy, Ok(Some(address::proxy(v.text()?)?)))),
    ("koala.ca_file", |s, v| put(&mut s.koala.ca_file, v.path().map(Some))),
    ("koala.allow_plain_http", |s, v| put(&mut s.koala.allow_plain_http, v.flag())),
];

fn put<T>(slot: &mut T, value: Result<T, Wrong>) -> Result<(), Wrong> {
    value.map(|value| *slot = value)
}

impl Settings {
    /// Reads a file's text; what is wrong with it is added to the problems.
    pub fn read_file(&mut self, path: &Path, text: &str) {
        match DeTable::parse(text) {
            Ok(table) => {
                let file = File { shown: path.display().to_string(), text };
                let mut problems = Vec::new();
                self.read_table(&file, "", table.get_ref(), &mut problems);
                problems.sort_by_key(|&(at, _)| at);
                self.problems.extend(problems.into_iter().map(|(_, problem)| problem));
            }
            Err(e) => {
                let before = &text[..e.span().map_or(0, |span| span.start.min(text.len()))];
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
                // The error's own display would quote the line, and with it perhaps the key.
                self.problems.push(format!("{}:{line}:{column}: {}", path.display(), e.message()));
            }
        }
    }

    fn read_table(
        &mut self,
        file: &File,
        prefix: &str,
        table: &DeTable,
        problems: &mut Vec<(usize, String)>,
    ) {
        for (key, value) in table {
            let (at, name) = (key.span().start, format!("{prefix}{}", key.get_ref().escape_debug()));
            let section = format!("{name}.");
            let wrong = match value.get_ref() {
                value if name == "mapping" => {
                    mappings::read_toml(file, at, value, &mut self.mappings, problems);
                    Ok(())
                }
                DeValue::Table(inner) if !inner.is_empty() => {
                    self.read_table(file, &section, inner, problems);
                    Ok(())
                }
                DeValue::Table(_) if KEYS.iter().any(|(known, _)| known.starts_with(&section)) => Ok(()),
                value => match known(&name) {
                    Some((key, read)) => self.read(key, read, &Given::Value(value), file.place(at)),
                    None => Err(format!(
                        "{}: unknown key {name}; did you mean {}?",
                        file.place(at),
                        nearest(&name)
                    )),
                },
            };
            problems.extend(wrong.err().map(|problem| (at, problem)));
        }
    }

    /// Reads the variables that begin with `KOALA_AGENT_`; one that means nothing is a warning.
    pub fn read_environment(&mut self, env: &Environment) {
        for (variable, value) in env.ours().filter(|(variable, _)| variable != VARIABLE) {
            let name = variable[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            match known(&name).filter(|(key, _)| variable_of(key) == variable) {
                None => self.warnings.push(format!(
                    "the environment variable {} means nothing; did you mean {}?",
                    variable.escape_debug(),
                    variable_of(nearest(&name))
                )),
                Some((key, read)) => {
                    let read = match value.to_str() {
                        Some(text) => self.read(key, read, &Given::Text(text), variable),
                        None => Err(format!("{variable}: it is not UTF-8")),
                    };
                    self.problems.extend(read.err());
                }
            }
        }
    }

    fn read(&mut self, key: &'static str, read: Read, given: &Given, place: String) -> Result<(), String> {
        read(self, given).map_err(|wrong| format!("{place}: {key} {wrong}"))?;
        self.places.insert(key, place);
        Ok(())
    }

    /// The key that the layer read last gives, if it gives one; the next layer starts with none.
    pub fn take_key(&mut self) -> Option<GivenKey> {
        let place = |key| self.places.get(key).cloned().unwrap_or_default();
        match (self.public_key.take(), self.public_key_file.take()) {
            (None, None) => None,
            (Some(key), None) => Some(GivenKey::Text(key, place("koala.public_key"))),
            (None, Some(file)) => Some(GivenKey::File(file)),
            (Some(_), Some(_)) => {
                let place = place("koala.public_key_file");
                self.problems.push(format!(
                    "{place}: koala.public_key_file is set beside koala.public_key; remove one of them"
                ));
                None
            }
        }
    }

    /// Checks what several keys say together, once all layers are read.
    pub fn check_together(&mut self) {
        let Settings { spool, outbox, koala, .. } = &*self;
        let mut problems = Vec::new();
        if spool.max_event_bytes > spool.max_file_bytes {
            let sizes = (Bytes(spool.max_event_bytes), Bytes(spool.max_file_bytes));
            problems.push((
                ["spool.max_event_bytes", "spool.max_file_bytes"],
                format!(
                    "spool.max_event_bytes ({}) is more than spool.max_file_bytes ({})",
                    sizes.0, sizes.1
                ),
            ));
        }
        if outbox.path.starts_with(&spool.dir) {
            problems.push((
                ["outbox.path", "spool.dir"],
                "outbox.path lies in spool.dir, where it would be taken for events; put it elsewhere"
                    .to_owned(),
            ));
        }
        if address::is_plain(&koala.endpoint) && !koala.is_loopback() && !koala.allow_plain_http {
            problems.push((
                ["koala.endpoint", "koala.endpoint"],
                "koala.endpoint would send the key and the events unencrypted; \
                 write https://, or set koala.allow_plain_http = true"
                    .to_owned(),
            ));
        }
        for (keys, problem) in problems {
            let place = keys.iter().find_map(|key| self.places.get(key));
            self.problems.push(place.map_or_else(|| problem.clone(), |place| format!("{place}: {problem}")));
        }
    }
}

/// A configuration file, for naming places in it.
pub(super) struct File<'a> {
    shown: String,
    text: &'a str,
}

impl File<'_> {
    pub fn place(&self, at: usize) -> String {
        format!("{}:{}", self.shown, self.text[..at].matches('\n').count() + 1)
    }
}

fn known(name: &str) -> Option<(&'static str, Read)> {
    KEYS.iter().copied().find(|(key, _)| *key == name)
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// The key most like `name`. The last part counts twice: a key in the wrong section is that key.
fn nearest(name: &str) -> &'static str {
    let last = |path: &'_ str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |key: &str| {
        strsim::normalized_levenshtein(name, key) + strsim::normalized_levenshtein(&last(name), &last(key))
    };
    KEYS.iter().map(|(key, _)| *key).max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or_default()
}
