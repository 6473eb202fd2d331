//! The steps that have to do with snapshots: hibernate, save, snapshot, and the wake from a snapshot.
//!
//! Fail points (feature `failpoints`), in this order: to hibernate
//! `agent::save::{runsc_kept, staged, saved}`,
//! `agent::hibernate::{committed, released}`; to save ahead of a doze `agent::save::{staged, saved, committed}`; for a
//! snapshot `agent::snapshot::{staged, saved, on_wire, committed}`; to wake `agent::restore::{opened, restored, on_wire}`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_core::{Moment, Reason, Rung};
use dormouse_cri::Pod;
use dormouse_net::{PodKey, ReplayWindow, WireError, WireMode};
use dormouse_runtime::{Driver as _, DriverError, RestoreReport, SaveReport, StopState};
use dormouse_snapshot::{SnapshotId, Staging, Taken};
use tokio::sync::mpsc;

use super::Message;
use super::step::{Running, rung_of, with_sources};
use crate::clock;
use crate::context::Context;
use crate::journal::JournalError;
use crate::journal_writer::Noting;
use crate::snapshots::{Behind, SavePace, SnapshotFailed, Taking, WritingAhead};
use crate::step_report::{Failure, StepReport};

/// What a step needs that has to do with snapshots.
#[derive(Debug)]
pub(super) struct Saving {
    pub(super) ctx: Arc<Context>,
    pub(super) pod: Arc<Pod>,
    pub(super) line: Line,
    /// The pod's newest snapshot.
    pub(super) snapshot: Option<String>,
    /// Whether it holds exactly what the guest is.
    pub(super) exact: bool,
    /// Whether the guest is cut off from the wire.
    pub(super) deaf: bool,
    /// The snapshot that the guest was restored from.
    pub(super) restored_from: Option<String>,
    /// What the guest's memory may be, where its cgroup does not say.
    pub(super) memory: u64,
    /// The journal's word that the pod is being hibernated, on its way to the disk.
    pub(super) noting: Mutex<Option<Noting>>,
}

/// The pod's end of the wire loop, for a step.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: PodKey,
    /// The mode for a guest that is where it was before the step; `None` if the pod has no wire.
    pub(super) before: Option<WireMode>,
    /// The mode for a guest that runs; `None` if the pod has no wire.
    pub(super) awake: Option<WireMode>,
    pub(super) actor: mpsc::Sender<Message>,
}

/// A step that did not get where it was to lead.
#[derive(Debug)]
pub(super) struct StepFailed {
    pub(super) failure: Failure,
    /// Where the pod stands now, if it is not where it stood before.
    pub(super) rung: Option<Rung>,
}

impl From<DriverError> for StepFailed {
    fn from(error: DriverError) -> Self {
        Self {
            failure: Failure {
                reason: error.reason,
                message: with_sources(&error),
            },
            rung: error.state.map(rung_of),
        }
    }
}

impl From<SnapshotFailed> for StepFailed {
    fn from(error: SnapshotFailed) -> Self {
        Self {
            failure: Failure {
                reason: error.reason,
                message: error.message,
            },
            rung: None,
        }
    }
}

impl From<JournalError> for StepFailed {
    fn from(error: JournalError) -> Self {
        Self::from(SnapshotFailed {
            reason: error.reason(),
            message: format!(
                "it cannot be noted that the pod is hibernated: {}",
                with_sources(&error)
            ),
        })
    }
}

impl StepFailed {
    pub(super) fn wake_won() -> Self {
        Self::from(SnapshotFailed::wake_won())
    }
}

/// Takes the time since it was last asked.
pub(super) struct Lap(Moment);

impl Lap {
    pub(super) fn new() -> Self {
        Self(clock::now())
    }

    pub(super) fn took(&mut self) -> Duration {
        let now = clock::now();
        now.since(std::mem::replace(&mut self.0, now))
    }
}

impl Saving {
    /// Waits until the journal says that the pod is being hibernated.
    async fn noted(&self) -> Result<(), JournalError> {
        let noting = self.noting.lock().unwrap_or_else(PoisonError::into_inner).take();
        match noting {
            Some(noting) => noting.durable().await,
            None => Ok(()),
        }
    }

