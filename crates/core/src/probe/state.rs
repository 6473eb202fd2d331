//! What follows from the results of a container's probes: the kubelet's rules, as a pure machine.
//!
//! * Until the startup probe has succeeded, the others wait.
//! * A result counts once it has come as often in a row as its threshold says.
//! * At first a container is not ready and counts as alive.
//! * A container that fails its liveness or startup probe is stopped, and that probe waits for the container that takes its
//!   place, which has a state of its own.
//!
//! Beside the kubelet's: while the guest sleeps, nothing runs and nothing changes; a run that was on its way counts for
//! nothing. With the wake all timers and all rows begin anew.

use super::{ContainerProbes, Probe, ProbeKind, ProbeOutcome};
use crate::Moment;

/// Names one run of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What a result has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeVerdict {
    /// The container has started: its startup probe has succeeded.
    Started,
    /// The container is ready from now on, or not any more.
    Ready(bool),
    /// The container is to be stopped: it has failed this probe.
    Stop(ProbeKind),
}

/// One probe on its way through a container's life.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Worker {
    kind: ProbeKind,
    probe: Probe,
    /// The last result, and how often it came in a row.
    row: Option<(bool, u32)>,
    /// The earliest moment of the next run; `None` while the guest sleeps.
    due: Option<Moment>,
    /// The end of the initial delay, which counts from the container's start whatever comes between.
    not_before: Moment,
    running: Option<Ticket>,
    /// Waits for another container.
    on_hold: bool,
}

/// The probes of one container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeState {
    workers: Vec<Worker>,
    started: bool,
    passed: bool,
    /// Whether it is to be stopped.
    failed: bool,
    next_ticket: u64,
}

impl ProbeState {
    /// A container that starts `now`.
    #[must_use]
    pub fn new(probes: &ContainerProbes, now: Moment) -> Self {
        let mut state = Self::at_rest(probes);
        for worker in &mut state.workers {
            worker.not_before = now.after(worker.probe.initial_delay);
            worker.due = Some(worker.not_before);
        }
        state
    }

    /// A container that was looked after before, as it stood then. Nothing runs before [`Self::resume`].
    #[must_use]
    pub fn recalled(probes: &ContainerProbes, started: bool, ready: bool) -> Self {
        let mut state = Self::at_rest(probes);
        state.started |= started;
        state.passed |= ready;
        state
    }

    fn at_rest(probes: &ContainerProbes) -> Self {
        let worker = |kind| {
            probes.get(kind).map(|probe| Worker {
                kind,
                probe: probe.clone(),
                row: None,
                due: None,
                not_before: Moment::default(),
                running: None,
                on_hold: false,
            })
        };
        Self {
            workers: ProbeKind::ALL.into_iter().filter_map(worker).collect(),
            started: probes.startup.is_none(),
            passed: probes.readiness.is_none(),
            failed: false,
            next_ticket: 0,
        }
    }

    /// Whether it has started.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        self.started
    }

    /// Whether its readiness probe says that it is ready, or it has none.
    #[must_use]
    pub const fn has_passed(&self) -> bool {
        self.passed
    }

    /// Whether it is ready: it has started, its readiness probe says so, and it is not about to be stopped.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.started && self.passed && !self.failed
    }

    /// Whether a probe of this kind may run at this stage of the container's life.
    const fn is_its_time(&self, kind: ProbeKind) -> bool {
        matches!(kind, ProbeKind::Startup) != self.started
    }

    fn waiting(&self) -> impl Iterator<Item = &Worker> {
        self.workers
            .iter()
            .filter(|worker| worker.running.is_none() && !worker.on_hold && self.is_its_time(worker.kind))
    }

    /// When the next run is due; `None` if none is before something else happens.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.waiting().filter_map(|worker| worker.due).min()
    }

    /// The runs that are due `now`; each is on its way from here on, until it has [`ended`](Self::ended).
    pub fn begin(&mut self, now: Moment) -> Vec<(ProbeKind, Ticket)> {
        let due: Vec<ProbeKind> = self
            .waiting()
            .filter(|worker| worker.due.is_some_and(|due| due <= now))
            .map(|worker| worker.kind)
            .collect();
        let mut begun = Vec::with_capacity(due.len());
        for worker in &mut self.workers {
            if due.contains(&worker.kind) {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                worker.running = Some(ticket);
                worker.due = Some(now.after(worker.probe.period));
                begun.push((worker.kind, ticket));
            }
        }
        begun
    }

    /// The probe of a kind, if it has one.
    #[must_use]
    pub fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        self.workers
            .iter()
            .find(|worker| worker.kind == kind)
            .map(|worker| &worker.probe)
    }

    /// Takes the result of a run. One that the guest has slept through since it began counts for nothing.
    pub fn ended(
        &mut self,
        kind: ProbeKind,
        ticket: Ticket,
        outcome: ProbeOutcome,
        now: Moment,
    ) -> Option<ProbeVerdict> {
        let worker = self.workers.iter_mut().find(|worker| worker.kind == kind)?;
        if worker.running != Some(ticket) {
            return None;
        }
        worker.running = None;
        let success = match outcome {
            ProbeOutcome::Success => true,
            ProbeOutcome::Failure => false,
            ProbeOutcome::Unknown => return None,
        };
        let times = match worker.row {
            Some((last, times)) if last == success => times.saturating_add(1),
            _ => 1,
        };
        worker.row = Some((success, times));
        let threshold = if success {
            worker.probe.success_threshold
        } else {
            worker.probe.failure_threshold
        };
        if times < threshold {
            return None;
        }
        match (kind, success) {
            (ProbeKind::Liveness, true) => None,
            (ProbeKind::Readiness, success) => {
                let changed = self.passed != success;
                self.passed = success;
                changed.then_some(ProbeVerdict::Ready(success))
            }
            (ProbeKind::Startup, true) => {
                worker.on_hold = true;
                self.started = true;
                for other in &mut self.workers {
                    // Delays count from the container's start; who waits for longer than that waits no longer.
                    other.due = other.due.map(|due| due.max(now));
                }
                Some(ProbeVerdict::Started)
            }
            (ProbeKind::Liveness | ProbeKind::Startup, false) => {
                worker.on_hold = true;
                self.failed = true;
                Some(ProbeVerdict::Stop(kind))
            }
        }
    }

    /// The guest falls asleep, or is held up: nothing runs, and what is on its way counts for nothing.
    pub fn pause(&mut self) {
        for worker in &mut self.workers {
            worker.running = None;
            worker.due = None;
            worker.row = None;
        }
    }

    /// The guest runs again: the next run of each probe is a period away. Nothing happens to one that was not paused.
    pub fn resume(&mut self, now: Moment) {
        for worker in &mut self.workers {
            if worker.due.is_none() {
                worker.due = Some(now.after(worker.probe.period).max(worker.not_before));
            }
        }
    }
}
