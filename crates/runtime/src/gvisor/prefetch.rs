//! Brings a woken guest's pages back, the sentry's first, and notes which it needs first.

use dormouse_core::{Reason, WakeSource};
use dormouse_sentry::{PodCgroup, Switch};

use super::{LOCK, Parts};
use crate::brake::not_cancelled;
use crate::driver::{Cancel, DriverError, Guest, PrefetchReport};
use crate::failure::Verb;
use crate::pageout::processes;
use crate::prefetch::of_cgroup;
use crate::working_set::{Mapped, WorkingSet};

pub(super) fn prefetch(
    parts: &Parts,
    guest: &Guest,
    source: WakeSource,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<PrefetchReport, DriverError> {
    let cgroup = parts.cgroup(guest, verb)?;
    let switch = parts.switch(guest, verb)?;
    let record = switch.record().map_err(|e| verb.failed(e.reason(), None, e))?;
    let first = record.sentry.map(|s| s.pid);
    let limits = parts.prefetch.after(source);
    catch_up(parts, &cgroup, &parts.working_set(&switch), cancel);
    let mut measured = |mapped| note(parts, &switch, verb, mapped);
    let measured: Option<&mut dyn FnMut(Mapped)> = (parts.working_set > 0).then_some(&mut measured);
    of_cgroup(&*parts.kernel, &cgroup, first, limits, measured, cancel)
        .map_err(|e| verb.failed(Reason::Internal, None, e))
}

/// Notes what the guest has touched since its wake.
pub(super) fn learn(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<(), DriverError> {
    let kernel = &*parts.kernel;
    let cgroup = parts.cgroup(guest, verb)?;
    let switch = parts.switch(guest, verb)?;
    let record = switch.record().map_err(|e| verb.failed(e.reason(), None, e))?;
    let first = record.sentry.map(|s| s.pid);
    let mapped = processes(kernel, cgroup.memory_dir())
        .and_then(|all| Mapped::measure(kernel, &all, first, &mut || not_cancelled(cancel)));
    let mapped = mapped.map_err(|e| verb.failed(Reason::Internal, None, e))?;
    note(parts, &switch, verb, mapped);
    Ok(())
}

fn note(parts: &Parts, switch: &Switch, verb: Verb<'_>, mapped: Mapped) {
    // Under the lock: a pod that is forgotten meanwhile must not get a new file.
    let Ok(held) = switch.lock(LOCK) else { return };
    let path = parts.run_dir.working_set_path(switch.id());
    let set = WorkingSet::read(&path).after(mapped, parts.working_set);
    let written = set.write(&path);
    drop(held);
    let (sandbox, bytes) = (verb.sandbox_id, set.bytes());
    match written {
        Ok(()) => tracing::debug!(sandbox, bytes, "working set measured"),
        Err(error) => {
            tracing::debug!(sandbox, %error, "the working set was not kept; the next wake may take longer");
        }
    }
}

/// Brings back at once what the kernel has taken of the working set since the doze: many reads at a time, while the guest
/// makes one after the other. It takes what nobody has mapped first, and that is all of the set.
fn catch_up(parts: &Parts, cgroup: &PodCgroup, set: &WorkingSet, cancel: &Cancel) {
    if set.bytes() == 0 {
        return;
    }
    let kernel = &*parts.kernel;
    if let Ok(processes) = processes(kernel, cgroup.memory_dir()) {
        // Called off, it has nothing to take back.
        let _ = set.bring_back(kernel, &processes, &mut || not_cancelled(cancel));
    }
}
