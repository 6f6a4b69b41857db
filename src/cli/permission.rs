//! Permission to change the outbox: root has it, and the user that the agent runs as.

use super::{CliError, CommandContext, ExitCode, output::escaped};
use crate::config::{Config, Scope};
use crate::outbox::SERVICE_USER;
use nix::unistd::{Gid, Uid, User, setgid, setuid};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

/// The user that the agent runs as: the owner of the folder of the outbox, or of the folder in which it will be created.
/// Not that of the outbox, which root may have put back. `None`: the folder is hidden from the user of this process, who
/// is therefore another one.
pub fn service_user(config: &Config) -> Option<Uid> {
    let by_name = || User::from_name(SERVICE_USER).ok().flatten().map(|user| user.uid);
    for (up, path) in config.outbox.path.ancestors().enumerate().skip(1) {
        // systemd creates the state folder when the service first starts.
        let future_owner = (up > 1 && config.scope == Scope::System).then(by_name).flatten();
        if future_owner.is_some() {
            return future_owner;
        }
        match fs::metadata(path) {
            // systemd would give it to the service at its next start.
            Ok(meta) if meta.uid() == 0 && config.scope == Scope::System => {
                return Some(by_name().unwrap_or(Uid::from_raw(0)));
            }
            Ok(meta) => return Some(Uid::from_raw(meta.uid())),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    None
}

/// Checks that the user of this process is root or the one that the agent runs as; `operation` is for the message.
///
/// # Errors
/// It is another user; the error has the command line that would work.
pub fn may_change(context: &CommandContext, config: &Config, operation: &str) -> Result<(), CliError> {
    let me = Uid::effective();
    let service = service_user(config);
    if me.is_root() || service == Some(me) {
        return Ok(());
    }
    let name = service.and_then(|uid| User::from_uid(uid).ok().flatten()).map(|user| user.name);
    let who = match name.as_deref().or((config.scope == Scope::System).then_some(SERVICE_USER)) {
        Some("root") => "root".to_owned(),
        Some(name) => format!("root or {}", escaped(name)),
        None => "root or the user that the agent runs as".to_owned(),
    };
    Err(CliError::Denied { text: format!("only {who} may {operation}"), command: Some(context.sudo_line()) })
}

/// Changes from root to the user that the agent runs as, for good, so that permissions are checked as the agent meets
/// them and new files belong to it.
///
/// # Errors
/// The system refuses the change.
pub fn become_service(config: &Config) -> Result<(), CliError> {
    let Some(uid) = service_user(config).filter(|uid| Uid::effective().is_root() && !uid.is_root()) else {
        return Ok(());
    };
    let failed = |e: nix::Error| {
        CliError::new(ExitCode::Io, format!("cannot change to the user {uid} of the agent: {e}"))
    };
    let user = User::from_uid(uid).map_err(failed)?;
    if let Some(user) = user {
        #[cfg(target_os = "linux")]
        {
            let name = std::ffi::CString::new(user.name).unwrap_or_default();
            nix::unistd::initgroups(&name, user.gid).map_err(failed)?;
        }
        setgid(user.gid).map_err(failed)?;
    } else {
        setgid(Gid::from_raw(uid.as_raw())).map_err(failed)?;
    }
    setuid(uid).map_err(failed)
}

/// The name of the user of this process, or its number if it has no name.
pub fn my_name() -> String {
    let me = Uid::effective();
    User::from_uid(me).ok().flatten().map_or_else(|| me.to_string(), |user| user.name)
}
