//! Volumes of a pod's own, where kubelet has them: gVisor's shim looks for them there and nowhere else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::PodSpec;

const PODS: &str = "/var/lib/kubelet/pods";

/// Where a volume is on the host.
pub(super) fn path(uid: &str, name: &str) -> PathBuf {
    PathBuf::from(PODS)
        .join(uid)
        .join("volumes/kubernetes.io~empty-dir")
        .join(name)
}

/// Makes the volumes, empty: one that is not is a plain host directory to the shim.
pub(super) fn create(spec: &PodSpec, uid: &str) -> Result<()> {
    for (name, _) in &spec.empty_dirs {
        let path = path(uid, name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    Ok(())
}

/// Removes what there is of a pod's volumes; the directories above go with the last pod.
pub(crate) fn remove(uid: &str) {
    let _ = fs::remove_dir_all(PathBuf::from(PODS).join(uid));
    let _ = fs::remove_dir(PODS);
    let _ = fs::remove_dir("/var/lib/kubelet");
}
