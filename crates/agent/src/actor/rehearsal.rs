//! The rehearsal of a wake.
//!
//! A doze leaves in memory what the guest's last wake needed until its first answer. Of a guest that was never woken that is
//! not known, and its first wake takes every page from swap on its own, one after the other: the wake that matters most for
//! a standby. So its first doze is followed by a wake that nobody asked for. The pod's readiness probe stands for the
//! first request; what it touches is noted, and the guest is put to sleep again. The pod is on its way to Dozing all the
//! time, and whoever wants it meanwhile has it: it is awake.

use std::sync::Arc;
use std::time::Duration;

use dormouse_core::{Probe, ProbeAction, ProbeKind, Reason, Rung, Transition};
use dormouse_runtime::Driver as _;
use tokio_util::task::TaskTracker;

use super::Actor;
use super::save::StepFailed;
use super::step::{PROBES, Running};
use crate::clock;
use crate::probe::{Flows, Run, Target};
use crate::step_report::{Failure, StepReport};

/// How long the answer may take: a page after the other from a slow disk, and not a turn at the swap for ever.
const ANSWER: Duration = Duration::from_secs(1);

/// What is asked of a guest that is woken for a rehearsal.
pub(super) struct Rehearsal {
    flows: Arc<dyn Flows>,
    target: Target,
    probe: Probe,
}

impl Actor {
    /// What a step is to ask of the guest after its first doze; `None` for every other one, and where it has nothing to be
    /// asked for. A pod is asked once.
    pub(super) fn rehearsal(&mut self, transition: Transition, reason: Reason) -> Option<Rehearsal> {
        if transition != Transition::Doze || std::mem::replace(&mut self.rehearsed, true) {
            return None;
        }
        // What is saved must not run, and a node that is short of memory wants its own now.
        let must_not = self.state.exact || self.deaf || reason == Reason::MemoryPressure;
        if must_not || self.entry.last_wake.is_some() {
            return None;
        }
        let driver = self.kind.and_then(|kind| self.ctx.driver(kind))?;
        let (container_id, probe) = self.probing.question().filter(|_| driver.learns())?;
        Some(Rehearsal {
            flows: Arc::clone(&self.ctx) as _,
            target: Target {
                wire: self.wire.key().clone(),
                address: self.pod.addresses.first().copied(),
                container_id,
            },
            probe: Probe {
                timeout: probe.timeout.min(ANSWER),
                ..probe
            },
        })
    }
}

impl super::probing::Probing {
    /// A readiness probe over the network, of a container that runs.
    fn question(&self) -> Option<(String, Probe)> {
        let asked = |(id, probe): (&str, &Probe)| {
            let is_command = matches!(probe.action, ProbeAction::Exec { .. });
            (!is_command).then(|| (id.to_owned(), probe.clone()))
        };
        self.running(ProbeKind::Readiness).find_map(asked)
    }
}

impl Running {
    /// Wakes a guest that dozes for the first time, asks it something, notes what that took, and has it doze again.
    pub(super) async fn rehearse(
        &self,
        rehearsal: &Rehearsal,
        report: &mut StepReport,
    ) -> Result<(), StepFailed> {
        let began = clock::now();
        self.driver.wake(&self.guest).await?;
        fail::fail_point!("agent::rehearsal::awake");
        let left = TaskTracker::new();
        left.close();
        let run = Run {
            flows: Arc::clone(&rehearsal.flows),
            runtime: self.saving.ctx.runtime.clone(),
            target: rehearsal.target.clone(),
            stop: self.queue.clone(),
            alive: left.token(),
        };
        let answer = run.probe(&rehearsal.probe).await;
        drop(run);
        // What a connection still sends would meet a guest that sleeps.
        let is_over = tokio::time::timeout(PROBES, left.wait()).await.is_ok();
        if let Err(error) = self.driver.learn(&self.guest, &self.cancel).await {
            tracing::debug!(sandbox = self.guest.sandbox_id, reason = %error.reason, "{error}");
        }
        report.phase("rehearsal", clock::now().since(began));
        tracing::debug!(sandbox = self.guest.sandbox_id, ?answer, "a wake was rehearsed");
        if self.cancel.is_cancelled() {
            return Err(awake(Reason::WakeWon));
        }
        if !is_over {
            return Err(awake(Reason::GuestBusy));
        }
        self.freeze(report).await?;
        fail::fail_point!("agent::rehearsal::asleep");
        Ok(())
    }
}

/// The step ends with the guest running.
fn awake(reason: Reason) -> StepFailed {
    StepFailed {
        failure: Failure {
            reason,
            message: reason.meaning().trim().to_owned(),
        },
        rung: Some(Rung::Running),
    }
}
