//! A guest's working set: the pages that it touched between a wake and its first answer.
//!
//! They are few and nearly the same each time (some 6 MiB of a sentry and a Python server, whatever the size of the
//! guest; Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots", ASPLOS 2021),
//! but each of them that lies in swap is a read of its own, one after the other. So a doze ends by bringing them
//! back: decision 0007.
//!
//! After a wake from Dozing the pages that are mapped are those that were touched since, as everything else was pushed
//! out. The set is measured then and noted in the pod's run directory (tmpfs). The next doze pushes everything out, as
//! the kernel's reclaim knows nothing of sets, and then brings the set back into memory without mapping it, so that
//! the next wake measures it anew: private memory into the swap cache, the guest's memory file into the file itself.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dormouse_sentry::FileError;
use dormouse_sentry::file::{read_bounded, write_atomic};
use serde::{Deserialize, Serialize};

use crate::brake::{Brake, Stop};
use crate::kernel::{Advice, Kernel, Process, Range};
use crate::pageout::{Kind, Mapping, PageOutError, advise, mappings};

/// How much of a guest is in memory while it dozes, unless told otherwise: 7 MiB.
pub const BUDGET: u64 = 7 << 20;
/// The form of the file.
const VERSION: u32 = 1;
/// A set of [`BUDGET`] single pages takes some 40 KiB.
const SIZE_LIMIT: usize = 1 << 20;
/// A set that was measured whole stands for so many measurements that are unlike it: more than the budget, of a guest
/// that went on to something else at once, or less than half, of one that was woken and not asked. If it is always so,
/// what was measured is the set.
const STANDS: u32 = 8;
/// A process's page table is not looked through beyond this much address space, in bytes: 64 MiB of entries.
const ADDRESS_SPACE: u64 = 32 << 30;

/// The pages of a guest that are in memory while it dozes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    version: u32,
    /// Whether it was within the budget when it was measured.
    whole: bool,
    /// How many measurements since were unlike it.
    unlike: u32,
    /// Private memory, by process.
    private: Vec<Part<i32>>,
    /// Memory files, by inode.
    files: Vec<Part<u64>>,
}

/// One process's private memory, or one memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part<Id> {
    id: Id,
    /// Start (an address, or an offset in the file) and length in bytes, in rising order.
    ranges: Vec<(u64, u64)>,
}

impl Default for WorkingSet {
    fn default() -> Self {
        Self {
            version: VERSION,
            whole: false,
            unlike: 0,
            private: Vec::new(),
            files: Vec::new(),
        }
    }
}

