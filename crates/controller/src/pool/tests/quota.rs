//! What pools do where quotas leave no room.

mod writes;

use proptest::prelude::*;

use super::super::quota::{Account, Exceeded, Room};
use super::*;
use crate::pool::Pools;
use dormouse_api::dormouse::StandbyQuota;

const MIB: u64 = 1 << 20;

pub(super) fn quota(name: &str, standbys: Option<i32>, memory: Option<&str>) -> Arc<StandbyQuota> {
    let mut quota = StandbyQuota {
        metadata: meta(name),
        ..StandbyQuota::default()
    };
    quota.spec.standbys = standbys;
    quota.spec.memory = memory.map(str::to_owned);
    Arc::new(quota)
}

fn limits(standbys: Option<i32>, memory: Option<&str>) -> Limits {
    Limits::of(&[quota("q", standbys, memory)])
}

fn account(has: usize, wants: usize, each: u64) -> Account {
    Account {
        has,
        bytes: u64::try_from(has).unwrap() * each,
        wants,
        each,
        waits: false,
    }
}

fn grants(limits: &Limits, accounts: &[(&str, Account)], pool: &str) -> usize {
    limits.room(pool, &accounts.iter().copied().collect()).grants
}

#[test]
fn of_several_quotas_all_hold() {
    let limits = Limits::of(&[
        quota("a", Some(5), Some("1Gi")),
        quota("b", Some(3), None),
        quota("c", None, Some("2Gi")),
    ]);
    let accounts = BTreeMap::from([("pool", account(0, 9, 512 * MIB))]);
    let room = limits.room("pool", &accounts);
    let says = Some("StandbyQuota a (memory: 1Gi)".to_owned());
    assert_eq!(
        room,
        Room {
            grants: 2,
            full: says
        }
    );
    let accounts = BTreeMap::from([("pool", account(0, 9, 0))]);
    let room = limits.room("pool", &accounts);
    let says = Some("StandbyQuota b (standbys: 3)".to_owned());
    assert_eq!(
        room,
        Room {
            grants: 3,
            full: says
        }
    );
    assert!(!Limits::of(&[]).is_any());
}

#[test]
fn room_goes_to_those_with_the_fewest() {
    let limits = limits(Some(10), None);
    let of = |pool| {
        let all = [
            ("a", account(6, 4, 0)),
            ("b", account(0, 9, 0)),
            ("c", account(1, 1, 0)),
        ];
        grants(&limits, &all, pool)
    };
    // Three are left: b gets one, then b and c, by name, have one each.
    assert_eq!((of("a"), of("b"), of("c")), (0, 2, 1));
    // What is not wanted is left to others.
    let all = [("a", account(6, 4, 0)), ("b", account(0, 1, 0))];
    assert_eq!((grants(&limits, &all, "a"), grants(&limits, &all, "b")), (3, 1));
}

#[test]
fn one_that_does_not_fit_is_not_in_the_way_of_smaller_ones() {
    let limits = limits(None, Some("1Gi"));
    let all = [
        ("large", account(0, 1, 2048 * MIB)),
        ("small", account(1, 9, 256 * MIB)),
    ];
    assert_eq!(grants(&limits, &all, "small"), 3);
    let says = limits.room("large", &all.into_iter().collect()).full;
    assert_eq!(says.as_deref(), Some("StandbyQuota q (memory: 1Gi)"));
}

fn accounts_of(pools: &[(usize, usize, u64)]) -> BTreeMap<String, Account> {
    let account = |(number, (has, wants, each)): (usize, &(usize, usize, u64))| {
        (format!("p{number}"), account(*has, *wants, *each))
    };
    pools.iter().enumerate().map(account).collect()
}

fn rooms(limits: &Limits, accounts: &BTreeMap<String, Account>) -> BTreeMap<String, Room> {
    let by_name: BTreeMap<&str, Account> = accounts.iter().map(|(name, of)| (name.as_str(), *of)).collect();
    let room = |name: &String| (name.clone(), limits.room(name, &by_name));
    accounts.keys().map(room).collect()
}

