//! Every key by its name, and how its value is read, from a file and from the environment alike.
//!
//! A problem names the place, the key and the wanted value. It never quotes the value it found, which may be a secret.

use super::sections::UNENCRYPTED;
use super::units::{Bytes, LONGEST};
use super::value::{SettingValue, SourceText, ValueProblem};
use super::{
    Environment, KoalaConfig, OutboxConfig, PREFIX, PublicKey, SpoolConfig, VARIABLE, address, mappings,
};
use crate::mapping::{Definition, shown_name};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The shortest interval of scans: a shorter one would be a busy loop.
const SHORTEST_SCAN: Duration = Duration::from_millis(100);
/// The range of timeouts. Below a second hardly any request over the internet succeeds. A silent connection delays its person's events for the
/// whole timeout.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// Room for some rejected files.
const SMALLEST_REJECTED: u64 = 1 << 20;
/// The smallest limit for an event. With a smaller one, ordinary events with the context of a page would be rejected.
const SMALLEST_EVENT_LIMIT: u64 = 1 << 10;
/// The smallest limit for the outbox: an empty one with its write-ahead log must fit.
const SMALLEST_OUTBOX: u64 = 1 << 20;

/// The settings read so far. Each layer overwrites those of the layers before it.
#[derive(Default)]
pub(super) struct ConfigBuilder {
    pub spool: SpoolConfig,
    pub outbox: OutboxConfig,
    pub koala: KoalaConfig,
    /// `[[mapping]]`
    pub mappings: Vec<Definition>,
    /// A file of exported mappings, relative to the folder of the configuration.
    pub mappings_file: Option<PathBuf>,
    /// The file that holds the key for hashes.
    pub hash_key_file: Option<PathBuf>,
    /// Warnings, a sentence each.
    pub warnings: Vec<String>,
    /// Errors, a sentence each.
    pub problems: Vec<String>,
    /// The key, if the latest layer has it.
    public_key: Option<PublicKey>,
    /// The file of the key, if the latest layer has it.
    public_key_file: Option<PathBuf>,
    /// The place where each key was set last.
    places: BTreeMap<&'static str, String>,
}

/// The key as one layer gives it.
pub(super) enum KeySetting {
    /// The key itself, and its place.
    Text(PublicKey, String),
    /// The file that holds the key.
    File(PathBuf),
}

/// Stores a value in the builder, or returns the problem with it.
pub(super) type StoreSetting = fn(&mut ConfigBuilder, &SettingValue) -> Result<(), ValueProblem>;

