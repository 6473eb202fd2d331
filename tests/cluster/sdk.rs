//! The Python client of agent-sandbox, unmodified, as it comes from its package registry.
//!
//! The tests are Python's own, in `tests/compat/sdk`. They run on this host and reach the sandboxes by their addresses, which is
//! the client's connection mode for programs in the cluster.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, PYTHON};
use serde_json::{Value, json};

use crate::installed::{install, installed, words};
use crate::python::python;
use crate::support::{LIMIT, namespace};

/// What a module of tests may take in all.
const MODULE_LIMIT: Duration = Duration::from_secs(600);

/// The server inside, which the client talks to.
const RUNTIME: &str = include_str!("../compat/sdk/runtime.py");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat/sdk")
}

/// A template of sandboxes that serve the client.
fn template(space: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate",
        "metadata": {"name": name, "namespace": space},
        "spec": {
            "service": true, "envVarsInjectionPolicy": "Allowed",
            // The one that is made without it lets nobody in but the router.
            "networkPolicyManagement": "Unmanaged",
            "podTemplate": {"spec": {
                "runtimeClassName": "dormouse-gvisor", "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "runtime", "image": PYTHON, "imagePullPolicy": "Never",
                    "command": ["python3", "-u", "-c", RUNTIME],
                    "ports": [{"containerPort": 8888}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8888}, "periodSeconds": 1},
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"},
                    },
                }],
            }},
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn pool(space: &str, name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool",
        "metadata": {"name": name, "namespace": space},
        "spec": {"replicas": replicas, "sandboxTemplateRef": {"name": name}},
    })
}

/// Runs a module of the Python tests, and shows what it says if one of them fails.
async fn run(cluster: &Cluster, space: &str, module: &str) {
    let python = python(folder().join("requirements.txt")).await;
    let mut command = cluster.client_command(&python);
    command
        .args(["-B", "-m", "unittest", "--verbose", module])
        .current_dir(folder())
        .env("SANDBOX_NAMESPACE", space)
        .stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let output = tokio::time::timeout(MODULE_LIMIT, command.kill_on_drop(true).output())
        .await
        .unwrap_or_else(|_| panic!("{module}: no end after {MODULE_LIMIT:?}"))
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if !output.status.success() {
        let state = cluster
            .kubectl(&[
                "get",
                "sandboxwarmpools,sandboxclaims,sandboxes.agents.x-k8s.io,pods,events",
                "-n",
                space,
            ])
            .await
            .unwrap_or_else(|error| format!("{error:#}"));
        panic!(
            "{module}: {}\n{said}\n{state}\n{}",
            output.status,
            words(cluster).await
        );
    }
    println!("{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_claims_works_with_and_ends_sandboxes() {
    let space = "sdk";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let spec = json!({"idleTimeout": "3s", "envVarsInjectionPolicy": "Disallowed"});
    let mut sleepy = template(space, "sleepy", &spec);
    // A probe's connection would wake it.
    sleepy["spec"]["podTemplate"]["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("readinessProbe");
    for object in [
        template(space, "python", &json!({})),
        pool(space, "python", 1),
        sleepy,
        pool(space, "sleepy", 0),
        pool(space, "orphan", 0),
    ] {
        cluster.apply(&object).await.unwrap();
    }
    run(&cluster, space, "test_sandbox").await;
    run(&cluster, space, "test_async").await;
    // What ends in Python ends in the cluster; only the standby is left.
    wait::until("no sandboxes but the pool's", LIMIT, async || {
        let claims = cluster
            .kubectl(&["get", "sandboxclaims", "-n", space, "-o", "name"])
            .await?;
        anyhow::ensure!(claims.is_empty(), "{claims}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_for_snapshots_suspends_and_resumes_with_the_memory_kept() {
    let space = "sdk-snapshots";
    // A cluster of its own: the others' tests are those of clusters that do not serve these kinds.
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    install(&cluster, &["controller.podSnapshots=true"]).await;
    namespace(&cluster, space).await;
    cluster
        .apply(&template(space, "python", &json!({})))
        .await
        .unwrap();
    cluster.apply(&pool(space, "python", 1)).await.unwrap();
    run(&cluster, space, "test_snapshots").await;
    cluster.down().unwrap();
}
