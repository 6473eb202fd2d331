//! containerd's event streams, drained into one bounded queue.
//!
//! containerd sends to its subscribers one after the other and waits for each, so a subscriber that does not
//! read holds up the others: these readers never wait for the index. Where the index is too slow, the
//! session ends and begins anew with a full list.

use std::time::Duration;

use containerd_client::services::v1::PublishRequest;
use containerd_client::services::v1::events_client::EventsClient;
use k8s_cri::v1 as cri;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::runtime::Runtime;
use crate::signal::Signal;

/// How many events may wait for the index.
const QUEUE: usize = 8192;

/// The namespace and topic of the event by which a subscription proves that it is in force.
pub(crate) const HELLO_NAMESPACE: &str = "dormouse";
pub(crate) const HELLO_TOPIC: &str = "/dormouse/hello";

/// How often the proof is sent until it comes back; the pauses double up to the longest. Some 10 s in all.
const HELLO_TRIES: u32 = 24;
const HELLO_PAUSE: Duration = Duration::from_millis(2);
const HELLO_LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What a reader hands over.
#[derive(Debug)]
pub(crate) enum Fed {
    /// The subscription to containerd's events is in force.
    Live,
    /// An event of containerd.
    Signal(Signal),
    /// An event of the CRI.
    Cri {
        /// The pod sandbox; empty where the event did not say.
        sandbox_id: String,
        /// The container, or the sandbox itself.
        container_id: String,
        /// Whether it is being deleted.
        deleted: bool,
    },
    /// This CRI runtime has no events of its own.
    CriUnsupported,
}

/// Why a session with containerd ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// A stream broke.
    #[error("the stream of {stream} ended: {}", status.message())]
    Stream {
        /// Which stream.
        stream: &'static str,
        /// What was said.
        status: Box<Status>,
    },
    /// The subscription did not come into force.
    #[error("containerd's events do not arrive")]
    Deaf,
    /// The index was too slow, or its listener was.
    #[error("events came faster than they could be dealt with")]
    Overflow,
    /// A call failed.
    #[error(transparent)]
    Call(#[from] crate::error::CallError),
}

/// The readers of one session; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Feed {
    readers: JoinSet<Ended>,
    hello: AbortHandle,
}

impl Feed {
    /// Subscribes. `with_cri` = read the CRI's own events, too.
    pub(crate) fn start(runtime: &Runtime, with_cri: bool) -> (Self, mpsc::Receiver<Fed>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut readers = JoinSet::new();
        if with_cri {
            readers.spawn(read_cri(runtime.clone(), sender.clone()));
        } else {
            let _ = sender.try_send(Fed::CriUnsupported);
        }
        readers.spawn(read_tasks(runtime.clone(), sender));
        let hello = readers.spawn(say_hello(runtime.clone()));
        (Self { readers, hello }, queue)
    }

    /// The subscription is in force: no more greetings.
    pub(crate) fn heard(&self) {
        self.hello.abort();
    }

    /// Waits until a reader ends.
    pub(crate) async fn ended(&mut self) -> Ended {
        loop {
            match self.readers.join_next().await {
                Some(Ok(ended)) => return ended,
                Some(Err(error)) if error.is_cancelled() => {}
                // A reader that panicked, or none left: nothing more will come.
                Some(Err(_)) | None => return Ended::Deaf,
            }
        }
    }
}

async fn read_tasks(runtime: Runtime, sender: mpsc::Sender<Fed>) -> Ended {
    const STREAM: &str = "containerd's events";
    // containerd's server sends the stream's header with its first event, so there is no deadline here:
    // `say_hello` makes sure that there is a first event.
    let mut stream = match runtime.task_events().await {
        Ok(stream) => stream,
        Err(error) => return error.into(),
    };
    loop {
        let envelope = match stream.message().await {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return broken(STREAM, Status::new(Code::Unavailable, "containerd closed it")),
            Err(status) => return broken(STREAM, status),
        };
        let fed = if envelope.namespace == HELLO_NAMESPACE {
            Fed::Live
        } else if let Some(signal) = Signal::decode(&envelope) {
            Fed::Signal(signal)
        } else {
            continue;
        };
        if sender.try_send(fed).is_err() {
            return Ended::Overflow;
        }
    }
}

async fn read_cri(runtime: Runtime, sender: mpsc::Sender<Fed>) -> Ended {
    const STREAM: &str = "the CRI's events";
    // As above; if no pod ever changes, the stream's header never comes, and that is fine.
    let mut stream = match runtime.container_events().await {
        Ok(stream) => stream,
        Err(error) if error.is_unimplemented() => {
            let _ = sender.try_send(Fed::CriUnsupported);
            // The session goes on without this stream.
            return std::future::pending().await;
        }
        Err(error) => return error.into(),
    };
    loop {
        let event = match stream.message().await {
            Ok(Some(event)) => event,
            Ok(None) => return broken(STREAM, Status::new(Code::Unavailable, "containerd closed it")),
            Err(status) => return broken(STREAM, status),
        };
        let deleted = event.container_event_type() == cri::ContainerEventType::ContainerDeletedEvent;
        let fed = Fed::Cri {
            deleted,
            sandbox_id: event
                .pod_sandbox_status
                .map(|status| status.id)
                .unwrap_or_default(),
            container_id: event.container_id,
        };
        if sender.try_send(fed).is_err() {
            return Ended::Overflow;
        }
    }
}

/// Publishes an event of our own until the session has ended or enough have been sent; the reader sees it
/// once the subscription is in force, so a list made afterwards misses nothing.
async fn say_hello(runtime: Runtime) -> Ended {
    let mut pause = HELLO_PAUSE;
    for _ in 0..HELLO_TRIES {
        let mut request = Request::new(PublishRequest {
            topic: HELLO_TOPIC.to_owned(),
            event: Some(Any {
                type_url: "dormouse.hello".to_owned(),
                value: Vec::new(),
            }),
        });
        request.metadata_mut().insert(
            "containerd-namespace",
            MetadataValue::from_static(HELLO_NAMESPACE),
        );
        let published = runtime
            .within("Events.Publish", "the node", Duration::from_secs(5), async {
                EventsClient::new(runtime.channel()).publish(request).await
            })
            .await;
        if let Err(error) = published {
            return error.into();
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(HELLO_LONGEST_PAUSE);
    }
    Ended::Deaf
}

fn broken(stream: &'static str, status: Status) -> Ended {
    Ended::Stream {
        stream,
        status: Box::new(status),
    }
}
