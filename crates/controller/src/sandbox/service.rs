//! The headless Service of a sandbox.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_api::agents::Sandbox;
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::api::core::v1::{Container, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::metadata::owners_with;
use super::{Observed, Step, Trouble, pod};
use crate::objects::{self, Ownership, owner_reference, ownership};

/// What is to be done about the Service; returns whether there is one that counts.
pub(super) fn next(observed: &Observed, steps: &mut Vec<Step>) -> Result<bool, Trouble> {
    let sandbox = &*observed.sandbox;
    let wanted = sandbox.spec.service;
    let Some(service) = observed.service.as_deref() else {
        if wanted == Some(true) {
            steps.push(Step::CreateService(Box::new(build(sandbox))));
        }
        return Ok(wanted == Some(true));
    };
    let owner = ownership(&service.metadata, objects::uid(&sandbox.metadata));
    match (owner, wanted) {
        (Ownership::Own, Some(false)) => {
            steps.push(delete(service));
            Ok(false)
        }
        (_, Some(false)) | (Ownership::Nobodys, None) => Ok(false),
        (Ownership::Others(owner), _) => Err(Trouble::Others {
            what: "service",
            name: objects::name(&service.metadata).to_owned(),
            owner: Box::new(owner.clone()),
            sandbox: objects::name(&sandbox.metadata).to_owned(),
        }),
        (Ownership::Nobodys, Some(true)) => {
            steps.push(adopt(service, sandbox)?);
            Ok(true)
        }
        (Ownership::Own, _) => {
            if let Some(patch) = drift(service, sandbox) {
                let name = objects::name(&service.metadata).to_owned();
                steps.push(Step::PatchService { name, patch });
            }
            Ok(true)
        }
    }
}

/// Deletes the Service if it is the sandbox's own.
pub(super) fn delete_own(observed: &Observed, steps: &mut Vec<Step>) {
    if let Some(service) = observed.service.as_deref() {
        let owner = ownership(&service.metadata, objects::uid(&observed.sandbox.metadata));
        if owner == Ownership::Own && service.metadata.deletion_timestamp.is_none() {
            steps.push(delete(service));
        }
    }
}

fn delete(service: &Service) -> Step {
    Step::DeleteService {
        name: objects::name(&service.metadata).to_owned(),
        uid: objects::uid(&service.metadata).to_owned(),
    }
}

fn build(sandbox: &Sandbox) -> Service {
    Service {
        metadata: ObjectMeta {
            name: sandbox.metadata.name.clone(),
            namespace: sandbox.metadata.namespace.clone(),
            labels: Some(selector(sandbox)),
            owner_references: Some(vec![owner_reference(sandbox)]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(selector(sandbox)),
            ports: Some(ports(sandbox)).filter(|ports| !ports.is_empty()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn selector(sandbox: &Sandbox) -> BTreeMap<String, String> {
    BTreeMap::from([(
        labels::SANDBOX_NAME_HASH.to_owned(),
        name_hash(objects::name(&sandbox.metadata)),
    )])
}

fn adopt(service: &Service, sandbox: &Sandbox) -> Result<Step, Trouble> {
    let name = objects::name(&service.metadata).to_owned();
    if !pod::is_adoptable(&service.metadata, sandbox) {
        return Err(Trouble::NotAdoptable {
            what: "service",
            name,
        });
    }
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    if let Some(cluster_ip) = address.filter(|ip| !ip.is_empty() && *ip != "None") {
        return Err(Trouble::ServiceHasAddress {
            name,
            cluster_ip: cluster_ip.to_owned(),
        });
    }
    let patch = json!({
        "metadata": {
            "resourceVersion": service.metadata.resource_version,
            "labels": selector(sandbox),
            "ownerReferences": owners_with(&service.metadata, sandbox),
        },
        "spec": {"selector": replaced(service, sandbox), "ports": ports(sandbox)},
    });
    Ok(Step::PatchService { name, patch })
}

/// What somebody has changed about a Service of ours, as a patch that puts it right.
fn drift(service: &Service, sandbox: &Sandbox) -> Option<Value> {
    let mut patch = Map::new();
    let wanted = selector(sandbox);
    let spec = service.spec.as_ref();
    let hash = wanted.values().next().map(String::as_str);
    if objects::label(&service.metadata, labels::SANDBOX_NAME_HASH) != hash {
        patch.insert("metadata".to_owned(), json!({ "labels": wanted }));
    }
    let mut changes = Map::new();
    if spec.and_then(|spec| spec.selector.as_ref()) != Some(&wanted) {
        changes.insert("selector".to_owned(), replaced(service, sandbox));
    }
    let there = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let wanted = ports(sandbox);
    if sandbox.spec.service == Some(true) && !are_same(there, &wanted) {
        changes.insert("ports".to_owned(), json!(wanted));
    }
    if !changes.is_empty() {
        patch.insert("spec".to_owned(), Value::Object(changes));
    }
    Some(Value::Object(patch)).filter(|patch| patch.as_object().is_some_and(|patch| !patch.is_empty()))
}

/// The selector, as a merge patch that takes everything else off.
fn replaced(service: &Service, sandbox: &Sandbox) -> Value {
    let there = service.spec.as_ref().and_then(|spec| spec.selector.clone());
    let mut patch: Map<String, Value> = there
        .unwrap_or_default()
        .into_keys()
        .map(|key| (key, Value::Null))
        .collect();
    for (key, value) in selector(sandbox) {
        patch.insert(key, json!(value));
    }
    Value::Object(patch)
}

fn are_same(there: &[ServicePort], wanted: &[ServicePort]) -> bool {
    let essence = |port: &ServicePort| {
        (
            port.name.clone(),
            port.protocol.clone(),
            port.port,
            port.target_port.clone(),
        )
    };
    there.iter().map(essence).eq(wanted.iter().map(essence))
}

/// The ports of all containers, restartable init containers included, one for each number and protocol. The first name
/// that a container gives to a port counts; the others are named after the port.
fn ports(sandbox: &Sandbox) -> Vec<ServicePort> {
    let spec = &sandbox.spec.pod_template.spec;
    let restartable = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let containers = spec.containers.iter().chain(init.iter().filter(restartable));

    let mut named: BTreeMap<(i32, String), Option<String>> = BTreeMap::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for port in containers.flat_map(|container| container.ports.as_deref().unwrap_or_default()) {
        if port.container_port == 0 {
            continue;
        }
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let name = named.entry((port.container_port, protocol)).or_default();
        if let Some(given) = port
            .name
            .clone()
            .filter(|given| !given.is_empty() && name.is_none())
            && taken.insert(given.clone())
        {
            *name = Some(given);
        }
    }
    named
        .into_iter()
        .map(|((port, protocol), given)| {
            let name = given.unwrap_or_else(|| free_name(port, &protocol, &mut taken));
            ServicePort {
                name: Some(name),
                port,
                protocol: Some(protocol),
                target_port: Some(IntOrString::Int(port)),
                ..ServicePort::default()
            }
        })
        .collect()
}

fn free_name(port: i32, protocol: &str, taken: &mut BTreeSet<String>) -> String {
    let base = format!("p-{port}-{}", protocol.to_lowercase());
    let mut name = base.clone();
    let mut suffix = 2;
    while !taken.insert(name.clone()) {
        name = format!("{base}-{suffix}");
        suffix += 1;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerPort;

    fn port(number: i32, name: Option<&str>, protocol: Option<&str>) -> ContainerPort {
        ContainerPort {
            container_port: number,
            name: name.map(str::to_owned),
            protocol: protocol.map(str::to_owned),
            ..ContainerPort::default()
        }
    }

    fn sandbox(ports: Vec<Vec<ContainerPort>>, init: Vec<(Option<&str>, ContainerPort)>) -> Sandbox {
        let mut sandbox = Sandbox::default();
        let spec = &mut sandbox.spec.pod_template.spec;
        spec.containers = ports
            .into_iter()
            .map(|ports| Container {
                ports: Some(ports),
                ..Container::default()
            })
            .collect();
        spec.init_containers = Some(
            init.into_iter()
                .map(|(policy, port)| Container {
                    restart_policy: policy.map(str::to_owned),
                    ports: Some(vec![port]),
                    ..Container::default()
                })
                .collect(),
        );
        sandbox
    }

    fn names(sandbox: &Sandbox) -> Vec<(String, i32, String)> {
        ports(sandbox)
            .into_iter()
            .map(|port| (port.name.unwrap(), port.port, port.protocol.unwrap()))
            .collect()
    }

    #[test]
    fn ports_are_named_by_the_first_container_that_names_them() {
        let containers = vec![
            vec![
                port(80, None, None),
                port(80, Some("web"), None),
                port(53, Some("dns"), Some("UDP")),
            ],
            vec![
                port(80, Some("other"), None),
                port(81, Some("web"), None),
                port(0, Some("zero"), None),
            ],
        ];
        let init = vec![
            (Some("Always"), port(90, Some("side"), None)),
            (None, port(91, Some("once"), None)),
        ];
        let expected = [
            ("dns", 53, "UDP"),
            ("web", 80, "TCP"),
            ("p-81-tcp", 81, "TCP"),
            ("side", 90, "TCP"),
        ];
        assert_eq!(
            names(&sandbox(containers, init)),
            expected.map(|(name, port, protocol)| { (name.to_owned(), port, protocol.to_owned()) })
        );
    }

    #[test]
    fn a_made_up_name_gives_way_to_a_given_one() {
        let containers = vec![vec![port(80, None, None), port(81, Some("p-80-tcp"), None)]];
        let expected = [("p-80-tcp-2", 80, "TCP"), ("p-80-tcp", 81, "TCP")];
        assert_eq!(
            names(&sandbox(containers, vec![])),
            expected.map(|(name, port, protocol)| { (name.to_owned(), port, protocol.to_owned()) })
        );
    }
}
