//! Working on claims and pools.

use std::sync::Arc;

use kube::runtime::events::{Recorder, Reporter};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::identity;
use super::index::{Extensions, Index};
use crate::args::{Args, label_domains};
use crate::claim::{self, ClaimContext};
use crate::client::Clients;
use crate::metrics::{CostSources, Metrics};
use crate::pool::{self, PoolContext, QuotaContext, on_quota_error, reconcile_quota};
use crate::worker::work;

/// Begins to work on claims and pools, until `stop`.
pub(super) fn begin(
    args: &Args,
    clients: &Clients,
    index: &Index,
    known: &Arc<Extensions>,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) {
    let client = &clients.others;
    metrics.count_wanted(Arc::clone(&known.state));
    metrics.count_costs(CostSources {
        sandboxes: known.sandboxes.store().clone(),
        pods: Arc::clone(&known.pods),
        agents: index.agents.clone(),
        nodes: index.snapshots.nodes.store().clone(),
    });
    let recorder = |controller: &str| {
        let reporter = Reporter {
            controller: controller.to_owned(),
            instance: Some(identity(args)),
        };
        Recorder::new(client.clone(), reporter)
    };
    let claims = ClaimContext::new(
        clients.claims.clone(),
        (!args.disable_claim_events).then(|| recorder(claim::FIELD_MANAGER)),
        claim::Settings {
            label_domains: label_domains([&args.allowed_label_domains, &more_domains(args)]),
            observability: !args.disable_claim_observability_annotations,
            patience: claim::Settings::PATIENCE,
        },
        claim::Known {
            claims: Arc::clone(&known.claims),
            sandboxes: Arc::clone(&known.sandboxes),
            pools: Arc::clone(&known.pools),
            templates: Arc::clone(&known.templates),
            candidates: known.candidates.clone(),
            notes: Arc::clone(&known.notes),
            demand: Arc::clone(&known.state),
            pool_queue: known.pool_queue.clone(),
            claim_queue: known.claim_queue.clone(),
            pods: Arc::clone(&known.pods),
            agents: index.agents.clone(),
            nodes: index.nodes.clone(),
            rush: clients.rush.clone(),
        },
        Arc::clone(metrics),
    );
    tracker.spawn(work(
        known.claim_queue.clone(),
        known.claims.store().clone(),
        args.sandbox_claim_concurrent_workers,
        claim::reconcile,
        claim::on_error,
        Arc::new(claims),
        Arc::clone(metrics),
        stop.clone(),
    ));
    let pools = PoolContext::new(
        client.clone(),
        recorder(pool::FIELD_MANAGER),
        pool::Settings {
            batch: args.sandbox_warm_pool_max_batch_size,
            pause: pool::Pause {
                delay: args.sandbox_warm_pool_replenish_delay,
                rest: pool::Pause::REST,
            },
            refill_rate: args.sandbox_warm_pool_max_refill_rate,
            starts_per_node: args.sandbox_warm_pool_max_starts_per_node,
            grace: args.sandbox_warm_pool_readiness_grace_period,
            recheck: args.sandbox_warm_pool_unschedulable_recheck_interval,
            may_be_evicted: args.enable_warm_pool_eviction,
        },
        pool::Known {
            pools: Arc::clone(&known.pools),
            sandboxes: Arc::clone(&known.sandboxes),
            templates: Arc::clone(&known.templates),
            pods: Arc::clone(&known.pods),
            state: Arc::clone(&known.state),
            quotas: Arc::clone(&known.quotas),
            pool_queue: known.pool_queue.clone(),
            sandbox_queue: index.sandbox_queue.clone(),
            snapshots: Arc::clone(&index.snapshots.snapshots),
            sandbox_nodes: Arc::clone(&index.snapshots.nodes),
            nodes: index.nodes.clone(),
            agents: index.agents.clone(),
        },
    );
    tracker.spawn(work(
        known.pool_queue.clone(),
        known.pools.store().clone(),
        args.sandbox_warm_pool_concurrent_workers,
        pool::reconcile,
        pool::on_error,
        Arc::new(pools),
        Arc::clone(metrics),
        stop.clone(),
    ));
    let quotas = QuotaContext::new(
        client.clone(),
        Arc::clone(&known.quotas),
        Arc::clone(&known.state),
    );
    tracker.spawn(work(
        known.quota_queue.clone(),
        known.quotas.store().clone(),
        1,
        reconcile_quota,
        on_quota_error,
        Arc::new(quotas),
        Arc::clone(metrics),
        stop.clone(),
    ));
}

/// What the file of label domains says. That there is none is as good as an empty one.
fn more_domains(args: &Args) -> String {
    let file = &args.allowed_label_domains_file;
    std::fs::read_to_string(file).unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            warn!(file = %file.display(), %error, "label domains cannot be read and are left out");
        }
        String::new()
    })
}
