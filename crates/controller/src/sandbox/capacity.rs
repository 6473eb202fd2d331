//! Giving a sleeper's place in the scheduler's books to others.
//!
//! A guest whose memory is in swap or in a snapshot needs next to nothing of what its pod has asked for. While it sleeps
//! the requests of its containers are small (KEP-1287: in place, no restart), and with its wake they are what the template
//! says again; no wake waits for that. Pods of the class Guaranteed are left alone: less would be another class.

use std::collections::BTreeMap;

use dormouse_api::agents::Sandbox;
use dormouse_api::quantity::millis;
use dormouse_core::Rung;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::Step;
use super::guest::Stand;
use crate::objects;

/// What a sleeper asks for: its shim and the wrapper want a moment now and then, and its skeleton stays in memory.
const ASLEEP: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "16Mi")];

/// Brings the pod's requests in line with how its guest stands.
pub(super) fn resize(sandbox: &Sandbox, pod: &Pod, stand: &Stand) -> Option<Step> {
    let asleep = match stand {
        Stand::Dormant(rung) | Stand::Asleep(rung) => matches!(rung, Rung::Dozing | Rung::Hibernated),
        Stand::Awake | Stand::WakingUp(_) => false,
        Stand::None | Stand::FallingAsleep(_) => return None,
    };
    let class = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    if class != Some("Burstable") {
        return None;
    }
    let there = pod.spec.as_ref()?.containers.as_slice();
    let changes: Vec<Value> = sandbox
        .spec
        .pod_template
        .spec
        .containers
        .iter()
        .filter_map(|container| change(container, there, asleep))
        .collect();
    (!changes.is_empty()).then(|| Step::ResizePod {
        name: objects::name(&pod.metadata).to_owned(),
        patch: json!({"spec": {"containers": changes}}),
    })
}

/// What a container is to ask for instead; `None` if it asks for that.
fn change(template: &Container, there: &[Container], asleep: bool) -> Option<Value> {
    let wanted = requests(template)?;
    let now = requests(there.iter().find(|container| container.name == template.name)?)?;
    if restarts(template) {
        return None;
    }
    let mut changed = BTreeMap::new();
    for (resource, small) in ASLEEP {
        let Some(full) = wanted.get(resource) else {
            continue;
        };
        let is_larger = millis(&full.0)
            .zip(millis(small))
            .is_some_and(|(full, small)| full > small);
        let target = if asleep && is_larger {
            small
        } else {
            full.0.as_str()
        };
        let stands = now.get(resource).and_then(|now| millis(&now.0));
        if stands != millis(target) {
            changed.insert(resource, target.to_owned());
        }
    }
    (!changed.is_empty()).then(|| json!({"name": template.name, "resources": {"requests": changed}}))
}

fn requests(container: &Container) -> Option<&BTreeMap<String, Quantity>> {
    container.resources.as_ref()?.requests.as_ref()
}

/// Whether a change would restart the container.
fn restarts(container: &Container) -> bool {
    let policies = container.resize_policy.as_deref().unwrap_or_default();
    policies
        .iter()
        .any(|policy| policy.restart_policy != "NotRequired")
}
