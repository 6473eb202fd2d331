//! The node in its cluster: the controller gives orders over mutual TLS, and [`SandboxNode`] says what the node can do.
//!
//! The agent has few rights in the cluster's API: to ask for a certificate, and to write the one object that bears its
//! node's name. It works without the API server; only the controller cannot reach it before it has a certificate.
//!
//! [`SandboxNode`]: dormouse_api::dormouse::SandboxNode

mod certificate;
mod inventory;
mod publish;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;

use dormouse_tls::{Name, NameError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::NodeService;
use crate::enter;
use crate::prepare::Preparation;

/// Why the agent cannot be in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server's address and credentials are not known.
    #[error(
        "the API server's address is not known; run in a pod with a ServiceAccount, or set KUBECONFIG: {0}"
    )]
    Config(#[source] kube::config::InferConfigError),
    /// The way to the API server cannot be made.
    #[error("no client for the API server: {0}")]
    Client(#[source] kube::Error),
    /// The node's name cannot stand in a certificate.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The address cannot be had.
    #[error("cannot listen on {address} (cluster.listen): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The server failed.
    #[error("the server for the controller failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Where and as whom.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where the controller is served.
    pub address: SocketAddr,
    /// The node's name in the cluster.
    pub node: String,
    /// Who vouches for the controller.
    pub authorities_file: PathBuf,
    /// How the API server is reached; `None` = as for any program.
    pub api: Option<kube::Config>,
    /// Whether the node is prepared.
    pub preparation: watch::Receiver<Preparation>,
}

/// Is in the cluster until `stop`.
///
/// # Errors
/// What cannot be mended by trying again.
pub async fn run(place: Place, service: NodeService, stop: CancellationToken) -> Result<(), ClusterError> {
    let name = Name::of_node(&place.node)?;
    let listener = enter::listen(place.address)
        .await
        .map_err(|source| ClusterError::Listen {
            address: place.address,
            source,
        })?;
    let config = match place.api {
        Some(config) => config,
        None => kube::Config::infer().await.map_err(ClusterError::Config)?,
    };
    let client = dormouse_apiserver::builder(config)
        .map_err(ClusterError::Client)?
        .build();
    let published = tokio::spawn(publish::keep(
        client.clone(),
        place.node.clone(),
        service.clone(),
        place.preparation,
        stop.clone(),
    ));
    let tls = tokio::select! {
        tls = certificate::first(&client, &name, &place.authorities_file) => tls,
        () = stop.cancelled() => return Ok(()),
    };
    let renewed = tokio::spawn(certificate::renew(
        client,
        name,
        place.authorities_file,
        tls.clone(),
        stop.clone(),
    ));
    tracing::info!(address = %place.address, "serving the controller");
    let served = serve::serve(listener, tls.listener, service, stop).await;
    published.abort();
    renewed.abort();
    Ok(served?)
}
