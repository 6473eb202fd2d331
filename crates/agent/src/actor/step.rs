//! Runs one step through a driver, behind the actor's back, and reports how it went.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_core::{Abilities, ClaimKind, Input, Reason, Rung, ShellSight, StepEnd, Transition, WakeSource};
use dormouse_runtime::{AnyDriver, Cancel, Driver as _, Guest, StopState};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::rehearsal::Rehearsal;
use super::save::{Saving, StepFailed};
use super::{Actor, Message};
use crate::clock::{self, now_ms};
use crate::gate::{Gate, Permit};
use crate::journal::WakeEntry;
use crate::pressure::Room;
use crate::step_report::{Failure, Phase, StepReport};
use crate::view::NewsKind;

/// Of a pod that has less than this in memory, in bytes, it is not said that little of it could be pushed out.
const SMALL: u64 = 64 << 20;

/// How long a step waits for the end of the probes that were on their way.
pub(super) const PROBES: Duration = Duration::from_secs(3);

impl Actor {
    /// Starts a step; its end comes back as a message.
    pub(super) fn start(&mut self, transition: Transition, reason: Reason) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        self.step_cancel = Cancel::new();
        self.step_queue = CancellationToken::new();
        self.step_hurry = CancellationToken::new();
        self.step_began = clock::now();
        self.entry.moving_to = self.state.moving_to();
        if transition.wakes_for().is_some() {
            self.prefetch_cancel.cancel();
        }
        let refused = match transition {
            Transition::MakeShell => self.take_shell_place().err(),
            _ => None,
        };
        if transition == Transition::EndShell || transition.wakes_for().is_some() {
            self.unwatch_shell();
        }
        if matches!(transition, Transition::Save | Transition::Snapshot) {
            // So that an agent after this one knows that there was something to put back.
            self.remember();
        }
        // The same, and durable before the guest is ended: who makes the pod's sandbox anew, after the node went down in the
        // middle of it, has only this to know by that the pod's memory may be in a snapshot.
        let noting = (transition == Transition::Hibernate).then(|| self.ctx.writer.begin(self.entry.clone()));
        tracing::debug!(pod = %self.pod.full_name(), ?transition, %reason, "step begins");
        let step = Running {
            driver,
            guest: Arc::clone(&self.guest),
            cancel: self.step_cancel.clone(),
            queue: self.step_queue.clone(),
            hurry: self.step_hurry.clone(),
            // Nobody waits for what idleness alone led to.
            policys: reason == Reason::IdleTimeout,
            gate: self.ctx.gate.clone(),
            rung: self.state.rung,
            refused,
            probes: self.probing.runs(),
            rehearsal: self.rehearsal(transition, reason),
            // Only what had left RAM needs room there again.
            bytes: match transition {
                Transition::MakeShell => crate::shells::ESTIMATE,
                _ if self.state.rung >= Rung::Dozing => self.entry.resident_before,
                _ => 0,
            },
            saving: Saving {
                ctx: Arc::clone(&self.ctx),
                pod: Arc::clone(&self.pod),
                line: self.line(),
                snapshot: self.entry.snapshot.clone(),
                restored_from: self.entry.restored_from.clone(),
                exact: self.state.exact,
                deaf: self.deaf,
                memory: self.entry.resident_before,
                noting: Mutex::new(noting),
            },
        };
        let answer = self.self_sender.clone();
        tokio::spawn(async move {
            let report = step.run(transition).await;
            // An actor that has ended needs no report.
            let _ = answer.send(Message::Ended(Box::new(report))).await;
        });
    }

    /// A step ended.
    pub(super) async fn ended(&mut self, mut report: StepReport) {
        let now = clock::now();
        let began = self.step_began;
        let measured = report.took();
        let total = now.since(began);
        // What no phase claims was spent between the actor, the gate and the driver.
        report.phases.push(Phase {
            name: "dispatch",
            took: total.saturating_sub(measured),
        });
        let mut end = StepEnd {
            transition: report.transition,
            rung: report.rung.unwrap_or(self.state.rung),
            failure: report.failure.as_ref().map(|f| f.reason),
        };
        if report.snapshot.is_some() {
            self.entry.snapshot.clone_from(&report.snapshot);
        }
        self.deaf = report.deaf.unwrap_or(self.deaf);
        if matches!(report.transition, Transition::Save | Transition::Hibernate) {
            self.entry.exact = report.exact_at;
        }
        let from = self.state.rung;
        if let Some((before, after)) = report.resident {
            self.entry.resident_before = before;
            self.resident = after;
            if report.failure.is_none() && before > SMALL && after > before / 2 {
                let message = format!(
                    "{} of {} MiB could not be pushed out; is the swap slow, or the guest's memory locked?",
                    after >> 20,
                    before >> 20
                );
                tracing::warn!(pod = %self.pod.full_name(), reason = %Reason::ReclaimFailed, "{message}");
                self.tell_news(
                    NewsKind::Warning,
                    Some(Reason::ReclaimFailed),
                    message,
                    None,
                    None,
                );
            }
        }
        self.ctx
            .metrics
            .step(self.runtime(), self.state.rung, end.rung, &report);
        if let Some(source) = report.transition.wakes_for() {
            if report.shell {
                self.ctx.metrics.shell("used", source.reason());
            }
            let asked = self.wake_asked.take().unwrap_or(began);
            let took = now.since(asked);
            self.ctx
                .metrics
                .woken(source, report.failure.is_none(), took, self.runtime());
            if report.failure.is_none() {
                self.entry.last_wake = Some(WakeEntry {
                    source,
                    took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    at_ms: now_ms(),
                });
                self.learn_wake(source, from);
            } else {
                self.wake_asked = Some(asked);
            }
        }
        let gone = report
            .failure
            .as_ref()
            .is_some_and(|f| f.reason == Reason::GuestGone);
        if report.transition.wakes_for().is_some() && report.failure.is_none() {
            if matches!(report.transition, Transition::ColdStart(_)) {
                self.entry.restored_from = None;
            } else if from == Rung::Hibernated {
                self.entry.restored_from.clone_from(&self.entry.snapshot);
            }
            // Behind the wake; also what was saved ahead of a doze is nobody's only state any more.
            self.ctx.snapshots.unhold(&self.pod.uid, None);
        }
        if let Some(window) = report.pause_window {
            self.ctx.metrics.paused(self.runtime(), window);
        }
        if from == Rung::Hibernated && end.rung == Rung::Hibernated {
            // A step that failed may have left the shell that stood by, or not; and what is told of one has to be known.
            let there = self.look_at_shell().await;
            let made = end.transition == Transition::MakeShell && end.failure.is_none();
            if made && there.is_some_and(|there| there != ShellSight::Whole) {
                end.failure = Some(Reason::ShellLost);
            }
        }
        self.last_report = Some(report);
        self.wire.step_ended();
        self.apply(Input::Ended(end));
        if self.state.rung == Rung::Running && self.deaf {
            // The wrapper woke it in the middle of the step.
            self.hear_again().await;
        }
        if from == Rung::Hibernated || self.state.rung == Rung::Hibernated {
            if end.rung != from {
                self.look_at_shell().await;
            }
            if !end.transition.is_of_shell() {
                self.plan_shell();
            }
            self.publish();
        }
        if self.state.rung == Rung::Running {
            self.wake_asked = None;
        }
        if gone {
            // containerd will say the same in a moment; until then nothing more is tried.
            self.set_abilities(Abilities::none(Reason::GuestGone));
        }
        let called_off = end.transition == Transition::Hibernate && end.failure.is_some();
        if called_off || matches!(end.transition, Transition::Save | Transition::Snapshot) {
            self.remember();
            self.publish();
        }
        if matches!(end.transition, Transition::Freeze | Transition::Hibernate) && end.failure.is_none() {
            self.look_at_memory().await;
            self.publish();
        }
    }

    /// Brings the woken guest's pages back behind its back.
    pub(super) fn prefetch(&mut self, source: WakeSource) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        self.prefetch_cancel.cancel();
        self.prefetch_cancel = Cancel::new();
        let (cancel, guest) = (self.prefetch_cancel.clone(), Arc::clone(&self.guest));
        let (metrics, pod, actor) = (
            self.ctx.metrics.clone(),
            self.pod.full_name(),
            self.self_sender.clone(),
        );
        tokio::spawn(async move {
            match driver.prefetch(&guest, source, &cancel).await {
                Ok(report) => {
                    metrics.prefetched(report.bytes, report.took);
                    tracing::debug!(%pod, bytes = report.bytes, took_ms = report.took.as_secs_f64() * 1e3, "pages prefetched");
                }
                Err(error) => tracing::debug!(%pod, reason = %error.reason, "prefetch ended: {error}"),
            }
            let (done, _) = tokio::sync::oneshot::channel();
            let _ = actor.try_send(Message::Refresh(done));
        });
    }
}

