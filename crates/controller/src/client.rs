//! The way to the API server: requests are counted, and held back beyond a rate if one is given.

mod count;
mod limit;
mod written;

use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};

pub use limit::Rate;
pub(crate) use written::Written;

use crate::metrics::Metrics;

/// A client that counts.
///
/// # Errors
///
/// If the configuration is not sound.
pub fn client(config: Config, rate: Option<Rate>, metrics: Arc<Metrics>) -> Result<Client, kube::Error> {
    Ok(dormouse_apiserver::builder(config)?
        .with_layer(&count::CountLayer::new(metrics))
        .with_layer(&limit::LimitLayer::new(rate))
        .build())
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
