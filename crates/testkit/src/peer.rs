//! The far end of a guest's outbound connection: echoes lines, and knows whether the connection lives.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One connection that a guest opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The guest's end.
    pub from: SocketAddr,
    /// Lines echoed so far.
    pub lines: u64,
    /// Why it ended; `None` while it lives.
    pub ended: Option<String>,
}

/// A listening peer. Ends with the value.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    links: Arc<Mutex<Vec<Link>>>,
    accepting: JoinHandle<()>,
}

impl Peer {
    /// Listens on a free port of this address. With `keepalive`, dead guests are noticed: a probe after that
    /// time of silence and at that interval, three unanswered ones end the connection.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn listen(ip: IpAddr, keepalive: Option<Duration>) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0))
            .await
            .with_context(|| format!("listen on {ip}"))?;
        let address = listener.local_addr().context("ask for the port")?;
        let links: Arc<Mutex<Vec<Link>>> = Arc::default();
        let accepted = Arc::clone(&links);
        let accepting = tokio::spawn(async move {
            // Connections end with this task.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, from)) = listener.accept().await {
                let index = {
                    let Ok(mut links) = accepted.lock() else { return };
                    links.push(Link {
                        from,
                        lines: 0,
                        ended: None,
                    });
                    links.len() - 1
                };
                let links = Arc::clone(&accepted);
                connections.spawn(async move {
                    let ended = echo(stream, keepalive, &links, index).await;
                    let reason = ended.map_or_else(|error| format!("{error:#}"), |()| "closed".to_owned());
                    with(&links, index, |link| link.ended = Some(reason));
                });
            }
        });
        Ok(Self {
            address,
            links,
            accepting,
        })
    }

    /// Where guests connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All connections so far, in the order in which they came.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.links.lock().map(|links| links.clone()).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn with(links: &Mutex<Vec<Link>>, index: usize, change: impl FnOnce(&mut Link)) {
    if let Ok(mut links) = links.lock()
        && let Some(link) = links.get_mut(index)
    {
        change(link);
    }
}

async fn echo(
    stream: TcpStream,
    keepalive: Option<Duration>,
    links: &Mutex<Vec<Link>>,
    index: usize,
) -> Result<()> {
    if let Some(interval) = keepalive {
        let seconds = u32::try_from(interval.as_secs().max(1))?;
        let socket = stream.as_fd();
        setsockopt(&socket, sockopt::KeepAlive, &true).context("set SO_KEEPALIVE")?;
        setsockopt(&socket, sockopt::TcpKeepIdle, &seconds).context("set TCP_KEEPIDLE")?;
        setsockopt(&socket, sockopt::TcpKeepInterval, &seconds).context("set TCP_KEEPINTVL")?;
        setsockopt(&socket, sockopt::TcpKeepCount, &3).context("set TCP_KEEPCNT")?;
    }
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.context("read")? {
        write
            .write_all(format!("{line}\n").as_bytes())
            .await
            .context("write")?;
        with(links, index, |link| link.lines += 1);
    }
    Ok(())
}
