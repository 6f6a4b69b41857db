//! One value of a setting before it is checked, and its place.

use super::units::{Bytes, duration, size};
use super::{Concurrency, LogLevel, MinFree};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeValue;

/// The problem with a value, as a clause that follows the key's name. It does not quote the value.
pub(super) type ValueProblem = String;

/// A value as one layer gives it.
pub(super) enum SettingValue<'a> {
    /// From the environment, which has text for every type.
    Text(&'a str),
    /// From a file, with its type in TOML.
    Toml(&'a DeValue<'a>),
}

impl SettingValue<'_> {
    pub fn text(&self) -> Result<&str, ValueProblem> {
        let text = match self {
            SettingValue::Text(text) => Some(*text),
            SettingValue::Toml(value) => value.as_str(),
        };
        text.ok_or_else(|| "must be a text in quotes".to_owned())
    }

    fn integer(&self) -> Option<u64> {
        match self {
            SettingValue::Text(text) => text.trim().parse().ok(),
            SettingValue::Toml(value) => {
                value.as_integer().and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok())
            }
        }
    }

    pub fn path(&self) -> Result<PathBuf, ValueProblem> {
        let path = self.text().ok().map(PathBuf::from).filter(|path| path.is_absolute());
        path.ok_or_else(|| "is not an absolute path; write an absolute path in quotes".to_owned())
    }

    pub fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, ValueProblem> {
        let wanted = || "must be a duration such as \"30s\", \"2m\" or \"30d\"".to_owned();
        let duration = self.text().ok().and_then(duration).ok_or_else(wanted)?;
        let (least, most) = (range.start(), range.end());
        range.contains(&duration).then_some(duration).ok_or_else(|| {
            format!(
                "must be from {} to {}",
                humantime::format_duration(*least),
                humantime::format_duration(*most)
            )
        })
    }

    pub fn size(&self, least: u64) -> Result<u64, ValueProblem> {
        let wanted = || "must be a size such as \"64MiB\", or a number of bytes".to_owned();
        let bytes = self.bytes().ok_or_else(wanted)?;
        (bytes >= least).then_some(bytes).ok_or_else(|| format!("must be at least {}", Bytes(least)))
    }

    fn bytes(&self) -> Option<u64> {
        self.integer().map_or_else(|| size(self.text().ok()?), |n| size(&n.to_string()))
    }

    pub fn min_free(&self) -> Result<MinFree, ValueProblem> {
        let min_free = self.bytes().map(MinFree::Bytes).or_else(|| MinFree::parse(self.text().ok()?));
        min_free
            .ok_or_else(|| "must be a share from \"0%\" to \"100%\", or a size such as \"1GiB\"".to_owned())
    }

    pub fn concurrency(&self) -> Result<Concurrency, ValueProblem> {
        if self.text().is_ok_and(|text| text.trim() == "auto") {
            return Ok(Concurrency::Auto);
        }
        let count = self.integer().and_then(|n| usize::try_from(n).ok());
        let count = count.filter(|n| (1..=Concurrency::MOST).contains(n)).map(Concurrency::Fixed);
        count.ok_or_else(|| format!("must be \"auto\" or a whole number from 1 to {}", Concurrency::MOST))
    }

    pub fn log_level(&self) -> Result<LogLevel, ValueProblem> {
        let text = self.text().unwrap_or_default().trim();
        let level = LogLevel::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, level)| level);
        level.ok_or_else(|| "must be \"error\", \"warning\", \"info\" or \"debug\"".to_owned())
    }

    /// A list of texts; in the environment they are separated by commas.
    pub fn texts(&self) -> Result<Vec<String>, ValueProblem> {
        let texts: Option<Vec<String>> = match self {
            SettingValue::Text(text) => Some(text.split(',').map(|text| text.trim().to_owned()).collect()),
            SettingValue::Toml(DeValue::Array(items)) => {
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            }
            SettingValue::Toml(_) => None,
        };
        let texts = texts.ok_or_else(|| "must be a list of texts, such as [\"marketing\"]".to_owned())?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    pub fn flag(&self) -> Result<bool, ValueProblem> {
        let flag = match self {
            SettingValue::Text(text) => text.trim().parse().ok(),
            SettingValue::Toml(value) => value.as_bool(),
        };
        flag.ok_or_else(|| "must be true or false".to_owned())
    }
}

/// The text of a configuration file, for naming places in it.
pub(super) struct SourceText<'a> {
    path: String,
    text: &'a str,
}

impl<'a> SourceText<'a> {
    pub fn new(path: &Path, text: &'a str) -> SourceText<'a> {
        SourceText { path: path.display().to_string(), text }
    }

    /// The file and line of the byte at `offset`.
    pub fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path, self.text[..offset].matches('\n').count() + 1)
    }
}
