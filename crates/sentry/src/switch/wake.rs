//! Waking, from whatever state.

use std::time::{Duration, Instant};

use dormouse_core::Rung;

use super::{Held, SwitchError};
use crate::record::{CgroupState, now_ms};

/// What a wake did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeReport {
    /// Whether the guest was asleep.
    pub woken: bool,
    /// Whether its cgroup was frozen.
    pub was_frozen: bool,
    /// How long the thaw of the cgroup took.
    pub thaw: Duration,
    /// How long the guest took to continue.
    pub resume: Duration,
    /// The record's count of wakes after this one.
    pub wakes: u64,
}

impl Held {
    /// Makes the guest run, from whatever state: puts lowered limits back, thaws the cgroup, continues the
    /// application. Idempotent.
    ///
    /// # Errors
    /// [`SwitchError`]; what was done until then is in the record.
    pub fn wake(&mut self) -> Result<WakeReport, SwitchError> {
        let asleep = self.record.switch.is_asleep();
        let was_frozen = self.record.switch.cgroup == CgroupState::Frozen;
        if !asleep && self.record.limits.is_empty() {
            let wakes = self.record.switch.wakes;
            let zero = Duration::ZERO;
            return Ok(WakeReport {
                woken: false,
                was_frozen,
                thaw: zero,
                resume: zero,
                wakes,
            });
        }
        self.restore_limits();
        let started = Instant::now();
        self.thaw_unrecorded()?;
        let thawed = Instant::now();
        // Counted before the guest runs: whoever is in the middle of putting it to sleep finds the number
        // changed in every state that this can be interrupted in.
        self.record.switch.wakes = self.record.switch.wakes.wrapping_add(1);
        self.record.switch.rung = Rung::Running;
        self.record.switch.since_ms = now_ms();
        // A resume stores the record by itself.
        let paused = self.record.switch.paused || self.record.switch.intent.is_some();
        if paused {
            self.resume()?;
        }
        if !paused {
            self.store()?;
        }
        Ok(WakeReport {
            woken: asleep,
            was_frozen,
            thaw: thawed.duration_since(started),
            resume: thawed.elapsed(),
            wakes: self.record.switch.wakes,
        })
    }
}
