//! A controller's knowledge for tests: what is put into it, and nothing of its own.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, StandbyQuota};
use dormouse_api::extensions::{SandboxTemplate, SandboxWarmPool};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;

use super::settings;
use crate::agents::Agents;
use crate::cache::Cache;
use crate::nodes::Nodes;
use crate::objects::controller_of;
use crate::pool::{FIELD_MANAGER, Known, PoolContext, Pools, Settings};
use crate::queue::Queue;
use crate::test_server::Server;

/// Nothing is known.
pub(super) fn nothing() -> Known {
    let nodes = Arc::new(Cache::new(reflector::store().0, |_: &Node| None));
    Known {
        pools: Arc::new(Cache::new(reflector::store().0, |_: &SandboxWarmPool| None)),
        sandboxes: Arc::new(Cache::new(reflector::store().0, |sandbox: &Sandbox| {
            controller_of(&sandbox.metadata).map(|owner| owner.uid.as_str())
        })),
        templates: Arc::new(Cache::new(reflector::store().0, |_: &SandboxTemplate| None)),
        pods: Arc::new(Cache::new(reflector::store().0, |_: &Pod| None)),
        state: Arc::new(Pools::default()),
        quotas: Arc::new(Cache::new(reflector::store().0, |quota: &StandbyQuota| {
            quota.metadata.namespace.as_deref()
        })),
        pool_queue: Queue::default(),
        sandbox_queue: Queue::default(),
        snapshots: Arc::new(Cache::new(reflector::store().0, |_: &SandboxSnapshot| None)),
        sandbox_nodes: Arc::new(Cache::new(reflector::store().0, |_: &SandboxNode| None)),
        nodes: Nodes::new(nodes, vec![]),
        agents: Agents::new(|_, _| {}, |_| {}),
    }
}

/// One who knows so much, at an API server.
pub(super) fn context(server: &Server, known: &Known) -> Arc<PoolContext> {
    context_with(server, known, settings())
}

/// The same with these settings.
pub(super) fn context_with(server: &Server, known: &Known, settings: Settings) -> Arc<PoolContext> {
    let reporter = Reporter::from(FIELD_MANAGER.to_owned());
    let recorder = Recorder::new(server.client(), reporter);
    let context = PoolContext::new(server.client(), recorder, settings, known.clone());
    Arc::new(context)
}
