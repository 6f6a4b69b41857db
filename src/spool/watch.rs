//! The watcher: a hint that there is something to read, and the names of files that producers have finished.
//!
//! The system reports nothing on network file systems and bind mounts, and drops events when its queue overflows.
//! Therefore the periodic scan of the folder decides, and the watcher only makes it start early.

use nix::libc;
use notify::event::{AccessKind, AccessMode, ModifyKind, RemoveKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The most names kept between two scans. In a flood of more files, the scan finds the others a little later.
const MAX_ANNOUNCED: usize = 30_000;

/// Why the system does not watch a folder.
#[derive(Debug, thiserror::Error)]
pub enum NotWatched {
    /// This user's programs have as many instances of inotify as they may (inotify(7)).
    #[error("this user's programs have all instances of inotify that they may have")]
    Instances,
    /// They have as many files watched as they may.
    #[error("this user's programs have as many files watched as they may")]
    Watches,
    /// Anything else, in the words of the system.
    #[error("{0}")]
    Other(String),
}

impl From<notify::Error> for NotWatched {
    fn from(error: notify::Error) -> NotWatched {
        match &error.kind {
            notify::ErrorKind::MaxFilesWatch => NotWatched::Watches,
            notify::ErrorKind::Io(e) if e.raw_os_error() == Some(libc::EMFILE) => NotWatched::Instances,
            _ => NotWatched::Other(error.to_string()),
        }
    }
}

/// Watches one folder for as long as it lives.
pub struct Watcher {
    inner: Option<RecommendedWatcher>,
    announced: Arc<Mutex<HashSet<OsString>>>,
}

impl Watcher {
    /// Watches `dir` and calls `wake`, from another thread, whenever a file may have become readable. Where the system
    /// cannot watch, the second value says why, and the scan alone finds files.
    pub fn new(dir: &Path, wake: impl Fn() + Send + 'static) -> (Watcher, Option<NotWatched>) {
        let announced = Arc::new(Mutex::new(HashSet::new()));
        let (announcing, watched_dir) = (announced.clone(), dir.to_owned());
        let handler = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return wake() };
            let names = event.paths.iter().filter_map(|path| path.file_name());
            let mut finished = names.filter(|name| super::is_finished_name(name)).peekable();
            let is_about_finished = finished.peek().is_some();
            match event.kind {
                EventKind::Modify(ModifyKind::Name(RenameMode::To))
                | EventKind::Access(AccessKind::Close(AccessMode::Write))
                    if is_about_finished =>
                {
                    let mut names = announcing.lock().unwrap_or_else(PoisonError::into_inner);
                    for name in finished {
                        if names.len() < MAX_ANNOUNCED {
                            names.insert(name.to_owned());
                        }
                    }
                }
                // The mode of a file was changed, or a file was begun: worth a scan, but not finished.
                EventKind::Modify(ModifyKind::Metadata(_)) | EventKind::Create(_) if is_about_finished => {}
                // A folder inside was removed: the one who deletes the whole spool has not finished.
                EventKind::Remove(RemoveKind::Folder) if !event.paths.contains(&watched_dir) => return,
                // A file with two names may now have one.
                EventKind::Remove(_) | EventKind::Other => {}
                _ => return,
            }
            wake();
        };
        let watching = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watching {
            Ok(watcher) => (Watcher { inner: Some(watcher), announced }, None),
            Err(e) => (Watcher { inner: None, announced }, Some(e.into())),
        }
    }

    /// Watches the folder that has that name now, if the system could watch the former one.
    pub fn watch_again(&mut self, dir: &Path) {
        if let Some(watcher) = &mut self.inner {
            // The system ends a watch by itself when the folder is deleted, but not when it is moved.
            let _ = watcher.unwatch(dir);
            // If this fails, the scan alone finds files.
            let _ = watcher.watch(dir, RecursiveMode::NonRecursive);
        }
    }

    /// Takes the names of files that were finished since the last call.
    pub fn announced(&self) -> HashSet<OsString> {
        std::mem::take(&mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
