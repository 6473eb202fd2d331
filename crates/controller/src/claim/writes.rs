//! What is written for claims, and what becomes of it when the controller ends in between, against a small API server.

mod bad_days;
mod failover;
mod late;
mod sleepers;

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{ClaimEnv, InjectionPolicy, SandboxClaim, SandboxTemplate, SandboxWarmPool};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector;

use super::tests::{claim, pool, standby, template};
use super::{Candidates, ClaimContext, ClaimError, Known, Notes, Settings, reconcile};
use crate::agents::Agents;
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::objects::{self, controller_of, is_true};
use crate::queue::Queue;
use crate::test_server::Server;

impl Server {
    fn new(standbys: &[Sandbox]) -> Self {
        let server = Self::empty();
        for standby in standbys {
            server.put("sandboxes", standby);
        }
        server.put("sandboxclaims", &claim());
        server
    }

    fn claim(&self) -> SandboxClaim {
        self.all("sandboxclaims").remove(0)
    }
}

/// A controller that has just begun, and so knows what the API server has.
struct Controller {
    context: Arc<ClaimContext>,
    known: Known,
}

fn owner(sandbox: &Sandbox) -> Option<&str> {
    controller_of(&sandbox.metadata).map(|owner| owner.uid.as_str())
}

impl Controller {
    fn of(server: &Server) -> Self {
        let known = Known {
            claims: Arc::new(Cache::new(reflector::store().0, |_: &SandboxClaim| None)),
            sandboxes: Arc::new(Cache::new(reflector::store().0, owner)),
            pools: Arc::new(Cache::new(reflector::store().0, |_: &SandboxWarmPool| None)),
            templates: Arc::new(Cache::new(reflector::store().0, |_: &SandboxTemplate| None)),
            candidates: Candidates::default(),
            notes: Arc::new(Notes::default()),
            demand: Arc::default(),
            pool_queue: Queue::default(),
            claim_queue: Queue::default(),
            pods: Arc::new(Cache::new(reflector::store().0, |_: &Pod| None)),
            agents: Agents::new(|_, _| {}, |_| {}),
            nodes: Nodes::new(
                Arc::new(Cache::new(reflector::store().0, |_: &Node| None)),
                vec![],
            ),
            rush: crate::rush::Rush::default(),
        };
        known.pools.wrote(pool());
        known.templates.wrote(template());
        Self::with(server, known)
    }

    /// One that knows this, and what the API server has.
    fn with(server: &Server, known: Known) -> Self {
        Self::with_patience(server, known, Duration::ZERO)
    }

    /// The same that is so patient with agents.
    fn with_patience(server: &Server, known: Known, patience: Duration) -> Self {
        let settings = Settings {
            label_domains: vec![],
            observability: true,
            patience,
        };
        let context = ClaimContext::new(
            server.client(),
            None,
            settings,
            known.clone(),
            Arc::new(Metrics::default()),
        );
        let controller = Self {
            context: Arc::new(context),
            known,
        };
        controller.hear(server);
        controller
    }

    /// The watches tell what there is.
    fn hear(&self, server: &Server) {
        for claim in server.all("sandboxclaims") {
            self.known.claims.wrote(claim);
        }
        for sandbox in server.all::<Sandbox>("sandboxes") {
            let name = objects::name(&sandbox.metadata).to_owned();
            self.known.sandboxes.wrote(sandbox.clone());
            self.known.candidates.saw("ns", &name, Some(&sandbox));
        }
    }

    async fn look(&self) -> Result<(), ClaimError> {
        reconcile(Arc::new(claim()), Arc::clone(&self.context))
            .await
            .map(|_| ())
    }
}

/// What is written for a claim that gets the standby `a`.
const HANDED_OVER: [&str; 3] = [
    "patch sandboxes a",
    "patch sandboxclaims/status claim",
    "patch sandboxclaims claim",
];

fn standbys() -> Vec<Sandbox> {
    ["a", "b", "c", "d"]
        .iter()
        .map(|name| standby(&pool(), name, true))
        .collect()
}

fn is_ready(claim: &SandboxClaim) -> bool {
    claim
        .status
        .as_ref()
        .is_some_and(|status| is_true(&status.conditions, "Ready"))
}

fn told(claim: &SandboxClaim) -> Option<String> {
    claim.status.as_ref()?.sandbox.as_ref()?.name.clone()
}

