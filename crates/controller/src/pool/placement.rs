//! On which node each standby is best, and whether it is a clone there or boots.
//!
//! Standbys are spread over the nodes, so that the loss of one takes few of them. Where nodes have as many, the better one is
//! taken: it has a golden snapshot, free swap for standbys that doze, room on its disk for those that hibernate, fewer sandboxes.
//! kube-scheduler has the last word on those that boot: the node is only preferred.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use dormouse_api::conditions::READY;
use dormouse_api::dormouse::SandboxNode;
use dormouse_core::Rung;

use super::starts::Slots;
use crate::nodes::{NodeSight, Pressure};
use crate::objects::{self, is_true};

/// A node that standbys can go to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolNode {
    /// Its name.
    pub name: String,
    /// Whether guests can be saved and restored there.
    pub snapshots: bool,
    /// Bytes of swap that sleepers can have: those that are free, or all of an agent that does not say.
    pub swap: u64,
    /// Bytes that are free on the disk for snapshots; 0 if its agent does not say.
    pub disk: u64,
    /// Bytes that snapshots take up on its disk, as far as they are listed.
    pub snapshot_bytes: u64,
    /// Managed pods there.
    pub sandboxes: u64,
    /// What its kubelet runs short of.
    pub pressure: Pressure,
}

impl PoolNode {
    /// What an agent says of its node; `None`: it is not to be used. `sight`: what the node itself says.
    #[must_use]
    pub fn of(node: &SandboxNode, sight: NodeSight, pressure: Pressure) -> Option<Self> {
        let status = node.status.as_ref()?;
        if !is_true(&status.conditions, READY) || sight.is_lost() || sight.draining {
            return None;
        }
        let can = |what: &str| {
            let capability = status.capabilities.iter().find(|one| one.name == what);
            capability.is_some_and(|one| one.available)
        };
        let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
        let swap = status.swap_free_bytes.or(status.swap_bytes);
        let swap = swap.map(unsigned).filter(|_| can("swap"));
        let sizes = status
            .snapshots
            .iter()
            .map(|snapshot| unsigned(snapshot.size_bytes));
        Some(Self {
            name: objects::name(&node.metadata).to_owned(),
            snapshots: can("snapshots"),
            swap: swap.unwrap_or_default(),
            disk: status.snapshot_free_bytes.map(unsigned).unwrap_or_default(),
            snapshot_bytes: sizes.fold(0, u64::saturating_add),
            sandboxes: status
                .rungs
                .values()
                .fold(0, |sum, count| sum.saturating_add(unsigned(i64::from(*count)))),
            pressure,
        })
    }
}

/// What the next standby on a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stand {
    /// A clone of that golden snapshot.
    Clones(String),
    /// The one that is to become the golden snapshot.
    Seeds,
    /// None yet: the golden snapshot is on its way.
    Waits,
    /// One that boots.
    Boots,
}

/// Where a standby is to be, and what it is filled from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The node; `None`: whichever.
    pub node: Option<String>,
    /// The golden snapshot; `None`: it boots.
    pub golden: Option<String>,
}

/// What is assigned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Assigned {
    /// One for each standby that is made now.
    pub(super) places: Vec<Place>,
    /// How many are made later, when the golden snapshot of their node is there.
    pub(super) withheld: usize,
    /// How many are made later, when others that are starting are ready.
    pub(super) held: usize,
    /// Nodes that get the standby that is to become the golden snapshot.
    pub(super) seeded: BTreeSet<String>,
}

/// Which nodes there are for a pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    /// Each with what its next standby is.
    pub(super) nodes: Vec<(PoolNode, Stand)>,
    /// How many of the pool's standbys each has, or is about to.
    pub(super) loads: BTreeMap<String, usize>,
    /// Nodes that standbys were to go to of late, and did not get on: they come last.
    pub(super) missed: BTreeSet<String>,
    /// Where the standbys wait.
    pub(super) rung: Option<Rung>,
}

impl Choice {
    /// Places for `count` standbys, as long as there are `slots` for them.
    pub(super) fn assign(mut self, count: usize, mut slots: Slots) -> Assigned {
        let mut assigned = Assigned::default();
        for done in 0..count {
            if self.nodes.is_empty() && slots.take_anywhere() {
                assigned.places.push(Place::default());
                continue;
            }
            let best = self.best(&slots);
            let Some((node, stand)) = best.and_then(|at| self.nodes.get_mut(at)) else {
                assigned.held = count.saturating_sub(done);
                break;
            };
            if *stand != Stand::Waits {
                slots.take(&node.name);
            }
            let load = self.loads.entry(node.name.clone()).or_default();
            *load = load.saturating_add(1);
            let place = |golden| Place {
                node: Some(node.name.clone()),
                golden,
            };
            match stand {
                Stand::Clones(golden) => assigned.places.push(place(Some(golden.clone()))),
                Stand::Boots => assigned.places.push(place(None)),
                Stand::Seeds => {
                    assigned.places.push(place(None));
                    assigned.seeded.insert(node.name.clone());
                    *stand = Stand::Waits;
                }
                Stand::Waits => assigned.withheld = assigned.withheld.saturating_add(1),
            }
        }
        assigned
    }

