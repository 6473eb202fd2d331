//! The service's verbs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use dormouse_core::{Order, Policy, Reason, Rung, Variables, WakeSource};
use dormouse_rpc::v1::{self, node_server::Node};
use dormouse_snapshot::SnapshotId;
use futures::future::join_all;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::messages;
use super::snapshots::{self, Streamed, refused};
use super::watch::{Filter, WatchStream, stream};
use crate::actor::{GuestUse, Handle, Message, OrderDone, OrderFailed, is_life};
use crate::context::Context;
use crate::facts::NodeFacts;
use crate::pods::Pods;
use crate::view::PodView;

/// The longest operation id, in bytes.
const MAX_OPERATION_ID: usize = 128;

/// The longest time for which a guest may be wanted to be quiet.
const MAX_QUIET: Duration = Duration::from_secs(10);

/// Serves `dormouse.node.v1.Node`.
#[derive(Debug, Clone)]
pub struct NodeService {
    ctx: Arc<Context>,
    pods: Pods,
    facts: Arc<NodeFacts>,
    closing: Arc<AtomicBool>,
    started: SystemTime,
}

impl NodeService {
    /// A service over these pods.
    #[must_use]
    pub fn new(ctx: Arc<Context>, pods: Pods, facts: Arc<NodeFacts>) -> Self {
        Self {
            ctx,
            pods,
            facts,
            closing: Arc::default(),
            started: SystemTime::now(),
        }
    }

