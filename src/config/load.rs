//! Which configuration is in force, and how its layers are read: the defaults, the file, the environment.

use super::mappings::read_exported;
use super::settings::{GivenKey, Settings};
use super::{Config, ConfigError, Environment, Koala, Scope, VARIABLE, key};
use crate::mapping::{HashKey, Mappings};
use directories::ProjectDirs;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The configuration of the machine's own agent, for every user of it.
const SYSTEM_FILE: &str = "/etc/koala-agent/config.toml";
/// Where the machine's own agent looks for the key.
const SYSTEM_KEY_FILE: &str = "/etc/koala-agent/public-key";
/// Where the machine's own agent publishes its status.
const SYSTEM_STATUS_FILE: &str = "/run/koala-agent/status.json";
/// The systemd credential that holds the key.
const CREDENTIAL: &str = "koala-public-key";
/// The same with the key for hashes.
const HASH_CREDENTIAL: &str = "koala-hash-key";
/// A hundred times the commented defaults: more is no configuration but a file named by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

const NO_HOME: &str = "--user needs a home folder, and this user has none; set HOME";

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--user`
    pub user: bool,
}

/// The configuration in force: `--config`, else `$KOALA_AGENT_CONFIG`, else with `--user` the user's own,
/// else the system's; in it the environment goes before the file, and the file before the defaults.
///
/// The key is the first that is set of: `public_key` or `public_key_file` in the environment; the same in the
/// file; the systemd credential `koala-public-key`, unless it is empty; the default file, which is
/// `/etc/koala-agent/public-key`, or `public-key` in the user's own folder with `--user`.
///
/// Reads files and changes nothing, so a running daemon loads anew to reload.
///
/// # Errors
/// [`ConfigError`]; of an invalid configuration all problems at once.
pub fn load(options: &Options, env: &Environment) -> Result<Config, ConfigError> {
    load_among(&Folders::of_machine(), options, env)
}

/// Where configurations stand when none is named; tests own theirs.
pub(super) struct Folders {
    pub system_file: PathBuf,
    /// `None` where the user has no home.
    pub user: Option<UserFolders>,
}

pub(super) struct UserFolders {
    pub config: PathBuf,
    pub state: PathBuf,
    /// For as long as the user is logged in.
    pub runtime: Option<PathBuf>,
}

impl Folders {
    fn of_machine() -> Folders {
        let user = ProjectDirs::from("", "", "koala-agent").map(|dirs| UserFolders {
            config: dirs.config_dir().to_owned(),
            state: dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir()).to_owned(),
            runtime: dirs.runtime_dir().map(Path::to_owned),
        });
        Folders { system_file: PathBuf::from(SYSTEM_FILE), user }
    }
}

pub(super) fn load_among(
    folders: &Folders,
    options: &Options,
    env: &Environment,
) -> Result<Config, ConfigError> {
    let mut settings = Settings::default();
    let mut default_key_file = PathBuf::from(SYSTEM_KEY_FILE);
    let mut status_file = None;

    let by_option = options.config.clone().map(|path| (path, "--config"));
    let by_variable = || env.get(VARIABLE).map(|path| (PathBuf::from(path), VARIABLE));
    let named = by_option.or_else(by_variable);
    let (scope, path) = match &named {
        // The daemon may be asked to reload from another folder than it was started in.
        Some((path, _)) => match std::path::absolute(path).unwrap_or_else(|_| path.clone()) {
            // Naming the system's file is the same as naming none.
            path if path == folders.system_file => {
                status_file = Some(PathBuf::from(SYSTEM_STATUS_FILE));
                (Scope::System, path)
            }
            path => (Scope::Named, path),
        },
        None if options.user => {
            let Some(user) = &folders.user else { return Err(ConfigError::one(NO_HOME.to_owned())) };
            settings.spool.dir = user.state.join("spool");
            settings.outbox.path = user.state.join("outbox.db");
            default_key_file = user.config.join("public-key");
            status_file = user.runtime.as_ref().map(|runtime| runtime.join("status.json"));
            (Scope::User, user.config.join("config.toml"))
        }
        None => {
            status_file = Some(PathBuf::from(SYSTEM_STATUS_FILE));
            (Scope::System, folders.system_file.clone())
        }
    };

    let file = read(&path)?;
    if let (None, Some((_, named_by))) = (&file, named) {
        return Err(ConfigError::Missing { path, named_by });
    }
    let mut key_exposed = false;
    let mut key = None;
    if let Some((text, mode)) = &file {
        settings.read_file(&path, text);
        key = settings.take_key();
        key_exposed = matches!(key, Some(GivenKey::Text(..))) && mode & key::READABLE_BY_OTHERS != 0;
    }
    settings.read_environment(env);
    key = settings.take_key().or(key);
    settings.check_together();

    let mappings = mappings_of(&mut settings, &path);
    let hash_key_file = settings.hash_key_file.take();
    find_key(&mut settings, key, default_key_file.clone(), env);
    if !settings.problems.is_empty() {
        return Err(ConfigError::Invalid { problems: settings.problems });
    }

    let Settings { spool, outbox, mut koala, warnings, .. } = settings;
    if key_exposed {
        let shown = path.display();
        koala.key_warnings.push(format!(
            "everybody can read {shown}, which holds koala.public_key; run: chmod o-r {shown}"
        ));
    }
    let status_file = status_file.unwrap_or_else(|| beside(&outbox.path));
    let file_exists = file.is_some();
    let hash_key_file = hash_key_file.unwrap_or_else(|| {
        let credential = env.get("CREDENTIALS_DIRECTORY").map(|dir| Path::new(dir).join(HASH_CREDENTIAL));
        let given = credential.filter(|file| std::fs::metadata(file).is_ok_and(|file| file.len() > 1));
        given.unwrap_or_else(|| default_key_file.with_file_name("hash-key"))
    });
    let (mappings, mappings_lack) = with_hash_key(mappings, &hash_key_file);
    let mappings = Arc::new(mappings.with_consent(koala.consent_categories.clone()));
    Ok(Config {
        scope,
        path,
        file_exists,
        status_file,
        spool,
        outbox,
        koala,
        mappings,
        mappings_lack,
        key_exposed,
        warnings,
    })
}

/// What is written of mappings, else the presets.
fn mappings_of(settings: &mut Settings, config: &Path) -> Mappings {
    let mut definitions = std::mem::take(&mut settings.mappings);
    let file = settings.mappings_file.take();
    if definitions.is_empty() && file.is_none() {
        return Mappings::presets();
    }
    if let Some(file) = file {
        match read_exported(&config.with_file_name(file)) {
            Ok(exported) => definitions.extend(exported),
            Err(problem) => settings.problems.push(problem),
        }
    }
    Mappings::new(&definitions).unwrap_or_else(|flaws| {
        settings.problems.extend(flaws.iter().map(ToString::to_string));
        Mappings::presets()
    })
}

/// The mappings with the key in that file, if one of them hashes; what is wrong with the key else, and the fix.
fn with_hash_key(mappings: Mappings, file: &Path) -> (Mappings, Option<String>) {
    let Some(name) = mappings.iter().find(|mapping| mapping.hashes()).map(|mapping| mapping.name().clone())
    else {
        return (mappings, None);
    };
    let shown = file.display();
    let wrong = match key::read(file).map(|(bytes, _)| HashKey::new(&bytes)) {
        Ok(Ok(key)) => return (mappings.with_hash_key(key), None),
        Ok(Err(wrong)) => wrong.to_string(),
        Err(e) => format!("the file with its key cannot be read: {}", e.kind()),
    };
    let mend =
        format!("put 32 random characters into {shown}, and keep a copy: another key makes other hashes");
    (mappings, Some(format!("the mapping {name:?} hashes, and {wrong} ({shown}); {mend}")))
}

/// The text and the mode of a configuration file; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<(String, u32)>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::one(format!("{}: it is larger than 1 MiB", path.display())));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        ConfigError::one(format!("{}:{line}: it is not UTF-8", path.display()))
    })?;
    Ok(Some((text, mode)))
}

fn find_key(settings: &mut Settings, given: Option<GivenKey>, default: PathBuf, env: &Environment) {
    let koala = &mut settings.koala;
    let file = match given {
        Some(GivenKey::Text(key, place)) => {
            koala.public_key = Some(key);
            koala.key_source = place;
            return;
        }
        Some(GivenKey::File(file)) => file,
        None => {
            let credential = env.get("CREDENTIALS_DIRECTORY").map(|dir| Path::new(dir).join(CREDENTIAL));
            koala.key_file = credential;
            koala.key_source = format!("the credential {CREDENTIAL}");
            let read = koala.reread_key();
            // The unit gives an empty credential while there is no key.
            if koala.public_key.is_some() || read.is_err() {
                settings.problems.extend(read.err().map(|e| e.to_string()));
                return;
            }
            default
        }
    };
    koala.key_source = file.display().to_string();
    koala.key_file = Some(file);
    settings.problems.extend(koala.reread_key().err().map(|e| e.to_string()));
}

impl Koala {
    /// Reads the key's file again, if it comes from one: afterwards the key and its warnings are what the file
    /// gives now.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the file holds no key but something else; the key stays as it was.
    pub fn reread_key(&mut self) -> Result<(), ConfigError> {
        let Some(file) = &self.key_file else { return Ok(()) };
        let found = key::read_file(file).map_err(ConfigError::one)?;
        self.public_key = found.key;
        self.key_warnings = found.warnings;
        Ok(())
    }
}

/// Beside the outbox, for an agent that has no folder at run time.
fn beside(outbox: &Path) -> PathBuf {
    let mut path = OsString::from(outbox);
    path.push(".status.json");
    PathBuf::from(path)
}
