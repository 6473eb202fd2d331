//! One hand on the switch: everything that stops or continues a guest, under the pod's lock.
//!
//! Agent and wrapper are different processes and either may be killed at any moment. What keeps them from
//! sending one Resume too many is this order: lock, write down what is about to be done, do it, write down
//! the outcome, unlock. Whoever finds an intent of somebody who is gone establishes the truth by looking at
//! the guest ([`Held::settle`]), never by trying.
//!
//! Fail points (feature `failpoints`), in order of their place in each step:
//! `switch::pause::{before_intent,before_call,after_call,after_outcome}`, the same for `switch::resume`,
//! `switch::freeze_cgroup::{before_intent,before_freeze,after_freeze,after_outcome}`,
//! `switch::thaw_cgroup::{before_thaw,after_thaw}`.

mod capture;
mod cgroup;
mod hibernate;
mod limits;
mod lock;
mod pause;
mod register;
mod resume;
mod settle;
mod visit;
mod wake;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_core::Reason;

use crate::cgroup::CgroupError;
use crate::control::{ControlError, ControlSocket};
use crate::file::FileError;
use crate::hold::Holder;
use crate::ids::SandboxId;
use crate::process::ProcessId;
use crate::record::{Intent, IntentKind, Record, RecordError, now_ms};
use crate::run_dir::{RunDir, RunDirError};
use crate::runsc_state::{RunscState, RunscStateError};

pub use lock::LockError;
pub use pause::PauseReport;
pub use register::{RegisterError, Registration};
pub use visit::Visit;
pub use wake::WakeReport;

/// How long each kind of step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// One call over the control socket.
    pub call: Duration,
    /// Freezing the cgroup.
    pub freeze: Duration,
    /// Establishing the truth after a crash.
    pub settle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(5),
            freeze: Duration::from_secs(1),
            settle: Duration::from_secs(5),
        }
    }
}

/// A step on the switch failed.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The guest's control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The pod's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The pod's record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// runsc's state of the sandbox.
    #[error(transparent)]
    Runsc(#[from] RunscStateError),
    /// This process could not be looked up, or a limit could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The sentry is gone.
    #[error("the guest of pod sandbox {sandbox} is gone: its process {pid} has ended")]
    GuestGone {
        /// The pod sandbox.
        sandbox: SandboxId,
        /// The sentry.
        pid: i32,
    },
    /// It could not be established whether the guest is stopped.
    #[error(
        "it could not be established whether the guest of pod sandbox {sandbox} is stopped ({why}); nothing was done to it"
    )]
    StopStateUnknown {
        /// The pod sandbox.
        sandbox: SandboxId,
        /// What was seen.
        why: &'static str,
    },
    /// The pod does not run under the wrapper.
    #[error(
        "pod sandbox {sandbox} does not run under dormouse-runsc; with its cgroup frozen every verb of its shim would hang"
    )]
    WrapperMissing {
        /// The pod sandbox.
        sandbox: SandboxId,
    },
    /// A command on the guest is under way, which would hang until the next wake.
    #[error(
        "a command on pod sandbox {sandbox} is under way (exec, kill, statistics, …); it is not put to sleep meanwhile"
    )]
    Visited {
        /// The pod sandbox.
        sandbox: SandboxId,
    },
    /// The place where commands announce themselves.
    #[error(transparent)]
    Visits(#[from] LockError),
    /// The guest is not paused (any more).
    #[error("the guest of pod sandbox {sandbox} runs; it was woken meanwhile, or was never frozen")]
    NotPaused {
        /// The pod sandbox.
        sandbox: SandboxId,
    },
}

impl SwitchError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Control(e) => e.reason(),
            Self::Cgroup(e) => e.reason(),
            Self::Record(e) => e.reason(),
            Self::Runsc(e) => e.reason(),
            Self::File(_) => Reason::Internal,
            Self::GuestGone { .. } => Reason::GuestGone,
            Self::StopStateUnknown { .. } => Reason::StopStateUnknown,
            Self::WrapperMissing { .. } => Reason::WrapperMissing,
            Self::Visited { .. } => Reason::GuestBusy,
            Self::Visits(e) => e.reason(),
            Self::NotPaused { .. } => Reason::WakeWon,
        }
    }
}

/// A pod's switch.
#[derive(Debug, Clone)]
pub struct Switch {
    dir: RunDir,
    id: SandboxId,
    timeouts: Timeouts,
}

