//! What to do about swap, decided from facts alone.

use std::path::PathBuf;

use dormouse_core::Reason;

use super::config::{FileConfig, MIB, SwapConfig, ZramConfig};
use super::facts::{ActiveSwap, EncryptionLack, Facts, Protection};
use super::record::Part;

/// Name of the device-mapper mapping in front of the swap file.
pub const MAPPING_NAME: &str = "dormouse-swap";
/// Name of the swap file in its directory.
pub const FILE_NAME: &str = "dormouse.swap";
/// Compressors for zram, best first: lz4 wakes fastest, lzo-rle is the kernel's default.
pub(super) const COMPRESSORS: &[&str] = &["lz4", "lzo-rle"];

/// Something to be brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Build {
    /// Swap in compressed RAM.
    Zram {
        /// Size before compression, in bytes; whole MiB.
        bytes: u64,
        /// Swap priority.
        priority: u16,
    },
    /// A swap file.
    File {
        /// The file, which must not be there yet.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Swap priority.
        priority: u16,
        /// The mapping that encrypts it; `None` = plain, by leave of the configuration.
        mapping: Option<String>,
    },
}

/// Why a configured part is not brought.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// The kernel has no zram.
    #[error("zram is configured, but the kernel has none (module zram) and no device is free")]
    NoZram,
    /// `mkswap` cannot be used.
    #[error("mkswap cannot be used: {0}")]
    NoMkswap(String),
    /// The file cannot be encrypted, and plain is not allowed.
    #[error("the swap file cannot be encrypted: {0}; install what is missing or set swap.allow_plain_swap")]
    NoEncryption(EncryptionLack),
    /// The directory cannot be used.
    #[error("swap.file.directory {path} cannot be used: {why}")]
    BadDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The disk is too full.
    #[error(
        "a swap file of {want} MiB in {path} would leave {left} MiB free, and {keep} MiB have to stay free (swap.file.keep_free_percent)"
    )]
    DiskTooFull {
        /// The directory.
        path: PathBuf,
        /// Size of the file, MiB.
        want: u64,
        /// What would be left, MiB (0 if it does not fit at all).
        left: u64,
        /// What has to be left, MiB.
        keep: u64,
    },
}

impl Skip {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoEncryption(_) => Reason::PlainSwapRefused,
            Self::NoZram | Self::NoMkswap(_) | Self::BadDirectory { .. } | Self::DiskTooFull { .. } => {
                Reason::SwapSetupFailed
            }
        }
    }
}

/// Why nobody can doze on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No swap is active, and none is configured.
    #[error("no swap is active and none is configured; set swap.zram or swap.file, or turn swap on")]
    NoSwap,
    /// Swap is configured, but the kubelet would not start again.
    #[error("no swap is brought: {0}; set failSwapOn: false there, or leave Dozing off")]
    KubeletForbids(String),
    /// Plain swap is active.
    #[error(
        "the active swap {0} is not encrypted, so a guest's memory would lie readable on the disk; encrypt it, turn it off, or set swap.allow_plain_swap"
    )]
    PlainForeign(PathBuf),
    /// Everything that is configured cannot be brought.
    #[error("{0}")]
    NothingPossible(Skip),
}

impl Refusal {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoSwap => Reason::NoSwap,
            Self::KubeletForbids(_) => Reason::KubeletForbidsSwap,
            Self::PlainForeign(_) => Reason::PlainSwapRefused,
            Self::NothingPossible(s) => s.reason(),
        }
    }
}

/// What to do, in this order: `dismantle`, `retire`, `build`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Own parts that are not active: left over from an earlier boot or a torn step.
    pub dismantle: Vec<Part>,
    /// Own parts that are active and not wanted any more; taken down if their pages fit in RAM.
    pub retire: Vec<Part>,
    /// Own parts that are active and stay.
    pub keep: Vec<Part>,
    /// What is to be brought.
    pub build: Vec<Build>,
    /// What is configured and cannot be brought.
    pub skip: Vec<Skip>,
    /// Whether there is swap to use once this plan is carried out.
    pub verdict: Result<(), Refusal>,
}

