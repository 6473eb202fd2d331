//! Golden snapshots: when they are made and deleted, and who is a clone of them.

mod model;
mod writes;

use dormouse_api::conditions::{FAILED, RESTORED};
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::Standby;
use dormouse_core::Rung;
use jiff::SignedDuration;

use super::quota::quota;
use super::*;
use crate::pool::{Place, PoolNode, Pools};

fn golden_pool(replicas: i32) -> SandboxWarmPool {
    let mut pool = pool(replicas);
    pool.spec.golden = Some("Auto".to_owned());
    pool
}

fn nodes(names: &[&str]) -> Arc<[PoolNode]> {
    let node = |name: &&str| PoolNode {
        name: (*name).to_owned(),
        snapshots: true,
        ..PoolNode::default()
    };
    names.iter().map(node).collect()
}

fn on(mut standby: Sandbox, node: &str) -> Sandbox {
    standby.status.get_or_insert_default().node_name = Some(node.to_owned());
    standby
}

fn said(mut standby: Sandbox, key: &str, value: &str) -> Sandbox {
    let all = standby.metadata.annotations.get_or_insert_default();
    all.insert(key.to_owned(), value.to_owned());
    standby
}

fn condition(type_: &str, truth: bool, reason: &str, at: Timestamp) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if truth { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(at),
    }
}

fn look(pool: SandboxWarmPool, members: Vec<Sandbox>, on: &[&str]) -> Observed {
    Observed {
        nodes: nodes(on),
        ..with(pool, members)
    }
}

fn ordered(next: &Next) -> Vec<&SandboxSnapshot> {
    let steps = next.steps.iter();
    steps
        .filter_map(|step| match step {
            Step::CreateGolden(golden) => Some(&**golden),
            _ => None,
        })
        .collect()
}

