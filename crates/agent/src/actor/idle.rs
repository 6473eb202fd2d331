//! CPU use as a sign of life: a pod that computes is not idle, whatever the wire says.

use std::time::Duration;

use dormouse_core::{Input, Moment, Rung};
use dormouse_runtime::Driver as _;

use super::Actor;

/// Never more often than this.
const SHORTEST: Duration = Duration::from_millis(200);
/// At least this often while it matters.
const LONGEST: Duration = Duration::from_secs(15);

/// Measures CPU use between two looks at the pod's cgroup.
#[derive(Debug)]
pub(super) struct CpuMeter {
    floor_millicores: u32,
    last: Option<(Moment, u64)>,
    due: Option<Moment>,
}

impl CpuMeter {
    pub(super) const fn new(floor_millicores: u32) -> Self {
        Self {
            floor_millicores,
            last: None,
            due: None,
        }
    }

    /// When the next look is due; `None` while none is.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Forgets what was measured: the pod slept meanwhile.
    pub(super) const fn reset(&mut self) {
        self.last = None;
        self.due = None;
    }

    /// Takes a reading; whether the use since the last one is above the floor.
    fn read(&mut self, now: Moment, cpu_nanos: u64) -> bool {
        let Some((then, before)) = self.last.replace((now, cpu_nanos)) else {
            return false;
        };
        let elapsed = now.since(then).as_nanos();
        if elapsed == 0 {
            return false;
        }
        let millicores = u128::from(cpu_nanos.saturating_sub(before)) * 1000 / elapsed;
        millicores >= u128::from(self.floor_millicores.max(1))
    }
}

impl Actor {
    /// Sets the next look at the CPU, if one is needed: only running pods that may fall asleep are looked at.
    pub(super) fn arm_cpu_meter(&mut self) {
        let watched = self.state.rung == Rung::Running
            && self.state.transition.is_none()
            && self.state.managed
            && self.state.abilities.freeze.is_ok();
        let Some(after) = self.state.policy.freezes_after().filter(|_| watched) else {
            self.idle.reset();
            return;
        };
        if self.idle.due.is_none() {
            let pause = (after / 4).clamp(SHORTEST, LONGEST);
            // The first look only takes the starting value.
            let pause = if self.idle.last.is_none() {
                Duration::ZERO
            } else {
                pause
            };
            self.idle.due = Some(crate::clock::now().after(pause));
        }
    }

    pub(super) async fn measure_cpu(&mut self, now: Moment) {
        self.idle.due = None;
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        if let Ok(resident) = driver.resident(&self.guest).await {
            self.resident = resident.cgroup;
            if self.idle.read(now, resident.cpu_nanos) {
                self.apply(Input::Activity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_use_above_the_floor_counts() {
        let at = |s| Moment::from_start(Duration::from_secs(s));
        let mut meter = CpuMeter::new(50);
        assert!(!meter.read(at(0), 0), "the first reading says nothing");
        assert!(!meter.read(at(1), 49_000_000));
        assert!(meter.read(at(2), 100_000_000));
        assert!(!meter.read(at(2), 900_000_000), "no time passed");
        meter.reset();
        assert!(!meter.read(at(3), u64::MAX));
    }
}
