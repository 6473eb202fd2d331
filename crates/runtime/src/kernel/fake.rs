//! A kernel that records what it is asked, and one that fails where it is told to: the same fake, with and without
//! faults.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Advice, Kernel, Process, Range, Swap};

type Hook = Box<dyn FnMut(&Path, &str, &mut BTreeMap<PathBuf, String>) -> io::Result<()> + Send>;

#[derive(Default)]
pub(crate) struct Inner {
    pub files: BTreeMap<PathBuf, String>,
    pub smaps: HashMap<i32, String>,
    /// Processes that share another one's memory.
    pub memory_of: HashMap<i32, i32>,
    pub present: HashMap<i32, Vec<Range>>,
    pub refused: HashMap<Range, i32>,
    pub advised: Vec<(i32, Range, Advice)>,
    pub memory_files: HashMap<i32, File>,
    /// Stretches of memory files that are in memory.
    pub in_memory: Vec<Range>,
    pub brought_back: Vec<Range>,
    pub calls: Vec<Vec<Range>>,
    pub partial: Option<u64>,
    pub swap: Swap,
    pub writes: Vec<(PathBuf, String)>,
    pub on_write: Option<Hook>,
}

#[derive(Default)]
pub(crate) struct Fake(pub Mutex<Inner>);

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Fake {
    pub(crate) fn refuse(&self, range: Range, errno: i32) {
        self.0.lock().unwrap().refused.insert(range, errno);
    }

    pub(crate) fn partial(&self, bytes: u64) {
        self.0.lock().unwrap().partial = Some(bytes);
    }

    pub(crate) fn advised(&self) -> Vec<Range> {
        self.0.lock().unwrap().advised.iter().map(|a| a.1).collect()
    }

    pub(crate) fn set(&self, path: &str, value: &str) {
        self.0.lock().unwrap().files.insert(path.into(), value.into());
    }

    pub(crate) fn get(&self, path: &str) -> String {
        self.0
            .lock()
            .unwrap()
            .files
            .get(Path::new(path))
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn swap_is(&self, total: u64, free: u64) {
        self.0.lock().unwrap().swap = Swap { total, free };
    }

    pub(crate) fn on_write(
        &self,
        hook: impl FnMut(&Path, &str, &mut BTreeMap<PathBuf, String>) -> io::Result<()> + Send + 'static,
    ) {
        self.0.lock().unwrap().on_write = Some(Box::new(hook));
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Kernel for Fake {
    fn open_process(&self, pid: i32) -> io::Result<Process> {
        if !self.0.lock().unwrap().smaps.contains_key(&pid) {
            return Err(errno(libc::ESRCH));
        }
        Ok(Process {
            pid,
            fd: File::open("/dev/null")?.into(),
        })
    }

    fn compare_memory(&self, one: &Process, other: &Process) -> io::Result<Ordering> {
        let inner = self.0.lock().unwrap();
        let of = |pid: i32| inner.memory_of.get(&pid).copied().unwrap_or(pid);
        Ok(of(one.pid).cmp(&of(other.pid)))
    }

    fn read_smaps(&self, pid: i32, _limit: u64) -> io::Result<String> {
        self.0
            .lock()
            .unwrap()
            .smaps
            .get(&pid)
            .cloned()
            .ok_or_else(|| errno(libc::ESRCH))
    }

    fn present(&self, pid: i32, range: Range) -> io::Result<Vec<Range>> {
        let inner = self.0.lock().unwrap();
        let pages = inner.present.get(&pid).ok_or_else(|| errno(libc::ESRCH))?;
        Ok(pages
            .iter()
            .copied()
            .filter(|r| r.start >= range.start && r.start < range.start + range.len)
            .collect())
    }

    fn advise(&self, process: &Process, ranges: &[Range], advice: Advice) -> io::Result<u64> {
        let mut inner = self.0.lock().unwrap();
        inner.calls.push(ranges.to_vec());
        if let Some(bytes) = inner.partial {
            return Ok(bytes);
        }
        let mut done = 0;
        for (index, range) in ranges.iter().enumerate() {
            if let Some(&code) = inner.refused.get(range) {
                if index == 0 {
                    return Err(errno(code));
                }
                break;
            }
            inner.advised.push((process.pid, *range, advice));
            done += range.len;
        }
        Ok(done)
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        self.0
            .lock()
            .unwrap()
            .files
            .get(path)
            .cloned()
            .ok_or_else(|| errno(libc::ENOENT))
    }

    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.writes.push((path.into(), value.into()));
        if !inner.files.contains_key(path) {
            return Err(errno(libc::ENOENT));
        }
        if let Some(mut hook) = inner.on_write.take() {
            let result = hook(path, value, &mut inner.files);
            inner.on_write = Some(hook);
            return result;
        }
        inner.files.insert(path.into(), value.into());
        Ok(())
    }

    fn child_dirs(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.0.lock().unwrap();
        let mut dirs: Vec<PathBuf> = inner
            .files
            .keys()
            .filter_map(|f| f.strip_prefix(path).ok())
            .filter(|f| f.components().count() > 1)
            .map(|f| path.join(f.components().next().unwrap()))
            .collect();
        dirs.dedup();
        Ok(dirs)
    }

    fn swap(&self) -> io::Result<Swap> {
        Ok(self.0.lock().unwrap().swap)
    }

    fn open_memory_files(&self, pid: i32) -> io::Result<Vec<File>> {
        let inner = self.0.lock().unwrap();
        inner
            .memory_files
            .get(&pid)
            .map(File::try_clone)
            .into_iter()
            .collect()
    }

    fn next_data(&self, _file: &File, _from: u64) -> io::Result<Option<Range>> {
        Ok(None)
    }

    fn absent(&self, _file: &File, range: Range) -> io::Result<Vec<Range>> {
        let is_there = self.0.lock().unwrap().in_memory.contains(&range);
        Ok(if is_there { Vec::new() } else { vec![range] })
    }

    fn read_ahead(&self, _file: &File, _range: Range) -> io::Result<()> {
        Ok(())
    }

    fn bring_back(&self, _file: &File, range: Range) -> io::Result<()> {
        self.0.lock().unwrap().brought_back.push(range);
        Ok(())
    }
}
