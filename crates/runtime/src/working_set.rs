//! A guest's working set: the pages that it touched between a wake and its first answer.
//!
//! They are few and nearly the same each time (some 4 MiB of a sentry and its stubs, whatever the size of the guest:
//! Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots", ASPLOS 2021), but from
//! a disk each of them is a read of its own. So a doze leaves them in memory: decision 0007.
//!
//! After a wake from Dozing the pages that are mapped are those that were touched since, as everything else was paged
//! out. The set is measured then, kept in the pod's run directory (tmpfs), and left out of the next page-out. What was
//! left in memory is mapped whether it is touched again or not, so a set only grows; one that has outgrown its budget
//! is forgotten now and then, and measured anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::brake::Brake;
use crate::kernel::{Advice, Kernel, Process, Range};
use crate::pageout::{Kind, Mapping, PageOutError, advise, mappings};

/// How much of a guest stays in memory while it dozes, unless told otherwise: 6 MiB.
pub const BUDGET: u64 = 6 << 20;
/// The form of the file.
const VERSION: u32 = 1;
/// A set of [`BUDGET`] single pages takes some 40 KiB.
const SIZE_LIMIT: u64 = 1 << 20;
/// What was mapped is no working set where it is this many times the budget: the guest was not asleep, or went through
/// all of its memory.
const NO_SET: u64 = 16;
/// A set that has outgrown the budget is forgotten when it was added to so many times.
const OLD: u32 = 8;
/// A process's page table is not looked through beyond this much address space, in bytes: 64 MiB of entries.
const ADDRESS_SPACE: u64 = 32 << 30;

/// The pages of a guest that a doze leaves in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    version: u32,
    /// After how many wakes it was added to.
    age: u32,
    processes: Vec<Part>,
}

/// One process's part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    pid: i32,
    /// Address and length in bytes, in rising order.
    ranges: Vec<(u64, u64)>,
}

impl Default for WorkingSet {
    fn default() -> Self {
        Self {
            version: VERSION,
            age: 0,
            processes: Vec::new(),
        }
    }
}

