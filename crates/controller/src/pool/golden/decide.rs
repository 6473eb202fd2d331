//! Which golden snapshots are made and deleted, and what the next standby on each node is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::SandboxWarmPool;
use jiff::Timestamp;

use super::attempts::{Attempts, Hope, RETRY};
use super::keep;
use super::object::{self, State};
use super::standing::Standing;
use crate::objects;
use crate::pool::Step;
use crate::pool::placement::{Choice, PoolNode, Stand};
use crate::pool::wish::sleeps_on;
use crate::snapshot;
use crate::template::Hashes;

/// Reasons of events.
const READY: &str = "GoldenSnapshotReady";
pub(super) const FAILED: &str = "GoldenSnapshotFailed";

/// What is known about a pool's golden snapshots.
pub(in crate::pool) struct Look<'a> {
    pub(in crate::pool) pool: &'a SandboxWarmPool,
    pub(in crate::pool) hashes: &'a Hashes,
    pub(in crate::pool) standbys: &'a [Standing],
    /// Those that the pool owns.
    pub(in crate::pool) goldens: &'a [Arc<SandboxSnapshot>],
    /// The one that it names.
    pub(in crate::pool) named: Option<&'a SandboxSnapshot>,
    /// Nodes that can be used.
    pub(in crate::pool) nodes: &'a [PoolNode],
    /// How long a standby is ready before a snapshot is taken of it.
    pub(in crate::pool) settles: Duration,
    pub(in crate::pool) now: Timestamp,
}

/// How a golden snapshot stands, as far as somebody wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Standbys can be its clones.
    Ready,
    /// It is being taken.
    Pending,
    /// It was given up, or is not to be had; why.
    Failed(String),
}

/// What is worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Whether it is good.
    pub good: bool,
    /// A stable reason code.
    pub reason: &'static str,
    /// In words.
    pub note: String,
}

/// What is decided.
#[derive(Debug, Default)]
pub(in crate::pool) struct Decision {
    pub(in crate::pool) steps: Vec<Step>,
    /// Where the next standbys go.
    pub(in crate::pool) choice: Choice,
    /// UIDs of standbys that stay awake until the snapshot is taken.
    pub(in crate::pool) awake: BTreeSet<String>,
    pub(in crate::pool) attempts: Attempts,
    /// When to look again although nothing has changed.
    pub(in crate::pool) again: Option<Duration>,
    pub(in crate::pool) news: Vec<News>,
}

impl Decision {
    pub(super) fn look_again_in(&mut self, wait: Duration) {
        self.again = Some(self.again.map_or(wait, |other| other.min(wait)));
    }

    /// Has those stay awake that are about to be saved. One that sleeps is saved asleep.
    pub(super) fn keep_awake(&mut self, seeds: &[&Standing]) {
        let awake = seeds.iter().filter(|seed| !seed.sleeps());
        self.awake.extend(awake.map(|seed| seed.uid().to_owned()));
    }

    pub(super) fn delete(&mut self, golden: &SandboxSnapshot, why: &'static str) {
        if golden.metadata.deletion_timestamp.is_none() {
            self.steps.push(Step::DeleteGolden {
                name: objects::name(&golden.metadata).to_owned(),
                uid: objects::uid(&golden.metadata).to_owned(),
                why,
            });
        }
    }

    /// Takes note of how each stands; what is news of that.
    fn tell(&mut self, sights: BTreeMap<String, Sight>) {
        for (name, sight) in &sights {
            let before = self.attempts.seen.get(name);
            match sight {
                Sight::Ready if before.is_some_and(|before| *before != Sight::Ready) => {
                    self.news.push(News {
                        good: true,
                        reason: READY,
                        note: format!("standbys can be clones of SandboxSnapshot {name}"),
                    });
                }
                Sight::Failed(why) if !matches!(before, Some(Sight::Failed(_))) => self.news.push(News {
                    good: false,
                    reason: FAILED,
                    note: format!("standbys boot without SandboxSnapshot {name}: {why}"),
                }),
                _ => {}
            }
        }
        self.attempts.seen = sights;
    }
}

