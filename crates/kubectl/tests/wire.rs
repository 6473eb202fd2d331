//! The built program against a stub of an API server in this process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;

const SANDBOXES: &str = "/apis/agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxes";

/// What the stub has, and what it does with a suspend.
#[derive(Debug)]
struct World {
    sandboxes: Mutex<HashMap<String, Value>>,
    changes: broadcast::Sender<Value>,
    /// Whether anybody does what a sandbox is told.
    controller: bool,
}

fn sandbox(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": "team", "uid": format!("uid-{name}"), "generation": 1,
                     "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podTemplate": {"spec": {"containers": []}}, "suspensionStrategy": {"type": "Freeze"}},
        "status": {"nodeName": "node-1", "conditions": [
            condition("Ready", "True", "DependenciesReady", "Pod is Ready", 1),
        ]},
    })
}

fn condition(type_: &str, status: &str, reason: &str, message: &str, generation: u64) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message,
           "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:01:00Z"})
}

fn status(code: StatusCode, reason: &str, name: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code.as_u16(),
                      "reason": reason, "message": "the stub said so", "details": {"name": name}});
    (code, body.to_string()).into_response()
}

fn answer(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

async fn list(State(world): State<Arc<World>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let is_meant = move |sandbox: &Value, query: &str| {
        let name = sandbox["metadata"]["name"].as_str().unwrap();
        !query.contains("fieldSelector") || query.contains(&format!("metadata.name%3D{name}"))
    };
    if query.contains("watch=true") {
        let changes = BroadcastStream::new(world.changes.subscribe());
        // What has changed between the list and the watch would be sent again by a real one, too.
        let now: Vec<Value> = world.sandboxes.lock().unwrap().values().cloned().collect();
        let all = tokio_stream::iter(now).chain(changes.filter_map(Result::ok));
        let all = all.filter(move |sandbox| is_meant(sandbox, &query));
        let lines = all.map(|object| {
            Ok::<_, Infallible>(Bytes::from(format!(
                "{}\n",
                json!({"type": "MODIFIED", "object": object})
            )))
        });
        return Body::from_stream(lines).into_response();
    }
    let all = world.sandboxes.lock().unwrap();
    let items: Vec<&Value> = all.values().filter(|sandbox| is_meant(sandbox, &query)).collect();
    answer(
        &json!({"apiVersion": "agents.x-k8s.io/v1beta1", "kind": "SandboxList",
                   "metadata": {"resourceVersion": "10"}, "items": items}),
    )
}

async fn one(State(world): State<Arc<World>>, Path((_, name)): Path<(String, String)>) -> Response {
    match world.sandboxes.lock().unwrap().get(&name) {
        Some(sandbox) => answer(sandbox),
        None => status(StatusCode::NOT_FOUND, "NotFound", &name),
    }
}

async fn patch(
    State(world): State<Arc<World>>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let change: Value = serde_json::from_slice(&body).unwrap();
    let mut all = world.sandboxes.lock().unwrap();
    let Some(sandbox) = all.get_mut(&name) else {
        return status(StatusCode::NOT_FOUND, "NotFound", &name);
    };
    sandbox["spec"]["operatingMode"] = change["spec"]["operatingMode"].clone();
    sandbox["metadata"]["generation"] = json!(2);
    let told = sandbox.clone();
    if world.controller {
        sandbox["metadata"]["resourceVersion"] = json!("20");
        sandbox["status"]["conditions"] = json!([condition(
            "Suspended",
            "True",
            "GuestAsleep",
            "Sandbox is suspended with its memory in place (Frozen)",
            2
        )]);
        let _ = world.changes.send(sandbox.clone());
    }
    answer(&told)
}

async fn pools() -> Response {
    let demand = json!({
        "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T01:00:00Z", "claims": 450, "blocked": 4,
        "refillMilliseconds": 40_000, "mostNeeded": 14,
    });
    let pool = |name: &str, status: Value| {
        json!({"metadata": {"name": name, "namespace": "team"}, "status": status,
               "spec": {"replicas": 3, "sandboxTemplateRef": {"name": "python"}}})
    };
    answer(
        &json!({"apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPoolList", "metadata": {},
                   "items": [pool("used", json!({"demand": demand})), pool("new", json!({}))]}),
    )
}

/// A stub, and a kubeconfig for it.
struct Stub {
    dir: TempDir,
    world: Arc<World>,
}

impl Stub {
    async fn start(controller: bool) -> Self {
        let world = Arc::new(World {
            sandboxes: Mutex::new(
                ["box", "other"]
                    .map(|name| (name.to_owned(), sandbox(name, 1)))
                    .into(),
            ),
            changes: broadcast::channel(16).0,
            controller,
        });
        let router = Router::new()
            .route(SANDBOXES, get(list))
            .route(&format!("{SANDBOXES}/{{name}}"), get(one).patch(patch))
            .route(
                "/api/v1/namespaces/{namespace}/pods",
                get(async || status(StatusCode::FORBIDDEN, "Forbidden", "")),
            )
            .route(
                "/apis/extensions.agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxwarmpools",
                get(pools),
            )
            // As the API server answers for kinds that it does not have.
            .fallback(async || (StatusCode::NOT_FOUND, "404 page not found\n"))
            .with_state(Arc::clone(&world));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "me", "namespace": "team"}},
                         {"name": "nobody", "context": {"cluster": "nobody", "user": "me"}}],
            "clusters": [{"name": "stub", "cluster": {"server": format!("http://127.0.0.1:{port}")}},
                         // A port that nobody listens at.
                         {"name": "nobody", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "me", "user": {}}],
        });
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { dir, world }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-dormouse"));
        command
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            // It is not for this cluster.
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .args(arguments)
            .kill_on_drop(true);
        tokio::time::timeout(Duration::from_secs(60), command.output())
            .await
            .unwrap()
            .unwrap()
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_listed() {
    let stub = Stub::start(true).await;
    let output = stub.run(&["ps", "-o", "json"]).await;
    assert!(output.status.success(), "{output:?}");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|sandbox| sandbox["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["box", "other"]);
    let table = out(&stub.run(&["ps"]).await);
    assert!(table.starts_with("NAMESPACE   NAME "), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspend_is_waited_for() {
    let stub = Stub::start(true).await;
    let output = stub.run(&["suspend", "box"]).await;
    assert!(output.status.success(), "{output:?}");
    let said = out(&output);
    assert!(
        said.starts_with("team/box  Frozen  ") && said.contains(" ms"),
        "{said}"
    );
    let mode = stub.world.sandboxes.lock().unwrap()["box"]["spec"]["operatingMode"].clone();
    assert_eq!(mode, "Suspended");
    let again = out(&stub.run(&["suspend", "team/box"]).await);
    assert_eq!(again.trim(), "team/box  Frozen already");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_so_in_time_says_what_was_heard_last() {
    let stub = Stub::start(false).await;
    let output = stub.run(&["suspend", "box", "nobody", "--timeout", "1s"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = err(&output);
    assert!(
        said.contains("team/box  DeadlineExceeded: not suspended within 1s"),
        "{said}"
    );
    assert!(said.contains("does the controller run?"), "{said}");
    assert!(said.contains("team/nobody  NotFound: "), "{said}");
    let told = stub.run(&["suspend", "other", "--no-wait"]).await;
    assert_eq!(out(&told).trim(), "team/other  told");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_left_out_or_named() {
    let stub = Stub::start(true).await;
    let nodes = stub.run(&["node", "ls"]).await;
    assert_eq!(nodes.status.code(), Some(1));
    assert!(
        err(&nodes).contains("NotInstalled: the cluster has no sandboxnodes.dormouse.dev: install Dormouse"),
        "{}",
        err(&nodes)
    );
    // Pods are forbidden, nodes and metrics are not there: what is known is shown.
    let top = stub.run(&["top"]).await;
    assert!(top.status.success(), "{top:?}");
    assert!(out(&top).contains("no metrics-server"), "{}", out(&top));
    assert!(
        err(&top).contains("pods is left out: Forbidden: "),
        "{}",
        err(&top)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_advised_without_their_templates() {
    let stub = Stub::start(true).await;
    let output = stub.run(&["pool", "advise", "-o", "json"]).await;
    assert!(output.status.success(), "{output:?}");
    let advised: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(advised[0]["name"], "new");
    assert!(advised[0].get("advice").is_none(), "{advised}");
    assert_eq!(advised[1]["advice"]["maxReady"], 14);
    assert!(advised[1]["advice"].get("runningBytes").is_none(), "{advised}");
    assert!(
        err(&output).contains("what a template requests is left out: NotInstalled"),
        "{}",
        err(&output)
    );
    let table = out(&stub.run(&["pool", "advise"]).await);
    assert!(table.starts_with("NAMESPACE   POOL   NOW"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes() {
    let stub = Stub::start(true).await;
    let unreachable = stub.run(&["ps", "--context", "nobody"]).await;
    assert_eq!(unreachable.status.code(), Some(3), "{unreachable:?}");
    assert!(err(&unreachable).starts_with("kubectl dormouse: ClusterUnreachable: "));
    assert_eq!(
        stub.run(&["ps", "--context", "unknown"]).await.status.code(),
        Some(3)
    );
    assert_eq!(stub.run(&["suspend", "box", "-A"]).await.status.code(), Some(2));
    assert_eq!(stub.run(&["suspend", "a/b/c"]).await.status.code(), Some(2));
    assert_eq!(stub.run(&["frobnicate"]).await.status.code(), Some(2));
    let version = stub.run(&["version", "--context", "nobody"]).await;
    assert!(version.status.success());
    assert!(out(&version).contains("ClusterUnreachable"), "{}", out(&version));
    let script = stub.run(&["completion", "bash"]).await;
    assert!(out(&script).contains("kubectl-dormouse"));
}
