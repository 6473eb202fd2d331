//! The server for the controller.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use dormouse_rpc::v1::node_server::NodeServer;
use dormouse_tls::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::api::NodeService;

/// The largest request, in bytes: a policy and a name.
const MAX_REQUEST: usize = 64 << 10;

/// How long a caller may take to say who he is.
const GREETING: Duration = Duration::from_secs(5);

/// Callers that may be saying who they are at the same time: strangers must not take memory.
const GREETINGS: usize = 32;

/// How often a caller that says nothing is asked whether he is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Listener,
    service: NodeService,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (callers, incoming) = mpsc::channel(GREETINGS);
    let accepting = tokio::spawn(accept(listener, tls, callers));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(NodeServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled_owned())
        .await;
    accepting.abort();
    served
}

async fn accept(listener: TcpListener, tls: Listener, callers: mpsc::Sender<io::Result<Caller>>) {
    let greetings = std::sync::Arc::new(Semaphore::new(GREETINGS));
    loop {
        let Ok(permit) = std::sync::Arc::clone(&greetings).acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a caller could not be taken in: {error}");
                // No descriptors are left, most likely: the next try would fail as fast.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, callers) = (tls.clone(), callers.clone());
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(GREETING, async {
                stream.set_nodelay(true)?;
                tls.accept(stream).await
            })
            .await;
            drop(permit);
            match greeted {
                Ok(Ok(stream)) => {
                    // Nobody takes callers in any more: it is the end.
                    let _ = callers.send(Ok(Caller(stream))).await;
                }
                Ok(Err(error)) => tracing::warn!(%address, "a caller was turned away: {error}"),
                Err(_) => tracing::warn!(%address, "a caller did not say who it is within 5 s"),
            }
        });
    }
}

/// The controller, as the handshake has shown.
struct Caller(TlsStream<TcpStream>);

impl Connected for Caller {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