    /// The guest hears the wire again: gives it what it missed, and looks for what matters in `mode`.
    pub(super) async fn back(&self, mode: Option<WireMode>, window: ReplayWindow) {
        let Some(mode) = mode else { return };
        match self.ctx.wires.release_held(&self.line.key, mode, window) {
            Ok(replayed) => {
                if replayed.replayed > 0 || replayed.failed > 0 {
                    tracing::debug!(pod = %self.pod.full_name(), ?replayed, "held frames were replayed");
                }
            }
            Err(WireError::NoHostSide { .. }) => {
                // Nothing was held; the mode is set all the same.
                let _ = self.ctx.wires.set_mode(&self.line.key, mode);
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), "held frames are lost: {error}");
                return;
            }
        }
        // An actor that has ended needs to know nothing.
        let _ = self.line.actor.send(Message::OnWire(mode)).await;
    }
}

/// A snapshot that is durable.
struct Saved {
    id: SnapshotId,
    /// How often the guest had been woken.
    wakes: u64,
    behind: Behind,
}

impl Running {
    /// Frozen or Dozing -> Hibernated.
    pub(super) async fn hibernate(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let saving = &self.saving;
        let uid = &saving.pod.uid;
        let before = match self.rung {
            Rung::Frozen => self.driver.resident(&self.guest).await.ok(),
            // Its memory had left before.
            _ => None,
        };
        let exact = saving.snapshot.as_ref().filter(|_| saving.exact);
        let (id, _behind) = match exact {
            Some(id) if saving.ctx.snapshots.hold(id, uid).await.is_ok() => (id.clone(), None),
            _ => {
                let saved = self.save(Taken::Hibernate, report).await?;
                (saved.id.to_string(), Some(saved.behind))
            }
        };
        fail::fail_point!("agent::hibernate::committed");
        let mut lap = Lap::new();
        if let Err(error) = saving.noted().await {
            return Err(self.undone(error.into(), report).await);
        }
        report.phase("note", lap.took());
        if self.cancel.is_cancelled() {
            return Err(self.undone(StepFailed::wake_won(), report).await);
        }
        match self.driver.release(&self.guest, &id).await {
            Ok(done) => {
                report.phase("prepare", done.prepare);
                report.phase("end", done.end);
                report.phase("forget", done.forget);
            }
            Err(error) if error.state == Some(StopState::Hibernated) => {
                // The guest is gone and its state is safe; what was left over is cleared away by the wake.
                tracing::warn!(
                    pod = %saving.pod.full_name(), reason = %error.reason,
                    "hibernated, but not all was cleared away: {}", with_sources(&error)
                );
            }
            Err(error) => return Err(self.undone(error.into(), report).await),
        }
        fail::fail_point!("agent::hibernate::released");
        report.snapshot = Some(id);
        report.resident = before.map(|resident| (resident.cgroup, 0));
        Ok(())
    }

    /// Saves a frozen guest ahead of its doze; it stays cut off, so that the snapshot stays exact.
    pub(super) async fn save_ahead(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let Saved { id, wakes, .. } = self.save(Taken::Durable, report).await?;
        report.deaf = Some(true);
        fail::fail_point!("agent::save::committed");
        if self.cancel.is_cancelled() {
            return Err(self.undone(StepFailed::wake_won(), report).await);
        }
        report.snapshot = Some(id.to_string());
        report.exact_at = Some(wakes);
        Ok(())
    }

    /// Saves a stopped guest and makes the snapshot durable. It stays stopped and cut off; after a failure it is back
    /// on the wire.
    async fn save(&self, taken: Taken, report: &mut StepReport) -> Result<Saved, StepFailed> {
        let staging = self.stage(report).await?;
        fail::fail_point!("agent::save::staged");
        let pace = self.pace();
        let ahead = WritingAhead::start(&staging, &pace);
        let saved = match self.driver.save(&self.guest, staging.dir(), &self.cancel).await {
            Ok(saved) => saved,
            Err(error) => {
                give_up(staging);
                // The driver has put the guest back on the wire.
                self.back_as_before(None).await;
                return Err(error.into());
            }
        };
        drop(ahead);
        phases_of(&saved, report);
        fail::fail_point!("agent::save::saved");
        if self.cancel.is_cancelled() {
            give_up(staging);
            return Err(self.undone(StepFailed::wake_won(), report).await);
        }
        let wakes = saved.wakes;
        match self.commit(staging, saved, taken, pace, report).await {
            Ok((id, behind)) => Ok(Saved { id, wakes, behind }),
            Err(error) => Err(self.undone(error.into(), report).await),
        }
    }

