//! How many standbys start on a node at a time, whichever pools they are of.

use std::collections::BTreeSet;

use dormouse_api::extensions::SandboxClaim;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{reflector, watcher};
use proptest::prelude::*;

use super::known::{context_with, nothing};
use super::*;
use crate::cache::Cache;
use crate::nodes::Nodes;
use crate::objects;
use crate::pool::{PoolNode, Pools, reconcile};
use crate::test_server::Server;

type Key = (String, String);

fn key(number: usize) -> Key {
    ("ns".to_owned(), format!("pool-{number}"))
}

/// A pool of this number.
fn numbered(number: usize, replicas: i32) -> SandboxWarmPool {
    let mut pool = pool(replicas);
    pool.metadata = meta(&key(number).1);
    pool
}

/// A template whose standbys the controller places.
fn placed_template() -> SandboxTemplate {
    let mut template = template();
    template.spec.pod_template.spec.runtime_class_name = Some("dormouse-gvisor".to_owned());
    template
}

fn at_most(most: usize) -> Settings {
    Settings {
        starts_per_node: most,
        ..settings()
    }
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// A controller, and what the API server has of its pools.
struct World {
    pools: Pools,
    settings: Settings,
    wanted: Vec<i32>,
    nodes: Arc<[PoolNode]>,
    servers: usize,
    /// By pool, each with the node that it is on.
    members: Vec<Vec<(Sandbox, String)>>,
}

impl World {
    /// One with these nodes; with none of which the controller knows more than that there are two if `nodes` is empty.
    fn new(wanted: &[i32], nodes: &[&str], most: usize) -> Self {
        let of_agents = nodes.iter().map(|name| PoolNode {
            name: (*name).to_owned(),
            ..PoolNode::default()
        });
        Self {
            pools: Pools::default(),
            settings: at_most(most),
            wanted: wanted.to_vec(),
            nodes: of_agents.collect(),
            servers: if nodes.is_empty() { 2 } else { nodes.len() },
            members: vec![vec![]; wanted.len()],
        }
    }

    /// Another controller takes over, and the watches tell it what there is.
    fn restart(&mut self, now: Timestamp) {
        self.pools = Pools::default();
        for (standby, _) in self.members.iter().flatten() {
            let woken = self
                .pools
                .saw_start(objects::uid(&standby.metadata), Some(standby), now);
            assert_eq!(woken, BTreeSet::new());
        }
    }

    /// Looks at a pool, and makes what is decided.
    fn look(&mut self, number: usize, now: Timestamp) -> Next {
        let pool = numbered(number, self.wanted[number]);
        let members = self.members[number].iter();
        let members = members.map(|(standby, _)| standby.clone()).collect();
        let observed = Observed {
            nodes: Arc::clone(&self.nodes),
            servers: self.servers,
            template: Some(Arc::new(placed_template())),
            ..with(pool, members)
        };
        let next = self.pools.next(&key(number), &observed, &self.settings, now);
        assert_eq!(next.places.len(), next.make);
        for place in &next.places {
            let mut made = build::placed(next.standby.as_ref().unwrap(), place);
            let count: usize = self.members.iter().map(Vec::len).sum();
            made.metadata.name = Some(format!("s{count}"));
            made.metadata.uid = Some(format!("s{count}-uid"));
            made.metadata.creation_timestamp = Some(Time(now));
            self.pools
                .made(&key(number), std::slice::from_ref(&made), |_| true);
            self.pools.saw_sandbox(objects::uid(&made.metadata), true);
            let node = place.node.clone();
            let node = node.unwrap_or_else(|| format!("server-{}", count % self.servers));
            self.members[number].push((made, node));
        }
        self.pools.not_made(&key(number), 0);
        next
    }

    /// One gets ready. Returns the pools that are to be looked at for it.
    fn ready(&mut self, number: usize, at: usize, now: Timestamp) -> BTreeSet<Key> {
        let (made, _) = &mut self.members[number][at];
        made.status = standby("x", true, 0).status;
        self.pools
            .saw_start(objects::uid(&made.metadata), Some(made), now)
    }

    /// How many are starting, by node.
    fn starting(&self) -> BTreeMap<&str, usize> {
        let mut all = BTreeMap::new();
        for (standby, node) in self.members.iter().flatten() {
            if !crate::pool::is_ready(standby) {
                *all.entry(node.as_str()).or_default() += 1;
            }
        }
        all
    }

    fn counts(&self) -> Vec<usize> {
        self.members.iter().map(Vec::len).collect()
    }
}

#[test]
fn those_beyond_the_bound_wait_until_others_are_ready_of_whichever_pool() {
    let mut world = World::new(&[5, 3], &["a", "b"], 2);
    let first = world.look(0, now());
    assert_eq!((first.make, first.held), (4, 1));
    assert_eq!(world.starting(), BTreeMap::from([("a", 2), ("b", 2)]));
    // Should the one that gets ready go by unseen.
    assert_eq!(first.requeue, Some(Duration::from_secs(5)));
    let second = world.look(1, now());
    assert_eq!((second.make, second.held, second.standby), (0, 3, None));
    // Both are looked at for the next that is ready; the first to be has its place.
    assert_eq!(world.ready(0, 0, now()), BTreeSet::from([key(0), key(1)]));
    assert_eq!((world.look(1, now()).make, world.look(0, now()).make), (1, 0));
    assert_eq!(world.starting(), BTreeMap::from([("a", 2), ("b", 2)]));
    // Those that there are for a controller that begins count as well.
    world.restart(now());
    assert_eq!((world.look(1, now()).make, world.look(0, now()).make), (0, 0));
    assert_eq!(world.ready(0, 1, now()), BTreeSet::from([key(0), key(1)]));
    assert_eq!((world.look(0, now()).make, world.look(1, now()).make), (1, 0));
    // One that waits for nothing is not looked at.
    assert_eq!(world.ready(0, 2, now()), BTreeSet::from([key(1)]));
}

#[test]
fn what_is_about_to_be_made_counts_before_it_is() {
    let pools = Pools::default();
    let look = |number: usize| {
        let observed = Observed {
            servers: 1,
            ..with(numbered(number, 3), vec![])
        };
        pools.next(&key(number), &observed, &at_most(4), now())
    };
    assert_eq!((look(0).make, look(1).make), (3, 1));
    // It is not counted twice when it is decided anew.
    assert_eq!((look(0).make, look(1).make), (3, 1));
    // It was refused.
    pools.not_made(&key(0), 3);
    assert_eq!(look(1).make, 3);
}

#[test]
fn one_that_does_not_get_ready_keeps_others_from_starting_for_a_minute() {
    let mut world = World::new(&[2, 1], &["a"], 2);
    assert_eq!(world.look(0, now()).make, 2);
    assert_eq!(world.look(1, later(59)).make, 0);
    assert_eq!(world.look(1, later(60)).make, 1);
    // And not for ever after that because it is heard of again.
    world.restart(later(61));
    world.settings.starts_per_node = 1;
    world.wanted[1] = 2;
    assert_eq!(world.look(1, later(61)).make, 0);
    assert_eq!(world.look(1, later(120)).make, 1);
}

#[test]
fn what_starts_for_a_claim_or_is_on_its_way_out_does_not_count() {
    let mut world = World::new(&[2, 2], &["a"], 2);
    world.look(0, now());
    assert_eq!(world.look(1, now()).make, 0);
    let claim = SandboxClaim {
        metadata: meta("claim"),
        ..SandboxClaim::default()
    };
    let mut claimed = world.members[0][0].0.clone();
    claimed.metadata.owner_references = Some(vec![owner_reference(&claim)]);
    let mut leaving = world.members[0][1].0.clone();
    leaving.metadata.deletion_timestamp = Some(Time(now()));
    for sandbox in [claimed, leaving] {
        let uid = sandbox.metadata.uid.clone().unwrap();
        // The other pool waits, and is told once.
        let woken = world.pools.saw_start(&uid, Some(&sandbox), now());
        assert!(woken.is_empty() || woken == BTreeSet::from([key(1)]));
    }
    assert_eq!(world.look(1, now()).make, 2);
}

#[test]
fn one_that_the_scheduler_took_elsewhere_counts_where_it_is() {
    let mut world = World::new(&[1], &["a"], 1);
    world.look(0, now());
    let uid = world.members[0][0].0.metadata.uid.clone().unwrap();
    let observed = Observed {
        nodes: Arc::clone(&world.nodes),
        template: Some(Arc::new(placed_template())),
        ..with(numbered(1, 1), vec![])
    };
    let make = |observed: &Observed| {
        let next = world.pools.next(&key(1), observed, &at_most(1), now());
        next.make
    };
    assert_eq!(make(&observed), 0);
    let elsewhere = Observed {
        scheduled: BTreeMap::from([(uid, "b".to_owned())]),
        ..observed
    };
    assert_eq!(make(&elsewhere), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whichever pools there are, how long their standbys take, and when another controller takes over: no node has more of
    /// them starting than it may, and all pools are filled.
    #[test]
    fn no_node_starts_more_than_it_may_and_all_pools_are_filled(
        wanted in prop::collection::vec(0_i32..7, 1..4),
        most in 1_usize..4,
        takes in prop::collection::vec(1_i64..6, 0..4),
        restart in 0_i64..20,
    ) {
        let names: Vec<String> = (0..takes.len()).map(|at| at.to_string()).collect();
        let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut world = World::new(&wanted, &nodes, most);
        let full: Vec<usize> = wanted.iter().map(|wanted| usize::try_from(*wanted).unwrap()).collect();
        // If all went one by one.
        let mut left = 6 * full.iter().sum::<usize>() + 1;
        let mut second = 0;
        while world.counts() != full {
            prop_assert!(left > 0, "{:?} of {full:?}", world.counts());
            left -= 1;
            let now = later(second);
            if second == restart {
                world.restart(now);
            }
            for number in 0..full.len() {
                world.look(number, now);
                let starting = world.starting();
                prop_assert!(starting.values().sum::<usize>() <= most * world.servers, "{starting:?}");
                if !nodes.is_empty() {
                    prop_assert!(starting.values().all(|count| *count <= most), "{starting:?}");
                }
            }
            second += 1;
            for number in 0..full.len() {
                for at in 0..world.members[number].len() {
                    let (made, node) = &world.members[number][at];
                    let age = later(second).duration_since(made.metadata.creation_timestamp.as_ref().unwrap().0);
                    let of_node = node.parse::<usize>().ok().and_then(|node| takes.get(node));
                    if !crate::pool::is_ready(made) && age.as_secs() >= of_node.copied().unwrap_or(3) {
                        world.ready(number, at, later(second));
                    }
                }
            }
        }
    }
}

/// Nodes as the watch shows them, without any agent.
fn nodes(names: &[&str]) -> Nodes {
    let (reader, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for name in names {
        let mut node = Node::default();
        node.metadata.name = Some((*name).to_owned());
        writer.apply_watcher_event(&watcher::Event::InitApply(node));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    // It forgets what it knows when its writer goes.
    std::mem::forget(writer);
    Nodes::new(Arc::new(Cache::new(reader, |_: &Node| None)), vec![])
}

#[tokio::test]
async fn those_that_the_scheduler_places_have_the_places_of_all_nodes() {
    let server = Server::empty();
    server.put("sandboxwarmpools", &pool(5));
    let mut known = nothing();
    known.nodes = nodes(&["a", "b"]);
    known.pools.wrote(pool(5));
    known.templates.wrote(template());
    let context = context_with(&server, &known, at_most(2));
    let look = async || {
        reconcile(Arc::new(pool(5)), Arc::clone(&context)).await.unwrap();
        server.all::<Sandbox>("sandboxes").len()
    };
    let see = |sandbox: &Sandbox| {
        let uid = objects::uid(&sandbox.metadata);
        known.state.saw_sandbox(uid, true);
        known.state.saw_start(uid, Some(sandbox), Timestamp::now())
    };
    assert_eq!(look().await, 4);
    let all = server.all::<Sandbox>("sandboxes");
    assert!(all.iter().all(|made| see(made).is_empty()));
    assert_eq!(look().await, 4);
    // Their pods are on nodes by now, which changes nothing.
    for made in &all {
        let mut pod = Pod {
            metadata: ObjectMeta {
                uid: Some("pod".to_owned()),
                ..made.metadata.clone()
            },
            ..Pod::default()
        };
        pod.spec.get_or_insert_default().node_name = Some("a".to_owned());
        known.pods.wrote(pod);
    }
    assert_eq!(look().await, 4);
    let mut ready = all[0].clone();
    ready.status = standby("x", true, 0).status;
    server.put("sandboxes", &ready);
    let waiting = BTreeSet::from([("ns".to_owned(), "pool".to_owned())]);
    for sandbox in server.all::<Sandbox>("sandboxes") {
        let is_it = crate::pool::is_ready(&sandbox);
        let woken = see(&sandbox);
        assert_eq!(woken, if is_it { waiting.clone() } else { BTreeSet::new() });
        known.sandboxes.wrote(sandbox);
    }
    assert_eq!(look().await, 5);
}
