//! Clusters with Dormouse installed, as its users install it: the image, and the chart.

use std::sync::Arc;

use dormouse_testkit::cluster::release;
pub(crate) use dormouse_testkit::cluster::release::{NAMESPACE, chart, dormouse, words};
use dormouse_testkit::{Cluster, ClusterOptions};
use serde_json::Value;
use tokio::sync::Mutex;

/// What a test's nodes are like. Everything of theirs is at its default place, but they share this host's kernel and thus its
/// swap: who wants to see a pod doze brings that, in a cluster of its own.
const VALUES: &str = r#"
agent:
  logLevel: dormouse_agent=debug,info
  config: |
    [swap]
    kubelet_config = "/var/lib/kubelet/config.yaml"
    [manage]
    doze_after_freeze = "1h"
"#;

/// The same for a test that has brought swap: it is its own, with nothing secret in it. Nobody dozes unless told to.
pub(crate) const DOZES: &str = r#"
agent:
  logLevel: dormouse_agent=debug,info
  config: |
    [swap]
    kubelet_config = "/var/lib/kubelet/config.yaml"
    allow_plain_swap = true
    [manage]
    doze_after_freeze = "1h"
"#;

static SHARED: Mutex<Option<Arc<Cluster>>> = Mutex::const_new(None);

/// A cluster of one node with Dormouse on it, the same one for all tests of this process. Each works in a namespace of its own,
/// and changes nothing that is everybody's.
pub(crate) async fn installed() -> Arc<Cluster> {
    let mut shared = SHARED.lock().await;
    if let Some(cluster) = &*shared {
        return Arc::clone(cluster);
    }
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    install(&cluster, &["controller.podSnapshots=true"]).await;
    let cluster = Arc::new(cluster);
    *shared = Some(Arc::clone(&cluster));
    remove_at_exit();
    cluster
}

/// Installs Dormouse, with more settings as `helm --set` takes them, and waits until all of it is ready.
pub(crate) async fn install(cluster: &Cluster, settings: &[&str]) {
    release::install(cluster, VALUES, settings).await.unwrap();
}

/// Changes the installation, and waits until all of it is ready.
pub(crate) async fn upgrade(cluster: &Cluster, settings: &[&str]) {
    release::upgrade(cluster, VALUES, settings).await.unwrap();
}

/// As [`install`], for a test that has brought swap: sandboxes can doze.
pub(crate) async fn install_with_swap(cluster: &Cluster, settings: &[&str]) {
    release::install(cluster, DOZES, settings).await.unwrap();
}

/// As [`upgrade`], for what [`install_with_swap`] has installed; every agent is another one then.
pub(crate) async fn upgrade_with_swap(cluster: &Cluster, settings: &[&str]) {
    release::upgrade(cluster, DOZES, settings).await.unwrap();
    rolled_out(cluster).await;
}

/// Waits until every agent is as the chart says now: helm lets one be away.
pub(crate) async fn rolled_out(cluster: &Cluster) {
    let status = ["rollout", "status", "daemonset/dormouse-agent"];
    let more = ["--namespace", NAMESPACE, "--timeout=120s"];
    if let Err(error) = cluster.kubectl(&[&status[..], &more].concat()).await {
        panic!("{error:#}\n{}", words(cluster).await);
    }
}

/// Removes what helm has installed.
pub(crate) async fn uninstall(cluster: &Cluster) {
    release::uninstall(cluster).await.unwrap();
}

/// The one pod of Dormouse's that bears the label.
pub(crate) async fn pod_of(cluster: &Cluster, label: &str) -> Value {
    let listed = cluster
        .kubectl(&[
            "get",
            "pods",
            "--namespace",
            NAMESPACE,
            "--selector",
            label,
            "--output=json",
        ])
        .await
        .unwrap();
    let mut listed: Value = serde_json::from_str(&listed).unwrap();
    let pods = listed["items"].as_array_mut().unwrap();
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(pods.len(), 1, "{pods:?}");
    pods.remove(0)
}

/// Rust drops no statics: the cluster would be left for the next one to find.
#[allow(
    unsafe_code,
    reason = "there is no other way to be called at the end of a test process"
)]
fn remove_at_exit() {
    extern "C" fn remove() {
        if let Ok(mut shared) = SHARED.try_lock() {
            drop(shared.take());
        }
    }
    // SAFETY: the function does not unwind across the boundary: what fails while a cluster is removed is printed.
    unsafe {
        nix::libc::atexit(remove);
    }
}