    /// Saves the guest; it goes on where it was, and the snapshot becomes durable behind it.
    pub(super) async fn snapshot(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let staging = self.stage(report).await?;
        fail::fail_point!("agent::snapshot::staged");
        let runs = self.rung == Rung::Running;
        let result = if runs {
            self.driver.snapshot(&self.guest, staging.dir()).await
        } else {
            self.driver.save(&self.guest, staging.dir(), &self.cancel).await
        };
        let saved = match result {
            Ok(saved) => saved,
            Err(error) => {
                give_up(staging);
                self.back_as_before(None).await;
                return Err(error.into());
            }
        };
        phases_of(&saved, report);
        fail::fail_point!("agent::snapshot::saved");
        if runs {
            report.pause_window = Some(saved.pause_window());
            self.back_as_before(saved.cut_at).await;
        } else {
            self.put_back(saved.cut_at, report).await;
            // Its memory is in RAM again, and nothing of it was frozen but the application.
            report.rung = Some(Rung::Frozen);
        }
        fail::fail_point!("agent::snapshot::on_wire");
        let (id, _behind) = self
            .commit(staging, saved, Taken::Create, self.pace(), report)
            .await
            .map_err(|error| StepFailed {
                rung: report.rung,
                ..error.into()
            })?;
        fail::fail_point!("agent::snapshot::committed");
        report.snapshot = Some(id.to_string());
        Ok(())
    }

    /// Hibernated -> Running.
    pub(super) async fn restore(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let saving = &self.saving;
        let id = saving.snapshot.as_deref().ok_or_else(|| SnapshotFailed {
            reason: Reason::SnapshotNotFound,
            message: "it is not known which snapshot holds the guest".to_owned(),
        })?;
        let mut lap = Lap::new();
        let image = Arc::new(saving.ctx.snapshots.open_image(id, &self.guest.pod).await?);
        // While the sandbox is made; it keeps the snapshot from being removed until it is done.
        tokio::task::spawn_blocking({
            let image = Arc::clone(&image);
            move || image.read_ahead()
        });
        report.phase("open", lap.took());
        fail::fail_point!("agent::restore::opened");
        let done = self.driver.restore(&self.guest, image.dir()).await?;
        fail::fail_point!("agent::restore::restored");
        self.made_again(&done, report).await;
        fail::fail_point!("agent::restore::on_wire");
        Ok(())
    }

    /// The same without its memory.
    pub(super) async fn cold_start(&self, report: &mut StepReport) -> Result<(), StepFailed> {
        let done = self.driver.cold_start(&self.guest).await?;
        self.made_again(&done, report).await;
        Ok(())
    }

    /// A new guest is there, and hears the wire.
    async fn made_again(&self, done: &RestoreReport, report: &mut StepReport) {
        report.shell = done.shell;
        report.deaf = Some(false);
        report.phase("lock", done.lock);
        report.phase("create", done.create);
        report.phase("load", done.load);
        report.phase("start", done.start);
        let mut lap = Lap::new();
        // What came before the guest had sockets of its own was seen by nobody but the wire loop.
        let window = ReplayWindow {
            after: None,
            until: done.on_wire_at,
        };
        self.saving.back(self.saving.line.awake, window).await;
        report.phase("replay", lap.took());
    }

    /// Makes room, before anything is done to the guest.
    async fn stage(&self, report: &mut StepReport) -> Result<Staging, StepFailed> {
        let mut lap = Lap::new();
        self.saving.ctx.snapshots.keep_runsc(&self.guest.sandbox_id).await;
        fail::fail_point!("agent::save::runsc_kept");
        let resident = self.driver.resident(&self.guest).await.unwrap_or_default();
        let memory = resident
            .cgroup
            .saturating_add(resident.swapped)
            .max(self.saving.memory);
        let staging = self
            .saving
            .ctx
            .snapshots
            .stage(&self.saving.pod.namespace, memory)
            .await;
        report.phase("stage", lap.took());
        Ok(staging?)
    }

