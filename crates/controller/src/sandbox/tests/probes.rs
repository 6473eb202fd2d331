//! Sandboxes whose probes the agent runs.

use dormouse_api::agents::SuspensionType;
use dormouse_core::{ANNOTATION_PROBES, ProbeAction, Probes, Rung};
use k8s_openapi::api::core::v1::ContainerPort;

use super::memory::{guest, later, seen, with_strategy};
use super::*;
use crate::agents::GuestProbes;
use crate::sandbox::READINESS_GATE;

fn build(sandbox: &Sandbox) -> Result<Pod, Trouble> {
    crate::sandbox::pod::build(sandbox, false, &crate::sandbox::Source::Nothing, &settings())
}

fn container(value: Value) -> Container {
    serde_json::from_value(value).unwrap()
}

fn probed() -> Container {
    container(json!({
        "name": "main", "ports": [{"name": "web", "containerPort": 8080}],
        "livenessProbe": {"exec": {"command": ["cat", "/alive"]}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 1},
        "startupProbe": {"tcpSocket": {"port": "8080"}, "failureThreshold": 30},
    }))
}

/// One that sleeps when it is idle.
fn sleepy(containers: Vec<Container>) -> Sandbox {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.idle_timeout = Some("5m".to_owned());
    sandbox.spec.pod_template.spec.containers = containers;
    sandbox
}

fn gates(pod: &Pod) -> Vec<String> {
    let gates = pod.spec.as_ref().unwrap().readiness_gates.clone();
    gates
        .unwrap_or_default()
        .into_iter()
        .map(|gate| gate.condition_type)
        .collect()
}

#[test]
fn all_three_kinds_move_into_the_annotation() {
    let side = container(json!({"name": "side"}));
    let pod = build(&sleepy(vec![probed(), side])).unwrap();
    let spec = pod.spec.as_ref().unwrap();
    for container in &spec.containers {
        assert_eq!(container.liveness_probe, None);
        assert_eq!(container.readiness_probe, None);
        assert_eq!(container.startup_probe, None);
    }
    assert_eq!(
        spec.containers[0].ports,
        Some(vec![ContainerPort {
            name: Some("web".to_owned()),
            container_port: 8080,
            ..ContainerPort::default()
        }])
    );
    let all = pod.metadata.annotations.as_ref().unwrap();
    let probes = Probes::from_json(&all[ANNOTATION_PROBES]).unwrap();
    let [main] = probes.containers() else {
        panic!("{probes:?}")
    };
    assert!(
        matches!(&main.liveness.as_ref().unwrap().action, ProbeAction::Exec { command } if command[0] == "cat")
    );
    assert!(matches!(
        &main.readiness.as_ref().unwrap().action,
        ProbeAction::Http { port: 8080, .. }
    ));
    assert!(matches!(
        main.startup.as_ref().unwrap().action,
        ProbeAction::Tcp { port: 8080 }
    ));
    assert_eq!(gates(&pod), [READINESS_GATE], "what they say has to be shown");
    // It is what the pod was born with: a template that changes does not change it.
    let propagated = &all[annotations::PROPAGATED_ANNOTATIONS];
    assert!(!propagated.contains(ANNOTATION_PROBES), "{propagated}");
}

#[test]
fn a_sandbox_without_our_fields_keeps_its_probes() {
    let mut plain = sandbox();
    plain.spec.pod_template.spec.containers = vec![probed()];
    let pod = build(&plain).unwrap();
    assert_eq!(pod.spec.as_ref().unwrap().containers, [probed()]);
    assert_eq!(pod.metadata.annotations, None);
    assert!(gates(&pod).is_empty());
    // Nor has one that sleeps a gate for probes that it does not have.
    assert!(gates(&build(&sleepy(vec![container(json!({"name": "main"}))])).unwrap()).is_empty());
    // Suspended in place, it has one gate for both.
    let mut frozen = with_strategy(SuspensionType::Freeze);
    frozen.spec.pod_template.spec.containers = vec![probed()];
    assert_eq!(gates(&build(&frozen).unwrap()), [READINESS_GATE]);
}

#[test]
fn a_sidecar_keeps_what_the_kubelet_starts_others_by() {
    let mut sandbox = sleepy(vec![container(json!({"name": "main"}))]);
    let sidecar = container(json!({
        "name": "proxy", "restartPolicy": "Always",
        "startupProbe": {"grpc": {"port": 9000}}, "livenessProbe": {"grpc": {"port": 9000, "service": "x"}},
    }));
    sandbox.spec.pod_template.spec.init_containers = Some(vec![sidecar.clone()]);
    let pod = build(&sandbox).unwrap();
    let built = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
    assert_eq!(built.startup_probe, sidecar.startup_probe);
    assert_eq!(built.liveness_probe, None);
    let probes = Probes::from_json(&pod.metadata.annotations.unwrap()[ANNOTATION_PROBES]).unwrap();
    assert!(probes.containers()[0].startup.is_some() && probes.containers()[0].liveness.is_some());
}

