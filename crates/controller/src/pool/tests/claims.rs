//! Pools and claims together, against a small API server: templates change and go while claims come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{SandboxClaim, SandboxTemplate, SandboxWarmPool};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector;
use proptest::prelude::*;

use super::known::{context, nothing};
use super::{pool, recreating, standby, template};
use crate::cache::Cache;
use crate::claim::{self, Candidates, ClaimContext, Notes};
use crate::metrics::Metrics;
use crate::objects::{self, condition, controller_of, is_true};
use crate::pool::{Known, PoolContext, reconcile, recreates};
use crate::queue::Queue;
use crate::test_server::Server;

const POOL: &str = "pool";

/// A cluster with one pool, and a controller in it.
struct World {
    server: Server,
    known: Known,
    candidates: Candidates,
    claims: Arc<Cache<SandboxClaim>>,
    of_claims: Arc<ClaimContext>,
    of_pools: Arc<PoolContext>,
    /// How many claims there have been.
    claimed: usize,
}

fn owner(sandbox: &Sandbox) -> Option<&str> {
    controller_of(&sandbox.metadata).map(|owner| owner.uid.as_str())
}

/// A template of this version.
fn of_version(version: u8) -> SandboxTemplate {
    let mut template = template();
    template.spec.pod_template.spec.containers[0].image = Some(version.to_string());
    template
}

fn version(sandbox: &Sandbox) -> Option<String> {
    sandbox.spec.pod_template.spec.containers[0].image.clone()
}

fn is_ready(sandbox: &Sandbox) -> bool {
    crate::pool::is_ready(sandbox)
}

impl World {
    fn new(pool: &SandboxWarmPool) -> Self {
        let server = Server::empty();
        server.put("sandboxwarmpools", pool);
        server.put("sandboxtemplates", &of_version(0));
        let known = nothing();
        let claims = Arc::new(Cache::new(reflector::store().0, |_: &SandboxClaim| None));
        let candidates = Candidates::default();
        let of_claims = ClaimContext::new(
            server.client(),
            None,
            claim::Settings {
                label_domains: vec![],
                observability: false,
                patience: Duration::ZERO,
            },
            claim::Known {
                claims: Arc::clone(&claims),
                sandboxes: Arc::clone(&known.sandboxes),
                pools: Arc::clone(&known.pools),
                templates: Arc::clone(&known.templates),
                candidates: candidates.clone(),
                notes: Arc::new(Notes::default()),
                demand: Arc::clone(&known.state),
                pool_queue: Queue::default(),
                claim_queue: Queue::default(),
                pods: Arc::clone(&known.pods),
                agents: known.agents.clone(),
                nodes: known.nodes.clone(),
                rush: crate::rush::Rush::default(),
            },
            Arc::new(Metrics::default()),
        );
        Self {
            of_pools: context(&server, &known),
            of_claims: Arc::new(of_claims),
            claims,
            candidates,
            known,
            server,
            claimed: 0,
        }
    }

    fn sandboxes(&self) -> Vec<Sandbox> {
        self.server.all("sandboxes")
    }

    fn standbys(&self) -> Vec<Sandbox> {
        let mut all = self.sandboxes();
        all.retain(|sandbox| owner(sandbox) == Some("pool-uid"));
        all
    }

    /// The watches tell what there is.
    fn hear(&self) {
        for pool in self.server.all("sandboxwarmpools") {
            self.known.pools.wrote(pool);
        }
        for template in self.server.all("sandboxtemplates") {
            self.known.templates.wrote(template);
        }
        for claim in self.server.all("sandboxclaims") {
            self.claims.wrote(claim);
        }
        for sandbox in self.sandboxes() {
            let meta = sandbox.metadata.clone();
            self.known.sandboxes.wrote(sandbox.clone());
            self.candidates.saw("ns", objects::name(&meta), Some(&sandbox));
            self.known.state.saw_sandbox(objects::uid(&meta), true);
        }
    }

