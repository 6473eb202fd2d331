//! Standbys that sleep: the claim that gets one wakes it, while the API server is told whose it is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_core::Rung;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agents::{Agents, Order, OrderError, Sight};
use crate::cache::Cache;
use crate::nodes::{NodeSight, Nodes};
use crate::objects;
use crate::sandbox::{asleep_on, is_left_asleep, tracked_name};

/// How long a claim waits for a wake beyond its own write. One that takes longer goes on: the claim is told then.
const BOUND: Duration = Duration::from_secs(1);

/// The same from a snapshot, which has to be read. Not longer, as a claim that waits keeps others from being worked on.
const BOUND_OF_SNAPSHOT: Duration = Duration::from_secs(3);

/// How long sleepers of a node come last whose agent has not answered: by then the link to one that is not there is known to
/// be broken, and one that only was slow may be tried again.
const SILENT: Duration = Duration::from_secs(10);

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
        /// From where it is woken.
        rung: Rung,
    },
    /// It sleeps, and nobody can be told to wake it.
    OutOfReach,
    /// Its node is lost.
    Lost,
}

/// How the guest of a sandbox stands. `is_moving`: whether it is being put to sleep just now.
pub(super) fn stands(
    sandbox: &Sandbox,
    pod: Option<&Pod>,
    sight: &Sight,
    node: NodeSight,
    is_moving: bool,
) -> Stands {
    if node.is_lost() {
        return Stands::Lost;
    }
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
            rung: guest.rung.max(guest.moving_to.unwrap_or(Rung::Running)),
        },
        (true, ..) => Stands::OutOfReach,
    }
}

/// A standby as a claim finds it.
#[derive(Debug)]
pub(super) struct Found {
    /// How its guest stands.
    pub(super) stands: Stands,
    /// Its node, if it has one.
    pub(super) node: Option<String>,
    /// Whether the agent of the node can be reached.
    pub(super) is_reached: bool,
    /// Whether the node is being drained.
    pub(super) is_drained: bool,
    /// Whether the agent of the node has not answered of late.
    pub(super) is_silent: bool,
}

/// The guests of sandboxes.
#[derive(Debug, Clone)]
pub(super) struct Guests {
    pub(super) pods: Arc<Cache<Pod>>,
    pub(super) agents: Agents,
    pub(super) nodes: Nodes,
    pub(super) silent: Silent,
}

impl Guests {
    /// How a standby is found; `is_moving`: whether it is being put to sleep just now.
    pub(super) fn find(&self, standby: &Sandbox, is_moving: bool) -> Found {
        let (pod, sight, node) = self.look(standby);
        let of_node = self.nodes.sight(node.as_deref().unwrap_or_default());
        Found {
            stands: stands(standby, pod.as_deref(), &sight, of_node, is_moving),
            is_reached: sight != Sight::Unreachable,
            is_drained: of_node.draining,
            is_silent: node.as_deref().is_some_and(|node| self.silent.is(node)),
            node,
        }
    }

    /// Whether the guest of a claim's sandbox still sleeps as that of a standby. Its own status follows behind.
    pub(super) fn sleeps(&self, sandbox: &Sandbox) -> bool {
        match self.look(sandbox).1 {
            Sight::Seen(guest) => {
                let is_said = asleep_on(sandbox).is_some() && (guest.sleeps() || guest.moving_to.is_some());
                is_said || is_left_asleep(sandbox, &guest)
            }
            Sight::Unreachable | Sight::Unknown => asleep_on(sandbox).is_some(),
        }
    }

    /// For how long the agent of its node has been out of reach without a break, from `since` on; `None`: it can be reached.
    pub(super) fn out_of_reach(&self, sandbox: &Sandbox, since: Instant) -> Option<Duration> {
        let (_, sight, node) = self.look(sandbox);
        let node = node.filter(|_| sight == Sight::Unreachable)?;
        // Of a link that was not lost, none was there from the beginning.
        let since = self
            .agents
            .lost_since(&node)
            .map_or(since, |lost| lost.max(since));
        Some(since.elapsed())
    }

    /// UID of its pod.
    pub(super) fn pod_of(&self, sandbox: &Sandbox) -> Option<String> {
        let meta = &sandbox.metadata;
        let pod = self.pods.get(objects::namespace(meta), tracked_name(sandbox))?;
        Some(objects::uid(&pod.metadata).to_owned())
    }

    /// The node that it is on.
    pub(super) fn node_of(&self, sandbox: &Sandbox) -> Option<String> {
        self.look(sandbox).2
    }

    /// Its pod, what is known of the guest in it, and its node.
    fn look(&self, sandbox: &Sandbox) -> (Option<Arc<Pod>>, Sight, Option<String>) {
        let meta = &sandbox.metadata;
        let pod = self.pods.get(objects::namespace(meta), tracked_name(sandbox));
        let node = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        let sight = match (&pod, &node) {
            (Some(pod), Some(node)) => self.agents.sight(node, objects::uid(&pod.metadata)),
            _ => Sight::Unknown,
        };
        (pod, sight, node)
    }

    /// Does `write` and has the guest woken meanwhile. `falls_asleep`: it was being put to sleep, until this is cancelled.
    /// Whether it is awake in time is known by [`Self::sleeps`] then: the standby is the claim's in any case once the write
    /// is done.
    pub(super) async fn awake_with<T>(
        &self,
        stands: Stands,
        falls_asleep: Option<&CancellationToken>,
        write: impl Future<Output = T>,
    ) -> T {
        let Stands::Asleep { node, pod, rung } = stands else {
            return write.await;
        };
        let bound = if rung == Rung::Hibernated {
            BOUND_OF_SNAPSHOT
        } else {
            BOUND
        };
        // On its own, so that it goes on if it is waited for no longer.
        let waking = tokio::spawn(wake(
            self.agents.clone(),
            node.clone(),
            pod,
            falls_asleep.cloned(),
        ));
        let (written, woken) = tokio::join!(write, timeout(bound, waking));
        let answers = match woken {
            Ok(Ok(Ok(took))) => {
                debug!(?took, "a standby was woken");
                true
            }
            Ok(Ok(Err(error))) => {
                info!(%error, "a standby was not woken");
                !matches!(error, OrderError::Unreachable { .. })
            }
            Ok(Err(error)) => {
                info!(%error, "a standby was not woken");
                true
            }
            Err(_) => {
                info!(
                    node,
                    ?bound,
                    "a standby takes longer to wake, and its claim is told when it has"
                );
                false
            }
        };
        self.silent.note(&node, answers);
        written
    }
}

/// Has a guest woken. One that is being put to sleep is woken once more when that is over: an order to sleep that was given
/// first may come second.
async fn wake(
    agents: Agents,
    node: String,
    pod: String,
    falls_asleep: Option<CancellationToken>,
) -> Result<Duration, OrderError> {
    let took = agents
        .order_behind(&node, Order::Wake { pod: pod.clone() })
        .await?;
    let Some(over) = falls_asleep else {
        return Ok(took);
    };
    over.cancelled().await;
    agents.order_behind(&node, Order::Wake { pod }).await
}

/// Nodes whose agents have not answered of late, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Silent(Arc<Mutex<HashMap<String, Instant>>>);

impl Silent {
    fn note(&self, node: &str, answers: bool) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers {
            nodes.remove(node);
        } else {
            nodes.insert(node.to_owned(), Instant::now());
        }
    }

    fn is(&self, node: &str) -> bool {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = nodes.get(node).is_some_and(|since| since.elapsed() > SILENT);
        if is_over {
            nodes.remove(node);
        }
        nodes.contains_key(node)
    }
}
