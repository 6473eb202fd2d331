//! Streams of news.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_rpc::v1;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::messages;
use super::selector::Selector;
use crate::view::{PodNews, PodView};

/// How many messages wait for a slow client before the news wait in the broadcast channel.
const QUEUE: usize = 64;

/// Which pods somebody wants to hear of.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) managed_only: bool,
    pub(super) namespace: String,
    pub(super) selector: Selector,
}

impl Filter {
    pub(super) fn new(managed_only: bool, namespace: String, selector: &str) -> Result<Self, Status> {
        Ok(Self {
            managed_only,
            namespace,
            selector: Selector::parse(selector)?,
        })
    }

    pub(super) fn matches(&self, pod: &PodView) -> bool {
        let labels: &BTreeMap<String, String> = &pod.labels;
        (!self.managed_only || pod.managed)
            && (self.namespace.is_empty() || self.namespace == pod.namespace)
            && self.selector.matches(labels)
    }
}

pub(super) type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

/// The pods as they are, and then what happens to them.
pub(super) fn stream(
    filter: Filter,
    existing: Vec<Arc<PodView>>,
    mut news: broadcast::Receiver<PodNews>,
) -> WatchStream {
    use v1::watch_response::Kind;

    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let plain = |kind: Kind, pod| v1::WatchResponse {
            kind: kind.into(),
            pod,
            ..Default::default()
        };
        for view in existing.iter().filter(|view| filter.matches(view)) {
            if sender
                .send(Ok(plain(Kind::Existing, Some(messages::pod(view)))))
                .await
                .is_err()
            {
                return;
            }
        }
        if sender.send(Ok(plain(Kind::Synced, None))).await.is_err() {
            return;
        }
        loop {
            let next = tokio::select! {
                next = news.recv() => next,
                () = sender.closed() => return,
            };
            let message = match next {
                Ok(news) if filter.matches(&news.pod) => messages::news(&news),
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(_)) => plain(Kind::Lagged, None),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
