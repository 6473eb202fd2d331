//! What page-out, reclaim and prefetch ask of the Linux kernel, behind one small trait.
//!
//! [`Linux`] is the real thing. The tests put recording and faulting kernels in its place, so that one suite of
//! behaviour runs against all of them.

#[cfg(test)]
pub(crate) mod fake;
mod linux;
mod sys;

use std::cmp::Ordering;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use linux::Linux;

/// A stretch of a process's address space, in bytes. Both ends lie on page borders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The length in bytes; never 0.
    pub len: u64,
}

/// What the kernel is told about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// `MADV_PAGEOUT`: push the pages out now.
    PageOut,
    /// `MADV_WILLNEED`: begin to bring the pages back.
    WillNeed,
}

/// The node's swap, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swap {
    /// All active swap areas together.
    pub total: u64,
    /// What is free of it.
    pub free: u64,
}

/// A process, held by its pidfd so that a reused pid is never mistaken for it.
#[derive(Debug)]
pub struct Process {
    /// Its id in the agent's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub fd: OwnedFd,
}

/// The kernel calls that this crate makes on a pod's memory.
///
/// Errors are the kernel's own, by errno: callers decide what each of them means.
pub trait Kernel: fmt::Debug + Send + Sync + 'static {
    /// Opens a process by its id (`pidfd_open(2)`).
    ///
    /// # Errors
    /// `ESRCH` if there is no such process.
    fn open_process(&self, pid: i32) -> io::Result<Process>;

    /// How the memory of two processes compares (`kcmp(2)`): `Equal` where they share it, otherwise in an order of the
    /// kernel's own, which stays the same while both live.
    ///
    /// # Errors
    /// `ESRCH` if one of them is gone, `ENOSYS` on a kernel without, `EPERM` without `CAP_SYS_PTRACE`.
    fn compare_memory(&self, one: &Process, other: &Process) -> io::Result<Ordering>;

    /// Reads `/proc/PID/smaps`, at most `limit` bytes of it; a longer one is an error.
    ///
    /// # Errors
    /// `ESRCH`/`ENOENT` if the process is gone, `EFBIG` if the file is longer than `limit`.
    fn read_smaps(&self, pid: i32, limit: u64) -> io::Result<String>;

    /// The pages of a range that are mapped in a process, by `/proc/PID/pagemap`, in rising order.
    ///
    /// # Errors
    /// `ESRCH`/`ENOENT` if the process is gone, `EPERM` without `CAP_SYS_PTRACE`.
    fn present(&self, pid: i32, range: Range) -> io::Result<Vec<Range>>;

    /// Advises on ranges of another process (`process_madvise(2)`), and says how many bytes were covered:
    /// ranges are taken in order, and a short count means that the next one was refused.
    ///
    /// # Errors
    /// `ESRCH` if the process is gone; `EINVAL`, `ENOMEM`, … if the first range was refused.
    fn advise(&self, process: &Process, ranges: &[Range], advice: Advice) -> io::Result<u64>;

    /// Reads a small kernel file (cgroupfs) in whole.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// Writes a value into a small kernel file with one `write(2)`.
    ///
    /// # Errors
    /// The kernel's; `EBUSY` and `EAGAIN` have a meaning for memory cgroups.
    fn write(&self, path: &Path, value: &str) -> io::Result<()>;

    /// The directories directly below a cgroup.
    ///
    /// # Errors
    /// The kernel's.
    fn child_dirs(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// The node's swap.
    ///
    /// # Errors
    /// The kernel's.
    fn swap(&self) -> io::Result<Swap>;

    /// Opens, for reading only, the shared memory files (memfd) that a process holds, each once.
    ///
    /// # Errors
    /// `ESRCH`/`ENOENT` if the process is gone.
    fn open_memory_files(&self, pid: i32) -> io::Result<Vec<File>>;

    /// The first stretch of a memory file at or after `from` that holds data, in memory or in swap.
    ///
    /// # Errors
    /// The kernel's.
    fn next_data(&self, file: &File, from: u64) -> io::Result<Option<Range>>;

    /// What of a stretch of a memory file is not in memory, in rising order. The stretch begins with a page.
    ///
    /// # Errors
    /// The kernel's.
    fn absent(&self, file: &File, range: Range) -> io::Result<Vec<Range>>;

    /// Begins to read a stretch of a memory file from swap, without waiting for it.
    ///
    /// # Errors
    /// The kernel's.
    fn read_ahead(&self, file: &File, range: Range) -> io::Result<()>;

    /// Reads a stretch of a memory file to nowhere, which brings its pages back from swap into the file. Nothing is
    /// copied, nothing is allocated for holes, and the file is not changed.
    ///
    /// # Errors
    /// The kernel's.
    fn bring_back(&self, file: &File, range: Range) -> io::Result<()>;
}
