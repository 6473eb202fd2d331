//! The way to the API server: requests are counted, and held back beyond a rate if one is given.

mod count;
mod lane;
mod limit;
mod written;

use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};

pub use limit::Rate;
pub(crate) use written::Written;

use crate::metrics::Metrics;
use crate::rush::Rush;

/// Clients that count, and share a rate.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct Clients {
    /// For what claims wait for.
    pub claims: Client,
    /// For all else, which gives way to that.
    pub others: Client,
    /// Which claims wait.
    pub rush: Rush,
}

/// The ways to the API server.
///
/// # Errors
///
/// If the configuration is not sound.
pub fn clients(config: Config, rate: Option<Rate>, metrics: Arc<Metrics>) -> Result<Clients, kube::Error> {
    let rush = Rush::default();
    let limit = limit::LimitLayer::new(rate);
    let count = count::CountLayer::new(metrics);
    Ok(Clients {
        claims: dormouse_apiserver::builder(config.clone())?
            .with_layer(&count)
            .with_layer(&limit)
            .build(),
        others: dormouse_apiserver::builder(config)?
            .with_layer(&count)
            .with_layer(&lane::LaneLayer::new(rush.clone()))
            .with_layer(&limit)
            .build(),
        rush,
    })
}

/// How long an answer about the Lease is waited for: there has to be time for another try before it ends.
const LEASE_ANSWER: Duration = Duration::from_secs(3);

/// A client for the Lease alone, and when it has last written. It tries nothing twice by itself, or a renewal that is turned
/// away would wait beyond the Lease's end.
///
/// # Errors
///
/// If the configuration is not sound.
pub(crate) fn lease_client(
    mut config: Config,
    metrics: Arc<Metrics>,
) -> Result<(Client, Arc<Written>), kube::Error> {
    config.default_retry = false;
    config.connect_timeout = Some(LEASE_ANSWER);
    config.read_timeout = Some(LEASE_ANSWER);
    config.write_timeout = Some(LEASE_ANSWER);
    let written = Arc::new(Written::default());
    let client = dormouse_apiserver::builder(config)?
        .with_layer(&count::CountLayer::new(metrics))
        .with_layer(&written::WrittenLayer::new(Arc::clone(&written)))
        .build();
    Ok((client, written))
}
