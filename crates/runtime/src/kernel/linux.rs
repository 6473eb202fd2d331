//! The real kernel.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Whence;

use super::{Advice, Kernel, Process, Range, Swap, sys};

/// No file of a memory cgroup is longer; `cgroup.procs` of a pod with 10,000 processes has 80 KiB.
const KERNEL_FILE_LIMIT: u64 = 1 << 20;
/// A sentry has some hundred descriptors; a process with more of them is not looked through further.
const DESCRIPTOR_LIMIT: usize = 16_384;
/// A guest's memory is one file; more than a few are no sentry's.
const MEMORY_FILE_LIMIT: usize = 8;

/// What one page's entry in a `pagemap` takes, in bytes.
const ENTRY: u64 = 8;
/// The bit of an entry that says that the page is mapped.
const PRESENT: u64 = 1 << 63;
/// So many entries are read at a time: 64 MiB of address space.
const ENTRIES: u64 = 16_384;

/// The kernel that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

impl Kernel for Linux {
    fn open_process(&self, pid: i32) -> io::Result<Process> {
        Ok(Process {
            pid,
            fd: dormouse_sentry::process::pidfd_open(pid)?,
        })
    }

    fn compare_memory(&self, one: &Process, other: &Process) -> io::Result<Ordering> {
        sys::kcmp_vm(one.pid, other.pid)
    }

    fn read_smaps(&self, pid: i32, limit: u64) -> io::Result<String> {
        read_bounded(Path::new(&format!("/proc/{pid}/smaps")), limit)
    }

    fn present(&self, pid: i32, range: Range) -> io::Result<Vec<Range>> {
        present(&File::open(format!("/proc/{pid}/pagemap"))?, range)
    }

    fn advise(&self, process: &Process, ranges: &[Range], advice: Advice) -> io::Result<u64> {
        let advice = match advice {
            Advice::PageOut => libc::MADV_PAGEOUT,
            Advice::WillNeed => libc::MADV_WILLNEED,
        };
        sys::process_madvise(process.fd.as_fd(), ranges, advice)
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        read_bounded(path, KERNEL_FILE_LIMIT)
    }

    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        // No O_CREAT, no O_TRUNC: the file is the kernel's, and one write is one request.
        let mut file = OpenOptions::new().write(true).open(path)?;
        let written = file.write(value.as_bytes())?;
        if written == value.len() {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::WriteZero))
        }
    }

    fn child_dirs(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
        Ok(dirs)
    }

    fn swap(&self) -> io::Result<Swap> {
        let info = nix::sys::sysinfo::sysinfo().map_err(io::Error::from)?;
        Ok(Swap {
            total: info.swap_total(),
            free: info.swap_free(),
        })
    }

    fn open_memory_files(&self, pid: i32) -> io::Result<Vec<File>> {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.take(DESCRIPTOR_LIMIT) {
            let path = entry?.path();
            // A descriptor may have been closed since; that is no error.
            let Ok(target) = fs::read_link(&path) else {
                continue;
            };
            let name = target.as_os_str().as_encoded_bytes();
            if !name.starts_with(b"/memfd:") && !name.starts_with(b"/dev/shm/") {
                continue;
            }
            if let Some(file) = open_shared_memory(&path)? {
                let meta = file.metadata()?;
                if seen.insert((meta.dev(), meta.ino())) {
                    files.push(file);
                }
            }
            if files.len() == MEMORY_FILE_LIMIT {
                break;
            }
        }
        Ok(files)
    }

    fn next_data(&self, file: &File, from: u64) -> io::Result<Option<Range>> {
        let at = match seek(file, from, Whence::SeekData) {
            Ok(at) => at,
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let end = seek(file, at, Whence::SeekHole)?;
        Ok((end > at).then(|| Range {
            start: at,
            len: end - at,
        }))
    }

    fn absent(&self, file: &File, range: Range) -> io::Result<Vec<Range>> {
        let len = usize::try_from(range.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let page = page_size()?;
        let size = usize::try_from(page).ok().and_then(NonZeroUsize::new);
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        let pages = sys::Window::new(file.as_fd(), range.start, len)?.in_memory(size)?;
        let starts = (range.start..).step_by(size.get());
        let mut absent: Vec<Range> = Vec::new();
        for (start, _) in starts.zip(pages).filter(|(_, is_there)| !is_there) {
            match absent.last_mut() {
                Some(last) if last.start.saturating_add(last.len) == start => last.len += page,
                _ => absent.push(Range { start, len: page }),
            }
        }
        Ok(absent)
    }

    fn read_ahead(&self, file: &File, range: Range) -> io::Result<()> {
        let len = usize::try_from(range.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        sys::Window::new(file.as_fd(), range.start, len)?.will_need()
    }

    fn bring_back(&self, file: &File, range: Range) -> io::Result<()> {
        let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
        let mut at = range.start;
        let end = range.start.saturating_add(range.len);
        while at < end {
            let count = usize::try_from(end - at).map_err(|_| io::ErrorKind::InvalidInput)?;
            match sys::sendfile(nowhere.as_fd(), file.as_fd(), at, count) {
                // The file became shorter.
                Ok(0) => return Ok(()),
                Ok(sent) => at += sent,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Seeks in a file that nobody else shares a position with: it was opened anew.
fn seek(file: &File, from: u64, whence: Whence) -> nix::Result<u64> {
    let from = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
    let at = nix::unistd::lseek64(file, from, whence)?;
    u64::try_from(at).map_err(|_| Errno::EINVAL)
}

/// Opens what a descriptor of another process points to, if it is a regular file on tmpfs, and only for reading.
///
/// It is looked at through an `O_PATH` descriptor first, so that nothing else (a FIFO, a device) is ever opened.
fn open_shared_memory(path: &Path) -> io::Result<Option<File>> {
    let Ok(handle) = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)
    else {
        return Ok(None);
    };
    let on_tmpfs = nix::sys::statfs::fstatfs(&handle)
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if !on_tmpfs || !handle.metadata()?.is_file() {
        return Ok(None);
    }
    let again = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(again)
        .map(Some)
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(text)
}

fn page_size() -> io::Result<u64> {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
        .and_then(|size| u64::try_from(size).ok())
        .filter(|size| *size > 0)
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The pages of a range whose entries in a process's `pagemap` say that they are mapped.
fn present(pagemap: &File, range: Range) -> io::Result<Vec<Range>> {
    let page = page_size()?;
    let mut found: Vec<Range> = Vec::new();
    let (mut at, end) = (
        range.start / page,
        (range.start.saturating_add(range.len)).div_ceil(page),
    );
    let mut buffer = Vec::new();
    while at < end {
        let entries = (end - at).min(ENTRIES);
        buffer.resize(usize::try_from(entries * ENTRY).unwrap_or(0), 0);
        let read = pagemap.read_at(&mut buffer, at * ENTRY)?;
        // Behind the end of what a process can address there is nothing to read.
        let Some(got) = buffer.get(..read).filter(|got| !got.is_empty()) else {
            break;
        };
        for entry in got.chunks_exact(8) {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            if entry & PRESENT != 0 {
                match found.last_mut() {
                    Some(last) if last.start + last.len == at * page => last.len += page,
                    _ => found.push(Range {
                        start: at * page,
                        len: page,
                    }),
                }
            }
            at += 1;
        }
        if read % 8 != 0 {
            break;
        }
    }
    Ok(found)
}
