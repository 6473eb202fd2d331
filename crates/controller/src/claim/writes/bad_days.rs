//! Bad days of claims: what they wait for goes away, or does not answer.

use std::time::Duration;

use dormouse_core::{ResumePolicy, Rung};
use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus};
use tokio::time::{Instant, advance};

use super::sleepers::{guest, sleepers};
use super::*;
use crate::agents::Guest;
use crate::claim::tests::asleep;
use crate::claim::{Choice, Passed};
use crate::test_agent::Agent;

/// A node that is ready or not, and cordoned or not.
fn node(name: &str, is_ready: bool, is_cordoned: bool) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.to_owned());
    node.spec = Some(NodeSpec {
        unschedulable: is_cordoned.then_some(true),
        ..NodeSpec::default()
    });
    node.status = Some(NodeStatus {
        conditions: Some(vec![NodeCondition {
            type_: "Ready".to_owned(),
            status: if is_ready { "True" } else { "Unknown" }.to_owned(),
            ..NodeCondition::default()
        }]),
        ..NodeStatus::default()
    });
    node
}

/// Nodes as the watch shows them: name, whether it is ready, whether it is cordoned.
fn nodes(all: &[(&str, bool, bool)]) -> Nodes {
    let (reader, mut writer) = reflector::store();
    writer.apply_watcher_event(&kube::runtime::watcher::Event::Init);
    for &(name, is_ready, is_cordoned) in all {
        let node = node(name, is_ready, is_cordoned);
        writer.apply_watcher_event(&kube::runtime::watcher::Event::InitApply(node));
    }
    writer.apply_watcher_event(&kube::runtime::watcher::Event::InitDone);
    // It forgets what it knows when its writer goes.
    std::mem::forget(writer);
    Nodes::new(Arc::new(Cache::new(reader, |_: &Node| None)), vec![])
}

/// Standbys, whether they are ready, and their nodes.
fn placed(all: &[(&str, bool, &str)]) -> Vec<Sandbox> {
    let all = all.iter().map(|&(name, is_ready, node)| {
        let mut standby = standby(&pool(), name, is_ready);
        standby.status.get_or_insert_default().node_name = Some(node.to_owned());
        standby
    });
    all.collect()
}

impl Controller {
    /// One that knows of nodes, and that the standbys' pods are on theirs.
    fn with_nodes(server: &Server, all: &[(&str, bool, bool)]) -> Self {
        let mut known = Self::of(server).known;
        known.nodes = nodes(all);
        for standby in server.all::<Sandbox>("sandboxes") {
            let node = standby.status.and_then(|status| status.node_name);
            known
                .pods
                .wrote(pod(objects::name(&standby.metadata), node.as_deref()));
        }
        Self::with(server, known)
    }

    /// Names of the standbys that can be given away.
    fn free(&self) -> Vec<String> {
        let mut reserved = Vec::new();
        while let Choice::Reserved(one) = self.known.candidates.reserve("ns", "pool", &Passed::default()) {
            reserved.push(one);
        }
        let mut free: Vec<String> = reserved.iter().map(|one| one.name().to_owned()).collect();
        free.sort();
        free
    }
}

