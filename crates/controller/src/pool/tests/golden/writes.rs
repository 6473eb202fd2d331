//! What is written for golden snapshots, and what becomes of it when the controller ends in between, against a small API
//! server.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{NodeCapability, SandboxNode, SandboxNodeStatus, SandboxSnapshot};
use dormouse_api::extensions::SandboxWarmPool;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;

use crate::cache::Cache;
use crate::objects::{controller_of, name};
use crate::pool::tests::known::{context, nothing};
use crate::pool::tests::{pool, standby, template};
use crate::pool::{Known, PoolContext, PoolError, reconcile};
use crate::test_agent::Agent;
use crate::test_server::Server;

fn golden_pool(golden: &str) -> SandboxWarmPool {
    let mut pool = pool(1);
    pool.spec.golden = Some(golden.to_owned());
    pool
}

/// One that has been ready on `node-1` for a while.
fn settled() -> Sandbox {
    let mut standby = standby("s", true, 0);
    let status = standby.status.get_or_insert_default();
    status.node_name = Some("node-1".to_owned());
    let since = Timestamp::now() - std::time::Duration::from_secs(60);
    for condition in &mut status.conditions {
        condition.last_transition_time = Time(since);
    }
    standby
}

fn said_of_node() -> SandboxNode {
    let mut node = SandboxNode::default();
    node.metadata.name = Some("node-1".to_owned());
    node.status = Some(SandboxNodeStatus {
        conditions: vec![Condition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            reason: "AgentReady".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }],
        capabilities: vec![NodeCapability {
            name: "snapshots".to_owned(),
            available: true,
            ..NodeCapability::default()
        }],
        ..SandboxNodeStatus::default()
    });
    node
}

/// A controller that has just begun, and so knows what the API server has.
struct Controller {
    context: Arc<PoolContext>,
    known: Known,
}

impl Controller {
    async fn of(server: &Server, pool: SandboxWarmPool) -> Self {
        let mut known = nothing();
        // The nodes are read as the watch shows them.
        let (nodes, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Apply(said_of_node()));
        known.sandbox_nodes = Arc::new(Cache::new(nodes, |_: &SandboxNode| None));
        known.agents.link("node-1", Agent::default().client().await, &[]);
        known.pools.wrote(pool);
        known.templates.wrote(template());
        known.sandboxes.wrote(settled());
        let context = context(server, &known);
        let controller = Self { context, known };
        controller.hear(server);
        controller
    }

    /// The watch tells of the snapshots that there are.
    fn hear(&self, server: &Server) {
        for snapshot in server.all::<SandboxSnapshot>("sandboxsnapshots") {
            let pool = controller_of(&snapshot.metadata).unwrap().uid.clone();
            let name = name(&snapshot.metadata).to_owned();
            self.known.snapshots.wrote(snapshot);
            self.known.state.saw_golden(&pool, &name, true);
        }
    }

    async fn look(&self) -> Result<(), PoolError> {
        let pool = self.known.pools.get("ns", "pool").unwrap();
        reconcile(pool, Arc::clone(&self.context)).await.map(|_| ())
    }
}

fn server() -> Server {
    let server = Server::empty();
    server.put("sandboxwarmpools", &golden_pool("Auto"));
    server.put("sandboxes", &settled());
    server
}

/// Writes to snapshots.
fn writes(server: &Server) -> Vec<String> {
    let mut log = server.log();
    log.retain(|write| write.contains("sandboxsnapshots"));
    log
}

fn all(server: &Server) -> Vec<SandboxSnapshot> {
    server.all("sandboxsnapshots")
}

#[tokio::test]
async fn one_write_orders_a_golden_snapshot_and_one_deletes_it() {
    let server = server();
    let controller = Controller::of(&server, golden_pool("Auto")).await;
    controller.look().await.unwrap();
    assert_eq!(writes(&server).len(), 1);
    assert_eq!(all(&server)[0].spec.sandbox_name, "s");
    // It is known before the watch shows it.
    controller.look().await.unwrap();
    assert_eq!(writes(&server), [""; 0]);
    let mut changed = pool(1);
    changed.metadata.resource_version = Some("9999".to_owned());
    controller.known.pools.wrote(changed);
    controller.look().await.unwrap();
    assert!(all(&server).is_empty());
    assert_eq!(writes(&server).len(), 1);
}

#[tokio::test]
async fn wherever_controllers_end_a_node_has_one_golden_snapshot() {
    for takes in 0..=3 {
        let server = server();
        server.takes(takes);
        // It dies.
        let _ = Controller::of(&server, golden_pool("Auto")).await.look().await;
        server.takes(usize::MAX);
        // One that knows of what was made, and one that does not yet.
        let blind = Controller::of(&Server::empty(), golden_pool("Auto")).await.known;
        let heir = Controller::of(&server, golden_pool("Auto")).await;
        for known in [heir.known, blind] {
            let pool = Arc::new(golden_pool("Auto"));
            reconcile(pool, context(&server, &known)).await.unwrap();
            assert_eq!(all(&server).len(), 1, "after {takes} writes");
        }
    }
}

#[tokio::test]
async fn what_the_api_server_does_not_take_is_not_asked_over_and_over_and_fails_no_pool() {
    let server = server();
    server.0.lock().unwrap().full = true;
    let controller = Controller::of(&server, golden_pool("Auto")).await;
    controller.look().await.unwrap();
    assert_eq!(writes(&server).len(), 1);
    controller.look().await.unwrap();
    assert_eq!(writes(&server), [""; 0]);
}
