//! Tests of the configuration.

mod layers;
mod refusals;
mod secrets;

use super::load::{Folders, UserFolders, load_among};
use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A machine with its folders and without a configuration.
struct World {
    dir: tempfile::TempDir,
    folders: Folders,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let user = UserFolders {
            config: dir.path().join("user"),
            state: dir.path().join("state"),
            runtime: Some(dir.path().join("runtime")),
        };
        fs::create_dir(dir.path().join("user")).unwrap();
        World { folders: Folders { etc: dir.path().to_owned(), user: Some(user) }, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.at(name), text).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o640)).unwrap();
        self.at(name)
    }

    fn load(&self, options: &ConfigOptions, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        load_among(&self.folders, options, &env.iter().copied().collect())
    }

    fn system(&self, env: &[(&str, &str)]) -> Config {
        self.load(&ConfigOptions::default(), env).unwrap()
    }

    fn user(&self, env: &[(&str, &str)]) -> Config {
        self.load(&ConfigOptions { user: true, ..ConfigOptions::default() }, env).unwrap()
    }

    fn named(&self, name: &str) -> ConfigOptions {
        ConfigOptions::with_file(self.at(name))
    }

    /// The error for a system configuration with that text, without the name of the folder.
    fn refusal(&self, text: &str, env: &[(&str, &str)]) -> String {
        self.write("config.toml", text);
        let error = self.load(&ConfigOptions::default(), env).unwrap_err();
        assert!(matches!(error, ConfigError::Invalid { .. }), "{error:?}");
        error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }
}
