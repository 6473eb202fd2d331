//! An agent of a node that is not there: the node API, over guests that are only noted.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use dormouse_core::Reason;
use dormouse_rpc::{status, v1};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

/// How long a step of a guest takes: what the agent's own part of it takes on an idle node.
pub(super) const WAKES: Duration = Duration::from_millis(5);
/// News that may wait for one who watches; one who is further behind is told so and begins again.
const NEWS: usize = 4096;
/// Messages that wait for the network.
const AHEAD: usize = 64;

/// An agent.
#[derive(Clone)]
pub(super) struct Agent(Arc<Inner>);

struct Inner {
    /// By UID of the pod.
    guests: Mutex<HashMap<String, v1::Pod>>,
    news: broadcast::Sender<v1::WatchResponse>,
}

impl Default for Agent {
    fn default() -> Self {
        Self(Arc::new(Inner {
            guests: Mutex::default(),
            news: broadcast::Sender::new(NEWS),
        }))
    }
}

impl Agent {
    /// A pod runs on its node.
    pub(super) fn born(&self, pod: v1::Pod) {
        let mut guests = self.guests();
        if guests.insert(pod.uid.clone(), pod.clone()).is_none() {
            self.tell(v1::watch_response::Kind::Added, pod);
        }
    }

    /// A pod is gone.
    pub(super) fn gone(&self, uid: &str) {
        let mut guests = self.guests();
        if let Some(pod) = guests.remove(uid) {
            self.tell(v1::watch_response::Kind::Removed, pod);
        }
    }