    /// Takes no new orders from now on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn find(&self, pod: Option<v1::PodRef>) -> Result<Handle, Status> {
        self.pods
            .find(&messages::wanted(pod))
            .map_err(|error| messages::not_found(&error))
    }

    fn open(&self) -> Result<(), Status> {
        if self.closing.load(Ordering::Acquire) {
            return Err(dormouse_rpc::status(
                Reason::ShuttingDown,
                "the agent is shutting down; repeat the order when it is back",
            ));
        }
        Ok(())
    }

    async fn order(
        &self,
        pod: Option<v1::PodRef>,
        order: Order,
        operation_id: String,
    ) -> Result<(v1::Pod, v1::Outcome), Status> {
        let done = self.done(pod, order, operation_id).await?;
        Ok((messages::pod(&done.pod), messages::outcome(&done)))
    }

    /// Gives an order and waits until it is done.
    async fn done(
        &self,
        pod: Option<v1::PodRef>,
        order: Order,
        operation_id: String,
    ) -> Result<OrderDone, Status> {
        self.open()?;
        if operation_id.len() > MAX_OPERATION_ID {
            return Err(dormouse_rpc::status(
                Reason::InvalidRequest,
                "the operation id is longer than 128 bytes",
            ));
        }
        let handle = self.find(pod)?;
        let (answer, answered) = oneshot::channel();
        self.ask(
            &handle,
            Message::Order {
                order,
                operation_id,
                answer,
            },
            answered,
        )
        .await
    }

    /// Sees to it that nothing goes on in a guest for so long, or refuses.
    async fn quiet(&self, pod: Option<&v1::PodRef>, quiet: Option<v1::Quiet>) -> Result<(), Status> {
        let Some(v1::Quiet { time, of_execs_only }) = quiet else {
            return Ok(());
        };
        let time = time.and_then(|time| Duration::try_from(time).ok());
        let Some(time) = time.filter(|time| !time.is_zero() && *time <= MAX_QUIET) else {
            return Err(dormouse_rpc::status(
                Reason::InvalidRequest,
                "quiet.time is to be more than 0, and 10 s at most",
            ));
        };
        self.open()?;
        let handle = self.find(pod.cloned())?;
        let (began, before) = (Instant::now(), self.look_at_use(&handle).await?);
        tokio::time::sleep(time).await;
        let (elapsed, after) = (began.elapsed(), self.look_at_use(&handle).await?);
        let Some((before, after)) = before.zip(after) else {
            return Ok(());
        };
        let used = after.cpu_nanos.saturating_sub(before.cpu_nanos);
        let what = if after.execs > 0 {
            format!("runs {} execs", after.execs)
        } else if !of_execs_only && is_life(used, elapsed, self.ctx.config.idle.cpu_floor_millicores) {
            format!(
                "has used {} ms of CPU time in {} ms",
                used / 1_000_000,
                elapsed.as_millis()
            )
        } else {
            return Ok(());
        };
        let view = handle.view();
        Err(dormouse_rpc::status(
            Reason::NotQuiet,
            format!("pod {}/{} {what}", view.namespace, view.name),
        ))
    }

    async fn look_at_use(&self, handle: &Handle) -> Result<Option<GuestUse>, Status> {
        let (answer, answered) = oneshot::channel();
        self.ask(handle, Message::LookAtUse { answer }, answered).await
    }

    fn snapshot(&self, id: &str) -> Result<SnapshotId, Status> {
        self.ctx.snapshots.find(id).map_err(|error| refused(&error))
    }

    /// Tells an actor something and waits for the answer, within the deadline.
    async fn ask<T>(
        &self,
        handle: &Handle,
        message: Message,
        answer: oneshot::Receiver<Result<T, OrderFailed>>,
    ) -> Result<T, Status> {
        let pod = handle.view();
        let gone = || {
            dormouse_rpc::status(
                Reason::PodGone,
                format!(
                    "pod {}/{} went away while the order was carried out",
                    pod.namespace, pod.name
                ),
            )
        };
        let asked = async {
            handle.tell(message).await.map_err(|_| gone())?;
            answer
                .await
                .map_err(|_| gone())?
                .map_err(|error| messages::failed(&error))
        };
        tokio::time::timeout(self.ctx.config.api.order_deadline, asked).await.unwrap_or_else(|_| {
            Err(dormouse_rpc::status(
                Reason::DeadlineExceeded,
                format!(
                    "the order on pod {}/{} was not done in time; it may still be carried out, see `dormouse get`",
                    pod.namespace, pod.name
                ),
            ))
        })
    }

    /// Has every pod look at its memory, so that what is shown is true now.
    async fn refresh(&self, handles: &[Handle]) {
        let asked = handles.iter().map(|handle| async move {
            let (done, ready) = oneshot::channel();
            if handle.try_tell(Message::Refresh(done)).is_ok() {
                let _ = ready.await;
            }
        });
        // A pod that is busy shows what it last knew.
        let _ = tokio::time::timeout(Duration::from_millis(500), join_all(asked)).await;
    }

    /// The pods as they are now.
    pub async fn views(&self) -> Vec<Arc<PodView>> {
        self.refresh(&self.pods.all()).await;
        self.pods.views()
    }
}

