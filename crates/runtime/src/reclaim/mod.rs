//! Makes the pod's memory cgroup let go of what page-out has written to swap.
//!
//! Shared memory that was paged out lies in the swap cache and stays charged; pages that two processes map were not
//! paged out at all. Only the cgroup's own reclaim reaches them: `memory.reclaim` on cgroup v2, a limit that is
//! lowered for a moment on cgroup v1.
//!
//! A limit is lowered only while the pod's cgroup is frozen, so that no charge can meet it, and under the pod's lock,
//! so that nobody can thaw the cgroup meanwhile. Before that it is noted in the pod's record and told to a
//! [`guard`] process, so that it is put back whatever happens to the agent.

pub mod guard;
mod restore;
mod settings;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::CgroupVersion;
pub use dormouse_sentry::record::LoweredLimit;

use crate::brake::{Brake, Stop};
use crate::kernel::Kernel;
use crate::pageout::{PageOutError, SLICE};

pub use restore::{Restored, restore, restore_all};
pub use settings::{lasts_over_sleep, raise, swap_limits_of, swappiness_of};

/// A pod's cgroup is not reclaimed below this: what its kernel memory and page tables take anyhow.
pub const FLOOR: u64 = 4 << 20;
/// How many steps in a row may gain nothing before the reclaim ends: the first ones may only have aged pages.
const FRUITLESS_STEPS: u32 = 4;
/// Pages on their way to the swap are waited for while there are more than so many bytes of them.
const WRITEBACK: u64 = 1 << 20;
/// And no longer than this at a time: a disk that gets nothing done in that time is not waited for.
const WRITEBACK_WAIT: Duration = Duration::from_millis(200);
/// How long after one look at them the next one comes.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// A step that gains less than this gains nothing.
const GAIN: u64 = 64 << 10;
/// Steps grow up to this while they are quick.
const LARGEST_STEP: u64 = 64 << 20;
/// A step that takes no longer than this may be doubled.
const QUICK: Duration = Duration::from_millis(3);
/// A step that takes longer than this is halved.
const SLOW: Duration = Duration::from_millis(10);

/// Which interface the memory cgroup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes`.
    V1,
    /// `memory.reclaim`.
    V2,
}

impl From<CgroupVersion> for Version {
    fn from(version: CgroupVersion) -> Self {
        match version {
            CgroupVersion::V1 => Self::V1,
            CgroupVersion::V2 => Self::V2,
        }
    }
}

/// What a reclaim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReclaimReport {
    /// What the cgroup was charged for before, in bytes.
    pub before: u64,
    /// The same afterwards.
    pub after: u64,
    /// Steps made.
    pub steps: u64,
    /// The longest of them.
    pub longest_step: Duration,
}

impl ReclaimReport {
    /// This one, and another after it.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        Self {
            before: self.before,
            after: next.after,
            steps: self.steps.saturating_add(next.steps),
            longest_step: self.longest_step.max(next.longest_step),
        }
    }
}

/// A reclaim that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// The brake was pulled.
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// The cgroup's levels could not be listed.
    #[error(transparent)]
    Levels(#[from] PageOutError),
    /// A cgroup file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A cgroup file does not hold a number.
    #[error("{path} holds something else than a number")]
    NotANumber {
        /// The file.
        path: PathBuf,
    },
    /// A cgroup file could not be written.
    #[error("cannot write {value:?} to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A limit is lowered and could not be put back; it stays noted in the record, and the next probe tries again.
    #[error("cannot put {path} back to {value}: {source}; do it by hand if the agent cannot")]
    NotRestored {
        /// The file.
        path: PathBuf,
        /// What it held.
        value: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The pod could not be held still for a step.
    #[error("cannot hold the pod still for a step: {source}")]
    NotHeld {
        /// The stable reason code.
        reason: Reason,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is about to be changed could not be noted, so it was not changed.
    #[error("cannot note the change of {path} beforehand: {source}")]
    Note {
        /// The file that was to be changed.
        path: PathBuf,
        /// Why.
        source: NoteError,
    },
}

impl ReclaimError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Stopped(stop) => stop.reason(),
            Self::Note { source, .. } => source.reason(),
            Self::NotHeld { reason, .. } => *reason,
            _ => Reason::ReclaimFailed,
        }
    }
}

/// Something could not be noted before it was done.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// The pod's record could not be written.
    #[error(transparent)]
    Record(Box<dyn std::error::Error + Send + Sync>),
    /// The guard process does not listen.
    #[error("the limit guard does not answer: {0}")]
    Guard(#[source] io::Error),
}

impl NoteError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Record(_) => Reason::RecordUnwritable,
            Self::Guard(_) => Reason::ReclaimFailed,
        }
    }
}

/// Where changes of limits are noted before they are made, and crossed out when they are taken back.
pub trait Ledger {
    /// Notes that `limit.path` is about to be set from `limit.original` to `limit.current`.
    ///
    /// # Errors
    /// The change must not be made.
    fn note(&mut self, limit: &LoweredLimit) -> Result<(), NoteError>;

    /// Notes that the file holds what it held, or what somebody else wrote there.
    ///
    /// # Errors
    /// Harmless: a noted limit that no longer stands is found out by comparison.
    fn cross_out(&mut self, path: &Path) -> Result<(), NoteError>;
}

/// What one step gained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Charged bytes before.
    pub before: u64,
    /// And after.
    pub after: u64,
    /// There is nothing above the floor.
    pub at_floor: bool,
}

