//! Takes own swap down, if what it holds fits in RAM.

use std::path::PathBuf;

use dormouse_core::Reason;

use super::bring_up::clear_away;
use super::config::{MIB, SwapConfig};
use super::effects::{EffectError, GatherError, SwapEffects};
use super::facts::{ActiveSwap, Facts};
use super::plan::is_part;
use super::record::{Part, RecordError, RecordStore};

/// Own swap was not taken down, or not all of it. What is left is still recorded and still works.
#[derive(Debug, thiserror::Error)]
pub enum TakeDownError {
    /// Sleepers' pages would not fit in RAM.
    #[error(
        "the agent's swap ({}) stays on: it holds {} MiB, and of {} MiB available RAM {} MiB have to stay free; wake or delete sleepers first",
        list(.areas), .used / MIB, .available / MIB, .reserve / MIB
    )]
    DoesNotFit {
        /// The areas.
        areas: Vec<PathBuf>,
        /// What they hold, in bytes.
        used: u64,
        /// `MemAvailable`, in bytes.
        available: u64,
        /// What has to stay free, in bytes.
        reserve: u64,
    },
    /// The kernel or a helper refused.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// The node could not be looked at.
    #[error(transparent)]
    Gather(#[from] GatherError),
    /// The record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl TakeDownError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::DoesNotFit { .. } => Reason::InsufficientMemory,
            Self::Effect(_) | Self::Gather(_) => Reason::SwapSetupFailed,
            Self::Record(e) => e.reason(),
        }
    }
}

fn list(areas: &[PathBuf]) -> String {
    areas
        .iter()
        .map(|a| a.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What was taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TakenDown {
    /// The parts.
    pub parts: Vec<Part>,
    /// Bytes that came back into RAM.
    pub returned: u64,
}

/// Takes every own part down, the lowest priority first, so that what is left is the fastest.
pub(super) fn take_down(
    effects: &dyn SwapEffects,
    store: &RecordStore,
    config: &SwapConfig,
) -> Result<TakenDown, TakeDownError> {
    let Some(mut record) = store.load()? else {
        return Ok(TakenDown::default());
    };
    let facts: Facts = effects.gather(config, Some(record.clone()))?;
    let same_boot = record.boot_id == facts.boot_id;
    let reserve = config.take_down_reserve_mib.saturating_mul(MIB);
    let face = |p: &Part| facts.swaps.iter().find(|s| is_part(s, p, same_boot));
    let mut parts = record.parts.clone();
    parts.sort_by_key(|p| face(p).map_or(i32::MIN, |s| s.line.priority));
    let used: u64 = parts.iter().filter_map(face).map(|s| s.line.used).sum();
    let fits = used.saturating_add(reserve) <= facts.ram_available;
    // All or nothing where it can be known beforehand: half a take-down helps nobody.
    if used > 0 && !fits {
        let areas = parts
            .iter()
            .filter_map(face)
            .map(|s| s.line.path.clone())
            .collect();
        return Err(TakeDownError::DoesNotFit {
            areas,
            used,
            available: facts.ram_available,
            reserve,
        });
    }
    let mut out = TakenDown::default();
    for part in parts {
        // Each one's return changes what is available, so it is looked at again.
        let now = effects.gather(config, Some(record.clone()))?;
        match now.swaps.iter().find(|s| is_part(s, &part, same_boot)) {
            Some(active) => {
                out.returned = out.returned.saturating_add(active.line.used);
                off(effects, active, now.ram_available, reserve)?;
                clear_away(effects, &part, true)?;
            }
            None => clear_away(effects, &part, same_boot)?,
        }
        record.parts.retain(|p| *p != part);
        store.save(&record)?;
        out.parts.push(part);
    }
    Ok(out)
}

/// Takes one active part of this boot down.
pub(super) fn take_part(
    effects: &dyn SwapEffects,
    part: &Part,
    facts: &Facts,
    reserve: u64,
) -> Result<(), TakeDownError> {
    if let Some(active) = facts.swaps.iter().find(|s| is_part(s, part, true)) {
        off(effects, active, facts.ram_available, reserve)?;
    }
    Ok(clear_away(effects, part, true)?)
}

fn off(
    effects: &dyn SwapEffects,
    active: &ActiveSwap,
    available: u64,
    reserve: u64,
) -> Result<(), TakeDownError> {
    let used = active.line.used;
    if used > 0 && used.saturating_add(reserve) > available {
        return Err(TakeDownError::DoesNotFit {
            areas: vec![active.line.path.clone()],
            used,
            available,
            reserve,
        });
    }
    Ok(effects.swapoff(&active.line.path)?)
}
