//! Golden snapshots of pools: they are taken of standbys, and never of what is a claim's.

use dormouse_api::extensions::{SandboxClaim, SandboxWarmPool};
use kube::ResourceExt;

use super::*;
use crate::claim::{Candidates, Choice};

fn owner<K: kube::Resource<DynamicType = ()> + Default>(name: &str) -> K {
    let mut owner = K::default();
    owner.meta_mut().name = Some(name.to_owned());
    owner.meta_mut().uid = Some(format!("{name}-uid"));
    owner
}

fn standby() -> Sandbox {
    let mut standby = sandbox();
    standby.metadata.namespace = Some("ns".to_owned());
    standby.metadata.owner_references = Some(vec![owner_reference(&owner::<SandboxWarmPool>("pool"))]);
    standby.labels_mut().extend([
        (labels::WARM_POOL.to_owned(), name_hash("pool")),
        (labels::TEMPLATE_REF_HASH.to_owned(), name_hash("template")),
    ]);
    standby.status.get_or_insert_default().pod_ips = vec!["10.0.0.1".to_owned()];
    standby
}

fn claimed() -> Sandbox {
    let mut sandbox = standby();
    sandbox.metadata.owner_references = Some(vec![owner_reference(&owner::<SandboxClaim>("claim"))]);
    sandbox
}

/// What the controller believes of the standby, and what the API server has.
async fn controller(believed: &Sandbox, there: &Sandbox) -> (Controller, Candidates) {
    let mut controller = Controller::new().await;
    let candidates = Candidates::default();
    candidates.saw("ns", "box", Some(believed));
    controller.known.candidates = Some(candidates.clone());
    controller.known.sandboxes.wrote(believed.clone());
    let reporter = Reporter::from("test".to_owned());
    controller.context = Arc::new(SnapshotContext::new(
        controller.server.client(),
        Recorder::new(controller.server.client(), reporter),
        controller.known.clone(),
        Arc::new(Metrics::default()),
    ));
    let mut golden = asked_for();
    golden.metadata.owner_references = Some(vec![owner_reference(&owner::<SandboxWarmPool>("pool"))]);
    controller.server.put("sandboxsnapshots", &golden);
    controller.server.put("sandboxes", there);
    (controller, candidates)
}

#[tokio::test]
async fn a_standby_is_saved_and_may_be_handed_over_then() {
    let (controller, candidates) = controller(&standby(), &standby()).await;
    controller.look().await.unwrap();
    assert_eq!(controller.says("Ready"), said("True", "SnapshotReady"));
    assert_eq!(controller.agent.log(), ["create", "get"]);
    assert!(matches!(
        candidates.reserve_named("ns", "pool", "box"),
        Choice::Reserved(_)
    ));
}

#[tokio::test]
async fn one_that_is_being_handed_over_is_not_saved() {
    let (controller, candidates) = controller(&standby(), &standby()).await;
    let reservation = candidates.reserve_named("ns", "pool", "box");
    controller.look().await.unwrap();
    assert_eq!(controller.agent.log(), [""; 0]);
    drop(reservation);
    controller.look().await.unwrap();
    assert_eq!(controller.says("Ready"), said("True", "SnapshotReady"));
}

#[tokio::test]
async fn what_is_a_claims_is_not_saved_for_the_pool() {
    let (controller, _) = controller(&claimed(), &claimed()).await;
    controller.look().await.unwrap();
    assert_eq!(controller.says("Ready"), said("False", "SandboxClaimed"));
    assert_eq!(controller.agent.log(), [""; 0]);
}

#[tokio::test]
async fn what_another_controller_has_handed_over_meanwhile_is_removed_again() {
    let (controller, _) = controller(&standby(), &claimed()).await;
    controller.look().await.unwrap();
    assert_eq!(controller.says("Failed"), said("True", "SandboxClaimed"));
    assert_eq!(controller.agent.log(), ["create", "remove"]);
    assert!(controller.agent.0.lock().unwrap().snapshots.is_empty());
    assert_eq!(controller.snapshot().unwrap().status.unwrap().snapshot_id, None);
}
