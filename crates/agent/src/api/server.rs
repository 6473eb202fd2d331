//! The Unix socket and the gRPC server on it.

use std::future::Future;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_rpc::v1::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::{AllowedCallers, NodeService};

/// The largest request, in bytes: a policy and a name.
const MAX_REQUEST: usize = 64 << 10;

/// The API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot {verb} the API's socket {}: {source}", path.display())]
    Socket {
        /// What was tried.
        verb: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// There is something at the socket's path that is no socket.
    #[error("{} exists and is no socket; remove it or set api.socket to another path", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// Another agent answers there.
    #[error("another agent answers on {}; stop it first", path.display())]
    AlreadyServed {
        /// The path.
        path: PathBuf,
    },
    /// The server failed.
    #[error("the API's server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Makes the socket, 0600 from its first moment on, in place of one that a dead agent left.
fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |verb| {
        let path = path.to_owned();
        move |source| ServeError::Socket { verb, path, source }
    };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::InTheWay {
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ServeError::AlreadyServed {
                    path: path.to_owned(),
                });
            }
            std::fs::remove_file(path).map_err(failed("remove the old"))?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look at")(e)),
    }
    // Made beside its place and moved there once nobody else can open it.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(failed("bind"))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .map_err(failed("set the mode of"))?;
    std::fs::rename(&temporary, path).map_err(failed("move"))?;
    Ok(listener)
}

/// Serves the API and the gRPC health service until `stop` is done.
///
/// # Errors
/// The socket cannot be made, or the server fails.
pub async fn serve(
    path: &Path,
    callers: AllowedCallers,
    service: NodeService,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let listener = bind(path)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeServer<NodeService>>().await;
    let node = NodeServer::new(service).max_decoding_message_size(MAX_REQUEST);
    let node = tonic::service::interceptor::InterceptedService::new(node, callers.clone());
    let health_service = tonic::service::interceptor::InterceptedService::new(health_service, callers);
    tracing::info!(socket = %path.display(), "serving the API");
    let served = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_service(node)
        .add_service(health_service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await;
    let _ = std::fs::remove_file(path);
    Ok(served?)
}
