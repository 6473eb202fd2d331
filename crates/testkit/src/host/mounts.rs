//! Mounts below a directory.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use procfs::process::Process;

/// Mount points at or below `dir`, deepest first.
#[must_use]
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let Ok(mounts) = Process::myself().and_then(|me| me.mountinfo()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = mounts
        .into_iter()
        .map(|mount| mount.mount_point)
        .filter(|point| point.starts_with(dir))
        .collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    found
}

/// Unmounts everything at or below `dir`. What is busy is detached, so that no mount is left in this namespace.
///
/// Returns what is still mounted.
pub fn unmount_below(dir: &Path) -> Vec<PathBuf> {
    // Mounts can be stacked on one point; each round takes the top ones off.
    for _ in 0..8 {
        let points = below(dir);
        if points.is_empty() {
            return points;
        }
        for point in points {
            if umount2(&point, MntFlags::empty()).is_err() {
                let _ = umount2(&point, MntFlags::MNT_DETACH);
            }
        }
    }
    below(dir)
}