    fn forget_sandbox(&self, name: &str, uid: &str) {
        self.server.remove("sandboxes", name);
        self.known.sandboxes.gone("ns", name, uid);
        self.candidates.saw("ns", name, None);
        self.known.state.saw_sandbox(uid, false);
    }

    /// What nobody owns any more goes.
    fn collect_garbage(&self) {
        let before = self.sandboxes();
        self.server.collect_garbage();
        let after: BTreeSet<String> = self
            .sandboxes()
            .iter()
            .map(|sandbox| objects::uid(&sandbox.metadata).to_owned())
            .collect();
        for gone in before {
            let uid = objects::uid(&gone.metadata);
            if !after.contains(uid) {
                self.forget_sandbox(objects::name(&gone.metadata), uid);
            }
        }
    }

    /// Pods become ready; whether any did.
    fn run_pods(&self) -> bool {
        let mut any = false;
        for mut sandbox in self.sandboxes() {
            if !is_ready(&sandbox) {
                sandbox.status = standby("x", true, 0).status;
                sandbox.status.get_or_insert_default().pod_ips = vec!["10.0.0.1".to_owned()];
                self.server.put("sandboxes", &sandbox);
                any = true;
            }
        }
        any
    }

    fn claim(&mut self) -> String {
        self.claimed += 1;
        let name = format!("claim-{}", self.claimed);
        let mut claim = SandboxClaim::default();
        claim.metadata.name = Some(name.clone());
        claim.metadata.namespace = Some("ns".to_owned());
        claim.metadata.uid = Some(format!("{name}-uid"));
        claim.spec.warm_pool_ref.name = POOL.to_owned();
        self.server.put("sandboxclaims", &claim);
        name
    }

    fn delete_claim(&self, name: &str) {
        self.server.remove("sandboxclaims", name);
        self.claims.gone("ns", name, &format!("{name}-uid"));
        self.collect_garbage();
    }

    /// A template that comes again is another one.
    fn put_template(&self, version: u8, generation: usize) {
        let mut template = of_version(version);
        template.metadata.uid = Some(format!("template-{generation}"));
        self.server.put("sandboxtemplates", &template);
    }

    fn delete_template(&self) {
        for template in self.server.all::<SandboxTemplate>("sandboxtemplates") {
            let uid = objects::uid(&template.metadata).to_owned();
            self.server.remove("sandboxtemplates", "template");
            self.known.templates.gone("ns", "template", &uid);
        }
    }

    async fn look_at_pool(&self) {
        let all: Vec<SandboxWarmPool> = self.server.all("sandboxwarmpools");
        for pool in all {
            reconcile(Arc::new(pool), Arc::clone(&self.of_pools))
                .await
                .unwrap();
        }
    }

    async fn look_at_claims(&self) {
        for claim in self.server.all::<SandboxClaim>("sandboxclaims") {
            // What is in the way stands in its status.
            let _ = claim::reconcile(Arc::new(claim), Arc::clone(&self.of_claims)).await;
        }
    }

