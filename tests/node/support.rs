//! What the tests share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dormouse_testkit::rig::Rig;
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{Pod, PodSpec, http};
use serde_json::Value;

/// Nothing here takes longer unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Swap for as long as a test holds it; tests that run at once share it.
pub(crate) fn swap() -> Arc<TestSwap> {
    dormouse_testkit::swap::shared().unwrap()
}

/// A stack with its agent, and a pod on it that answers.
pub(crate) async fn at_work(spec: PodSpec) -> (Rig, Pod) {
    let rig = Rig::plain().await.unwrap();
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    (rig, pod)
}

/// Where a pod's guest listens.
pub(crate) fn address(pod: &Pod) -> SocketAddr {
    (pod.ip, 8080).into()
}

/// Asks the guest.
pub(crate) async fn ask(pod: &Pod, path: &str) -> Value {
    http::get(address(pod), path, LIMIT)
        .await
        .unwrap()
        .json()
        .unwrap()
}
