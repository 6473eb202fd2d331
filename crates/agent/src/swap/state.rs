//! How the swap is doing: read often, so it reads little.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use dormouse_core::Reason;

use super::config::MIB;
use super::effects::GatherError;
use super::facts::{ActiveSwap, Protection, SwapLine};
use super::gather;
use super::plan::is_part;
use super::record::Part;

/// Who turned an area on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Owner {
    /// This agent (or the one before it in this boot).
    Own,
    /// Somebody else; never touched.
    Foreign,
}

/// One active area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// Device or file, as `/proc/swaps` names it.
    pub path: PathBuf,
    /// Who turned it on.
    pub owner: Owner,
    /// What keeps it from prying eyes.
    pub protection: Protection,
    /// Size in bytes.
    pub total: u64,
    /// Occupied bytes.
    pub used: u64,
    /// Priority.
    pub priority: i32,
}

/// All zram areas together (`mm_stat`), in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZramState {
    /// What was put in.
    pub original: u64,
    /// What it was compressed to.
    pub compressed: u64,
    /// RAM that it occupies in all (`mem_used_total`).
    pub occupied: u64,
}

/// How the swap is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapState {
    /// Whether a sleeper's pages may go out now; otherwise why not.
    pub usable: Result<(), Reason>,
    /// Size of all areas, in bytes.
    pub total: u64,
    /// Free bytes in all areas.
    pub free: u64,
    /// zram, if any area is one.
    pub zram: Option<ZramState>,
    /// The areas.
    pub devices: Vec<DeviceState>,
}

/// The state could not be read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StateError(#[from] GatherError);

impl StateError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        Reason::SwapSetupFailed
    }
}

/// Reads the state; remembers what each area stands on, which only changes when the set of areas does.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    known: Mutex<Vec<ActiveSwap>>,
}

impl Monitor {
    /// Forgets what the areas stand on.
    pub(super) fn forget(&self) {
        self.known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clear();
    }

    /// The active areas, now.
    fn areas(&self) -> Result<Vec<ActiveSwap>, GatherError> {
        let lines = gather::lines()?;
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let same = known.len() == lines.len() && known.iter().zip(&lines).all(|(k, l)| same_area(&k.line, l));
        if same {
            for (k, l) in known.iter_mut().zip(lines) {
                k.line = l;
            }
        } else {
            *known = lines.into_iter().map(gather::classify).collect();
        }
        Ok(known.clone())
    }

    pub(super) fn read(
        &self,
        own: &[Part],
        none: Reason,
        allow_plain: bool,
        full_below: u64,
    ) -> Result<SwapState, StateError> {
        let areas = self.areas()?;
        let zram = zram_state(&areas);
        Ok(judge(&areas, own, none, allow_plain, full_below, zram))
    }
}

fn same_area(a: &SwapLine, b: &SwapLine) -> bool {
    a.path == b.path && a.is_file == b.is_file && a.bytes == b.bytes && a.priority == b.priority
}

fn zram_state(areas: &[ActiveSwap]) -> Option<ZramState> {
    let mut sum: Option<ZramState> = None;
    for index in areas.iter().filter_map(|a| a.zram) {
        let Some(one) = fs::read_to_string(format!("/sys/block/zram{index}/mm_stat"))
            .ok()
            .and_then(|t| mm_stat(&t))
        else {
            continue;
        };
        let s = sum.get_or_insert_default();
        s.original = s.original.saturating_add(one.original);
        s.compressed = s.compressed.saturating_add(one.compressed);
        s.occupied = s.occupied.saturating_add(one.occupied);
    }
    sum
}

/// The first three fields of `mm_stat`.
fn mm_stat(text: &str) -> Option<ZramState> {
    let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    Some(ZramState {
        original: next()?,
        compressed: next()?,
        occupied: next()?,
    })
}

/// What the areas amount to. Pure.
fn judge(
    areas: &[ActiveSwap],
    own: &[Part],
    none: Reason,
    allow_plain: bool,
    full_below: u64,
    zram: Option<ZramState>,
) -> SwapState {
    let devices: Vec<DeviceState> = areas
        .iter()
        .map(|a| DeviceState {
            path: a.line.path.clone(),
            owner: if own.iter().any(|p| is_part(a, p, true)) {
                Owner::Own
            } else {
                Owner::Foreign
            },
            protection: a.protection,
            total: a.line.bytes,
            used: a.line.used,
            priority: a.line.priority,
        })
        .collect();
    let total = devices.iter().map(|d| d.total).sum();
    let free = devices.iter().map(|d| d.total.saturating_sub(d.used)).sum();
    let plain = devices.iter().any(|d| d.protection == Protection::Plain);
    let usable = if devices.is_empty() {
        Err(none)
    } else if plain && !allow_plain {
        Err(Reason::PlainSwapRefused)
    } else if free < full_below.max(MIB) {
        Err(Reason::SwapFull)
    } else {
        Ok(())
    };
    SwapState {
        usable,
        total,
        free,
        zram,
        devices,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan_test::swap;
    use super::*;

    fn read(areas: &[ActiveSwap], allow_plain: bool) -> Result<(), Reason> {
        judge(
            areas,
            &[],
            Reason::KubeletForbidsSwap,
            allow_plain,
            16 * MIB,
            None,
        )
        .usable
    }

    #[test]
    fn usable_or_the_reason() {
        assert_eq!(read(&[], true), Err(Reason::KubeletForbidsSwap));
        assert_eq!(read(&[swap("/a", Protection::Ram)], false), Ok(()));
        assert_eq!(read(&[swap("/a", Protection::Encrypted)], false), Ok(()));
        assert_eq!(
            read(&[swap("/a", Protection::Plain)], false),
            Err(Reason::PlainSwapRefused)
        );
        assert_eq!(read(&[swap("/a", Protection::Plain)], true), Ok(()));
        assert_eq!(
            read(
                &[swap("/a", Protection::Ram), swap("/b", Protection::Plain)],
                false
            ),
            Err(Reason::PlainSwapRefused)
        );
        let mut full = swap("/a", Protection::Ram);
        full.line.used = 50 * MIB;
        assert_eq!(read(&[full.clone()], false), Err(Reason::SwapFull));
        let state = judge(
            &[full, swap("/b", Protection::Ram)],
            &[],
            Reason::NoSwap,
            false,
            16 * MIB,
            None,
        );
        assert_eq!(
            (state.usable, state.total, state.free),
            (Ok(()), 128 * MIB, 78 * MIB)
        );
    }

    #[test]
    fn own_and_foreign() {
        let zram = ActiveSwap {
            zram: Some(4),
            ..swap("/dev/zram4", Protection::Ram)
        };
        let own = [Part::Zram {
            index: 4,
            bytes: 1,
            hot_added: true,
        }];
        let state = judge(
            &[zram, swap("/b", Protection::Ram)],
            &own,
            Reason::NoSwap,
            false,
            0,
            None,
        );
        assert_eq!(
            state.devices.iter().map(|d| d.owner).collect::<Vec<_>>(),
            vec![Owner::Own, Owner::Foreign]
        );
    }

    #[test]
    fn mm_stat_as_the_kernel_writes_it() {
        let text = "  4096  100  12288 0 12288 0 0 0 0\n";
        assert_eq!(
            mm_stat(text),
            Some(ZramState {
                original: 4096,
                compressed: 100,
                occupied: 12288
            })
        );
        assert_eq!(mm_stat(""), None);
        assert_eq!(mm_stat("1 2 x"), None);
    }
}
