//! Working on snapshots.

use std::sync::Arc;

use dormouse_api::dormouse::SandboxSnapshot;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::identity;
use super::index::Index;
use crate::args::Args;
use crate::cache::Cache;
use crate::gke::{
    self, PodSnapshotContext, TriggerContext, on_pod_snapshot_error, on_trigger_error,
    reconcile_pod_snapshot, reconcile_trigger,
};
use crate::metrics::Metrics;
use crate::snapshot::{
    self, FIELD_MANAGER, KnownStores, SnapshotContext, StoreContext, on_store_error, reconcile_store,
};
use crate::worker::work;

/// Begins to work on snapshots and their stores, until `stop`.
pub(super) fn begin(
    args: &Args,
    client: &Client,
    index: &Index,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) {
    let known = &index.snapshots;
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: Some(identity(args)),
    };
    let snapshots = SnapshotContext::new(
        client.clone(),
        Recorder::new(client.clone(), reporter),
        snapshot::Known {
            snapshots: Arc::clone(&known.snapshots),
            nodes: Arc::clone(&known.nodes),
            stores: Arc::clone(&known.stores),
            sandboxes: Arc::clone(&index.sandboxes),
            pods: Arc::clone(&index.pods),
            agents: index.agents.clone(),
            candidates: index.extensions.as_ref().map(|known| known.candidates.clone()),
        },
        Arc::clone(metrics),
    );
    tracker.spawn(work(
        known.queue.clone(),
        known.snapshots.store().clone(),
        args.sandbox_snapshot_concurrent_workers,
        snapshot::reconcile,
        snapshot::on_error,
        Arc::new(snapshots),
        Arc::clone(metrics),
        stop.clone(),
    ));
    let stores = StoreContext::new(
        client.clone(),
        KnownStores {
            stores: Arc::clone(&known.stores),
            nodes: Arc::clone(&known.nodes),
        },
    );
    tracker.spawn(work(
        known.store_queue.clone(),
        known.stores.store().clone(),
        1,
        reconcile_store,
        on_store_error,
        Arc::new(stores),
        Arc::clone(metrics),
        stop.clone(),
    ));
    begin_gke(args, client, index, &known.snapshots, metrics, stop, tracker);
}

/// The same in the vocabulary of `podsnapshot.gke.io`, where it is spoken.
fn begin_gke(
    args: &Args,
    client: &Client,
    index: &Index,
    snapshots: &Arc<Cache<SandboxSnapshot>>,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) {
    let Some(gke) = &index.gke else {
        return;
    };
    let known = gke::Known {
        triggers: Arc::clone(&gke.triggers),
        pod_snapshots: Arc::clone(&gke.pod_snapshots),
        policies: Arc::clone(&gke.policies),
        snapshots: Arc::clone(snapshots),
        sandboxes: Arc::clone(&index.sandboxes),
        pods: Arc::clone(&index.pods),
    };
    tracker.spawn(work(
        gke.trigger_queue.clone(),
        gke.triggers.store().clone(),
        args.sandbox_snapshot_concurrent_workers,
        reconcile_trigger,
        on_trigger_error,
        Arc::new(TriggerContext::new(client.clone(), known.clone())),
        Arc::clone(metrics),
        stop.clone(),
    ));
    tracker.spawn(work(
        gke.pod_snapshot_queue.clone(),
        gke.pod_snapshots.store().clone(),
        args.sandbox_snapshot_concurrent_workers,
        reconcile_pod_snapshot,
        on_pod_snapshot_error,
        Arc::new(PodSnapshotContext::new(client.clone(), known)),
        Arc::clone(metrics),
        stop.clone(),
    ));
}
