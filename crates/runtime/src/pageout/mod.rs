//! Pushes the memory of a pod's processes out to swap, slice by slice.
//!
//! `process_madvise(MADV_PAGEOUT)` takes what one process alone maps. Shared memory then lies in the swap cache and
//! stays charged to the cgroup; pages that two processes map stay altogether. Both are [`crate::reclaim`]'s part.

mod advise;
/// Public for the fuzz targets alone.
#[doc(hidden)]
pub mod maps;
mod slices;

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use advise::{Advised, advise};
pub use maps::{Kind, Mapping, MapsError, parse};
pub use slices::{MAX_RANGES, SLICE, Slices, Weighed};

use crate::brake::{Brake, Stop};
use crate::kernel::{Advice, Kernel, Process};

/// A process's memory map is not read beyond this: 64 MiB of text, some 65,000 mappings.
const SMAPS_LIMIT: u64 = 64 << 20;
/// A pod's cgroup is not followed deeper, nor to more levels in all.
const MAX_CGROUPS: usize = 1024;
/// A pod with more processes is not paged out.
const MAX_PROCESSES: usize = 32_768;

/// What a page-out did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageOutReport {
    /// Processes that were looked at.
    pub processes: u64,
    /// Resident memory that was advised on, in bytes, as counted before.
    pub bytes: u64,
    /// Kernel calls.
    pub calls: u64,
    /// Ranges that the kernel refused.
    pub refused: u64,
    /// The longest time between two looks at the brake.
    pub longest_slice: Duration,
}