fn policy(policy: Option<v1::Policy>) -> Result<Option<Policy>, Status> {
    policy
        .map(|policy| {
            Policy::try_from(policy)
                .map_err(|error| dormouse_rpc::status(Reason::InvalidRequest, format!("policy: {error}")))
        })
        .transpose()
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn get_node(
        &self,
        _: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        let views = self.views().await;
        let swap = self.ctx.swap.figures();
        let (steps_running, steps_waiting) = self.ctx.gate.load();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (shells, shell_bytes) = shells(&views);
        let mut pods = std::collections::HashMap::new();
        for view in &views {
            *pods.entry(view.rung.as_str().to_owned()).or_insert(0_u32) += 1;
        }
        let node = v1::get_node_response::Node {
            name: self.ctx.config.node_name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_version: self.facts.runtime_version.clone(),
            capabilities: self
                .facts
                .capabilities(&self.ctx)
                .into_iter()
                .map(|(name, able)| messages::capability(name, able))
                .collect(),
            memory_total_bytes: crate::memory::total().unwrap_or(0),
            memory_available_bytes: crate::memory::available().unwrap_or(0),
            swap_total_bytes: swap.total,
            swap_free_bytes: swap.free,
            zram_used_bytes: swap.zram_used,
            pods,
            memory_saved_bytes: saved(&views),
            cgroup_version: self.facts.cgroup_version,
            steps_running: count(steps_running),
            steps_waiting: count(steps_waiting),
            started: Some(self.started.into()),
            runscs: self
                .ctx
                .snapshots
                .releases()
                .await
                .into_iter()
                .map(messages::runsc)
                .collect(),
            shells: count(shells),
            shell_bytes,
            shells_max: count(self.ctx.config.shells.max),
        };
        Ok(Response::new(v1::GetNodeResponse { node: Some(node) }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let v1::ListRequest {
            managed_only,
            label_selector,
            namespace,
        } = request.into_inner();
        let filter = Filter::new(managed_only, namespace, &label_selector)?;
        let views = self.views().await;
        let pods = views
            .iter()
            .filter(|view| filter.matches(view))
            .map(|view| messages::pod(view))
            .collect();
        Ok(Response::new(v1::ListResponse { pods }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let handle = self.find(request.into_inner().pod)?;
        self.refresh(std::slice::from_ref(&handle)).await;
        Ok(Response::new(v1::GetResponse {
            pod: Some(messages::pod(&handle.view())),
        }))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let v1::WatchRequest {
            managed_only,
            label_selector,
            namespace,
        } = request.into_inner();
        let filter = Filter::new(managed_only, namespace, &label_selector)?;
        // First the news, then the pods: what happens in between is told twice and not missed.
        let news = self.ctx.watch();
        Ok(Response::new(stream(filter, self.pods.views(), news)))
    }

    async fn manage(
        &self,
        request: Request<v1::ManageRequest>,
    ) -> Result<Response<v1::ManageResponse>, Status> {
        self.open()?;
        let request = request.into_inner();
        let handle = self.find(request.pod)?;
        let policy = policy(request.policy)?.map(|policy| (policy, request.policy_generation));
        let (answer, answered) = oneshot::channel();
        let message = Message::Manage {
            managed: request.managed,
            policy,
            answer,
        };
        let view = self.ask(&handle, message, answered).await?;
        Ok(Response::new(v1::ManageResponse {
            pod: Some(messages::pod(&view)),
        }))
    }

    async fn set_policy(
        &self,
        request: Request<v1::SetPolicyRequest>,
    ) -> Result<Response<v1::SetPolicyResponse>, Status> {
        self.open()?;
        let request = request.into_inner();
        let Some(policy) = policy(request.policy)? else {
            return Err(dormouse_rpc::status(
                Reason::InvalidRequest,
                "the request holds no policy",
            ));
        };
        let handle = self.find(request.pod)?;
        let (answer, answered) = oneshot::channel();
        let message = Message::SetPolicy {
            policy,
            generation: request.policy_generation,
            answer,
        };
        let view = self.ask(&handle, message, answered).await?;
        Ok(Response::new(v1::SetPolicyResponse {
            pod: Some(messages::pod(&view)),
        }))
    }

    async fn deliver_environment(
        &self,
        request: Request<v1::DeliverEnvironmentRequest>,
    ) -> Result<Response<v1::DeliverEnvironmentResponse>, Status> {
        self.open()?;
        let began = Instant::now();
        let request = request.into_inner();
        let variables = request.variables.into_iter();
        let variables = Variables::new(
            variables
                .map(|variable| (variable.name, variable.value))
                .collect(),
        )
        .map_err(|error| dormouse_rpc::status(Reason::InvalidRequest, error.to_string()))?;
        let handle = self.find(request.pod)?;
        let (answer, answered) = oneshot::channel();
        let message = Message::Deliver {
            container: request.container,
            variables,
            answer,
        };
        let view = self.ask(&handle, message, answered).await?;
        Ok(Response::new(v1::DeliverEnvironmentResponse {
            pod: Some(messages::pod(&view)),
            took: Some(messages::duration(began.elapsed())),
        }))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FreezeResponse>, Status> {
        let request = request.into_inner();
        self.quiet(request.pod.as_ref(), request.quiet).await?;
        let (pod, outcome) = self
            .order(request.pod, Order::Freeze, request.operation_id)
            .await?;
        Ok(Response::new(v1::FreezeResponse {
            pod: Some(pod),
            outcome: Some(outcome),
        }))
    }

    async fn doze(&self, request: Request<v1::DozeRequest>) -> Result<Response<v1::DozeResponse>, Status> {
        let request = request.into_inner();
        self.quiet(request.pod.as_ref(), request.quiet).await?;
        let (pod, outcome) = self.order(request.pod, Order::Doze, request.operation_id).await?;
        Ok(Response::new(v1::DozeResponse {
            pod: Some(pod),
            outcome: Some(outcome),
        }))
    }

    async fn wake(&self, request: Request<v1::WakeRequest>) -> Result<Response<v1::WakeResponse>, Status> {
        let request = request.into_inner();
        let source = match request.source.as_str() {
            "" | "Api" => WakeSource::Api,
            "Request" => WakeSource::Request,
            "Schedule" => WakeSource::Schedule,
            _ => {
                return Err(dormouse_rpc::status(
                    Reason::InvalidRequest,
                    "source must be Api, Request or Schedule; the other sources are the node's own",
                ));
            }
        };
        let (pod, outcome) = self
            .order(request.pod, Order::Wake(source), request.operation_id)
            .await?;
        Ok(Response::new(v1::WakeResponse {
            pod: Some(pod),
            outcome: Some(outcome),
        }))
    }

    async fn hibernate(
        &self,
        request: Request<v1::HibernateRequest>,
    ) -> Result<Response<v1::HibernateResponse>, Status> {
        let request = request.into_inner();
        self.quiet(request.pod.as_ref(), request.quiet).await?;
        let done = self
            .done(request.pod, Order::Hibernate, request.operation_id)
            .await?;
        Ok(Response::new(v1::HibernateResponse {
            pod: Some(messages::pod(&done.pod)),
            outcome: Some(messages::outcome(&done)),
            snapshot_id: done.snapshot.unwrap_or_default(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let done = self
            .done(request.pod, Order::Snapshot, request.operation_id)
            .await?;
        let id = self.snapshot(done.snapshot.as_deref().unwrap_or_default())?;
        let described = snapshots::describe(&self.ctx.snapshots, id)
            .await
            .map_err(|error| refused(&error))?;
        Ok(Response::new(v1::CreateSnapshotResponse {
            pod: Some(messages::pod(&done.pod)),
            outcome: Some(messages::outcome(&done)),
            snapshot: described.snapshot,
        }))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let listed = snapshots::list(&self.ctx.snapshots, request.into_inner()).await;
        listed.map(Response::new).map_err(|error| refused(&error))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::GetSnapshotResponse>, Status> {
        let id = self.snapshot(&request.into_inner().id)?;
        let described = snapshots::describe(&self.ctx.snapshots, id).await;
        described.map(Response::new).map_err(|error| refused(&error))
    }

    type VerifySnapshotStream = Streamed<v1::VerifySnapshotResponse>;

    async fn verify_snapshot(
        &self,
        request: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        self.open()?;
        let id = self.snapshot(&request.into_inner().id)?;
        Ok(Response::new(snapshots::verify(&self.ctx.snapshots, id)))
    }

    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<v1::DiffSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let (a, b) = (self.snapshot(&request.a)?, self.snapshot(&request.b)?);
        let diff = snapshots::diff(&self.ctx.snapshots, a, b).await;
        diff.map(Response::new).map_err(|error| refused(&error))
    }

    async fn pin_snapshot(
        &self,
        request: Request<v1::PinSnapshotRequest>,
    ) -> Result<Response<v1::PinSnapshotResponse>, Status> {
        self.open()?;
        let id = self.snapshot(&request.into_inner().id)?;
        let pinned = snapshots::pin(&self.ctx.snapshots, id, true).await;
        let snapshot = Some(pinned.map_err(|error| refused(&error))?);
        Ok(Response::new(v1::PinSnapshotResponse { snapshot }))
    }

    async fn unpin_snapshot(
        &self,
        request: Request<v1::UnpinSnapshotRequest>,
    ) -> Result<Response<v1::UnpinSnapshotResponse>, Status> {
        self.open()?;
        let id = self.snapshot(&request.into_inner().id)?;
        let unpinned = snapshots::pin(&self.ctx.snapshots, id, false).await;
        let snapshot = Some(unpinned.map_err(|error| refused(&error))?);
        Ok(Response::new(v1::UnpinSnapshotResponse { snapshot }))
    }

    async fn remove_snapshot(
        &self,
        request: Request<v1::RemoveSnapshotRequest>,
    ) -> Result<Response<v1::RemoveSnapshotResponse>, Status> {
        self.open()?;
        let request = request.into_inner();
        let id = self.snapshot(&request.id)?;
        let pods = self.pods.clone();
        let known = move |uid: &str| pods.views().iter().any(|view| view.uid == uid);
        let removed = snapshots::remove(&self.ctx.snapshots, id, request.force, known).await;
        removed.map(Response::new).map_err(|error| refused(&error))
    }

    async fn prune_snapshots(
        &self,
        request: Request<v1::PruneSnapshotsRequest>,
    ) -> Result<Response<v1::PruneSnapshotsResponse>, Status> {
        self.open()?;
        let pruned = snapshots::prune(&self.ctx.snapshots, request.into_inner()).await;
        pruned.map(Response::new).map_err(|error| refused(&error))
    }

    type FsckSnapshotsStream = Streamed<v1::FsckSnapshotsResponse>;

    async fn fsck_snapshots(
        &self,
        request: Request<v1::FsckSnapshotsRequest>,
    ) -> Result<Response<Self::FsckSnapshotsStream>, Status> {
        self.open()?;
        let stream = snapshots::fsck(&self.ctx.snapshots, request.into_inner());
        Ok(Response::new(stream))
    }

    type ExportSnapshotStream = Streamed<v1::ExportSnapshotResponse>;

    async fn export_snapshot(
        &self,
        request: Request<v1::ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportSnapshotStream>, Status> {
        self.open()?;
        let id = self.snapshot(&request.into_inner().id)?;
        Ok(Response::new(snapshots::export(&self.ctx.snapshots, id)))
    }

    async fn import_snapshot(
        &self,
        request: Request<Streaming<v1::ImportSnapshotRequest>>,
    ) -> Result<Response<v1::ImportSnapshotResponse>, Status> {
        self.open()?;
        let snapshot = snapshots::import(&self.ctx.snapshots, request.into_inner()).await?;
        Ok(Response::new(v1::ImportSnapshotResponse {
            snapshot: Some(snapshot),
        }))
    }

    async fn grant_restore(
        &self,
        request: Request<v1::GrantRestoreRequest>,
    ) -> Result<Response<v1::GrantRestoreResponse>, Status> {
        self.open()?;
        let request = request.into_inner();
        let id = self.snapshot(&request.id)?;
        let granted = snapshots::grant(&self.ctx.snapshots, id, request).await;
        granted.map(Response::new).map_err(|error| refused(&error))
    }

    async fn revoke_restore(
        &self,
        request: Request<v1::RevokeRestoreRequest>,
    ) -> Result<Response<v1::RevokeRestoreResponse>, Status> {
        let uid = request.into_inner().pod_uid;
        let revoked = self.ctx.snapshots.revoke_grant(&uid);
        revoked
            .map(|revoked| Response::new(v1::RevokeRestoreResponse { revoked }))
            .map_err(|error| refused(&error))
    }
}

/// How many shells stand by, and what they have in memory, in bytes.
pub(crate) fn shells(views: &[Arc<PodView>]) -> (usize, u64) {
    let shells = || views.iter().filter_map(|view| view.shell);
    (shells().count(), shells().map(|shell| shell.bytes).sum())
}

/// Bytes that sleepers had resident before and have not now.
pub(crate) fn saved(views: &[Arc<PodView>]) -> u64 {
    views
        .iter()
        .filter(|view| view.rung >= Rung::Dozing)
        .map(|view| view.resident_before.saturating_sub(view.resident))
        .sum()
}