/// All keys, in the order of `packaging/config.toml`.
pub(super) const KEYS: &[(&str, StoreSetting)] = &[
    ("mappings_file", |b, v| set(&mut b.mappings_file, v.text().map(|text| Some(PathBuf::from(text))))),
    ("spool.dir", |b, v| set(&mut b.spool.dir, v.path())),
    ("spool.scan_interval", |b, v| set(&mut b.spool.scan_interval, v.duration(SHORTEST_SCAN..=LONGEST))),
    ("spool.settle", |b, v| set(&mut b.spool.settle, v.duration(Duration::ZERO..=LONGEST))),
    ("spool.incomplete_after", |b, v| {
        set(&mut b.spool.incomplete_after, v.duration(Duration::ZERO..=LONGEST))
    }),
    ("spool.max_file_bytes", |b, v| set(&mut b.spool.max_file_bytes, v.size(SMALLEST_EVENT_LIMIT))),
    ("spool.max_event_bytes", |b, v| set(&mut b.spool.max_event_bytes, v.size(SMALLEST_EVENT_LIMIT))),
    ("spool.max_rejected", |b, v| set(&mut b.spool.max_rejected, v.size(SMALLEST_REJECTED))),
    ("outbox.path", |b, v| set(&mut b.outbox.path, v.path())),
    ("outbox.max_bytes", |b, v| set(&mut b.outbox.max_bytes, v.size(SMALLEST_OUTBOX))),
    ("outbox.min_free", |b, v| set(&mut b.outbox.min_free, v.min_free())),
    ("outbox.keep_delivered", |b, v| set(&mut b.outbox.keep_delivered, v.duration(Duration::ZERO..=LONGEST))),
    ("outbox.keep_bodies", |b, v| set(&mut b.outbox.keep_bodies, v.duration(Duration::ZERO..=LONGEST))),
    ("outbox.keep_skipped", |b, v| set(&mut b.outbox.keep_skipped, v.duration(Duration::ZERO..=LONGEST))),
    ("outbox.keep_failed", |b, v| set(&mut b.outbox.keep_failed, v.duration(Duration::ZERO..=LONGEST))),
    ("koala.endpoint", |b, v| set(&mut b.koala.endpoint, Ok(address::endpoint(v.text()?)?))),
    ("koala.public_key", |b, v| {
        set(&mut b.public_key, PublicKey::new(v.text()?).map_err(|e| format!("is {e}")))
    }),
    ("koala.public_key_file", |b, v| set(&mut b.public_key_file, v.path().map(Some))),
    ("koala.hash_key_file", |b, v| set(&mut b.hash_key_file, v.path().map(Some))),
    ("koala.consent_categories", |b, v| set(&mut b.koala.consent_categories, v.texts())),
    ("koala.concurrency", |b, v| set(&mut b.koala.concurrency, v.concurrency())),
    ("koala.timeout", |b, v| set(&mut b.koala.timeout, v.duration(TIMEOUTS))),
    ("koala.proxy", |b, v| set(&mut b.koala.proxy, Ok(Some(address::proxy(v.text()?)?)))),
    ("koala.ca_file", |b, v| set(&mut b.koala.ca_file, v.path().map(Some))),
    ("koala.allow_plain_http", |b, v| set(&mut b.koala.allow_plain_http, v.flag())),
];

fn set<T>(slot: &mut T, value: Result<T, ValueProblem>) -> Result<(), ValueProblem> {
    value.map(|value| *slot = value)
}

impl ConfigBuilder {
    /// Reads the text of a configuration file.
    pub fn read_file(&mut self, path: &Path, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut problems = Vec::new();
        self.read_table(&SourceText::new(path, text), "", table.get_ref(), &mut problems);
        problems.sort_by_key(|&(offset, _)| offset);
        match errors.first() {
            None => self.problems.extend(problems.into_iter().map(|(_, problem)| problem)),
            // What else is wrong may follow from that.
            Some(e) => {
                let before = &text[..e.span().map_or(0, |span| span.start.min(text.len()))];
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
                // The display of the error would quote the line, which may contain the key.
                let problem = match e.message() {
                    "duplicate key" => "this key or section stands in the file twice",
                    other => other,
                };
                self.problems.push(format!("{}:{line}:{column}: {problem}", path.display()));
            }
        }
    }

    fn read_table(
        &mut self,
        file: &SourceText,
        prefix: &str,
        table: &DeTable,
        problems: &mut Vec<(usize, String)>,
    ) {
        for (key, value) in table {
            let (offset, name) = (key.span().start, format!("{prefix}{}", key.get_ref().escape_debug()));
            let section = format!("{name}.");
            let result = match value.get_ref() {
                value if name == "mapping" => {
                    mappings::read_toml(file, offset, value, &mut self.mappings, problems);
                    Ok(())
                }
                DeValue::Table(inner) if !inner.is_empty() => {
                    self.read_table(file, &section, inner, problems);
                    Ok(())
                }
                DeValue::Table(_) if KEYS.iter().any(|(known, _)| known.starts_with(&section)) => Ok(()),
                value => match known_key(&name) {
                    Some((key, store)) => {
                        self.read_value(key, store, &SettingValue::Toml(value), file.place(offset))
                    }
                    None => {
                        let suggestion = suggested(nearest(&name).map(str::to_owned));
                        Err(format!("{}: unknown key {}{suggestion}", file.place(offset), shown_path(&name)))
                    }
                },
            };
            problems.extend(result.err().map(|problem| (offset, problem)));
        }
    }

