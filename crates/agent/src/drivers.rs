//! The drivers of this node.

use std::path::Path;
use std::sync::Arc;

use dormouse_runtime::{AnyDriver, GracePeriods, Gvisor, Kata, Runc};
use dormouse_sentry::RunDir;

use crate::config::DozeConfig;

/// One driver for each runtime that this agent serves; `containerd` is containerd's socket.
#[must_use]
pub fn all(
    run_dir: &RunDir,
    containerd: &Path,
    wrapper_config: &Path,
    doze: &DozeConfig,
) -> Vec<Arc<AnyDriver>> {
    [
        AnyDriver::Gvisor(
            Gvisor::new(run_dir.clone())
                .with_wrapper_config(wrapper_config.to_owned())
                .with_grace_periods(GracePeriods::of_node(run_dir))
                .with_working_set(doze.working_set_mib.saturating_mul(1 << 20)),
        ),
        AnyDriver::Kata(Kata::new(containerd, run_dir.path())),
        AnyDriver::Runc(Runc::new(run_dir.path())),
    ]
    .map(Arc::new)
    .into()
}
