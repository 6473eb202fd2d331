//! Hashing files in parallel, and punching holes for zero pages on the way.

use std::fs::File;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::disk::Disk;
use crate::manifest::FileHashes;

use std::io;

/// Bytes of a chunk: large enough that neither system calls nor hashes in the manifest weigh, small enough
/// that one changed page costs little to transfer.
pub const CHUNK: u64 = 2 << 20;

/// Bytes of a page, the unit in which holes are punched.
const PAGE: usize = 4096;

/// How much of the machine a pass over files may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The most threads; fewer where the machine has fewer cores.
    pub threads: NonZeroUsize,
    /// The most bytes read per second; `None` for as many as there are.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
            bytes_per_second: None,
        }
    }
}

impl Budget {
    /// Budget of one thread and so many bytes per second, for work that nobody waits for.
    #[must_use]
    pub const fn background(bytes_per_second: NonZeroU64) -> Self {
        Self {
            threads: NonZeroUsize::MIN,
            bytes_per_second: Some(bytes_per_second),
        }
    }

    fn threads(self, chunks: u64) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let chunks = usize::try_from(chunks).unwrap_or(usize::MAX);
        self.threads.get().min(cores).min(chunks).max(1)
    }
}

/// Hears how many bytes more are about to be read; from several threads, and often.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Keeps a pass over files within its bytes per second, and says how far it is.
pub(crate) struct Pacer<'a> {
    begun: Instant,
    rate: Option<NonZeroU64>,
    done: AtomicU64,
    progress: Option<Progress<'a>>,
}

impl<'a> Pacer<'a> {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            begun: Instant::now(),
            rate: budget.bytes_per_second,
            done: AtomicU64::new(0),
            progress: None,
        }
    }

    /// One that tells of it.
    pub(crate) fn telling(budget: Budget, progress: Progress<'a>) -> Self {
        Self {
            progress: Some(progress),
            ..Self::new(budget)
        }
    }

    /// Waits until so many bytes more are within the budget.
    pub(crate) fn take(&self, bytes: u64) {
        if let Some(progress) = self.progress {
            progress(bytes);
        }
        let Some(rate) = self.rate else { return };
        let done = self
            .done
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        let due = Duration::from_secs_f64(done as f64 / rate.get() as f64);
        if let Some(early) = due.checked_sub(self.begun.elapsed()) {
            std::thread::sleep(early);
        }
    }
}

/// The hash that stands for a whole file.
pub(crate) fn whole(stored: u64, chunks: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stored.to_be_bytes());
    for chunk in chunks {
        hasher.update(chunk.as_bytes());
    }
    hasher.finalize().into()
}

/// What a pass over a file does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    /// Hash every chunk.
    pub(crate) hash: bool,
    /// Make pages of zeros holes.
    pub(crate) punch: bool,
    /// Bytes of a chunk.
    pub(crate) chunk: u64,
}

/// What a pass over a file found.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) hashes: Option<FileHashes>,
}

/// Why a pass ended early.
#[derive(Debug)]
pub(crate) enum PassError {
    /// The file could not be read, or a hole not be punched.
    Io(io::Error),
    /// The chunk with this number has another hash than expected.
    Differs(u64),
}

impl From<io::Error> for PassError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// One thread's share of the work: chunks by turns, in whatever order they come.
struct Shared<'a> {
    disk: &'a dyn Disk,
    file: &'a File,
    size: u64,
    pass: Pass,
    pacer: &'a Pacer<'a>,
    expected: Option<&'a [Digest]>,
    next: AtomicU64,
    stop: AtomicBool,
    hashes: Mutex<Vec<(u64, Digest)>>,
}

impl Shared<'_> {
    fn work(&self) -> Result<(), PassError> {
        let mut buffer = vec![0; usize::try_from(self.pass.chunk.min(self.size)).unwrap_or(0)];
        let mut found = Vec::new();
        let outcome = self.chunks(&mut buffer, &mut found);
        if outcome.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.hashes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .append(&mut found);
        outcome
    }

    fn chunks(&self, buffer: &mut [u8], found: &mut Vec<(u64, Digest)>) -> Result<(), PassError> {
        while !self.stop.load(Ordering::Relaxed) {
            let nth = self.next.fetch_add(1, Ordering::Relaxed);
            let at = nth.saturating_mul(self.pass.chunk);
            if at >= self.size {
                break;
            }
            let len = usize::try_from(self.pass.chunk.min(self.size.saturating_sub(at))).unwrap_or(0);
            let data = buffer
                .get_mut(..len)
                .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
            self.pacer.take(u64::try_from(len).unwrap_or(u64::MAX));
            self.disk.read_at(self.file, data, at)?;
            if self.pass.punch {
                punch(self.disk, self.file, data, at)?;
            }
            if self.pass.hash {
                let hash = Digest::of(data);
                let index = usize::try_from(nth).unwrap_or(usize::MAX);
                if self.expected.is_some_and(|e| e.get(index) != Some(&hash)) {
                    return Err(PassError::Differs(nth));
                }
                found.push((nth, hash));
            }
        }
        Ok(())
    }
}

/// Goes over a file of exactly `size` bytes.
pub(crate) fn pass(
    disk: &dyn Disk,
    file: &File,
    size: u64,
    pass: Pass,
    budget: Budget,
    pacer: &Pacer<'_>,
    expected: Option<&[Digest]>,
) -> Result<Passed, PassError> {
    let shared = Shared {
        disk,
        file,
        size,
        pass,
        pacer,
        expected,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        hashes: Mutex::new(Vec::new()),
    };
    let threads = budget.threads(size.div_ceil(pass.chunk.max(1)));
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(|| shared.work())).collect();
        let mut outcome = shared.work();
        for helper in helpers {
            let ended = helper.join().unwrap_or_else(|_| {
                Err(io::Error::other("a thread of the pass over the file panicked").into())
            });
            outcome = outcome.and(ended);
        }
        outcome
    })?;
    if !pass.hash {
        return Ok(Passed::default());
    }
    let mut hashes = shared
        .hashes
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    hashes.sort_unstable_by_key(|(nth, _)| *nth);
    let chunks: Vec<Digest> = hashes.into_iter().map(|(_, hash)| hash).collect();
    let whole = whole(size, &chunks);
    Ok(Passed {
        hashes: Some(FileHashes {
            chunk_size: pass.chunk,
            chunks,
            whole,
        }),
    })
}

/// Makes runs of zero pages in `data` holes in the file.
pub(crate) fn punch(disk: &dyn Disk, file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let mut run: Option<(u64, u64)> = None;
    let mut offset = at;
    for page in data.chunks(PAGE) {
        let len = u64::try_from(page.len()).unwrap_or(0);
        // A last page that is not whole stays: punching it would not free its block.
        if page.len() == PAGE && is_zero(page) {
            run = Some(run.map_or((offset, len), |(begin, so_far)| {
                (begin, so_far.saturating_add(len))
            }));
        } else if let Some((begin, len)) = run.take() {
            disk.punch(file, begin, len)?;
        }
        offset = offset.saturating_add(len);
    }
    run.map_or(Ok(()), |(begin, len)| disk.punch(file, begin, len))
}

/// Whether there is nothing but zeros; compares words, and ends at the first that is not zero.
fn is_zero(page: &[u8]) -> bool {
    // Sixteen bytes settle nearly every page that is not zero.
    let (head, _) = page.split_at(16.min(page.len()));
    head.iter().all(|b| *b == 0)
        && page
            .chunks(256)
            .all(|part| part.iter().fold(0_u8, |sum, b| sum | b) == 0)
}