/// A step on its way.
pub(super) struct Running {
    pub(super) driver: Arc<AnyDriver>,
    pub(super) guest: Arc<Guest>,
    pub(super) cancel: Cancel,
    /// Raised with `cancel`: ends the wait for a turn, and for the disk.
    pub(super) queue: CancellationToken,
    /// Raised when somebody waits for a step that a policy had begun.
    pub(super) hurry: CancellationToken,
    /// Whether a policy began the step.
    pub(super) policys: bool,
    gate: Gate,
    /// Where the pod stands.
    pub(super) rung: Rung,
    /// Why it is not done at all.
    refused: Option<Reason>,
    /// Probes that are on their way.
    probes: TaskTracker,
    /// What a first doze is to end with.
    rehearsal: Option<Rehearsal>,
    bytes: u64,
    pub(super) saving: Saving,
}

impl Running {
    async fn run(self, transition: Transition) -> StepReport {
        let mut report = StepReport::new(transition);
        if let Err(reason) = self.quiet(transition, &mut report).await {
            report.failure = Some(Failure {
                reason,
                message: reason.meaning().trim().to_owned(),
            });
            return report;
        }
        let asked = clock::now();
        let claim = match transition {
            Transition::Wake(_) | Transition::ColdStart(_) => Some((ClaimKind::Wake, self.bytes)),
            Transition::Doze => Some((ClaimKind::PageOut, 0)),
            // What is saved already needs no turn.
            Transition::Hibernate if self.saving.exact => None,
            Transition::Hibernate | Transition::Save if self.policys => Some((ClaimKind::PolicySave, 0)),
            Transition::Hibernate | Transition::Save | Transition::Snapshot => Some((ClaimKind::Save, 0)),
            Transition::MakeShell => Some((ClaimKind::Shell, self.bytes)),
            Transition::Freeze
            | Transition::HousekeepingThaw
            | Transition::HousekeepingFreeze
            | Transition::EndShell => None,
        };
        let short = || {
            transition == Transition::MakeShell
                && crate::pressure::is_short(self.saving.ctx.config.pressure.available_percent)
        };
        let permit = match claim {
            _ if self.refused.is_some() => Err(self.refused.unwrap_or(Reason::Internal)),
            _ if short() => Err(Reason::InsufficientMemory),
            None => Ok(None),
            Some((kind, bytes)) => tokio::select! {
                permit = self.enter(kind, bytes) => permit.map(Some),
                // A wake must not wait for a turn that it does away with.
                () = self.queue.cancelled() => Err(Reason::WakeWon),
            },
        };
        report.phase("admission", clock::now().since(asked));
        let permit = match permit {
            Ok(permit) => permit,
            Err(reason) => {
                report.failure = Some(Failure {
                    reason,
                    message: reason.meaning().trim().to_owned(),
                });
                return report;
            }
        };
        let result = self.verb(transition, &mut report).await;
        drop(permit);
        match result {
            Ok(()) => report.rung = report.rung.or(Some(transition.leads_to(self.rung))),
            Err(failed) => {
                report.rung = failed.rung;
                report.failure = Some(failed.failure);
            }
        }
        report
    }

