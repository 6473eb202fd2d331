//! On which rung each standby of a pool waits.

use dormouse_api::conditions::messages::STANDS_BY;
use dormouse_api::extensions::Standby;
use dormouse_core::Rung;
use proptest::prelude::*;

use super::*;
use crate::pool::Pools;

fn sleeping(replicas: i32, awake: Option<i32>) -> SandboxWarmPool {
    let mut pool = pool(replicas);
    pool.spec.standby = Some(Standby::Dozing);
    pool.spec.awake = awake;
    pool
}

fn asleep(mut sandbox: Sandbox) -> Sandbox {
    let status = sandbox.status.get_or_insert_default();
    status.conditions.push(Condition {
        type_: "Dormant".to_owned(),
        status: "True".to_owned(),
        reason: "Dozing".to_owned(),
        message: STANDS_BY.to_owned(),
        observed_generation: None,
        last_transition_time: Time(now()),
    });
    sandbox
}

/// Names of those that are to be awake.
fn awake(wishes: &BTreeMap<String, (String, Rung)>) -> Vec<&str> {
    let mut names: Vec<&str> = wishes
        .values()
        .filter(|(_, rung)| *rung == Rung::Running)
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    names
}

fn wishes(pool: SandboxWarmPool, members: Vec<Sandbox>) -> BTreeMap<String, (String, Rung)> {
    decide(&with(pool, members)).wishes.unwrap()
}

#[test]
fn none_is_awake_unless_it_is_said_and_all_where_they_run() {
    let members = || vec![standby("a", true, 10), standby("b", true, 20)];
    let all = wishes(sleeping(2, None), members());
    assert!(all.len() == 2 && all.values().all(|(_, rung)| *rung == Rung::Dozing));
    assert_eq!(wishes(pool(2), members()), BTreeMap::new());
}

#[test]
fn those_are_awake_that_can_be_claimed_and_are_and_then_the_oldest() {
    let members = || {
        vec![
            standby("booting", false, 100),
            asleep(standby("old-asleep", true, 50)),
            standby("old", true, 40),
            standby("young", true, 10),
        ]
    };
    let choose = |count| wishes(sleeping(4, Some(count)), members());
    assert_eq!(awake(&choose(1)), ["old"]);
    assert_eq!(awake(&choose(2)), ["old", "young"]);
    assert_eq!(awake(&choose(3)), ["old", "old-asleep", "young"]);
    assert_eq!(awake(&choose(9)), ["booting", "old", "old-asleep", "young"]);
}

#[test]
fn whoever_was_chosen_stays_chosen() {
    let mut observed = with(
        sleeping(2, Some(1)),
        vec![standby("old", true, 40), asleep(standby("chosen", true, 10))],
    );
    let chosen = ("chosen".to_owned(), Rung::Running);
    observed.wishes = BTreeMap::from([("chosen-uid".to_owned(), chosen)]);
    assert_eq!(awake(&decide(&observed).wishes.unwrap()), ["chosen"]);
}

#[test]
fn those_are_looked_at_of_whom_something_else_is_wished() {
    let state = Pools::default();
    let key = ("ns".to_owned(), "pool".to_owned());
    let of = |pairs: &[(&str, Rung)]| -> BTreeMap<String, (String, Rung)> {
        let all = pairs.iter();
        all.map(|(name, rung)| (format!("{name}-uid"), ((*name).to_owned(), *rung)))
            .collect()
    };
    let changed = |wishes| -> Vec<String> { state.wished(&key, &wishes).into_iter().collect() };
    let first = of(&[("a", Rung::Running), ("b", Rung::Dozing)]);
    assert_eq!(changed(first.clone()), ["a", "b"]);
    assert_eq!(changed(first), [""; 0]);
    assert_eq!(state.wish("a-uid"), Some(Rung::Running));
    assert_eq!(changed(of(&[("b", Rung::Running)])), ["a", "b"]);
    assert_eq!(
        (state.wish("a-uid"), state.wish("b-uid")),
        (None, Some(Rung::Running))
    );
    assert_eq!(changed(BTreeMap::new()), ["b"]);
    assert_eq!(state.wish("b-uid"), None);
    // A pool that is gone wishes nothing.
    changed(of(&[("a", Rung::Dozing)]));
    state.forget("ns", "pool");
    assert_eq!(state.wish("a-uid"), None);
}

