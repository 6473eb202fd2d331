//! Brings a woken guest's pages back from swap behind its back.
//!
//! Two kinds of memory need two ways. Private memory (the runtime's own heap) is advised on with
//! `process_madvise(MADV_WILLNEED)`, which puts it into the swap cache, from where a fault takes it in a moment. The
//! guest's memory is a memory file: there the same advice would leave every page one step short, so the file is read
//! to nowhere (`sendfile(2)` to `/dev/null`), which puts the pages into the file itself. The file is only ever read.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_core::WakeSource;
use dormouse_sentry::PodCgroup;

use crate::brake::{Brake, Stop, not_cancelled};
use crate::driver::{Cancel, PrefetchReport};
use crate::kernel::{Advice, Kernel, Process, Range};
use crate::pageout::{PageOutError, SLICE, Slices, Weighed, advise, mappings, processes};
use crate::reclaim::{Version, headroom};
use crate::working_set::Mapped;

/// A prefetch ends when a pod has less than this left to its memory limit, in bytes.
pub const HEADROOM: u64 = 16 << 20;
/// Into how many pieces that which is in flight is divided: while one is brought back, the others are read.
const PIECES: u64 = 4;
/// A nap for the sake of the rate is never longer, so that the brake is looked at.
const LONGEST_NAP: Duration = Duration::from_millis(20);

/// How a prefetch goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchLimits {
    /// At most this many bytes per second; `None` for as fast as the swap gives them.
    pub bytes_per_second: Option<NonZeroU64>,
    /// How long the guest has the swap to itself, so that its first answer does not wait behind the prefetch.
    pub head_start: Duration,
    /// The same after a wake that was ordered: whoever ordered it is yet to tell its client, which is yet to ask.
    pub head_start_after_order: Duration,
    /// How much of a memory file may be on its way from swap at once, in bytes. The guest's own faults queue behind
    /// it, so it is small.
    pub in_flight: u64,
}

impl Default for PrefetchLimits {
    /// 2 GiB per second: above what disks give, below what would keep a core busy with zram alone.
    fn default() -> Self {
        Self {
            bytes_per_second: NonZeroU64::new(2 << 30),
            head_start: Duration::from_millis(60),
            head_start_after_order: Duration::from_millis(300),
            in_flight: 512 << 10,
        }
    }
}

impl PrefetchLimits {
    /// The same for a wake of this source.
    pub(crate) const fn after(self, source: WakeSource) -> Self {
        match source {
            WakeSource::Api | WakeSource::Schedule => Self {
                head_start: self.head_start_after_order,
                ..self
            },
            WakeSource::Request | WakeSource::Packet | WakeSource::Exec | WakeSource::Kill => self,
        }
    }
}

