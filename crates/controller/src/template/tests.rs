//! What templates keep from sandboxes: NetworkPolicies and secure defaults, case by case.

use dormouse_api::extensions::{NetworkPolicyManagement, SandboxTemplate, TemplateNetworkPolicy};
use dormouse_api::names::name_hash;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{Next, next, policy_name, sandbox_spec};

/// One that is managed, and has no rules of its own.
pub(super) fn template() -> SandboxTemplate {
    SandboxTemplate {
        metadata: ObjectMeta {
            name: Some("template".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("template-uid".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        },
        ..SandboxTemplate::default()
    }
}

fn unmanaged() -> SandboxTemplate {
    let mut template = template();
    template.spec.network_policy_management = NetworkPolicyManagement::Unmanaged;
    template
}

/// Managed, with these rules as they stand in a manifest.
fn with_rules(ingress: Value, egress: Value) -> SandboxTemplate {
    let mut template = template();
    let ingress: Vec<NetworkPolicyIngressRule> = serde_json::from_value(ingress).unwrap();
    let egress: Vec<NetworkPolicyEgressRule> = serde_json::from_value(egress).unwrap();
    template.spec.network_policy = Some(TemplateNetworkPolicy { ingress, egress });
    template
}

pub(super) fn made(template: &SandboxTemplate) -> NetworkPolicy {
    match next(template, None) {
        Next::Create(policy) => *policy,
        other => panic!("it is {other:?}"),
    }
}

/// As the API server has it.
fn there(template: &SandboxTemplate) -> NetworkPolicy {
    let mut policy = made(template);
    policy.metadata.uid = Some("policy-uid".to_owned());
    policy.metadata.resource_version = Some("9".to_owned());
    policy
}

fn spec(policy: &NetworkPolicy) -> Value {
    serde_json::to_value(&policy.spec).unwrap()
}

#[test]
fn without_rules_of_its_own_the_router_may_come_in_and_only_the_public_is_reached() {
    let policy = made(&template());
    let selects =
        json!({"matchLabels": {"agents.x-k8s.io/sandbox-template-ref-hash": name_hash("template")}});
    assert_eq!(
        spec(&policy),
        json!({
            "podSelector": selects,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agent-sandbox-system"}},
                "podSelector": {"matchLabels": {"app": "sandbox-router"}},
            }]}],
            "egress": [{"to": [
                {"ipBlock": {
                    "cidr": "0.0.0.0/0",
                    "except": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"],
                }},
                {"ipBlock": {"cidr": "::/0", "except": ["fc00::/7", "fe80::/10"]}},
            ]}],
        })
    );
}

#[test]
fn what_the_api_server_fills_in_or_leaves_out_is_no_difference() {
    let template = with_rules(
        json!([{"from": [], "ports": [{"port": 80}]}]),
        json!([
            {"to": [{"namespaceSelector": {"matchLabels": {}}}], "ports": []},
            {"to": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": []}]}}]},
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": []}}], "ports": [{"protocol": "UDP", "port": 53}]},
        ]),
    );
    let mut stored = spec(&made(&template));
    stored["ingress"] = json!([{"ports": [{"port": 80, "protocol": "TCP"}]}]);
    stored["egress"] = json!([
        {"to": [{"namespaceSelector": {}}]},
        {"to": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"protocol": "UDP", "port": 53}]},
    ]);
    let mut policy = there(&template);
    policy.spec = serde_json::from_value(stored).unwrap();
    assert_eq!(next(&template, Some(&policy)), Next::Nothing);
}

#[test]
fn it_is_called_after_the_template_and_goes_with_it() {
    let policy = made(&template());
    assert_eq!(policy_name(&template()), "template-network-policy");
    assert_eq!(policy.metadata.name.as_deref(), Some("template-network-policy"));
    assert_eq!(policy.metadata.namespace.as_deref(), Some("ns"));
    let owners = serde_json::to_value(&policy.metadata.owner_references).unwrap();
    assert_eq!(
        owners,
        json!([{
            "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate", "name": "template",
            "uid": "template-uid", "controller": true, "blockOwnerDeletion": true,
        }])
    );
}

