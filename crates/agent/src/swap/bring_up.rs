//! Carries a plan out. Each step that leaves something behind is written down before it is taken.

use dormouse_core::Reason;

use super::effects::{EffectError, SwapEffects, TakenZram};
use super::facts::Facts;
use super::plan::{Build, COMPRESSORS, Plan};
use super::record::{Part, RecordError, RecordStore, SwapRecord};
use super::take_down::{self, TakeDownError};

/// Bringing up own swap failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// The record could not be written, so nothing is begun that could not be recognised later.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl BringUpError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Record(e) => e.reason(),
        }
    }
}

/// One part could not be brought.
#[derive(Debug, thiserror::Error)]
#[error("{what} could not be brought: {error}")]
pub struct PartFailure {
    /// Which part, for people.
    pub what: &'static str,
    /// Why.
    pub error: EffectError,
}

impl PartFailure {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        Reason::SwapSetupFailed
    }
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Brought {
    /// Own parts that are active now.
    pub active: Vec<Part>,
    /// Parts that could not be brought; nothing of them is left unless `left_over` says so.
    pub failed: Vec<PartFailure>,
    /// Remains of earlier parts that could not be cleared away; tried again at the next start.
    pub left_over: Vec<EffectError>,
    /// Own parts that are not wanted any more but still needed.
    pub not_retired: Vec<TakeDownError>,
}

/// Carries `plan` out.
///
/// # Errors
/// [`BringUpError::Record`]; failures of single parts are in the result.
pub(super) fn bring_up(
    effects: &dyn SwapEffects,
    store: &RecordStore,
    facts: &Facts,
    plan: &Plan,
    reserve: u64,
) -> Result<Brought, BringUpError> {
    let mut out = Brought::default();
    let mut record = SwapRecord::new(facts.boot_id.clone());
    record.parts = plan
        .keep
        .iter()
        .chain(&plan.retire)
        .chain(&plan.dismantle)
        .cloned()
        .collect();
    let same_boot = facts.record.as_ref().is_some_and(|r| r.boot_id == facts.boot_id);
    for part in &plan.dismantle {
        // zram devices and mappings of an earlier boot are gone; the same names may be somebody else's now.
        match clear_away(effects, part, same_boot) {
            Ok(()) => forget(&mut record, part),
            Err(e) => {
                if !same_boot {
                    // Only its file can be left, and it must not be taken for one of this boot.
                    forget(&mut record, part);
                    if let Part::File { path, bytes, .. } = part {
                        record.parts.push(Part::File {
                            path: path.clone(),
                            bytes: *bytes,
                            mapping: None,
                        });
                    }
                }
                out.left_over.push(e);
            }
        }
    }
    if facts.record.is_some() {
        store.save(&record)?;
    }
    for part in &plan.retire {
        match take_down::take_part(effects, part, facts, reserve) {
            Ok(()) => {
                forget(&mut record, part);
                store.save(&record)?;
            }
            Err(e) => out.not_retired.push(e),
        }
    }
    for build in &plan.build {
        let done = match build {
            Build::Zram { bytes, priority } => bring_zram(effects, store, &mut record, *bytes, *priority)?,
            Build::File {
                path,
                bytes,
                priority,
                mapping,
            } => {
                let part = Part::File {
                    path: path.clone(),
                    bytes: *bytes,
                    mapping: mapping.clone(),
                };
                if record
                    .parts
                    .iter()
                    .any(|p| matches!(p, Part::File { path: old, .. } if old == path))
                {
                    Err(("the swap file", EffectError::NotOurs(path.clone())))
                } else {
                    bring_file(effects, store, &mut record, &part, *priority)?
                }
            }
        };
        match done {
            Ok(part) => out.active.push(part),
            Err((what, error)) => out.failed.push(PartFailure { what, error }),
        }
    }
    out.active.splice(0..0, plan.keep.iter().cloned());
    Ok(out)
}

fn forget(record: &mut SwapRecord, part: &Part) {
    record.parts.retain(|p| p != part);
}

type Outcome = Result<Part, (&'static str, EffectError)>;

fn bring_zram(
    effects: &dyn SwapEffects,
    store: &RecordStore,
    record: &mut SwapRecord,
    bytes: u64,
    priority: u16,
) -> Result<Outcome, RecordError> {
    let taken = match effects.zram_take() {
        Ok(taken) => taken,
        Err(e) => return Ok(Err(("zram", e))),
    };
    let part = Part::Zram {
        index: taken.index,
        bytes,
        hot_added: taken.hot_added,
    };
    record.parts.push(part.clone());
    store.save(record)?;
    let mut sized = false;
    let done = effects
        .zram_size(taken.index, COMPRESSORS, bytes)
        .and_then(|device| {
            sized = true;
            effects.mkswap(&device)?;
            effects.swapon(&device, priority)
        });
    match done {
        Ok(()) => Ok(Ok(part)),
        Err(e) => {
            // A device that somebody else gave its size is not ours to drop.
            if (sized || taken.hot_added) && effects.zram_drop(taken, bytes).is_err() {
                return Ok(Err(("zram", e)));
            }
            forget(record, &part);
            store.save(record)?;
            Ok(Err(("zram", e)))
        }
    }
}

fn bring_file(
    effects: &dyn SwapEffects,
    store: &RecordStore,
    record: &mut SwapRecord,
    part: &Part,
    priority: u16,
) -> Result<Outcome, RecordError> {
    let Part::File { path, bytes, mapping } = part else {
        return Ok(Ok(part.clone()));
    };
    let what = "the swap file";
    // Checked before the record names it: a foreign file of this name must never be cleared away as ours.
    if path.symlink_metadata().is_ok() {
        return Ok(Err((what, EffectError::NotOurs(path.clone()))));
    }
    record.parts.push(part.clone());
    store.save(record)?;
    let done = effects.file_make(path, *bytes).and_then(|()| {
        let device = match mapping {
            Some(name) => effects.crypt_open(name, path)?,
            None => path.clone(),
        };
        effects.mkswap(&device)?;
        effects.swapon(&device, priority)
    });
    match done {
        Ok(()) => Ok(Ok(part.clone())),
        Err(e) => {
            let ours = !matches!(&e, EffectError::NotOurs(p) if p == path);
            if ours && clear_away(effects, part, true).is_err() {
                return Ok(Err((what, e)));
            }
            forget(record, part);
            store.save(record)?;
            Ok(Err((what, e)))
        }
    }
}

/// Removes what is left of a part that is not (or no longer) swapped on.
pub(super) fn clear_away(effects: &dyn SwapEffects, part: &Part, same_boot: bool) -> Result<(), EffectError> {
    match part {
        Part::Zram {
            index,
            bytes,
            hot_added,
        } if same_boot => effects.zram_drop(
            TakenZram {
                index: *index,
                hot_added: *hot_added,
            },
            *bytes,
        ),
        Part::Zram { .. } => Ok(()),
        Part::File { path, mapping, .. } => {
            if let (true, Some(name)) = (same_boot, mapping) {
                effects.crypt_close(name, path)?;
            }
            effects.file_remove(path)
        }
    }
}
