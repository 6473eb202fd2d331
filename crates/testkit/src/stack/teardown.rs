//! Removing a stack without its help: no API is needed, so it works after any crash.
//!
//! What belongs to a stack is told by names that only it has: its directory in a process's arguments, its cgroup,
//! its bridge, its network's name. Nothing is ever found by a program's name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::record::Record;
use crate::host::{cgroup, command, leftovers, mounts};

/// Removes everything. Safe to call again; the error names what would not go.
pub(super) fn remove(record: &Record) -> Result<()> {
    let mut left: Vec<String> = Vec::new();
    // Agents and helpers first: they act on pods. TERM, so that they can put limits back.
    for adopted in record.adopted() {
        if !adopted.end(Duration::from_secs(5)) {
            left.push(format!("process {}", adopted.pid));
        }
    }
    if let Some(containerd) = record.containerd
        && !containerd.end(Duration::from_secs(5))
    {
        left.push(format!("containerd, process {}", containerd.pid));
    }
    let sockets = shim_sockets(&record.dir.join("state"));
    left.extend(kill_rest(record));
    left.extend(
        mounts::unmount_below(&record.dir)
            .iter()
            .map(|point| format!("mount {}", point.display())),
    );
    if Path::new("/sys/class/net").join(&record.bridge).exists()
        && let Err(error) = command::capture(Command::new("ip").args(["link", "delete", &record.bridge]))
    {
        left.push(format!("bridge {} ({error:#})", record.bridge));
    }
    for socket in sockets {
        let _ = fs::remove_file(socket);
    }
    remove_cni_cache(&record.network);
    remove_volumes(record);
    left.extend(
        cgroup::remove(&record.cgroup)
            .iter()
            .map(|dir| format!("cgroup {}", dir.display())),
    );
    if !left.is_empty() {
        // The directory with its record stays, so that the next sweep tries again.
        bail!(
            "left over of the stack in {}: {}",
            record.dir.display(),
            left.join(", ")
        );
    }
    match fs::remove_dir_all(&record.dir) {
        Err(error) if record.dir.exists() => bail!("{} could not be removed: {error}", record.dir.display()),
        _ => Ok(()),
    }
}

/// What a machine that loses its power does to a stack: every process gone at once, and with them all that lives in
/// memory: mounts, run directory, containerd's and runsc's state. What is on the disk stays.
pub(super) fn lose_power(record: &Record, in_memory: &[PathBuf]) -> Result<()> {
    let mut left: Vec<String> = Vec::new();
    if let Some(containerd) = record.containerd {
        containerd.signal(Signal::SIGKILL);
    }
    let sockets = shim_sockets(&record.dir.join("state"));
    left.extend(kill_rest(record));
    for dir in in_memory {
        left.extend(
            mounts::unmount_below(dir)
                .iter()
                .map(|point| format!("mount {}", point.display())),
        );
        empty(dir)?;
    }
    for socket in sockets {
        let _ = fs::remove_file(socket);
    }
    left.extend(
        cgroup::remove(&record.cgroup)
            .iter()
            .map(|dir| format!("cgroup {}", dir.display())),
    );
    if !left.is_empty() {
        bail!(
            "left over of the stack in {}: {}",
            record.dir.display(),
            left.join(", ")
        );
    }
    Ok(())
}

fn empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Shims, sentries, gofers, waiters, containers.
fn kill_rest(record: &Record) -> Vec<String> {
    leftovers::kill(&record.cgroup, || leftovers::naming(&record.dir))
}

/// Removes the volumes of the stack's pods, whose cgroups still name them.
fn remove_volumes(record: &Record) {
    let pods = cgroup::dir("memory", &format!("{}/kubepods/burstable", record.cgroup))
        .and_then(|dir| Ok(fs::read_dir(dir)?));
    for pod in pods.into_iter().flatten().flatten() {
        if let Some(uid) = pod.file_name().to_str().and_then(|name| name.strip_prefix("pod")) {
            crate::pod::remove_volumes(uid);
        }
    }
}

/// The gVisor shim's sockets are in a global directory; their addresses are in the bundles.
fn shim_sockets(state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(state.to_path_buf(), 0)];
    while let Some((dir, depth)) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // state/<plugin>/<namespace>/<id>/address; root file systems are deeper and never looked into.
            if is_dir && depth < 3 {
                open.push((path, depth + 1));
            } else if path.file_name().is_some_and(|name| name == "address")
                && let Ok(text) = fs::read_to_string(&path)
                && let Some(socket) = text.trim().strip_prefix("unix://")
            {
                found.push(PathBuf::from(socket));
            }
        }
    }
    found
}

/// libcni keeps results of ADD in a global directory until DEL, which a hard teardown never sends.
fn remove_cni_cache(network: &str) {
    let prefix = format!("{network}-");
    for entry in fs::read_dir("/var/lib/cni/results")
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