#[test]
fn probes_that_the_agent_cannot_run_are_said_so() {
    let refused = |containers: Vec<Container>| {
        let next = decide(&with(sleepy(containers)));
        assert_eq!(what(&next), [""; 0], "no pod without its probes");
        let (status, reason, message) = said(&next, "Ready").unwrap();
        assert_eq!((status, reason), ("False", "InvalidConfiguration"));
        message.to_owned()
    };
    let with_probe = |probe: Value| container(json!({"name": "main", "livenessProbe": probe}));
    let message = refused(vec![with_probe(
        json!({"tcpSocket": {"port": 80, "host": "10.0.0.1"}}),
    )]);
    assert!(message.contains("liveness probe of container main"), "{message}");
    assert!(message.contains("host"), "{message}");
    let message = refused(vec![with_probe(json!({"httpGet": {"port": "nosuch"}}))]);
    assert!(message.contains("nosuch"), "{message}");
    let long = json!({"exec": {"command": ["x".repeat(10_000)]}});
    let many = (0..10)
        .map(|n| container(json!({"name": format!("c{n}"), "livenessProbe": long})))
        .collect();
    let message = refused(many);
    assert!(message.contains("65536 bytes"), "{message}");

    let mut twice = sleepy(vec![probed()]);
    let given = r#"[{"name":"main","liveness":{"tcpSocket":{"port":80}}}]"#;
    twice.spec.pod_template.metadata = Some(PodMetadata {
        annotations: Some(BTreeMap::from([(ANNOTATION_PROBES.to_owned(), given.to_owned())])),
        ..PodMetadata::default()
    });
    assert_eq!(build(&twice), Err(Trouble::ProbesTwice));
    twice.spec.pod_template.spec.containers = vec![container(json!({"name": "main"}))];
    let pod = build(&twice).unwrap();
    assert_eq!(gates(&pod), [READINESS_GATE], "it may be given, too");
}

fn says(ready: bool, rung: Rung) -> Sight {
    let Sight::Seen(mut guest) = guest(rung, 3) else {
        panic!()
    };
    guest.probes = Some(GuestProbes {
        ready,
        message: if ready {
            String::new()
        } else {
            "readiness probe of container main failed: no".to_owned()
        },
    });
    Sight::Seen(guest)
}

#[test]
fn the_sandbox_is_ready_when_the_agent_says_so() {
    let sandbox = sleepy(vec![probed()]);
    let next = decide(&seen(&sandbox, says(false, Rung::Running)));
    let (status, reason, message) = said(&next, "Ready").unwrap();
    assert_eq!((status, reason), ("False", "DependenciesNotReady"));
    assert!(
        message.ends_with("readiness probe of container main failed: no"),
        "{message}"
    );
    assert_eq!(later(&next), [""; 0], "a gate that was never opened is shut");

    let next = decide(&seen(&sandbox, says(true, Rung::Running)));
    assert_eq!(said(&next, "Ready").unwrap().0, "True");
    assert_eq!(later(&next), ["patch pod status"]);

    // It was ready before it fell asleep, and is.
    let next = decide(&seen(&sandbox, says(true, Rung::Dozing)));
    assert_eq!(said(&next, "Ready").unwrap().0, "True");
    assert_eq!(said(&next, "Dormant").unwrap().0, "True");

    // An agent that runs none, which an older one is.
    let next = decide(&seen(&sandbox, guest(Rung::Running, 3)));
    assert_eq!(said(&next, "Ready").unwrap().0, "False");
}

#[test]
fn while_the_agent_is_away_it_is_what_it_was() {
    let sandbox = sleepy(vec![probed()]);
    let mut observed = seen(&sandbox, Sight::Unreachable);
    let next = decide(&observed);
    assert_eq!(
        said(&next, "Ready").unwrap().0,
        "False",
        "nobody has ever said so"
    );
    let pod = Arc::make_mut(&mut observed.pods[0]);
    let open = PodCondition {
        type_: READINESS_GATE.to_owned(),
        status: "True".to_owned(),
        ..PodCondition::default()
    };
    pod.status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap()
        .push(open);
    let next = decide(&observed);
    assert_eq!(said(&next, "Ready").unwrap().0, "True");
    assert_eq!(later(&next), [""; 0]);
    // What an agent that is there says counts.
    observed.guest = says(false, Rung::Running);
    let next = decide(&observed);
    let Some(Step::PatchPodStatus { patch, .. }) = next.later.first() else {
        panic!("{:?}", next.later)
    };
    let condition = &patch["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("ProbesNotPassed"))
    );
}