impl WorkingSet {
    /// Reads what an earlier wake measured. Whatever is wrong with the file, the answer is the empty set: it is only
    /// about speed, and the next wake measures it anew.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let read = || -> io::Result<Self> {
            let mut text = Vec::new();
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(path)?
                .take(SIZE_LIMIT)
                .read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        read()
            .ok()
            .filter(|set: &Self| set.version == VERSION && set.is_in_order())
            .unwrap_or_default()
    }

    /// Puts the set in the place of an earlier one.
    ///
    /// # Errors
    /// The kernel's. On tmpfs: it does not outlive the processes that it speaks of, so nothing is fsynced.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, path)
    }

    /// How much memory that is, in bytes. A page that two processes map counts twice.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.processes
            .iter()
            .flat_map(|p| &p.ranges)
            .fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }

    /// The set after a wake at which `mapped` was measured: what fits into the budget, the first processes' first.
    #[must_use]
    pub fn after_wake(&self, mapped: Mapped, budget: u64) -> Self {
        let total = mapped.bytes();
        if total > budget.saturating_mul(NO_SET) {
            return self.clone();
        }
        if total > budget && self.age >= OLD {
            return Self::default();
        }
        let mut left = budget;
        let processes = mapped.0.into_iter().filter_map(|(pid, ranges)| {
            let mut kept = Vec::new();
            for range in ranges {
                let len = range.len.min(left);
                left -= len;
                if len > 0 {
                    kept.push((range.start, len));
                }
            }
            kept.sort_unstable();
            (!kept.is_empty()).then_some(Part { pid, ranges: kept })
        });
        Self {
            version: VERSION,
            age: self.age.saturating_add(1),
            processes: processes.collect(),
        }
    }

    /// A process's part, in rising order.
    #[must_use]
    pub fn of(&self, pid: i32) -> Vec<Range> {
        self.processes
            .iter()
            .find(|p| p.pid == pid)
            .map(|p| {
                p.ranges
                    .iter()
                    .map(|&(start, len)| Range { start, len })
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Brings back what the cgroup's reclaim has taken of it, which knows nothing of sets.
    ///
    /// # Errors
    /// The kernel's; the set is then smaller, and the next wake slower.
    pub fn bring_back<K: Kernel + ?Sized>(&self, kernel: &K, processes: &[Process]) -> io::Result<()> {
        for process in processes {
            advise(kernel, process, &self.of(process.pid), Advice::WillNeed)?;
        }
        Ok(())
    }

    fn is_in_order(&self) -> bool {
        self.processes.iter().all(|p| {
            let mut end = 0_u64;
            p.ranges.iter().all(|&(start, len)| {
                let follows = start >= end && len > 0;
                end = start.saturating_add(len);
                follows && end > start && end < u64::MAX
            })
        })
    }
}

/// The pages that a guest's processes have mapped, the most important ones first.
#[derive(Debug, Default)]
pub struct Mapped(Vec<(i32, Vec<Range>)>);

impl Mapped {
    /// Looks through the page tables of these processes, `first`'s first; private memory comes before shared.
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
        let mut found = Vec::new();
        for pid in pids {
            brake.check()?;
            let Some(mut mappings) = mappings(kernel, pid)? else {
                continue;
            };
            mappings.retain(Mapping::can_page_out);
            mappings.sort_by_key(|m| (m.kind != Kind::Anonymous, m.range.start));
            let mut left = ADDRESS_SPACE;
            let mut ranges = Vec::new();
            for mapping in mappings {
                if mapping.range.len > left {
                    continue;
                }
                left -= mapping.range.len;
                brake.check()?;
                match kernel.present(pid, mapping.range) {
                    Ok(present) => ranges.extend(present),
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => break,
                    Err(source) => return Err(PageOutError::ReadMap { pid, source }),
                }
            }
            found.push((pid, ranges));
        }
        Ok(Self(found))
    }

    fn bytes(&self) -> u64 {
        self.0
            .iter()
            .flat_map(|(_, ranges)| ranges)
            .fold(0, |sum, r| sum.saturating_add(r.len))
    }
}

/// A range without the parts of it that stay; both in rising order.
pub(crate) fn without(range: Range, stay: &[Range]) -> Vec<Range> {
    let end = range.start.saturating_add(range.len);
    let mut rest = Vec::new();
    let mut at = range.start;
    // The first that reaches into the range, and all up to the one that begins behind it.
    let from = stay.partition_point(|r| r.start.saturating_add(r.len) <= range.start);
    for kept in stay.iter().skip(from) {
        if kept.start >= end {
            break;
        }
        if kept.start > at {
            rest.push(Range {
                start: at,
                len: kept.start - at,
            });
        }
        at = at.max(kept.start.saturating_add(kept.len));
    }
    if at < end {
        rest.push(Range {
            start: at,
            len: end - at,
        });
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Linux;
    use crate::kernel::fake::Fake;
    use crate::pageout::page_out;

    const PAGE: u64 = 4096;

    fn range(start: u64, pages: u64) -> Range {
        Range {
            start: start * PAGE,
            len: pages * PAGE,
        }
    }

    #[test]
    fn keeps_what_fits_and_the_first_processes_first() {
        let mapped = || Mapped(vec![(7, vec![range(100, 4), range(10, 2)]), (3, vec![range(1, 10)])]);
        let set = WorkingSet::default().after_wake(mapped(), 8 * PAGE);
        assert_eq!(set.bytes(), 8 * PAGE);
        assert_eq!(set.of(7), [range(10, 2), range(100, 4)]);
        assert_eq!(set.of(3), [range(1, 2)]);
        assert_eq!(set.of(1), []);
        // What is far beyond the budget is no working set: the one before stands.
        assert_eq!(set.after_wake(mapped(), 0), set);
        // A set that has outgrown the budget is measured anew in the end.
        let mut old = set;
        for _ in 0..OLD {
            assert_ne!(old.bytes(), 0);
            old = old.after_wake(mapped(), 8 * PAGE);
        }
        assert_eq!(old, WorkingSet::default());
        // One that fits is kept.
        for _ in 0..2 * OLD {
            old = old.after_wake(mapped(), 16 * PAGE);
        }
        assert_eq!(old.bytes(), 16 * PAGE);
    }

    #[test]
    fn a_file_that_is_not_one_is_the_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("working-set.json");
        assert_eq!(WorkingSet::read(&path), WorkingSet::default());
        let set = WorkingSet::default().after_wake(Mapped(vec![(7, vec![range(1, 1)])]), PAGE);
        set.write(&path).unwrap();
        assert_eq!(WorkingSet::read(&path), set);
        for bad in [
            "",
            "{}",
            r#"{"version":2,"age":0,"processes":[]}"#,
            r#"{"version":1,"age":0,"processes":[{"pid":1,"ranges":[[8192,4096],[4096,4096]]}]}"#,
            r#"{"version":1,"age":0,"processes":[{"pid":1,"ranges":[[18446744073709551615,4096]]}]}"#,
            r#"{"version":1,"age":0,"processes":[{"pid":1,"ranges":[[4096,0]]}]}"#,
        ] {
            fs::write(&path, bad).unwrap();
            assert_eq!(WorkingSet::read(&path), WorkingSet::default(), "{bad}");
        }
    }

    /// A sentry (7) with a heap and a memory file, and a stub (3).
    fn guest() -> (Fake, Vec<Process>) {
        let fake = Fake::default();
        let mapping = |start: u64, pages: u64, perms: &str, name: &str| {
            format!(
                "{:x}-{:x} {perms} 00000000 00:01 {} {name}\nRss: {} kB\n",
                start * PAGE,
                (start + pages) * PAGE,
                u8::from(!name.is_empty()),
                pages * 4
            )
        };
        let sentry =
            mapping(16, 64, "rw-s", "/memfd:runsc-memory (deleted)") + &mapping(256, 16, "rw-p", "");
        let stub = mapping(16, 64, "rw-s", "/memfd:runsc-memory (deleted)");
        let mut inner = fake.0.lock().unwrap();
        inner.smaps = [(7, sentry), (3, stub)].into();
        inner.present = [(7, vec![range(20, 2), range(260, 4)]), (3, vec![range(20, 1)])].into();
        drop(inner);
        let processes = [3, 7].map(|pid| fake.open_process(pid).unwrap()).into();
        (fake, processes)
    }

    #[test]
    fn a_page_out_leaves_the_set() {
        let (fake, processes) = guest();
        let mut brake = || Ok(());
        let mapped = Mapped::measure(&fake, &processes, Some(7), &mut brake).unwrap();
        // The sentry's private memory first, then its memory file, then the stub's.
        assert_eq!(
            mapped.0,
            [
                (7, vec![range(260, 4), range(20, 2)]),
                (3, vec![range(20, 1)])
            ]
        );
        let set = WorkingSet::default().after_wake(mapped, 6 * PAGE);
        let report = page_out(&fake, &processes, &set, &mut brake).unwrap();
        assert_eq!(report.bytes, (64 + 64 + 16 - 6) * PAGE);
        let advised: Vec<(i32, Range)> = fake.0.lock().unwrap().advised.iter().map(|a| (a.0, a.1)).collect();
        assert_eq!(
            advised,
            [
                (3, range(16, 64)),
                (7, range(16, 4)),
                (7, range(22, 58)),
                (7, range(256, 4)),
                (7, range(264, 8)),
            ]
        );
        set.bring_back(&fake, &processes).unwrap();
        let back: Vec<Range> = fake.advised().split_off(advised.len());
        assert_eq!(back, [range(20, 2), range(260, 4)]);
    }

    #[test]
    fn a_guest_that_went_away_is_no_error() {
        let (fake, processes) = guest();
        fake.0.lock().unwrap().present.clear();
        let mapped = Mapped::measure(&fake, &processes, None, &mut || Ok(())).unwrap();
        assert_eq!(mapped.bytes(), 0);
        fake.0.lock().unwrap().smaps.clear();
        Mapped::measure(&fake, &processes, None, &mut || Ok(())).unwrap();
    }

    #[test]
    fn the_real_kernel_says_which_pages_are_mapped() {
        let mut memory = vec![0_u8; 64 * PAGE as usize];
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let pid = i32::try_from(std::process::id()).unwrap();
        let of = |start: u64, pages: u64| Range {
            start: base + start * PAGE,
            len: pages * PAGE,
        };
        let offset = (base - memory.as_ptr() as u64) as usize;
        for page in [3, 4, 9] {
            memory[offset + page * PAGE as usize] = 1;
        }
        let present = Linux.present(pid, of(0, 60)).unwrap();
        assert_eq!(present, [of(3, 2), of(9, 1)]);
        assert_eq!(memory[offset + 9 * PAGE as usize], 1);
        assert!(Linux.present(i32::MAX, of(0, 1)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_left_and_what_stays_are_all_of_it(
            start in 0..50_u64, pages in 1..50_u64, stay in proptest::collection::btree_set(0..100_u64, 0..40)
        ) {
            let whole = range(start, pages);
            let stay: Vec<Range> = stay.into_iter().map(|page| range(page, 1)).collect();
            let rest = without(whole, &stay);
            for page in 0..120 {
                let is_in = |r: &Range| r.start <= page * PAGE && page * PAGE < r.start + r.len;
                let expected = is_in(&whole) && !stay.iter().any(is_in);
                prop_assert_eq!(rest.iter().filter(|r| is_in(r)).count(), usize::from(expected));
            }
            prop_assert!(rest.iter().all(|r| r.len > 0));
        }
    }
}
