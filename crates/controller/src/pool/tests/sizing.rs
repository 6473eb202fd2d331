//! How many standbys a pool has that the controller sizes.

use proptest::prelude::*;

use super::*;
use crate::metrics::Metrics;
use crate::pool::Pools;

fn sized(replicas: i32, least: Option<i32>, most: Option<i32>) -> SandboxWarmPool {
    let mut pool = pool(replicas);
    pool.spec.min_ready = least;
    pool.spec.max_ready = most;
    pool
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

fn members(count: usize) -> Vec<Sandbox> {
    (0..count)
        .map(|number| standby(&format!("s{number}"), true, 100))
        .collect()
}

fn key() -> (String, String) {
    ("ns".to_owned(), "pool".to_owned())
}

#[test]
fn where_one_bound_is_not_said_replicas_is() {
    let wanted = |pool| decide(&with(pool, vec![])).wanted;
    assert_eq!(wanted(sized(3, None, None)), 3);
    assert_eq!(wanted(sized(3, None, Some(10))), 3);
    assert_eq!(wanted(sized(30, Some(2), None)), 2);
    assert_eq!(wanted(sized(30, Some(2), Some(10))), 2);
}

#[test]
fn claims_that_find_none_make_the_pool_larger_at_once() {
    let pools = Arc::new(Pools::default());
    let metrics = Metrics::default();
    metrics.count_wanted(Arc::clone(&pools));
    let observed = with(sized(1, Some(2), Some(6)), members(2));
    let look = |at| pools.next(&key(), &observed, &settings(), at);
    assert_eq!((look(now()).make, look(now()).requeue), (0, None));
    for _ in 0..3 {
        pools.claimed("ns", "pool", true, now());
    }
    // The standbys of the test are ready in the second of their creation: the three, and one for the rate of claims.
    let next = look(now());
    assert_eq!((next.wanted, next.make), (4, 2));
    assert_eq!(pools.wanted(), BTreeMap::from([(key(), 4)]));
    let line = "dormouse_pool_wanted_standbys{namespace=\"ns\",pool=\"pool\"} 4\n";
    assert!(metrics.text().unwrap().contains(line));
    // It does not stay as large for ever, and asks to be looked at for that.
    assert_eq!(next.requeue, Some(Duration::from_secs(300)));
    assert_eq!(look(later(299)).wanted, 4);
    assert_eq!(look(later(300)).wanted, 3);
    for _ in 0..100 {
        pools.claimed("ns", "pool", true, later(301));
    }
    assert_eq!(look(later(301)).wanted, 6);
    pools.forget("ns", "pool");
    assert_eq!(pools.wanted(), BTreeMap::new());
}

#[test]
fn a_controller_that_begins_keeps_what_is_there() {
    let next = decide(&with(sized(1, Some(2), Some(6)), members(5)));
    assert_eq!((next.wanted, next.make, next.steps), (5, 0, vec![]));
    assert_eq!(next.requeue, Some(Duration::from_secs(300)));
}

#[test]
fn those_that_sleep_deepest_go_first_and_then_the_youngest() {
    let on = |mut sandbox: Sandbox, rung: &str| {
        let status = sandbox.status.get_or_insert_default();
        status.conditions.push(Condition {
            type_: "Dormant".to_owned(),
            status: "True".to_owned(),
            reason: rung.to_owned(),
            message: dormouse_api::conditions::messages::STANDS_BY.to_owned(),
            observed_generation: None,
            last_transition_time: Time(now()),
        });
        sandbox
    };
    let members = vec![
        standby("awake", true, 10),
        on(standby("frozen", true, 20), "Frozen"),
        on(standby("old", true, 40), "Dozing"),
        on(standby("young", true, 30), "Dozing"),
        standby("starting", false, 50),
    ];
    let next = decide(&with(pool(1), members));
    let excess = |name| (name, Why::Excess);
    assert_eq!(
        deleted(&next),
        [
            excess("starting"),
            excess("young"),
            excess("old"),
            excess("frozen")
        ]
    );
}

#[test]
fn a_pool_that_is_not_sized_any_more_forgets() {
    let mut sizing = Sizing::default();
    let mut look = |pool| {
        next(
            &with(pool, members(5)),
            &settings(),
            &mut Refill::default(),
            &mut sizing,
            now(),
        )
    };
    assert_eq!(look(sized(1, Some(2), Some(6))).wanted, 5);
    let next = look(pool(1));
    assert_eq!((next.wanted, next.requeue), (1, None));
}

/// Standbys that took eight seconds.
fn slow(count: usize) -> Vec<Sandbox> {
    let mut all = members(count);
    for standby in &mut all {
        let ready = &mut standby.status.as_mut().unwrap().conditions[0];
        ready.last_transition_time = Time(later(-92));
    }
    all
}

/// Sizes of a pool that is looked at whenever it asks for it, and when it is at its least again.
fn shrinking(pools: &Pools, observed: &Observed, mut second: i64) -> (Vec<usize>, i64) {
    let mut sizes = vec![];
    loop {
        let next = pools.next(&key(), observed, &settings(), later(second));
        sizes.push(next.wanted);
        let Some(wait) = next.requeue else {
            return (sizes, second);
        };
        second += i64::try_from(wait.as_secs()).unwrap();
    }
}

#[test]
fn the_examples_of_the_guide() {
    let observed = with(sized(1, Some(2), Some(40)), slow(2));
    let look = |pools: &Pools, second| pools.next(&key(), &observed, &settings(), later(second)).wanted;
    let pools = Pools::default();
    assert_eq!(look(&pools, 0), 2);
    for claim in 0..10 {
        pools.claimed("ns", "pool", claim >= 2, now());
    }
    assert_eq!(shrinking(&pools, &observed, 0), (vec![12, 9, 6, 4, 3, 2], 540));

    let pools = Pools::default();
    for second in (0..600).step_by(2) {
        pools.claimed("ns", "pool", false, later(second));
        let size = look(&pools, second);
        assert!(size == 8 || second < 60 && size < 8, "{size} after {second} s");
    }
    assert_eq!(
        shrinking(&pools, &observed, 598),
        (vec![8, 6, 4, 3, 2], 598 + 300 + 180)
    );
}

proptest! {
    #[test]
    fn claims_that_find_none_count_at_once_and_within_the_bounds(
        least in 0..10_i32,
        more in 0..30_i32,
        there in 0..20_usize,
        claims in prop::collection::vec((0..100_i64, any::<bool>()), 0..60),
        blocked in 0..50_usize,
    ) {
        let pools = Pools::default();
        let observed = with(sized(1, Some(least), Some(least + more)), slow(there));
        let bounds = usize::try_from(least).unwrap()..=usize::try_from(least + more).unwrap();
        let wanted = |second| pools.next(&key(), &observed, &settings(), later(second)).wanted;
        let mut second = 0;
        for (passed, blocked) in claims {
            second += passed;
            pools.claimed("ns", "pool", blocked, later(second));
            prop_assert!(bounds.contains(&wanted(second)));
        }
        let before = wanted(second);
        for _ in 0..blocked {
            pools.claimed("ns", "pool", true, later(second));
        }
        let after = wanted(second);
        prop_assert!(bounds.contains(&after) && after >= before);
        prop_assert!(after >= blocked.min(*bounds.end()));
        // What was needed stays for the window.
        prop_assert!(wanted(second + 299) >= blocked.min(*bounds.end()));
    }
}
