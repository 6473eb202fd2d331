//! The built binary against an agent that is a stub of `dormouse-rpc` in this process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_core::Reason;
use dormouse_rpc::v1::node_server::{Node, NodeServer};
use dormouse_rpc::v1::watch_response::Kind;
use dormouse_rpc::{status, v1};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What the stub was asked, and how it is to answer.
#[derive(Debug, Default)]
struct Seen {
    lists: Vec<v1::ListRequest>,
    wakes: Vec<v1::WakeRequest>,
    freezes: Vec<v1::FreezeRequest>,
    manages: Vec<v1::ManageRequest>,
    policies: Vec<v1::SetPolicyRequest>,
    hibernates: Vec<v1::HibernateRequest>,
    removes: Vec<v1::RemoveSnapshotRequest>,
    fscks: Vec<v1::FsckSnapshotsRequest>,
    /// Namespace and bytes of the archive that came in.
    imported: (String, Vec<u8>),
    /// How many wakes break without a reason before one is answered.
    break_wakes: usize,
    /// Pods, by UID, whose wake is refused.
    refuse: HashMap<String, Reason>,
    at_once: usize,
    most_at_once: usize,
}

#[derive(Debug, Clone, Default)]
struct Stub(Arc<Mutex<Seen>>);

fn pod(namespace: &str, name: &str, uid: &str, managed: bool, rung: v1::Rung) -> v1::Pod {
    v1::Pod {
        namespace: namespace.into(),
        name: name.into(),
        uid: uid.into(),
        sandbox_id: format!("{uid}{}", "f".repeat(60)),
        runtime: "gvisor".into(),
        handler: "dormouse-gvisor".into(),
        managed,
        rung: rung.into(),
        resident_bytes: 5 << 20,
        ..Default::default()
    }
}

fn pods() -> Vec<v1::Pod> {
    vec![
        pod("default", "api", "aaaa1", true, v1::Rung::Dozing),
        pod("default", "worker", "bbbb2", true, v1::Rung::Running),
        pod("other", "api", "cccc3", true, v1::Rung::Frozen),
        pod("other", "free", "dddd4", false, v1::Rung::Running),
    ]
}

fn known(reference: Option<v1::PodRef>) -> Result<v1::Pod, Status> {
    let reference = reference.unwrap_or_default();
    pods()
        .into_iter()
        .find(|pod| pod.uid == reference.uid && pod.sandbox_id == reference.sandbox_id)
        .ok_or_else(|| status(Reason::PodNotFound, "no such pod"))
}

const SNAPSHOT: &str = "0192f4a0-0000-7000-8000-0000deadbeef";

/// Longer than one message, so that pieces have to be put together.
fn archive() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| n as u8).collect()
}

fn snapshot(id: &str) -> Result<v1::Snapshot, Status> {
    if id.len() < 8 || !SNAPSHOT.starts_with(id) {
        return Err(status(Reason::SnapshotNotFound, "no such snapshot"));
    }
    Ok(v1::Snapshot {
        id: SNAPSHOT.into(),
        namespace: "default".into(),
        pod: "api".into(),
        taken: "Hibernate".into(),
        image_bytes: 64 << 20,
        disk_bytes: 40 << 20,
        state: "Ok".into(),
        held_by: vec!["aaaa1".into()],
        ..Default::default()
    })
}