/// What is to be done about a pool's golden snapshots, and where its next standbys go.
pub(in crate::pool) fn decide(look: &Look<'_>, attempts: Attempts) -> Decision {
    let mut decision = Decision {
        attempts,
        choice: choice(look),
        ..Decision::default()
    };
    decision.attempts.turn_to(&look.hashes.whole, look.now);
    for (golden, then) in look.standbys.iter().filter_map(Standing::refused) {
        decision.attempts.refused(golden, then, look.now);
    }
    match look.pool.spec.golden.as_deref() {
        None => {
            forgo(look, &mut decision);
            decision.attempts.seen.clear();
        }
        Some("Auto") => automatic(look, &mut decision),
        Some(name) => by_name(look, name, &mut decision),
    }
    decision
}

/// Where standbys go that boot.
fn choice(look: &Look<'_>) -> Choice {
    let mut choice = Choice {
        nodes: look
            .nodes
            .iter()
            .map(|node| (node.clone(), Stand::Boots))
            .collect(),
        rung: sleeps_on(look.pool),
        ..Choice::default()
    };
    for standby in look.standbys {
        if let Some(node) = standby.heads_for() {
            let load = choice.loads.entry(node.to_owned()).or_default();
            *load = load.saturating_add(1);
        }
        let is_late = standby
            .created()
            .is_some_and(|made| objects::age(made, look.now) < RETRY);
        choice
            .missed
            .extend(standby.missed().filter(|_| is_late).map(str::to_owned));
    }
    choice
}

/// The pool wants none, or not its own.
fn forgo(look: &Look<'_>, decision: &mut Decision) {
    for golden in look.goldens {
        decision.delete(golden, "the pool does not want it any more");
    }
}

/// All are clones of the one that it names, where that is.
fn by_name(look: &Look<'_>, name: &str, decision: &mut Decision) {
    forgo(look, decision);
    let golden = look.named.filter(|golden| snapshot::is_ready(golden));
    let there = golden.and_then(snapshot::node);
    let node = look.nodes.iter().find(|node| Some(node.name.as_str()) == there);
    let sight = match (look.named, node) {
        (None, _) => Sight::Failed("there is none of that name".to_owned()),
        (Some(named), _) if golden.is_none() => Sight::Failed(object::why(named).map_or_else(
            || "it is not taken yet".to_owned(),
            |(reason, message)| format!("{message} ({reason})"),
        )),
        (Some(_), None) => Sight::Failed(format!(
            "node {}, which has it, cannot be used",
            there.unwrap_or_default()
        )),
        (Some(_), Some(_)) if decision.attempts.was_refused(name).is_some() => {
            Sight::Failed("a standby could not be filled from it".to_owned())
        }
        (Some(_), Some(node)) => {
            decision.choice.nodes = vec![(node.clone(), Stand::Clones(name.to_owned()))];
            Sight::Ready
        }
    };
    decision.tell(BTreeMap::from([(name.to_owned(), sight)]));
}

/// Each node has its own, of a standby that has booted there.
fn automatic(look: &Look<'_>, decision: &mut Decision) {
    let mut sights = BTreeMap::new();
    let mut is_any_ready = false;
    let goldens = look.goldens.iter();
    let by_name: BTreeMap<&str, &SandboxSnapshot> = goldens
        .map(|golden| (objects::name(&golden.metadata), &**golden))
        .collect();
    // Those that have booted on a node, or are about to.
    let mut seeds: BTreeMap<&str, Vec<&Standing>> = BTreeMap::new();
    for standby in look.standbys.iter().filter(|standby| standby.boots()) {
        if let Some(node) = standby.heads_for() {
            seeds.entry(node).or_default().push(standby);
        }
    }
    let mut nodes = std::mem::take(&mut decision.choice.nodes);
    for (node, stand) in &mut nodes {
        let name = object::name(look.pool, look.hashes, &node.name);
        let golden = by_name.get(name.as_str()).copied();
        let seeds = seeds.get(node.name.as_str()).map(Vec::as_slice);
        *stand = on_node(look, node, (&name, golden), seeds.unwrap_or_default(), decision);
        is_any_ready |= golden.is_some_and(|golden| object::state(golden) == State::Ready);
    }
    decision.choice.nodes = nodes;
    for golden in look.goldens {
        let name = objects::name(&golden.metadata);
        let state = object::state(golden);
        if object::hash(golden) != Some(&look.hashes.whole) {
            // One that is ready serves again if the template goes back, until there is a newer one.
            if is_any_ready || matches!(state, State::Pending | State::Failed | State::Lost) {
                decision.delete(golden, "it is of an older template");
            }
            continue;
        }
        keep::keep_or_not(look, golden, state, decision);
        let sight = match state {
            State::Ready => Sight::Ready,
            State::Pending => Sight::Pending,
            State::Failed | State::Lost => Sight::Failed(
                object::why(golden)
                    .map_or_else(String::new, |(reason, message)| format!("{message} ({reason})")),
            ),
            State::Away => continue,
        };
        sights.insert(name.to_owned(), sight);
    }
    // It may be there before anybody looks again, and that is news all the same.
    for step in &decision.steps {
        if let Step::CreateGolden(golden) = step {
            sights.insert(objects::name(&golden.metadata).to_owned(), Sight::Pending);
        }
    }
    decision.tell(sights);
}

