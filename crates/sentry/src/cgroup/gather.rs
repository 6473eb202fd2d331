//! Putting the sentry and the gofers, and nothing else, on the level that is frozen.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::freezer::{read, write};
use super::{CgroupError, PodCgroup, io_error};
use crate::process::{ProcessId, parent_of};

/// How far up the family tree is looked: stubs are the sentry's children, or children of stubs.
const GENERATIONS: usize = 8;

impl PodCgroup {
    /// Puts every process on the right level. Nothing is moved that is where it should be: a move waits for
    /// an RCU grace period, so it is done with the first freeze and not with every one.
    pub(super) fn gather(&self, sentry: ProcessId) -> Result<(), CgroupError> {
        let Some(above) = self.freezer.parent() else {
            return Err(CgroupError::Gone {
                path: self.freezer.clone(),
            });
        };
        match DirBuilder::new().mode(0o755).create(&self.freezer) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create", &self.freezer, e));
            }
            _ => {}
        }
        for pid in pids(above)? {
            if !descends_from(pid, sentry.pid) {
                put(pid, &self.freezer)?;
            }
        }
        for pid in pids(&self.freezer)? {
            if descends_from(pid, sentry.pid) {
                put(pid, above)?;
            }
        }
        Ok(())
    }

    /// Removes the level of our own when no process is left on it, so that runsc can remove the one above;
    /// `true` when it is gone.
    #[must_use]
    pub fn remove_sleeper(&self) -> bool {
        match std::fs::remove_dir(&self.freezer) {
            Ok(()) => true,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }
}

fn pids(dir: &Path) -> Result<Vec<i32>, CgroupError> {
    let path = dir.join("cgroup.procs");
    Ok(read(&path)?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// Moves a process. One that has ended meanwhile is no error.
fn put(pid: i32, dir: &Path) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.procs");
    match write(&path, &pid.to_string()) {
        Err(_) if !Path::new(&format!("/proc/{pid}")).exists() => Ok(()),
        other => other,
    }
}

/// Whether `ancestor` is a parent, grandparent and so on of `pid`. The sentry itself is not.
fn descends_from(pid: i32, ancestor: i32) -> bool {
    let mut pid = pid;
    for _ in 0..GENERATIONS {
        match parent_of(pid) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}