    /// How fast the save's bytes go to the disk.
    fn pace(&self) -> Arc<SavePace> {
        let ctx = &self.saving.ctx;
        ctx.snapshots.pace(&ctx.metrics, self.policys, &self.hurry)
    }

    /// Makes the snapshot durable. A wake does not wait for the disk: what is on its way there is then removed behind it.
    async fn commit(
        &self,
        staging: Staging,
        saved: SaveReport,
        taken: Taken,
        pace: Arc<SavePace>,
        report: &mut StepReport,
    ) -> Result<(SnapshotId, Behind), SnapshotFailed> {
        let saving = &self.saving;
        let mut lap = Lap::new();
        let taking = Taking {
            pod: &saving.pod,
            runtime: self.driver.kind(),
            taken,
            parent: saving.restored_from.as_deref(),
            hold: taken != Taken::Create,
        };
        let commit = saving
            .ctx
            .snapshots
            .commit(staging, saved, &taking, Arc::clone(&pace));
        tokio::pin!(commit);
        // A guest that runs does not wait for its snapshot.
        let called_off = self.rung.is_asleep();
        let committed = tokio::select! {
            biased;
            committed = &mut commit => committed,
            () = self.queue.cancelled(), if called_off => {
                if pace.call_off() {
                    Err(SnapshotFailed::wake_won())
                } else {
                    commit.await
                }
            }
        };
        let (took, paced) = (lap.took(), pace.waited());
        if pace.is_policys() {
            report.phase("paced", paced);
        }
        report.phase("commit", took.saturating_sub(paced));
        let (snapshot, behind) = committed?;
        Ok((snapshot.id(), behind))
    }

    /// What was saved is not followed by a release: the guest is Frozen, on the wire, and nothing is held for it.
    async fn undone(&self, failed: StepFailed, report: &mut StepReport) -> StepFailed {
        self.put_back(None, report).await;
        self.saving.ctx.snapshots.unhold(&self.saving.pod.uid, None);
        StepFailed {
            rung: failed.rung.or(Some(Rung::Frozen)),
            ..failed
        }
    }

    /// A guest that was kept cut off since it was saved was woken.
    pub(super) async fn hear_again(&self, report: &mut StepReport) {
        let mut lap = Lap::new();
        self.keep(report).await;
        self.saving
            .back(self.saving.line.awake, ReplayWindow::default())
            .await;
        report.phase("replay", lap.took());
    }

    /// Puts a saved guest back on the wire; it stays stopped.
    async fn put_back(&self, cut_at: Option<Moment>, report: &mut StepReport) {
        let mut lap = Lap::new();
        self.keep(report).await;
        self.back_as_before(cut_at).await;
        report.phase("keep", lap.took());
    }

    /// Lets the guest hear the wire again. Where that fails the next wake tries again.
    async fn keep(&self, report: &mut StepReport) {
        let kept = self.driver.keep(&self.guest).await;
        report.deaf = Some(kept.is_err());
        if let Err(error) = kept {
            tracing::warn!(
                pod = %self.saving.pod.full_name(), reason = %error.reason, "{}", with_sources(&error)
            );
        }
    }

    async fn back_as_before(&self, cut_at: Option<Moment>) {
        let window = ReplayWindow {
            after: cut_at,
            until: None,
        };
        self.saving.back(self.saving.line.before, window).await;
    }
}

/// Removes an image that nobody wants, behind everybody's back: the disk may have to take it first.
fn give_up(staging: Staging) {
    tokio::task::spawn_blocking(move || drop(staging));
}

fn phases_of(saved: &SaveReport, report: &mut StepReport) {
    report.phase("lock", saved.lock);
    report.phase("ask", saved.ask);
    report.phase("cut", saved.cut);
    report.phase("stop", saved.stop);
    report.phase("write", saved.write);
    report.phase("resume", saved.resume);
}
