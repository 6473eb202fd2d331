//! CPU use as a sign of life: a pod that computes is not idle, whatever the wire says.

use std::time::Duration;

use dormouse_core::{Input, Moment, Rung};
use dormouse_runtime::Driver as _;

use super::Actor;

/// Never more often than this.
const SHORTEST: Duration = Duration::from_millis(200);
/// At least this often while it matters.
const LONGEST: Duration = Duration::from_secs(15);

/// What goes on in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestUse {
    /// CPU time that it has used, in nanoseconds.
    pub cpu_nanos: u64,
    /// Execs that run in it.
    pub execs: u32,
}

/// Measures CPU use between two looks at the pod's cgroup.
#[derive(Debug)]
pub(super) struct CpuMeter {
    floor_millicores: u32,
    last: Option<(Moment, u64)>,
    due: Option<Moment>,
    /// Since when somebody works in the pod on the node's behalf, and the use by then.
    excused_since: Option<(Moment, u64)>,
    /// For how long, and with how much use, since the last reading.
    excused: (Duration, u64),
    /// How long a reading may be put off that would say nothing but what was excused.
    patience: Duration,
}

impl CpuMeter {
    pub(super) const fn new(floor_millicores: u32) -> Self {
        Self {
            floor_millicores,
            last: None,
            due: None,
            excused_since: None,
            excused: (Duration::ZERO, 0),
            patience: Duration::ZERO,
        }
    }

    /// Whether use is measured at all now.
    pub(super) const fn is_on(&self) -> bool {
        self.due.is_some()
    }

    /// What is used from here on is the node's own doing, as a probe's, and no sign of life.
    pub(super) fn excuse(&mut self, now: Moment, cpu_nanos: u64) {
        self.excused_since.get_or_insert((now, cpu_nanos));
    }

    /// Ends that.
    pub(super) fn excuse_no_more(&mut self, now: Moment, cpu_nanos: u64) {
        if let Some((since, before)) = self.excused_since.take() {
            self.excused.0 = self.excused.0.saturating_add(now.since(since));
            self.excused.1 = self.excused.1.saturating_add(cpu_nanos.saturating_sub(before));
        }
    }

    /// When the next look is due; `None` while none is.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Forgets what was measured: the pod slept meanwhile.
    pub(super) fn reset(&mut self) {
        self.last = None;
        self.due = None;
        self.excused_since = None;
        self.excused = (Duration::ZERO, 0);
    }

    /// Takes a reading; whether the use since the last one is above the floor.
    fn read(&mut self, now: Moment, cpu_nanos: u64) -> bool {
        if self.excused_since.is_some() {
            self.excuse_no_more(now, cpu_nanos);
            self.excuse(now, cpu_nanos);
        }
        let Some((then, before)) = self.last else {
            self.last = Some((now, cpu_nanos));
            self.excused = (Duration::ZERO, 0);
            return false;
        };
        let (whole, used) = (now.since(then), cpu_nanos.saturating_sub(before));
        let (excused, excused_nanos) = self.excused;
        let own = whole.saturating_sub(excused);
        let is_enough = own >= SHORTEST || own >= whole / 4;
        if !is_enough && whole < self.patience {
            // The next reading says more.
            return false;
        }
        self.last = Some((now, cpu_nanos));
        self.excused = (Duration::ZERO, 0);
        // Of one that is hardly ever left to itself, all counts: its own use would not be seen otherwise.
        let (elapsed, used) = if is_enough {
            (own, used.saturating_sub(excused_nanos))
        } else {
            (whole, used)
        };
        if elapsed.is_zero() {
            return false;
        }
        is_life(used, elapsed, self.floor_millicores)
    }
}

/// Whether so much CPU time in so long is a sign of life.
pub(crate) fn is_life(cpu_nanos: u64, elapsed: Duration, floor_millicores: u32) -> bool {
    let millicores = u128::from(cpu_nanos) * 1000 / elapsed.as_nanos().max(1);
    millicores >= u128::from(floor_millicores.max(1))
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
            self.idle.patience = after / 2;
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

    /// What goes on in a guest that runs.
    pub(super) async fn look_at_use(&self) -> Option<GuestUse> {
        let driver = self.kind.and_then(|kind| self.ctx.driver(kind))?;
        let runs = self.state.rung == Rung::Running;
        let resident = driver.resident(&self.guest).await.ok().filter(|_| runs)?;
        Some(GuestUse {
            cpu_nanos: resident.cpu_nanos,
            execs: self.state.execs,
        })
    }

    /// A probe begins (`excused`), or the last of them has ended: what the guest computes for them says nothing.
    pub(super) async fn excuse_cpu(&mut self, excused: bool) {
        if !self.idle.is_on() {
            return;
        }
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        if let Ok(resident) = driver.resident(&self.guest).await {
            let now = crate::clock::now();
            if excused {
                self.idle.excuse(now, resident.cpu_nanos);
            } else {
                self.idle.excuse_no_more(now, resident.cpu_nanos);
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

    #[test]
    fn what_is_done_for_a_probe_does_not_count() {
        let at = |ms| Moment::from_start(Duration::from_millis(ms));
        let mut meter = CpuMeter::new(50);
        meter.read(at(0), 0);
        meter.excuse(at(100), 1_000_000);
        meter.excuse(at(150), 2_000_000);
        meter.excuse_no_more(at(400), 201_000_000);
        assert!(
            !meter.read(at(1000), 220_000_000),
            "200 of 220 ms were the probe's"
        );
        // One that goes on over a reading.
        meter.excuse(at(1900), 230_000_000);
        assert!(!meter.read(at(2000), 330_000_000));
        meter.excuse_no_more(at(2100), 430_000_000);
        assert!(!meter.read(at(3000), 450_000_000));
        assert!(meter.read(at(4000), 600_000_000), "its own");
        // The guest is never left to itself: that is put off for a while, and then all counts.
        meter.patience = Duration::from_secs(2);
        meter.excuse(at(4050), 600_000_000);
        assert!(!meter.read(at(4800), 800_000_000));
        assert!(meter.read(at(6000), 1_200_000_000));
        assert!(!meter.read(at(6700), 1_400_000_000));
        meter.excuse_no_more(at(6800), 1_450_000_000);
        assert!(!meter.read(at(7100), 1_460_000_000), "10 ms in 300 are its own");
    }
}