/// Names of the sandboxes that are the claim's.
fn own(server: &Server) -> Vec<String> {
    let all = server.all::<Sandbox>("sandboxes");
    all.iter()
        .filter(|sandbox| owner(sandbox) == Some("claim-uid"))
        .map(|sandbox| objects::name(&sandbox.metadata).to_owned())
        .collect()
}

#[tokio::test]
async fn what_is_noted_on_a_claim_gives_way_to_claims_that_wait() {
    let server = Server::new(&standbys());
    let controller = Controller::of(&server);
    let others: Vec<_> = (0..8).map(|_| controller.known.rush.enter()).collect();
    let look = async || {
        reconcile(Arc::new(claim()), Arc::clone(&controller.context))
            .await
            .unwrap()
    };
    let later = kube::runtime::controller::Action::requeue(std::time::Duration::from_millis(500));
    assert_eq!(look().await, later);
    assert_eq!(server.log(), HANDED_OVER[..2]);
    let ready_by = jiff::Timestamp::now();
    controller.hear(&server);
    assert_eq!((look().await, server.log()), (later, vec![]));
    drop(others);
    controller.look().await.unwrap();
    assert_eq!(server.log(), HANDED_OVER[2..]);
    // When it was ready is remembered.
    let noted = server.claim().metadata.annotations.unwrap();
    let at: jiff::Timestamp = noted["agents.x-k8s.io/claim-first-ready-at"].parse().unwrap();
    assert!(at <= ready_by, "{at}");
    assert_eq!(noted["agents.x-k8s.io/sandbox-name"], "a");
}

#[tokio::test]
async fn two_writes_lead_from_a_claim_to_its_standby_and_one_is_made_after() {
    let server = Server::new(&standbys());
    let controller = Controller::of(&server);
    controller.look().await.unwrap();
    assert_eq!(server.log(), HANDED_OVER);
    assert!(is_ready(&server.claim()) && told(&server.claim()).as_deref() == Some("a"));
    let noted = server.claim().metadata.annotations.unwrap();
    assert_eq!(noted["agents.x-k8s.io/sandbox-name"], "a");
    assert!(noted.contains_key("agents.x-k8s.io/controller-first-observed-at"));
    assert!(noted.contains_key("agents.x-k8s.io/claim-first-ready-at"));
    // Then there is nothing left to write, whatever the watches tell.
    controller.hear(&server);
    controller.look().await.unwrap();
    assert_eq!(server.log(), [""; 0]);
}

#[tokio::test]
async fn a_claim_without_a_standby_is_noted_while_it_waits() {
    let server = Server::new(&[]);
    let controller = Controller::of(&server);
    controller.look().await.unwrap();
    assert_eq!(
        server.log(),
        [
            "post sandboxes claim",
            "patch sandboxclaims/status claim",
            "patch sandboxclaims claim"
        ]
    );
    let mut made = server.all::<Sandbox>("sandboxes").remove(0);
    made.status = standby(&pool(), "x", true).status;
    server.put("sandboxes", &made);
    controller.hear(&server);
    controller.look().await.unwrap();
    assert_eq!(
        server.log(),
        ["patch sandboxclaims/status claim", "patch sandboxclaims claim"]
    );
    assert!(is_ready(&server.claim()));
}

#[tokio::test]
async fn a_pool_learns_once_of_each_claim_what_it_found() {
    let found = async |standbys: &[Sandbox], most: Option<i32>, cold: bool| {
        let server = Server::new(standbys);
        let mut claim = claim();
        let mut template = template();
        if cold {
            claim.spec.env = vec![ClaimEnv {
                name: "NEW".to_owned(),
                ..ClaimEnv::default()
            }];
            template.spec.env_vars_injection_policy = InjectionPolicy::Allowed;
            server.put("sandboxclaims", &claim);
        }
        let controller = Controller::of(&server);
        controller.known.templates.wrote(template);
        let mut pool = pool();
        pool.spec.max_ready = most;
        controller.known.pools.wrote(pool);
        for _ in 0..2 {
            controller.look().await.unwrap();
            controller.hear(&server);
        }
        controller.known.demand.claims("ns", "pool")
    };
    let starting = standby(&pool(), "a", false);
    assert_eq!(found(&standbys(), Some(5), false).await, (1, 0));
    assert_eq!(found(&[starting], Some(5), false).await, (1, 1));
    assert_eq!(found(&[], Some(5), false).await, (1, 1));
    // Also one that the controller does not size: it is advised by that.
    assert_eq!(found(&[], None, false).await, (1, 1));
    // It would not have taken one.
    assert_eq!(found(&[], Some(5), true).await, (0, 0));
}