/// A page-out that did not go through.
#[derive(Debug, thiserror::Error)]
pub enum PageOutError {
    /// The brake was pulled.
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// The pod's processes could not be listed.
    #[error("cannot list the processes of cgroup {path}: {source}")]
    List {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// There are too many of them.
    #[error("cgroup {path} has more than {limit} processes or levels; such a pod is not paged out")]
    TooMany {
        /// The pod's cgroup.
        path: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// A process's memory map could not be read.
    #[error("cannot read the memory map of process {pid}: {source}")]
    ReadMap {
        /// The process.
        pid: i32,
        /// The kernel's error.
        source: io::Error,
    },
    /// A process's memory map has an unknown form.
    #[error("cannot understand the memory map of process {pid}: {source}")]
    Map {
        /// The process.
        pid: i32,
        /// What is wrong with it.
        source: MapsError,
    },
    /// The kernel refused altogether.
    #[error(
        "process_madvise on process {pid} failed: {source}; the agent needs CAP_SYS_NICE, CAP_SYS_PTRACE and Linux 5.10"
    )]
    Advise {
        /// The process.
        pid: i32,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The cgroup and every level below it, the upper ones first.
///
/// # Errors
/// [`PageOutError::List`], [`PageOutError::TooMany`].
pub fn levels<K: Kernel + ?Sized>(kernel: &K, cgroup: &Path) -> Result<Vec<PathBuf>, PageOutError> {
    let mut all = vec![cgroup.to_path_buf()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        next += 1;
        match kernel.child_dirs(&dir) {
            Ok(dirs) => all.extend(dirs),
            // A container's cgroup may go away meanwhile; the pod's may not.
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir != cgroup => {}
            Err(source) => return Err(PageOutError::List { path: dir, source }),
        }
        if all.len() > MAX_CGROUPS {
            return Err(PageOutError::TooMany {
                path: cgroup.into(),
                limit: MAX_CGROUPS,
            });
        }
    }
    Ok(all)
}

/// The ids of the processes in the cgroup and below.
///
/// # Errors
/// [`PageOutError::List`], [`PageOutError::TooMany`].
pub fn pids<K: Kernel + ?Sized>(kernel: &K, cgroup: &Path) -> Result<Vec<i32>, PageOutError> {
    let mut pids = Vec::new();
    for dir in levels(kernel, cgroup)? {
        let file = dir.join("cgroup.procs");
        let text = match kernel.read(&file) {
            Ok(text) => text,
            // Gone meanwhile, or a threaded cgroup of v2, whose processes stand one level up.
            Err(e)
                if dir != cgroup
                    && matches!(
                        e.raw_os_error(),
                        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
                    ) =>
            {
                continue;
            }
            Err(source) => return Err(PageOutError::List { path: dir, source }),
        };
        // 0 stands for a process outside our pid namespace.
        pids.extend(
            text.lines()
                .filter_map(|l| l.parse::<i32>().ok())
                .filter(|p| *p > 0),
        );
        if pids.len() > MAX_PROCESSES {
            return Err(PageOutError::TooMany {
                path: cgroup.into(),
                limit: MAX_PROCESSES,
            });
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The processes in the cgroup and below, held by pidfd; of those that share their memory (threads of a guest, in
/// stub processes of one sentry) one.
///
/// # Errors
/// [`PageOutError::List`], [`PageOutError::TooMany`].
pub fn processes<K: Kernel + ?Sized>(kernel: &K, cgroup: &Path) -> Result<Vec<Process>, PageOutError> {
    let opened: Vec<Process> = pids(kernel, cgroup)?
        .into_iter()
        .filter_map(|p| kernel.open_process(p).ok())
        .collect();
    // A pid may have been reused between the list and the open: only what is still listed is the pod's.
    let still = pids(kernel, cgroup)?;
    let listed = opened.into_iter().filter(|p| still.binary_search(&p.pid).is_ok());
    Ok(one_of_each(kernel, listed))
}

/// Of the processes that share their memory the first. Where the kernel cannot tell, all of them.
fn one_of_each<K: Kernel + ?Sized>(kernel: &K, all: impl Iterator<Item = Process>) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    for process in all {
        // An error is no order, so it ends the search somewhere, with a process too many at worst.
        let place = found.binary_search_by(|known| {
            kernel
                .compare_memory(known, &process)
                .unwrap_or(Ordering::Greater)
        });
        if let Err(at) = place {
            found.insert(at, process);
        }
    }
    found.sort_by_key(|process| process.pid);
    found
}

/// Pages these processes out, one after the other.
///
/// # Errors
/// [`PageOutError::Stopped`] as soon as the brake is pulled; what is out by then stays out until it is touched.
pub fn page_out<K: Kernel + ?Sized>(
    kernel: &K,
    processes: &[Process],
    brake: &mut dyn Brake,
) -> Result<PageOutReport, PageOutError> {
    let mut report = PageOutReport::default();
    for process in processes {
        page_out_one(kernel, process, brake, &mut report)?;
    }
    Ok(report)
}

fn page_out_one<K: Kernel + ?Sized>(
    kernel: &K,
    process: &Process,
    brake: &mut dyn Brake,
    report: &mut PageOutReport,
) -> Result<(), PageOutError> {
    brake.check()?;
    let Some(mappings) = mappings(kernel, process.pid)? else {
        return Ok(());
    };
    report.processes += 1;
    let ranges = mappings.iter().filter(|m| m.can_page_out()).map(|m| Weighed {
        range: m.range,
        weight: m.resident,
    });
    report.bytes += mappings
        .iter()
        .filter(|m| m.can_page_out())
        .map(|m| m.resident)
        .sum::<u64>();
    for batch in Slices::new(ranges) {
        brake.check()?;
        let began = Instant::now();
        let done =
            advise(kernel, process, &batch, Advice::PageOut).map_err(|source| PageOutError::Advise {
                pid: process.pid,
                source,
            })?;
        report.longest_slice = report.longest_slice.max(began.elapsed());
        report.calls += done.calls;
        report.refused += done.refused;
        if done.gone {
            break;
        }
    }
    Ok(())
}

/// A process's mappings; `None` if it is gone.
///
/// # Errors
/// [`PageOutError::ReadMap`], [`PageOutError::Map`].
pub fn mappings<K: Kernel + ?Sized>(kernel: &K, pid: i32) -> Result<Option<Vec<Mapping>>, PageOutError> {
    match kernel.read_smaps(pid, SMAPS_LIMIT) {
        Ok(text) => parse(&text)
            .map(Some)
            .map_err(|source| PageOutError::Map { pid, source }),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => Ok(None),
        Err(source) => Err(PageOutError::ReadMap { pid, source }),
    }
}
