//! What is decided for claims, case by case.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{PodMetadata, Sandbox, SandboxStatus, VolumeClaimTemplate};
use dormouse_api::extensions::{
    ClaimEnv, ClaimLifecycle, ClaimShutdownPolicy, ClaimedSandbox, InjectionPolicy, SandboxClaim,
    SandboxClaimStatus, SandboxTemplate, SandboxWarmPool, UpdateStrategy, UpdateStrategyType,
    VolumeClaimTemplatesPolicy,
};
use dormouse_api::names::{annotations, labels, name_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use serde_json::{Value, json};

use super::{Environment, Gain, Next, Observed, Settings, Step, Trouble, Warm, hand_over, next};
use crate::objects::{condition, owner_reference};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn meta(name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some(uid.to_owned()),
        resource_version: Some("7".to_owned()),
        generation: Some(2),
        ..ObjectMeta::default()
    }
}

fn map(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    Some(pairs.iter().map(owned).collect())
}

pub(super) fn claim() -> SandboxClaim {
    let mut claim = SandboxClaim {
        metadata: meta("claim", "claim-uid"),
        ..SandboxClaim::default()
    };
    claim.spec.warm_pool_ref.name = "pool".to_owned();
    claim
}

pub(crate) fn pool() -> SandboxWarmPool {
    let mut pool = SandboxWarmPool {
        metadata: meta("pool", "pool-uid"),
        ..SandboxWarmPool::default()
    };
    pool.spec.sandbox_template_ref.name = "template".to_owned();
    pool
}

pub(super) fn template() -> SandboxTemplate {
    let mut template = SandboxTemplate {
        metadata: meta("template", "template-uid"),
        ..SandboxTemplate::default()
    };
    template.spec.pod_template.metadata = Some(PodMetadata {
        labels: map(&[("given", "1")]),
        annotations: map(&[("given", "1")]),
    });
    template.spec.pod_template.spec.containers = vec![Container {
        name: "main".to_owned(),
        env: Some(vec![EnvVar {
            name: "THERE".to_owned(),
            value: Some("1".to_owned()),
            value_from: None,
        }]),
        ..Container::default()
    }];
    template
}