/// A prefetch that ended early.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// The brake was pulled.
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// A process's memory map could not be read.
    #[error(transparent)]
    Map(#[from] PageOutError),
    /// The kernel refused.
    #[error("process_madvise on process {pid} failed: {source}")]
    Advise {
        /// The process.
        pid: i32,
        /// The kernel's error.
        source: io::Error,
    },
    /// The guest's memory file could not be read.
    #[error("cannot read the memory file of process {pid}: {source}")]
    File {
        /// The process that holds it.
        pid: i32,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Brings back the pages of all processes in a pod's cgroup.
///
/// `measured` is told which pages the guest has touched by itself before that.
///
/// To stop early, because it was called off or the pod came near its limit, is no failure.
///
/// # Errors
/// [`PrefetchError`], but for these two.
pub fn of_cgroup<K: Kernel + ?Sized>(
    kernel: &K,
    cgroup: &PodCgroup,
    first: Option<i32>,
    limits: PrefetchLimits,
    measured: Option<&mut dyn FnMut(Mapped)>,
    cancel: &Cancel,
) -> Result<PrefetchReport, PrefetchError> {
    let dir = cgroup.memory_dir();
    let version = Version::from(cgroup.version());
    let processes = processes(kernel, dir)?;
    let mut brake = || -> Result<(), Stop> {
        not_cancelled(cancel)?;
        // Pages that come back are charged to the pod: ahead of time they must not push it against its limit.
        match headroom(kernel, dir, version) {
            Ok(Some(left)) if left < HEADROOM => Err(Stop::NearLimit { headroom: left }),
            Ok(_) => Ok(()),
            Err(e) => Err(Stop::Look(io::Error::other(e))),
        }
    };
    let mut report = PrefetchReport::default();
    let done = after_head_start(kernel, first, &processes, limits, measured, &mut brake)
        .and_then(|()| prefetch(kernel, first, &processes, limits, &mut brake, &mut report));
    match done {
        Ok(()) | Err(PrefetchError::Stopped(Stop::Cancelled | Stop::NearLimit { .. })) => Ok(report),
        Err(e) => Err(e),
    }
}

/// Leaves the guest alone until it has answered, and looks meanwhile at what that takes: early on, as a guest may go
/// on to something else, and once more in the end, as a slow swap takes its time.
fn after_head_start<K: Kernel + ?Sized>(
    kernel: &K,
    first: Option<i32>,
    processes: &[Process],
    limits: PrefetchLimits,
    measured: Option<&mut dyn FnMut(Mapped)>,
    brake: &mut dyn Brake,
) -> Result<(), PrefetchError> {
    let began = Instant::now();
    if let Some(measured) = measured {
        for at in [limits.head_start / 3, limits.head_start] {
            nap_until(began + at, brake)?;
            measured(Mapped::measure(kernel, processes, first, brake)?);
        }
    }
    Ok(nap_until(began + limits.head_start, brake)?)
}

/// Brings pages back: `first`'s private memory and its memory files, then those of the others.
///
/// `report` says at any time how far it came.
///
/// # Errors
/// [`PrefetchError`]. Nothing is lost: what was not brought back comes by faults.
pub fn prefetch<K: Kernel + ?Sized>(
    kernel: &K,
    first: Option<i32>,
    processes: &[Process],
    limits: PrefetchLimits,
    brake: &mut dyn Brake,
    report: &mut PrefetchReport,
) -> Result<(), PrefetchError> {
    let mut pace = Pace {
        began: Instant::now(),
        report,
        limits,
    };
    let is_first = |p: &&Process| Some(p.pid) == first;
    // A guest's memory file is held by several of its processes; once is enough.
    let mut seen = BTreeSet::new();
    for process in processes
        .iter()
        .filter(is_first)
        .chain(processes.iter().filter(|p| !is_first(p)))
    {
        private_memory(kernel, process, &mut pace, brake)?;
        memory_files(kernel, process.pid, &mut seen, &mut pace, brake)?;
    }
    Ok(())
}

fn private_memory<K: Kernel + ?Sized>(
    kernel: &K,
    process: &Process,
    pace: &mut Pace<'_>,
    brake: &mut dyn Brake,
) -> Result<(), PrefetchError> {
    brake.check()?;
    let Some(mappings) = mappings(kernel, process.pid)? else {
        return Ok(());
    };
    let wanted = || mappings.iter().filter(|m| m.can_prefetch());
    // Each batch is a slice at most; the sum of weights is what is really in swap.
    let mut left: u64 = wanted().map(|m| m.swapped).sum();
    for batch in Slices::new(wanted().map(|m| Weighed {
        range: m.range,
        weight: m.swapped,
    })) {
        brake.check()?;
        let done =
            advise(kernel, process, &batch, Advice::WillNeed).map_err(|source| PrefetchError::Advise {
                pid: process.pid,
                source,
            })?;
        let step = left.min(SLICE);
        left -= step;
        pace.took(step, brake)?;
        if done.gone {
            break;
        }
    }
    Ok(())
}

fn memory_files<K: Kernel + ?Sized>(
    kernel: &K,
    pid: i32,
    seen: &mut BTreeSet<(u64, u64)>,
    pace: &mut Pace<'_>,
    brake: &mut dyn Brake,
) -> Result<(), PrefetchError> {
    let fail = |source| PrefetchError::File { pid, source };
    let files = match kernel.open_memory_files(pid) {
        Ok(files) => files,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => return Ok(()),
        Err(e) => return Err(fail(e)),
    };
    for file in files {
        let meta = file.metadata().map_err(fail)?;
        if !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        let piece = (pace.limits.in_flight / PIECES).clamp(64 << 10, SLICE) & !0xffff;
        let mut ahead = FileSlices {
            kernel,
            file: &file,
            piece,
            rest: None,
            at: 0,
        };
        let mut queue = VecDeque::new();
        let mut in_flight = 0;
        loop {
            // Small stretches of data (and a file full of holes) must not mean few bytes in flight.
            while in_flight < piece * PIECES {
                let Some(range) = ahead.next().map_err(fail)? else {
                    break;
                };
                kernel.read_ahead(&file, range).map_err(fail)?;
                in_flight += range.len;
                queue.push_back(range);
            }
            let Some(range) = queue.pop_front() else { break };
            in_flight -= range.len;
            brake.check()?;
            kernel.bring_back(&file, range).map_err(fail)?;
            pace.took(range.len, brake)?;
        }
    }
    Ok(())
}

/// The data of a memory file, in slices.
struct FileSlices<'a, K: ?Sized> {
    kernel: &'a K,
    file: &'a File,
    piece: u64,
    rest: Option<Range>,
    at: u64,
}

impl<K: Kernel + ?Sized> FileSlices<'_, K> {
    fn next(&mut self) -> io::Result<Option<Range>> {
        let data = match self.rest.take() {
            Some(rest) => rest,
            None => match self.kernel.next_data(self.file, self.at)? {
                Some(data) => data,
                None => return Ok(None),
            },
        };
        let piece = Range {
            start: data.start,
            len: data.len.min(self.piece),
        };
        self.at = piece.start.saturating_add(piece.len);
        if data.len > piece.len {
            self.rest = Some(Range {
                start: self.at,
                len: data.len - piece.len,
            });
        }
        Ok(Some(piece))
    }
}

