//! RCU grace periods that do not take their time.
//!
//! The kernel waits for a grace period whenever a packet socket gets a filter or is closed, a network namespace changes,
//! or a process changes its cgroup: once when a guest is cut off from the wire, two or three times while its sentry ends,
//! and again and again while a new one is made. Each takes some 14 ms on a node with little to do, and everybody waits for
//! the pod meanwhile. While such a step lasts the kernel is told to hurry (`/sys/kernel/rcu_expedited`, see the kernel's
//! `rcupdate.rcu_expedited`): it then interrupts every processor once and is through in a fraction of a millisecond.
//!
//! A node that must not be interrupted sets `/sys/kernel/rcu_normal` (`rcupdate.rcu_normal`), which counts for more. A node
//! that hurries anyway is left as it is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_sentry::RunDir;

/// The kernel's switch.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The node's grace periods.
#[derive(Debug, Clone)]
pub struct GracePeriods(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    switch: PathBuf,
    /// There as long as the switch is ours, so that it is put back if this process is killed.
    mark: PathBuf,
    steps: Mutex<u32>,
}

/// Grace periods are expedited until the last of these is dropped.
#[derive(Debug)]
#[must_use]
pub struct Expedited(Arc<Inner>);

impl GracePeriods {
    /// Those of this node; what an earlier process has left switched on is switched off.
    #[must_use]
    pub fn of_node(run_dir: &RunDir) -> Self {
        Self::new(Path::new(SWITCH), run_dir.path().join("rcu-expedited"))
    }

    fn new(switch: &Path, mark: PathBuf) -> Self {
        let this = Inner {
            switch: switch.to_owned(),
            mark,
            steps: Mutex::new(0),
        };
        this.put_back();
        Self(Arc::new(this))
    }

    /// Begins; does nothing where the switch cannot be used. Nothing but time depends on it.
    pub fn expedite(&self) -> Expedited {
        let mut steps = self.0.open();
        if *steps == 0 {
            self.0.switch_on();
        }
        *steps = steps.saturating_add(1);
        Expedited(Arc::clone(&self.0))
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, u32> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn switch_on(&self) {
        let is_off = std::fs::read_to_string(&self.switch).is_ok_and(|text| text.trim() == "0");
        if is_off && std::fs::write(&self.mark, "").is_ok() && std::fs::write(&self.switch, "1").is_err() {
            let _ = std::fs::remove_file(&self.mark);
        }
    }

    fn put_back(&self) {
        if self.mark.exists() && std::fs::write(&self.switch, "0").is_ok() {
            let _ = std::fs::remove_file(&self.mark);
        }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        let mut steps = self.0.open();
        *steps = steps.saturating_sub(1);
        if *steps == 0 {
            self.0.put_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_is_on_while_anybody_needs_it_and_ours_alone_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let (switch, mark) = (dir.path().join("switch"), dir.path().join("mark"));
        let is = |value: &str| assert_eq!(std::fs::read_to_string(&switch).unwrap().trim(), value);
        std::fs::write(&switch, "0\n").unwrap();
        let grace = GracePeriods::new(&switch, mark.clone());
        let (first, second) = (grace.expedite(), grace.expedite());
        is("1");
        drop(first);
        is("1");
        drop(second);
        is("0");
        assert!(!mark.exists());
        // Killed in the middle.
        std::mem::forget(grace.expedite());
        let grace = GracePeriods::new(&switch, mark.clone());
        is("0");
        // The node's own will.
        std::fs::write(&switch, "1\n").unwrap();
        drop(grace.expedite());
        is("1");
        // None at all.
        drop(GracePeriods::new(&dir.path().join("none"), mark).expedite());
    }
}
