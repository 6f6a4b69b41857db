//! Removes files that are taken, off the intake's way: unlinking waits on the disk, and several threads wait at
//! once.

use crate::spool::{Removal, Spool, SpoolEntry, SpoolError};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads: an ordinary disk removes three times as many files on four as on one.
const THREADS: usize = 4;

/// Files that a thread takes up at once: few enough that the others have some as well, many enough that it is not woken
/// for each.
const AT_ONCE: usize = 16;

/// Files that wait for a thread, by so many at once. Whoever has more waits with them: a disk that removes slowly does
/// not fill memory.
const MAX_WAITING: usize = 10_000 / AT_ONCE;

/// A file that was to be removed, and what became of that.
pub type Done = (SpoolEntry, Result<Removal, SpoolError>);

/// The threads, and what they have done.
pub struct Remover {
    work: Option<SyncSender<Vec<SpoolEntry>>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

impl Remover {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(spool: &Spool) -> std::io::Result<Remover> {
        let (work, todo) = sync_channel::<Vec<SpoolEntry>>(MAX_WAITING);
        let (finished, done) = channel();
        let todo = Arc::new(Mutex::new(todo));
        let threads = (0..THREADS)
            .map(|_| {
                let (spool, todo, finished) = (spool.clone(), todo.clone(), finished.clone());
                std::thread::Builder::new().name("remover".into()).spawn(move || {
                    loop {
                        let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(entries) = next else { return };
                        for entry in entries {
                            let removal = spool.remove(&entry);
                            if finished.send((entry, removal)).is_err() {
                                return;
                            }
                        }
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Remover { work: Some(work), done, threads })
    }

    /// Removes files, sooner or later. Returns when there is room for them among those that wait.
    pub fn remove(&self, entries: Vec<SpoolEntry>) {
        let Some(work) = &self.work else { return };
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            // The threads end after this sender.
            let _ = work.send(entries.by_ref().take(AT_ONCE).collect());
        }
    }

    /// What was done since the last call.
    pub fn done(&self) -> impl Iterator<Item = Done> {
        self.done.try_iter()
    }

    /// Waits until everything is done.
    pub fn finish(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            // A panic has been logged by the panic hook.
            let _ = thread.join();
        }
    }
}
