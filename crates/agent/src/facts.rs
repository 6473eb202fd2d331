//! What this node is.

use dormouse_core::Reason;
use dormouse_runtime::RuntimeKind;

use crate::context::Context;

/// What this node is, as found at the agent's start.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// As in `containerd 2.3.7`; empty if it did not answer.
    pub runtime_version: String,
    /// 1 or 2.
    pub cgroup_version: u32,
}

impl NodeFacts {
    /// What this node can do, by name.
    #[must_use]
    pub fn capabilities(&self, ctx: &Context) -> Vec<(&'static str, Result<(), Reason>)> {
        let driver = |kind| ctx.driver(kind).map(|_| ()).ok_or(Reason::RuntimeUnsupported);
        vec![
            ("gvisor", driver(RuntimeKind::Gvisor)),
            ("kata", driver(RuntimeKind::Kata)),
            ("runc", driver(RuntimeKind::Runc)),
            ("swap", ctx.swap.usable()),
            ("snapshots", ctx.snapshots.usable()),
            (
                "runtime",
                if self.runtime_version.is_empty() {
                    Err(Reason::RuntimeUnavailable)
                } else {
                    Ok(())
                },
            ),
        ]
    }
}

/// Which version of cgroups manages memory on this node.
#[must_use]
pub fn cgroup_version() -> u32 {
    // A controller that v2 manages is listed with hierarchy 0.
    let v1 = std::fs::read_to_string("/proc/cgroups").is_ok_and(|text| {
        text.lines()
            .filter_map(|line| line.split_once('\t'))
            .any(|(name, rest)| name == "memory" && !rest.starts_with("0\t"))
    });
    if v1 { 1 } else { 2 }
}