    /// The node that is best, or if no more may start there now, the best one of those that are hardly worse: none that would
    /// come last, and none that would have so many more that standbys were not spread any more.
    fn best(&self, slots: &Slots) -> Option<usize> {
        let best_of = |among: &dyn Fn(&PoolNode, &Stand) -> bool| {
            let nodes = self.nodes.iter().enumerate();
            nodes
                .filter(|(_, (node, stand))| among(node, stand))
                .min_by(|(_, one), (_, other)| self.rank(one).cmp(&self.rank(other)))
        };
        let (at, (first, stand)) = best_of(&|_, _| true)?;
        let is_free = |node: &PoolNode, stand: &Stand| *stand == Stand::Waits || slots.has(&node.name);
        if is_free(first, stand) {
            return Some(at);
        }
        let most = self.load(first).saturating_add(slots.most());
        let other = best_of(&|node, stand| {
            is_free(node, stand) && self.load(node) <= most && self.comes_last(node) == self.comes_last(first)
        });
        other.map(|(at, _)| at)
    }

    fn load(&self, node: &PoolNode) -> usize {
        self.loads.get(&node.name).copied().unwrap_or_default()
    }

    fn comes_last(&self, node: &PoolNode) -> (bool, bool) {
        (self.missed.contains(&node.name), node.pressure.any())
    }

