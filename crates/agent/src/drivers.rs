//! The drivers of this node.
use dormouse_sentry::RunDir;
pub type AnyDriver = dormouse_runtime::Gvisor;
pub fn all(run_dir: &RunDir) -> Vec<AnyDriver> { vec![AnyDriver::new(run_dir.clone())] }