impl WorkingSet {
    /// Reads what an earlier wake measured. Whatever is wrong with the file, the answer is the empty set: it is only
    /// about speed, and the next wake measures it anew.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        read_bounded(path, SIZE_LIMIT)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .filter(|set: &Self| {
                set.version == VERSION
                    && set.private.iter().all(|p| in_order(&p.ranges))
                    && set.files.iter().all(|p| in_order(&p.ranges))
            })
            .unwrap_or_default()
    }

    /// Puts the set in the place of an earlier one.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        // Numbers alone: it can always be written as JSON.
        let text = serde_json::to_vec(self).unwrap_or_default();
        write_atomic(path, &text, 0o600)
    }

    /// How much memory that is, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let private = self.private.iter().flat_map(|p| &p.ranges);
        let files = self.files.iter().flat_map(|p| &p.ranges);
        private
            .chain(files)
            .fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }

    /// The set after a measurement: what fits into the budget. The first process's private memory comes first, which
    /// every wake needs.
    #[must_use]
    pub fn after(&self, mapped: Mapped, budget: u64) -> Self {
        let bytes = mapped.bytes();
        let whole = bytes <= budget;
        let like = whole && bytes >= self.bytes() / 2;
        if !like && self.whole && self.unlike < STANDS {
            return Self {
                unlike: self.unlike + 1,
                ..self.clone()
            };
        }
        let mut left = budget;
        let mut set = Self {
            whole,
            ..Self::default()
        };
        let mut private = mapped.private.into_iter();
        set.private.extend(
            private
                .by_ref()
                .take(1)
                .filter_map(|(pid, r)| part(pid, r, &mut left)),
        );
        let files = mapped.files.into_iter();
        set.files
            .extend(files.filter_map(|(inode, r)| part(inode, r, &mut left)));
        set.private
            .extend(private.filter_map(|(pid, r)| part(pid, r, &mut left)));
        set
    }

    /// Brings what is missing of the set back into memory; what cannot be brought back comes by faults.
    ///
    /// # Errors
    /// The brake was pulled.
    pub fn bring_back<K: Kernel + ?Sized>(
        &self,
        kernel: &K,
        processes: &[Process],
        brake: &mut dyn Brake,
    ) -> Result<(), Stop> {
        let mut files = BTreeMap::new();
        for process in processes {
            brake.check()?;
            if let Some(part) = self.private.iter().find(|p| p.id == process.pid) {
                let _ = advise(kernel, process, &ranges(part), Advice::WillNeed);
            }
            // A guest's memory file is held by several of its processes; most often the first has them all.
            if files.len() < self.files.len() {
                for file in kernel.open_memory_files(process.pid).unwrap_or_default() {
                    let inode = file.metadata().map(|m| m.ino()).ok();
                    if let Some(part) = self.files.iter().find(|p| Some(p.id) == inode) {
                        files.entry(part.id).or_insert(file);
                    }
                }
            }
        }
        for part in &self.files {
            let Some(file) = files.get(&part.id) else { continue };
            // All of it is on its way before the first page is waited for.
            let mut missing = Vec::new();
            for range in ranges(part) {
                brake.check()?;
                for range in kernel.absent(file, range).unwrap_or_else(|_| vec![range]) {
                    let _ = kernel.read_ahead(file, range);
                    missing.push(range);
                }
            }
            for range in missing {
                brake.check()?;
                let _ = kernel.bring_back(file, range);
            }
        }
        Ok(())
    }
}

fn ranges<Id>(part: &Part<Id>) -> Vec<Range> {
    part.ranges
        .iter()
        .map(|&(start, len)| Range { start, len })
        .collect()
}

/// What fits of these ranges, and what is left of the budget then.
fn part<Id>(id: Id, ranges: Vec<Range>, left: &mut u64) -> Option<Part<Id>> {
    let mut kept = Vec::new();
    for range in merged(ranges) {
        let len = range.len.min(*left);
        *left -= len;
        if len > 0 {
            kept.push((range.start, len));
        }
    }
    (!kept.is_empty()).then_some(Part { id, ranges: kept })
}

/// The same stretches in rising order, each once.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|r| r.start);
    let mut out: Vec<Range> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.start.saturating_add(last.len) => {
                let end = range.start.saturating_add(range.len);
                last.len = last.len.max(end - last.start);
            }
            _ => out.push(range),
        }
    }
    out
}

fn in_order(ranges: &[(u64, u64)]) -> bool {
    let mut end = 0_u64;
    ranges.iter().all(|&(start, len)| {
        let follows = start >= end && len > 0;
        end = start.saturating_add(len);
        follows && end < u64::MAX
    })
}

/// The pages that a guest's processes have mapped.
#[derive(Debug, Default)]
pub struct Mapped {
    /// Private memory by process, the first process's first.
    private: Vec<(i32, Vec<Range>)>,
    /// Memory files by inode, each page once.
    files: BTreeMap<u64, Vec<Range>>,
}