/// What the next standby on a node is; has its golden snapshot made if it can be.
fn on_node(
    look: &Look<'_>,
    node: &PoolNode,
    (name, golden): (&str, Option<&SandboxSnapshot>),
    seeds: &[&Standing],
    decision: &mut Decision,
) -> Stand {
    if !node.snapshots {
        return Stand::Boots;
    }
    let was_refused = decision.attempts.was_refused(name).is_some();
    let state = golden.map(object::state);
    match (state, golden.and_then(snapshot::node)) {
        (Some(State::Ready), Some(there)) if there == node.name => {
            decision.attempts.fulfilled(&node.name);
            return if was_refused {
                Stand::Boots
            } else {
                Stand::Clones(name.to_owned())
            };
        }
        (Some(State::Pending | State::Away) | None, _) if !was_refused => {}
        _ => return Stand::Boots,
    }
    if state.is_none() {
        make(look, node, seeds, decision);
    }
    let is_on_its_way = !seeds.is_empty() || state.is_some();
    let stand = match decision.attempts.hope(&node.name, look.now) {
        Hope::Gone => return Stand::Boots,
        Hope::Fresh if is_on_its_way => {
            decision.attempts.wait_on(&node.name, look.now);
            decision.look_again_in(super::attempts::HOPE);
            Stand::Waits
        }
        Hope::Left(left) if is_on_its_way => {
            decision.look_again_in(left);
            Stand::Waits
        }
        Hope::Fresh | Hope::Left(_) => return Stand::Seeds,
    };
    let is_ordered = state.is_some() || seeds.iter().any(|seed| is_saved_now(look, node, seed));
    if !is_ordered {
        decision.keep_awake(seeds);
    }
    stand
}

fn is_saved_now(look: &Look<'_>, node: &PoolNode, seed: &Standing) -> bool {
    seed.node() == Some(&node.name) && seed.can_be_saved_in(look.settles, look.now) == Some(Duration::ZERO)
}

/// Has the golden snapshot of a node made, of the oldest that has settled there.
fn make(look: &Look<'_>, node: &PoolNode, seeds: &[&Standing], decision: &mut Decision) {
    let ready = seeds.iter().filter_map(|seed| {
        let wait = seed.can_be_saved_in(look.settles, look.now)?;
        let is_there = seed.node() == Some(&node.name);
        is_there.then_some(((wait, seed.created(), seed.name()), *seed))
    });
    match ready.min_by_key(|(key, _)| *key) {
        Some(((Duration::ZERO, _, standby), seed)) => {
            decision.keep_awake(&[seed]);
            let pause = decision.attempts.pause(&node.name, look.now);
            if !pause.is_zero() {
                decision.look_again_in(pause);
                return;
            }
            decision.attempts.asked(&node.name, look.now);
            let golden = object::object(look.pool, look.hashes, &node.name, standby);
            decision.steps.push(Step::CreateGolden(Box::new(golden)));
        }
        Some(((wait, ..), _)) => decision.look_again_in(wait),
        None => {}
    }
}