impl Controller {
    /// A claim of this name comes, and is looked at.
    async fn serve(&self, server: &Server, name: &str) {
        let mut claim = claim();
        claim.metadata.name = Some(name.to_owned());
        claim.metadata.uid = Some(format!("{name}-uid"));
        server.put("sandboxclaims", &claim);
        self.hear(server);
        reconcile(Arc::new(claim), Arc::clone(&self.context))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn those_of_a_lost_node_are_not_given_away() {
    let server = Server::new(&placed(&[
        ("a", true, "lost"),
        ("b", true, "lost"),
        ("c", true, "up"),
    ]));
    let nodes = [("lost", false, false), ("up", true, false)];
    Controller::with_nodes(&server, &nodes).look().await.unwrap();
    assert_eq!(own(&server), ["c"]);
    // One that sleeps there is not, either; one is made instead.
    let mut standbys = placed(&[("a", true, "lost"), ("b", true, "gone")]);
    standbys[0] = asleep(standbys[0].clone(), "Frozen");
    let server = Server::new(&standbys);
    Controller::with_nodes(&server, &nodes).look().await.unwrap();
    assert_eq!(own(&server), ["claim"]);
}

#[tokio::test]
async fn those_of_a_drained_node_come_after_other_ready_ones() {
    let nodes = [("going", true, true), ("up", true, false)];
    let standbys = [
        ("a", true, "going"),
        ("b", true, "going"),
        ("c", true, "up"),
        ("d", false, "up"),
    ];
    let server = Server::new(&placed(&standbys));
    Controller::with_nodes(&server, &nodes).look().await.unwrap();
    assert_eq!(own(&server), ["c"]);
    // They are better than one that is not ready.
    let server = Server::new(&placed(&[standbys[0], standbys[1], standbys[3]]));
    Controller::with_nodes(&server, &nodes).look().await.unwrap();
    assert_eq!(own(&server), ["a"]);
    // They are better than none.
    let server = Server::new(&placed(&[("a", false, "going")]));
    Controller::with_nodes(&server, &nodes).look().await.unwrap();
    assert_eq!(own(&server), ["a"]);
}

#[tokio::test]
async fn after_an_agent_that_did_not_answer_those_of_others_come_first() {
    let names = ["a", "b", "c"];
    let mut standbys = sleepers(&names);
    for (standby, node) in standbys.iter_mut().zip(["node-1", "node-1", "node-2"]) {
        standby.status.get_or_insert_default().node_name = Some(node.to_owned());
    }
    let server = Server::new(&standbys);
    let (hung, good) = (Agent::default(), Agent::default());
    hung.0.lock().unwrap().hangs = true;
    let controller = Controller::with_guests(&server, Some(&hung), &names).await;
    let elsewhere = Guest {
        node: "node-2".to_owned(),
        ..guest("c", Rung::Frozen)
    };
    let link = good.client().await;
    controller.known.agents.link("node-2", link, &[elsewhere]);
    controller.known.pods.wrote(pod("c", Some("node-2")));
    // The node with most of them left comes first.
    controller.look().await.unwrap();
    assert_eq!(
        (own(&server), is_ready(&server.claim())),
        (vec!["a".to_owned()], false)
    );
    // The next claim does not wait for it, too.
    let next_claim = async |name: &str| {
        controller.serve(&server, name).await;
        let all = server.all::<SandboxClaim>("sandboxclaims");
        let claim = all
            .iter()
            .find(|claim| claim.metadata.name.as_deref() == Some(name));
        (told(claim.unwrap()), is_ready(claim.unwrap()))
    };
    assert_eq!(next_claim("second").await, (Some("c".to_owned()), true));
    assert_eq!(good.log(), ["wake"]);
    // Where there is no other it is tried again.
    hung.0.lock().unwrap().hangs = false;
    assert_eq!(next_claim("third").await, (Some("b".to_owned()), true));
}

#[tokio::test]
async fn one_whose_agent_goes_during_its_wake_is_passed_over_for_another_one() {
    let names = ["a", "b"];
    for others in [true, false] {
        let server = Server::new(&sleepers(if others { &names } else { &names[..1] }));
        let agent = Agent::default();
        agent.0.lock().unwrap().hangs = true;
        let controller = Controller::with_guests(&server, Some(&agent), &["a"]).await;
        let agents = &controller.known.agents;
        controller.look().await.unwrap();
        assert_eq!(
            (own(&server), is_ready(&server.claim())),
            (vec!["a".to_owned()], false)
        );
        // As long as its agent is there it may still wake, and nobody may tell the claim otherwise.
        controller.hear(&server);
        let action = reconcile(Arc::new(claim()), Arc::clone(&controller.context)).await;
        let soon = kube::runtime::controller::Action::requeue(Duration::from_secs(1));
        assert_eq!((action.unwrap(), own(&server)), (soon, vec!["a".to_owned()]));
        let good = Agent::default();
        let elsewhere = Guest {
            node: "node-2".to_owned(),
            ..guest("b", Rung::Frozen)
        };
        agents.link("node-2", good.client().await, &[elsewhere]);
        controller.known.pods.wrote(pod("b", Some("node-2")));
        agents.locate("node-1", None);
        server.log();
        controller.look().await.unwrap();
        let (gets, writes) = if others {
            ("b", "patch sandboxes b")
        } else {
            ("claim", "post sandboxes claim")
        };
        assert_eq!(own(&server), [gets]);
        assert_eq!(told(&server.claim()).as_deref(), Some(gets));
        assert_eq!(server.log()[..2], ["delete sandboxes a", writes]);
        assert_eq!(is_ready(&server.claim()), others);
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_breaks_for_a_moment_costs_no_claim_its_standby_however_long_its_wake_takes() {
    let server = Server::new(&sleepers(&["a"]));
    let agent = Agent::default();
    agent.0.lock().unwrap().hangs = true;
    let known = Controller::with_guests(&server, Some(&agent), &["a"]).await.known;
    let controller = Controller::with_patience(&server, known, Settings::PATIENCE);
    let agents = &controller.known.agents;
    let until = async |moment: Instant| advance(moment.saturating_duration_since(Instant::now())).await;
    let keeps = async || {
        controller.hear(&server);
        controller.look().await.unwrap();
        own(&server) == ["a"]
    };
    assert!(keeps().await);
    // Its wake takes much longer than an agent may be away.
    until(Instant::now() + Duration::from_secs(60)).await;
    assert!(keeps().await);
    for _ in 0..3 {
        let lost = Instant::now();
        agents.unlink("node-1");
        assert!(keeps().await, "at once");
        until(lost + Duration::from_millis(4500)).await;
        assert!(keeps().await, "before the bound");
        // Each break counts by itself.
        agents.link("node-1", agent.client().await, &[guest("a", Rung::Frozen)]);
        until(lost + Duration::from_secs(20)).await;
        assert!(keeps().await, "reached again");
    }
    let lost = Instant::now();
    agents.unlink("node-1");
    // That its pod goes, too, does not begin it anew.
    until(lost + Duration::from_secs(3)).await;
    agents.locate("node-1", None);
    until(lost + Duration::from_millis(4500)).await;
    controller.hear(&server);
    let action = reconcile(Arc::new(claim()), Arc::clone(&controller.context)).await;
    assert_eq!(own(&server), ["a"]);
    // It is looked at when the bound is over, and not a second later.
    let rest = kube::runtime::controller::Action::requeue(Duration::from_millis(500));
    assert_eq!(action.unwrap(), rest);
    until(lost + Settings::PATIENCE).await;
    assert!(!keeps().await);
    assert_eq!(own(&server), ["claim"]);
}

#[tokio::test]
async fn what_a_claim_has_had_is_never_passed_over() {
    for is_heir in [false, true] {
        let server = Server::new(&sleepers(&["a", "b"]));
        let agent = Agent::default();
        let controller = Controller::with_guests(&server, Some(&agent), &["a", "b"]).await;
        if is_heir {
            // Another controller has given it away, and nobody knows what has become of it since.
            agent.0.lock().unwrap().hangs = true;
        }
        controller.look().await.unwrap();
        assert_eq!(
            (own(&server), is_ready(&server.claim())),
            (vec!["a".to_owned()], !is_heir)
        );
        let controller = if is_heir {
            Controller::with_guests(&server, Some(&agent), &["a", "b"]).await
        } else {
            controller
        };
        // Its Sandbox says that it sleeps.
        controller.hear(&server);
        controller.known.agents.locate("node-1", None);
        controller.look().await.unwrap();
        assert_eq!(own(&server), ["a"]);
        assert!(!is_ready(&server.claim()));
    }
}

#[tokio::test]
async fn one_that_is_falling_asleep_is_woken_again_once_it_has() {
    let server = Server::new(&[standby(&pool(), "a", true)]);
    let agent = Agent::default();
    let controller = Arc::new(Controller::with_guests(&server, Some(&agent), &["a"]).await);
    let agents = &controller.known.agents;
    let client = agent.client().await;
    agents.link("node-1", client.clone(), &[guest("a", Rung::Running)]);
    let hold = controller.known.candidates.hold("ns", "a").unwrap();
    let look = tokio::spawn({
        let controller = Arc::clone(&controller);
        async move { controller.look().await }
    });
    while agent.0.lock().unwrap().log.is_empty() {
        tokio::task::yield_now().await;
    }
    // The order to sleep comes second, whoever was first to give one.
    agents.link("node-1", client, &[waiting("a", Rung::Frozen)]);
    drop(hold);
    look.await.unwrap().unwrap();
    assert_eq!(agent.log(), ["wake", "wake"]);
    assert_eq!(
        (own(&server), is_ready(&server.claim())),
        (vec!["a".to_owned()], true)
    );
}

#[tokio::test]
async fn one_that_has_fallen_asleep_is_not_ready_for_its_claim() {
    let server = Server::new(&[standby(&pool(), "a", true)]);
    let agent = Agent::default();
    let controller = Controller::with_guests(&server, Some(&agent), &["a"]).await;
    let client = agent.client().await;
    let agents = &controller.known.agents;
    agents.link("node-1", client.clone(), &[waiting("a", Rung::Running)]);
    let hold = controller.known.candidates.hold("ns", "a").unwrap();
    agent.0.lock().unwrap().hangs = true;
    let (looked, ()) = tokio::join!(controller.look(), async {
        while own(&server).is_empty() {
            tokio::task::yield_now().await;
        }
        agents.link("node-1", client.clone(), &[waiting("a", Rung::Frozen)]);
        drop(hold);
    });
    looked.unwrap();
    assert_eq!(
        (own(&server), is_ready(&server.claim())),
        (vec!["a".to_owned()], false)
    );
    // Nothing tells the claim: its Sandbox has never said that it sleeps. So it looks.
    controller.hear(&server);
    let action = reconcile(Arc::new(claim()), Arc::clone(&controller.context)).await;
    let soon = kube::runtime::controller::Action::requeue(Duration::from_millis(500));
    assert_eq!(action.unwrap(), soon);
    agents.link("node-1", client, &[guest("a", Rung::Running)]);
    controller.look().await.unwrap();
    assert!(is_ready(&server.claim()));
}

#[tokio::test]
async fn one_that_goes_between_choice_and_adoption_is_left_for_the_next() {
    for asleep in [false, true] {
        let names = ["a", "b", "c", "d"];
        let server = Server::new(&if asleep { sleepers(&names) } else { standbys() });
        let agent = Agent::default();
        let controller = Controller::with_guests(&server, Some(&agent), &names).await;
        if !asleep {
            let all: Vec<Guest> = names.iter().map(|name| guest(name, Rung::Running)).collect();
            let client = agent.client().await;
            controller.known.agents.link("node-1", client, &all);
        }
        server.remove("sandboxes", "a");
        controller.look().await.unwrap();
        assert_eq!(own(&server), ["b"]);
        assert!(is_ready(&server.claim()));
    }
}

#[tokio::test]
async fn one_whose_pod_goes_between_adoption_and_wake_is_not_ready_before_it_is_again() {
    let server = Server::new(&sleepers(&["a", "b"]));
    let agent = Agent::default();
    agent.0.lock().unwrap().refuses = Some(dormouse_core::Reason::PodNotFound);
    let controller = Controller::with_guests(&server, Some(&agent), &["a", "b"]).await;
    controller.look().await.unwrap();
    assert_eq!(
        (own(&server), is_ready(&server.claim())),
        (vec!["a".to_owned()], false)
    );
    // Its Sandbox is what says how it gets on, with another pod.
    let replaced = async |is_up: bool| {
        let mut all = server.all::<Sandbox>("sandboxes");
        let sandbox = all.iter_mut().find(|it| it.metadata.name.as_deref() == Some("a"));
        let sandbox = sandbox.unwrap();
        sandbox.status = standby(&pool(), "a", is_up).status;
        server.put("sandboxes", sandbox);
        controller.hear(&server);
        controller.look().await.unwrap();
        is_ready(&server.claim())
    };
    let mut new = guest("a", Rung::Running);
    new.uid = "new-pod".to_owned();
    let mut pod = pod("a", Some("node-1"));
    pod.metadata.uid = Some("new-pod".to_owned());
    pod.metadata.resource_version = Some("1000".to_owned());
    controller.known.pods.wrote(pod);
    controller
        .known
        .agents
        .link("node-1", agent.client().await, &[new]);
    assert!(!replaced(false).await);
    assert!(replaced(true).await);
    assert_eq!(own(&server), ["a"]);
}

#[tokio::test]
async fn a_claim_that_is_deleted_on_the_way_leaves_nothing() {
    for names in [&["a", "b"][..], &[]] {
        for writes in 0..=3 {
            let server = Server::new(&sleepers(names));
            server.put("sandboxwarmpools", &pool());
            let agent = Agent::default();
            let controller = Controller::with_guests(&server, Some(&agent), names).await;
            server.0.lock().unwrap().vanishes =
                Some((writes, "sandboxclaims".to_owned(), "claim".to_owned()));
            // It may fail, and look again until it hears of it.
            for _ in 0..3 {
                let _ = controller.look().await;
            }
            server.remove("sandboxclaims", "claim");
            controller
                .known
                .claims
                .gone("ns", "claim", objects::uid(&claim().metadata));
            controller.look().await.unwrap();
            server.collect_garbage();
            assert!(own(&server).is_empty(), "after {writes} writes");
            let left: Vec<String> = server
                .all::<Sandbox>("sandboxes")
                .iter()
                .map(|sandbox| objects::name(&sandbox.metadata).to_owned())
                .collect();
            // At most the one that was given away goes with it, and those that are left can be given away.
            assert!(left.len() + 1 >= names.len(), "after {writes} writes: {left:?}");
            for name in names {
                let there = left.iter().any(|left| left == name);
                if !there {
                    controller.known.candidates.saw("ns", name, None);
                }
            }
            assert_eq!(controller.free(), left, "after {writes} writes");
        }
    }
}

#[tokio::test]
async fn claims_beyond_the_pool_get_sandboxes_of_their_own() {
    let server = Server::new(&[standby(&pool(), "a", true)]);
    let controller = Controller::of(&server);
    for name in ["claim", "second", "third"] {
        controller.serve(&server, name).await;
    }
    let told: Vec<Option<String>> = server.all("sandboxclaims").iter().map(told).collect();
    let names = ["a", "second", "third"].map(|name| Some(name.to_owned()));
    assert_eq!(told, names);
}

#[tokio::test]
async fn a_claim_for_a_pool_that_is_missing_says_so_once_and_goes_on_when_it_is_there() {
    for missing in ["pool", "template"] {
        let server = Server::new(&[]);
        let controller = Controller::of(&server);
        match missing {
            "pool" => controller.known.pools.gone("ns", "pool", "pool-uid"),
            _ => controller.known.templates.gone("ns", "template", "template-uid"),
        }
        controller.look().await.unwrap();
        let reason = server.claim().status.unwrap().conditions.remove(0).reason;
        let expected = if missing == "pool" {
            "WarmPoolNotFound"
        } else {
            "TemplateNotFound"
        };
        assert_eq!(reason, expected);
        server.log();
        controller.hear(&server);
        let action = reconcile(Arc::new(claim()), Arc::clone(&controller.context)).await;
        assert_eq!(
            (action.unwrap(), server.log()),
            (
                kube::runtime::controller::Action::requeue(Duration::from_secs(60)),
                vec![]
            )
        );
        let (mut pool, mut template) = (pool(), template());
        pool.metadata.uid = Some("another-pool".to_owned());
        template.metadata.uid = Some("another-template".to_owned());
        controller.known.pools.wrote(pool);
        controller.known.templates.wrote(template);
        controller.look().await.unwrap();
        assert_eq!(own(&server), ["claim"]);
    }
}

/// The same with the policy of a standby.
fn waiting(name: &str, rung: Rung) -> Guest {
    let mut guest = guest(name, rung);
    guest.policy.resume_policy = ResumePolicy::Manual;
    guest
}

/// The pod of a standby.
pub(super) fn pod(name: &str, node: Option<&str>) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("ns".to_owned());
    pod.metadata.uid = Some(format!("{name}-pod"));
    pod.spec.get_or_insert_default().node_name = node.map(str::to_owned);
    pod
}
