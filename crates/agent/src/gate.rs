//! Node-wide admission: lets steps through as `dormouse_core::Admission` decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_core::{Admission, AdmissionLimits, Claim, ClaimKind, Memory, Reason, Verdict};
use tokio::sync::oneshot;

use crate::memory;

/// The node's one gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    admission: Admission,
    next_id: u64,
    waiting: HashMap<u64, oneshot::Sender<()>>,
}

/// Leave to run one step; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    id: u64,
}

impl Gate {
    /// A gate that lets through what `limits` allow.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            admission: Admission::new(limits),
            next_id: 0,
            waiting: HashMap::new(),
        })))
    }

    /// Waits for leave to run a step. Dropping the future gives the place in the queue back.
    ///
    /// # Errors
    /// `InsufficientMemory` if a wake or a shell has no room, `Internal` if the node's memory cannot be read.
    pub async fn enter(&self, kind: ClaimKind, bytes: u64) -> Result<Permit, Reason> {
        // Only what brings memory in has to know how much there is.
        let available = if matches!(kind, ClaimKind::Wake | ClaimKind::Shell) && bytes > 0 {
            memory::available().map_err(|_| Reason::Internal)?
        } else {
            u64::MAX
        };
        let (permit, turn) = {
            let mut inner = self.lock();
            inner.next_id += 1;
            let id = inner.next_id;
            match inner
                .admission
                .ask(Claim { id, kind, bytes }, Memory { available })
            {
                Verdict::Run => {
                    return Ok(Permit {
                        gate: self.clone(),
                        id,
                    });
                }
                Verdict::Refuse(reason) => return Err(reason),
                Verdict::Wait => {}
            }
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(id, sender);
            (
                Permit {
                    gate: self.clone(),
                    id,
                },
                receiver,
            )
        };
        // The sender lives in the gate until it is used; should it vanish, the step may as well run.
        let _ = turn.await;
        Ok(permit)
    }

    /// How many steps run, and how many wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        self.lock().admission.load()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in a locked section can leave the queue half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        inner.waiting.remove(&self.id);
        for admitted in inner.admission.done(self.id) {
            if let Some(waiting) = inner.waiting.remove(&admitted) {
                // A receiver that is gone drops its permit, which gives the place back.
                let _ = waiting.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(AdmissionLimits {
            wakes: 1,
            page_outs: 1,
            saves: 1,
            reserve: 0,
        })
    }

    #[tokio::test]
    async fn one_at_a_time_and_places_are_given_back() {
        let gate = gate();
        let first = gate.enter(ClaimKind::PageOut, 0).await.unwrap();
        let second = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(ClaimKind::PageOut, 0).await.map(|_| ()) }
        });
        let third = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(ClaimKind::PageOut, 0).await.map(|_| ()) }
        });
        while gate.load() != (1, 2) {
            tokio::task::yield_now().await;
        }
        second.abort();
        let _ = second.await;
        assert_eq!(gate.load(), (1, 1));
        drop(first);
        third.await.unwrap().unwrap();
        assert_eq!(gate.load(), (0, 0));
    }

    #[tokio::test]
    async fn a_wake_without_room_is_refused() {
        assert_eq!(
            gate().enter(ClaimKind::Wake, u64::MAX / 2).await.map(|_| ()),
            Err(Reason::InsufficientMemory)
        );
        assert!(gate().enter(ClaimKind::Wake, 0).await.is_ok());
    }
}
