//! Stopping the application.

use std::time::{Duration, Instant};

use fail::fail_point;

use super::{Held, SwitchError};
use crate::control::ControlError;
use crate::record::IntentKind;

/// What a pause did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseReport {
    /// The guest was stopped already.
    pub already: bool,
    /// How long the guest took to stop.
    pub took: Duration,
}

impl Held {
    /// Stops the application; its sentry and network stack run on. Idempotent.
    ///
    /// # Errors
    /// [`SwitchError::Visited`] while a command on the guest is under way; other [`SwitchError`]s; unless it is [`SwitchError::StopStateUnknown`], the record says what is true.
    pub fn pause(&mut self) -> Result<PauseReport, SwitchError> {
        if self.record.switch.intent.is_some() {
            self.settle()?;
        }
        let (_, socket) = self.locate()?;
        if self.record.switch.paused {
            return Ok(PauseReport {
                already: true,
                took: Duration::ZERO,
            });
        }
        let _closed = self.close()?;
        fail_point!("switch::pause::before_intent");
        self.intend(IntentKind::Pause)?;
        fail_point!("switch::pause::before_call");
        let started = Instant::now();
        let answer = socket.pause(self.call_deadline());
        let took = started.elapsed();
        fail_point!("switch::pause::after_call");
        self.after_call(answer, true)?;
        fail_point!("switch::pause::after_outcome");
        Ok(PauseReport { already: false, took })
    }

    /// Writes down what came of a call that was to make `paused` true or false.
    pub(super) fn after_call(
        &mut self,
        answer: Result<(), ControlError>,
        paused: bool,
    ) -> Result<(), SwitchError> {
        match answer {
            Ok(()) => self.conclude(|r| r.switch.paused = paused)?,
            Err(e) if e.surely_not_done() => {
                self.conclude(|_| {})?;
                return Err(e.into());
            }
            Err(e) => {
                // It may have been done or not: look, while the lock is held. What cannot be told stays an
                // open intent, and the next one looks again.
                if self.settle()? != paused {
                    return Err(e.into());
                }
            }
        }
        Ok(())
    }
}
