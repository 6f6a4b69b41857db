//! The watcher: a hint that something is there to be read, and which names were announced as finished.
//!
//! It reports nothing on network file systems and bind mounts and loses events when it overflows, so the
//! truth is the folder itself, read at every interval.

use notify::event::{AccessKind, AccessMode, ModifyKind, RemoveKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Names remembered between two looks at the folder; more than that land only in a flood, and then the rest are
/// found by the scan, a little later.
const MAX_ANNOUNCED: usize = 100_000;

/// Watches one folder for as long as it lives.
pub struct Watcher {
    inner: Option<RecommendedWatcher>,
    announced: Arc<Mutex<HashSet<OsString>>>,
}

impl Watcher {
    /// Watches `dir`, calling `wake` (from another thread) whenever something happened that may let a file be
    /// read. Where the system cannot watch, the second value says why; everything is then found by the scan.
    pub fn new(dir: &Path, wake: impl Fn() + Send + 'static) -> (Watcher, Option<String>) {
        let announced = Arc::new(Mutex::new(HashSet::new()));
        let (told, itself) = (announced.clone(), dir.to_owned());
        let handler = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return wake() };
            let names = event.paths.iter().filter_map(|path| path.file_name());
            let mut finished = names.filter(|name| super::is_finished_name(name)).peekable();
            let is_of_finished = finished.peek().is_some();
            match event.kind {
                EventKind::Modify(ModifyKind::Name(RenameMode::To))
                | EventKind::Access(AccessKind::Close(AccessMode::Write))
                    if is_of_finished =>
                {
                    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                    for name in finished {
                        if told.len() < MAX_ANNOUNCED {
                            told.insert(name.to_owned());
                        }
                    }
                }
                // A file made readable, a file begun: looked at again, not announced.
                EventKind::Modify(ModifyKind::Metadata(_)) | EventKind::Create(_) if is_of_finished => {}
                // A folder in it: whoever deletes the whole is not done yet.
                EventKind::Remove(RemoveKind::Folder) if !event.paths.contains(&itself) => return,
                // The other name of a file may be gone.
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
            Err(e) => (Watcher { inner: None, announced }, Some(e.to_string())),
        }
    }

    /// Watches the folder that has that name now, if the system could watch the one before it.
    pub fn watch_again(&mut self, dir: &Path) {
        if let Some(watcher) = &mut self.inner {
            // The system gives the watch up by itself when a folder is deleted, and not when it is moved.
            let _ = watcher.unwatch(dir);
            // What is not watched is found by the scan.
            let _ = watcher.watch(dir, RecursiveMode::NonRecursive);
        }
    }

    /// The names that were announced as finished since the last call.
    pub fn announced(&self) -> HashSet<OsString> {
        std::mem::take(&mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
