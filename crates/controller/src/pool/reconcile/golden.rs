//! What is known and done for golden snapshots.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::SandboxWarmPool;
use jiff::Timestamp;
use tracing::info;

use super::super::PoolNode;
use super::super::state::Key;
use super::{Known, PoolContext, Servers};
use crate::objects::{self, Ownership, controller_of};
use crate::write::is_already_there;

/// How old what is known of the nodes may be. There may be thousands, and pools that are looked at with each claim.
const NODES_ARE_KNOWN: Duration = Duration::from_secs(1);

/// How long a controller that begins takes for granted that agents can be reached which say that they are ready.
const LINKS_ARE_MADE: Duration = Duration::from_secs(10);

impl PoolContext {
    /// Golden snapshots that the pool owns, as they are now.
    pub(super) fn goldens(&self, pool: &SandboxWarmPool) -> Vec<Arc<SandboxSnapshot>> {
        let uid = objects::uid(&pool.metadata);
        let names = self.known.state.goldens(uid).into_iter();
        let namespace = objects::namespace(&pool.metadata);
        names
            .filter_map(|name| self.known.snapshots.get(namespace, &name))
            .filter(|golden| objects::ownership(&golden.metadata, uid) == Ownership::Own)
            .collect()
    }

    pub(super) fn nodes(&self) -> Servers {
        let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((then, nodes)) if then.elapsed() < NODES_ARE_KNOWN => nodes.clone(),
            _ => {
                let sound = self
                    .known
                    .nodes
                    .those(|sight| !sight.is_lost() && !sight.draining);
                let nodes = Servers {
                    of_agents: self.look_at_nodes(),
                    all: sound.len(),
                };
                *known = Some((Instant::now(), nodes.clone()));
                nodes
            }
        }
    }

    /// Nodes that standbys can go to.
    fn look_at_nodes(&self) -> Arc<[PoolNode]> {
        let Known {
            sandbox_nodes,
            nodes,
            agents,
            ..
        } = &self.known;
        let all = sandbox_nodes.store().state();
        let is_new = self.begun.elapsed() < LINKS_ARE_MADE;
        let reached = all
            .iter()
            .filter(|node| is_new || agents.reaches(objects::name(&node.metadata)));
        reached
            .filter_map(|node| {
                let name = objects::name(&node.metadata);
                PoolNode::of(node, nodes.sight(name), nodes.pressure(name))
            })
            .collect()
    }

    /// Has a golden snapshot taken. The pool fares without, so that what the API server says against it is no failure.
    pub(super) async fn make_golden(&self, golden: &SandboxSnapshot, key: &Key) {
        let name = objects::name(&golden.metadata);
        let made = self.writer.create(&self.known.snapshots, &key.0, golden).await;
        match made {
            Ok(made) => {
                let uid = controller_of(&made.metadata).map(|pool| pool.uid.clone());
                self.known.state.saw_golden(&uid.unwrap_or_default(), name, true);
                info!(
                    namespace = key.0,
                    pool = key.1,
                    snapshot = name,
                    standby = golden.spec.sandbox_name,
                    "a golden snapshot is taken"
                );
            }
            // The watch shows it.
            Err(error) if is_already_there(&error) => {}
            Err(error) => {
                info!(namespace = key.0, pool = key.1, snapshot = name, %error, "standbys boot");
                self.known.state.golden_refused(key, name, Timestamp::now());
            }
        }
    }
}