fn ready(status: &str) -> Condition {
    Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: "DependenciesReady".to_owned(),
        message: "Pod is Ready".to_owned(),
        observed_generation: Some(1),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// A standby as the pool makes it, with a pod that runs.
pub(crate) fn standby(pool: &SandboxWarmPool, name: &str, is_ready: bool) -> Sandbox {
    let mut sandbox = Sandbox {
        metadata: meta(name, &format!("{name}-uid")),
        status: Some(SandboxStatus {
            conditions: vec![ready(if is_ready { "True" } else { "False" })],
            pod_ips: vec!["10.0.0.1".to_owned()],
            service_fqdn: Some("box.ns.svc.cluster.local".to_owned()),
            ..SandboxStatus::default()
        }),
        ..Sandbox::default()
    };
    sandbox.metadata.labels = map(&[
        (labels::WARM_POOL, &name_hash("pool")),
        (labels::TEMPLATE_REF_HASH, &name_hash("template")),
        (labels::TEMPLATE_HASH, "12345678"),
        (labels::POD_TEMPLATE_HASH, "12345678"),
        (labels::LAUNCH_TYPE, "warm"),
        (labels::CREATED_BY, "controller"),
    ]);
    sandbox.metadata.owner_references = Some(vec![owner_reference(pool)]);
    sandbox.spec.pod_template = template().spec.pod_template;
    let pod = sandbox.spec.pod_template.metadata.get_or_insert_default();
    pod.annotations
        .get_or_insert_default()
        .insert(annotations::SAFE_TO_EVICT.to_owned(), "true".to_owned());
    pod.labels
        .get_or_insert_default()
        .insert(labels::WARM_POOL.to_owned(), name_hash("pool"));
    sandbox
}

/// The same asleep.
pub(crate) fn asleep(mut standby: Sandbox, rung: &str) -> Sandbox {
    let dormant = Condition {
        type_: "Dormant".to_owned(),
        reason: rung.to_owned(),
        message: dormouse_api::conditions::messages::STANDS_BY.to_owned(),
        ..ready("True")
    };
    standby.status.get_or_insert_default().conditions.push(dormant);
    standby
}

/// The same once it is the claim's.
fn handed_over(claim: &SandboxClaim, name: &str) -> Sandbox {
    let standby = standby(&pool(), name, true);
    let patch = hand_over::patch(&standby, claim, Some(&template()), None).unwrap();
    patched(&standby, &patch)
}

/// As the API server applies a JSON merge patch.
fn patched(sandbox: &Sandbox, patch: &Value) -> Sandbox {
    let mut object = serde_json::to_value(sandbox).unwrap();
    crate::test_server::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

fn with(claim: SandboxClaim) -> Observed {
    Observed {
        sleepers: std::collections::BTreeSet::new(),
        waking: None,
        pods: BTreeMap::new(),
        environment: Environment::Untried,
        env_fails: false,
        claim: Arc::new(claim),
        sandboxes: vec![],
        pool: Some(Arc::new(pool())),
        template: Some(Arc::new(template())),
        warm: Warm::Untried,
        since: now(),
    }
}

fn decide(observed: &Observed) -> Next {
    let settings = Settings {
        label_domains: vec!["sandbox.users.io".to_owned()],
        observability: true,
        patience: std::time::Duration::ZERO,
    };
    next(observed, &settings, now())
}

/// Status, reason and message.
fn said(next: &Next) -> (&str, &str, &str) {
    let condition = condition(&next.status.conditions, "Ready").unwrap();
    assert_eq!(condition.observed_generation, Some(2));
    (&condition.status, &condition.reason, &condition.message)
}

fn cold(next: &Next) -> &Sandbox {
    match &next.gain {
        Some(Gain::Create(sandbox)) => sandbox,
        other => panic!("{other:?}"),
    }
}

fn named(name: &str) -> Option<ClaimedSandbox> {
    Some(ClaimedSandbox {
        name: Some(name.to_owned()),
        ..ClaimedSandbox::default()
    })
}

#[test]
fn a_new_claim_tries_the_standbys_first() {
    let mut observed = with(claim());
    assert_eq!(decide(&observed).gain, Some(Gain::HandOver { begun: None }));
    // Then it gets one of its own.
    observed.warm = Warm::Exhausted;
    let next = decide(&observed);
    let sandbox = cold(&next);
    assert_eq!(sandbox.metadata.name.as_deref(), Some("claim"));
    assert_eq!(
        sandbox.metadata.owner_references,
        Some(vec![owner_reference(&claim())])
    );
    assert_eq!(
        sandbox.metadata.labels,
        map(&[
            (labels::CLAIM_UID, "claim-uid"),
            (labels::LAUNCH_TYPE, "cold"),
            (labels::TEMPLATE_REF_HASH, &name_hash("template")),
        ])
    );
    assert_eq!(
        sandbox.metadata.annotations,
        map(&[(annotations::TEMPLATE_REF, "template")])
    );
    let pod = &sandbox.spec.pod_template;
    assert_eq!(
        pod.metadata.as_ref().unwrap().labels,
        map(&[
            ("given", "1"),
            (labels::CLAIM_UID, "claim-uid"),
            (labels::TEMPLATE_REF_HASH, &name_hash("template")),
        ])
    );
    assert_eq!(pod.spec.automount_service_account_token, Some(false));
    assert_eq!(pod.spec.dns_policy.as_deref(), Some("None"));
    // Nothing is said before there is something to say.
    assert_eq!(next.status, SandboxClaimStatus::default());
}

#[test]
fn one_write_makes_a_standby_the_claims() {
    let mut claim = claim();
    claim.metadata.labels = map(&[(labels::CREATED_BY, "python-client")]);
    claim.metadata.annotations = map(&[(annotations::TRACE_CONTEXT, "{}")]);
    claim.spec.additional_pod_metadata = Some(PodMetadata {
        labels: map(&[("sandbox.users.io/user", "u")]),
        annotations: map(&[("note", "n")]),
    });
    let before = standby(&pool(), "pool-abcde", true);
    let patch = hand_over::patch(&before, &claim, Some(&template()), None).unwrap();
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch["metadata"].get("name"), None);
    let after = patched(&before, &patch);
    assert_eq!(after.metadata.name.as_deref(), Some("pool-abcde"));
    assert_eq!(
        after.metadata.owner_references,
        Some(vec![owner_reference(&claim)])
    );
    assert_eq!(
        after.metadata.labels,
        map(&[
            (labels::CLAIM_UID, "claim-uid"),
            (labels::CREATED_BY, "python-client"),
            (labels::LAUNCH_TYPE, "warm"),
            (labels::TEMPLATE_REF_HASH, &name_hash("template")),
        ])
    );
    assert_eq!(
        after.metadata.annotations,
        map(&[
            (annotations::POD_NAME, "pool-abcde"),
            (annotations::TRACE_CONTEXT, "{}")
        ])
    );
    let pod = after.spec.pod_template.metadata.clone().unwrap();
    assert_eq!(
        pod.labels,
        map(&[
            ("given", "1"),
            ("sandbox.users.io/user", "u"),
            (labels::CLAIM_UID, "claim-uid"),
            (labels::CREATED_BY, "python-client"),
            (labels::TEMPLATE_REF_HASH, &name_hash("template")),
        ])
    );
    // It is safe to evict no longer.
    assert_eq!(pod.annotations, map(&[("given", "1"), ("note", "n")]));
    // The rest is as it was.
    assert_eq!(after.spec.pod_template.spec, before.spec.pod_template.spec);
    assert_eq!(after.status, before.status);
    // And there is nothing left to put right.
    let mut observed = with(claim);
    observed.sandboxes = vec![Arc::new(after)];
    assert_eq!(decide(&observed).steps, []);
}

#[test]
fn without_its_template_a_standby_keeps_what_it_has() {
    let before = standby(&pool(), "a", true);
    let patch = hand_over::patch(&before, &claim(), None, None).unwrap();
    let pod = patched(&before, &patch).spec.pod_template.metadata.unwrap();
    assert_eq!(pod.annotations, map(&[("given", "1")]));
    assert!(pod.labels.unwrap().contains_key(labels::CLAIM_UID));
}

#[test]
fn one_status_write_tells_the_claim_all() {
    let claim = claim();
    let mut observed = with(claim.clone());
    observed.sandboxes = vec![Arc::new(handed_over(&claim, "pool-abcde"))];
    let next = decide(&observed);
    assert_eq!((next.gain.clone(), next.steps.len()), (None, 0));
    assert_eq!(said(&next), ("True", "DependenciesReady", "Pod is Ready"));
    assert_eq!(
        next.status.sandbox,
        Some(ClaimedSandbox {
            name: Some("pool-abcde".to_owned()),
            pod_ips: vec!["10.0.0.1".to_owned()],
            service_fqdn: Some("box.ns.svc.cluster.local".to_owned()),
        })
    );
    let at = condition(&next.status.conditions, "Ready")
        .unwrap()
        .last_transition_time
        .0;
    assert_eq!(at, now());
    // And it stays so.
    let mut again = claim;
    again.status = Some(next.status.clone());
    observed.claim = Arc::new(again);
    assert_eq!(decide(&observed).status, next.status);
}

#[test]
fn after_a_crash_the_claim_finds_its_sandbox_without_a_note() {
    // The standby was written, and the claim was not told.
    let claim = claim();
    let mut observed = with(claim.clone());
    observed.sandboxes = vec![Arc::new(handed_over(&claim, "pool-abcde"))];
    let next = decide(&observed);
    assert_eq!(next.gain, None);
    assert_eq!(next.status.sandbox.unwrap().name.as_deref(), Some("pool-abcde"));
}

#[test]
fn what_agent_sandbox_had_begun_is_ended() {
    // There the claim is written first.
    let mut claim = claim();
    claim.metadata.annotations = map(&[(annotations::SANDBOX_NAME, "pool-abcde")]);
    let mut observed = with(claim.clone());
    observed.sandboxes = vec![Arc::new(standby(&pool(), "pool-abcde", true))];
    let begun = Some("pool-abcde".to_owned());
    assert_eq!(decide(&observed).gain, Some(Gain::HandOver { begun }));
    // Unless it is another claim's by now.
    let mut other = claim.clone();
    other.metadata.uid = Some("other".to_owned());
    observed.sandboxes = vec![Arc::new(handed_over(&other, "pool-abcde"))];
    assert_eq!(decide(&observed).gain, Some(Gain::HandOver { begun: None }));
    // Or of another pool of the same name.
    let mut old = pool();
    old.metadata.uid = Some("old".to_owned());
    observed.sandboxes = vec![Arc::new(standby(&old, "pool-abcde", true))];
    assert_eq!(decide(&observed).gain, Some(Gain::HandOver { begun: None }));
}

#[test]
fn of_two_sandboxes_the_one_that_was_told_is_kept_and_the_other_freed() {
    let mut claim = claim();
    let (a, b) = (handed_over(&claim, "a"), handed_over(&claim, "b"));
    let mut observed = with(claim.clone());
    observed.sandboxes = vec![Arc::new(b.clone()), Arc::new(a.clone())];
    // It is told of one before the other goes.
    let next = decide(&observed);
    assert_eq!(next.status.sandbox.as_ref().unwrap().name.as_deref(), Some("a"));
    assert_eq!(next.steps, []);
    claim.status = Some(SandboxClaimStatus {
        sandbox: named("b"),
        ..SandboxClaimStatus::default()
    });
    observed.claim = Arc::new(claim.clone());
    let next = decide(&observed);
    assert_eq!(next.status.sandbox.as_ref().unwrap().name.as_deref(), Some("b"));
    assert_eq!(
        next.steps,
        [Step::DeleteSandbox {
            name: "a".to_owned(),
            uid: "a-uid".to_owned()
        }]
    );
}

#[test]
fn the_pool_and_its_template_have_to_be_there() {
    let mut observed = with(claim());
    observed.template = None;
    // Standbys may be there nevertheless.
    assert_eq!(decide(&observed).gain, Some(Gain::HandOver { begun: None }));
    observed.warm = Warm::Exhausted;
    let next = decide(&observed);
    let message = "SandboxTemplate \"template\" not found";
    assert_eq!(said(&next), ("False", "TemplateNotFound", message));
    assert_eq!(next.requeue, Some(Duration::from_secs(60)));
    // Whether they may be given away only the template can say.
    let mut strict = pool();
    strict.spec.update_strategy = Some(UpdateStrategy {
        type_: UpdateStrategyType::Recreate,
    });
    observed.pool = Some(Arc::new(strict));
    observed.warm = Warm::Untried;
    assert_eq!(said(&decide(&observed)).1, "TemplateNotFound");

    observed.pool = None;
    let next = decide(&observed);
    let message = "SandboxWarmPool \"pool\" not found";
    assert_eq!(said(&next), ("False", "WarmPoolNotFound", message));
    assert_eq!(next.gain, None);
}

#[test]
fn standbys_without_an_address_are_waited_for_a_little() {
    let mut observed = with(claim());
    observed.warm = Warm::WithoutAddress;
    let next = decide(&observed);
    assert_eq!(
        (next.gain, next.requeue),
        (None, Some(Duration::from_millis(500)))
    );
    assert_eq!(next.status, SandboxClaimStatus::default());
    let ago = |milliseconds| now() - jiff::SignedDuration::from_millis(milliseconds);
    observed.since = ago(1_900);
    assert_eq!(decide(&observed).requeue, Some(Duration::from_millis(100)));
    observed.since = ago(2_000);
    cold(&decide(&observed));
}

#[test]
fn who_loses_every_standby_to_others_says_so_and_tries_again() {
    let mut observed = with(claim());
    observed.warm = Warm::Contested { tries: 3 };
    let next = decide(&observed);
    let message = "claim claim: 3 standbys were written by somebody else at the same moment; the next pass retries \
                   from a converged view";
    assert_eq!(said(&next), ("False", "AdoptionPending", message));
    assert_eq!(
        next.trouble,
        Some(Trouble::Contested {
            claim: "claim".to_owned(),
            tries: 3
        })
    );
}

#[test]
fn a_sandbox_of_the_claims_name_that_is_not_its_own_is_in_the_way() {
    let mut observed = with(claim());
    let mut foreign = standby(&pool(), "claim", true);
    foreign.metadata.owner_references = None;
    observed.sandboxes = vec![Arc::new(foreign)];
    let message = "Error seen: sandbox \"claim\" is not controlled by claim \"claim\". Please use a different claim \
                   name or delete the sandbox manually";
    assert_eq!(said(&decide(&observed)), ("False", "ReconcilerError", message));
}

fn bringing(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> SandboxClaim {
    let mut claim = claim();
    claim.spec.additional_pod_metadata = Some(PodMetadata {
        labels: map(labels),
        annotations: map(annotations),
    });
    claim
}

#[test]
fn metadata_that_a_claim_may_not_bring_are_refused() {
    let long = "a".repeat(64);
    for (label, value) in [
        ("no-domain", "1"),
        ("app", "sandbox-router"),
        ("App", "Sandbox-Router"),
        ("kubernetes.io/x", "1"),
        ("other.io/x", "1"),
        ("notsandbox.users.io/x", "1"),
        ("sandbox.users.io/x@y", "1"),
        ("sandbox.users.io/", "1"),
        ("/x", "1"),
        ("Sandbox.Users.io/x", "1"),
        ("sandbox.users.io/a/b", "1"),
        ("sandbox.users.io/x", "a b"),
        ("sandbox.users.io/x", &long),
    ] {
        let next = decide(&with(bringing(&[(label, value)], &[])));
        assert_eq!(said(&next).1, "InvalidMetadata", "{label}={value}");
        assert!(
            said(&next)
                .2
                .starts_with("invalid additionalPodMetadata: failed to validate label ")
        );
        assert_eq!(next.gain, None);
    }
    for annotation in [
        "kubernetes.io/x",
        "a.k8s.io/x",
        "agents.x-k8s.io/pod-name",
        "x y",
        "",
    ] {
        let next = decide(&with(bringing(&[], &[(annotation, "1")])));
        assert_eq!(said(&next).1, "InvalidMetadata", "{annotation}");
    }
    let next = decide(&with(bringing(&[("app", "sandbox-router")], &[])));
    let message = "invalid additionalPodMetadata: failed to validate label \"app\": restricted system label value: \
                   \"app\"=\"sandbox-router\" is not allowed in AdditionalPodMetadata";
    assert_eq!(said(&next).2, message);
}

#[test]
fn metadata_that_a_claim_may_bring_are_added_and_replace_nothing() {
    let evict = annotations::SAFE_TO_EVICT;
    for claim in [
        bringing(&[("sandbox.users.io/x", "1"), ("my.sandbox.users.io/x", "")], &[]),
        bringing(
            &[],
            &[
                (evict, "false"),
                ("x", "any text"),
                ("podsnapshot.gke.io/ps-name", "s"),
            ],
        ),
        bringing(&[], &[("given", "1")]),
    ] {
        assert_eq!(decide(&with(claim)).gain, Some(Gain::HandOver { begun: None }));
    }
    let next = decide(&with(bringing(&[], &[("given", "2")])));
    let message = "invalid additionalPodMetadata: metadata override conflict: annotation \"given\" is defined in \
                   template with value \"1\", but claim requests \"2\"";
    assert_eq!(said(&next), ("False", "InvalidMetadata", message));
}

#[test]
fn what_a_claim_brings_later_or_no_longer_follows_to_its_sandbox() {
    let key = "podsnapshot.gke.io/ps-name";
    let before = bringing(&[], &[(key, "snapshot")]);
    let mut sandbox = handed_over(&before, "box");
    // Suspended or not makes no difference.
    sandbox.spec.operating_mode = dormouse_api::agents::OperatingMode::Suspended;
    let mut after = bringing(&[("sandbox.users.io/new", "1")], &[]);
    after.metadata.labels = map(&[(labels::CREATED_BY, "go-client")]);
    let mut observed = with(after);
    observed.sandboxes = vec![Arc::new(sandbox)];
    let patch = json!({
        "metadata": {"labels": {labels::CREATED_BY: "go-client"}},
        "spec": {"podTemplate": {"metadata": {
            "labels": {"sandbox.users.io/new": "1", labels::CREATED_BY: "go-client"},
            "annotations": {key: null},
        }}},
    });
    let name = "box".to_owned();
    assert_eq!(decide(&observed).steps, [Step::PatchSandbox { name, patch }]);
}

#[test]
fn a_pool_that_is_gone_matters_only_for_what_is_not_there_yet() {
    let claim = bringing(&[("sandbox.users.io/x", "1")], &[]);
    let mut observed = with(claim.clone());
    observed.sandboxes = vec![Arc::new(handed_over(&claim, "box"))];
    observed.pool = None;
    observed.template = None;
    assert_eq!(said(&decide(&observed)).0, "True");
    observed.claim = Arc::new(bringing(&[("sandbox.users.io/x", "2")], &[]));
    assert_eq!(
        said(&decide(&observed)),
        ("False", "WarmPoolNotFound", "SandboxWarmPool \"pool\" not found")
    );
    observed.pool = Some(Arc::new(pool()));
    let message = "failed to get template for metadata propagation: SandboxTemplate \"template\" not found";
    assert_eq!(said(&decide(&observed)), ("False", "TemplateNotFound", message));
}

fn env(name: &str, container: Option<&str>) -> ClaimEnv {
    ClaimEnv {
        name: name.to_owned(),
        value: "2".to_owned(),
        container_name: container.map(str::to_owned),
    }
}

fn with_env(policy: InjectionPolicy, variable: ClaimEnv) -> Observed {
    let mut claim = claim();
    claim.spec.env = vec![variable];
    let mut observed = with(claim);
    let mut template = template();
    template.spec.env_vars_injection_policy = policy;
    observed.template = Some(Arc::new(template));
    observed
}

#[test]
fn environment_variables_force_a_cold_start_as_the_template_allows() {
    let values = |observed: &Observed| -> Vec<(String, Option<String>)> {
        let next = decide(observed);
        let env = cold(&next).spec.pod_template.spec.containers[0]
            .env
            .clone()
            .unwrap();
        env.into_iter()
            .map(|variable| (variable.name, variable.value))
            .collect()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
    let new = || env("NEW", None);
    assert_eq!(
        values(&with_env(InjectionPolicy::Allowed, new())),
        [pair("THERE", "1"), pair("NEW", "2")]
    );
    assert_eq!(
        values(&with_env(InjectionPolicy::Overrides, env("THERE", Some("main")))),
        [pair("THERE", "2")]
    );

    let said_of = |observed: &Observed| {
        let next = decide(observed);
        let (_, reason, message) = said(&next);
        (reason.to_owned(), message.to_owned())
    };
    let both = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
    assert_eq!(
        said_of(&with_env(InjectionPolicy::Disallowed, new())),
        both(
            "EnvVarsInjectionRejected",
            "environment variable injection rejected: environment variable injection is not allowed by the template \
             policy"
        )
    );
    assert_eq!(
        said_of(&with_env(InjectionPolicy::Allowed, env("THERE", None))),
        both(
            "ReconcilerError",
            "Error seen: environment variable override is not allowed by the template policy for variable \"THERE\""
        )
    );
    assert_eq!(
        said_of(&with_env(InjectionPolicy::Allowed, env("NEW", Some("nowhere")))),
        both(
            "ReconcilerError",
            "Error seen: target container \"nowhere\" not found in template for environment variable \"NEW\""
        )
    );
    let mut observed = with_env(InjectionPolicy::Allowed, new());
    let mut template = (**observed.template.as_ref().unwrap()).clone();
    template.spec.pod_template.spec.containers[0].env_from = Some(vec![EnvFromSource::default()]);
    observed.template = Some(Arc::new(template));
    assert_eq!(
        said_of(&observed),
        both(
            "EnvVarsInjectionRejected",
            "environment variable injection rejected: container \"main\" uses EnvFrom sources; Allowed policy cannot \
             safely prevent overriding EnvFrom-provided variables"
        )
    );
}

/// The same with a template that takes them late.
fn taking_late(policy: InjectionPolicy, variable: ClaimEnv) -> Observed {
    let mut observed = with_env(policy, variable);
    let mut template = (**observed.template.as_ref().unwrap()).clone();
    let meta = template.spec.pod_template.metadata.get_or_insert_default();
    meta.annotations
        .get_or_insert_default()
        .insert("dormouse.dev/late-env".to_owned(), "/run/claim/env".to_owned());
    observed.template = Some(Arc::new(template));
    observed
}

#[test]
fn where_the_template_takes_them_late_a_standby_is_tried_first() {
    let new = || env("NEW", None);
    let tries = |observed: &Observed| decide(observed).gain == Some(Gain::HandOver { begun: None });
    let mut observed = taking_late(InjectionPolicy::Allowed, new());
    assert!(tries(&observed));
    assert!(tries(&taking_late(
        InjectionPolicy::Overrides,
        env("THERE", Some("main"))
    )));
    observed.warm = Warm::Exhausted;
    cold(&decide(&observed));

    // Those of the template did not take any of late.
    let mut observed = taking_late(InjectionPolicy::Allowed, new());
    observed.env_fails = true;
    cold(&decide(&observed));
    // Nor did one for this claim.
    let mut observed = taking_late(InjectionPolicy::Allowed, new());
    let mut claim = (*observed.claim).clone();
    claim.metadata.annotations = map(&[(annotations::LATE_ENV_REFUSED, "why")]);
    observed.claim = Arc::new(claim);
    cold(&decide(&observed));
    // What kubelet replaces, only a new pod has.
    let mut expanded = new();
    expanded.value = "$(THERE)/x".to_owned();
    cold(&decide(&taking_late(InjectionPolicy::Allowed, expanded)));
    // Volumes are there from the start.
    let mut observed = taking_late(InjectionPolicy::Allowed, new());
    let mut claim = (*observed.claim).clone();
    claim.spec.volume_claim_templates = vec![volume("data", "fast")];
    observed.claim = Arc::new(claim);
    assert!(!tries(&observed));
}

#[test]
fn what_the_template_does_not_allow_it_does_not_allow_late_either() {
    for (policy, variable) in [
        (InjectionPolicy::Disallowed, env("NEW", None)),
        (InjectionPolicy::Allowed, env("THERE", None)),
        (InjectionPolicy::Allowed, env("NEW", Some("nowhere"))),
    ] {
        let (late, early) = (
            decide(&taking_late(policy, variable.clone())),
            decide(&with_env(policy, variable)),
        );
        assert_eq!(late.gain, None);
        assert_eq!(said(&late), said(&early));
    }
}

fn volume(name: &str, class: &str) -> VolumeClaimTemplate {
    let mut template = VolumeClaimTemplate::default();
    template.metadata.get_or_insert_default().name = Some(name.to_owned());
    template.spec.storage_class_name = Some(class.to_owned());
    template
}

#[test]
fn volume_claim_templates_force_a_cold_start_as_the_template_allows() {
    let of = |policy, brought: &[(&str, &str)]| {
        let mut claim = claim();
        claim.spec.volume_claim_templates = brought.iter().map(|(name, class)| volume(name, class)).collect();
        let mut observed = with(claim);
        let mut template = template();
        template.spec.volume_claim_templates = vec![volume("data", "slow")];
        template.spec.volume_claim_templates_policy = policy;
        observed.template = Some(Arc::new(template));
        decide(&observed)
    };
    let there = |next: &Next| -> Vec<(String, String)> {
        let templates = &cold(next).spec.volume_claim_templates;
        let pair = |template: &VolumeClaimTemplate| {
            (
                template.name().to_owned(),
                template.spec.storage_class_name.clone().unwrap(),
            )
        };
        templates.iter().map(pair).collect()
    };
    let pair = |name: &str, class: &str| (name.to_owned(), class.to_owned());
    assert_eq!(
        there(&of(VolumeClaimTemplatesPolicy::Allowed, &[("more", "fast")])),
        [pair("data", "slow"), pair("more", "fast")]
    );
    assert_eq!(
        there(&of(
            VolumeClaimTemplatesPolicy::Overrides,
            &[("more", "fast"), ("data", "fast")]
        )),
        [pair("data", "fast"), pair("more", "fast")]
    );
    for (policy, brought, message) in [
        (
            VolumeClaimTemplatesPolicy::Disallowed,
            ("more", "fast"),
            "failed to merge volume claim templates: volume claim templates are disallowed by the template",
        ),
        (
            VolumeClaimTemplatesPolicy::Allowed,
            ("data", "fast"),
            "failed to merge volume claim templates: overriding volume claim templates is forbidden by the template: \
             cannot override template volume \"data\"",
        ),
        (
            VolumeClaimTemplatesPolicy::Overrides,
            ("", "fast"),
            "failed to merge volume claim templates: claim: invalid volume claim templates: name at index 0 is empty",
        ),
    ] {
        let next = of(policy, &[brought]);
        assert_eq!(said(&next), ("False", "VolumeClaimTemplatesError", message));
    }
}

#[test]
fn the_template_s_way_to_sleep_goes_into_the_sandbox() {
    let mut observed = with(claim());
    let mut template = template();
    template.spec.idle_timeout = Some("5m".to_owned());
    observed.template = Some(Arc::new(template));
    observed.warm = Warm::Exhausted;
    let next = decide(&observed);
    assert_eq!(cold(&next).spec.idle_timeout.as_deref(), Some("5m"));
}

fn ending(policy: ClaimShutdownPolicy, at: Option<i64>, ttl: Option<i32>) -> SandboxClaim {
    let mut claim = claim();
    claim.spec.lifecycle = Some(ClaimLifecycle {
        shutdown_time: at.map(|second| Time(Timestamp::from_second(second).unwrap())),
        ttl_seconds_after_finished: ttl,
        shutdown_policy: policy,
    });
    claim
}

fn expired(mut claim: SandboxClaim) -> SandboxClaim {
    let next = decide(&with(claim.clone()));
    assert!(next.expired);
    assert_eq!(
        (&next.gain, next.steps.len(), next.requeue),
        (&None, 0, Some(Duration::ZERO))
    );
    let message = "Claim expired. Sandbox cleanup initiated.";
    assert_eq!(said(&next), ("False", "ClaimExpired", message));
    claim.status = Some(next.status);
    claim
}

#[test]
fn at_its_end_it_is_said_and_then_the_claim_goes() {
    let end = now().as_second();
    for (policy, foreground) in [
        (ClaimShutdownPolicy::Delete, false),
        (ClaimShutdownPolicy::DeleteForeground, true),
    ] {
        let claim = expired(ending(policy, Some(end), None));
        let next = decide(&with(claim));
        assert_eq!(next.steps, [Step::DeleteClaim { foreground }]);
        assert!(!next.expired);
    }
    let next = decide(&with(ending(ClaimShutdownPolicy::Delete, Some(end + 5), None)));
    assert!(next.gain.is_some() && next.requeue == Some(Duration::from_secs(5)));
}

#[test]
fn at_its_end_a_claim_that_is_retained_loses_its_sandbox() {
    let end = now().as_second();
    let claim = expired(ending(ClaimShutdownPolicy::Retain, Some(end), None));
    let mut observed = with(claim.clone());
    let mut sandbox = handed_over(&claim, "box");
    observed.sandboxes = vec![Arc::new(sandbox.clone())];
    let next = decide(&observed);
    let (name, uid) = ("box".to_owned(), "box-uid".to_owned());
    assert_eq!(next.steps, [Step::DeleteSandbox { name, uid }]);
    assert_eq!(next.status.sandbox.as_ref().unwrap().name.as_deref(), Some("box"));
    // It is on its way.
    sandbox.metadata.deletion_timestamp = Some(Time(now()));
    observed.sandboxes = vec![Arc::new(sandbox)];
    assert_eq!(decide(&observed).steps, []);
    observed.sandboxes = vec![];
    let next = decide(&observed);
    assert_eq!(
        (next.status.sandbox.clone(), said(&next).1),
        (None, "ClaimExpired")
    );
    // What bears its name and is not its own stays.
    observed.sandboxes = vec![Arc::new(standby(&pool(), "claim", true))];
    let next = decide(&observed);
    assert_eq!(next.steps, []);
    let message = "Claim expired. sandbox not owned by this claim: sandbox \"claim\" is not owned by claim \
                   \"claim\"; deletion skipped.";
    assert_eq!(said(&next), ("False", "ClaimExpired", message));
}

#[test]
fn a_claim_ends_some_time_after_its_sandbox_has_finished() {
    let finished_at = |seconds_ago: i64| Condition {
        type_: "Finished".to_owned(),
        reason: "PodSucceeded".to_owned(),
        last_transition_time: Time(Timestamp::from_second(now().as_second() - seconds_ago).unwrap()),
        ..ready("True")
    };
    let look = |ttl: Option<i32>, seconds_ago: i64| {
        let claim = ending(ClaimShutdownPolicy::Retain, None, ttl);
        let mut sandbox = handed_over(&claim, "box");
        let status = sandbox.status.get_or_insert_default();
        status.conditions.push(finished_at(seconds_ago));
        let mut observed = with(claim);
        observed.sandboxes = vec![Arc::new(sandbox)];
        decide(&observed)
    };
    let next = look(Some(30), 10);
    assert_eq!(
        condition(&next.status.conditions, "Finished"),
        Some(&finished_at(10))
    );
    assert_eq!(
        (next.requeue, next.expired),
        (Some(Duration::from_secs(20)), false)
    );
    assert!(!look(None, 10).expired);
    // At once.
    let next = look(Some(0), 0);
    assert!(next.expired && said(&next).1 == "ClaimExpired");
    assert!(condition(&next.status.conditions, "Finished").is_some());
}

#[test]
fn a_sandbox_that_ended_by_itself_is_no_sandbox_of_the_claim_any_more() {
    let claim = claim();
    let mut sandbox = handed_over(&claim, "box");
    sandbox.status.get_or_insert_default().conditions[0].reason = "SandboxExpired".to_owned();
    let mut observed = with(claim);
    observed.sandboxes = vec![Arc::new(sandbox.clone())];
    let message = "Underlying Sandbox resource has expired independently of the Claim.";
    assert_eq!(said(&decide(&observed)), ("False", "SandboxExpired", message));
    sandbox.status = None;
    observed.sandboxes = vec![Arc::new(sandbox)];
    assert_eq!(
        said(&decide(&observed)),
        ("False", "SandboxNotReady", "Sandbox is not ready")
    );
}

#[test]
fn a_claim_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let mut claim = claim();
    claim.metadata.deletion_timestamp = Some(Time(now()));
    let next = decide(&with(claim));
    assert_eq!((next.gain, next.steps), (None, vec![]));
}

#[test]
fn a_sandbox_that_still_sleeps_as_a_standby_is_not_ready_for_its_claim() {
    let mut observed = with(claim());
    let sandbox = handed_over(&claim(), "box");
    let uid = sandbox.metadata.uid.clone().unwrap();
    observed.sandboxes.push(Arc::new(sandbox));
    let said = |next: &Next| condition(&next.status.conditions, "Ready").cloned().unwrap();
    assert_eq!(said(&decide(&observed)).status, "True");
    observed.sleepers.insert(uid);
    let is = said(&decide(&observed));
    assert_eq!(
        (is.status.as_str(), is.reason.as_str()),
        ("False", "SandboxNotReady")
    );
}
