//! What a pod costs the node: memory and CPU by part, and the node's own figures.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use procfs::process::Process;
use procfs::{Current, Meminfo};

use crate::host::{ProcessId, cgroup, process};
use crate::pod::Pod;

/// What a process of a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// gVisor's kernel.
    Sentry,
    /// systrap's stub processes, which hold the application's address spaces.
    Stub,
    /// gVisor's file server.
    Gofer,
    /// containerd's shim.
    Shim,
    /// `runsc wait`, one per container.
    Wait,
    /// `dormouse-runsc` in any role but `wait`.
    Wrapper,
    /// Anything else in the pod's cgroup: with runc, the application.
    Application,
}

/// Memory of one part, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Share {
    /// How many processes.
    pub processes: u32,
    /// Proportional set size: shared pages are divided among those who map them.
    pub pss: u64,
    /// Resident set size: shared pages count everywhere.
    pub rss: u64,
    /// Swapped out, proportional.
    pub swap: u64,
}

/// What a pod occupies now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Footprint {
    /// What the pod's memory cgroup is charged for, bytes.
    pub cgroup: u64,
    /// Of that, anonymous and shared memory in RAM, bytes.
    pub own: u64,
    /// By part. Processes that share one address space (stubs of gVisor) count it as often as there are of them.
    pub parts: BTreeMap<Part, Share>,
}

impl Footprint {
    /// PSS of all parts together, bytes.
    #[must_use]
    pub fn pss(&self) -> u64 {
        self.parts.values().map(|share| share.pss).sum()
    }
}

/// All processes that exist because of this pod, with what each is for.
///
/// They are found by the pod's cgroup and by containerd's ids in their arguments. Reading a process's arguments
/// brings pages of it back from swap: for a sleeper, call this before it falls asleep and [`measure`] later.
#[must_use]
pub fn processes(pod: &Pod) -> Vec<(ProcessId, Part)> {
    let mut ids = vec![pod.id.as_str()];
    ids.extend(pod.containers.iter().map(String::as_str));
    processes_of(&pod.cgroup, &ids)
}

/// The same of a pod that is being made, by its cgroup and those of containerd's ids that are known of it.
#[must_use]
pub fn processes_of(cgroup: &str, ids: &[&str]) -> Vec<(ProcessId, Part)> {
    let inside: HashSet<i32> = cgroup::processes(cgroup).into_iter().collect();
    let named = |argv: &[String]| argv.iter().any(|word| ids.iter().any(|id| word.contains(id)));
    let mut found: Vec<(ProcessId, Part)> = Vec::new();
    for running in process::find(|_| true) {
        let in_cgroup = inside.contains(&running.id.pid);
        if in_cgroup || named(&running.argv) {
            found.push((running.id, part(&running, in_cgroup)));
        }
    }
    // Kernel-side stubs of systrap have no arguments at all.
    let known: HashSet<i32> = found.iter().map(|(id, _)| id.pid).collect();
    found.extend(
        inside
            .difference(&known)
            .filter_map(|pid| ProcessId::of(*pid))
            .map(|id| (id, Part::Stub)),
    );
    found
}

fn part(running: &process::Running, in_cgroup: bool) -> Part {
    let has = |word: &str| running.argv.iter().any(|argument| argument == word);
    let program = running
        .argv
        .first()
        .map_or("", |path| path.rsplit('/').next().unwrap_or(path));
    if program.starts_with("containerd-shim") {
        Part::Shim
    } else if has("wait") {
        Part::Wait
    } else if has("gofer") {
        Part::Gofer
    } else if has("boot") {
        // Stubs are forks of the sentry and keep its arguments.
        let parent = Process::new(running.parent)
            .and_then(|parent| parent.cmdline())
            .unwrap_or_default();
        if parent.iter().any(|argument| argument == "boot") {
            Part::Stub
        } else {
            Part::Sentry
        }
    } else if program == "dormouse-runsc" {
        Part::Wrapper
    } else if in_cgroup {
        Part::Application
    } else {
        Part::Wrapper
    }
}

/// Finds a pod's processes and measures it; see [`processes`] for why not to do that to a sleeper.
///
/// # Errors
/// When the pod's cgroup is gone.
pub fn footprint(pod: &Pod) -> Result<Footprint> {
    measure(pod, &processes(pod))
}