/// Decides what to do about swap.
#[must_use]
pub fn plan(facts: &Facts, config: &SwapConfig) -> Plan {
    let recorded = facts.record.as_ref().map_or(&[][..], |r| r.parts.as_slice());
    let same_boot = facts.record.as_ref().is_some_and(|r| r.boot_id == facts.boot_id);
    let (active, dismantle): (Vec<Part>, Vec<Part>) = recorded
        .iter()
        .cloned()
        .partition(|p| facts.swaps.iter().any(|s| is_part(s, p, same_boot)));
    let foreign: Vec<&ActiveSwap> = facts
        .swaps
        .iter()
        .filter(|s| !active.iter().any(|p| is_part(s, p, same_boot)))
        .collect();
    let plain = foreign
        .iter()
        .find(|s| s.protection == Protection::Plain && !config.allow_plain_swap);
    let forbidden = facts.kubelet.forbids_swap();

    // An own part stays while it is configured and the kubelet can live with it.
    let (keep, retire): (Vec<Part>, Vec<Part>) =
        active.into_iter().partition(|p| !forbidden && wanted(p, config));

    let mut out = Plan {
        dismantle,
        retire,
        keep,
        build: Vec::new(),
        skip: Vec::new(),
        verdict: Ok(()),
    };
    if let Some(plain) = plain {
        // The kernel picks the area by priority alone: with plain swap active, any page may end up there.
        out.verdict = Err(Refusal::PlainForeign(plain.line.path.clone()));
        return out;
    }
    let found = !foreign.is_empty();
    let bring = config.wants_own() && (!found || config.beside_foreign || !out.keep.is_empty());
    if bring && !forbidden {
        build(facts, config, &mut out);
    }
    if !found && out.keep.is_empty() && out.build.is_empty() {
        out.verdict = Err(if config.wants_own() && forbidden {
            Refusal::KubeletForbids(facts.kubelet.explain())
        } else {
            out.skip
                .first()
                .cloned()
                .map_or(Refusal::NoSwap, Refusal::NothingPossible)
        });
    }
    out
}

/// Whether `swap` is the active face of `part`.
pub(super) fn is_part(swap: &ActiveSwap, part: &Part, same_boot: bool) -> bool {
    match part {
        Part::Zram { index, .. } => same_boot && swap.zram == Some(*index),
        Part::File {
            mapping: Some(name), ..
        } => same_boot && swap.mapping.as_ref() == Some(name),
        Part::File {
            mapping: None, path, ..
        } => swap.line.is_file && swap.line.path == *path,
    }
}

fn wanted(part: &Part, config: &SwapConfig) -> bool {
    match part {
        Part::Zram { .. } => config.zram.is_some(),
        Part::File { path, mapping, .. } => config.file.as_ref().is_some_and(|f| {
            f.directory.join(FILE_NAME) == *path && (mapping.is_some() || config.allow_plain_swap)
        }),
    }
}

fn build(facts: &Facts, config: &SwapConfig, out: &mut Plan) {
    if let Some(zram) = &config.zram
        && !out.keep.iter().any(|p| matches!(p, Part::Zram { .. }))
    {
        match build_zram(facts, zram) {
            Ok(b) => out.build.push(b),
            Err(s) => out.skip.push(s),
        }
    }
    // A file that is still being retired occupies the name; the next start brings the new one.
    let held = |p: &Part| matches!(p, Part::File { .. });
    if let Some(file) = &config.file
        && !out.keep.iter().any(held)
        && !out.retire.iter().any(held)
    {
        match build_file(facts, file, config.allow_plain_swap) {
            Ok(b) => out.build.push(b),
            Err(s) => out.skip.push(s),
        }
    }
}

fn build_zram(facts: &Facts, zram: &ZramConfig) -> Result<Build, Skip> {
    facts.mkswap.clone().map_err(Skip::NoMkswap)?;
    if !facts
        .zram
        .as_ref()
        .is_some_and(super::facts::ZramFacts::available)
    {
        return Err(Skip::NoZram);
    }
    let share = facts.ram_total / MIB * u64::from(zram.percent_of_ram) / 100;
    // Never more than the RAM itself: pages that do not compress would fill it to the last byte.
    let mib = share
        .clamp(zram.min_mib, zram.max_mib)
        .min(facts.ram_total / MIB)
        .max(1);
    Ok(Build::Zram {
        bytes: mib * MIB,
        priority: zram.priority,
    })
}

fn build_file(facts: &Facts, file: &FileConfig, allow_plain: bool) -> Result<Build, Skip> {
    facts.mkswap.clone().map_err(Skip::NoMkswap)?;
    let bad = |why: String| Skip::BadDirectory {
        path: file.directory.clone(),
        why,
    };
    let directory = facts
        .directory
        .clone()
        .unwrap_or_else(|| Err("it was not looked at".to_owned()))
        .map_err(bad)?;
    directory.suitable.map_err(bad)?;
    let bytes = file.size_mib.saturating_mul(MIB);
    let keep = directory.total / 100 * u64::from(file.keep_free_percent);
    if directory.free < bytes.saturating_add(keep) {
        return Err(Skip::DiskTooFull {
            path: file.directory.clone(),
            want: file.size_mib,
            left: directory.free.saturating_sub(bytes) / MIB,
            keep: keep / MIB,
        });
    }
    let mapping = match &facts.encryption {
        Ok(()) => Some(MAPPING_NAME.to_owned()),
        Err(_) if allow_plain => None,
        Err(lack) => return Err(Skip::NoEncryption(lack.clone())),
    };
    Ok(Build::File {
        path: file.directory.join(FILE_NAME),
        bytes,
        priority: file.priority,
        mapping,
    })
}
