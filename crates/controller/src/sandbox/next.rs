//! What is to be done for a sandbox.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{OperatingMode, Sandbox, SandboxStatus};
use dormouse_api::names::{labels, name_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};

use super::conditions::{self, Sight, ips};
use super::pod::PodSight;
use super::{Step, Trouble, expiry, pod, service, volumes};
use crate::objects::{self, is_true};

/// What is known about a sandbox and what belongs to it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// Pods that bear its name's hash, and the one of the name that it tracks.
    pub pods: Vec<Arc<Pod>>,
    /// The Service of its name.
    pub service: Option<Arc<Service>>,
    /// The volume claims of the names that its templates lead to.
    pub volume_claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// What is the same for all sandboxes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
}

/// What is to be done for a sandbox.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Next {
    /// Writes, in this order; one that fails does not keep those for other kinds of objects from being made.
    pub steps: Vec<Step>,
    /// The status once the steps are done.
    pub status: SandboxStatus,
    /// What is in the way.
    pub troubles: Vec<Trouble>,
    /// When to look again although nothing has changed.
    pub requeue: Option<Duration>,
    pub(super) pod: PodSight,
    pub(super) service: bool,
}

/// What is to be done for a sandbox.
#[must_use]
pub fn next(observed: &Observed, settings: &Settings, now: Timestamp) -> Next {
    let sandbox = &*observed.sandbox;
    if sandbox.metadata.deletion_timestamp.is_some() {
        // What it owns goes with it.
        return Next {
            status: sandbox.status.clone().unwrap_or_default(),
            ..Next::default()
        };
    }
    let remaining = expiry::remaining(sandbox, now);
    if remaining == Some(Duration::ZERO) {
        return expiry::next(observed, now);
    }
    let mut next = Next {
        requeue: remaining.map(expiry::wait),
        ..Next::default()
    };
    if let Err(trouble) = volumes::next(observed, &mut next.steps) {
        next.troubles.push(trouble);
    }
    // A pod without its volumes, or with somebody else's, must not start.
    let may_create = next.troubles.is_empty();
    let sight = match sandbox.spec.operating_mode {
        OperatingMode::Running => pod::run(observed, may_create, &mut next.steps),
        OperatingMode::Suspended => pod::stop(observed, &mut next.steps),
    };
    next.pod = sight.unwrap_or_else(|trouble| {
        let sight = if trouble.hides_pod() {
            PodSight::Unknown
        } else {
            PodSight::Absent
        };
        next.troubles.push(trouble);
        sight
    });
    // Which pod a Service would lead to is not known then; one that is there is left for somebody to look at.
    let ambiguous = next
        .troubles
        .iter()
        .any(|trouble| matches!(trouble, Trouble::MultiplePods { .. }));
    if !ambiguous {
        match service::next(observed, &mut next.steps) {
            Ok(there) => next.service = there,
            Err(trouble) => next.troubles.push(trouble),
        }
    }
    next.status = status(observed, &next, ambiguous, settings, now);
    next
}

impl Next {
    /// The same after steps that failed.
    #[must_use]
    pub fn after(
        mut self,
        failed: Vec<(Step, Trouble)>,
        observed: &Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Self {
        if failed.is_empty() {
            return self;
        }
        for (step, trouble) in failed {
            match step {
                Step::CreatePod(_) => self.pod = PodSight::Unknown,
                Step::CreateService(_) | Step::PatchService { .. } => self.service = false,
                _ => {}
            }
            self.troubles.push(trouble);
        }
        self.status = status(observed, &self, false, settings, now);
        self
    }
}

fn status(
    observed: &Observed,
    next: &Next,
    ambiguous: bool,
    settings: &Settings,
    now: Timestamp,
) -> SandboxStatus {
    let sandbox = &*observed.sandbox;
    let (name, namespace) = (
        objects::name(&sandbox.metadata),
        objects::namespace(&sandbox.metadata),
    );
    let mut status = sandbox.status.clone().unwrap_or_default();
    if next.pod.is_there() {
        status.selector = Some(format!("{}={}", labels::SANDBOX_NAME_HASH, name_hash(name)));
    }
    status.pod_ips = next.pod.own().map(ips).unwrap_or_default();
    status.node_name = next
        .pod
        .own()
        .and_then(|pod| pod.spec.as_ref()?.node_name.clone())
        .filter(|node| !node.is_empty());
    if next.service {
        status.service = Some(name.to_owned());
        status.service_fqdn = Some(format!("{name}.{namespace}.svc.{}", settings.cluster_domain));
    } else if !ambiguous {
        status.service = None;
        status.service_fqdn = None;
    }
    let sight = Sight {
        sandbox,
        pod: &next.pod,
        service: next.service,
        troubles: &next.troubles,
    };
    conditions::update(&mut status.conditions, &sight, now);
    status
}

/// Whether the status is worth a write. That the pod has got its node is not, before the sandbox is ready: it goes with
/// the next write.
pub(super) fn is_worth_writing(old: &SandboxStatus, new: &SandboxStatus) -> bool {
    if old == new {
        return false;
    }
    let but_for_node = SandboxStatus {
        node_name: old.node_name.clone(),
        ..new.clone()
    };
    *old != but_for_node || is_true(&new.conditions, dormouse_api::conditions::READY)
}
