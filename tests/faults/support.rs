//! What the tests share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, http};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Nothing here takes longer unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

static MACHINE: RwLock<()> = RwLock::const_new(());

/// Holds off the other tests of this suite: for what is about the machine's swap, or its disk.
pub(crate) async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// Shares the machine with those that say the same: each has a node of its own.
pub(crate) async fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// Swap for as long as a test holds it.
pub(crate) fn swap() -> Arc<TestSwap> {
    dormouse_testkit::swap::shared().unwrap()
}

/// Whether the node has no swap but what a test brings. Elsewhere than in CI a person's own swap, or a
/// neighbour's test, may be in the way of a test about too little of it.
pub(crate) fn has_no_swap() -> bool {
    // A test that was killed leaves its swap on.
    dormouse_testkit::swap::sweep();
    let swaps = dormouse_testkit::memory::swaps().unwrap();
    if !swaps.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "{swaps:?}");
        eprintln!("skipped: this node has swap of its own: {swaps:?}");
    }
    swaps.is_empty()
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

/// A gVisor pod with a block of memory, that answers.
pub(crate) async fn pod(rig: &Rig, mib: u32) -> Pod {
    let spec = AgentGuest::mib(mib)
        .pod("victim")
        .handler(DORMOUSE_GVISOR)
        .memory_limit(512 << 20);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}
