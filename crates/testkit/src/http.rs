//! HTTP requests on fresh connections, with the time of each phase: what a client of a sleeper sees.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer is never longer than this; a guest that sends more is broken.
const LONGEST: u64 = 16 << 20;

/// An answer and when its parts came, measured from before `connect`.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
    /// Connection established.
    pub connected: Duration,
    /// First byte of the answer.
    pub first_byte: Duration,
    /// All of it.
    pub total: Duration,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is something else.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {:?}", self.body))
    }
}

/// `GET`.
///
/// # Errors
/// When the connection fails, the answer is not HTTP, or `limit` passes.
pub async fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer> {
    request(address, "GET", path, "", limit).await
}

/// `POST` with a body.
///
/// # Errors
/// As [`get`].
pub async fn post(address: SocketAddr, path: &str, body: &str, limit: Duration) -> Result<Answer> {
    request(address, "POST", path, body, limit).await
}

async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Result<Answer> {
    let exchange = async {
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).await.context("connect")?;
        let connected = began.elapsed();
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream
            .write_all(head.as_bytes())
            .await
            .context("send the request")?;
        let mut text = vec![0; 4096];
        let first = stream.read(&mut text).await.context("wait for the answer")?;
        let first_byte = began.elapsed();
        text.truncate(first);
        // HTTP/1.0: the answer ends with the connection.
        stream
            .take(LONGEST)
            .read_to_end(&mut text)
            .await
            .context("read the answer")?;
        let total = began.elapsed();
        let text = String::from_utf8_lossy(&text);
        let (head, body) = text.split_once("\r\n\r\n").context("the answer is not HTTP")?;
        let status = head
            .split_whitespace()
            .nth(1)
            .and_then(|code| code.parse().ok())
            .context("the answer has no status")?;
        anyhow::Ok(Answer {
            status,
            body: body.to_owned(),
            connected,
            first_byte,
            total,
        })
    };
    tokio::time::timeout(limit, exchange)
        .await
        .with_context(|| format!("{method} http://{address}{path}: no answer within {limit:?}"))?
        .with_context(|| format!("{method} http://{address}{path}"))
}
