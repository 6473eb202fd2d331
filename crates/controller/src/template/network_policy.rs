//! The NetworkPolicy of a template.

use std::collections::BTreeMap;

use dormouse_api::extensions::{NetworkPolicyManagement, SandboxTemplate};
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::objects::{self, Ownership, owner_reference, ownership};

/// Where the router is, which may always speak to sandboxes.
const ROUTER_NAMESPACE: &str = "agent-sandbox-system";
const ROUTER_APP: &str = "sandbox-router";

/// Networks that are not public, and so are kept from sandboxes: private ones (RFC 1918), the link's own with the cloud's
/// metadata server, and their like in IPv6.
const NOT_PUBLIC_4: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"];
const NOT_PUBLIC_6: [&str; 2] = ["fc00::/7", "fe80::/10"];

/// What is to be done about a template's NetworkPolicy.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// It is made.
    Create(Box<NetworkPolicy>),
    /// Its rules are put right.
    Replace(Box<NetworkPolicy>),
    /// It is deleted, if it is still this one.
    Delete {
        /// Its UID.
        uid: String,
    },
    /// One of its name is somebody else's.
    Foreign,
}

/// `<template>-network-policy`.
#[must_use]
pub fn policy_name(template: &SandboxTemplate) -> String {
    format!("{}-network-policy", objects::name(&template.metadata))
}

/// What is to be done about a template's NetworkPolicy.
#[must_use]
pub fn next(template: &SandboxTemplate, there: Option<&NetworkPolicy>) -> Next {
    let managed = template.spec.network_policy_management == NetworkPolicyManagement::Managed;
    let owned =
        there.map(|policy| ownership(&policy.metadata, objects::uid(&template.metadata)) == Ownership::Own);
    match (there, owned.unwrap_or_default(), managed) {
        (None, _, false) | (Some(_), false, false) => Next::Nothing,
        (None, _, true) => Next::Create(Box::new(build(template))),
        (Some(policy), true, false) => Next::Delete {
            uid: objects::uid(&policy.metadata).to_owned(),
        },
        (Some(_), false, true) => Next::Foreign,
        (Some(policy), true, true) => {
            let wanted = rules(template);
            if policy.spec.as_ref() == Some(&wanted) {
                return Next::Nothing;
            }
            Next::Replace(Box::new(NetworkPolicy {
                metadata: policy.metadata.clone(),
                spec: Some(wanted),
            }))
        }
    }
}

fn build(template: &SandboxTemplate) -> NetworkPolicy {
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(policy_name(template)),
            namespace: template.metadata.namespace.clone(),
            owner_references: Some(vec![owner_reference(template)]),
            ..ObjectMeta::default()
        },
        spec: Some(rules(template)),
    }
}

fn rules(template: &SandboxTemplate) -> NetworkPolicySpec {
    let hash = name_hash(objects::name(&template.metadata));
    let (ingress, egress) = match &template.spec.network_policy {
        Some(policy) => (
            policy.ingress.iter().cloned().map(ingress_as_stored).collect(),
            policy.egress.iter().cloned().map(egress_as_stored).collect(),
        ),
        None => (vec![from_router()], vec![to_public()]),
    };
    NetworkPolicySpec {
        pod_selector: Some(matching(labels::TEMPLATE_REF_HASH, &hash)),
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        ingress: Some(ingress).filter(|rules| !rules.is_empty()),
        egress: Some(egress).filter(|rules| !rules.is_empty()),
    }
}

/// A rule as the API server keeps it, so that what it fills in is no difference.
fn ingress_as_stored(rule: NetworkPolicyIngressRule) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: peers_as_stored(rule.from),
        ports: ports_as_stored(rule.ports),
    }
}

fn egress_as_stored(rule: NetworkPolicyEgressRule) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule {
        to: peers_as_stored(rule.to),
        ports: ports_as_stored(rule.ports),
    }
}

fn ports_as_stored(ports: Option<Vec<NetworkPolicyPort>>) -> Option<Vec<NetworkPolicyPort>> {
    let mut ports = ports.filter(|ports| !ports.is_empty())?;
    for port in &mut ports {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
    Some(ports)
}

fn peers_as_stored(peers: Option<Vec<NetworkPolicyPeer>>) -> Option<Vec<NetworkPolicyPeer>> {
    let mut peers = peers.filter(|peers| !peers.is_empty())?;
    for peer in &mut peers {
        if let Some(block) = &mut peer.ip_block {
            block.except.take_if(|except| except.is_empty());
        }
        for selector in [&mut peer.namespace_selector, &mut peer.pod_selector]
            .into_iter()
            .flatten()
        {
            selector.match_labels.take_if(|labels| labels.is_empty());
            selector.match_expressions.take_if(|those| those.is_empty());
            for one in selector.match_expressions.iter_mut().flatten() {
                one.values.take_if(|values| values.is_empty());
            }
        }
    }
    Some(peers)
}

fn from_router() -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: Some(vec![NetworkPolicyPeer {
            namespace_selector: Some(matching("kubernetes.io/metadata.name", ROUTER_NAMESPACE)),
            pod_selector: Some(matching("app", ROUTER_APP)),
            ip_block: None,
        }]),
        ports: None,
    }
}

fn to_public() -> NetworkPolicyEgressRule {
    let but = |cidr: &str, except: &[&str]| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.to_owned(),
            except: Some(except.iter().map(|&network| network.to_owned()).collect()),
        }),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicyEgressRule {
        to: Some(vec![but("0.0.0.0/0", &NOT_PUBLIC_4), but("::/0", &NOT_PUBLIC_6)]),
        ports: None,
    }
}

fn matching(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
        match_expressions: None,
    }
}
