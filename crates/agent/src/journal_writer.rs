//! The one hand that writes the journal, so that an older word never overwrites a newer one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::journal::{Entry, Journal, JournalError};

type Done = oneshot::Sender<Result<(), JournalError>>;

#[derive(Debug)]
enum Job {
    Write(Box<Entry>, Option<Done>),
    Remove(String),
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// Writes journal entries on a thread of its own, in the order in which they were given.
#[derive(Debug)]
pub struct JournalWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl JournalWriter {
    /// Starts the writer.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(journal: Journal) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || work(&shared, &journal)
        })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes an entry behind the caller. One that waits still for the same pod is replaced.
    pub fn remember(&self, entry: Entry) {
        let mut queue = lock(&self.shared.queue);
        let last = queue.jobs.iter_mut().rev().find(|job| match job {
            Job::Write(waiting, _) => waiting.uid == entry.uid,
            Job::Remove(uid) => *uid == entry.uid,
        });
        match last {
            Some(Job::Write(waiting, None)) => **waiting = entry,
            _ => queue.jobs.push_back(Job::Write(Box::new(entry), None)),
        }
        self.shared.filled.notify_one();
    }

    /// Writes an entry, and says when it is durable.
    ///
    /// # Errors
    /// The entry could not be written; what was there before still is.
    pub async fn store(&self, entry: Entry) -> Result<(), JournalError> {
        self.begin(entry).durable().await
    }

    /// Begins to write an entry, while the caller does something else.
    pub fn begin(&self, entry: Entry) -> Noting {
        let (done, written) = oneshot::channel();
        lock(&self.shared.queue)
            .jobs
            .push_back(Job::Write(Box::new(entry), Some(done)));
        self.shared.filled.notify_one();
        Noting(written)
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        lock(&self.shared.queue)
            .jobs
            .push_back(Job::Remove(uid.to_owned()));
        self.shared.filled.notify_one();
    }

    /// Writes what is still waiting, and ends. Blocks.
    pub fn finish(&self) {
        lock(&self.shared.queue).closed = true;
        self.shared.filled.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            // A writer that panicked has nothing more to write.
            let _ = thread.join();
        }
    }
}

/// An entry that is being written.
#[derive(Debug)]
pub struct Noting(oneshot::Receiver<Result<(), JournalError>>);

impl Noting {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// The entry could not be written; what was there before still is.
    pub async fn durable(self) -> Result<(), JournalError> {
        self.0.await.unwrap_or(Err(JournalError::Stopped))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A queue of whole jobs cannot be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Shared, journal: &Journal) {
    loop {
        let mut queue = lock(&shared.queue);
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.closed {
                return;
            }
            queue = shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        match job {
            Job::Write(entry, Some(done)) => {
                let _ = done.send(journal.write(&entry));
            }
            Job::Write(entry, None) => {
                if let Err(error) = journal.write(&entry) {
                    tracing::error!(uid = %entry.uid, reason = %error.reason(), "{error}");
                }
            }
            Job::Remove(uid) => {
                if let Err(error) = journal.remove(&uid) {
                    tracing::warn!(%uid, reason = %error.reason(), "{error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3f2c9a52-0000-4000-8000-000000000001";

    #[tokio::test]
    async fn the_last_word_is_what_stays() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let writer = JournalWriter::start(journal.clone()).unwrap();
        for generation in 1..=50 {
            let entry = Entry {
                policy_generation: generation,
                ..Entry::new(UID, "abc")
            };
            if generation % 10 == 0 {
                writer.store(entry).await.unwrap();
            } else {
                writer.remember(entry);
            }
        }
        writer.finish();
        assert_eq!(journal.read(UID).unwrap().unwrap().policy_generation, 50);
    }

    #[tokio::test]
    async fn a_forgotten_pod_stays_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let writer = JournalWriter::start(journal.clone()).unwrap();
        writer.remember(Entry::new(UID, "abc"));
        writer.remove(UID);
        writer.finish();
        assert_eq!(journal.read(UID).unwrap(), None);
    }
}
