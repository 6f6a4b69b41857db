//! One value on its way in, read as the type that its key has.

use super::units::{Bytes, duration, size};
use super::{Concurrency, MinFree};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// What is wrong with a value: a clause that follows the key's name and does not quote the value.
pub(super) type Wrong = String;

/// A value as a layer gives it.
pub(super) enum Given<'a> {
    /// From the environment: text whatever the key's type is.
    Text(&'a str),
    /// From a file, with the type that it has there.
    Value(&'a DeValue<'a>),
}

impl Given<'_> {
    pub fn text(&self) -> Result<&str, Wrong> {
        let text = match self {
            Given::Text(text) => Some(*text),
            Given::Value(value) => value.as_str(),
        };
        text.ok_or_else(|| "wants a text in quotes".to_owned())
    }

    fn integer(&self) -> Option<u64> {
        match self {
            Given::Text(text) => text.trim().parse().ok(),
            Given::Value(value) => {
                value.as_integer().and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok())
            }
        }
    }

    pub fn path(&self) -> Result<PathBuf, Wrong> {
        let path = self.text().ok().map(PathBuf::from).filter(|path| path.is_absolute());
        path.ok_or_else(|| "is not an absolute path; write an absolute path in quotes".to_owned())
    }

    pub fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, Wrong> {
        let wanted = || "wants a duration such as \"30s\", \"2m\" or \"30d\"".to_owned();
        let given = self.text().ok().and_then(duration).ok_or_else(wanted)?;
        let (least, most) = (range.start(), range.end());
        range.contains(&given).then_some(given).ok_or_else(|| {
            format!("wants {} to {}", humantime::format_duration(*least), humantime::format_duration(*most))
        })
    }

    pub fn size(&self, least: u64) -> Result<u64, Wrong> {
        let wanted = || "wants a size such as \"64MiB\", or a number of bytes".to_owned();
        let given = self.bytes().ok_or_else(wanted)?;
        (given >= least).then_some(given).ok_or_else(|| format!("wants at least {}", Bytes(least)))
    }

    fn bytes(&self) -> Option<u64> {
        self.integer().map_or_else(|| size(self.text().ok()?), |n| size(&n.to_string()))
    }

    pub fn floor(&self) -> Result<MinFree, Wrong> {
        let floor = self.bytes().map(MinFree::Bytes).or_else(|| MinFree::parse(self.text().ok()?));
        floor.ok_or_else(|| "wants a share from \"0%\" to \"100%\", or a size such as \"1GiB\"".to_owned())
    }

    pub fn concurrency(&self) -> Result<Concurrency, Wrong> {
        if self.text().is_ok_and(|text| text.trim() == "auto") {
            return Ok(Concurrency::Auto);
        }
        let count = self.integer().and_then(|n| usize::try_from(n).ok());
        let count = count.filter(|n| (1..=Concurrency::MOST).contains(n)).map(Concurrency::Fixed);
        count.ok_or_else(|| format!("wants \"auto\" or a whole number from 1 to {}", Concurrency::MOST))
    }

    /// A list of texts; in the environment they are parted by commas.
    pub fn texts(&self) -> Result<Vec<String>, Wrong> {
        let texts: Option<Vec<String>> = match self {
            Given::Text(text) => Some(text.split(',').map(|text| text.trim().to_owned()).collect()),
            Given::Value(DeValue::Array(items)) => {
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            }
            Given::Value(_) => None,
        };
        let texts = texts.ok_or_else(|| "wants a list of texts, such as [\"marketing\"]".to_owned())?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    pub fn flag(&self) -> Result<bool, Wrong> {
        let flag = match self {
            Given::Text(text) => text.trim().parse().ok(),
            Given::Value(value) => value.as_bool(),
        };
        flag.ok_or_else(|| "wants true or false".to_owned())
    }
}
