//! The environment variables that a configuration is read from.

use super::PREFIX;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// The environment variables in force, collected once; tests own theirs. One that is empty counts as not set,
/// as a shell or a container file leaves it. There is no `Debug`: a value may be the public key.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Environment {
        std::env::vars_os().collect()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// The variables that begin with the agent's prefix; a name that is not UTF-8 is shown as well as it can be.
    pub(super) fn ours(&self) -> impl Iterator<Item = (String, &OsStr)> {
        let named =
            self.0.iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value.as_os_str()));
        named.filter(|(name, _)| name.starts_with(PREFIX))
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Environment {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Environment(variables.filter(|(_, value): &(_, OsString)| !value.is_empty()).collect())
    }
}