    /// Reads the variables that begin with `KOALA_AGENT_`. An unknown one is a warning.
    pub fn read_environment(&mut self, env: &Environment) {
        for (variable, value) in env.with_prefix().filter(|(variable, _)| variable != VARIABLE) {
            let name = variable[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            match known_key(&name).filter(|(key, _)| variable_of(key) == variable) {
                None => self.warnings.push(format!(
                    "unknown environment variable {}{}",
                    shown_variable(&variable),
                    suggested(nearest(&name).map(variable_of))
                )),
                Some((key, store)) => {
                    let result = match value.to_str() {
                        Some(text) => self.read_value(key, store, &SettingValue::Text(text), variable),
                        None => Err(format!("{variable}: the value is not UTF-8")),
                    };
                    self.problems.extend(result.err());
                }
            }
        }
    }

    fn read_value(
        &mut self,
        key: &'static str,
        store: StoreSetting,
        value: &SettingValue,
        place: String,
    ) -> Result<(), String> {
        store(self, value).map_err(|problem| format!("{place}: {key} {problem}"))?;
        self.places.insert(key, place);
        Ok(())
    }

    /// Takes the key that the latest layer gives, if it gives one.
    pub fn take_key(&mut self) -> Option<KeySetting> {
        let place = |key| self.places.get(key).cloned().unwrap_or_default();
        match (self.public_key.take(), self.public_key_file.take()) {
            (None, None) => None,
            (Some(key), None) => Some(KeySetting::Text(key, place("koala.public_key"))),
            (None, Some(file)) => Some(KeySetting::File(file)),
            (Some(_), Some(_)) => {
                let place = place("koala.public_key_file");
                self.problems.push(format!(
                    "{place}: koala.public_key and koala.public_key_file are both set; remove one of them"
                ));
                None
            }
        }
    }

    /// Checks the rules between keys, once all layers are read.
    pub fn check_together(&mut self) {
        let ConfigBuilder { spool, outbox, koala, .. } = &*self;
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
                "outbox.path is inside spool.dir, where it would be read as events; set another path"
                    .to_owned(),
            ));
        }
        if koala.is_unencrypted() {
            problems.push((["koala.endpoint", "koala.endpoint"], format!("koala.endpoint {UNENCRYPTED}")));
        }
        for (keys, problem) in problems {
            let place = keys.iter().find_map(|key| self.places.get(key));
            self.problems.push(place.map_or_else(|| problem.clone(), |place| format!("{place}: {problem}")));
        }
    }
}

/// The similarity, from 0 to 2, below which a suggestion would be a guess.
const MIN_SIMILARITY: f64 = 0.55;

fn known_key(name: &str) -> Option<(&'static str, StoreSetting)> {
    KEYS.iter().copied().find(|(key, _)| *key == name)
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// An unknown name of several parts as an error shows it.
fn shown_path(name: &str) -> String {
    let known: Vec<&str> = KEYS.iter().flat_map(|(key, _)| key.split('.')).collect();
    let parts: Vec<String> = name.split('.').map(|part| shown_name(part, &known)).collect();
    parts.join(".")
}

/// An unknown environment variable as a warning shows it.
fn shown_variable(variable: &str) -> String {
    let known: Vec<String> =
        KEYS.iter().map(|(key, _)| variable_of(key)[PREFIX.len()..].to_owned()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    format!("{PREFIX}{}", shown_name(&variable[PREFIX.len()..].escape_debug().to_string(), &known))
}

fn suggested(key: Option<String>) -> String {
    key.map(|key| format!("; did you mean {key}?")).unwrap_or_default()
}

/// The known key most similar to `name`, if one is similar. The last part counts twice, so that a key in the wrong section
/// is found.
fn nearest(name: &str) -> Option<&'static str> {
    let last_part = |path: &'_ str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let similarity = |key: &str| {
        strsim::normalized_levenshtein(name, key)
            + strsim::normalized_levenshtein(&last_part(name), &last_part(key))
    };
    KEYS.iter()
        .map(|(key, _)| *key)
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
        .filter(|key| similarity(key) >= MIN_SIMILARITY)
}