    /// The node with the least is best. One that its kubelet finds too full takes only what nobody else does.
    fn rank<'a>(&self, (node, stand): &'a (PoolNode, Stand)) -> impl Ord + use<'a> {
        let dozes = self.rung == Some(Rung::Dozing);
        let hibernates = self.rung == Some(Rung::Hibernated);
        (
            self.comes_last(node),
            self.load(node),
            !matches!(stand, Stand::Clones(_)),
            if dozes { Reverse(node.swap) } else { Reverse(0) },
            if hibernates {
                (Reverse(node.disk), node.snapshot_bytes)
            } else {
                (Reverse(0), 0)
            },
            node.sandboxes,
            node.name.as_str(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::starts::Counted;
    use dormouse_api::dormouse::{NodeCapability, SandboxNodeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use proptest::prelude::*;

    fn node(name: &str) -> PoolNode {
        PoolNode {
            name: name.to_owned(),
            snapshots: true,
            ..PoolNode::default()
        }
    }

    fn clones() -> Stand {
        Stand::Clones("gold".to_owned())
    }

    fn choice(nodes: Vec<(PoolNode, Stand)>) -> Choice {
        Choice {
            nodes,
            ..Choice::default()
        }
    }

    fn names(assigned: &Assigned) -> Vec<&str> {
        let places = assigned.places.iter();
        places
            .map(|place| place.node.as_deref().unwrap_or_default())
            .collect()
    }

    #[test]
    fn without_nodes_that_are_known_the_scheduler_chooses() {
        let assigned = choice(vec![]).assign(2, Slots::default());
        assert_eq!(assigned.places, [Place::default(), Place::default()]);
        assert_eq!(assigned.withheld, 0);
    }

    #[test]
    fn the_node_with_the_fewest_is_best_and_of_these_the_one_with_a_golden() {
        let mut all = choice(vec![
            (node("a"), Stand::Boots),
            (node("b"), clones()),
            (node("c"), Stand::Boots),
        ]);
        all.loads.insert("c".to_owned(), 2);
        assert_eq!(
            names(&all.clone().assign(5, Slots::default())),
            ["b", "a", "b", "a", "b"]
        );
        // One that is too full, or could not be had, comes last.
        all.nodes[1].0.pressure.memory = true;
        assert_eq!(
            names(&all.clone().assign(4, Slots::default())),
            ["a", "a", "a", "c"]
        );
        all.nodes[1].0.pressure.memory = false;
        all.missed.insert("b".to_owned());
        assert_eq!(names(&all.assign(1, Slots::default())), ["a"]);
    }

    #[test]
    fn those_that_doze_go_to_swap_and_those_that_hibernate_to_room_on_a_disk() {
        let mut all = choice(vec![(node("a"), Stand::Boots), (node("b"), Stand::Boots)]);
        all.nodes[0].0.snapshot_bytes = 1 << 30;
        all.nodes[0].0.swap = 1 << 30;
        all.nodes[1].0.swap = 1;
        all.nodes[0].0.sandboxes = 1;
        let first = |all: &Choice, rung| {
            let all = Choice { rung, ..all.clone() };
            names(&all.assign(1, Slots::default()))[0].to_owned()
        };
        assert_eq!(first(&all, Some(Rung::Dozing)), "a");
        assert_eq!(first(&all, Some(Rung::Hibernated)), "b");
        assert_eq!(first(&all, None), "b");
        // What is free on a disk counts, whatever else takes it up.
        all.nodes[0].0.disk = 2;
        all.nodes[1].0.disk = 1;
        assert_eq!(first(&all, Some(Rung::Hibernated)), "a");
    }

    #[test]
    fn one_seed_for_a_node_and_the_others_wait_for_it() {
        let all = choice(vec![(node("a"), Stand::Seeds), (node("b"), clones())]);
        let assigned = all.assign(6, Slots::default());
        assert_eq!(names(&assigned), ["b", "a", "b", "b"]);
        assert_eq!(
            assigned
                .places
                .iter()
                .filter(|place| place.golden.is_none())
                .count(),
            1
        );
        assert_eq!((assigned.withheld, assigned.seeded.len()), (2, 1));
    }

    #[test]
    fn where_no_more_may_start_the_next_best_is_taken_that_is_hardly_worse_or_none() {
        let mut all = choice(vec![
            (node("a"), Stand::Boots),
            (node("b"), Stand::Boots),
            (node("pressed"), Stand::Boots),
            (node("missed"), Stand::Boots),
        ]);
        all.nodes[2].0.pressure.disk = true;
        all.missed.insert("missed".to_owned());
        all.loads.insert("b".to_owned(), 1);
        // Another pool's are starting on the best one.
        let slots = || {
            let mut slots = Slots::new(3, Counted::default(), 4);
            (0..3).for_each(|_| slots.take("a"));
            slots
        };
        let assigned = all.clone().assign(9, slots());
        assert_eq!((names(&assigned), assigned.held), (vec!["b", "b", "b"], 6));
        // It would have so many more that the pool was not spread any more.
        all.loads.insert("b".to_owned(), 2);
        let assigned = all.clone().assign(9, slots());
        assert_eq!((names(&assigned), assigned.held), (vec!["b", "b"], 7));
        all.loads.insert("b".to_owned(), 4);
        let assigned = all.clone().assign(9, slots());
        assert_eq!((assigned.places.len(), assigned.held), (0, 9));
        // Where nothing else is there, those that come last are taken as before.
        all.nodes.drain(..2);
        assert_eq!(names(&all.assign(1, slots())), ["pressed"]);
    }

    #[test]
    fn a_node_is_used_whose_agent_is_ready_and_that_stays() {
        let mut said = SandboxNode::default();
        said.metadata.name = Some("a".to_owned());
        let of = |said: &SandboxNode, sight| PoolNode::of(said, sight, Pressure::default());
        assert_eq!(of(&said, NodeSight::default()), None);
        let capability = |name: &str, available| NodeCapability {
            name: name.to_owned(),
            available,
            ..NodeCapability::default()
        };
        said.status = Some(SandboxNodeStatus {
            conditions: vec![Condition {
                type_: READY.to_owned(),
                status: "True".to_owned(),
                reason: String::new(),
                message: String::new(),
                observed_generation: None,
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
            }],
            capabilities: vec![capability("swap", false), capability("snapshots", true)],
            swap_bytes: Some(7),
            rungs: [("Running".to_owned(), 2), ("Frozen".to_owned(), 3)].into(),
            ..SandboxNodeStatus::default()
        });
        let known = of(&said, NodeSight::default()).unwrap();
        assert_eq!((known.swap, known.snapshots, known.sandboxes), (0, true, 5));
        // An agent of an earlier version knows only how much there is.
        let status = said.status.as_mut().unwrap();
        status.capabilities[0].available = true;
        assert_eq!(of(&said, NodeSight::default()).unwrap().swap, 7);
        let status = said.status.as_mut().unwrap();
        (status.swap_free_bytes, status.snapshot_free_bytes) = (Some(3), Some(9));
        let known = of(&said, NodeSight::default()).unwrap();
        assert_eq!((known.swap, known.disk), (3, 9));
        let draining = NodeSight {
            draining: true,
            ..NodeSight::default()
        };
        assert_eq!((of(&said, draining), of(&said, NodeSight::GONE)), (None, None));
    }

    proptest! {
        /// However the nodes stand, each standby has a place or is waited for, nodes that have as much to offer get as many,
        /// and none gets two seeds.
        #[test]
        fn all_are_placed_evenly(stands in proptest::collection::vec(0_u8..4, 1..6), count in 0_usize..40) {
            let nodes: Vec<(PoolNode, Stand)> = stands
                .iter()
                .enumerate()
                .map(|(at, stand)| {
                    let stand = match stand {
                        0 => clones(),
                        1 => Stand::Seeds,
                        2 => Stand::Waits,
                        _ => Stand::Boots,
                    };
                    (node(&at.to_string()), stand)
                })
                .collect();
            let seeds = nodes.iter().filter(|(_, stand)| *stand == Stand::Seeds).count();
            let share = count.div_ceil(nodes.len());
            let assigned = choice(nodes).assign(count, Slots::default());
            prop_assert_eq!(assigned.places.len() + assigned.withheld, count);
            prop_assert!(assigned.seeded.len() <= seeds);
            for (at, stand) in stands.iter().enumerate() {
                let name = at.to_string();
                let there = names(&assigned).iter().filter(|node| **node == name).count();
                prop_assert!(there <= share);
                prop_assert!(*stand != 1 || there <= 1);
                prop_assert!(*stand != 2 || there == 0);
            }
        }
    }
}
