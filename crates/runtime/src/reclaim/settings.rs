//! Settings of the pod's cgroups that keep the kernel from swapping, and their change for the time of a sleep.

use std::path::{Path, PathBuf};

use super::restore::restore;
use super::{Ledger, LoweredLimit, ReclaimError, Restored, number, text};
use crate::kernel::Kernel;
use crate::pageout::levels;

/// Swappiness while a cgroup is reclaimed: memory and files alike.
const SWAPPINESS: u64 = 100;

/// On cgroup v1, what has to change so that the pod's levels swap readily: `memory.swappiness` at every level that
/// has less than 100.
///
/// # Errors
/// [`ReclaimError`]
pub fn swappiness_of<K: Kernel + ?Sized>(kernel: &K, dir: &Path) -> Result<Vec<LoweredLimit>, ReclaimError> {
    let mut changes = Vec::new();
    for level in levels(kernel, dir)? {
        let path = level.join("memory.swappiness");
        let Some(found) = unless_gone(number(kernel, &path))? else {
            continue;
        };
        if found < SWAPPINESS {
            changes.push(LoweredLimit {
                path,
                original: found.to_string(),
                current: SWAPPINESS.to_string(),
            });
        }
    }
    Ok(changes)
}

/// On cgroup v2, what has to change so that the pod's levels may swap at all: `memory.swap.max` at every level of the
/// pod where it is 0. Levels above the pod are not looked at.
///
/// # Errors
/// [`ReclaimError`]
pub fn swap_limits_of<K: Kernel + ?Sized>(kernel: &K, dir: &Path) -> Result<Vec<LoweredLimit>, ReclaimError> {
    let mut changes = Vec::new();
    for level in levels(kernel, dir)? {
        let path = level.join("memory.swap.max");
        let Some(found) = unless_gone(text(kernel, &path))? else {
            continue;
        };
        if found == "0" {
            changes.push(LoweredLimit {
                path,
                original: found,
                current: "max".to_owned(),
            });
        }
    }
    Ok(changes)
}

/// Whether a change is meant for as long as the pod sleeps, and not only for the time of a reclaim:
/// `memory.swap.max` stays raised, the others do not stand a moment longer than they must.
#[must_use]
pub fn lasts_over_sleep(change: &LoweredLimit) -> bool {
    change.path.file_name().is_some_and(|n| n == "memory.swap.max")
}

/// Makes these changes, each noted beforehand. Where one fails, those before it are taken back.
///
/// # Errors
/// [`ReclaimError`]
pub fn raise<K: Kernel + ?Sized>(
    kernel: &K,
    changes: &[LoweredLimit],
    ledger: &mut dyn Ledger,
) -> Result<(), ReclaimError> {
    let mut made: Vec<&LoweredLimit> = Vec::new();
    for change in changes {
        let result = raise_one(kernel, change, ledger);
        if let Err(error) = result {
            for change in made.iter().rev() {
                if matches!(restore(kernel, change), Ok(Restored::PutBack | Restored::Gone)) {
                    let _ = ledger.cross_out(&change.path);
                }
            }
            return Err(error);
        }
        made.push(change);
    }
    Ok(())
}

fn raise_one<K: Kernel + ?Sized>(
    kernel: &K,
    change: &LoweredLimit,
    ledger: &mut dyn Ledger,
) -> Result<(), ReclaimError> {
    let path: PathBuf = change.path.clone();
    ledger.note(change).map_err(|source| ReclaimError::Note {
        path: path.clone(),
        source,
    })?;
    fail::fail_point!("reclaim::raise::noted");
    match kernel.write(&path, &change.current) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(source) => Err(ReclaimError::Write {
            path,
            value: change.current.clone(),
            source,
        }),
    }
}

/// `None` where a container's cgroup went away meanwhile, or the kernel has no such file.
fn unless_gone<T>(found: Result<T, ReclaimError>) -> Result<Option<T>, ReclaimError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(ReclaimError::Read { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