#[tokio::test]
async fn a_pool_learns_how_long_its_claims_waited() {
    let server = Server::new(&[]);
    let controller = Controller::of(&server);
    let mut pool = pool();
    pool.spec.max_ready = Some(5);
    controller.known.pools.wrote(pool.clone());
    let at = |second| Time(Timestamp::from_second(second).unwrap());
    let mut waits = server.claim();
    waits.metadata.creation_timestamp = Some(at(1000));
    server.put("sandboxclaims", &waits);
    controller.hear(&server);
    controller.look().await.unwrap();
    let mut made = server.all::<Sandbox>("sandboxes").remove(0);
    made.metadata.creation_timestamp = Some(at(1001));
    made.status = standby(&pool, "x", true).status;
    for condition in &mut made.status.get_or_insert_default().conditions {
        condition.last_transition_time = at(1034);
    }
    server.put("sandboxes", &made);
    for _ in 0..2 {
        controller.hear(&server);
        controller.look().await.unwrap();
    }
    let refill = controller.known.demand.refill("ns", "pool");
    assert_eq!(refill, Some(Duration::from_secs(33)));
}

#[tokio::test]
async fn wherever_the_controller_ends_the_claim_gets_one_sandbox() {
    for (standbys, most) in [(standbys(), 3), (vec![], 3)] {
        for writes in 0..=most {
            let server = Server::new(&standbys);
            server.takes(writes);
            // It dies.
            let _ = Controller::of(&server).look().await;
            let before = own(&server);
            server.takes(usize::MAX);
            let controller = Controller::of(&server);
            controller.look().await.unwrap();
            let after = own(&server);
            assert_eq!(after.len(), 1, "after {writes} writes");
            assert!(before.is_empty() || before == after, "after {writes} writes");
            assert_eq!(told(&server.claim()), after.first().cloned());
            server.log();
            controller.look().await.unwrap();
            assert_eq!(server.log(), [""; 0]);
        }
    }
}

#[tokio::test]
async fn who_was_written_by_somebody_else_is_left_and_the_next_is_tried() {
    let server = Server::new(&standbys());
    let controller = Controller::of(&server);
    let mut changed = standbys().remove(0);
    changed.spec.idle_timeout = Some("5m".to_owned());
    server.put("sandboxes", &changed);
    controller.look().await.unwrap();
    assert_eq!(server.log()[..2], ["patch sandboxes a", "patch sandboxes b"]);
    assert_eq!(own(&server), ["b"]);
    // It is there for the next one.
    controller.hear(&server);
    assert!(matches!(
        controller
            .known
            .candidates
            .reserve("ns", "pool", &super::Passed::default()),
        super::Choice::Reserved(reservation) if reservation.name() == "a"
    ));
}

#[tokio::test]
async fn after_three_that_were_lost_it_is_said() {
    let server = Server::new(&standbys());
    let controller = Controller::of(&server);
    for standby in standbys() {
        server.put("sandboxes", &standby);
    }
    assert!(controller.look().await.is_err());
    let log = server.log();
    assert_eq!(
        log.iter()
            .filter(|entry| entry.starts_with("patch sandboxes "))
            .count(),
        3
    );
    let status = server.claim().status.unwrap();
    assert_eq!(status.conditions[0].reason, "AdoptionPending");
    assert!(own(&server).is_empty());
    controller.hear(&server);
    controller.look().await.unwrap();
    assert_eq!(own(&server).len(), 1);
}

#[tokio::test]
async fn of_two_controllers_that_do_not_know_of_each_other_one_is_heard() {
    let server = Server::new(&standbys());
    let (one, other) = (Controller::of(&server), Controller::of(&server));
    one.look().await.unwrap();
    // The other one still believes that the claim has nothing, and gives it another standby; but it is too late to say so.
    server.log();
    other.look().await.unwrap();
    assert_eq!(told(&server.claim()).as_deref(), Some("a"));
    assert_eq!(own(&server).len(), 2);
    other.hear(&server);
    other.look().await.unwrap();
    assert_eq!(
        (own(&server), told(&server.claim())),
        (vec!["a".to_owned()], Some("a".to_owned()))
    );
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said() {
    let server = Server::new(&[]);
    server.0.lock().unwrap().full = true;
    assert!(Controller::of(&server).look().await.is_err());
    let condition = server.claim().status.unwrap().conditions.remove(0);
    assert_eq!(condition.reason, "ReconcilerError");
    assert_eq!(condition.message, "Error seen: sandbox create error: Forbidden");
}
