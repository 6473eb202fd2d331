//! What the index remembers between one list and the next loss of containerd: which pods to look at, and
//! when. No I/O but for the search for a container's pod.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::CallError;
use crate::feed::{Fed, Feed};
use crate::look::Pids;
use crate::pod::Pod;
use crate::runtime::Runtime;
use crate::signal::Signal;

/// When a pod is looked at again where the CRI has no events: its store follows containerd's events with a
/// delay.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// When a pod whose end was announced is looked at again, if it is still there; each time twice as long, up to 1,024 times.
const STILL_THERE: Duration = Duration::from_millis(25);

/// The most process ids and undelivered signals that are remembered for pods not known yet.
const MAX_REMEMBERED: usize = 4096;

/// What a task of the session found.
#[derive(Debug)]
pub(crate) enum Done {
    /// A look at a pod; `None` = it is gone.
    Looked {
        sandbox_id: String,
        result: Box<Result<Option<Pod>, CallError>>,
    },
    /// The search for the pod sandbox of a container.
    Found {
        container_id: String,
        result: Result<Option<String>, CallError>,
    },
}

/// One session with containerd.
#[derive(Debug)]
pub(crate) struct Session {
    /// Whether the subscription is in force.
    pub(crate) live: bool,
    /// Whether the CRI has events, as far as is known.
    pub(crate) cri: bool,
    /// Whether one has come.
    pub(crate) cri_heard: bool,
    /// Looks and searches under way.
    pub(crate) tasks: JoinSet<Done>,
    /// Signals that came before the list.
    early: Vec<Signal>,
    /// Pods to look at, and when.
    due: HashMap<String, Instant>,
    /// The same for second looks.
    due_again: HashMap<String, Instant>,
    looking: HashSet<String>,
    /// Failed looks in a row.
    failures: HashMap<String, u32>,
    /// Pods whose end was announced, and how often they have been found since.
    leaving: HashMap<String, u32>,
    /// Signals for pods that are about to be looked at.
    waiting: HashMap<String, Vec<Signal>>,
    /// Signals of containers whose pod is searched for.
    puzzles: HashMap<String, Vec<Signal>>,
    remembered: usize,
    pids: Pids,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            live: false,
            cri: true,
            cri_heard: false,
            tasks: JoinSet::new(),
            early: Vec::new(),
            due: HashMap::new(),
            due_again: HashMap::new(),
            looking: HashSet::new(),
            failures: HashMap::new(),
            leaving: HashMap::new(),
            waiting: HashMap::new(),
            puzzles: HashMap::new(),
            remembered: 0,
            pids: Arc::default(),
        }
    }

    /// Takes in what came before the list.
    pub(crate) fn early(&mut self, fed: Fed, feed: &Feed) {
        match fed {
            Fed::Live => {
                self.live = true;
                feed.heard();
            }
            Fed::CriUnsupported => self.cri = false,
            Fed::Cri {
                sandbox_id,
                container_id,
                deleted,
            } => {
                self.cri_heard = true;
                // Of all else the list that follows says more.
                if deleted && sandbox_id == container_id && self.leaving.len() < MAX_REMEMBERED {
                    self.leaves(&sandbox_id);
                }
            }
            Fed::Signal(signal) => {
                if self.early.len() < MAX_REMEMBERED {
                    self.early.push(signal);
                }
            }
        }
    }

    pub(crate) fn take_early(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.early)
    }

    pub(crate) fn pids(&self) -> Pids {
        Arc::clone(&self.pids)
    }

    pub(crate) fn remember_pid(&mut self, container_id: &str, pid: i32) {
        let pids = Arc::make_mut(&mut self.pids);
        if pids.len() >= MAX_REMEMBERED {
            // They are a short cut only: a look asks for what is not here.
            pids.clear();
        }
        pids.insert(container_id.to_owned(), pid);
    }

    pub(crate) fn forget_pid(&mut self, container_id: &str) {
        if self.pids.contains_key(container_id) {
            Arc::make_mut(&mut self.pids).remove(container_id);
        }
    }

    /// Has a pod looked at in at most `wait`.
    pub(crate) fn touch(&mut self, sandbox_id: &str, wait: Duration) {
        let at = Instant::now() + wait;
        self.due
            .entry(sandbox_id.to_owned())
            .and_modify(|due| *due = at.min(*due))
            .or_insert(at);
    }

    /// Has a pod looked at a second time, later.
    pub(crate) fn touch_again(&mut self, sandbox_id: &str) {
        self.due_again
            .insert(sandbox_id.to_owned(), Instant::now() + SECOND_LOOK);
    }

    /// When the next look is due; `None` if none is, or only at pods that are being looked at now.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due
            .iter()
            .chain(&self.due_again)
            .filter(|(id, _)| !self.looking.contains(*id))
            .map(|(_, at)| *at)
            .min()
    }

    /// A pod that is due, now marked as being looked at.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<String> {
        for due in [&mut self.due, &mut self.due_again] {
            let found = due
                .iter()
                .find(|(id, at)| **at <= now && !self.looking.contains(*id))
                .map(|(id, _)| id.clone());
            if let Some(sandbox_id) = found {
                due.remove(&sandbox_id);
                self.looking.insert(sandbox_id.clone());
                return Some(sandbox_id);
            }
        }
        None
    }

    /// A look is over; returns the signals that waited for it.
    pub(crate) fn looked(&mut self, sandbox_id: &str) -> Vec<Signal> {
        self.looking.remove(sandbox_id);
        let signals = self.waiting.remove(sandbox_id).unwrap_or_default();
        self.remembered = self.remembered.saturating_sub(signals.len());
        signals
    }

    /// The CRI announces the end of a pod. It does so before it forgets the pod (containerd asks its NRI plugins between the
    /// two: `internal/cri/server/sandbox_remove.go`) and says nothing afterwards, so the pod is looked at until it is gone.
    pub(crate) fn leaves(&mut self, sandbox_id: &str) {
        self.leaving.entry(sandbox_id.to_owned()).or_insert(0);
    }

    /// A look has found a pod, or that it is gone.
    pub(crate) fn succeeded(&mut self, sandbox_id: &str, found: bool) {
        self.failures.remove(sandbox_id);
        if !found {
            self.leaving.remove(sandbox_id);
        } else if let Some(looks) = self.leaving.get_mut(sandbox_id) {
            let wait = STILL_THERE * 2u32.pow((*looks).min(10));
            *looks = looks.saturating_add(1);
            self.touch(sandbox_id, wait);
        }
    }

    /// A look failed: has it done again later, and says when.
    pub(crate) fn failed(&mut self, sandbox_id: &str) -> Duration {
        let failures = self.failures.entry(sandbox_id.to_owned()).or_insert(0);
        let wait = Duration::from_secs(1) * 2u32.pow((*failures).min(5));
        *failures = failures.saturating_add(1);
        self.touch(sandbox_id, wait);
        wait
    }

    /// Keeps a signal of a container that is not known, and has its pod searched for.
    pub(crate) fn puzzle(&mut self, signal: Signal, runtime: &Runtime) {
        let container_id = signal.container_id().to_owned();
        let searching = self.puzzles.contains_key(&container_id);
        let signals = self.puzzles.entry(container_id.clone()).or_default();
        // What only says "look" is said by the look that follows.
        if !matches!(signal, Signal::Touched { .. } | Signal::TaskStarted { .. })
            && self.remembered < MAX_REMEMBERED
        {
            self.remembered += 1;
            signals.push(signal);
        }
        if !searching {
            let runtime = runtime.clone();
            self.tasks.spawn(async move {
                let result = runtime.sandbox_of(&container_id).await;
                Done::Found { container_id, result }
            });
        }
    }

    /// The search for a container's pod is over: has that pod looked at.
    ///
    /// No such container may mean a pod sandbox, whose own container the CRI does not list.
    pub(crate) fn found(&mut self, container_id: &str, sandbox_id: Option<String>) {
        let signals = self.puzzles.remove(container_id).unwrap_or_default();
        let sandbox_id = sandbox_id.unwrap_or_else(|| container_id.to_owned());
        if !signals.is_empty() {
            self.waiting
                .entry(sandbox_id.clone())
                .or_default()
                .extend(signals);
        }
        self.touch(&sandbox_id, Duration::ZERO);
        if !self.cri || !self.cri_heard {
            self.touch_again(&sandbox_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn touches_are_collected_and_never_overlap() {
        let mut session = Session::new();
        session.touch("a", Duration::from_millis(15));
        session.touch("a", Duration::from_millis(500));
        let first = session.next_due().unwrap();
        assert_eq!(first - Instant::now(), Duration::from_millis(15));
        assert_eq!(session.take_due(Instant::now()), None);
        tokio::time::advance(Duration::from_millis(15)).await;
        assert_eq!(session.take_due(Instant::now()).as_deref(), Some("a"));
        // An event during the look makes another one, after it.
        session.touch("a", Duration::ZERO);
        assert_eq!(session.take_due(Instant::now()), None);
        assert_eq!(session.next_due(), None);
        session.looked("a");
        assert_eq!(session.take_due(Instant::now()).as_deref(), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_looks_wait_longer_and_longer() {
        let mut session = Session::new();
        let waits: Vec<u64> = (0..7).map(|_| session.failed("a").as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_end_was_announced_is_looked_at_until_it_is_gone() {
        let mut session = Session::new();
        session.succeeded("a", true);
        assert_eq!(session.next_due(), None, "nobody said that it goes");
        session.leaves("a");
        let mut waits = Vec::new();
        for _ in 0..13 {
            session.succeeded("a", true);
            let due = session.next_due().unwrap();
            waits.push((due - Instant::now()).as_millis());
            tokio::time::advance(due - Instant::now()).await;
            assert_eq!(session.take_due(Instant::now()).as_deref(), Some("a"));
            session.looked("a");
        }
        assert_eq!(waits[..4], [25, 50, 100, 200]);
        assert_eq!(waits[10..], [25_600; 3]);
        session.succeeded("a", false);
        assert_eq!(session.next_due(), None);
        // Should its name be used again, nothing is left of this.
        session.succeeded("a", true);
        assert_eq!(session.next_due(), None);
    }

    #[tokio::test]
    async fn signals_wait_for_the_look_at_their_pod() {
        let mut session = Session::new();
        let runtime = Runtime::lazy("/nowhere").unwrap();
        let exec = Signal::ExecStarted {
            container_id: "c".into(),
            exec_id: "e".into(),
        };
        session.puzzle(exec.clone(), &runtime);
        session.puzzle(
            Signal::Touched {
                container_id: "c".into(),
            },
            &runtime,
        );
        assert_eq!(session.tasks.len(), 1);
        session.found("c", Some("s".into()));
        assert_eq!(session.take_due(Instant::now()).as_deref(), Some("s"));
        assert_eq!(session.looked("s"), [exec]);
    }
}