    /// Everybody looks until nothing is written any more.
    async fn settle(&self) {
        self.server.log();
        for _ in 0..20 {
            self.hear();
            self.look_at_pool().await;
            self.look_at_claims().await;
            let more = self.run_pods();
            if self.server.log().is_empty() && !more {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.server.log());
    }

    /// Each claim's sandbox, by the claim.
    fn told(&self) -> BTreeMap<String, String> {
        let claims = self.server.all::<SandboxClaim>("sandboxclaims");
        let told = claims.iter().filter_map(|claim| {
            let status = claim.status.as_ref()?;
            let name = status.sandbox.as_ref()?.name.clone()?;
            is_true(&status.conditions, "Ready").then(|| (objects::name(&claim.metadata).to_owned(), name))
        });
        told.collect()
    }

    fn events(&self) -> Vec<(String, String)> {
        let events = self.server.all::<Event>("events");
        let mut events: Vec<_> = events
            .into_iter()
            .map(|event| (event.event_time, event.reason.unwrap(), event.note.unwrap()))
            .collect();
        events.sort();
        events
            .into_iter()
            .map(|(_, reason, note)| (reason, note))
            .collect()
    }

    fn reason(&self, claim: &str) -> Option<String> {
        let claims = self.server.all::<SandboxClaim>("sandboxclaims");
        let claim = claims.iter().find(|it| objects::name(&it.metadata) == claim)?;
        condition(&claim.status.as_ref()?.conditions, "Ready").map(|ready| ready.reason.clone())
    }
}

#[tokio::test]
async fn a_pool_without_its_template_says_so_once_serves_what_it_has_and_recovers() {
    let mut world = World::new(&pool(2));
    world.settle().await;
    world.delete_template();
    let (first, second, third) = (world.claim(), world.claim(), world.claim());
    world.settle().await;
    // What was made before is given away; who comes after that waits.
    let told = world.told();
    assert_eq!(told.keys().collect::<Vec<_>>(), [&first, &second]);
    assert_eq!(world.reason(&third).as_deref(), Some("TemplateNotFound"));
    for _ in 0..3 {
        world.settle().await;
    }
    let note = "SandboxTemplate \"template\" not found; there are 0/2 sandboxes, and none is made without it";
    let halted = ("WarmPoolNotProgressing".to_owned(), note.to_owned());
    assert_eq!(world.events(), std::slice::from_ref(&halted));
    world.put_template(1, 1);
    world.settle().await;
    assert_eq!(world.told().len(), 3);
    assert_eq!(world.standbys().len(), 2);
    let gets_on = (
        "WarmPoolProgressing".to_owned(),
        "Warm pool is progressing again".to_owned(),
    );
    assert_eq!(world.events(), [halted, gets_on]);
}

#[tokio::test]
async fn a_pool_whose_standbys_do_not_get_ready_says_so_once_and_recovers() {
    let world = World::new(&pool(2));
    let made_long_ago = || {
        for mut sandbox in world.sandboxes() {
            let long_ago = jiff::Timestamp::now() - Duration::from_secs(400);
            sandbox.metadata.creation_timestamp = Some(Time(long_ago));
            world.server.put("sandboxes", &sandbox);
        }
    };
    for _ in 0..3 {
        // They are made, and nothing is done as long as they have time.
        world.hear();
        world.look_at_pool().await;
        assert_eq!(world.standbys().len(), 2);
        world.hear();
        world.look_at_pool().await;
        world.server.log();
        world.look_at_pool().await;
        assert_eq!(world.server.log(), [""; 0]);
        made_long_ago();
        world.hear();
        world.look_at_pool().await;
        assert_eq!(world.standbys().len(), 0);
    }
    let reasons =
        |events: Vec<(String, String)>| events.into_iter().map(|(reason, _)| reason).collect::<Vec<_>>();
    assert_eq!(reasons(world.events()), ["WarmPoolNotProgressing"]);
    // The template is mended.
    world.put_template(1, 0);
    world.settle().await;
    let now = Time(jiff::Timestamp::now());
    for mut sandbox in world.sandboxes() {
        sandbox.metadata.creation_timestamp = Some(now.clone());
        world.server.put("sandboxes", &sandbox);
    }
    world.settle().await;
    assert_eq!(
        reasons(world.events()),
        ["WarmPoolNotProgressing", "WarmPoolProgressing"]
    );
    assert!(world.standbys().iter().all(is_ready));
}

#[tokio::test]
async fn a_template_that_changes_in_a_burst_costs_no_claim_its_sandbox() {
    for (pool, is_recreating) in [(pool(4), false), (recreating(4), true)] {
        let mut world = World::new(&pool);
        world.settle().await;
        let before: Vec<String> = (0..3).map(|_| world.claim()).collect();
        world.hear();
        world.look_at_claims().await;
        world.put_template(1, 0);
        let after: Vec<String> = (0..3).map(|_| world.claim()).collect();
        world.hear();
        // The claims are faster than the pool.
        world.look_at_claims().await;
        world.settle().await;
        let told = world.told();
        assert_eq!(told.len(), 6);
        let all = world.sandboxes();
        let versions = |claims: &[String]| {
            let of = |claim: &String| {
                let named = |sandbox: &&Sandbox| objects::name(&sandbox.metadata) == told[claim];
                version(all.iter().find(named).unwrap()).unwrap()
            };
            claims.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(versions(&before), ["0", "0", "0"]);
        let expected = if is_recreating {
            ["1", "1", "1"]
        } else {
            ["0", "1", "1"]
        };
        assert_eq!(versions(&after), expected);
        assert!(
            world
                .standbys()
                .iter()
                .all(|standby| version(standby).as_deref() == Some("1"))
        );
    }
}

/// What may happen.
#[derive(Debug, Clone)]
enum Deed {
    Claim,
    DeleteClaim(prop::sample::Index),
    ChangeTemplate(u8),
    DeleteTemplate,
    /// A standby goes, and the controller hears of it or not.
    Die(prop::sample::Index, bool),
    Hear,
    RunPods,
    LookAtPool,
    LookAtClaims,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => Just(Deed::Claim),
        1 => any::<prop::sample::Index>().prop_map(Deed::DeleteClaim),
        2 => (0..3_u8).prop_map(Deed::ChangeTemplate),
        1 => Just(Deed::DeleteTemplate),
        2 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, heard)| Deed::Die(which, heard)),
        4 => Just(Deed::Hear),
        3 => Just(Deed::RunPods),
        3 => Just(Deed::LookAtPool),
        3 => Just(Deed::LookAtClaims),
    ]
}