fn dropped(next: &Next) -> Vec<&str> {
    let steps = next.steps.iter();
    steps
        .filter_map(|step| match step {
            Step::DeleteGolden { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

/// The golden snapshot that is ordered of a standby of this node, as the API server has it.
fn golden_of(node: &str, made: Timestamp) -> SandboxSnapshot {
    let next = decide(&look(
        golden_pool(1),
        vec![on(standby("s", true, 60), node)],
        &[node],
    ));
    let mut golden = ordered(&next)[0].clone();
    golden.metadata.uid = Some(format!("golden-{node}"));
    golden.metadata.creation_timestamp = Some(Time(made));
    golden
}

fn ready(mut golden: SandboxSnapshot, node: &str) -> SandboxSnapshot {
    let status = golden.status.get_or_insert_default();
    status.conditions = vec![condition("Ready", true, "SnapshotReady", now())];
    status.snapshot_id = Some(format!("snap-{node}"));
    status.node_name = Some(node.to_owned());
    golden
}

fn failed(mut golden: SandboxSnapshot) -> SandboxSnapshot {
    let status = golden.status.get_or_insert_default();
    status.conditions = vec![
        condition("Ready", false, "RuntimeCannotSnapshot", now()),
        condition(FAILED, true, "RuntimeCannotSnapshot", now()),
    ];
    golden
}

fn name_of(golden: &SandboxSnapshot) -> String {
    golden.metadata.name.clone().unwrap()
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at + SignedDuration::from_secs(seconds)
}

fn at(observed: &Observed, now: Timestamp) -> Next {
    next(
        observed,
        &settings(),
        &mut Refill::default(),
        &mut Sizing::default(),
        now,
    )
}

#[test]
fn the_first_of_each_node_boots_and_the_others_wait_for_its_snapshot() {
    let mut observed = look(golden_pool(20), vec![], &["a", "b"]);
    let first = decide(&observed);
    let place = |node: &str, golden: Option<&str>| Place {
        node: Some(node.to_owned()),
        golden: golden.map(str::to_owned),
    };
    assert_eq!(first.places, [place("a", None), place("b", None)]);
    assert_eq!(first.make, 2);
    // They are on their way: nobody else is made.
    let seed = |node: &str| said(standby(node, false, 1), annotations::PREFERRED_NODE, node);
    observed.members = vec![Arc::new(seed("a")), Arc::new(seed("b"))];
    observed.attempts = first.attempts;
    let second = decide(&observed);
    assert_eq!((second.make, second.standby), (0, None));
    assert_eq!(second.requeue, Some(Duration::from_secs(60)));
    // One has settled.
    observed.members = vec![Arc::new(on(standby("a", true, 6), "a")), Arc::new(seed("b"))];
    let third = decide(&observed);
    let golden = ordered(&third)[0].clone();
    assert_eq!(
        (ordered(&third).len(), golden.spec.sandbox_name.as_str()),
        (1, "a")
    );
    assert!(golden.spec.pinned);
    let owner = &golden.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.uid.as_str(), owner.block_owner_deletion),
        ("pool-uid", None)
    );
    assert_eq!(third.make, 0);
    // Those of its node are clones now; those of the other one wait.
    observed.goldens = vec![Arc::new(ready(golden.clone(), "a"))];
    observed.attempts = third.attempts;
    let fourth = decide(&observed);
    let clones = vec![place("a", Some(&name_of(&golden))); 9];
    assert_eq!(fourth.places, clones);
    let news: Vec<&str> = fourth.news.iter().map(|news| news.reason).collect();
    assert_eq!(news, ["GoldenSnapshotReady"]);
    let prototype = fourth.standby.unwrap();
    let made = build::placed(&prototype, &fourth.places[0]);
    let all = made.metadata.annotations.unwrap();
    assert_eq!(all[annotations::GOLDEN], name_of(&golden));
    assert_eq!(all[annotations::PREFERRED_NODE], "a");
    // The template's own is as it was, or it would be taken for one of another template.
    assert_eq!(made.spec, prototype.spec);
}

#[test]
fn one_that_has_not_settled_or_is_a_clone_or_hibernated_is_not_saved() {
    let one = |standby: Sandbox| look(golden_pool(1), vec![on(standby, "a")], &["a"]);
    let young = decide(&one(standby("s", true, 3)));
    assert!(ordered(&young).is_empty());
    assert_eq!(young.requeue, Some(Duration::from_secs(2)));
    let clone = said(standby("s", true, 60), annotations::GOLDEN, "other");
    assert!(ordered(&decide(&one(clone))).is_empty());
    let mut asleep = standby("s", true, 60);
    let mut dormant = condition("Dormant", true, "Hibernated", now());
    dormant.message = "Sandbox sleeps until it is claimed".to_owned();
    asleep.status.as_mut().unwrap().conditions.push(dormant.clone());
    assert!(ordered(&decide(&one(asleep.clone()))).is_empty());
    dormant.reason = "Frozen".to_owned();
    asleep.status.as_mut().unwrap().conditions[1] = dormant;
    assert_eq!(ordered(&decide(&one(asleep))).len(), 1);
    // Nor where nothing can be saved, and nobody waits there.
    let mut observed = look(golden_pool(3), vec![], &["a"]);
    observed.nodes = vec![PoolNode {
        name: "a".to_owned(),
        ..PoolNode::default()
    }]
    .into();
    assert_eq!(decide(&observed).make, 3);
}

#[test]
fn who_is_to_be_saved_stays_awake_for_that_and_no_longer() {
    let mut sleeping = golden_pool(1);
    sleeping.spec.standby = Some(Standby::Hibernated);
    let mut observed = look(sleeping, vec![on(standby("s", true, 60), "a")], &["a"]);
    let rung = |next: &Next| next.wishes.as_ref().unwrap()["s-uid"].1;
    let first = decide(&observed);
    assert_eq!(rung(&first), Rung::Running);
    let golden = ordered(&first)[0].clone();
    observed.attempts = first.attempts.clone();
    // Whatever becomes of it, it is not kept awake for ever.
    let mut made = golden.clone();
    made.metadata.creation_timestamp = Some(Time(now()));
    observed.goldens = vec![Arc::new(made)];
    assert_eq!(rung(&at(&observed, later(now(), 119))), Rung::Running);
    observed.attempts = at(&observed, later(now(), 120)).attempts;
    observed.goldens = vec![];
    assert_eq!(rung(&at(&observed, later(now(), 121))), Rung::Hibernated);
    observed.attempts = first.attempts.clone();
    observed.goldens = vec![Arc::new(ready(golden, "a"))];
    assert_eq!(rung(&decide(&observed)), Rung::Hibernated);
}

#[test]
fn those_that_sleep_are_not_woken_to_be_saved() {
    let asleep = |name: &str| {
        let mut standby = on(standby(name, true, 60), "a");
        let mut dormant = condition("Dormant", true, "Frozen", now());
        dormant.message = "Sandbox sleeps until it is claimed".to_owned();
        standby.status.as_mut().unwrap().conditions.push(dormant);
        standby
    };
    let mut sleeping = golden_pool(3);
    sleeping.spec.standby = Some(Standby::Frozen);
    let members = vec![asleep("x"), asleep("y"), on(standby("z", true, 60), "a")];
    let next = decide(&look(sleeping, members, &["a"]));
    assert_eq!(ordered(&next)[0].spec.sandbox_name, "x");
    assert!(
        next.wishes
            .unwrap()
            .values()
            .all(|(_, rung)| *rung == Rung::Frozen)
    );
}

#[test]
fn a_seed_that_takes_too_long_holds_nobody_up() {
    let mut observed = look(golden_pool(5), vec![], &["a"]);
    observed.attempts = decide(&observed).attempts;
    observed.members = vec![Arc::new(on(standby("s", false, 0), "a"))];
    let next = at(&observed, later(now(), 59));
    assert_eq!((next.make, next.requeue), (0, Some(Duration::from_secs(1))));
    let next = at(&observed, later(now(), 60));
    assert_eq!(next.make, 4);
    assert!(next.places.iter().all(|place| place.golden.is_none()));
    // The snapshot is taken all the same when the seed is ready.
    observed.members = vec![Arc::new(on(standby("s", true, 0), "a"))];
    assert_eq!(ordered(&at(&observed, later(now(), 70))).len(), 1);
}

#[test]
fn one_that_failed_lets_all_boot_and_is_tried_again_after_ten_minutes() {
    let golden = failed(golden_of("a", now()));
    let mut observed = look(golden_pool(5), vec![on(standby("s", true, 60), "a")], &["a"]);
    observed.goldens = vec![Arc::new(golden.clone())];
    let next = decide(&observed);
    assert_eq!(next.make, 4);
    assert!(next.places.iter().all(|place| place.golden.is_none()));
    assert_eq!((ordered(&next).len(), dropped(&next).len()), (0, 0));
    assert_eq!(next.news[0].reason, "GoldenSnapshotFailed");
    // It is said once.
    observed.attempts = next.attempts;
    assert_eq!(decide(&observed).news, []);
    assert_eq!(dropped(&at(&observed, later(now(), 600))), [name_of(&golden)]);
}

#[test]
fn one_that_is_not_taken_in_time_is_given_up_and_all_boot() {
    let golden = golden_of("a", now());
    let mut observed = look(golden_pool(5), vec![on(standby("s", true, 60), "a")], &["a"]);
    observed.goldens = vec![Arc::new(golden.clone())];
    let next = at(&observed, later(now(), 119));
    assert_eq!((dropped(&next), next.make), (vec![], 0));
    observed.attempts = next.attempts;
    let next = at(&observed, later(now(), 120));
    assert_eq!(dropped(&next), [name_of(&golden)]);
    assert!(next.news[0].reason == "GoldenSnapshotFailed" && next.news[0].note.contains("in time"));
    // It is not ordered again at once, and nobody waits for that.
    observed.attempts = next.attempts;
    observed.goldens = vec![];
    let next = at(&observed, later(now(), 121));
    assert_eq!((ordered(&next).len(), next.make), (0, 4));
    assert_eq!(ordered(&at(&observed, later(now(), 720))).len(), 1);
}

#[test]
fn one_whose_standby_was_claimed_before_it_was_taken_is_of_no_use() {
    let golden = golden_of("a", now());
    let mut observed = look(golden_pool(2), vec![], &["a"]);
    observed.goldens = vec![Arc::new(golden.clone())];
    assert_eq!(dropped(&decide(&observed)), [name_of(&golden)]);
    // What has been taken outlives its standby.
    observed.goldens = vec![Arc::new(ready(golden, "a"))];
    let next = decide(&observed);
    assert_eq!((dropped(&next).len(), next.make), (0, 2));
    assert!(next.places.iter().all(|place| place.golden.is_some()));
}

#[test]
fn a_changed_template_has_goldens_of_its_own() {
    let old = ready(golden_of("a", now()), "a");
    let mut changed = template();
    changed.spec.pod_template.spec.containers[0].image = Some("two".to_owned());
    let mut observed = look(golden_pool(3), vec![on(standby("s", true, 60), "a")], &["a"]);
    observed.template = Some(Arc::new(changed.clone()));
    observed.goldens = vec![Arc::new(old.clone())];
    let next = decide(&observed);
    // The standby of the older template is nothing that the new ones could be clones of.
    assert_eq!((ordered(&next).len(), dropped(&next).len()), (0, 0));
    assert_eq!(next.places.len(), 1);
    assert_eq!(next.places[0].golden, None);
    // It goes when there is a newer one.
    let hashes = Hashes::of(&changed.spec);
    let mut seed = build::standby(&pool(1), &changed, &hashes, &settings());
    seed.metadata = ObjectMeta {
        labels: seed.metadata.labels.take(),
        owner_references: seed.metadata.owner_references.take(),
        ..standby("seed", true, 60).metadata
    };
    seed.status = on(standby("seed", true, 60), "a").status;
    observed.members = vec![Arc::new(seed)];
    let next = decide(&observed);
    let new = ordered(&next)[0].clone();
    assert_ne!(name_of(&new), name_of(&old));
    observed.goldens = vec![Arc::new(old.clone()), Arc::new(ready(new.clone(), "a"))];
    let next = decide(&observed);
    assert_eq!(dropped(&next), [name_of(&old)]);
    assert!(
        next.places
            .iter()
            .all(|place| place.golden == Some(name_of(&new)))
    );
    // One that has not been taken yet goes at once.
    observed.goldens = vec![Arc::new(golden_of("a", now()))];
    assert_eq!(dropped(&decide(&observed)), [name_of(&old)]);
}

#[test]
fn what_nobody_wants_any_more_or_its_node_has_lost_goes() {
    let golden = ready(golden_of("a", now()), "a");
    let mut observed = look(pool(1), vec![on(standby("s", true, 60), "a")], &["a"]);
    observed.goldens = vec![Arc::new(golden.clone())];
    assert_eq!(dropped(&decide(&observed)), [name_of(&golden)]);
    observed.pool = Arc::new(golden_pool(1));
    let with = |reason| {
        let mut golden = golden.clone();
        golden.status.as_mut().unwrap().conditions = vec![condition("Ready", false, reason, now())];
        vec![Arc::new(golden)]
    };
    for (reason, goes) in [("SnapshotLost", 1), ("NodeGone", 1), ("AgentUnreachable", 0)] {
        observed.goldens = with(reason);
        assert_eq!(dropped(&decide(&observed)).len(), goes, "{reason}");
    }
    // Without its template, which may come back, all is left.
    observed.template = None;
    observed.goldens = with("SnapshotLost");
    assert_eq!(decide(&observed).steps, []);
}

/// A standby that is to be a clone and could not be, since so long ago.
fn given_up(name: &str, golden: &str, node: &str, seconds_ago: i64) -> Sandbox {
    let mut standby = said(on(standby(name, true, 60), node), annotations::GOLDEN, golden);
    let since = later(now(), -seconds_ago);
    let all = &mut standby.status.as_mut().unwrap().conditions;
    all.push(condition(RESTORED, false, "ColdStart", since));
    standby
}

#[test]
fn a_golden_that_its_node_does_not_take_is_made_anew_and_all_boot_meanwhile() {
    let golden = ready(golden_of("a", later(now(), -100)), "a");
    let name = name_of(&golden);
    let mut observed = look(golden_pool(3), vec![given_up("s", &name, "a", 10)], &["a"]);
    observed.goldens = vec![Arc::new(golden)];
    let next = decide(&observed);
    assert_eq!((next.make, dropped(&next)), (2, vec![name.as_str()]));
    assert!(next.places.iter().all(|place| place.golden.is_none()));
    // The new one is tried after a while.
    observed.attempts = next.attempts;
    observed.goldens = vec![Arc::new(ready(golden_of("a", now()), "a"))];
    let next = decide(&observed);
    assert_eq!(dropped(&next), [""; 0]);
    assert!(next.places.iter().all(|place| place.golden.is_none()));
    let next = at(&observed, later(now(), 590));
    assert!(next.places.iter().all(|place| place.golden.is_some()));
}

#[test]
fn a_node_that_refuses_its_golden_has_its_standbys_boot_and_the_others_go_on_cloning() {
    let golden = |node: &str, made| ready(golden_of(node, made), node);
    let (of_a, of_b) = (golden("a", later(now(), -100)), golden("b", later(now(), -100)));
    let names = (name_of(&of_a), name_of(&of_b));
    let cloned = said(
        on(standby("t", true, 60), "b"),
        annotations::GOLDEN,
        names.1.as_str(),
    );
    let members = vec![given_up("s", &names.0, "a", 10), cloned];
    let mut observed = look(golden_pool(6), members, &["a", "b"]);
    observed.goldens = vec![Arc::new(of_a), Arc::new(of_b.clone())];
    let place = |node: &str, golden: Option<&String>| Place {
        node: Some(node.to_owned()),
        golden: golden.cloned(),
    };
    let clones = || place("b", Some(&names.1));
    let next = decide(&observed);
    // Both nodes have as many of them as before.
    assert_eq!(
        next.places,
        [clones(), place("a", None), clones(), place("a", None)]
    );
    assert_eq!(dropped(&next), [names.0.as_str()]);
    // One that has booted there is the next golden snapshot of the node, which is not tried before the time.
    observed.attempts = next.attempts;
    observed.goldens = vec![Arc::new(golden("a", now())), Arc::new(of_b)];
    let next = decide(&observed);
    assert_eq!(
        next.places,
        [clones(), place("a", None), clones(), place("a", None)]
    );
    assert_eq!((ordered(&next).len(), dropped(&next)), (0, vec![]));
    let next = at(&observed, later(now(), 590));
    let again = place("a", Some(&names.0));
    assert_eq!(next.places, [again.clone(), clones(), again, clones()]);
}

#[test]
fn a_golden_is_kept_though_a_clone_found_no_room_on_its_node() {
    let golden = ready(golden_of("a", later(now(), -100)), "a");
    let mut without_room = given_up("s", &name_of(&golden), "a", 10);
    without_room.status.as_mut().unwrap().conditions[1].reason = "NodeUnavailable".to_owned();
    let mut observed = look(golden_pool(3), vec![without_room], &["a"]);
    observed.goldens = vec![Arc::new(golden)];
    let next = decide(&observed);
    assert_eq!((next.make, dropped(&next)), (2, vec![]));
    assert!(next.places.iter().all(|place| place.golden.is_some()));
}

#[test]
fn a_golden_whose_source_was_claimed_is_not_ordered_over_and_over() {
    let mut observed = look(golden_pool(2), vec![on(standby("s", true, 60), "a")], &["a"]);
    let next = decide(&observed);
    assert_eq!(ordered(&next).len(), 1);
    // It went with its standby, and another one has settled.
    observed.attempts = next.attempts;
    observed.members = vec![Arc::new(on(standby("t", true, 60), "a"))];
    let next = at(&observed, later(now(), 9));
    assert_eq!(ordered(&next).len(), 0);
    assert!(next.requeue.unwrap() <= Duration::from_secs(1));
    observed.attempts = next.attempts;
    assert_eq!(ordered(&at(&observed, later(now(), 10))).len(), 1);
}

#[test]
fn seeds_for_which_a_quota_has_no_room_are_hoped_for_when_there_is() {
    let key = ("ns".to_owned(), "pool".to_owned());
    let pools = Pools::default();
    let mut observed = look(golden_pool(4), vec![], &["a"]);
    observed.neighbours = vec!["pool".to_owned()];
    observed.limits = Limits::of(&[quota("q", Some(0), None)]);
    for second in [0, 40, 80] {
        observed.attempts = pools.attempts(&key);
        assert_eq!(
            pools
                .next(&key, &observed, &settings(), later(now(), second))
                .make,
            0
        );
    }
    observed.attempts = pools.attempts(&key);
    observed.limits = Limits::default();
    // One boots, and the others wait for its snapshot.
    assert_eq!(pools.next(&key, &observed, &settings(), later(now(), 81)).make, 1);
}

#[test]
fn a_node_that_standbys_do_not_get_on_is_tried_last() {
    let elsewhere = said(on(standby("s", true, 60), "b"), annotations::PREFERRED_NODE, "a");
    let mut observed = look(pool(3), vec![elsewhere], &["a", "b"]);
    // One that has nothing of ours goes where the scheduler says.
    assert_eq!(decide(&observed).places[0], Place::default());
    let mut template = template();
    template.spec.pod_template.spec.runtime_class_name = Some("dormouse-gvisor".to_owned());
    observed.template = Some(Arc::new(template));
    let node = |next: &Next| next.places[0].node.clone().unwrap();
    assert_eq!(node(&decide(&observed)), "b");
    assert_eq!(node(&at(&observed, later(now(), 600))), "a");
    observed.members = vec![Arc::new(on(standby("s", true, 60), "b"))];
    assert_eq!(node(&decide(&observed)), "a");
}

#[test]
fn standbys_of_a_pool_that_names_a_snapshot_are_its_clones_where_it_is() {
    let mut named = pool(3);
    named.spec.golden = Some("booted".to_owned());
    let mut golden = ready(golden_of("b", now()), "b");
    golden.metadata.name = Some("booted".to_owned());
    let mut observed = look(named, vec![], &["a", "b"]);
    let next = decide(&observed);
    assert_eq!((next.make, next.news[0].reason), (3, "GoldenSnapshotFailed"));
    assert!(next.news[0].note.contains("there is none of that name"));
    observed.attempts = next.attempts;
    observed.named = Some(Arc::new(golden));
    let next = decide(&observed);
    let clone = Place {
        node: Some("b".to_owned()),
        golden: Some("booted".to_owned()),
    };
    assert_eq!(next.places, [clone.clone(), clone.clone(), clone]);
    assert_eq!(next.news[0].reason, "GoldenSnapshotReady");
    // Its node cannot be used, or does not take it.
    let boots = |observed: &Observed| decide(observed).places.iter().all(|place| place.golden.is_none());
    let mut refused = observed.clone();
    refused.members = vec![Arc::new(given_up("s", "booted", "b", 10))];
    assert!(boots(&refused));
    observed.nodes = nodes(&["a"]);
    assert!(boots(&observed));
    // Nobody deletes what is not the pool's.
    assert_eq!(decide(&observed).steps, []);
}