/// Holds a prefetch to its rate.
struct Pace<'a> {
    began: Instant,
    report: &'a mut PrefetchReport,
    limits: PrefetchLimits,
}

impl Pace<'_> {
    fn took(&mut self, bytes: u64, brake: &mut dyn Brake) -> Result<(), Stop> {
        self.report.bytes = self.report.bytes.saturating_add(bytes);
        self.report.took = self.began.elapsed();
        let Some(rate) = self.limits.bytes_per_second else {
            return Ok(());
        };
        // Nanoseconds that these bytes should have taken by now.
        let due = u128::from(self.report.bytes) * 1_000_000_000 / u128::from(rate.get());
        let due = Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX));
        nap_until(self.began + due, brake)
    }
}

/// Sleeps until then, with a look at the brake now and again.
fn nap_until(then: Instant, brake: &mut dyn Brake) -> Result<(), Stop> {
    loop {
        let nap = then.saturating_duration_since(Instant::now());
        if nap.is_zero() {
            return Ok(());
        }
        brake.check()?;
        thread::sleep(nap.min(LONGEST_NAP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_yet_to_be_told_finds_the_guest_left_alone() {
        let limits = PrefetchLimits::default();
        for source in [
            WakeSource::Packet,
            WakeSource::Request,
            WakeSource::Exec,
            WakeSource::Kill,
        ] {
            assert_eq!(limits.after(source), limits, "{source:?}");
        }
        for source in [WakeSource::Api, WakeSource::Schedule] {
            let ordered = limits.after(source);
            assert!(ordered.head_start > limits.head_start, "{source:?}");
            assert_eq!(ordered.in_flight, limits.in_flight, "{source:?}");
        }
    }
}
