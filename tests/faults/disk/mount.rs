//! File systems of one's own: small ones, to be filled, and such that fail.

use crate::machine::{needs_root, run};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system that is mounted for as long as this lives.
pub struct Mount {
    at: PathBuf,
    /// An ext4 is in this file.
    image: Option<tempfile::TempDir>,
}

impl Mount {
    /// A tmpfs with these options on that folder, which is made if it is not there.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn tmpfs(at: &Path, options: &str) -> Result<Mount, String> {
        let mount = Mount::folder(at, None)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&mount.at))?;
        Ok(mount)
    }

    /// An ext4 of so many MiB on that folder: an error that it finds makes it read-only.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn ext4(at: &Path, mib: u64) -> Result<Mount, String> {
        let image = tempfile::tempdir().unwrap();
        File::create(image.path().join("ext4")).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path().join("ext4")))?;
        let mount = Mount::folder(at, Some(image))?;
        mount.attach()?;
        Ok(mount)
    }

    fn folder(at: &Path, image: Option<tempfile::TempDir>) -> Result<Mount, String> {
        needs_root()?;
        fs::create_dir_all(at).unwrap();
        Ok(Mount { at: at.to_owned(), image })
    }

    fn attach(&self) -> Result<(), String> {
        let image = self.image.as_ref().unwrap().path().join("ext4");
        run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(image).arg(&self.at))
    }

    /// Changes its options.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.at)).unwrap();
    }

    /// The kernel finds an error in this ext4, and lets nobody write any more.
    ///
    /// # Errors
    /// Why that cannot be done here.
    pub fn find_error(&self) -> Result<(), String> {
        let device = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.at).output().unwrap();
        let device = String::from_utf8(device.stdout).unwrap();
        let name = device.trim().rsplit('/').next().unwrap().to_owned();
        let switch = PathBuf::from("/sys/fs/ext4").join(name).join("trigger_fs_error");
        fs::write(&switch, "a test").map_err(|e| format!("{}: {e}", switch.display()))
    }

    /// Repairs it as an administrator would. Nobody may have anything open there.
    pub fn repair(&self) {
        run(Command::new("umount").arg(&self.at)).unwrap();
        // Exit code 1 says that errors were fixed.
        let image = self.image.as_ref().unwrap().path().join("ext4");
        let checked = Command::new("fsck.ext4").args(["-f", "-p"]).arg(image).output().unwrap();
        assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
        self.attach().unwrap();
    }

    /// Other programs take every byte that is free, until [`Mount::relieve`].
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        let mut piece = vec![b'x'; 1 << 20];
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(written) if written > 0 => {}
                _ => piece.truncate(piece.len() / 2),
            }
        }
    }

    pub fn relieve(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.at.join(".filler")
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        koala_agent::disk::space_of(&self.filler()).unwrap().free
    }
}

impl Drop for Mount {
    /// Also under an agent that still runs, where a fault has failed.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}
