//! Finds the configuration file and reads the layers: the defaults, the file, the environment.

use super::builder::{ConfigBuilder, KeySetting};
use super::instance::{Instance, SystemPlaces, unit_of};
use super::mappings::read_exported;
use super::{Config, ConfigError, Environment, Scope, VARIABLE, key};
use crate::mapping::{HashKey, Mappings};
use directories::ProjectDirs;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The systemd credential that holds the key.
const CREDENTIAL: &str = "koala-public-key";
/// The systemd credential that holds the key for hashes.
const HASH_CREDENTIAL: &str = "koala-hash-key";
/// The largest configuration file: a hundred times the size of the commented defaults. A larger file was named by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

const NO_HOME: &str = "--user needs a home folder, and this user has none; set HOME";

/// The options of the command line that choose the configuration.
#[derive(Debug, Clone, Default)]
pub struct ConfigOptions {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--user`
    pub user: bool,
    /// `--instance`
    pub instance: Option<Instance>,
}

impl ConfigOptions {
    /// The options `--config FILE`.
    pub fn with_file(file: impl Into<PathBuf>) -> ConfigOptions {
        ConfigOptions { config: Some(file.into()), ..ConfigOptions::default() }
    }
}

/// Loads the configuration in force. The file is that of `--config` or `--instance`, else of `$KOALA_AGENT_CONFIG`, else
/// with `--user` that of the user, else that of the system. The environment overrides the file, and the file overrides the
/// defaults.
///
/// The key is the first that is set of: `public_key` or `public_key_file` in the environment; the same in the file; the
/// systemd credential `koala-public-key`, unless it is empty; the default file, which is `/etc/koala-agent/public-key`,
/// `/etc/koala-agent/NAME.public-key` with `--instance NAME`, or `public-key` in the user's own folder with `--user`.
///
/// Loading reads files and changes nothing, so a running daemon reloads by loading again.
///
/// # Errors
/// [`ConfigError`]. For an invalid configuration it lists all problems.
pub fn load(options: &ConfigOptions, env: &Environment) -> Result<Config, ConfigError> {
    load_among(&Folders::of_machine(), options, env)
}

/// Like [`load`], where the file that an option or a variable names need not exist yet.
///
/// # Errors
/// [`ConfigError`], except [`ConfigError::Missing`].
pub fn load_before_it_exists(options: &ConfigOptions, env: &Environment) -> Result<Config, ConfigError> {
    let folders = Folders::of_machine();
    let selection = select(&folders, options, env)?;
    load_selected(&folders, Selection { named_by: None, ..selection }, env)
}

/// The places of configurations when none is named; tests make their own.
pub(super) struct Folders {
    pub etc: PathBuf,
    /// `None` if the user has no home.
    pub user: Option<UserFolders>,
}

pub(super) struct UserFolders {
    pub config: PathBuf,
    pub state: PathBuf,
    /// A folder that exists while the user is logged in.
    pub runtime: Option<PathBuf>,
}

impl Folders {
    fn of_machine() -> Folders {
        let user = ProjectDirs::from("", "", "koala-agent").map(|dirs| UserFolders {
            config: dirs.config_dir().to_owned(),
            state: dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir()).to_owned(),
            runtime: dirs.runtime_dir().map(Path::to_owned),
        });
        Folders { etc: SystemPlaces::etc().to_owned(), user }
    }
}

/// The configuration file that is in force.
struct Selection {
    scope: Scope,
    path: PathBuf,
    /// The option or variable that names the file, if one does. Such a file must exist: of a name with a slip in it, the
    /// defaults would be another agent's.
    named_by: Option<&'static str>,
    instance: Option<Instance>,
}

fn select(folders: &Folders, options: &ConfigOptions, env: &Environment) -> Result<Selection, ConfigError> {
    let system_file = |instance| folders.etc.join(SystemPlaces::of(instance).config_name);
    if let Some(name) = &options.instance {
        let path = system_file(Some(name));
        let named_by = Some("--instance");
        return Ok(Selection { scope: Scope::System, path, named_by, instance: Some(name.clone()) });
    }
    let by_option = options.config.clone().map(|path| (path, "--config"));
    let by_variable = || env.get(VARIABLE).map(|path| (PathBuf::from(path), VARIABLE));
    if let Some((path, named_by)) = by_option.or_else(by_variable) {
        // The path is made absolute, since the daemon may have another working folder when it reloads.
        let path = std::path::absolute(&path).unwrap_or(path);
        // Naming the system's file has the same effect as naming none.
        let scope = if path == system_file(None) { Scope::System } else { Scope::Named };
        return Ok(Selection { scope, path, named_by: Some(named_by), instance: None });
    }
    let (scope, path) = match (options.user, &folders.user) {
        (false, _) => (Scope::System, system_file(None)),
        (true, Some(user)) => (Scope::User, user.config.join("config.toml")),
        (true, None) => return Err(ConfigError::one(NO_HOME.to_owned())),
    };
    Ok(Selection { scope, path, named_by: None, instance: None })
}

pub(super) fn load_among(
    folders: &Folders,
    options: &ConfigOptions,
    env: &Environment,
) -> Result<Config, ConfigError> {
    load_selected(folders, select(folders, options, env)?, env)
}

fn load_selected(folders: &Folders, selection: Selection, env: &Environment) -> Result<Config, ConfigError> {
    let Selection { scope, path, named_by, instance } = selection;
    let mut builder = ConfigBuilder::default();
    let places = SystemPlaces::of(instance.as_ref());
    let (key_file, hash_key_file, status_file) = match (scope, &folders.user) {
        (Scope::User, Some(user)) => {
            builder.spool.dir = user.state.join("spool");
            builder.outbox.path = user.state.join("outbox.db");
            let status_file = user.runtime.as_ref().map(|runtime| runtime.join("status.json"));
            (user.config.join("public-key"), user.config.join("hash-key"), status_file)
        }
        (Scope::System, _) => {
            builder.spool.dir = places.spool;
            builder.outbox.path = places.outbox;
            (places.key_file, places.hash_key_file, Some(places.status_file))
        }
        (Scope::User | Scope::Named, _) => (places.key_file, places.hash_key_file, None),
    };

    let file = match (read_config(&path), named_by) {
        (Ok(None), Some(named_by)) => return Err(ConfigError::Missing { path, named_by }),
        (Err(ConfigError::Invalid { problems, .. }), _) => {
            builder.problems = problems;
            None
        }
        (file, _) => file?,
    };
    let mut key_exposed = false;
    let mut key = None;
    if let Some((text, mode)) = &file {
        builder.read_file(&path, text);
        key = builder.take_key();
        key_exposed = matches!(key, Some(KeySetting::Text(..))) && mode & key::READABLE_BY_OTHERS != 0;
    }
    builder.read_environment(env);
    key = builder.take_key().or(key);
    builder.check_together();

    let mappings = build_mappings(&mut builder, &path);
    let hash_key_setting = builder.hash_key_file.take();
    builder.koala.unit = (scope == Scope::System).then(|| unit_of(instance.as_ref()));
    read_key(&mut builder, key, key_file, env);
    let ConfigBuilder { spool, outbox, mut koala, warnings, problems, .. } = builder;
    if key_exposed {
        let shown = path.display();
        koala.key_warnings.push(format!(
            "everybody can read {shown}, which holds koala.public_key; run: chmod o-r {shown}"
        ));
    }
    let status_file = status_file.unwrap_or_else(|| beside(&outbox.path, ".status.json"));
    let private_status_file = beside(&outbox.path, ".private-status.json");
    let file_exists = file.is_some();
    let hash_key_file = hash_key_setting.unwrap_or_else(|| {
        let credential = env.get("CREDENTIALS_DIRECTORY").map(|dir| Path::new(dir).join(HASH_CREDENTIAL));
        // Without a key the unit passes a credential of one line end.
        let filled = credential.filter(|file| std::fs::metadata(file).is_ok_and(|file| file.len() > 1));
        filled.unwrap_or(hash_key_file)
    });
    let (mappings, mappings_lack) = with_hash_key(mappings, &hash_key_file, &mut koala.key_warnings);
    let mappings = Arc::new(mappings.with_consent(koala.consent_categories.clone()));
    let config = Config {
        scope,
        instance,
        path,
        file_exists,
        file_digest: file.map(|(text, _)| FileDigest::of(text.as_bytes())),
        is_broken: !problems.is_empty(),
        status_file,
        private_status_file,
        spool,
        outbox,
        koala,
        mappings,
        mappings_lack,
        key_exposed,
        warnings,
    };
    match problems.is_empty() {
        true => Ok(config),
        false => Err(ConfigError::Invalid { problems, rest: Some(Box::new(config)) }),
    }
}

/// The mappings that are configured, or the presets if there are none.
fn build_mappings(builder: &mut ConfigBuilder, config: &Path) -> Mappings {
    let mut definitions = std::mem::take(&mut builder.mappings);
    let file = builder.mappings_file.take();
    if definitions.is_empty() && file.is_none() {
        return Mappings::presets();
    }
    if let Some(file) = file {
        match read_exported(&config.with_file_name(file)) {
            Ok(exported) => definitions.extend(exported),
            Err(problem) => builder.problems.push(problem),
        }
    }
    Mappings::new(&definitions).unwrap_or_else(|flaws| {
        builder.problems.extend(flaws.iter().map(ToString::to_string));
        Mappings::presets()
    })
}

/// Gives the mappings the key in that file, if one of them hashes. Also returns the problem with the key and the fix, if
/// there is one; a warning about the file goes to `warnings`.
fn with_hash_key(mappings: Mappings, file: &Path, warnings: &mut Vec<String>) -> (Mappings, Option<String>) {
    let Some(name) = mappings.iter().find(|mapping| mapping.hashes()).map(|mapping| mapping.name().clone())
    else {
        return (mappings, None);
    };
    let shown = file.display();
    let problem = match key::read(file).map(|(bytes, mode)| (HashKey::new(&bytes), mode)) {
        Ok((Ok(key), mode)) => {
            warnings.extend(key::exposed(file, mode, "the key for hashes"));
            return (mappings.with_hash_key(key), None);
        }
        Ok((Err(invalid), _)) => invalid.to_string(),
        Err(e) if e.kind() == ErrorKind::NotFound => "there is no file with its key".to_owned(),
        Err(e) => format!("the file with its key cannot be read: {}", e.kind()),
    };
    let fix =
        format!("put 32 random characters into {shown}, and keep a copy: another key makes other hashes");
    (mappings, Some(format!("the mapping {name:?} uses @hash, but {problem} ({shown}); {fix}")))
}

/// The content of a configuration file, to tell whether another one has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest([u8; 32]);

impl FileDigest {
    fn of(content: &[u8]) -> FileDigest {
        FileDigest(Sha256::digest(content).into())
    }
}

/// The content of the configuration file now; `None` if it cannot be read.
pub fn digest_of(path: &Path) -> Option<FileDigest> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).ok()?;
    Some(FileDigest::of(&content))
}

/// Reads the text and the mode of a configuration file; `None` if there is no such file.
fn read_config(path: &Path) -> Result<Option<(String, u32)>, ConfigError> {
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
        return Err(ConfigError::one(format!("{}: the file is larger than 1 MiB", path.display())));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        ConfigError::one(format!("{}:{line}: the file is not UTF-8", path.display()))
    })?;
    Ok(Some((text, mode)))
}

/// Reads the key from the setting, else from the credential, else from the default file.
fn read_key(builder: &mut ConfigBuilder, setting: Option<KeySetting>, default: PathBuf, env: &Environment) {
    let koala = &mut builder.koala;
    let file = match setting {
        Some(KeySetting::Text(key, place)) => {
            koala.public_key = Some(key);
            koala.key_source = place;
            return;
        }
        Some(KeySetting::File(file)) => file,
        None => {
            let credential = env.get("CREDENTIALS_DIRECTORY").map(|dir| Path::new(dir).join(CREDENTIAL));
            koala.key_file = credential;
            koala.key_source = format!("the credential {CREDENTIAL}");
            koala.reread_key();
            // The unit passes an empty credential while there is no key.
            if koala.public_key.is_some() || !koala.key_warnings.is_empty() {
                return;
            }
            default
        }
    };
    koala.key_source = file.display().to_string();
    koala.key_file = Some(file);
    koala.reread_key();
}

/// A file beside the outbox.
fn beside(outbox: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(outbox);
    path.push(suffix);
    PathBuf::from(path)
}
