//! Several agents of the system side by side: the name of one, and its places.
//!
//! An instance is one more agent of the system and not a scope of its own: it has the same user, the same rights and the
//! same unit, with its name in every place. A scope of its own would double each rule about the system's agent.

use super::{OutboxConfig, SpoolConfig};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest name: with it, the names of all files and units stay well below the 255 bytes of a file system.
const MAX_LENGTH: usize = 64;
/// The folder of the configurations and keys of the system's agents.
const ETC: &str = "/etc/koala-agent";
/// The unit of the agent without a name.
const UNIT: &str = "koala-agent";

/// The name of one of several agents of the system: `[a-z][a-z0-9_-]*`, and not `config`, whose configuration would be that
/// of the agent without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(String);

impl FromStr for Instance {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Instance, &'static str> {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_allowed) {
            return Err("a name begins with a small letter and consists of small letters, digits, _ and -");
        }
        if name.len() > MAX_LENGTH {
            return Err("a name has at most 64 characters");
        }
        if name == "config" {
            return Err("this name would mean the configuration of the agent without a name");
        }
        Ok(Instance(name.to_owned()))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The unit of the system's agent, or of one of its instances.
pub fn unit_of(instance: Option<&Instance>) -> String {
    instance.map_or_else(|| UNIT.to_owned(), |name| format!("{UNIT}@{name}"))
}

/// The key file of the system's agent without a name.
pub fn system_key_file() -> PathBuf {
    SystemPlaces::of(None).key_file
}

/// The places of the system's agent, or of one of its instances.
pub(super) struct SystemPlaces {
    /// The name of the configuration in the folder of configurations.
    pub config_name: String,
    pub key_file: PathBuf,
    pub hash_key_file: PathBuf,
    pub spool: PathBuf,
    pub outbox: PathBuf,
    pub status_file: PathBuf,
}

impl SystemPlaces {
    pub fn of(instance: Option<&Instance>) -> SystemPlaces {
        let in_etc =
            |plain: &str| instance.map_or_else(|| plain.to_owned(), |name| format!("{name}.{plain}"));
        let folder = |plain: &Path| {
            let mut folder = OsString::from(plain);
            if let Some(name) = instance {
                folder.push(format!("-{name}"));
            }
            PathBuf::from(folder)
        };
        let outbox = OutboxConfig::default().path;
        let (state, database) = (outbox.parent(), outbox.file_name());
        SystemPlaces {
            config_name: instance.map_or_else(|| "config.toml".to_owned(), |name| format!("{name}.toml")),
            key_file: Path::new(ETC).join(in_etc("public-key")),
            hash_key_file: Path::new(ETC).join(in_etc("hash-key")),
            spool: folder(&SpoolConfig::default().dir),
            outbox: folder(state.unwrap_or(&outbox)).join(database.unwrap_or_default()),
            status_file: folder(Path::new("/run/koala-agent")).join("status.json"),
        }
    }

    /// The folder of the configurations.
    pub fn etc() -> &'static Path {
        Path::new(ETC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_every_place() {
        for name in ["a", "emea", "shop-2", "eu_west-1", &"n".repeat(64)] {
            assert_eq!(name.parse::<Instance>().unwrap().to_string(), name);
        }
        for name in
            ["", "2", "-a", "_a", "A", "shop.eu", "a b", "a/b", "..", "é", "a@b", "config", &"n".repeat(65)]
        {
            assert!(name.parse::<Instance>().is_err(), "{name}");
        }
    }

    #[test]
    fn no_two_agents_share_a_place() {
        let name: Instance = "shop".parse().unwrap();
        let (own, named) = (SystemPlaces::of(None), SystemPlaces::of(Some(&name)));
        let places = |places: SystemPlaces| {
            [places.key_file, places.hash_key_file, places.spool, places.outbox, places.status_file]
                .map(|place| place.display().to_string())
        };
        assert_eq!(
            places(own),
            [
                "/etc/koala-agent/public-key",
                "/etc/koala-agent/hash-key",
                "/var/spool/koala-agent",
                "/var/lib/koala-agent/outbox.db",
                "/run/koala-agent/status.json"
            ]
        );
        assert_eq!(
            places(named),
            [
                "/etc/koala-agent/shop.public-key",
                "/etc/koala-agent/shop.hash-key",
                "/var/spool/koala-agent-shop",
                "/var/lib/koala-agent-shop/outbox.db",
                "/run/koala-agent-shop/status.json"
            ]
        );
        assert_eq!((unit_of(None), unit_of(Some(&name))), ("koala-agent".into(), "koala-agent@shop".into()));
    }
}
