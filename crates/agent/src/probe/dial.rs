//! Connections that are no sign that anybody wants the pod.
//!
//! A source's address says nothing: the node's other programs have the same one. So the port is taken before the first
//! frame, and this one flow is left out on the pod's wire until the connection is closed. Where an address is rewritten on
//! the way the flow is another, and the probe counts as use: it keeps the pod awake, and nothing is lost.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use dormouse_net::{Flow, PodKey};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Failed, Flows, Run};

/// How long the other end may take to close a connection that is of no use any more.
pub(super) const CLOSE: Duration = Duration::from_millis(200);

/// The most that is read of a connection that is closed.
const DRAIN: usize = 64 << 10;

/// A connection to the pod. The fields are dropped in this order: first it is closed, then its flow counts again.
pub(super) struct Connection {
    stream: TcpStream,
    _left_out: Option<LeftOut>,
    _alive: TaskTrackerToken,
}

/// A flow that is left out for as long as this lives.
struct LeftOut {
    flows: Arc<dyn Flows>,
    wire: PodKey,
    flow: Flow,
}

impl Drop for LeftOut {
    fn drop(&mut self) {
        self.flows.take_in(&self.wire, self.flow);
    }
}

impl Run {
    /// Connects. A connection that is dropped is reset, so that nothing of it is sent any more.
    pub(super) async fn dial(&self, to: SocketAddr) -> Result<Connection, Failed> {
        let failed = |source| Failed::Connect { to, source };
        let source = source_for(to).map_err(failed)?;
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        };
        let socket = socket.map_err(failed)?;
        socket.bind(SocketAddr::new(source, 0)).map_err(failed)?;
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, sockopt::Linger, &at_once).map_err(|errno| failed(errno.into()))?;
        let from = socket.local_addr().map_err(failed)?;
        let flow = Flow {
            source: (from.ip(), from.port()),
            destination: (to.ip(), to.port()),
        };
        let left_out = self.flows.leave_out(&self.target.wire, flow).then(|| LeftOut {
            flows: Arc::clone(&self.flows),
            wire: self.target.wire.clone(),
            flow,
        });
        let stream = socket.connect(to).await.map_err(failed)?;
        Ok(Connection {
            stream,
            _left_out: left_out,
            _alive: self.alive.clone(),
        })
    }
}

impl Connection {
    /// Closes it as a client does that is content, and not by a reset, which servers complain of. Nobody waits for that.
    pub(super) fn end(self) {
        tokio::spawn(self.close());
    }

    async fn close(mut self) {
        let off = libc::linger {
            l_onoff: 0,
            l_linger: 0,
        };
        let closed = async {
            self.stream.shutdown().await?;
            let mut rest = [0; 1024];
            let mut left = DRAIN;
            while left > 0 {
                match self.stream.read(&mut rest).await? {
                    0 => break,
                    n => left = left.saturating_sub(n),
                }
            }
            setsockopt(&self.stream, sockopt::Linger, &off).map_err(io::Error::from)
        };
        // One that does not close it is reset.
        let _: Result<io::Result<()>, _> = tokio::time::timeout(CLOSE, closed).await;
    }
}

/// The address that the node would send from.
fn source_for(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // Only looks for the route: no frame is sent.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.local_addr().map(|from| from.ip())
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
