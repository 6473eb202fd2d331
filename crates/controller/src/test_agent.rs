//! An agent with a store of snapshots, for tests of what is ordered: real gRPC, in this process.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use dormouse_core::Reason;
use dormouse_rpc::{NodeClient, status, v1};
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::Barrier;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::test_server::Server as ApiServer;

/// An agent.
#[derive(Clone, Default)]
pub(crate) struct Agent(pub(crate) Arc<Mutex<Store>>);

/// What it has, and how it is to answer.
#[derive(Default)]
pub(crate) struct Store {
    /// By id.
    pub(crate) snapshots: Vec<v1::Snapshot>,
    /// The orders that led to them, in the same order.
    operations: Vec<String>,
    /// What it was asked.
    pub(crate) log: Vec<String>,
    /// Why it refuses all orders to save, and to wake.
    pub(crate) refuses: Option<Reason>,
    /// Whether it answers no order to wake.
    pub(crate) hangs: bool,
    /// Where it meets somebody before it answers the next order to wake.
    pub(crate) meets: Option<Arc<Barrier>>,
    /// Why it refuses environments.
    pub(crate) refuses_environments: Option<Reason>,
    /// Whether it answers no order to deliver one.
    pub(crate) hangs_on_environments: bool,
    /// Whether it is of a version that does not know them.
    pub(crate) is_old: bool,
    /// Those that it has delivered.
    pub(crate) environments: Vec<v1::DeliverEnvironmentRequest>,
    /// Guests that it moves, by the UID of their pod.
    pub(crate) guests: BTreeMap<String, TestGuest>,
    /// What was in the memory of the guests that became these snapshots.
    pub(crate) saved: BTreeMap<String, String>,
    /// Which pods may be filled from which snapshots.
    pub(crate) grants: BTreeMap<String, String>,
    /// Shared with the API server: what the controller does before it dies.
    pub(crate) counts: Option<ApiServer>,
}

/// A guest, and what is in its memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TestGuest {
    pub(crate) pod: v1::Pod,
    pub(crate) memory: String,
}

impl Agent {
    /// A client that reaches it.
    pub(crate) async fn client(&self) -> NodeClient {
        let (near, far) = tokio::io::duplex(1 << 16);
        let far = futures::stream::iter([Ok::<_, std::io::Error>(far)]);
        tokio::spawn(
            Server::builder()
                .add_service(self.clone())
                .serve_with_incoming(far),
        );
        let near = Mutex::new(Some(near));
        let channel = Endpoint::from_static("http://agent")
            .connect_with_connector(tower::service_fn(move |_| {
                let near = near.lock().unwrap().take();
                async move {
                    near.map(TokioIo::new)
                        .ok_or_else(|| std::io::Error::other("once"))
                }
            }))
            .await
            .unwrap();
        NodeClient::new(channel)
    }

    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    fn create(&self, request: v1::CreateSnapshotRequest) -> Result<v1::CreateSnapshotResponse, Status> {
        let mut store = self.0.lock().unwrap();
        store.log.push("create".to_owned());
        if let Some(reason) = store.refuses {
            return Err(status(reason, "it refuses"));
        }
        let known = store
            .operations
            .iter()
            .position(|operation| *operation == request.operation_id);
        let at = known.unwrap_or_else(|| {
            let snapshot = v1::Snapshot {
                id: format!("snap-{}", store.snapshots.len() + 1),
                pod_uid: request.pod.unwrap_or_default().uid,
                disk_bytes: 4096,
                ..v1::Snapshot::default()
            };
            store.snapshots.push(snapshot);
            store.operations.push(request.operation_id);
            store.snapshots.len() - 1
        });
        Ok(v1::CreateSnapshotResponse {
            snapshot: Some(store.snapshots[at].clone()),
            ..v1::CreateSnapshotResponse::default()
        })
    }