proptest! {
    /// Whatever they have and want: all together never grow over a limit, none gets more than it wants, none is told that
    /// there is no room where there is, and of two that want more none has more than one above the other by what it got.
    #[test]
    fn pools_grow_to_the_limits_and_not_over_them(
        pools in prop::collection::vec((0..20_usize, 0..30_usize, 0..4_u64), 1..6),
        standbys in prop::option::of(0..60_i32),
        memory in prop::option::of(0..100_u32),
    ) {
        let text = memory.map(|bytes| bytes.to_string());
        let limits = limits(standbys, text.as_deref());
        let accounts = accounts_of(&pools);
        let rooms = rooms(&limits, &accounts);
        let sum = |of: &dyn Fn(&Account, usize) -> u64| -> u64 {
            accounts.iter().map(|(name, account)| of(account, rooms[name].grants)).sum()
        };
        let has = sum(&|account, _| account.has as u64);
        let bytes = sum(&|account, _| account.bytes);
        let has_then = sum(&|account, grants| (account.has + grants) as u64);
        let bytes_then = sum(&|account, grants| account.bytes + grants as u64 * account.each);
        let most = standbys.map_or(u64::MAX, |most| u64::try_from(most).unwrap());
        let most_bytes = memory.map_or(u64::MAX, u64::from);
        prop_assert!(has_then <= most.max(has));
        prop_assert!(bytes_then <= most_bytes.max(bytes));
        for (name, account) in &accounts {
            let room = &rooms[name];
            prop_assert!(room.grants <= account.wants);
            prop_assert_eq!(room.full.is_some(), room.grants < account.wants);
            if room.full.is_some() {
                let is_full = has_then >= most;
                let does_not_fit = account.each > most_bytes.saturating_sub(bytes_then);
                prop_assert!(is_full || does_not_fit);
                for (other, its) in &accounts {
                    // Nobody who has more was given one in its place, where both are of a size.
                    if rooms[other].grants > 0 && its.each >= account.each {
                        prop_assert!(its.has + rooms[other].grants <= account.has + room.grants + 1);
                    }
                }
            }
        }
    }

    /// Pools that want more than there is room for come to the same number as their standbys are claimed, in whatever
    /// order they are looked at, and the limit is held to all the time.
    #[test]
    fn pools_of_a_namespace_come_to_have_as_many(
        most in 1..30_i32,
        first in 0..4_usize,
        looks in prop::collection::vec((0..4_usize, any::<bool>()), 0..50),
    ) {
        let names: Vec<String> = (0..4).map(|number| format!("p{number}")).collect();
        let pools = Pools::default();
        let mut has = [0_usize; 4];
        let look = |number: usize, has: &mut [usize; 4]| {
            let next = pools.next(&key(number), &observed(number, has[number], most, &names), &settings(), now());
            has[number] += next.make;
            assert!(next.steps.is_empty());
            next
        };
        // Of one that has not been looked at it is not known what it has.
        for number in 0..4 {
            let next = look(number, &mut has);
            prop_assert!(number == 3 || next.make == 0 && next.requeue == Some(Duration::from_secs(1)));
        }
        look(first, &mut has);
        for (number, claimed) in looks {
            has[number] -= usize::from(claimed && has[number] > 0);
            look(number, &mut has);
            prop_assert!(has.iter().sum::<usize>() <= usize::try_from(most).unwrap());
        }
        // One claim after the other at the pool that has the most.
        for _ in 0..60 {
            let largest = (0..4).max_by_key(|number| has[*number]).unwrap();
            has[largest] -= usize::from(has[largest] > 0);
            for number in 0..4 {
                look(number, &mut has);
            }
        }
        prop_assert_eq!(has.iter().sum::<usize>(), usize::try_from(most).unwrap());
        prop_assert!(has.iter().max().unwrap() - has.iter().min().unwrap() <= 1, "{:?}", has);
        let usage = pools.usage("ns");
        prop_assert_eq!((usage.standbys, usage.waiting), (u64::try_from(most).unwrap(), names));
    }
}

fn key(number: usize) -> (String, String) {
    ("ns".to_owned(), format!("p{number}"))
}

