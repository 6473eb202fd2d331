//! Putting back limits that a reclaim had lowered.

use std::path::Path;

use super::Held;
use crate::file::read_bounded;
use crate::record::LoweredLimit;

/// The files that hold a limit which a reclaim may lower.
const LIMIT_FILES: [&str; 3] = ["memory.limit_in_bytes", "memory.high", "memory.max"];

impl Held {
    /// Puts the limits back that the record lists as lowered, each only if it still holds what it was
    /// lowered to: a guest that runs under a limit meant for a sleeper would be killed. Changes the record
    /// in memory only.
    ///
    /// A limit that cannot be put back stays listed, for the agent to see to.
    pub(super) fn restore_limits(&mut self) {
        let root = self.record.cgroup.as_ref().map(|c| c.memory_dir().to_owned());
        self.record
            .limits
            .retain(|limit| !restored(limit, root.as_deref()));
    }
}

/// Whether nothing is left to be done for this limit.
fn restored(limit: &LoweredLimit, root: Option<&Path>) -> bool {
    let below = root.is_some_and(|root| limit.path.starts_with(root));
    let named = limit
        .path
        .file_name()
        .and_then(|n| n.to_str())
        .is_some_and(|n| LIMIT_FILES.contains(&n));
    if !below || !named {
        return false;
    }
    match read_bounded(&limit.path, 4096) {
        Ok(now) if now.trim_ascii() == limit.current.trim().as_bytes() => {
            std::fs::write(&limit.path, limit.original.trim()).is_ok()
        }
        // Somebody else has set it since; it is theirs.
        Ok(_) => true,
        // The cgroup is gone, and the limit with it.
        Err(e) => e.is_missing(),
    }
}