    fn wake(&self, request: v1::WakeRequest) -> Result<v1::WakeResponse, Status> {
        let mut store = self.0.lock().unwrap();
        store.log.push("wake".to_owned());
        if let Some(reason) = store.refuses {
            return Err(status(reason, "it refuses"));
        }
        if let Some(guest) = store.guests.get_mut(&uid_of(request.pod.as_ref())) {
            guest.pod.rung = v1::Rung::Running.into();
            guest.pod.snapshot_id.clear();
            return Ok(v1::WakeResponse {
                pod: Some(guest.pod.clone()),
                ..v1::WakeResponse::default()
            });
        }
        Ok(v1::WakeResponse {
            pod: Some(v1::Pod {
                uid: request.pod.unwrap_or_default().uid,
                namespace: "ns".to_owned(),
                rung: v1::Rung::Running.into(),
                managed: true,
                ..v1::Pod::default()
            }),
            ..v1::WakeResponse::default()
        })
    }

    /// Moves a guest, and says how it is then.
    fn moves(
        &self,
        verb: &str,
        pod: Option<&v1::PodRef>,
        act: impl FnOnce(&mut v1::Pod),
    ) -> Result<Option<v1::Pod>, Status> {
        let mut store = self.0.lock().unwrap();
        store.log.push(verb.to_owned());
        let guest = store.guests.get_mut(&uid_of(pod));
        let guest = guest.ok_or_else(|| status(Reason::PodNotFound, "no such pod"))?;
        act(&mut guest.pod);
        Ok(Some(guest.pod.clone()))
    }

    fn hibernate(&self, request: &v1::HibernateRequest) -> Result<v1::HibernateResponse, Status> {
        let number = self.0.lock().unwrap().saved.len() + 1;
        let mut is_new = false;
        let pod = self.moves("hibernate", request.pod.as_ref(), |pod| {
            is_new = pod.rung() != v1::Rung::Hibernated;
            if is_new {
                pod.rung = v1::Rung::Hibernated.into();
                pod.snapshot_id = format!("snap-{number}");
            }
        })?;
        let pod = pod.unwrap_or_default();
        if is_new {
            let mut store = self.0.lock().unwrap();
            let memory = store.guests[&pod.uid].memory.clone();
            store.saved.insert(pod.snapshot_id.clone(), memory);
            store.snapshots.push(v1::Snapshot {
                id: pod.snapshot_id.clone(),
                pod_uid: pod.uid.clone(),
                ..v1::Snapshot::default()
            });
            store.operations.push(String::new());
        }
        Ok(v1::HibernateResponse {
            snapshot_id: pod.snapshot_id.clone(),
            pod: Some(pod),
            ..v1::HibernateResponse::default()
        })
    }

    fn grant(&self, asked: v1::GrantRestoreRequest) -> Result<v1::GrantRestoreResponse, Status> {
        self.with("grant", &asked.id, |store, _| {
            store.grants.insert(asked.pod_uid, asked.id.clone());
            v1::GrantRestoreResponse {
                snapshot_id: asked.id.clone(),
                ..v1::GrantRestoreResponse::default()
            }
        })
    }

    fn deliver(
        &self,
        request: v1::DeliverEnvironmentRequest,
    ) -> Result<v1::DeliverEnvironmentResponse, Status> {
        let mut store = self.0.lock().unwrap();
        store.log.push(format!("deliver {}", request.container));
        if let Some(reason) = store.refuses_environments {
            return Err(status(reason, "it refuses"));
        }
        store.environments.push(request);
        Ok(v1::DeliverEnvironmentResponse::default())
    }

    fn hangs_on(&self, verb: &str) -> bool {
        let mut store = self.0.lock().unwrap();
        match verb {
            "Wake" => store.hangs,
            "DeliverEnvironment" if store.hangs_on_environments => {
                store.log.push("hangs".to_owned());
                true
            }
            _ => false,
        }
    }

    fn with<T>(&self, verb: &str, id: &str, act: impl FnOnce(&mut Store, usize) -> T) -> Result<T, Status> {
        let mut store = self.0.lock().unwrap();
        store.log.push(verb.to_owned());
        let at = store.snapshots.iter().position(|snapshot| snapshot.id == id);
        let at = at.ok_or_else(|| status(Reason::SnapshotNotFound, "no such snapshot"))?;
        Ok(act(&mut store, at))
    }
}

impl NamedService for Agent {
    const NAME: &'static str = "dormouse.node.v1.Node";
}