async fn happens(deeds: Vec<Deed>, pool: SandboxWarmPool) -> Result<(), TestCaseError> {
    let is_recreating = recreates(&pool);
    let mut world = World::new(&pool);
    let mut unheard = Vec::new();
    world.hear();
    for (number, deed) in deeds.into_iter().enumerate() {
        match deed {
            Deed::Claim => {
                world.claim();
            }
            Deed::DeleteClaim(which) => {
                let all = world.server.all::<SandboxClaim>("sandboxclaims");
                if !all.is_empty() {
                    world.delete_claim(objects::name(&which.get(&all).metadata));
                }
            }
            Deed::ChangeTemplate(version) => world.put_template(version, number),
            Deed::DeleteTemplate => world.delete_template(),
            Deed::Die(which, heard) => {
                let all = world.standbys();
                if !all.is_empty() {
                    let meta = &which.get(&all).metadata;
                    let (name, uid) = (objects::name(meta).to_owned(), objects::uid(meta).to_owned());
                    if heard {
                        world.forget_sandbox(&name, &uid);
                    } else {
                        world.server.remove("sandboxes", &name);
                        unheard.push((name, uid));
                    }
                }
            }
            Deed::Hear => {
                for (name, uid) in unheard.drain(..) {
                    world.forget_sandbox(&name, &uid);
                }
                world.hear();
            }
            Deed::RunPods => {
                world.run_pods();
            }
            Deed::LookAtPool => world.look_at_pool().await,
            Deed::LookAtClaims => world.look_at_claims().await,
        }
    }
    for (name, uid) in unheard {
        world.forget_sandbox(&name, &uid);
    }
    world.put_template(9, 1000);
    world.settle().await;
    // Each claim has a sandbox of its own, and nobody else has any.
    let told = world.told();
    let claims = world.server.all::<SandboxClaim>("sandboxclaims").len();
    prop_assert_eq!(told.len(), claims, "a claim has no sandbox");
    let names: BTreeSet<&String> = told.values().collect();
    prop_assert_eq!(names.len(), claims, "two claims have one sandbox");
    let standbys = world.standbys();
    prop_assert_eq!(
        world.sandboxes().len(),
        claims + standbys.len(),
        "a sandbox is left"
    );
    prop_assert_eq!(standbys.len(), 3);
    if is_recreating {
        prop_assert!(
            standbys
                .iter()
                .all(|standby| version(standby).as_deref() == Some("9"))
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_happens_each_claim_ends_with_one_sandbox(
        deeds in prop::collection::vec(deed(), 0..60), is_recreating in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let pool = if is_recreating { recreating(3) } else { pool(3) };
        runtime.block_on(happens(deeds, pool))?;
    }
}