/// A pool that wants forty, with so many.
fn observed(number: usize, has: usize, most: i32, names: &[String]) -> Observed {
    let members = (0..has).map(|member| standby(&format!("s{member}"), true, 100));
    let mut pool = pool(40);
    pool.metadata.name = Some(format!("p{number}"));
    let members = members.map(|mut member| {
        let label = name_hash(&format!("p{number}"));
        member
            .metadata
            .labels
            .get_or_insert_default()
            .insert(labels::WARM_POOL.to_owned(), label);
        member
    });
    Observed {
        limits: limits(Some(most), None),
        neighbours: names.to_vec(),
        ..with(pool, members.collect())
    }
}

#[test]
fn a_quota_that_was_lowered_deletes_nobody_and_a_scale_down_does() {
    let pools = Pools::default();
    let names = ["p0".to_owned()];
    let look = |observed: &Observed| pools.next(&key(0), observed, &settings(), now());
    let mut observed = observed(0, 10, 5, &names);
    let next = look(&observed);
    assert_eq!((next.make, next.steps.len()), (0, 0));
    let exceeded = next.exceeded.unwrap();
    assert_eq!(exceeded.reason, "StandbyQuotaExceeded");
    assert_eq!(
        exceeded.message,
        "StandbyQuota q (standbys: 5) leaves no room for all standbys that there are to be; raise it, or make pools of \
         this namespace smaller"
    );
    let mut smaller = (*observed.pool).clone();
    smaller.spec.replicas = 4;
    observed.pool = Arc::new(smaller);
    let next = look(&observed);
    assert_eq!((deleted(&next).len(), next.exceeded), (6, None));
}

#[test]
fn those_that_wait_are_looked_at_when_there_is_room() {
    let pools = Pools::default();
    let names = ["p0".to_owned(), "p1".to_owned()];
    let look = |number, has, most| {
        let next = pools.next(
            &key(number),
            &observed(number, has, most, &names),
            &settings(),
            now(),
        );
        (next.make, next.wake, next.requeue)
    };
    assert_eq!(look(0, 0, 6).0, 0);
    assert_eq!(look(1, 6, 6), (0, vec![], Some(Duration::from_secs(30))));
    assert_eq!(look(0, 0, 6), (0, vec![], Some(Duration::from_secs(30))));
    // One is claimed; it is the other's turn.
    let (make, wake, _) = look(1, 5, 6);
    assert_eq!((make, wake), (0, vec!["p0".to_owned()]));
    assert_eq!(look(0, 0, 6).0, 1);
    // The quota is taken away.
    let free = Observed {
        limits: Limits::default(),
        neighbours: vec![],
        ..observed(0, 1, 6, &names)
    };
    let next = pools.next(&key(0), &free, &settings(), now());
    assert_eq!((next.make, next.exceeded), (39, None));
    assert_eq!(pools.usage("ns").standbys, 5);
}

#[test]
fn memory_counts_as_it_is_requested_at_the_time() {
    let mut template = template();
    let requests = BTreeMap::from([("memory".to_owned(), Quantity("512Mi".to_owned()))]);
    template.spec.pod_template.spec.containers[0].resources = Some(ResourceRequirements {
        requests: Some(requests),
        ..ResourceRequirements::default()
    });
    let pools = Pools::default();
    let look = |has: usize, bytes: u64| {
        let observed = Observed {
            limits: limits(None, Some("1Gi")),
            neighbours: vec!["p0".to_owned()],
            bytes,
            template: Some(Arc::new(template.clone())),
            ..observed(0, has, 0, &[])
        };
        pools.next(&key(0), &observed, &settings(), now())
    };
    assert_eq!(look(0, 0).make, 2);
    assert_eq!(look(2, 1024 * MIB).make, 0);
    // They sleep, and have given their requests away.
    let next = look(2, 32 * MIB);
    assert_eq!((next.make, next.exceeded.is_some()), (1, true));
    assert_eq!(pools.usage("ns").bytes, 544 * MIB);
}

#[test]
fn conditions_are_there_only_as_long_as_a_quota_is_exceeded() {
    let mut conditions = vec![];
    let exceeded = Exceeded::standby_quota("StandbyQuota q (standbys: 5)");
    Exceeded::show(Some(&exceeded), &mut conditions, Some(2), now());
    Exceeded::show(Some(&exceeded), &mut conditions, Some(2), Timestamp::MAX);
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0].last_transition_time, Time(now()));
    Exceeded::show(None, &mut conditions, Some(2), now());
    assert_eq!(conditions, []);
}