#[test]
fn those_that_were_not_born_to_sleep_are_replaced_by_and_by_where_the_pool_recreates() {
    let names: Vec<String> = (0..8).map(|number| format!("s{number}")).collect();
    let members = |unready: usize| {
        let standbys = names.iter().enumerate();
        standbys
            .map(|(number, name)| standby(name, number >= unready, 10))
            .collect::<Vec<_>>()
    };
    let sleepless = || names.iter().map(|name| format!("{name}-uid")).collect();
    let pool = |awake| SandboxWarmPool {
        spec: dormouse_api::extensions::SandboxWarmPoolSpec {
            update_strategy: recreating(8).spec.update_strategy,
            ..sleeping(8, awake).spec
        },
        ..sleeping(8, awake)
    };
    let replaced = |pool: SandboxWarmPool, unready: usize| {
        let mut observed = with(pool, members(unready));
        observed.sleepless = sleepless();
        deleted(&decide(&observed)).len()
    };
    assert_eq!(replaced(pool(None), 0), 2);
    // Their successors are waited for.
    assert_eq!(replaced(pool(None), 1), 0);
    // Those that wait awake need not be able to sleep.
    assert_eq!(replaced(pool(Some(7)), 0), 1);
    assert_eq!(replaced(pool(Some(8)), 0), 0);
    // Where old standbys stay until they are claimed, these do.
    assert_eq!(replaced(sleeping(8, None), 0), 0);
    // Nothing is to sleep.
    assert_eq!(replaced(recreating(8), 0), 0);
    let mut fewer = with(pool(None), members(0));
    fewer.sleepless = sleepless();
    fewer.members.pop();
    assert_eq!(deleted(&decide(&fewer)).len(), 0);
}

#[test]
fn a_pod_is_born_to_sleep_if_anybody_has_said_whether_it_may() {
    let mut pod = k8s_openapi::api::core::v1::Pod::default();
    assert!(super::super::sleepless::is_born_so(&pod));
    for said in ["true", "false"] {
        pod.metadata.annotations = Some(BTreeMap::from([(
            "dormouse.dev/managed".to_owned(),
            said.to_owned(),
        )]));
        assert!(!super::super::sleepless::is_born_so(&pod));
    }
}

proptest! {
    /// As many are awake as are to be, or all; and once the standbys are as was wished nobody else is chosen.
    #[test]
    fn the_choice_rests(
        members in prop::collection::vec((any::<bool>(), any::<bool>(), 0..5_i64), 0..8), count in 0..5_i32,
    ) {
        let made = |wishes: Option<&BTreeMap<String, (String, Rung)>>| -> Vec<Sandbox> {
            members
                .iter()
                .enumerate()
                .map(|(number, (is_ready, sleeps, age))| {
                    let standby = standby(&format!("box-{number}"), *is_ready, *age);
                    let sleeps = wishes.map_or(*sleeps, |wishes| {
                        wishes[&format!("box-{number}-uid")].1 != Rung::Running
                    });
                    // One that is not ready does not sleep.
                    if sleeps && *is_ready { asleep(standby) } else { standby }
                })
                .collect()
        };
        let replicas = i32::try_from(members.len()).unwrap();
        let first = wishes(sleeping(replicas, Some(count)), made(None));
        prop_assert_eq!(awake(&first).len(), usize::try_from(count.min(replicas)).unwrap());
        // The same one is chosen by a controller that has just begun, and by one that remembers.
        let settled = made(Some(&first));
        prop_assert_eq!(&wishes(sleeping(replicas, Some(count)), settled.clone()), &first);
        let mut observed = with(sleeping(replicas, Some(count)), settled);
        observed.wishes = first.clone();
        prop_assert_eq!(decide(&observed).wishes.unwrap(), first);
    }
}
