//! Frozen or Dozing -> Running: cgroup thaw, then Resume; settings of the cgroup are put back behind the running guest.

use std::time::Instant;

use dormouse_sentry::Held;

use super::{Parts, switch_failed};
use crate::driver::{DriverError, Guest, WakeReport};
use crate::failure::Verb;
use crate::reclaim::{LoweredLimit, restore_all};

pub(super) fn wake(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<WakeReport, DriverError> {
    let began = Instant::now();
    let mut held = parts.lock(guest, verb)?;
    let lock = began.elapsed();
    fail::fail_point!("gvisor::wake::locked");
    // Puts lowered limits back first, then thaws, then resumes.
    let woken = held.wake().map_err(|e| switch_failed(verb, &held, e))?;
    fail::fail_point!("gvisor::wake::resumed");
    restore_settings(parts, &mut held, verb);
    Ok(WakeReport {
        lock,
        cgroup_thaw: woken.thaw,
        resume: woken.resume,
    })
}

/// Puts back what the record lists as changed (`memory.swap.max`, `memory.swappiness`, limits), and returns how many
/// limits that were. What cannot be put back stays listed for the next wake or probe.
pub(super) fn restore_settings(parts: &Parts, held: &mut Held, verb: Verb<'_>) -> u32 {
    let limits = held.record().limits.clone();
    restore_these(parts, held, verb, &limits)
}

pub(super) fn restore_these(parts: &Parts, held: &mut Held, verb: Verb<'_>, limits: &[LoweredLimit]) -> u32 {
    if limits.is_empty() {
        return 0;
    }
    let (put_back, failed) = restore_all(&*parts.kernel, limits);
    for (limit, error) in &failed {
        tracing::warn!(
            sandbox = verb.sandbox_id,
            path = %limit.path.display(),
            value = limit.original,
            %error,
            "a setting of the pod's cgroup could not be put back; it is tried again at the next wake"
        );
    }
    let done = held.update(|r| {
        r.limits
            .retain(|l| !limits.contains(l) || failed.iter().any(|(f, _)| f.path == l.path));
    });
    if let Err(error) = done {
        // They are back, which the next reader finds out by comparison.
        tracing::warn!(sandbox = verb.sandbox_id, %error, "the pod's record still lists settings that are back");
    }
    put_back
}