#[test]
fn rules_of_its_own_stand_in_the_place_of_all_that_are_made() {
    let open = json!([{"ports": [{"port": 8080, "protocol": "TCP"}]}]);
    let dns = json!([{"to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}]}]);
    let policy = spec(&made(&with_rules(open.clone(), dns.clone())));
    assert_eq!((&policy["ingress"], &policy["egress"]), (&open, &dns));
    // A side that has none is shut, and not opened as without a policy.
    let policy = spec(&made(&with_rules(open.clone(), json!([]))));
    assert_eq!((&policy["ingress"], &policy["egress"]), (&open, &Value::Null));
    let policy = spec(&made(&with_rules(json!([]), json!([]))));
    assert_eq!(
        (&policy["ingress"], &policy["egress"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
}

#[test]
fn one_that_is_as_it_is_to_be_is_left_alone_and_another_is_put_right() {
    let template = template();
    let mut policy = there(&template);
    assert_eq!(next(&template, Some(&policy)), Next::Nothing);

    // What others have written beside the rules stays, and so does the version: who has changed it meanwhile is not
    // written over.
    policy.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
    let opened = with_rules(json!([{}]), json!([{}]));
    policy.spec.clone_from(&made(&opened).spec);
    let wanted = NetworkPolicy {
        metadata: policy.metadata.clone(),
        spec: made(&template).spec,
    };
    assert_eq!(
        next(&template, Some(&policy)),
        Next::Replace(Box::new(wanted.clone()))
    );
    policy.spec = None;
    assert_eq!(next(&template, Some(&policy)), Next::Replace(Box::new(wanted)));
    // The other way round: the template has changed.
    let policy = there(&template);
    let Next::Replace(put) = next(&opened, Some(&policy)) else {
        panic!("it is not put right");
    };
    assert_eq!(put.spec, made(&opened).spec);
}

#[test]
fn unmanaged_it_is_taken_away_once_and_never_made() {
    let policy = there(&template());
    assert_eq!(next(&unmanaged(), None), Next::Nothing);
    let uid = "policy-uid".to_owned();
    assert_eq!(next(&unmanaged(), Some(&policy)), Next::Delete { uid });
}

#[test]
fn what_is_not_the_templates_is_neither_changed_nor_taken_away() {
    let template = template();
    let mut nobodys = there(&template);
    nobodys.metadata.owner_references = None;
    let mut anothers = there(&template);
    for owner in anothers.metadata.owner_references.iter_mut().flatten() {
        // A template of the same name that was there before.
        owner.uid = "older-uid".to_owned();
    }
    let mut shared = there(&template);
    for owner in shared.metadata.owner_references.iter_mut().flatten() {
        owner.controller = Some(false);
    }
    for policy in [nobodys, anothers, shared] {
        assert_eq!(next(&template, Some(&policy)), Next::Foreign, "{policy:?}");
        assert_eq!(next(&unmanaged(), Some(&policy)), Next::Nothing, "{policy:?}");
    }
}

/// What a template's pods get of what the template does not say.
fn defaults(template: &SandboxTemplate) -> (Option<bool>, Option<String>, Option<Vec<String>>) {
    let spec = sandbox_spec(&template.spec).pod_template.spec;
    let nameservers = spec.dns_config.and_then(|config| config.nameservers);
    (spec.automount_service_account_token, spec.dns_policy, nameservers)
}

#[test]
fn pods_get_no_token_and_resolvers_that_the_policy_lets_them_reach() {
    let public = Some(vec!["8.8.8.8".to_owned(), "1.1.1.1".to_owned()]);
    assert_eq!(
        defaults(&template()),
        (Some(false), Some("None".to_owned()), public.clone())
    );
    // Empty is unset, as Go writes it.
    let mut empty = template();
    empty.spec.pod_template.spec.dns_policy = Some(String::new());
    assert_eq!(
        defaults(&empty),
        (Some(false), Some("None".to_owned()), public.clone())
    );
    // With rules of its own, or unmanaged, the cluster's resolvers may be reached.
    let ruled = with_rules(json!([]), json!([{}]));
    assert_eq!(defaults(&ruled), (Some(false), None, None));
    assert_eq!(defaults(&unmanaged()), (Some(false), None, None));
    // What it says itself holds.
    let mut says = template();
    says.spec.pod_template.spec.dns_policy = Some("ClusterFirst".to_owned());
    says.spec.pod_template.spec.automount_service_account_token = Some(true);
    assert_eq!(
        defaults(&says),
        (Some(true), Some("ClusterFirst".to_owned()), None)
    );
}
