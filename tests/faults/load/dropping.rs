//! How the files of the corpus come into the spool.

use super::corpus::File;
use crate::common::daemon::Daemon;
use std::fs::{self, OpenOptions};

/// Writes files beside the spool, with their times.
pub fn prepare(daemon: &Daemon, files: &[File]) {
    for file in files {
        let path = daemon.path("aside").join(&file.name);
        fs::write(&path, &file.bytes).unwrap();
        OpenOptions::new().write(true).open(path).unwrap().set_modified(file.modified).unwrap();
    }
}

/// Returns what renames prepared files into the spool, one after the other.
pub fn dropping(daemon: &Daemon, files: &[File]) -> impl FnOnce() + Send + 'static {
    let (aside, spool) = (daemon.path("aside"), daemon.spool());
    let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
    move || {
        for name in names {
            fs::rename(aside.join(&name), spool.join(&name)).unwrap();
        }
    }
}
