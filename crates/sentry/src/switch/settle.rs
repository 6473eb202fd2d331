//! Establishing the truth after a crash.

use std::time::{Duration, Instant};

use super::{Held, SwitchError};
use crate::control::ControlError;
use crate::ids::ContainerId;
use crate::record::{CgroupState, IntentKind};
use crate::runsc_state::{RunscState, Status};
use crate::stacks::StopState;

/// How long a connection that is open but makes no call is watched before it counts as idle. A request that
/// a killed process left behind is read by the sentry within microseconds.
const IDLE_CONNECTION: Duration = Duration::from_millis(30);

/// The wait before the guest is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl Held {
    /// Establishes, without changing the guest, what an unfinished step has done, and writes it down.
    /// Returns whether the application is stopped. Without an unfinished step it says what the record says.
    ///
    /// A frozen cgroup is thawed for it, which is always safe: the application stays as it is.
    ///
    /// # Errors
    /// [`SwitchError::StopStateUnknown`] where it cannot be told; the intent stays, and nothing was done.
    pub fn settle(&mut self) -> Result<bool, SwitchError> {
        let Some(intent) = self.record.switch.intent else {
            return Ok(self.record.switch.paused);
        };
        match intent.kind {
            IntentKind::CgroupFreeze | IntentKind::CgroupThaw => {
                let state = self.find_cgroup()?.state()?;
                self.conclude(|r| r.switch.cgroup = state)?;
            }
            IntentKind::Pause | IntentKind::Resume => {
                let paused = self.probe()?;
                self.conclude(|r| r.switch.paused = paused)?;
            }
        }
        Ok(self.record.switch.paused)
    }

    /// Looks whether the application is stopped, by the sentry's own stack dump, whatever the record says.
    /// Changes nothing but a frozen cgroup, which is thawed for it.
    ///
    /// # Errors
    /// [`SwitchError::StopStateUnknown`] where it cannot be told.
    pub fn probe(&mut self) -> Result<bool, SwitchError> {
        let (_, socket) = self.locate()?;
        self.thaw_for_probe()?;
        let started = Instant::now();
        let deadline = started + self.switch.timeouts.settle;
        let mut why;
        loop {
            match socket.stop_state(deadline.min(self.call_deadline())) {
                Ok(seen) => match seen.state {
                    StopState::Running | StopState::Paused
                        if !seen.connection_open || started.elapsed() >= IDLE_CONNECTION =>
                    {
                        let paused = seen.state == StopState::Paused;
                        if paused && self.paused_by_runsc() {
                            why = "it is paused by `runsc pause` too; resume it with `runsc resume`";
                            return Err(SwitchError::StopStateUnknown {
                                sandbox: self.switch.id.clone(),
                                why,
                            });
                        }
                        return Ok(paused);
                    }
                    StopState::Running | StopState::Paused => why = "a connection has just been opened",
                    StopState::Moving => why = "it is being stopped or continued",
                    StopState::Unknown => why = "its stack dump shows no tasks",
                },
                Err(ControlError::Missing { .. }) => {
                    let (sentry, _) = self.locate()?;
                    return Err(self.guest_gone(sentry));
                }
                // A sentry that refuses or talks nonsense will not do better the next time.
                Err(e @ (ControlError::Refused { .. } | ControlError::Garbage { .. })) => {
                    return Err(e.into());
                }
                Err(_) => why = "it does not answer",
            }
            if Instant::now() + LOOK_AGAIN >= deadline {
                return Err(SwitchError::StopStateUnknown {
                    sandbox: self.switch.id.clone(),
                    why,
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Whether somebody has paused the pod by runsc's own verb. That is a count of its own, which the dump
    /// cannot tell from ours; runsc notes it in the state files.
    fn paused_by_runsc(&self) -> bool {
        let record = &self.record;
        let root_container = ContainerId::from(&self.switch.id);
        record
            .containers
            .iter()
            .map(|c| &c.id)
            .chain([&root_container])
            .any(|id| {
                RunscState::read(&record.runtime_root, &self.switch.id, id)
                    .is_ok_and(|state| state.status == Status::Paused)
            })
    }

    fn thaw_for_probe(&mut self) -> Result<(), SwitchError> {
        if !self.record.wrapper {
            // Only pods under the wrapper are ever frozen by cgroup.
            return Ok(());
        }
        let cgroup = match self.find_cgroup() {
            Ok(cgroup) => cgroup,
            // A pod whose cgroup is not to be found was never frozen either.
            Err(SwitchError::Cgroup(_)) if self.record.switch.cgroup == CgroupState::Thawed => return Ok(()),
            Err(e) => return Err(e),
        };
        if cgroup.state()? == CgroupState::Frozen {
            cgroup.thaw(&self.record.pod.uid)?;
        }
        // The intent stays: it is the pause that is being settled.
        if self.record.switch.cgroup != CgroupState::Thawed {
            self.update(|r| r.switch.cgroup = CgroupState::Thawed)?;
        }
        Ok(())
    }
}
