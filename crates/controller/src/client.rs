//! The way to the API server: requests are counted, and held back beyond a rate if one is given.

mod count;
mod limit;

use std::sync::Arc;

use kube::client::ClientBuilder;
use kube::{Client, Config};

pub use limit::Rate;

use crate::metrics::Metrics;

/// A client that counts.
///
/// # Errors
///
/// If the configuration is not sound.
pub fn client(config: Config, rate: Option<Rate>, metrics: Arc<Metrics>) -> Result<Client, kube::Error> {
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&count::CountLayer::new(metrics))
        .with_layer(&limit::LimitLayer::new(rate))
        .build())
}
