//! `/metrics`, `/livez` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{saved, shells};
use crate::context::Context;
use crate::metrics::NodeFigures;
use crate::pods::Pods;
use crate::prepare::Preparation;

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made of.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Everything shared.
    pub ctx: Arc<Context>,
    /// The pods.
    pub pods: Pods,
    /// Whether the first list of pods was worked off.
    pub ready: Arc<AtomicBool>,
    /// Whether the node is prepared.
    pub preparation: watch::Receiver<Preparation>,
}

/// Serves the pages until `stop`.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: SocketAddr, pages: Pages, stop: CancellationToken) -> std::io::Result<()> {
    let listener = crate::enter::listen(address).await?;
    tracing::info!(%address, "serving metrics and health");
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(pages);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn readyz(State(pages): State<Pages>) -> impl IntoResponse {
    if !pages.ready.load(Ordering::Acquire) {
        let why = "the pods of this node have not all been looked at yet\n".to_owned();
        return (StatusCode::SERVICE_UNAVAILABLE, why);
    }
    match &*pages.preparation.borrow() {
        Preparation::Done => (StatusCode::OK, "ok\n".to_owned()),
        Preparation::Refused { reason, message } => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}: {message}\n"))
        }
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let swap = pages.ctx.swap.figures();
    let wires = pages.ctx.wires.stats();
    let (steps_running, steps_waiting) = pages.ctx.gate.load();
    let figures = NodeFigures {
        steps_running,
        steps_waiting,
        swap_free: swap.free,
        swap_total: swap.total,
        zram_used: swap.zram_used,
        saved: saved(&pages.pods.views()),
        frames_seen: wires.frames,
        wakes_suppressed: wires.suppressed_source.saturating_add(wires.suppressed_node),
        events_refused: wires.events_refused,
        shells: shells(&pages.pods.views()),
        snapshots: pages.ctx.snapshots.figures(),
        runscs: pages
            .ctx
            .snapshots
            .releases()
            .await
            .into_iter()
            .map(|release| (release.state(), release.version, u64::from(release.snapshots)))
            .collect(),
    };
    (
        [(header::CONTENT_TYPE, OPEN_METRICS)],
        pages.ctx.metrics.render(&figures),
    )
}
