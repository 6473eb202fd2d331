//! Standbys that sleep: the claim that gets one wakes it, while the API server is told whose it is.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::agents::{Agents, Order, Sight};
use crate::cache::Cache;
use crate::objects;
use crate::sandbox::{asleep_on, tracked_name};

/// How long a claim waits for a wake beyond its own write. One that takes longer goes on: the claim is told then.
const BOUND: Duration = Duration::from_secs(1);

/// How a standby's guest stands for a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stands {
    /// It runs.
    Awake,
    /// It sleeps, or may be about to; whom to order what.
    Asleep {
        /// The node.
        node: String,
        /// UID of the pod.
        pod: String,
    },
    /// It sleeps, and nobody can be told to wake it.
    OutOfReach,
}

/// How the guest of a sandbox stands. `is_moving`: whether it is being put to sleep just now.
pub(super) fn stands(sandbox: &Sandbox, pod: Option<&Pod>, sight: &Sight, is_moving: bool) -> Stands {
    let sleeps = match sight {
        // What the agent says is newer than what stands in the status.
        Sight::Seen(guest) => guest.sleeps() || guest.moving_to.is_some() || is_moving,
        Sight::Unreachable | Sight::Unknown => asleep_on(sandbox).is_some() || is_moving,
    };
    match (sleeps, sight, pod) {
        (false, ..) => Stands::Awake,
        (true, Sight::Seen(guest), Some(_)) => Stands::Asleep {
            node: guest.node.clone(),
            pod: guest.uid.clone(),
        },
        (true, ..) => Stands::OutOfReach,
    }
}

/// The guests of sandboxes.
#[derive(Debug, Clone)]
pub(super) struct Guests {
    pub(super) pods: Arc<Cache<Pod>>,
    pub(super) agents: Agents,
}

impl Guests {
    /// How the guest of a sandbox stands.
    pub(super) fn stands(&self, sandbox: &Sandbox, is_moving: bool) -> Stands {
        let meta = &sandbox.metadata;
        let pod = self.pods.get(objects::namespace(meta), tracked_name(sandbox));
        let node = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        let sight = match (&pod, &node) {
            (Some(pod), Some(node)) => self.agents.sight(node, objects::uid(&pod.metadata)),
            _ => Sight::Unknown,
        };
        stands(sandbox, pod.as_deref(), &sight, is_moving)
    }

    /// Whether the guest of a sandbox still sleeps as that of a standby.
    pub(super) fn sleeps(&self, sandbox: &Sandbox) -> bool {
        asleep_on(sandbox).is_some() && self.stands(sandbox, false) != Stands::Awake
    }

    /// Does `write` and has the guest woken meanwhile. Whether it is awake in time is known by [`Self::sleeps`] then: the
    /// standby is the claim's in any case once the write is done.
    pub(super) async fn awake_with<T>(&self, stands: Stands, write: impl Future<Output = T>) -> T {
        let Stands::Asleep { node, pod } = stands else {
            return write.await;
        };
        let agents = self.agents.clone();
        let order = Order::Wake { pod };
        // On its own, so that it goes on if it is waited for no longer.
        let waking = tokio::spawn(async move { agents.order_behind(&node, order).await });
        let (written, woken) = tokio::join!(write, timeout(BOUND, waking));
        match woken {
            Ok(Ok(Ok(took))) => debug!(?took, "a standby was woken"),
            Ok(Ok(Err(error))) => info!(%error, "a standby was not woken"),
            Ok(Err(error)) => info!(%error, "a standby was not woken"),
            Err(_) => {
                info!(bound = ?BOUND, "a standby takes longer to wake, and its claim is told when it has");
            }
        }
        written
    }
}