/// Reclaims a memory cgroup step by step. Make one, then call [`Reclaim::step`] until it says that it is done, each
/// time under the pod's lock.
#[derive(Debug)]
pub struct Reclaim<'a, K: ?Sized> {
    kernel: &'a K,
    dir: &'a Path,
    version: Version,
    size: u64,
    fruitless: u32,
    report: ReclaimReport,
}

impl<'a, K: Kernel + ?Sized> Reclaim<'a, K> {
    /// A reclaim of the memory cgroup at `dir`.
    #[must_use]
    pub fn new(kernel: &'a K, dir: &'a Path, version: Version) -> Self {
        Self {
            kernel,
            dir,
            version,
            size: SLICE,
            fruitless: 0,
            report: ReclaimReport::default(),
        }
    }

    /// What was done so far.
    #[must_use]
    pub const fn report(&self) -> ReclaimReport {
        self.report
    }

    /// Waits for pages that the last step sent to the swap and that are not written yet, if it gained nothing because
    /// of them. To be called without the pod's lock.
    ///
    /// The kernel writes them behind the reclaim's back and says meanwhile that nothing more is to be had.
    ///
    /// # Errors
    /// [`ReclaimError::Stopped`], [`ReclaimError::Read`].
    pub fn await_writeback(&mut self, brake: &mut dyn Brake) -> Result<(), ReclaimError> {
        if self.fruitless == 0 {
            return Ok(());
        }
        let began = Instant::now();
        while began.elapsed() < WRITEBACK_WAIT && writeback(self.kernel, self.dir)? > WRITEBACK {
            brake.check()?;
            // It was the disk and not the end: such a step does not count.
            self.fruitless = 0;
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Makes one step; `true` if there is nothing more to gain.
    ///
    /// On return no limit is lowered any more, error or not, except as [`ReclaimError::NotRestored`] says.
    ///
    /// # Errors
    /// [`ReclaimError`]; [`ReclaimError::Stopped`] before anything was touched.
    pub fn step(&mut self, ledger: &mut dyn Ledger, brake: &mut dyn Brake) -> Result<bool, ReclaimError> {
        brake.check()?;
        let began = Instant::now();
        let step = match self.version {
            Version::V1 => v1::step(self.kernel, self.dir, self.size, ledger)?,
            Version::V2 => v2::step(self.kernel, self.dir, self.size)?,
        };
        let took = began.elapsed();
        if self.report.steps == 0 {
            self.report.before = step.before;
        }
        self.report.steps += 1;
        self.report.after = step.after;
        self.report.longest_step = self.report.longest_step.max(took);
        if took > SLOW {
            self.size = (self.size / 2).max(SLICE / 8);
        } else if took < QUICK {
            self.size = self.size.saturating_mul(2).min(LARGEST_STEP);
        }
        if step.before.saturating_sub(step.after) < GAIN {
            self.fruitless += 1;
        } else {
            self.fruitless = 0;
        }
        // Where something runs, what is pushed out may come in again for ever: each byte is worth two tries.
        let enough = self.report.steps > 32 + self.report.before / (SLICE / 16);
        Ok(step.at_floor || self.fruitless >= FRUITLESS_STEPS || enough)
    }
}

/// What a memory cgroup is charged for, in bytes.
///
/// # Errors
/// [`ReclaimError::Read`], [`ReclaimError::NotANumber`].
pub fn usage<K: Kernel + ?Sized>(kernel: &K, dir: &Path, version: Version) -> Result<u64, ReclaimError> {
    number(
        kernel,
        &dir.join(match version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }),
    )
}

/// What is left between a memory cgroup's charge and its limit, in bytes; `None` without a limit.
///
/// # Errors
/// [`ReclaimError::Read`], [`ReclaimError::NotANumber`].
pub fn headroom<K: Kernel + ?Sized>(
    kernel: &K,
    dir: &Path,
    version: Version,
) -> Result<Option<u64>, ReclaimError> {
    let path = dir.join(match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    });
    let text = text(kernel, &path)?;
    if text == "max" {
        return Ok(None);
    }
    let limit: u64 = text.parse().map_err(|_| ReclaimError::NotANumber { path })?;
    // cgroup v1 says "no limit" by the largest multiple of the page size.
    if limit >= 1 << 62 {
        return Ok(None);
    }
    Ok(Some(limit.saturating_sub(usage(kernel, dir, version)?)))
}

/// What of a memory cgroup, all levels, is on its way to the swap or to files, in bytes; 0 where the kernel does not
/// say.
fn writeback<K: Kernel + ?Sized>(kernel: &K, dir: &Path) -> Result<u64, ReclaimError> {
    // cgroup v1 counts levels below under `total_`; cgroup v2 calls all of it `file_writeback`, swap too.
    let stat = text(kernel, &dir.join("memory.stat"))?;
    let value = |name: &str| {
        stat.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok())
    };
    Ok(value("total_writeback")
        .or_else(|| value("file_writeback"))
        .unwrap_or(0))
}

fn text<K: Kernel + ?Sized>(kernel: &K, path: &Path) -> Result<String, ReclaimError> {
    let text = kernel.read(path).map_err(|source| ReclaimError::Read {
        path: path.into(),
        source,
    })?;
    Ok(text.trim_end().to_owned())
}

fn number<K: Kernel + ?Sized>(kernel: &K, path: &Path) -> Result<u64, ReclaimError> {
    text(kernel, path)?
        .parse()
        .map_err(|_| ReclaimError::NotANumber { path: path.into() })
}
