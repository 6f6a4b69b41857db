//! `koala-agent check --producer`: tries to drop a file as another user, and names what prevents it.
//!
//! Root starts this program once more, and that process becomes the user for good: to change the user of one thread and
//! back is not portable, and a mistake in it would leave root's rights to the rest of the check. The file is named
//! `.check-…`, so the agent never takes it for events.

use super::remedy::{Remedy, spool_remedy};
use super::{CliError, CommandContext, ExitCode, output};
use crate::config::{Config, Scope};
use crate::spool::{let_agent_read, shell_quoted};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, access, getgroups, initgroups, setgid, setuid};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a drop as the producer went.
#[derive(Debug, Serialize, Deserialize)]
pub enum DropTrial {
    /// The file is there, under this path.
    Dropped(PathBuf),
    /// A folder on the way to the spool lets the user not pass.
    NoWay(PathBuf),
    /// The user may not create files in the spool; whether it is in the spool's group.
    Denied {
        /// Whether the user is in the group of the spool.
        is_in_group: bool,
    },
    /// Another error of the system.
    Failed(String),
}

/// Tries to drop a file as the user, in a process of its own.
///
/// # Errors
/// This process is not root's, or there is no such user.
pub fn try_drop(context: &CommandContext, config: &Config, user: &str) -> Result<DropTrial, CliError> {
    if !Uid::effective().is_root() {
        let text = "only root can try to drop a file as another user".to_owned();
        return Err(CliError::Denied { text, command: Some(context.sudo_line()) });
    }
    find_user(user)?;
    let failed =
        |e: io::Error| CliError::new(ExitCode::Io, format!("cannot try to drop a file as {user}: {e}"));
    let output = Command::new(std::env::current_exe().map_err(failed)?)
        .args(["check", "--producer", user, "--drop-into"])
        .arg(&config.spool.dir)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed)?;
    serde_json::from_slice(&output.stdout).map_err(|e| failed(e.into()))
}

/// Becomes the user, drops a file, and prints how that went: the half of [`try_drop`] in a process of its own.
///
/// # Errors
/// There is no such user, or this process cannot become it.
pub fn drop_as(user: &str, dir: &Path) -> Result<ExitCode, CliError> {
    let user = find_user(user)?;
    let failed = |e: Errno| CliError::new(ExitCode::Io, format!("cannot become {}: {e}", user.name));
    let name = CString::new(user.name.clone()).unwrap_or_default();
    initgroups(&name, user.gid).map_err(failed)?;
    setgid(user.gid).map_err(failed)?;
    setuid(user.uid).map_err(failed)?;
    let trial = match drop_file(dir) {
        Ok(path) => DropTrial::Dropped(path),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => denied(dir),
        Err(e) => DropTrial::Failed(e.to_string()),
    };
    output::print(&(serde_json::to_string(&trial).map_err(io::Error::from)? + "\n"))?;
    Ok(ExitCode::Success)
}

fn find_user(name: &str) -> Result<User, CliError> {
    let failed = |text: String| CliError::new(ExitCode::NotFound, text);
    let found = User::from_name(name).map_err(|e| failed(format!("cannot look up the user {name}: {e}")))?;
    found.ok_or_else(|| failed(format!("there is no user {name}")))
}

/// Drops a file as the manual page says: written aside, with mode 0640, then renamed.
fn drop_file(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.join(format!(".check-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let renamed = dir.join(format!(".check-{}-dropped", std::process::id()));
    let done = file
        .set_permissions(Permissions::from_mode(0o640))
        .and_then(|()| file.write_all(b"{}\n"))
        .and_then(|()| fs::rename(&aside, &renamed));
    if done.is_err() {
        let _ = fs::remove_file(&aside);
    }
    done.map(|()| renamed)
}

/// What denies the user of this process a file in the folder.
fn denied(dir: &Path) -> DropTrial {
    let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
    above.reverse();
    if let Some(closed) = above.into_iter().find(|folder| access(*folder, AccessFlags::X_OK).is_err()) {
        return DropTrial::NoWay(closed.to_owned());
    }
    let groups = getgroups().unwrap_or_default();
    let is_in_group =
        fs::metadata(dir).is_ok_and(|meta| groups.iter().any(|group| group.as_raw() == meta.gid()));
    DropTrial::Denied { is_in_group }
}

/// The remedy for a spool that its producers cannot use.
fn open_spool(config: &Config, user: &str) -> Remedy {
    match config.scope {
        Scope::System => spool_remedy(config),
        Scope::User | Scope::Named => {
            let spool = config.spool.dir.display();
            Remedy::text(format!(
                "give {spool} the mode 3730, and a group with both {user} and the agent's user"
            ))
        }
    }
}

impl DropTrial {
    /// Whether the drop went well and the agent, the user of this process, can read the file and remove it, which this
    /// does.
    ///
    /// # Errors
    /// What prevents it, and the fix.
    pub fn result(self, config: &Config, user: &str) -> Result<(), (String, Remedy)> {
        let dir = &config.spool.dir;
        let spool = dir.display();
        match self {
            DropTrial::Dropped(path) => {
                let read = File::open(&path).map(drop);
                let command = let_agent_read(&path, dir);
                let removed = fs::remove_file(&path);
                if let Err(e) = read {
                    let text =
                        format!("{user} can drop files in {spool}, and the agent cannot read them: {e}");
                    let fix = format!("{user} can drop each so that the agent can read it, as by {command}");
                    return Err((
                        text,
                        Remedy::text(format!("{fix}; or root can {}", open_spool(config, user))),
                    ));
                }
                removed.map_err(|e| {
                    (
                        format!("the agent cannot remove the files of {user} in {spool}: {e}"),
                        spool_remedy(config),
                    )
                })
            }
            DropTrial::NoWay(folder) => {
                let command = format!("chmod o+x {}", shell_quoted(folder.as_os_str()));
                let text = format!("{user} cannot reach {spool}: {} is closed to it", folder.display());
                Err((text, Remedy::run("the owner of that folder can open it", command)))
            }
            DropTrial::Denied { is_in_group } => {
                let text = format!("{user} may not put files into {spool}");
                let group = fs::metadata(dir).ok().filter(|meta| meta.mode() & 0o030 == 0o030);
                let group = group.and_then(|meta| Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten());
                Err((
                    text,
                    match group {
                        Some(group) if !is_in_group => {
                            let command =
                                format!("usermod -aG {} {}", group.name, shell_quoted(OsStr::new(user)));
                            Remedy::run(format!("let {user} drop files, who then logs in again"), command)
                        }
                        _ => open_spool(config, user),
                    },
                ))
            }
            DropTrial::Failed(error) => {
                Err((format!("{user} cannot put files into {spool}: {error}"), spool_remedy(config)))
            }
        }
    }
}
