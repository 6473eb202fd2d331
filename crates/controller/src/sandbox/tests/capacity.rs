//! Requests of sleepers.

use dormouse_core::{Policy, Rung};
use k8s_openapi::api::core::v1::{ContainerResizePolicy, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::agents::{Guest, Sight};

fn asking(cpu: &str, memory: &str) -> Option<ResourceRequirements> {
    let of = |text: &str| Quantity(text.to_owned());
    Some(ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".to_owned(), of(cpu)),
            ("memory".to_owned(), of(memory)),
        ])),
        ..ResourceRequirements::default()
    })
}

fn sleeper(rung: Rung, cpu: &str, memory: &str) -> Observed {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.idle_timeout = Some("1m".to_owned());
    sandbox.spec.pod_template.spec.containers[0].resources = asking("500m", "256Mi");
    let mut pod = ready(own_pod(&sandbox));
    pod.metadata.annotations = crate::sandbox::tests::built(&sandbox).metadata.annotations;
    pod.spec.as_mut().unwrap().containers = vec![Container {
        name: "main".to_owned(),
        resources: asking(cpu, memory),
        ..Container::default()
    }];
    pod.status.as_mut().unwrap().qos_class = Some("Burstable".to_owned());
    let mut observed = with(sandbox);
    observed.pods = vec![Arc::new(pod)];
    observed.guest = Sight::Seen(Box::new(Guest {
        uid: "pod-1".to_owned(),
        namespace: "ns".to_owned(),
        pod: "box".to_owned(),
        node: "node-1".to_owned(),
        managed: true,
        rung,
        moving_to: None,
        policy: Policy::default(),
        generation: 3 << 20,
        snapshot: None,
        woken: None,
        reason: String::new(),
        message: String::new(),
        probes: None,
        resident: 0,
        resident_before: 0,
    }));
    observed
}

fn requests(observed: &Observed) -> Option<Value> {
    let next = decide(observed);
    assert_eq!(what(&next), [""; 0], "nobody waits for it");
    next.later.into_iter().find_map(|step| match step {
        Step::ResizePod { patch, .. } => {
            Some(patch["spec"]["containers"][0]["resources"]["requests"].clone())
        }
        _ => None,
    })
}

#[test]
fn a_sleeper_gives_its_place_away_and_takes_it_back_with_its_wake() {
    let small = json!({"cpu": "10m", "memory": "16Mi"});
    assert_eq!(
        requests(&sleeper(Rung::Dozing, "500m", "256Mi")),
        Some(small.clone())
    );
    assert_eq!(requests(&sleeper(Rung::Hibernated, "0.5", "256Mi")), Some(small));
    assert_eq!(requests(&sleeper(Rung::Dozing, "10m", "16777216")), None);
    // Its memory is still where it was.
    assert_eq!(requests(&sleeper(Rung::Frozen, "500m", "256Mi")), None);
    assert_eq!(
        requests(&sleeper(Rung::Running, "10m", "16Mi")),
        Some(json!({"cpu": "500m", "memory": "256Mi"}))
    );
    assert_eq!(requests(&sleeper(Rung::Running, "500m", "256Mi")), None);
}

/// Who uses more than it asks for is the first that the kubelet evicts, so a standby does not stay small with its claim.
#[test]
fn a_standby_that_is_claimed_takes_its_place_back() {
    for told in [false, true] {
        let mut observed = sleeper(Rung::Running, "10m", "16Mi");
        let sandbox = Arc::make_mut(&mut observed.sandbox);
        sandbox.spec.idle_timeout = None;
        let warm = (labels::LAUNCH_TYPE.to_owned(), "warm".to_owned());
        sandbox.metadata.labels = Some(BTreeMap::from([warm]));
        if let Sight::Seen(guest) = &mut observed.guest
            && !told
        {
            // It still has the policy of a standby.
            guest.policy.resume_policy = dormouse_core::ResumePolicy::Manual;
            guest.generation = 0;
        }
        let later = decide(&observed).later;
        let resized = later.iter().find_map(|step| match step {
            Step::ResizePod { patch, .. } => Some(&patch["spec"]["containers"][0]["resources"]["requests"]),
            _ => None,
        });
        assert_eq!(resized, Some(&json!({"cpu": "500m", "memory": "256Mi"})));
    }
}

#[test]
fn pods_that_would_be_another_class_or_restart_are_left_alone() {
    let change = |edit: &dyn Fn(&mut Observed)| {
        let mut observed = sleeper(Rung::Dozing, "500m", "256Mi");
        edit(&mut observed);
        requests(&observed)
    };
    assert_eq!(
        change(&|observed| {
            let pod = Arc::make_mut(&mut observed.pods[0]);
            pod.status.as_mut().unwrap().qos_class = Some("Guaranteed".to_owned());
        }),
        None
    );
    assert_eq!(
        change(&|observed| {
            let sandbox = Arc::make_mut(&mut observed.sandbox);
            sandbox.spec.pod_template.spec.containers[0].resize_policy = Some(vec![ContainerResizePolicy {
                resource_name: "memory".to_owned(),
                restart_policy: "RestartContainer".to_owned(),
            }]);
        }),
        None
    );
}

#[test]
fn it_is_known_what_a_sleeper_gives_and_has_given_away() {
    let mib = |mib: u64| mib << 20;
    let of = |observed: &Observed| {
        let next = decide(observed);
        next.later.into_iter().find_map(|step| match step {
            Step::ResizePod { node, uid, gives, .. } => Some((node, uid, gives)),
            _ => None,
        })
    };
    let place = |gives| Some(("node-1".to_owned(), "pod-1".to_owned(), gives));
    assert_eq!(of(&sleeper(Rung::Dozing, "500m", "256Mi")), place(mib(240)));
    assert_eq!(of(&sleeper(Rung::Running, "10m", "16Mi")), place(0));
    for (memory, given) in [("256Mi", 0), ("16Mi", mib(240)), ("512Mi", 0)] {
        let observed = sleeper(Rung::Dozing, "10m", memory);
        assert_eq!(
            crate::sandbox::given_away(&observed.sandbox, &observed.pods[0]),
            given
        );
    }
}