    /// Whether it knows the pod.
    pub(super) fn knows(&self, uid: &str) -> bool {
        self.guests().contains_key(uid)
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<String, v1::Pod>> {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called with the guests locked, so that news are in the order in which they came about.
    fn tell(&self, kind: v1::watch_response::Kind, pod: v1::Pod) {
        // Nobody may be watching.
        let _ = self.0.news.send(response(kind, Some(pod)));
    }

    /// Changes a guest; the guest as it is then, and whether that is news.
    fn change(
        &self,
        pod: Option<v1::PodRef>,
        act: impl FnOnce(&mut v1::Pod),
    ) -> Result<(v1::Pod, bool), Status> {
        let uid = pod.unwrap_or_default().uid;
        let mut guests = self.guests();
        let guest = guests.get_mut(&uid);
        let guest = guest.ok_or_else(|| status(Reason::PodNotFound, "no such pod on this node"))?;
        let before = guest.clone();
        act(guest);
        let after = guest.clone();
        let is_news = before != after;
        if is_news {
            self.tell(v1::watch_response::Kind::Changed, after.clone());
        }
        Ok((after, is_news))
    }

    /// Brings a guest to a rung.
    async fn step(&self, pod: Option<v1::PodRef>, rung: v1::Rung) -> Result<(v1::Pod, v1::Outcome), Status> {
        tokio::time::sleep(WAKES).await;
        let (pod, moved) = self.change(pod, |guest| guest.rung = rung.into())?;
        let took = if moved { WAKES } else { Duration::ZERO };
        let outcome = v1::Outcome {
            moved,
            took: took.try_into().ok(),
            phases: Vec::new(),
        };
        Ok((pod, outcome))
    }

    /// The guests as they are, and then all news.
    fn watch(&self) -> ReceiverStream<Result<v1::WatchResponse, Status>> {
        use v1::watch_response::Kind;
        let (tell, told) = mpsc::channel(AHEAD);
        let (mut news, there) = {
            let guests = self.guests();
            (
                self.0.news.subscribe(),
                guests.values().cloned().collect::<Vec<_>>(),
            )
        };
        tokio::spawn(async move {
            let existing = there.into_iter().map(|pod| response(Kind::Existing, Some(pod)));
            for one in existing.chain([response(Kind::Synced, None)]) {
                if tell.send(Ok(one)).await.is_err() {
                    return;
                }
            }
            loop {
                let one = match news.recv().await {
                    Ok(one) => one,
                    Err(broadcast::error::RecvError::Lagged(_)) => response(Kind::Lagged, None),
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if tell.send(Ok(one)).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(told)
    }
}

fn response(kind: v1::watch_response::Kind, pod: Option<v1::Pod>) -> v1::WatchResponse {
    v1::WatchResponse {
        kind: kind.into(),
        pod,
        ..v1::WatchResponse::default()
    }
}

impl NamedService for Agent {
    const NAME: &'static str = "dormouse.node.v1.Node";
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

impl Service<http::Request<Body>> for Agent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let agent = self.clone();
        let verb = request.uri().path().rsplit('/').next().unwrap_or_default();
        let verb = verb.to_owned();
        Box::pin(async move {
            let answer = match verb.as_str() {
                "Watch" => {
                    let mut grpc = Grpc::new(ProstCodec::<v1::WatchResponse, v1::WatchRequest>::default());
                    grpc.server_streaming(Watching(agent), request).await
                }
                "SetPolicy" => {
                    serve(request, move |asked: v1::SetPolicyRequest| async move {
                        let (pod, _) = agent.change(asked.pod, |guest| {
                            guest.policy = asked.policy;
                            guest.policy_generation = asked.policy_generation;
                        })?;
                        Ok(v1::SetPolicyResponse { pod: Some(pod) })
                    })
                    .await
                }
                "Freeze" => {
                    serve(request, move |asked: v1::FreezeRequest| async move {
                        let (pod, outcome) = agent.step(asked.pod, v1::Rung::Frozen).await?;
                        Ok(v1::FreezeResponse {
                            pod: Some(pod),
                            outcome: Some(outcome),
                        })
                    })
                    .await
                }
                "Doze" => {
                    serve(request, move |asked: v1::DozeRequest| async move {
                        let (pod, outcome) = agent.step(asked.pod, v1::Rung::Dozing).await?;
                        Ok(v1::DozeResponse {
                            pod: Some(pod),
                            outcome: Some(outcome),
                        })
                    })
                    .await
                }
                "Wake" => {
                    serve(request, move |asked: v1::WakeRequest| async move {
                        let (pod, outcome) = agent.step(asked.pod, v1::Rung::Running).await?;
                        Ok(v1::WakeResponse {
                            pod: Some(pod),
                            outcome: Some(outcome),
                        })
                    })
                    .await
                }
                _ => Status::new(Code::Unimplemented, verb).into_http(),
            };
            Ok(answer)
        })
    }
}

struct Watching(Agent);

impl ServerStreamingService<v1::WatchRequest> for Watching {
    type Response = v1::WatchResponse;
    type ResponseStream = ReceiverStream<Result<v1::WatchResponse, Status>>;
    type Future = Answer<tonic::Response<Self::ResponseStream>>;

    fn call(&mut self, _: tonic::Request<v1::WatchRequest>) -> Self::Future {
        let events = self.0.watch();
        Box::pin(async move { Ok(tonic::Response::new(events)) })
    }
}

/// Answers one call.
async fn serve<A, B, F>(
    request: http::Request<Body>,
    answer: impl FnOnce(A) -> F + Send + 'static,
) -> http::Response<Body>
where
    A: prost::Message + Default + 'static,
    B: prost::Message + Default + 'static,
    F: Future<Output = Result<B, Status>> + Send + 'static,
{
    struct Once<F>(Option<F>);
    impl<A, B, F, G> UnaryService<A> for Once<F>
    where
        F: FnOnce(A) -> G,
        G: Future<Output = Result<B, Status>> + Send + 'static,
    {
        type Response = B;
        type Future = Answer<tonic::Response<B>>;

        fn call(&mut self, request: tonic::Request<A>) -> Self::Future {
            let answer = self.0.take().map(|answer| answer(request.into_inner()));
            Box::pin(async move {
                let answer = answer.ok_or_else(|| Status::internal("asked twice"))?;
                answer.await.map(tonic::Response::new)
            })
        }
    }
    Grpc::new(ProstCodec::<B, A>::default())
        .unary(Once(Some(answer)), request)
        .await
}

#[cfg(test)]
mod tests {
    use dormouse_rpc::v1;
    use tokio_stream::StreamExt;

    use super::Agent;

    fn pod(uid: &str) -> v1::Pod {
        v1::Pod {
            uid: uid.to_owned(),
            rung: v1::Rung::Running.into(),
            ..v1::Pod::default()
        }
    }

    fn at(uid: &str) -> Option<v1::PodRef> {
        Some(v1::PodRef {
            uid: uid.to_owned(),
            ..v1::PodRef::default()
        })
    }

    #[tokio::test]
    async fn who_watches_is_told_of_all_and_of_each_change_once() {
        use v1::watch_response::Kind;
        let agent = Agent::default();
        agent.born(pod("a"));
        let mut events = agent.watch();
        agent.born(pod("b"));
        agent.step(at("b"), v1::Rung::Dozing).await.unwrap();
        // It stands there already.
        let (_, outcome) = agent.step(at("b"), v1::Rung::Dozing).await.unwrap();
        assert!(!outcome.moved);
        agent.gone("a");
        let mut seen = vec![];
        for _ in 0..5 {
            let event = events.next().await.unwrap().unwrap();
            seen.push((event.kind(), event.pod.unwrap_or_default().uid));
        }
        let told = |kind, uid: &str| (kind, uid.to_owned());
        assert_eq!(
            seen,
            [
                told(Kind::Existing, "a"),
                told(Kind::Synced, ""),
                told(Kind::Added, "b"),
                told(Kind::Changed, "b"),
                told(Kind::Removed, "a"),
            ]
        );
        assert!(agent.step(at("a"), v1::Rung::Running).await.is_err());
    }
}
