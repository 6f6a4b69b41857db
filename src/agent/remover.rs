//! Removes stored files on threads of its own, because unlinking waits for the disk and the intake should not.

use crate::clock::Mono;
use crate::spool::{KeptFile, Removal, Spool, SpoolEntry, SpoolError};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// An ordinary disk removes three times as many files on four threads as on one.
const THREADS: usize = 4;

/// Files that a thread takes at once: few enough that the other threads get some, enough that it is not woken for each.
const CHUNK: usize = 16;

/// Chunks that wait for a thread. The caller blocks on more, so that a slow disk does not fill the memory.
const MAX_WAITING: usize = 10_000 / CHUNK;

/// A file to be removed.
#[derive(Debug)]
pub enum RemovalTask {
    /// A file of the spool, all of which is stored.
    Remove(SpoolEntry),
    /// A file that has left the spool and may still be written to.
    Check {
        file: KeptFile,
        /// Since when it has been still.
        since: Mono,
        /// Whether that is long enough.
        is_quiet: bool,
    },
}

/// A task and its result.
pub type RemovalResult = (RemovalTask, Result<Removal, SpoolError>);

/// The threads and their results.
pub struct Remover {
    work: Option<SyncSender<Vec<RemovalTask>>>,
    results: Receiver<RemovalResult>,
    threads: Vec<JoinHandle<()>>,
}

impl Remover {
    /// # Errors
    /// The system has no more threads.
    pub fn start(spool: &Spool) -> std::io::Result<Remover> {
        let (work, chunks) = sync_channel::<Vec<RemovalTask>>(MAX_WAITING);
        let (finished, results) = channel();
        let chunks = Arc::new(Mutex::new(chunks));
        let threads = (0..THREADS)
            .map(|_| {
                let (spool, chunks, finished) = (spool.clone(), chunks.clone(), finished.clone());
                std::thread::Builder::new().name("remover".into()).spawn(move || {
                    loop {
                        let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(tasks) = next else { return };
                        for task in tasks {
                            let result = match &task {
                                RemovalTask::Remove(entry) => spool.remove(entry),
                                RemovalTask::Check { file, is_quiet, .. } => {
                                    spool.check_kept(file, *is_quiet)
                                }
                            };
                            if finished.send((task, result)).is_err() {
                                return;
                            }
                        }
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Remover { work: Some(work), results, threads })
    }

    /// Has files removed. Returns once all of them are being removed or wait for a thread.
    pub fn remove(&self, tasks: impl IntoIterator<Item = RemovalTask>) {
        let Some(work) = &self.work else { return };
        let mut tasks = tasks.into_iter().peekable();
        while tasks.peek().is_some() {
            // The threads outlive this sender.
            let _ = work.send(tasks.by_ref().take(CHUNK).collect());
        }
    }

    /// The results since the last call.
    pub fn results(&self) -> impl Iterator<Item = RemovalResult> {
        self.results.try_iter()
    }

    /// Waits until all files are removed.
    pub fn finish(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            // The panic hook has logged a panic.
            let _ = thread.join();
        }
    }
}
