//! The files of the spool that the agent does not take, and what the owner of each can do about it.
//!
//! The advice is for the file's owner and never for root: the folder is open to everybody who drops files, so whoever
//! owns a name in it may have put a link there by the time that root acts on it.

use super::names::{format_of, is_finished_name, shell_quoted};
use super::{REJECTED, irregularity, printable, user_name};
use nix::unistd::{AccessFlags, Gid, Group, Uid, access, getegid, geteuid, getgroups};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file that stays in the spool until its owner does something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftFile {
    /// The name in the folder.
    pub name: OsString,
    /// The uid of the file's owner.
    pub owner: u32,
    /// Why the file is left.
    pub why: WhyLeft,
    /// What its owner can do about it: "… can", without a full stop.
    pub fix: String,
    /// The line that its owner runs for that, where one line does it.
    pub command: Option<String>,
}

/// Why a file is left where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyLeft {
    /// The agent's user may not read it; with its mode.
    Unreadable(u32),
    /// Its name does not say a format.
    UnknownName,
    /// It is not a regular file with one name, but this.
    Irregular(&'static str),
}

impl WhyLeft {
    /// The sentence for people.
    pub fn text(self) -> String {
        match self {
            WhyLeft::Unreadable(mode) => {
                format!("the agent's user may not read it: its mode is {:04o}", mode & 0o7777)
            }
            WhyLeft::UnknownName => "its name says no format".to_owned(),
            WhyLeft::Irregular(what) => {
                format!("it is {what}, and only regular files with one name are read")
            }
        }
    }
}

/// The files that are left among the first `limit` names of the folder, in its order, as the user of this process meets
/// them: it must be the agent's.
///
/// # Errors
/// The folder cannot be read.
pub fn left_files(dir: &Path, limit: usize) -> io::Result<impl Iterator<Item = LeftFile>> {
    // Files may go at any time.
    Ok(fs::read_dir(dir)?.take(limit).filter_map(move |item| {
        let item = item.ok()?;
        LeftFile::of(dir, item.file_name(), &item.metadata().ok()?)
    }))
}

impl LeftFile {
    fn of(dir: &Path, name: OsString, meta: &Metadata) -> Option<LeftFile> {
        if !is_finished_name(&name) || name == REJECTED {
            return None;
        }
        let path = dir.join(&name);
        let quoted = quoted(&path);
        let (why, fix, command) = if let Some(what) = irregularity(meta) {
            let (fix, command) = if meta.is_symlink() {
                ("drop the file itself in place of the link", Some(format!("rm {quoted}")))
            } else if meta.is_file() {
                ("remove its other name, or drop a copy of it", None)
            } else {
                ("take it away, and drop events as files", None)
            };
            (WhyLeft::Irregular(what), fix.to_owned(), command)
        } else if format_of(&name).is_none() {
            let to = dir.join(name_with_format(&name));
            let command = format!("mv -nT {quoted} {}", self::quoted(&to));
            (
                WhyLeft::UnknownName,
                "give it a name with its format once it is complete".to_owned(),
                Some(command),
            )
        } else if access(&path, AccessFlags::R_OK).is_err() {
            let command = let_agent_read(&path, dir);
            (WhyLeft::Unreadable(meta.mode()), "let the agent read it".to_owned(), Some(command))
        } else {
            return None;
        };
        Some(LeftFile { name, owner: meta.uid(), why, fix, command })
    }
}

/// The name without what a transfer tool has put behind its ending; else with the ending of a file of lines.
fn name_with_format(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    if let Some(at) = memchr::memrchr(b'.', bytes)
        && format_of(OsStr::from_bytes(&bytes[..at])).is_some()
    {
        return OsStr::from_bytes(&bytes[..at]).to_owned();
    }
    let mut longer = name.to_owned();
    longer.push(".jsonl");
    longer
}

/// The line that the owner of a file runs so that the agent, the user of this process, may read it.
pub fn let_agent_read(path: &Path, spool_dir: &Path) -> String {
    let quoted = quoted(path);
    let group_of = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.gid()).ok();
    let Some(group) = group_of(spool_dir).filter(|gid| is_ours(*gid)) else {
        return format!("setfacl -m u:{}:r {quoted}", user_name(geteuid().as_raw()));
    };
    if group_of(path) == Some(group) {
        return format!("chmod g+r {quoted}");
    }
    let name = Group::from_gid(Gid::from_raw(group)).ok().flatten();
    let name = name.map_or_else(|| group.to_string(), |group| printable(group.name));
    format!("chgrp {name} {quoted} && chmod g+r {quoted}")
}

/// Whether the user of this process is in that group.
fn is_ours(gid: u32) -> bool {
    getegid().as_raw() == gid
        || Uid::effective().is_root()
        || getgroups().is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == gid))
}

fn quoted(path: &Path) -> String {
    shell_quoted(printable(path).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn each_file_that_is_left_has_a_fix_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in
            ["good.json", ".begun", "begun.tmp", "up.jsonl.filepart", "notes", "two.json", "private.json"]
        {
            fs::write(path(name), "{}").unwrap();
        }
        fs::hard_link(path("two.json"), path(".other")).unwrap();
        symlink("/etc/passwd", path("link.json")).unwrap();
        fs::create_dir(path("folder.json")).unwrap();
        fs::create_dir(path(REJECTED)).unwrap();
        fs::set_permissions(path("private.json"), Permissions::from_mode(0o000)).unwrap();
        let mut left: Vec<_> = left_files(dir.path(), usize::MAX).unwrap().collect();
        left.sort_by(|a, b| a.name.cmp(&b.name));
        let home = dir.path().display().to_string();
        let found: Vec<_> = left
            .iter()
            .map(|file| {
                let command = file.command.as_deref().unwrap_or_default().replace(&format!("{home}/"), "");
                (file.name.to_str().unwrap(), file.why, command)
            })
            .collect();
        let mut expected = vec![
            ("folder.json", WhyLeft::Irregular("a folder"), String::new()),
            ("link.json", WhyLeft::Irregular("a symbolic link"), "rm link.json".to_owned()),
            ("notes", WhyLeft::UnknownName, "mv -nT notes notes.jsonl".to_owned()),
            ("private.json", WhyLeft::Unreadable(0o100_000), "chmod g+r private.json".to_owned()),
            ("two.json", WhyLeft::Irregular("a file with a second hard link"), String::new()),
            ("up.jsonl.filepart", WhyLeft::UnknownName, "mv -nT up.jsonl.filepart up.jsonl".to_owned()),
        ];
        if Uid::effective().is_root() {
            // Root may read every file.
            expected.retain(|(name, ..)| *name != "private.json");
        }
        assert_eq!(found, expected);
        assert!(left.iter().all(|file| file.owner == geteuid().as_raw()));
    }
}