impl Mapped {
    /// Looks through the page tables of these processes, `first`'s first.
    ///
    /// # Errors
    /// [`PageOutError::Stopped`], or the kernel's.
    pub fn measure<K: Kernel + ?Sized>(
        kernel: &K,
        processes: &[Process],
        first: Option<i32>,
        brake: &mut dyn Brake,
    ) -> Result<Self, PageOutError> {
        let mut pids: Vec<i32> = processes.iter().map(|p| p.pid).collect();
        pids.sort_by_key(|pid| (Some(*pid) != first, *pid));
        let mut found = Self::default();
        for pid in pids {
            brake.check()?;
            let Some(mappings) = mappings(kernel, pid)? else {
                continue;
            };
            found.look_through(kernel, pid, &mappings, brake)?;
        }
        for ranges in found.files.values_mut() {
            *ranges = merged(std::mem::take(ranges));
        }
        Ok(found)
    }

    fn look_through<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        pid: i32,
        mappings: &[Mapping],
        brake: &mut dyn Brake,
    ) -> Result<(), PageOutError> {
        let mut left = ADDRESS_SPACE;
        let mut private = Vec::new();
        for mapping in mappings.iter().filter(|m| m.can_page_out()) {
            if mapping.range.len > left {
                continue;
            }
            left -= mapping.range.len;
            brake.check()?;
            let present = match kernel.present(pid, mapping.range) {
                Ok(present) => present,
                Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => break,
                Err(source) => return Err(PageOutError::ReadMap { pid, source }),
            };
            match mapping.kind {
                Kind::Anonymous | Kind::File => private.extend(present),
                Kind::MemoryFile => {
                    let in_file = |r: Range| Range {
                        start: (r.start - mapping.range.start).saturating_add(mapping.offset),
                        len: r.len,
                    };
                    let file = self.files.entry(mapping.inode).or_default();
                    file.extend(present.into_iter().map(in_file));
                }
                Kind::SharedAnonymous | Kind::Special => {}
            }
        }
        self.private.push((pid, private));
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let private = self.private.iter().flat_map(|(_, ranges)| ranges);
        private
            .chain(self.files.values().flatten())
            .fold(0, |sum, r| sum.saturating_add(r.len))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::kernel::Linux;
    use crate::kernel::fake::Fake;
    use crate::pageout::processes;

    const PAGE: u64 = 4096;

    fn range(start: u64, pages: u64) -> Range {
        Range {
            start: start * PAGE,
            len: pages * PAGE,
        }
    }

    fn mapped() -> Mapped {
        Mapped {
            private: vec![(7, vec![range(100, 4), range(10, 2)]), (3, vec![range(1, 10)])],
            files: [(1029, vec![range(0, 1), range(8, 3)])].into(),
        }
    }

    #[test]
    fn what_fits_stays_and_the_sentrys_own_comes_first() {
        let none = WorkingSet::default();
        assert_eq!(none.after(mapped(), 4 * PAGE).bytes(), 4 * PAGE);
        let set = none.after(mapped(), 11 * PAGE);
        let pages = |part: &[(u64, u64)]| -> Vec<(u64, u64)> {
            part.iter().map(|(s, l)| (s / PAGE, l / PAGE)).collect()
        };
        assert_eq!(pages(&set.private[0].ranges), [(10, 2), (100, 4)]);
        assert_eq!(pages(&set.files[0].ranges), [(0, 1), (8, 3)]);
        assert_eq!(
            (set.private[1].id, pages(&set.private[1].ranges)),
            (3, vec![(1, 1)])
        );
        assert_eq!(set.bytes(), 11 * PAGE);
        assert!(!set.whole);
    }

    #[test]
    fn each_measurement_counts_but_not_at_once_one_that_is_unlike() {
        let set = WorkingSet::default().after(mapped(), 20 * PAGE);
        assert!(set.whole);
        assert_eq!(set.bytes(), 20 * PAGE);
        let mut less = mapped();
        less.private.pop();
        assert_eq!(set.after(less, 20 * PAGE).bytes(), 10 * PAGE);
        for (unlike, budget) in [(mapped as fn() -> Mapped, PAGE), (Mapped::default, 20 * PAGE)] {
            let mut later = set.clone();
            for _ in 0..STANDS {
                later = later.after(unlike(), budget);
                assert_eq!(later.bytes(), set.bytes());
            }
            assert_eq!(later.after(mapped(), 20 * PAGE), set);
            assert_eq!(
                later.after(unlike(), budget).bytes(),
                unlike().bytes().min(budget)
            );
        }
    }

    #[test]
    fn a_file_that_is_not_one_is_the_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("working-set.json");
        assert_eq!(WorkingSet::read(&path), WorkingSet::default());
        let set = WorkingSet::default().after(mapped(), 20 * PAGE);
        set.write(&path).unwrap();
        assert_eq!(WorkingSet::read(&path), set);
        for bad in [
            "",
            "{}",
            r#"{"version":2,"whole":true,"unlike":0,"private":[],"files":[]}"#,
            r#"{"version":1,"whole":true,"unlike":0,"private":[{"id":1,"ranges":[[8192,4096],[4096,4096]]}],"files":[]}"#,
            r#"{"version":1,"whole":true,"unlike":0,"private":[],"files":[{"id":1,"ranges":[[18446744073709551615,4096]]}]}"#,
            r#"{"version":1,"whole":true,"unlike":0,"private":[{"id":1,"ranges":[[4096,0]]}],"files":[]}"#,
        ] {
            fs::write(&path, bad).unwrap();
            assert_eq!(WorkingSet::read(&path), WorkingSet::default(), "{bad}");
        }
    }

    /// A sentry (7) with a heap and a memory file, and a stub (3) that maps the same file elsewhere.
    fn guest(inode: u64) -> (Fake, Vec<Process>) {
        let fake = Fake::default();
        let mapping = |start: u64, pages: u64, of_file: Option<u64>| {
            let (perms, offset, inode, name) = match of_file {
                Some(page) => ("rw-s", page * PAGE, inode, "/memfd:runsc-memory (deleted)"),
                None => ("rw-p", 0, 0, ""),
            };
            format!(
                "{:x}-{:x} {perms} {offset:08x} 00:01 {inode} {name}\nRss: {} kB\n",
                start * PAGE,
                (start + pages) * PAGE,
                pages * 4
            )
        };
        let sentry = mapping(16, 64, Some(0)) + &mapping(256, 16, None);
        let stub = mapping(1000, 64, Some(4));
        let mut inner = fake.0.lock().unwrap();
        inner.smaps = [(7, sentry), (3, stub)].into();
        inner.present = [
            (7, vec![range(20, 2), range(260, 4)]),
            (3, vec![range(1000, 1), range(1008, 1)]),
        ]
        .into();
        drop(inner);
        let processes = [3, 7].map(|pid| fake.open_process(pid).unwrap()).into();
        (fake, processes)
    }

    #[test]
    fn is_measured_and_brought_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("memory")).unwrap();
        let inode = file.metadata().unwrap().ino();
        let (fake, processes) = guest(inode);
        let mut brake = || Ok(());
        let mapped = Mapped::measure(&fake, &processes, Some(7), &mut brake).unwrap();
        assert_eq!(mapped.private, [(7, vec![range(260, 4)]), (3, vec![])]);
        // Pages 4 and 5 of the file by the sentry, 4 and 12 by the stub.
        assert_eq!(mapped.files[&inode], [range(4, 2), range(12, 1)]);
        assert_eq!(mapped.bytes(), 7 * PAGE);

        fake.0.lock().unwrap().memory_files.insert(7, file);
        let set = WorkingSet::default().after(mapped, 20 * PAGE);
        set.bring_back(&fake, &processes, &mut brake).unwrap();
        assert_eq!(fake.advised(), [range(260, 4)]);
        assert_eq!(fake.0.lock().unwrap().brought_back, [range(4, 2), range(12, 1)]);
        // What is still there is left alone.
        fake.0.lock().unwrap().in_memory.push(range(4, 2));
        set.bring_back(&fake, &processes, &mut brake).unwrap();
        assert_eq!(fake.0.lock().unwrap().brought_back[2..], [range(12, 1)]);
        let mut stop = || Err(Stop::Woken);
        assert!(matches!(
            set.bring_back(&fake, &processes, &mut stop),
            Err(Stop::Woken)
        ));
    }

    #[test]
    fn threads_of_one_guest_count_once() {
        let (fake, _) = guest(5);
        let smaps = fake.0.lock().unwrap().smaps[&3].clone();
        let mut inner = fake.0.lock().unwrap();
        inner.smaps.extend([(4, smaps.clone()), (9, smaps)]);
        inner.memory_of = [(4, 3), (9, 3)].into();
        let procs = (1..20).map(|pid| format!("{pid}\n")).collect();
        inner.files.insert("/cg/cgroup.procs".into(), procs);
        drop(inner);
        let found = processes(&fake, Path::new("/cg")).unwrap();
        let pids: Vec<i32> = found.iter().map(|p| p.pid).collect();
        assert_eq!(pids, [3, 7]);
    }

    #[test]
    fn a_guest_that_went_away_is_no_error() {
        let (fake, processes) = guest(5);
        fake.0.lock().unwrap().present.clear();
        let mapped = Mapped::measure(&fake, &processes, None, &mut || Ok(())).unwrap();
        assert_eq!(mapped.bytes(), 0);
        fake.0.lock().unwrap().smaps.clear();
        Mapped::measure(&fake, &processes, None, &mut || Ok(())).unwrap();
    }

    #[test]
    fn the_real_kernel_says_what_is_absent_and_brings_back_nothing_that_was_never_there() {
        use std::os::unix::fs::FileExt;

        let file =
            File::from(nix::sys::memfd::memfd_create(c"memory", nix::sys::memfd::MFdFlags::empty()).unwrap());
        file.set_len(8 * PAGE).unwrap();
        for page in [0, 3, 4] {
            file.write_all_at(b"x", page * PAGE).unwrap();
        }
        assert_eq!(
            Linux.absent(&file, range(0, 8)).unwrap(),
            [range(1, 2), range(5, 3)]
        );
        assert_eq!(Linux.absent(&file, range(3, 2)).unwrap(), []);
        Linux.read_ahead(&file, range(5, 3)).unwrap();
        Linux.bring_back(&file, range(5, 3)).unwrap();
        assert_eq!(Linux.absent(&file, range(4, 4)).unwrap(), [range(5, 3)]);
        assert!(Linux.absent(&file, Range { start: 1, len: PAGE }).is_err());
    }

    #[test]
    fn the_real_kernel_says_which_pages_are_mapped() {
        // So large that the allocator takes it fresh from the kernel, whatever was freed before.
        const PAGES: u64 = 16_384;
        let mut memory = vec![0_u8; (PAGES * PAGE) as usize];
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let pid = i32::try_from(std::process::id()).unwrap();
        let of = |start: u64, pages: u64| Range {
            start: base + start * PAGE,
            len: pages * PAGE,
        };
        let offset = (base - memory.as_ptr() as u64) as usize;
        let touched = [3, 4, 9_000];
        for page in touched {
            memory[offset + page * PAGE as usize] = 1;
        }
        let present = Linux.present(pid, of(0, PAGES - 1)).unwrap();
        for page in touched {
            let at = of(page as u64, 1).start;
            assert!(
                present.iter().any(|r| r.start <= at && at < r.start + r.len),
                "{page}"
            );
        }
        assert_eq!(merged(present.clone()), present);
        // With huge pages it is more than three, but never nearly all.
        assert!(present.iter().map(|r| r.len).sum::<u64>() < PAGES * PAGE / 2);
        assert_eq!(memory[offset + 9_000 * PAGE as usize], 1);
        assert!(Linux.present(i32::MAX, of(0, 1)).is_err());
    }
}
