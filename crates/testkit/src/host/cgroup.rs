//! Cgroup directories of pods, made and removed as kubelet's cgroupfs driver does, on v1 and v2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use procfs::process::Process;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// v1 controllers, for example `["memory"]`; empty for v2.
    pub controllers: Vec<String>,
    /// cgroup v2.
    pub unified: bool,
}

/// All mounted cgroup hierarchies.
///
/// # Errors
/// When the mount table cannot be read.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = Process::myself()
        .and_then(|me| me.mountinfo())
        .context("read the mount table")?;
    let mut found: Vec<Hierarchy> = mounts
        .into_iter()
        .filter(|mount| mount.fs_type == "cgroup" || mount.fs_type == "cgroup2")
        .map(|mount| {
            let unified = mount.fs_type == "cgroup2";
            let controllers = mount
                .super_options
                .into_keys()
                .filter(|key| !unified && !matches!(key.as_str(), "rw" | "ro" | "xattr" | "name"))
                .collect();
            Hierarchy {
                mount: mount.mount_point,
                controllers,
                unified,
            }
        })
        .collect();
    found.sort_by(|a, b| a.mount.cmp(&b.mount));
    found.dedup_by(|a, b| a.mount == b.mount);
    Ok(found)
}

/// The directory of `cgroup` (absolute, as in `/proc/PID/cgroup`) that has the files of `controller`.
///
/// # Errors
/// When neither a v1 hierarchy has the controller nor a v2 one offers it.
pub fn dir(controller: &str, cgroup: &str) -> Result<PathBuf> {
    let hierarchies = hierarchies()?;
    hierarchies
        .iter()
        .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
        .or_else(|| hierarchies.iter().find(|hierarchy| hierarchy.offers(controller)))
        .map(|hierarchy| hierarchy.path(cgroup))
        .with_context(|| format!("this kernel has no cgroup controller {controller} mounted"))
}

impl Hierarchy {
    /// A cgroup's directory in this hierarchy.
    #[must_use]
    pub fn path(&self, cgroup: &str) -> PathBuf {
        self.mount.join(cgroup.trim_start_matches('/'))
    }

    fn offers(&self, controller: &str) -> bool {
        // The v2 freezer is part of the core and is not listed.
        self.unified
            && (controller == "freezer"
                || fs::read_to_string(self.mount.join("cgroup.controllers"))
                    .is_ok_and(|text| text.split_whitespace().any(|name| name == controller)))
    }
}

/// Makes `cgroup` and its parents in every hierarchy.
///
/// # Errors
/// When a directory cannot be made.
pub fn create(cgroup: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.mount.clone();
        for part in cgroup.split('/').filter(|part| !part.is_empty()) {
            let parent = dir.clone();
            dir.push(part);
            if hierarchy.unified {
                enable_controllers(&parent);
            }
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error).with_context(|| format!("create {}", dir.display())),
            }
            if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&parent, &dir)?;
            }
        }
    }
    Ok(())
}

/// v2: children get the controllers that their parent hands down.
fn enable_controllers(dir: &Path) {
    let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in offered.split_whitespace() {
        // One by one: a controller that cannot be handed down must not keep the others from it.
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// v1: a new cpuset is empty and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(parent.join(file))
            .with_context(|| format!("read {}", parent.join(file).display()))?;
        fs::write(dir.join(file), value.trim())
            .with_context(|| format!("write {}", dir.join(file).display()))?;
    }
    Ok(())
}

/// Sets a cgroup's memory limit in bytes.
///
/// # Errors
/// When there is no memory controller or the kernel refuses the value.
pub fn limit_memory(cgroup: &str, bytes: u64) -> Result<()> {
    let dir = dir("memory", cgroup)?;
    let v1 = dir.join("memory.limit_in_bytes");
    let file = if v1.exists() { v1 } else { dir.join("memory.max") };
    fs::write(&file, bytes.to_string()).with_context(|| format!("write {}", file.display()))
}

/// What a cgroup is charged for now, bytes.
///
/// # Errors
/// When the cgroup is gone.
pub fn memory_usage(cgroup: &str) -> Result<u64> {
    let dir = dir("memory", cgroup)?;
    let v1 = dir.join("memory.usage_in_bytes");
    number(&if v1.exists() {
        v1
    } else {
        dir.join("memory.current")
    })
}

/// Anonymous and shared memory that a cgroup is charged for now, in RAM, bytes: without the page cache of files, which the
/// kernel takes back when it needs room, and without its own structures.
///
/// # Errors
/// When the cgroup is gone.
pub fn own_memory(cgroup: &str) -> Result<u64> {
    let file = dir("memory", cgroup)?.join("memory.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find_map(|(key, value)| (key == name).then(|| value.trim().parse::<u64>().ok())?)
    };
    // cgroup v1 has the totals of the whole tree beside a level's own figures; v2 has nothing else.
    value("total_rss")
        .zip(value("total_shmem"))
        .or_else(|| value("anon").zip(value("shmem")))
        .map(|(anonymous, shared)| anonymous.saturating_add(shared))
        .with_context(|| format!("{} does not say what the memory is", file.display()))
}

/// CPU time used by a cgroup so far, nanoseconds.
///
/// # Errors
/// When the cgroup is gone.
pub fn cpu_usage(cgroup: &str) -> Result<u64> {
    if let Ok(v1) = dir("cpuacct", cgroup) {
        let file = v1.join("cpuacct.usage");
        if file.exists() {
            return number(&file);
        }
    }
    let file = dir("cpu", cgroup)?.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let micros: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .and_then(|value| value.trim().parse().ok())
        .with_context(|| format!("no usage_usec in {}", file.display()))?;
    Ok(micros.saturating_mul(1000))
}

fn number(file: &Path) -> Result<u64> {
    fs::read_to_string(file)
        .with_context(|| format!("read {}", file.display()))?
        .trim()
        .parse()
        .with_context(|| format!("{} does not hold a number", file.display()))
}

/// Every pid in `cgroup` and below, in any hierarchy.
#[must_use]
pub fn processes(cgroup: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = hierarchies()
        .unwrap_or_default()
        .iter()
        .flat_map(|hierarchy| tree(&hierarchy.path(cgroup)))
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Thaws `cgroup` and everything below it: frozen v1 tasks cannot be killed.
pub fn thaw(cgroup: &str) {
    for hierarchy in hierarchies().unwrap_or_default() {
        for dir in tree(&hierarchy.path(cgroup)) {
            for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                if dir.join(file).exists() {
                    let _ = fs::write(dir.join(file), value);
                }
            }
        }
    }
}

/// Removes `cgroup` and everything below it. Returns the directories that would not go.
#[must_use]
pub fn remove(cgroup: &str) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for hierarchy in hierarchies().unwrap_or_default() {
        for dir in tree(&hierarchy.path(cgroup)).into_iter().rev() {
            // A cgroup stays busy for a moment after its last process has gone.
            let gone = super::wait::until_true(std::time::Duration::from_secs(2), || {
                fs::remove_dir(&dir).is_ok() || !dir.exists()
            });
            if !gone {
                left.push(dir);
            }
        }
    }
    left
}

/// A directory and all below it, parents first; empty when it is not there.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        open.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|e| e.path()),
        );
        found.push(dir);
    }
    found
}