/// Measures a pod by processes that were found earlier. Walks page tables only: wakes nothing, brings nothing in.
///
/// # Errors
/// When the pod's cgroup is gone.
pub fn measure(pod: &Pod, processes: &[(ProcessId, Part)]) -> Result<Footprint> {
    let mut parts: BTreeMap<Part, Share> = BTreeMap::new();
    for (id, part) in processes {
        // A process may have ended meanwhile; then it occupies nothing.
        let Some(share) = share(*id) else { continue };
        let total = parts.entry(*part).or_default();
        total.processes += 1;
        total.pss += share.pss;
        total.rss += share.rss;
        total.swap += share.swap;
    }
    Ok(Footprint {
        cgroup: cgroup::memory_usage(&pod.cgroup)?,
        own: cgroup::own_memory(&pod.cgroup)?,
        parts,
    })
}

/// A gVisor pod's sentry.
///
/// # Errors
/// When the pod has none (it ended, or the pod is not gVisor's).
pub fn sentry(pod: &Pod) -> Result<ProcessId> {
    processes(pod)
        .into_iter()
        .find_map(|(id, part)| (part == Part::Sentry).then_some(id))
        .with_context(|| format!("pod {} has no sentry", pod.name))
}

/// Memory of one process.
#[must_use]
pub fn share(id: ProcessId) -> Option<Share> {
    if !id.alive() {
        return None;
    }
    let rollup = Process::new(id.pid)
        .and_then(|process| process.smaps_rollup())
        .ok()?;
    let map = rollup.memory_map_rollup.0.first()?.extension.map.clone();
    // procfs gives bytes.
    let value = |key: &str| map.get(key).copied().unwrap_or(0);
    Some(Share {
        processes: 1,
        pss: value("Pss"),
        rss: value("Rss"),
        swap: value("SwapPss"),
    })
}

/// User and system time of a process so far.
#[must_use]
pub fn cpu_time(id: ProcessId) -> Option<Duration> {
    let stat = Process::new(id.pid).and_then(|process| process.stat()).ok()?;
    let ticks = procfs::ticks_per_second().max(1);
    Some(Duration::from_millis(
        (stat.utime + stat.stime).saturating_mul(1000) / ticks,
    ))
}

/// The node's own figures, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Node {
    /// `MemAvailable`, and the free pages that the processors keep for themselves: hundreds of MiB for some seconds after
    /// much was freed, which the kernel counts neither as free nor as used.
    pub available: u64,
    /// Swap in use, all kinds.
    pub swap_used: u64,
    /// RAM that zram devices occupy (`mem_used_total`).
    pub zram_used: u64,
}

/// Reads the node's figures now.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn node() -> Result<Node> {
    let memory = Meminfo::current().context("read /proc/meminfo")?;
    Ok(Node {
        available: memory
            .mem_available
            .context("this kernel has no MemAvailable")?
            .saturating_add(kept_by_processors()?),
        swap_used: memory.swap_total.saturating_sub(memory.swap_free),
        zram_used: zram_used(),
    })
}

fn kept_by_processors() -> Result<u64> {
    let text = fs::read_to_string("/proc/zoneinfo").context("read /proc/zoneinfo")?;
    let pages = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("count:"))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum::<u64>();
    Ok(pages.saturating_mul(procfs::page_size()))
}

fn zram_used() -> u64 {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("zram"))
        .filter_map(|entry| zram_stat(&entry.path()))
        .map(|stat| stat.used)
        .sum()
}

/// What a zram device holds, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Zram {
    /// Stored in it, uncompressed.
    pub original: u64,
    /// The same, compressed.
    pub compressed: u64,
    /// RAM that it occupies, fragmentation and metadata included.
    pub used: u64,
}

/// Reads `mm_stat` of a zram device's directory in `/sys/block`.
#[must_use]
pub fn zram_stat(device: &Path) -> Option<Zram> {
    let text = fs::read_to_string(device.join("mm_stat")).ok()?;
    let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
    Some(Zram {
        original: numbers.next()?,
        compressed: numbers.next()?,
        used: numbers.next()?,
    })
}

/// `/proc/swaps`: path, size and use in bytes, priority.
///
/// # Errors
/// When it cannot be read.
pub fn swaps() -> Result<Vec<Swap>> {
    let text = fs::read_to_string("/proc/swaps").context("read /proc/swaps")?;
    Ok(text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (path, _kind) = (words.next()?, words.next()?);
            let (size, used) = (
                words.next()?.parse::<u64>().ok()?,
                words.next()?.parse::<u64>().ok()?,
            );
            Some(Swap {
                path: path.into(),
                size: size * 1024,
                used: used * 1024,
                priority: words.next()?.parse().ok()?,
            })
        })
        .collect())
}

/// One swap area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Device or file.
    pub path: std::path::PathBuf,
    /// Size, bytes.
    pub size: u64,
    /// In use, bytes.
    pub used: u64,
    /// Priority; higher is used first.
    pub priority: i32,
}