impl Service<Request<Body>> for Agent {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let agent = self.clone();
        let verb = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        Box::pin(async move {
            let counts = agent.0.lock().unwrap().counts.clone();
            if counts.is_some_and(|counts| !counts.spend()) {
                return Ok(Status::unavailable("the controller is dead").into_http());
            }
            let answer = match verb.as_str() {
                verb if agent.hangs_on(verb) => std::future::pending().await,
                "DeliverEnvironment" if !agent.0.lock().unwrap().is_old => {
                    serve(request, move |asked| agent.deliver(asked)).await
                }
                "SetPolicy" => {
                    serve(request, move |asked: v1::SetPolicyRequest| {
                        let pod = agent.moves("set policy", asked.pod.as_ref(), |pod| {
                            pod.policy = asked.policy;
                            pod.policy_generation = asked.policy_generation;
                        })?;
                        Ok(v1::SetPolicyResponse { pod })
                    })
                    .await
                }
                "Freeze" => {
                    serve(request, move |asked: v1::FreezeRequest| {
                        let pod = agent.moves("freeze", asked.pod.as_ref(), |pod| {
                            if pod.rung() == v1::Rung::Running {
                                pod.rung = v1::Rung::Frozen.into();
                            }
                        })?;
                        Ok(v1::FreezeResponse {
                            pod,
                            ..v1::FreezeResponse::default()
                        })
                    })
                    .await
                }
                "Doze" => {
                    serve(request, move |asked: v1::DozeRequest| {
                        let pod = agent.moves("doze", asked.pod.as_ref(), |pod| {
                            pod.rung = v1::Rung::Dozing.into();
                        })?;
                        Ok(v1::DozeResponse {
                            pod,
                            ..v1::DozeResponse::default()
                        })
                    })
                    .await
                }
                "Hibernate" => {
                    serve(request, move |asked: v1::HibernateRequest| {
                        agent.hibernate(&asked)
                    })
                    .await
                }
                "GrantRestore" => serve(request, move |asked| agent.grant(asked)).await,
                "Wake" => {
                    let meets = agent.0.lock().unwrap().meets.take();
                    if let Some(meets) = meets {
                        meets.wait().await;
                    }
                    serve(request, move |asked| agent.wake(asked)).await
                }
                "CreateSnapshot" => serve(request, move |asked| agent.create(asked)).await,
                "GetSnapshot" => {
                    serve(request, move |asked: v1::GetSnapshotRequest| {
                        agent.with("get", &asked.id, |store, at| v1::GetSnapshotResponse {
                            snapshot: Some(store.snapshots[at].clone()),
                            ..v1::GetSnapshotResponse::default()
                        })
                    })
                    .await
                }
                "PinSnapshot" => {
                    serve(request, move |asked: v1::PinSnapshotRequest| {
                        agent.with("pin", &asked.id, |store, at| {
                            store.snapshots[at].pinned = true;
                            v1::PinSnapshotResponse::default()
                        })
                    })
                    .await
                }
                "RemoveSnapshot" => {
                    serve(request, move |asked: v1::RemoveSnapshotRequest| {
                        agent.with("remove", &asked.id, |store, at| {
                            store.snapshots.remove(at);
                            store.operations.remove(at);
                            v1::RemoveSnapshotResponse::default()
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

fn uid_of(pod: Option<&v1::PodRef>) -> String {
    pod.map(|pod| pod.uid.clone()).unwrap_or_default()
}

/// Answers one call.
async fn serve<A, B>(
    request: Request<Body>,
    answer: impl FnOnce(A) -> Result<B, Status> + Send + 'static,
) -> Response<Body>
where
    A: prost::Message + Default + 'static,
    B: prost::Message + Default + 'static,
{
    struct Once<F>(Option<F>);
    impl<A, B, F> UnaryService<A> for Once<F>
    where
        F: FnOnce(A) -> Result<B, Status>,
    {
        type Response = B;
        type Future = Ready<Result<tonic::Response<B>, Status>>;

        fn call(&mut self, request: tonic::Request<A>) -> Self::Future {
            let answer = self.0.take().unwrap();
            ready(answer(request.into_inner()).map(tonic::Response::new))
        }
    }
    Grpc::new(ProstCodec::<B, A>::default())
        .unary(Once(Some(answer)), request)
        .await
}
