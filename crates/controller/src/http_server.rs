//! Health and metrics over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::metrics::Metrics;

/// Whether the controller knows what there is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<AtomicBool>);

impl Ready {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Serves `/livez`, `/readyz` and `/healthz`.
pub(crate) fn health(ready: Ready) -> Router {
    let ok = || async { "ok" };
    let is_ready = move || async move {
        if ready.0.load(Ordering::Acquire) {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the caches are being filled")
        }
    };
    Router::new()
        .route("/livez", get(ok))
        .route("/healthz", get(ok))
        .route("/readyz", get(is_ready))
}

/// Serves `/metrics`.
pub(crate) fn metrics(metrics: Arc<Metrics>) -> Router {
    let text = move || {
        let metrics = Arc::clone(&metrics);
        async move { as_response(metrics.text()) }
    };
    Router::new().route("/metrics", get(text))
}

fn as_response(text: Result<String, std::fmt::Error>) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Serves until `stop`.
///
/// # Errors
///
/// If the address cannot be had.
pub(crate) async fn serve(
    address: SocketAddr,
    router: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        let served = axum::serve(listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            error!(%address, %error, "HTTP is no longer served");
        }
    });
    Ok(())
}
