//! The cgroup of a pod that Dormouse runs itself, on nodes where containerd makes cgroups as directories.
//!
//! kubelet makes a pod's cgroup and its limits before it calls the CRI; without kubelet, this does. The pod's
//! level is where the limit has to be: a gVisor sentry runs there, not in the containers' cgroups below.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How deep below a pod's cgroup directories are removed.
const MAX_DEPTH: u32 = 4;

/// A cgroup file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    path: PathBuf,
    v2: bool,
    /// The controllers of a v1 hierarchy.
    controllers: Vec<String>,
}

/// Makes the pod's cgroup and limits its memory.
///
/// Errors name the file.
pub(crate) fn limit_memory(parent: &str, limit: u64) -> Result<(), (PathBuf, io::Error)> {
    let mounts = mounts()?;
    let v1 = mounts
        .iter()
        .find(|mount| mount.controllers.iter().any(|name| name == "memory"));
    if let Some(mount) = v1 {
        let directory = below(&mount.path, parent)?;
        fs::create_dir_all(&directory).map_err(|error| (directory.clone(), error))?;
        return write(&directory.join("memory.limit_in_bytes"), &limit.to_string());
    }
    let Some(mount) = mounts.iter().find(|mount| mount.v2) else {
        return Err((PathBuf::from("/sys/fs/cgroup"), io::ErrorKind::NotFound.into()));
    };
    let directory = below(&mount.path, parent)?;
    fs::create_dir_all(&directory).map_err(|error| (directory.clone(), error))?;
    // A controller has to be handed down level by level.
    let mut level = mount.path.clone();
    for name in Path::new(parent.trim_start_matches('/')).components() {
        write(&level.join("cgroup.subtree_control"), "+memory")?;
        level.push(name);
    }
    write(&directory.join("memory.max"), &limit.to_string())
}

/// Removes the pod's cgroup from every hierarchy, as far as it is empty.
pub(crate) fn remove(parent: &str) {
    let Ok(mounts) = mounts() else { return };
    for mount in mounts {
        if let Ok(directory) = below(&mount.path, parent) {
            remove_tree(&directory, MAX_DEPTH);
        }
    }
}

/// Removes a cgroup and those below it; one that still holds processes stays.
fn remove_tree(directory: &Path, depth: u32) {
    if depth > 0
        && let Ok(entries) = fs::read_dir(directory)
    {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth - 1);
            }
        }
    }
    if let Err(error) = fs::remove_dir(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %directory.display(), %error, "a cgroup stays");
    }
}

/// A cgroup's directory; only for a clean absolute path.
fn below(mount: &Path, parent: &str) -> Result<PathBuf, (PathBuf, io::Error)> {
    let clean = parent.starts_with('/')
        && parent.len() > 1
        && parent
            .trim_start_matches('/')
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if clean {
        Ok(mount.join(parent.trim_start_matches('/')))
    } else {
        Err((PathBuf::from(parent), io::ErrorKind::InvalidInput.into()))
    }
}

fn write(path: &Path, value: &str) -> Result<(), (PathBuf, io::Error)> {
    fs::write(path, value).map_err(|error| (path.to_owned(), error))
}

fn mounts() -> Result<Vec<Mount>, (PathBuf, io::Error)> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(|error| (path.to_owned(), error))?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// A line of mountinfo, if it is a cgroup file system whose root is the hierarchy's.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, path) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    let v2 = match kind {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    if root != "/" {
        return None;
    }
    let controllers = if v2 {
        Vec::new()
    } else {
        options.split(',').map(str::to_owned).collect()
    };
    Some(Mount {
        path: PathBuf::from(path),
        v2,
        controllers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let v1 = "35 26 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory";
        assert_eq!(
            parse_mount(v1),
            Some(Mount {
                path: "/sys/fs/cgroup/memory".into(),
                v2: false,
                controllers: vec!["rw".into(), "memory".into()]
            })
        );
        let v2 = "35 26 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert!(parse_mount(v2).unwrap().v2);
        assert_eq!(
            parse_mount("35 26 0:30 /x /sys/fs/cgroup rw - cgroup2 cgroup2 rw"),
            None
        );
        assert_eq!(parse_mount("35 26 0:30 / / rw - ext4 /dev/vda rw"), None);
        assert_eq!(parse_mount(""), None);
    }

    #[test]
    fn only_clean_paths() {
        for bad in ["", "/", "x", "/a/../b", "/a//b", "/.", "a.slice"] {
            assert!(below(Path::new("/m"), bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            below(Path::new("/m"), "/dormouse/podx").unwrap(),
            Path::new("/m/dormouse/podx")
        );
    }
}
