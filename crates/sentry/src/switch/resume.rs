//! Continuing the application.

use fail::fail_point;

use super::{Held, SwitchError};
use crate::record::IntentKind;

impl Held {
    /// Continues the application. Idempotent: a guest that runs is left alone.
    ///
    /// With the cgroup frozen nobody would answer; [`Held::wake`] thaws it first.
    ///
    /// # Errors
    /// [`SwitchError`]; unless it is [`SwitchError::StopStateUnknown`], the record says what is true.
    pub fn resume(&mut self) -> Result<(), SwitchError> {
        if self.record.switch.intent.is_some() {
            self.settle()?;
        }
        if !self.record.switch.paused {
            return Ok(());
        }
        let (_, socket) = self.locate()?;
        fail_point!("switch::resume::before_intent");
        self.intend(IntentKind::Resume)?;
        fail_point!("switch::resume::before_call");
        let answer = socket.resume(self.call_deadline());
        fail_point!("switch::resume::after_call");
        for container in &mut self.record.containers {
            container.last_known = None;
        }
        self.after_call(answer, false)?;
        fail_point!("switch::resume::after_outcome");
        Ok(())
    }
}
