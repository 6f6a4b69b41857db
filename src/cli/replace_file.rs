//! Replaces a file as a whole.

use nix::unistd::{Gid, Uid, fchown};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The owner and the mode of a file.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// `None`: the user of this process.
    pub owner: Option<Uid>,
    /// `None`: the group of this process.
    pub group: Option<Gid>,
    /// The permission bits.
    pub mode: u32,
}

/// A file that is on the disk as a whole, under another name, to be put in the place of one that has its own. Dropped before
/// that, it is deleted, and nothing has changed.
pub struct Replacement {
    aside: NamedTempFile,
    path: PathBuf,
}

impl Replacement {
    /// Writes the file with this access. Missing folders are created.
    ///
    /// # Errors
    /// The system's.
    pub fn prepare(path: &Path, content: &[u8], access: Access) -> io::Result<Replacement> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let folder = folder_of(&path);
        fs::create_dir_all(folder)?;
        // Nobody else can open it before it has its owner and mode.
        let mut aside = tempfile::Builder::new()
            .prefix(".koala-agent-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(folder)?;
        fchown(aside.as_file(), access.owner, access.group)?;
        aside.write_all(content)?;
        aside.as_file().set_permissions(Permissions::from_mode(access.mode))?;
        aside.as_file().sync_all()?;
        Ok(Replacement { aside, path })
    }

    /// Gives the file its name. When this returns `Ok`, that is durable; when it returns an error, the former file is
    /// untouched. A symbolic link stays, and its target is replaced.
    ///
    /// # Errors
    /// The system's.
    pub fn put_in_place(self) -> io::Result<()> {
        self.aside.persist(&self.path).map_err(|e| e.error)?;
        File::open(folder_of(&self.path))?.sync_all()
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_content_and_the_mode_are_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/key");
        let access = |mode| Access { owner: None, group: None, mode };
        for (content, mode) in [(&b"first"[..], 0o644), (b"second", 0o400), (b"third", 0o600)] {
            Replacement::prepare(&path, content, access(mode)).unwrap().put_in_place().unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
        let link = dir.path().join("link");
        symlink("new/key", &link).unwrap();
        Replacement::prepare(&link, b"through the link", access(0o600)).unwrap().put_in_place().unwrap();
        drop(Replacement::prepare(&path, b"given up", access(0o600)).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"through the link");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }
}