    /// Waits until nothing of a probe is left: what a connection still sends would wake a sleeper, and so would the end that
    /// is put to a command that takes too long. That is not waited for, as it is not for others' commands.
    async fn quiet(&self, transition: Transition, report: &mut StepReport) -> Result<(), Reason> {
        if transition.wakes_for().is_some() || self.probes.is_empty() {
            return Ok(());
        }
        let asked = clock::now();
        let result = tokio::select! {
            () = self.probes.wait() => Ok(()),
            () = self.queue.cancelled() => Err(Reason::WakeWon),
            () = tokio::time::sleep(PROBES) => Err(Reason::GuestBusy),
        };
        report.phase("probes", clock::now().since(asked));
        result
    }

    /// Waits for a turn; for another one, if it becomes urgent meanwhile.
    async fn enter(&self, kind: ClaimKind, bytes: u64) -> Result<Permit, Reason> {
        if kind == ClaimKind::PolicySave {
            tokio::select! {
                permit = self.gate.enter(kind, bytes) => return permit,
                () = self.hurry.cancelled() => {}
            }
            return self.gate.enter(ClaimKind::Save, bytes).await;
        }
        let mut room = Room::new(&self.saving.ctx.pods, &self.guest.sandbox_id);
        loop {
            match self.gate.enter(kind, bytes).await {
                // Whoever asks for a wake does not go away empty for what others' shells take.
                Err(Reason::InsufficientMemory) if kind == ClaimKind::Wake && room.make().await => {}
                result => return result,
            }
        }
    }

