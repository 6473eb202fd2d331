//! A client over the agent's Unix socket.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The client of the node agent.
pub type NodeClient = crate::v1::node_client::NodeClient<Channel>;

/// The agent could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the agent at {path}; is dormouse-agent running, and are you root?")]
pub struct ConnectError {
    /// The socket's path.
    pub path: String,
    /// What went wrong.
    #[source]
    pub source: tonic::transport::Error,
}

/// Connects to the agent that listens on the Unix socket `path`.
///
/// # Errors
/// Nothing accepts connections there, or the caller may not connect.
pub async fn connect(path: &Path) -> Result<NodeClient, ConnectError> {
    let socket = path.to_owned();
    // The URI is required by HTTP/2 and has no meaning on a Unix socket.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(5));
    let channel = endpoint
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|source| ConnectError {
            path: path.display().to_string(),
            source,
        })?;
    Ok(NodeClient::new(channel))
}
