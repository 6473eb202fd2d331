//! Following one agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dormouse_rpc::{NodeClient, v1};
use dormouse_tls::{Name, NameError};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{info, warn};

use super::{Agents, Guest};

/// First and longest wait after a broken link. A resume may wait for it, and a thousand dead agents are a few hundred
/// attempts a second at the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

/// How long a connection may take, and how often one that says nothing is asked whether it is still there.
const CONNECT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A link that has held for so long was a good one.
const GOOD: Duration = Duration::from_secs(10);

/// Why a link is broken.
#[derive(Debug, Error)]
enum LinkError {
    #[error("the controller has no certificate yet")]
    NoCertificate,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("no connection: {}", with_causes(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("the stream of events ended: {0}")]
    Stream(#[from] Box<tonic::Status>),
    #[error("the agent ended the stream of events")]
    Ended,
}

/// An error with what lies below it: the top of tonic's says only that it is about transport.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Follows the agent of a node until `stop`.
pub(super) async fn follow(agents: Agents, node: String, address: SocketAddr, stop: CancellationToken) {
    let mut wait = RETRY.0;
    loop {
        let begun = Instant::now();
        let error = tokio::select! {
            result = follow_once(&agents, &node, address) => result.err().unwrap_or(LinkError::Ended),
            () = stop.cancelled() => {
                agents.unlinked(&node);
                return;
            }
        };
        agents.unlinked(&node);
        if begun.elapsed() > GOOD {
            wait = RETRY.0;
        }
        warn!(node, %address, %error, "the link to the agent is broken and is made again");
        // Not all at the same moment after the controller's, or the network's, restart.
        let pause = wait.mul_f64(0.5 + fastrand::f64());
        wait = (wait * 2).min(RETRY.1);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn follow_once(agents: &Agents, node: &str, address: SocketAddr) -> Result<(), LinkError> {
    let dialer = agents.dialer().ok_or(LinkError::NoCertificate)?;
    let name = Name::of_node(node)?;
    // The URI has no meaning here; the connection is made, and the agent's name verified, by the connector.
    let channel = Endpoint::from_static("http://agent")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(tower::service_fn(move |_| {
            let (dialer, name) = (dialer.clone(), name.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(dialer.greet(&name, stream).await?))
            }
        }))
        .await?;
    let mut client = NodeClient::new(channel);
    let mut events = client
        .watch(v1::WatchRequest::default())
        .await
        .map_err(Box::new)?
        .into_inner();
    let mut there = Vec::new();
    while let Some(event) = events.message().await.map_err(Box::new)? {
        use v1::watch_response::Kind;
        let (kind, pod) = (event.kind(), event.pod);
        match (kind, pod) {
            (Kind::Synced, _) => {
                info!(node, %address, guests = there.len(), "linked to the agent");
                agents.linked(node, client.clone(), &std::mem::take(&mut there));
            }
            // Something was missed: all is told again.
            (Kind::Lagged, _) => return Ok(()),
            (Kind::Removed, Some(pod)) => agents.forget(&pod.uid),
            (Kind::Existing, Some(pod)) => {
                there.push(pod.uid.clone());
                note(agents, node, pod);
            }
            (_, Some(pod)) => note(agents, node, pod),
            (_, None) => {}
        }
    }
    Err(LinkError::Ended)
}

fn note(agents: &Agents, node: &str, pod: v1::Pod) {
    let uid = pod.uid.clone();
    match Guest::from_agent(node, pod) {
        Some(guest) => agents.note(&guest, true),
        // A later version of the agent describes it in words that are not known here. What it was before does not count.
        None => agents.forget(&uid),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::Rung;

    use super::*;
    use crate::agents::Sight;

    #[tokio::test]
    async fn a_guest_that_is_not_understood_any_more_is_not_what_it_was() {
        let agents = Agents::new(|_, _| {}, |_| {});
        let client = crate::test_agent::Agent::default().client().await;
        agents.link("one", client, &[]);
        let mut pod = v1::Pod {
            uid: "u".to_owned(),
            rung: v1::Rung::Frozen.into(),
            ..v1::Pod::default()
        };
        note(&agents, "one", pod.clone());
        assert!(matches!(agents.sight("one", "u"), Sight::Seen(guest) if guest.rung == Rung::Frozen));
        pod.rung = 4711;
        note(&agents, "one", pod.clone());
        assert_eq!(agents.sight("one", "u"), Sight::Unknown);
        // What is new beside what is known does no harm.
        pod.rung = v1::Rung::Running.into();
        pod.moving_to = 4711;
        note(&agents, "one", pod);
        assert!(matches!(agents.sight("one", "u"), Sight::Seen(guest) if guest.moving_to.is_none()));
    }
}
