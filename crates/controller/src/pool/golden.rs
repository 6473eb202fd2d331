//! Golden snapshots: standbys that need not boot.
//!
//! Snapshots lie on the node that took them, so each node has one of its own. The first standby of a node boots and is the
//! seed of it; the others wait for it a little and are its clones. Whatever goes wrong, they boot: a pool never waits for
//! a golden snapshot longer than [`attempts::HOPE`].

mod attempts;
mod decide;
mod keep;
mod object;
mod standing;

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{SandboxTemplate, SandboxWarmPool};
use jiff::Timestamp;

use super::{Observed, sleeps_on};
use crate::sandbox::settling;
use crate::template::Vetting;
pub use attempts::Attempts;
use decide::{Decision, Look, decide};
pub use decide::{News, Sight};
use standing::Standing;

/// What is to be done about golden snapshots, and where the next standbys go. Without its template nothing is.
pub(super) fn next(
    observed: &Observed,
    active: &[Arc<Sandbox>],
    vetting: Option<&mut Vetting<'_>>,
    now: Timestamp,
) -> Decision {
    let (Some(template), Some(vetting)) = (&observed.template, vetting) else {
        return Decision {
            attempts: observed.attempts.clone(),
            ..Decision::default()
        };
    };
    let standings: Vec<Standing> = active
        .iter()
        .map(|standby| Standing::new(Arc::clone(standby), !vetting.is_stale(standby)))
        .collect();
    let mut containers = template.spec.pod_template.spec.containers.iter();
    let is_probed =
        containers.any(|container| container.readiness_probe.is_some() || container.startup_probe.is_some());
    let look = Look {
        pool: &observed.pool,
        hashes: vetting.hashes(),
        standbys: &standings,
        goldens: &observed.goldens,
        named: observed.named.as_deref(),
        nodes: if is_placed(&observed.pool, template) {
            &observed.nodes
        } else {
            &[]
        },
        settles: settling(is_probed),
        now,
    };
    decide(&look, observed.attempts.clone())
}

/// Whether the controller has a say in where a pool's standbys go: those that have nothing of ours are no more for nodes
/// with an agent than for others.
fn is_placed(pool: &SandboxWarmPool, template: &SandboxTemplate) -> bool {
    let has_class = template.spec.pod_template.spec.runtime_class_name.is_some();
    has_class || sleeps_on(pool).is_some() || pool.spec.golden.is_some()
}
