//! Giving a sleeper's place in the scheduler's books to others.
//!
//! A guest whose memory is in swap or in a snapshot needs next to nothing of what its pod has asked for. While it sleeps
//! the requests of its containers are small (KEP-1287: in place, no restart), and with its wake they are what the template
//! says again; no wake waits for that. Pods of the class Guaranteed are left alone: less would be another class. How much
//! the sleepers of a node may give away has an end ([`crate::overcommit`]); who comes too late keeps its place.

use std::collections::BTreeMap;

use dormouse_api::agents::Sandbox;
use dormouse_api::quantity::{MEMORY_ASLEEP, millis};
use dormouse_core::Rung;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::Step;
use super::guest::{Stand, node_of};
use crate::objects;

/// What a sleeper asks for: its shim and the wrapper want a moment now and then, and its skeleton stays in memory.
const ASLEEP: [(&str, &str); 2] = [("cpu", "10m"), ("memory", MEMORY_ASLEEP)];

/// Brings the pod's requests in line with how its guest stands.
pub(super) fn resize(sandbox: &Sandbox, pod: &Pod, stand: &Stand) -> Option<Step> {
    let asleep = match stand {
        Stand::Dormant(rung) | Stand::StandingBy(rung) | Stand::Asleep(rung) => {
            matches!(rung, Rung::Dozing | Rung::Hibernated)
        }
        Stand::Awake | Stand::WakingUp(_) => false,
        Stand::None
        | Stand::FallingAsleep(_)
        | Stand::Leaving(_)
        | Stand::Unheard(_)
        | Stand::Silent
        | Stand::Lost(_) => return None,
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
        node: node_of(pod).to_owned(),
        uid: objects::uid(&pod.metadata).to_owned(),
        gives: if asleep { gives(sandbox, there) } else { 0 },
        patch: json!({"spec": {"containers": changes}}),
    })
}

/// Memory that the pod gives away asleep, in bytes.
fn gives(sandbox: &Sandbox, there: &[Container]) -> u64 {
    let of = |template: &Container| {
        if restarts(template) || !there.iter().any(|container| container.name == template.name) {
            return 0;
        }
        let small = millis(MEMORY_ASLEEP).unwrap_or_default();
        memory(template).saturating_sub(small)
    };
    bytes(sandbox.spec.pod_template.spec.containers.iter().map(of).sum())
}

/// Memory that the pod has given away: what it would ask for awake beyond what it asks for, in bytes.
pub(crate) fn given_away(sandbox: &Sandbox, pod: &Pod) -> u64 {
    let there = pod.spec.as_ref().map(|spec| spec.containers.as_slice());
    let of = |template: &Container| {
        let now = there
            .unwrap_or_default()
            .iter()
            .find(|container| container.name == template.name);
        now.map_or(0, |now| memory(template).saturating_sub(memory(now)))
    };
    bytes(sandbox.spec.pod_template.spec.containers.iter().map(of).sum())
}

/// What a container asks for, in thousandths of a byte.
fn memory(container: &Container) -> u128 {
    let asked = requests(container).and_then(|requests| requests.get("memory"));
    asked.and_then(|asked| millis(&asked.0)).unwrap_or_default()
}

fn bytes(millis: u128) -> u64 {
    u64::try_from(millis / 1000).unwrap_or(u64::MAX)
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
