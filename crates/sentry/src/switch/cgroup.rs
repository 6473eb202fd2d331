//! Freezing and thawing the pod's cgroup.

use std::time::Instant;

use fail::fail_point;

use super::{Held, SwitchError};
use crate::cgroup::PodCgroup;
use crate::record::{CgroupState, IntentKind};

impl Held {
    /// The pod's cgroup, found once and noted in the record.
    ///
    /// # Errors
    /// [`SwitchError`]
    pub fn find_cgroup(&mut self) -> Result<PodCgroup, SwitchError> {
        if let Some(cgroup) = &self.record.cgroup {
            return Ok(cgroup.clone());
        }
        let (sentry, _) = self.locate()?;
        let cgroup = PodCgroup::find(sentry.pid, &self.record.pod.uid)?;
        self.update(|r| r.cgroup = Some(cgroup.clone()))?;
        Ok(cgroup)
    }

    /// Freezes the sentry and the gofers by their cgroup, with the guest's last answers kept for those who ask
    /// meanwhile. The guest must be paused and the pod must run under the wrapper. Idempotent.
    ///
    /// # Errors
    /// [`SwitchError::NotPaused`] where a wake came first, [`SwitchError::Visited`] while a command on the guest is
    /// under way; after any error the cgroup is thawed.
    pub fn freeze_cgroup(&mut self) -> Result<(), SwitchError> {
        if !self.record.wrapper {
            return Err(SwitchError::WrapperMissing {
                sandbox: self.switch.id.clone(),
            });
        }
        if self.record.switch.intent.is_some() {
            self.settle()?;
        }
        if !self.record.switch.paused {
            return Err(SwitchError::NotPaused {
                sandbox: self.switch.id.clone(),
            });
        }
        if self.record.switch.cgroup == CgroupState::Frozen {
            return Ok(());
        }
        let _closed = self.close()?;
        let (sentry, _) = self.locate()?;
        let cgroup = self.find_cgroup()?;
        self.capture()?;
        fail_point!("switch::freeze_cgroup::before_intent");
        self.intend(IntentKind::CgroupFreeze)?;
        fail_point!("switch::freeze_cgroup::before_freeze");
        let frozen = cgroup.freeze(
            &self.record.pod.uid,
            sentry,
            Instant::now() + self.switch.timeouts.freeze,
        );
        fail_point!("switch::freeze_cgroup::after_freeze");
        let state = if frozen.is_ok() {
            CgroupState::Frozen
        } else {
            cgroup.state()?
        };
        self.conclude(|r| r.switch.cgroup = state)?;
        fail_point!("switch::freeze_cgroup::after_outcome");
        Ok(frozen?)
    }

    /// Thaws the pod's cgroup; the application stays paused (a housekeeping thaw). Idempotent.
    ///
    /// # Errors
    /// [`SwitchError`]
    pub fn thaw_cgroup(&mut self) -> Result<(), SwitchError> {
        if self.thaw_unrecorded()? {
            self.store()?;
        }
        Ok(())
    }

    /// Thaws and changes the record in memory only; `true` where it has to be stored.
    ///
    /// A thaw needs no intent: until it is recorded the record says `Frozen`, and whoever reads that thaws
    /// once more, which does no harm.
    pub(super) fn thaw_unrecorded(&mut self) -> Result<bool, SwitchError> {
        let switch = &self.record.switch;
        let freezing = switch.intent.is_some_and(|i| i.kind == IntentKind::CgroupFreeze);
        if switch.cgroup == CgroupState::Thawed && !freezing {
            return Ok(false);
        }
        let cgroup = self.find_cgroup()?;
        fail_point!("switch::thaw_cgroup::before_thaw");
        cgroup.thaw(&self.record.pod.uid)?;
        fail_point!("switch::thaw_cgroup::after_thaw");
        self.record.switch.cgroup = CgroupState::Thawed;
        if freezing {
            self.record.switch.intent = None;
        }
        Ok(true)
    }
}
