//! What is written in the vocabulary of `podsnapshot.gke.io`, against a small API server.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotStatus};
use dormouse_api::gke::{PodSnapshot, PodSnapshotManualTrigger, PodSnapshotPolicy};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector;

use super::tests::{begun, said};
use super::*;
use crate::cache::Cache;
use crate::objects::{condition, owner_reference};
use crate::test_server::Server;

struct Controller {
    triggers: Arc<TriggerContext>,
    pod_snapshots: Arc<PodSnapshotContext>,
    known: Known,
    server: Server,
}

impl Controller {
    fn new() -> Self {
        let server = Server::empty();
        let known = Known {
            triggers: Arc::new(Cache::new(
                reflector::store().0,
                |_: &PodSnapshotManualTrigger| None,
            )),
            pod_snapshots: Arc::new(Cache::new(reflector::store().0, |_: &PodSnapshot| None)),
            policies: Arc::new(Cache::new(reflector::store().0, |_: &PodSnapshotPolicy| None)),
            snapshots: Arc::new(Cache::new(reflector::store().0, |_: &SandboxSnapshot| None)),
            sandboxes: Arc::new(Cache::new(reflector::store().0, |_: &Sandbox| None)),
            pods: Arc::new(Cache::new(reflector::store().0, |_: &Pod| None)),
        };
        let observed = begun();
        let mut sandbox = (**observed.sandbox.as_ref().unwrap()).clone();
        sandbox.metadata.namespace = Some("ns".to_owned());
        let mut pod = (**observed.pod.as_ref().unwrap()).clone();
        pod.metadata.namespace = Some("ns".to_owned());
        pod.metadata.owner_references = Some(vec![owner_reference(&sandbox)]);
        known.sandboxes.wrote(sandbox);
        known.pods.wrote(pod);
        server.put("podsnapshotmanualtriggers", &*observed.trigger);
        Self {
            triggers: Arc::new(TriggerContext::new(server.client(), known.clone())),
            pod_snapshots: Arc::new(PodSnapshotContext::new(server.client(), known.clone())),
            known,
            server,
        }
    }

    /// The watches tell, and everything is looked at.
    async fn look(&self) {
        for trigger in self.server.all("podsnapshotmanualtriggers") {
            self.known.triggers.wrote(trigger);
        }
        for snapshot in self.server.all("sandboxsnapshots") {
            self.known.snapshots.wrote(snapshot);
        }
        for one in self.server.all::<PodSnapshot>("podsnapshots") {
            self.known.pod_snapshots.wrote(one.clone());
            let looked = reconcile_pod_snapshot(Arc::new(one), Arc::clone(&self.pod_snapshots));
            looked.await.unwrap();
        }
        let looked = reconcile_trigger(begun().trigger, Arc::clone(&self.triggers));
        looked.await.unwrap();
    }

    /// The snapshot says this of itself.
    fn say(&self, type_: &str, status: &str) {
        let mut snapshot = self.server.all::<SandboxSnapshot>("sandboxsnapshots").remove(0);
        snapshot.status = Some(SandboxSnapshotStatus {
            conditions: vec![said(type_, status, "Because")],
            ..SandboxSnapshotStatus::default()
        });
        self.server.put("sandboxsnapshots", &snapshot);
    }

    fn trigger(&self) -> PodSnapshotManualTrigger {
        self.server
            .all::<PodSnapshotManualTrigger>("podsnapshotmanualtriggers")
            .remove(0)
    }

    fn triggered(&self) -> Option<(String, String)> {
        let status = self.trigger().status?;
        let said = condition(&status.conditions, "Triggered")?;
        Some((said.status.clone(), said.reason.clone()))
    }
}

#[tokio::test]
async fn a_trigger_leads_to_a_pod_snapshot_that_is_ready_before_it_is_complete() {
    let controller = Controller::new();
    controller.look().await;
    assert_eq!(
        controller.server.log(),
        ["post podsnapshots suspend-1", "post sandboxsnapshots suspend-1"]
    );
    controller.look().await;
    assert_eq!(controller.triggered(), None);
    controller.say("Ready", "True");
    controller.server.log();
    controller.look().await;
    assert_eq!(
        controller.server.log(),
        [
            "patch podsnapshots/status suspend-1",
            "patch podsnapshotmanualtriggers/status suspend-1"
        ]
    );
    assert_eq!(
        controller.triggered(),
        Some(("True".to_owned(), "Complete".to_owned()))
    );
    let created = controller.trigger().status.unwrap().snapshot_created.unwrap();
    assert_eq!(created.name, "suspend-1");
    // Then there is nothing left to write.
    controller.look().await;
    assert_eq!(controller.server.log(), [""; 0]);
}

#[tokio::test]
async fn a_trigger_whose_snapshot_failed_says_so_and_its_pod_snapshot_goes() {
    let controller = Controller::new();
    controller.look().await;
    controller.say("Failed", "True");
    controller.look().await;
    assert_eq!(
        controller.triggered(),
        Some(("False".to_owned(), "Failed".to_owned()))
    );
    assert!(controller.server.all::<PodSnapshot>("podsnapshots").is_empty());
}