impl Switch {
    /// Names the switch of a pod sandbox; touches nothing.
    #[must_use]
    pub fn open(dir: &RunDir, id: &SandboxId) -> Self {
        Self {
            dir: dir.clone(),
            id: id.clone(),
            timeouts: Timeouts::default(),
        }
    }

    /// The same with other timeouts.
    #[must_use]
    pub const fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The pod sandbox.
    #[must_use]
    pub const fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The record as it stands, without the lock: whole, but perhaps about to change.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn record(&self) -> Result<Record, RecordError> {
        Record::read(&self.dir.record_path(&self.id), &self.id)
    }
}

/// The switch, with the pod's lock held. Dropping it unlocks.
#[derive(Debug)]
pub struct Held {
    switch: Switch,
    record: Record,
    // Last, so that it is dropped last.
    _lock: lock::Lock,
}

impl Held {
    /// The record.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Changes the record and stores it. For what the steps here do not keep themselves: the rung, the
    /// limits. On an error the record stays as it was.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        let before = self.record.clone();
        change(&mut self.record);
        if let Err(error) = self.store() {
            self.record = before;
            return Err(error);
        }
        if before.is_without_guest() && before.waited_for() != self.record.waited_for() {
            self.nudge_waiters(&before);
        }
        Ok(())
    }

    /// Has those look again who wait for a change of the record, because there is no guest to ask.
    fn nudge_waiters(&self, record: &Record) {
        for container in &record.containers {
            Holder::of(&self.switch.dir, &self.switch.id, &container.id).nudge();
        }
    }

    /// Forgets the pod: its directory, and the links of its containers. Unlocks.
    ///
    /// # Errors
    /// [`RunDirError`]
    pub fn forget(self) -> Result<(), RunDirError> {
        for container in &self.record.containers {
            self.switch.dir.unlink(&container.id)?;
        }
        self.switch.dir.unlink(&(&self.switch.id).into())?;
        let removed = self.switch.dir.remove_pod(&self.switch.id);
        // The record is the first to go.
        self.nudge_waiters(&self.record);
        removed
    }

    /// Finds the sentry and its control socket and notes them in the record; makes sure that it lives.
    ///
    /// # Errors
    /// [`SwitchError::Runsc`] where there is none yet, [`SwitchError::GuestGone`] where it has ended.
    pub fn locate(&mut self) -> Result<(ProcessId, ControlSocket), SwitchError> {
        if let (Some(sentry), Some(path)) = (self.record.sentry, &self.record.control_socket) {
            let socket = ControlSocket::new(path);
            return if sentry.is_alive() {
                Ok((sentry, socket))
            } else {
                Err(self.guest_gone(sentry))
            };
        }
        let id = &self.switch.id;
        let state = RunscState::read(&self.record.runtime_root, id, &id.into())?;
        let sentry = state.sentry()?;
        let path = self.socket_path(&state);
        self.record.sentry = Some(sentry);
        self.record.control_socket = Some(path.clone());
        self.store()?;
        Ok((sentry, ControlSocket::new(path)))
    }

    /// Where the sentry's control socket is: as runsc noted it, or, like runsc itself looks, below the root.
    fn socket_path(&self, state: &RunscState) -> PathBuf {
        let noted = state.sandbox.as_ref().map(|s| s.control_socket_path.clone());
        let usual = self
            .record
            .runtime_root
            .join(format!("runsc-{}.sock", self.switch.id));
        noted.filter(|p| p.is_absolute() && p.exists()).unwrap_or(usual)
    }

    fn guest_gone(&self, sentry: ProcessId) -> SwitchError {
        SwitchError::GuestGone {
            sandbox: self.switch.id.clone(),
            pid: sentry.pid,
        }
    }

    fn store(&self) -> Result<(), RecordError> {
        self.record.write(&self.switch.dir.record_path(&self.switch.id))
    }

    /// Writes down what is about to be done.
    fn intend(&mut self, kind: IntentKind) -> Result<(), SwitchError> {
        self.record.switch.intent = Some(Intent {
            kind,
            by: ProcessId::own()?,
        });
        // Nothing has been done: the record in memory goes back to what the one on tmpfs says.
        self.store().inspect_err(|_| self.record.switch.intent = None)?;
        Ok(())
    }

    /// Writes down what came of it.
    fn conclude(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        change(&mut self.record);
        self.record.switch.intent = None;
        self.record.switch.since_ms = now_ms();
        self.store()
    }

    fn call_deadline(&self) -> Instant {
        Instant::now() + self.switch.timeouts.call
    }
}