    pub(super) async fn freeze(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let done = self.driver.freeze(&self.guest).await?;
        report.phase("lock", done.lock);
        report.phase("stop", done.stop);
        Ok(())
    }

    async fn doze(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let done = self.driver.doze(&self.guest, &self.cancel).await?;
        report.phase("cgroup-freeze", done.cgroup_freeze);
        report.phase("page-out", done.page_out);
        report.phase("reclaim", done.reclaim);
        report.phase("bring-back", done.bring_back);
        let before = report.resident.map_or(done.resident_before, |(before, _)| before);
        report.resident = Some((before, done.resident_after));
        Ok(())
    }

    async fn verb(&self, transition: Transition, report: &mut StepReport) -> Result<(), StepFailed> {
        match transition {
            Transition::Freeze => {
                self.freeze(report).await?;
            }
            Transition::Doze => {
                self.doze(report).await?;
                if let Some(rehearsal) = &self.rehearsal {
                    self.rehearse(rehearsal, report).await?;
                    self.doze(report).await?;
                }
            }
            Transition::Hibernate => self.hibernate(report).await?,
            Transition::Save => self.save_ahead(report).await?,
            Transition::Snapshot => self.snapshot(report).await?,
            Transition::Wake(_) if self.rung == Rung::Hibernated => self.restore(report).await?,
            Transition::ColdStart(_) => self.cold_start(report).await?,
            Transition::MakeShell => self.make_shell(report).await?,
            Transition::EndShell => self.end_shell(report).await?,
            Transition::Wake(_) => {
                let done = self.driver.wake(&self.guest).await?;
                report.phase("lock", done.lock);
                report.phase("cgroup-thaw", done.cgroup_thaw);
                report.phase("resume", done.resume);
                if self.saving.deaf {
                    // It was cut off since it was saved; what came meanwhile was held.
                    self.hear_again(report).await;
                }
            }
            Transition::HousekeepingThaw => self.driver.housekeeping_thaw(&self.guest).await?,
            Transition::HousekeepingFreeze => {
                self.driver.housekeeping_freeze(&self.guest, &self.cancel).await?;
            }
        }
        Ok(())
    }
}

/// The rung of a guest that is stopped like this.
pub(super) const fn rung_of(state: StopState) -> Rung {
    match state {
        StopState::Running => Rung::Running,
        StopState::Frozen => Rung::Frozen,
        StopState::CgroupFrozen => Rung::Dozing,
        StopState::Hibernated => Rung::Hibernated,
    }
}

/// An error with everything below it, in one line.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(below) = source {
        let words = below.to_string();
        // Many say themselves what lies below.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = below.source();
    }
    text
}
