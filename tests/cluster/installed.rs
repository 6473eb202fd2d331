//! Clusters with Dormouse installed, as its users install it: the image, and the chart.

use std::sync::Arc;

use dormouse_testkit::cluster::release::{self, HostSwap};
pub(crate) use dormouse_testkit::cluster::release::{NAMESPACE, chart, dormouse, words};
use dormouse_testkit::{Cluster, ClusterOptions};
use serde_json::Value;
use tokio::sync::Mutex;

/// What its agent says, too.
const DETAILS: &str = "agent.logLevel=dormouse_agent=debug\\,info";

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
    install_on(cluster, HostSwap::Others, settings).await;
}

/// Changes the installation, and waits until all of it is ready.
pub(crate) async fn upgrade(cluster: &Cluster, settings: &[&str]) {
    upgrade_on(cluster, HostSwap::Others, "", settings).await;
}

/// As [`install`], for a test that has brought swap: sandboxes can doze.
pub(crate) async fn install_with_swap(cluster: &Cluster, settings: &[&str]) {
    install_on(cluster, HostSwap::Brought, settings).await;
}

/// As [`upgrade`], for what [`install_with_swap`] has installed; every agent is another one then.
pub(crate) async fn upgrade_with_swap(cluster: &Cluster, settings: &[&str]) {
    reconfigure(cluster, "", settings).await;
}

/// The same with more in the agents' configuration.
pub(crate) async fn reconfigure(cluster: &Cluster, more: &str, settings: &[&str]) {
    upgrade_on(cluster, HostSwap::Brought, more, settings).await;
    rolled_out(cluster).await;
}

async fn install_on(cluster: &Cluster, swap: HostSwap, settings: &[&str]) {
    let settings = [&[DETAILS], settings].concat();
    release::install(cluster, &release::values(swap, ""), &settings)
        .await
        .unwrap();
}

async fn upgrade_on(cluster: &Cluster, swap: HostSwap, more: &str, settings: &[&str]) {
    let settings = [&[DETAILS], settings].concat();
    release::upgrade(cluster, &release::values(swap, more), &settings)
        .await
        .unwrap();
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