fn outcome(nanos: i32) -> v1::Outcome {
    v1::Outcome {
        moved: true,
        took: Some(prost_types::Duration { seconds: 0, nanos }),
        phases: vec![],
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Watch = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Node for Stub {
    type WatchStream = Watch;

    async fn get_node(
        &self,
        _: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        let node = v1::get_node_response::Node {
            name: "node-1".into(),
            agent_version: "9.9.9".into(),
            runtime_version: "containerd 2.3.7".into(),
            memory_saved_bytes: 143 << 20,
            pods: [("Dozing".to_owned(), 1), ("Running".to_owned(), 2)].into(),
            cgroup_version: 1,
            runscs: vec![v1::get_node_response::Runsc {
                version: "release-1".into(),
                path: "/opt/runsc".into(),
                origin: "Kept".into(),
                until: "2027-03-01".into(),
                days_left: Some(12),
                snapshots: 3,
                pods: 2,
                ..Default::default()
            }],
            ..Default::default()
        };
        Ok(Response::new(v1::GetNodeResponse { node: Some(node) }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let request = request.into_inner();
        let pods = pods()
            .into_iter()
            .filter(|pod| !request.managed_only || pod.managed)
            .filter(|pod| request.namespace.is_empty() || pod.namespace == request.namespace)
            .collect();
        if request.label_selector == "bad selector" {
            return Err(status(
                Reason::InvalidRequest,
                "label selector \"bad selector\" cannot be read",
            ));
        }
        self.0.lock().unwrap().lists.push(request);
        Ok(Response::new(v1::ListResponse { pods }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(v1::GetResponse {
            pod: Some(known(request.into_inner().pod)?),
        }))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Watch>, Status> {
        let event = |kind: Kind, pod: Option<v1::Pod>| v1::WatchResponse {
            kind: kind.into(),
            pod,
            at: Some(prost_types::Timestamp {
                seconds: 1_795_328_036,
                nanos: 0,
            }),
            ..Default::default()
        };
        let changed = v1::WatchResponse {
            from: v1::Rung::Dozing.into(),
            took: Some(prost_types::Duration {
                seconds: 0,
                nanos: 12_300_000,
            }),
            reason: "Ordered".into(),
            ..event(
                Kind::Changed,
                Some(pod("default", "api", "aaaa1", true, v1::Rung::Running)),
            )
        };
        let events = vec![
            Ok(event(Kind::Existing, pods().into_iter().next())),
            Ok(event(Kind::Synced, None)),
            Ok(changed),
        ];
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn manage(
        &self,
        request: Request<v1::ManageRequest>,
    ) -> Result<Response<v1::ManageResponse>, Status> {
        let request = request.into_inner();
        let pod = v1::Pod {
            managed: request.managed,
            ..known(request.pod.clone())?
        };
        self.0.lock().unwrap().manages.push(request);
        Ok(Response::new(v1::ManageResponse { pod: Some(pod) }))
    }

    async fn set_policy(
        &self,
        request: Request<v1::SetPolicyRequest>,
    ) -> Result<Response<v1::SetPolicyResponse>, Status> {
        let request = request.into_inner();
        let pod = known(request.pod.clone())?;
        self.0.lock().unwrap().policies.push(request);
        Ok(Response::new(v1::SetPolicyResponse { pod: Some(pod) }))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FreezeResponse>, Status> {
        let request = request.into_inner();
        let pod = v1::Pod {
            rung: v1::Rung::Frozen.into(),
            ..known(request.pod.clone())?
        };
        {
            let mut seen = self.0.lock().unwrap();
            seen.freezes.push(request);
            seen.at_once += 1;
            seen.most_at_once = seen.most_at_once.max(seen.at_once);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.0.lock().unwrap().at_once -= 1;
        let outcome = v1::Outcome {
            moved: true,
            took: Some(prost_types::Duration {
                seconds: 0,
                nanos: 812_000,
            }),
            phases: vec![v1::outcome::Phase {
                name: "stop".into(),
                took: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 700_000,
                }),
            }],
        };
        Ok(Response::new(v1::FreezeResponse {
            pod: Some(pod),
            outcome: Some(outcome),
        }))
    }

    async fn doze(&self, _: Request<v1::DozeRequest>) -> Result<Response<v1::DozeResponse>, Status> {
        // Longer than any --timeout of the tests.
        std::future::pending().await
    }

    async fn deliver_environment(
        &self,
        _: Request<v1::DeliverEnvironmentRequest>,
    ) -> Result<Response<v1::DeliverEnvironmentResponse>, Status> {
        Err(status(
            Reason::EnvironmentNotTaken,
            "only the controller asks for it",
        ))
    }

    async fn wake(&self, request: Request<v1::WakeRequest>) -> Result<Response<v1::WakeResponse>, Status> {
        let request = request.into_inner();
        let pod = known(request.pod.clone())?;
        let mut seen = self.0.lock().unwrap();
        seen.wakes.push(request);
        if seen.break_wakes > 0 {
            seen.break_wakes -= 1;
            return Err(Status::unavailable("connection lost"));
        }
        if let Some(reason) = seen.refuse.get(&pod.uid) {
            return Err(status(*reason, "not now"));
        }
        let moved = pod.rung() != v1::Rung::Running;
        let pod = v1::Pod {
            rung: v1::Rung::Running.into(),
            ..pod
        };
        let took = Some(prost_types::Duration {
            seconds: 0,
            nanos: 12_345_000,
        });
        Ok(Response::new(v1::WakeResponse {
            pod: Some(pod),
            outcome: Some(v1::Outcome {
                moved,
                took,
                phases: vec![],
            }),
        }))
    }

    async fn hibernate(
        &self,
        request: Request<v1::HibernateRequest>,
    ) -> Result<Response<v1::HibernateResponse>, Status> {
        let request = request.into_inner();
        let pod = v1::Pod {
            rung: v1::Rung::Hibernated.into(),
            ..known(request.pod.clone())?
        };
        self.0.lock().unwrap().hibernates.push(request);
        Ok(Response::new(v1::HibernateResponse {
            pod: Some(pod),
            outcome: Some(outcome(812_000_000)),
            snapshot_id: SNAPSHOT.into(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        let pod = known(request.into_inner().pod)?;
        Ok(Response::new(v1::CreateSnapshotResponse {
            pod: Some(pod),
            outcome: Some(outcome(60_000_000)),
            snapshot: Some(snapshot(SNAPSHOT)?),
        }))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let snapshots = snapshot(SNAPSHOT)
            .into_iter()
            .filter(|s| request.namespace.is_empty() || s.namespace == request.namespace)
            .filter(|s| request.pod.is_empty() || s.pod == request.pod)
            .collect();
        Ok(Response::new(v1::ListSnapshotsResponse {
            snapshots,
            store_bytes: 40 << 20,
            free_bytes: 9 << 30,
        }))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::GetSnapshotResponse>, Status> {
        Ok(Response::new(v1::GetSnapshotResponse {
            snapshot: Some(snapshot(&request.into_inner().id)?),
            arch: "x86_64".into(),
            restore: Some(v1::Capability {
                name: "restore".into(),
                available: true,
                ..Default::default()
            }),
            ..Default::default()
        }))
    }

    type VerifySnapshotStream = Streamed<v1::VerifySnapshotResponse>;

    async fn verify_snapshot(
        &self,
        request: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        let id = request.into_inner().id;
        let steps = if id.starts_with("damaged") {
            vec![
                Ok(v1::VerifySnapshotResponse {
                    total_bytes: 5,
                    ..Default::default()
                }),
                Err(status(Reason::SnapshotDamaged, "pages.img differs")),
            ]
        } else if id.starts_with("brokenoff") {
            vec![Ok(v1::VerifySnapshotResponse::default())]
        } else {
            let total_bytes = snapshot(&id)?.image_bytes;
            vec![Ok(v1::VerifySnapshotResponse {
                done_bytes: total_bytes,
                total_bytes,
                whole: true,
            })]
        };
        Ok(Response::new(Box::pin(tokio_stream::iter(steps))))
    }

    async fn diff_snapshots(
        &self,
        _: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<v1::DiffSnapshotsResponse>, Status> {
        Ok(Response::new(v1::DiffSnapshotsResponse {
            files: vec![v1::diff_snapshots_response::File {
                name: "pages.img".into(),
                same_bytes: 60 << 20,
                changed_bytes: 4 << 20,
                ..Default::default()
            }],
            facts: vec!["pod: default/api and default/worker".into()],
        }))
    }

    async fn pin_snapshot(
        &self,
        request: Request<v1::PinSnapshotRequest>,
    ) -> Result<Response<v1::PinSnapshotResponse>, Status> {
        Ok(Response::new(v1::PinSnapshotResponse {
            snapshot: Some(snapshot(&request.into_inner().id)?),
        }))
    }

    async fn unpin_snapshot(
        &self,
        request: Request<v1::UnpinSnapshotRequest>,
    ) -> Result<Response<v1::UnpinSnapshotResponse>, Status> {
        Ok(Response::new(v1::UnpinSnapshotResponse {
            snapshot: Some(snapshot(&request.into_inner().id)?),
        }))
    }

    async fn remove_snapshot(
        &self,
        request: Request<v1::RemoveSnapshotRequest>,
    ) -> Result<Response<v1::RemoveSnapshotResponse>, Status> {
        let request = request.into_inner();
        let found = snapshot(&request.id)?;
        let force = request.force;
        self.0.lock().unwrap().removes.push(request);
        if !force {
            return Err(status(Reason::SnapshotHeld, "it is the only state of aaaa1"));
        }
        Ok(Response::new(v1::RemoveSnapshotResponse {
            id: found.id,
            freed_bytes: found.disk_bytes,
        }))
    }

    async fn prune_snapshots(
        &self,
        request: Request<v1::PruneSnapshotsRequest>,
    ) -> Result<Response<v1::PruneSnapshotsResponse>, Status> {
        assert!(request.into_inner().dry_run);
        Ok(Response::new(v1::PruneSnapshotsResponse {
            removed: vec![v1::prune_snapshots_response::Removed {
                id: SNAPSHOT.into(),
                bytes: 40 << 20,
                why: "the node has too many".into(),
            }],
            freed_bytes: 40 << 20,
            unmet: vec![],
        }))
    }

    type FsckSnapshotsStream = Streamed<v1::FsckSnapshotsResponse>;

    async fn fsck_snapshots(
        &self,
        request: Request<v1::FsckSnapshotsRequest>,
    ) -> Result<Response<Self::FsckSnapshotsStream>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().fscks.push(request);
        let progress = v1::FsckSnapshotsResponse {
            done_bytes: 1,
            total_bytes: 2,
            ..Default::default()
        };
        let last = v1::FsckSnapshotsResponse {
            whole: 3,
            finished: true,
            findings: vec![v1::fsck_snapshots_response::Finding {
                path: "/store/snapshots/x".into(),
                class: "Torn".into(),
                message: "no manifest".into(),
                action: "move it to quarantine".into(),
                done: request.repair,
                ..Default::default()
            }],
            ..Default::default()
        };
        let steps = [progress, last].into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(steps))))
    }

    type ExportSnapshotStream = Streamed<v1::ExportSnapshotResponse>;

    async fn export_snapshot(
        &self,
        request: Request<v1::ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportSnapshotStream>, Status> {
        let id = request.into_inner().id;
        let mut pieces: Vec<_> = archive()
            .chunks(1_000_000)
            .map(|data| {
                Ok(v1::ExportSnapshotResponse {
                    data: data.to_vec(),
                    total_bytes: 3_000_000,
                })
            })
            .collect();
        if id.starts_with("damaged") {
            pieces.push(Err(status(Reason::SnapshotDamaged, "pages.img differs")));
        } else {
            snapshot(&id)?;
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn grant_restore(
        &self,
        request: Request<v1::GrantRestoreRequest>,
    ) -> Result<Response<v1::GrantRestoreResponse>, Status> {
        Ok(Response::new(v1::GrantRestoreResponse {
            snapshot_id: request.into_inner().id,
            expires: None,
        }))
    }

    async fn revoke_restore(
        &self,
        _: Request<v1::RevokeRestoreRequest>,
    ) -> Result<Response<v1::RevokeRestoreResponse>, Status> {
        Ok(Response::new(v1::RevokeRestoreResponse { revoked: true }))
    }

    async fn import_snapshot(
        &self,
        request: Request<tonic::Streaming<v1::ImportSnapshotRequest>>,
    ) -> Result<Response<v1::ImportSnapshotResponse>, Status> {
        let mut pieces = request.into_inner();
        let (mut namespace, mut data) = (String::new(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            namespace.push_str(&piece.namespace);
            data.extend(piece.data);
        }
        if data.starts_with(b"rubbish") {
            return Err(status(Reason::SnapshotInvalid, "this is no archive"));
        }
        self.0.lock().unwrap().imported = (namespace, data);
        Ok(Response::new(v1::ImportSnapshotResponse {
            snapshot: Some(snapshot(SNAPSHOT)?),
        }))
    }
}

struct Fixture {
    directory: TempDir,
    stub: Stub,
}

impl Fixture {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stub = Stub::default();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let service = NodeServer::new(stub.clone());
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { directory, stub }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    async fn run(&self, line: &str) -> Output {
        dormouse(&self.socket(), line).await
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.stub.0.lock().unwrap()
    }
}

async fn dormouse(socket: &std::path::Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(line.split_whitespace())
        .env("DORMOUSE_SOCKET", socket)
        .env_remove("CONTAINER_RUNTIME_ENDPOINT")
        .output()
        .await
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_lists_managed_pods_or_all() {
    let fixture = Fixture::start();
    let output = fixture.run("ps").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(out(&output).lines().count(), 4, "{}", out(&output));
    assert!(!out(&output).contains("free"));
    let output = fixture.run("ps --all -o json").await;
    let pods: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pods.as_array().unwrap().len(), 4);
    assert_eq!(pods[0]["residentBytes"], 5 << 20);
    let output = fixture.run("ps -n other -o yaml -l app=x").await;
    assert!(out(&output).contains("namespace: other"), "{}", out(&output));
    assert_eq!(fixture.seen().lists.last().unwrap().label_selector, "app=x");
    assert_eq!(code(&fixture.run("ps -A -n other").await), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn wake_takes_every_way_to_name_a_pod() {
    let fixture = Fixture::start();
    let output = fixture.run("wake default/api worker cccc3").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let mut lines: Vec<String> = out(&output).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "default/api  Running  12.3 ms",
            "default/worker  Running already",
            "other/api  Running  12.3 ms"
        ]
    );
    let seen = fixture.seen();
    assert!(
        seen.wakes
            .iter()
            .all(|wake| wake.source == "Api" && !wake.operation_id.is_empty())
    );
    let ids: std::collections::HashSet<&str> =
        seen.wakes.iter().map(|wake| wake.operation_id.as_str()).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_per_pod_and_say_the_reason() {
    let fixture = Fixture::start();
    fixture
        .seen()
        .refuse
        .insert("bbbb2".into(), Reason::InsufficientMemory);
    let output = fixture.run("wake default/api worker nobody api").await;
    assert_eq!(code(&output), 1);
    assert_eq!(out(&output), "default/api  Running  12.3 ms\n");
    let errors = err(&output);
    assert!(
        errors.contains("default/worker  InsufficientMemory: not now"),
        "{errors}"
    );
    assert!(
        errors.contains("nobody  PodNotFound: no pod \"nobody\""),
        "{errors}"
    );
    assert!(
        errors.contains("api  InvalidRequest: \"api\" is more than one pod: default/api (aaaa1), other/api"),
        "{errors}"
    );
    let output = fixture.run("wake worker nobody -o json").await;
    assert_eq!(code(&output), 1);
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results[0]["reason"], "PodNotFound");
    assert_eq!(results[1]["reason"], "InsufficientMemory");
    assert_eq!(results[1]["ok"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_repeats_the_same_operation() {
    let fixture = Fixture::start();
    fixture.seen().break_wakes = 2;
    let output = fixture.run("wake default/api").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    {
        let seen = fixture.seen();
        assert_eq!(seen.wakes.len(), 3);
        assert!(
            seen.wakes
                .iter()
                .all(|wake| wake.operation_id == seen.wakes[0].operation_id)
        );
    }
    fixture.seen().break_wakes = 9;
    let output = fixture.run("wake default/api").await;
    assert_eq!(code(&output), 3, "{}", err(&output));
    assert!(err(&output).contains("AgentUnreachable"), "{}", err(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_means_managed_ones_and_at_once() {
    let fixture = Fixture::start();
    let output = fixture.run("freeze --all -o wide").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        out(&output).contains("default/api  Frozen  0.8 ms  (stop 0.7 ms)"),
        "{}",
        out(&output)
    );
    let seen = fixture.seen();
    assert_eq!(seen.freezes.len(), 3);
    assert_eq!(seen.most_at_once, 3);
    assert!(seen.lists.last().unwrap().managed_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer_costs_the_timeout_only() {
    let fixture = Fixture::start();
    let started = std::time::Instant::now();
    let output = fixture.run("doze worker --timeout 300ms").await;
    assert_eq!(code(&output), 1);
    assert!(started.elapsed() < Duration::from_secs(8));
    assert!(err(&output).contains("default/worker  "), "{}", err(&output));
    assert!(
        err(&output).contains("default/worker  DeadlineExceeded: no answer within 300ms"),
        "{}",
        err(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies() {
    let fixture = Fixture::start();
    let output = fixture
        .run("policy set worker --idle-timeout 5m --doze-after 10m --resume-policy Manual")
        .await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let output = fixture.run("manage free --idle-timeout 90s").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(code(&fixture.run("manage free").await), 0);
    assert_eq!(code(&fixture.run("unmanage worker").await), 0);
    let cold = fixture
        .run("policy set worker --idle-timeout 5m --fallback ColdStart")
        .await;
    assert_eq!(code(&cold), 0, "{}", err(&cold));
    let contradiction = fixture
        .run("policy set worker --idle-timeout 5m --doze-after 1m")
        .await;
    assert_eq!(code(&contradiction), 2, "{}", err(&contradiction));
    let seen = fixture.seen();
    let policy = seen.policies[0].policy.clone().unwrap();
    assert_eq!(policy.idle_timeout.unwrap().seconds, 300);
    assert_eq!(policy.resume_policy(), v1::ResumePolicy::Manual);
    assert!(seen.policies[0].policy_generation > 1_700_000_000_000);
    let cold = seen.policies[1].policy.clone().unwrap();
    assert_eq!(cold.fallback(), v1::Fallback::ColdStart);
    assert_eq!(seen.policies.len(), 2);
    assert!(seen.manages[0].managed && seen.manages[0].policy.is_some());
    assert!(seen.manages[1].managed && seen.manages[1].policy.is_none());
    assert!(!seen.manages[2].managed);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_node_version_top() {
    let fixture = Fixture::start();
    let output = fixture.run("get aaaa1ffff").await;
    assert!(
        out(&output).contains("Rung          Dozing"),
        "{}{}",
        out(&output),
        err(&output)
    );
    let output = fixture.run("get nobody").await;
    assert_eq!(code(&output), 1);
    assert!(
        err(&output).starts_with("dormouse: PodNotFound: no pod \"nobody\""),
        "{}",
        err(&output)
    );
    let output = fixture.run("node").await;
    assert!(out(&output).contains("containerd 2.3.7"));
    assert!(
        out(&output).contains(
            "release-1: kept, /opt/runsc; needed by 3 snapshots and 2 pods; until 2027-03-01; ENDS in 12 days"
        ),
        "{}",
        out(&output)
    );
    assert!(out(&fixture.run("version").await).contains("agent    9.9.9"));
    let output = fixture.run("top --once").await;
    assert!(
        out(&output).contains("node-1: 1 Dozing, 2 Running; saved 143.0 MiB"),
        "{}",
        out(&output)
    );
    let output = fixture.run("ps -l bad=1,,").await;
    assert_eq!(code(&output), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events() {
    let fixture = Fixture::start();
    let output = fixture.run("events").await;
    assert_eq!(code(&output), 0);
    assert_eq!(out(&output).lines().count(), 1, "{}", out(&output));
    // The stub ends the watch, as an agent that goes away does.
    let output = fixture.run("events -f -o json").await;
    assert_eq!(code(&output), 3);
    let kinds: Vec<String> = out(&output)
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(kinds, ["Existing", "Synced", "Changed"]);
    let output = fixture.run("events -f").await;
    assert!(
        out(&output).contains("Changed   default/api  Dozing -> Running  12.3 ms"),
        "{}",
        out(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hibernating_names_the_snapshot() {
    let fixture = Fixture::start();
    let output = fixture.run("hibernate worker").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(
        out(&output),
        format!("default/worker  Hibernated  812.0 ms  snapshot {SNAPSHOT}\n")
    );
    assert!(!fixture.seen().hibernates[0].operation_id.is_empty());
    let output = fixture.run("snapshot create default/api -o json").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results[0]["snapshot"], SNAPSHOT);
    assert_eq!(results[0]["rung"], "Dozing");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_listed_and_described() {
    let fixture = Fixture::start();
    let output = fixture.run("snapshot ls").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).contains(SNAPSHOT) && out(&output).contains("only state"));
    assert!(out(&fixture.run("snap ls -n other").await).contains("no snapshots"));
    assert!(out(&fixture.run("snapshot ls nobody").await).contains("no snapshots"));
    let wide = fixture.run("snapshot ls api -o wide").await;
    assert!(out(&wide).contains("store: 40.0 MiB; free on its disk: 9216.0 MiB"));
    let output = fixture.run("snapshot inspect 0192f4a0 -o json").await;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["id"], SNAPSHOT);
    assert_eq!(value["restore"]["available"], true);
    let output = fixture.run("snapshot inspect nothinglikeit").await;
    assert_eq!(code(&output), 1);
    assert!(
        err(&output).starts_with("dormouse: SnapshotNotFound: description of snapshot nothinglikeit"),
        "{}",
        err(&output)
    );
    let output = fixture.run("snapshot diff 0192f4a0 0192f4a0").await;
    assert!(out(&output).contains("pages.img"), "{}", err(&output));
    assert!(out(&output).contains("pod: default/api and default/worker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_says_which_one_is_damaged() {
    let fixture = Fixture::start();
    let output = fixture.run("snapshot verify 0192f4a0 damaged1 brokenoff").await;
    assert_eq!(code(&output), 1);
    assert_eq!(out(&output), "0192f4a0  whole  64.0 MiB\n");
    assert!(err(&output).contains("damaged1  SnapshotDamaged: pages.img differs"));
    assert!(err(&output).contains("brokenoff  "), "{}", err(&output));
    let output = fixture.run("snapshot verify 0192f4a0 -o json").await;
    assert_eq!(code(&output), 0);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value[0]["whole"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_kept_and_removed() {
    let fixture = Fixture::start();
    let output = fixture.run("snapshot pin 0192f4a0").await;
    assert_eq!(out(&output), format!("{SNAPSHOT}  pinned\n"), "{}", err(&output));
    let output = fixture.run("snapshot unpin 0192f4a0").await;
    assert_eq!(out(&output), format!("{SNAPSHOT}  unpinned\n"));
    let output = fixture.run("snapshot rm 0192f4a0").await;
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("0192f4a0  SnapshotHeld: it is the only state"));
    let output = fixture.run("snapshot rm --force 0192f4a0").await;
    assert_eq!(out(&output), format!("{SNAPSHOT}  removed  40.0 MiB\n"));
    let output = fixture.run("snapshot prune --dry-run").await;
    assert!(
        out(&output).contains("1 snapshots would be removed, 40.0 MiB freed"),
        "{}",
        out(&output)
    );
    let output = fixture.run("snapshot fsck").await;
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(out(&output).contains("3 snapshots are whole, 1 findings"));
    let output = fixture.run("snapshot fsck --repair --full -o yaml").await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let last = *fixture.seen().fscks.last().unwrap();
    assert!(last.repair && last.full);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_goes_out_and_comes_in() {
    let fixture = Fixture::start();
    let file = fixture.directory.path().join("a.snap");
    let output = fixture
        .run(&format!("snapshot export 0192f4a0 {}", file.display()))
        .await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(std::fs::read(&file).unwrap() == archive());
    let output = fixture.run("snapshot export 0192f4a0 -").await;
    assert!(output.stdout == archive());
    let output = fixture
        .run(&format!("snapshot import {} -n agents", file.display()))
        .await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(out(&output), format!("{SNAPSHOT}  64.0 MiB\n"));
    {
        let seen = fixture.seen();
        assert_eq!(seen.imported.0, "agents");
        assert!(seen.imported.1 == archive());
    }
    let torn = fixture.directory.path().join("torn.snap");
    let output = fixture
        .run(&format!("snapshot export damaged1 {}", torn.display()))
        .await;
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("SnapshotDamaged"), "{}", err(&output));
    let left: Vec<_> = std::fs::read_dir(fixture.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("torn"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    std::fs::write(&torn, b"rubbish").unwrap();
    let output = fixture.run(&format!("snapshot import {}", torn.display())).await;
    assert_eq!(code(&output), 1);
    assert!(
        err(&output).contains("SnapshotInvalid: import of"),
        "{}",
        err(&output)
    );
    let output = fixture.run("snapshot import /no/such/file").await;
    assert_eq!(code(&output), 1);
    assert!(
        err(&output).contains("cannot open /no/such/file"),
        "{}",
        err(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for line in [
        "ps",
        "wake x",
        "hibernate x",
        "snapshot ls",
        "snapshot rm 01234567",
        "snapshot verify 01234567",
        "snapshot export 01234567 -",
        "top --once",
        "events",
        "node",
        "get x",
    ] {
        let output = dormouse(&socket, line).await;
        assert_eq!(code(&output), 3, "{line}: {}", err(&output));
        assert!(
            err(&output).starts_with("dormouse: AgentUnreachable: "),
            "{line}: {}",
            err(&output)
        );
        assert!(err(&output).contains("none.sock"), "{line}: {}", err(&output));
        assert_eq!(err(&output).lines().count(), 1, "{line}: {}", err(&output));
    }
    let output = dormouse(&socket, "version").await;
    assert_eq!(code(&output), 0);
    assert!(out(&output).contains("not reachable"));
    let output = dormouse(&socket, "doctor --runtime-endpoint /nowhere/c.sock -o json").await;
    assert_eq!(code(&output), 2);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |name: &str| {
        let check = checks
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no check {name}"))["verdict"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(verdict("agent"), "fail");
    assert_eq!(verdict("containerd"), "fail");
    assert_eq!(verdict("page-out"), "ok");
    for name in [
        "root",
        "cgroups",
        "swap",
        "kubelet and swap",
        "memory pressure",
        "run directory",
        "clock",
    ] {
        verdict(name);
    }
    let output = dormouse(&socket, "run --image x --runtime-endpoint /nowhere/c.sock").await;
    assert_eq!(code(&output), 3, "{}", err(&output));
    assert!(
        err(&output).starts_with("dormouse: RuntimeUnavailable: "),
        "{}",
        err(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_usage() {
    let nowhere = PathBuf::from("/nowhere");
    for shell in ["bash", "zsh", "fish"] {
        let output = dormouse(&nowhere, &format!("completion {shell}")).await;
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains("dormouse"));
    }
    for line in ["", "wake", "ps --nonsense", "completion tcsh"] {
        assert_eq!(code(&dormouse(&nowhere, line).await), 2, "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let fixture = Fixture::start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(["ps", "--all"])
        .env("DORMOUSE_SOCKET", fixture.socket())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(err(&output), "");
}
