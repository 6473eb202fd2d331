//! Entering a pod and its containers.

use std::time::Duration;

use dormouse_core::Reason;

use super::{Held, LockError, Switch};
use crate::ids::ContainerId;
use crate::process::ProcessId;
use crate::record::{ContainerKind, ContainerRecord, Intent, IntentKind, Record, RecordError};
use crate::run_dir::RunDirError;
use crate::runsc_state::RunscState;

/// containerd's annotation with a container's name.
const NAME_ANNOTATION: &str = "io.kubernetes.cri.container-name";

/// A pod could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The pod's lock or record.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// This process could not be looked up.
    #[error(transparent)]
    File(#[from] crate::file::FileError),
}

impl RegisterError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Lock(e) => e.reason(),
            Self::Record(e) => e.reason(),
            Self::RunDir(e) => e.reason(),
            Self::File(_) => Reason::Internal,
        }
    }
}

/// What is known of how the guest stands when its pod is registered without a readable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// The guest is only about to be made: it runs.
    Born,
    /// The guest lives already and an earlier record may have been lost: whether it is stopped is looked up
    /// before anything is done to it.
    Adopted,
}

impl Switch {
    /// Registers the pod where it has no readable record, with `fresh` as its first one; an existing record
    /// stays. Locked on return.
    ///
    /// # Errors
    /// [`RegisterError`]
    pub fn register(
        &self,
        fresh: Record,
        how: Registration,
        timeout: Duration,
    ) -> Result<Held, RegisterError> {
        self.dir.prepare()?;
        self.dir.make_pod_dir(&self.id)?;
        let lock = self.lock_only(timeout, true)?;
        self.make_visits()?;
        let record = Record::read(&self.dir.record_path(&self.id), &self.id);
        let (record, is_new) = match record {
            // The same id made anew: what is left of the one before is of no use.
            Ok(record)
                if how == Registration::Adopted
                    || record.hibernation.is_some()
                    || record.sentry.is_none_or(ProcessId::is_alive) =>
            {
                (record, false)
            }
            Ok(_) | Err(_) => (fresh, true),
        };
        let mut held = Held {
            switch: self.clone(),
            record,
            _lock: lock,
        };
        if is_new {
            if how == Registration::Adopted {
                held.adopt_containers();
                held.record.switch.intent = Some(Intent {
                    kind: IntentKind::Pause,
                    by: ProcessId::own()?,
                });
            }
            held.store()?;
        }
        Ok(held)
    }
}

impl Held {
    /// Enters the containers that runsc has state of, for a record that was lost. Those that cannot be read
    /// are left to the next `create`.
    fn adopt_containers(&mut self) {
        let (root, sandbox) = (self.record.runtime_root.clone(), self.switch.id.clone());
        for id in RunscState::containers(&root, &sandbox).unwrap_or_default() {
            let Ok(state) = RunscState::read(&root, &sandbox, &id) else {
                continue;
            };
            let is_sandbox = id.as_str() == sandbox.as_str();
            let name = state
                .annotations()
                .and_then(|a| a.get(NAME_ANNOTATION))
                .cloned()
                .unwrap_or_default();
            if self.switch.dir.link(&id, &sandbox).is_ok() {
                self.record.put_container(ContainerRecord {
                    id,
                    name: if is_sandbox { String::new() } else { name },
                    kind: if is_sandbox {
                        ContainerKind::Sandbox
                    } else {
                        ContainerKind::Container
                    },
                    bundle: state.bundle_dir,
                    last_known: None,
                    launch: None,
                    ended: None,
                    played: false,
                });
            }
        }
    }

    /// Enters a container of the pod.
    ///
    /// # Errors
    /// [`RegisterError`]
    pub fn put_container(&mut self, container: ContainerRecord) -> Result<(), RegisterError> {
        let id = container.id.clone();
        self.update(|r| r.put_container(container))?;
        Ok(self.switch.dir.link(&id, &self.switch.id)?)
    }

    /// Takes a container out; with the last one, or the pod sandbox's own, the pod is forgotten.
    ///
    /// # Errors
    /// [`RegisterError`]
    pub fn remove_container(mut self, id: &ContainerId) -> Result<(), RegisterError> {
        self.update(|r| r.remove_container(id))?;
        self.switch.dir.unlink(id)?;
        // Its waiter takes its socket away when it ends, unless it was killed.
        let _ = std::fs::remove_file(self.switch.dir.hold_path(&self.switch.id, id));
        if self.record.containers.is_empty() || id.as_str() == self.switch.id.as_str() {
            self.forget()?;
        }
        Ok(())
    }
}
