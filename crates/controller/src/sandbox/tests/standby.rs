//! Standbys of pools whose standbys sleep, and what becomes of them when they are claimed.

use dormouse_api::agents::{Fallback, SleepAfter, SuspensionStrategy, SuspensionType};
use dormouse_api::extensions::{SandboxClaim, SandboxWarmPool};
use dormouse_core::{Policy, ResumePolicy, Rung};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use proptest::prelude::*;

use super::memory::{guest, later};
use super::*;
use crate::agents::{Guest, Order, Quiet, Woken};
use crate::pool::Wish;
use crate::sandbox::asleep_on;

fn waiting() -> Policy {
    Policy {
        resume_policy: ResumePolicy::Manual,
        ..Policy::default()
    }
}

pub(super) fn owner<K: kube::Resource<DynamicType = ()> + Default>(name: &str) -> OwnerReference {
    let mut owner = K::default();
    owner.meta_mut().name = Some(name.to_owned());
    owner.meta_mut().uid = Some(format!("{name}-uid"));
    owner_reference(&owner)
}

fn with_ready(mut sandbox: Sandbox, seconds_ago: i64) -> Sandbox {
    let since = now() - SignedDuration::from_secs(seconds_ago);
    sandbox.status.get_or_insert_default().conditions = vec![Condition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: "DependenciesReady".to_owned(),
        message: "Pod is Ready".to_owned(),
        observed_generation: Some(3),
        last_transition_time: Time(since),
    }];
    sandbox
}

/// A standby that has been ready for a minute.
fn standby() -> Sandbox {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.metadata.owner_references = Some(vec![owner::<SandboxWarmPool>("pool")]);
    sandbox.metadata.labels = Some(BTreeMap::from([(
        labels::LAUNCH_TYPE.to_owned(),
        "warm".to_owned(),
    )]));
    with_ready(sandbox, 60)
}

/// The same once it is a claim's.
fn claimed(standby: Sandbox) -> Sandbox {
    let mut sandbox = standby;
    sandbox.metadata.owner_references = Some(vec![owner::<SandboxClaim>("claim")]);
    sandbox.metadata.generation = Some(4);
    sandbox
}

fn of(sight: Sight) -> Guest {
    match sight {
        Sight::Seen(guest) => *guest,
        _ => panic!(),
    }
}

/// A guest as it was born for a standby.
fn born(rung: Rung) -> Guest {
    Guest {
        policy: waiting(),
        ..of(guest(rung, 0))
    }
}

fn seen(sandbox: &Sandbox, guest: Guest, wish: Wish) -> Observed {
    let mut observed = super::memory::seen(sandbox, Sight::Seen(Box::new(guest)));
    let source = super::super::Source::Nothing;
    let mut as_born = sandbox.clone();
    as_born.status = None;
    let built = super::super::pod::build(&as_born, wish.is_any(), &source, &settings()).unwrap();
    let pod = Arc::make_mut(&mut observed.pods[0]);
    pod.metadata.annotations = built.metadata.annotations;
    pod.metadata.labels = built.metadata.labels;
    observed.wish = wish;
    observed
}

fn with_probe(mut sandbox: Sandbox) -> Sandbox {
    let container = &mut sandbox.spec.pod_template.spec.containers[0];
    let probe = json!({"httpGet": {"path": "/", "port": 8080}});
    container.readiness_probe = serde_json::from_value(probe).unwrap();
    sandbox
}

#[test]
fn its_pod_is_born_managed_and_only_an_order_wakes_it() {
    let mut sandbox = with_probe(standby());
    sandbox.spec.idle_timeout = Some("5m".to_owned());
    let source = super::super::Source::Nothing;
    let pod = super::super::pod::build(&sandbox, true, &source, &settings()).unwrap();
    let annotations = pod.metadata.annotations.unwrap();
    let (managed, policy) = Policy::from_annotations(&annotations).unwrap();
    assert_eq!(managed, Some(true));
    assert_eq!(
        (policy.idle_timeout, policy.resume_policy),
        (None, ResumePolicy::Manual)
    );
    assert!(annotations.contains_key("dormouse.dev/probes"));
    assert_eq!(pod.spec.unwrap().containers[0].readiness_probe, None);
    // One of a pool whose standbys run is as it would be anywhere.
    let plain = super::super::pod::build(&standby(), false, &source, &settings()).unwrap();
    assert_eq!(plain.metadata.annotations, None);
}

#[test]
fn it_goes_to_its_rung_once_it_has_settled_and_is_ready_there() {
    for (rung, order) in [
        (Rung::Frozen, "freeze the guest"),
        (Rung::Dozing, "let the guest doze"),
        (Rung::Hibernated, "hibernate the guest"),
    ] {
        let awake = seen(&standby(), born(Rung::Running), Wish::Wait(rung));
        let next = decide(&awake);
        assert_eq!(what(&next), [order]);
        let next = decide(&seen(&standby(), born(rung), Wish::Wait(rung)));
        assert_eq!((what(&next), next.requeue), (vec![], None));
        assert_eq!(
            said(&next, "Dormant"),
            Some(("True", rung.as_str(), "Sandbox sleeps until it is claimed"))
        );
        assert_eq!(said(&next, "Ready").unwrap().0, "True");
        let mut asleep = standby();
        asleep.status = Some(next.status);
        assert_eq!(asleep_on(&asleep), Some(rung));
        // Then nothing changes any more.
        let again = decide(&seen(&asleep, born(rung), Wish::Wait(rung)));
        assert_eq!(later(&again), [""; 0]);
        assert_eq!(Some(again.status), asleep.status);
    }
}

#[test]
fn one_that_has_just_become_ready_is_given_time() {
    let wish = Wish::Wait(Rung::Frozen);
    let next = decide(&seen(&with_ready(standby(), 2), born(Rung::Running), wish));
    assert_eq!(
        (what(&next), next.requeue),
        (vec![], Some(Duration::from_secs(3)))
    );
    // Its probes know better.
    let mut guest = born(Rung::Running);
    guest.probes = Some(crate::agents::GuestProbes {
        ready: true,
        message: String::new(),
    });
    let probed = with_ready(with_probe(standby()), 2);
    let next = decide(&seen(&probed, guest, wish));
    assert_eq!(what(&next), ["freeze the guest"]);
    // One that is not ready is waited for.
    let mut starting = standby();
    starting.status = None;
    let next = decide(&seen(&starting, born(Rung::Running), wish));
    assert_eq!((what(&next), next.requeue), (vec![], None));
}

/// What must not go on in its guest before it sleeps.
fn quiet(next: &Next) -> Option<Quiet> {
    let Some(Step::Order {
        order: Order::Freeze { quiet, .. },
        ..
    }) = next.steps.first()
    else {
        return None;
    };
    Some(*quiet)
}

#[test]
fn one_whose_guest_still_works_is_asked_again_for_a_minute() {
    let wish = Wish::Wait(Rung::Frozen);
    let young = with_ready(standby(), 10);
    let mut observed = seen(&young, born(Rung::Running), wish);
    assert_eq!(quiet(&decide(&observed)), Some(Quiet::OfAll));
    // Refused once, it is left alone for a moment; another rung would be refused alike.
    let until = now() + SignedDuration::from_secs(2);
    observed.refused.insert(super::super::standby::BE_QUIET, until);
    let next = decide(&observed);
    assert_eq!(
        (what(&next), next.requeue),
        (vec![], Some(Duration::from_secs(2)))
    );
    observed.refused.insert(
        super::super::standby::BE_QUIET,
        now() - SignedDuration::from_secs(1),
    );
    assert_eq!(quiet(&decide(&observed)), Some(Quiet::OfAll));
    // Some are never quiet.
    observed.refused.insert(super::super::standby::BE_QUIET, until);
    observed.sandbox = Arc::new(standby());
    assert_eq!(quiet(&decide(&observed)), Some(Quiet::Never));
    // An exec that woke it is let end, at any time.
    let mut woken = born(Rung::Running);
    woken.woken = Some(Woken {
        source: dormouse_core::WakeSource::Exec,
        took: None,
    });
    let next = decide(&seen(&standby(), woken, wish));
    assert_eq!(quiet(&next), Some(Quiet::OfExecs));
    // Of one with probes they have said that it has started.
    let probed = with_ready(with_probe(standby()), 10);
    let mut guest = born(Rung::Running);
    guest.probes = Some(crate::agents::GuestProbes {
        ready: true,
        message: String::new(),
    });
    assert_eq!(quiet(&decide(&seen(&probed, guest, wish))), Some(Quiet::Never));
}

#[test]
fn one_that_is_to_be_awake_is_woken_and_stays_so() {
    let wish = Wish::Wait(Rung::Running);
    let next = decide(&seen(&standby(), born(Rung::Dozing), wish));
    assert_eq!(what(&next), ["wake the guest"]);
    let next = decide(&seen(&standby(), born(Rung::Running), wish));
    assert_eq!((what(&next), said(&next, "Dormant")), (vec![], None));
    // Its template would have it fall asleep.
    let mut sleepy = standby();
    sleepy.spec.idle_timeout = Some("5m".to_owned());
    let next = decide(&seen(&sleepy, of(guest(Rung::Running, 3)), wish));
    assert_eq!(what(&next), ["set the policy"]);
    let Step::Order {
        order: Order::SetPolicy {
            policy, generation, ..
        },
        ..
    } = &next.steps[0]
    else {
        panic!()
    };
    assert_eq!((&policy.idle_timeout, *generation), (&None, (3 << 20) + 1));
}

#[test]
fn nobody_moves_one_that_was_not_decided_upon_or_is_not_managed_or_is_on_its_way() {
    let next = decide(&seen(&standby(), born(Rung::Frozen), Wish::Undecided));
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(said(&next, "Dormant").unwrap().1, "Frozen");
    let wish = Wish::Wait(Rung::Frozen);
    let mut stranger = born(Rung::Running);
    stranger.managed = false;
    assert_eq!(what(&decide(&seen(&standby(), stranger, wish))), [""; 0]);
    let mut moving = born(Rung::Running);
    moving.moving_to = Some(Rung::Frozen);
    let next = decide(&seen(&standby(), moving, wish));
    assert_eq!(
        (what(&next), next.requeue),
        (vec![], Some(Duration::from_secs(5)))
    );
    // One that sleeps deeper is left there.
    assert_eq!(
        what(&decide(&seen(&standby(), born(Rung::Hibernated), wish))),
        [""; 0]
    );
}

#[test]
fn what_was_refused_is_not_asked_for_again_at_once_and_the_next_best_is_had() {
    let mut observed = seen(&standby(), born(Rung::Running), Wish::Wait(Rung::Dozing));
    let until = now() + SignedDuration::from_secs(20);
    observed.refused.insert("let the guest doze", until);
    let next = decide(&observed);
    assert_eq!(what(&next), ["freeze the guest"]);
    observed.guest = Sight::Seen(Box::new(born(Rung::Frozen)));
    let next = decide(&observed);
    assert_eq!(
        (what(&next), next.requeue),
        (vec![], Some(Duration::from_secs(20)))
    );
    assert_eq!(said(&next, "Ready").unwrap().0, "True");
    assert_eq!(said(&next, "Dormant").unwrap().1, "Frozen");
    // Then it is.
    observed.refused.insert("let the guest doze", now());
    assert_eq!(what(&decide(&observed)), ["let the guest doze"]);
    // One that cannot even be frozen runs, and is ready.
    let mut observed = seen(&standby(), born(Rung::Running), Wish::Wait(Rung::Frozen));
    observed.refused.insert("freeze the guest", until);
    let next = decide(&observed);
    assert_eq!(
        (what(&next), next.requeue),
        (vec![], Some(Duration::from_secs(20)))
    );
    assert_eq!(said(&next, "Ready").unwrap().0, "True");
}

#[test]
fn claimed_it_is_woken_and_then_told_of_its_own_policy() {
    let asleep = |rung| seen(&claimed(standby()), born(rung), Wish::None);
    let next = decide(&asleep(Rung::Dozing));
    assert_eq!((what(&next), later(&next)), (vec!["wake the guest"], vec![]));
    let next = decide(&asleep(Rung::Running));
    assert_eq!((what(&next), later(&next)), (vec![], vec!["set the policy"]));
    let Step::Order {
        order: Order::SetPolicy { policy, .. },
        ..
    } = &next.later[0]
    else {
        panic!()
    };
    assert_eq!(**policy, Policy::default());
    assert_eq!(condition(&next.status.conditions, "Dormant"), None);
    // Once it knows, nothing is done about one that an operator has frozen.
    let next = decide(&seen(&claimed(standby()), of(guest(Rung::Frozen, 4)), Wish::None));
    assert_eq!((what(&next), later(&next)), (vec![], vec![]));
    // An agent that refuses is not asked in a circle.
    let mut observed = asleep(Rung::Hibernated);
    observed.refusal = Some(Refusal {
        reason: "InsufficientMemory".to_owned(),
        message: "no room".to_owned(),
        may_pass: true,
    });
    let next = decide(&observed);
    assert_eq!(
        (what(&next), next.requeue),
        (vec![], Some(Duration::from_secs(5)))
    );
    let ready = condition(&next.status.conditions, "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.message.as_str()),
        ("False", "Pod is asleep: no room")
    );
}

#[test]
fn claimed_it_sleeps_by_its_own_fields_as_any_other() {
    let mut sandbox = claimed(standby());
    sandbox.spec.idle_timeout = Some("5m".to_owned());
    sandbox.spec.sleep = Some(SleepAfter::default());
    let mut idle = of(guest(Rung::Frozen, 4));
    idle.policy.idle_timeout = Some(Duration::from_secs(300));
    let next = decide(&seen(&sandbox, idle, Wish::None));
    assert_eq!(what(&next), [""; 0]);
    let dormant = condition(&next.status.conditions, "Dormant").unwrap();
    assert!(dormant.message.contains("idle"), "{}", dormant.message);
}

#[test]
fn where_a_pool_lets_its_standbys_run_again_they_are_woken_and_told() {
    let mut sleepy = standby();
    sleepy.spec.idle_timeout = Some("5m".to_owned());
    for sandbox in [standby(), sleepy] {
        let mut known = born(Rung::Dozing);
        known.generation = (3 << 20) + 1;
        let next = decide(&seen(&sandbox, known.clone(), Wish::None));
        assert_eq!(what(&next), ["wake the guest"]);
        known.rung = Rung::Running;
        let next = decide(&seen(&sandbox, known, Wish::None));
        assert_eq!((what(&next), later(&next)), (vec![], vec!["set the policy"]));
        let Step::Order {
            order: Order::SetPolicy { generation, .. },
            ..
        } = &next.later[0]
        else {
            panic!()
        };
        assert_eq!(*generation, (3 << 20) + 2);
    }
}

#[test]
fn the_memory_of_a_standby_is_missed_by_nobody() {
    let asleep = decide(&seen(&standby(), born(Rung::Frozen), Wish::Wait(Rung::Frozen)));
    let mut sandbox = standby();
    sandbox.status = Some(asleep.status);
    let mut observed = with(sandbox);
    observed.wish = Wish::Wait(Rung::Frozen);
    let next = decide(&observed);
    assert_eq!(what(&next), ["create pod"]);
    assert_eq!(condition(&next.status.conditions, "Restored"), None);
}

#[test]
fn one_whose_pod_goes_with_its_claim_only_just_there_starts_anew() {
    let mut sandbox = standby();
    let asleep = decide(&seen(&sandbox, born(Rung::Frozen), Wish::Wait(Rung::Frozen)));
    sandbox.status = Some(asleep.status);
    let mut sandbox = claimed(sandbox);
    sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
        type_: SuspensionType::Freeze,
        fallback: Some(Fallback::Hold),
    });
    // Nobody has seen what it had in its memory, so nobody waits for that.
    let next = decide(&with(sandbox.clone()));
    assert_eq!(what(&next), ["create pod"]);
    assert_eq!(condition(&next.status.conditions, "Restored"), None);
    // Once it was awake it is somebody's.
    let awake = decide(&seen(&sandbox, of(guest(Rung::Running, 4)), Wish::None));
    sandbox.status = Some(awake.status);
    assert_eq!(
        condition(&sandbox.status.as_ref().unwrap().conditions, "Dormant"),
        None
    );
}

#[test]
fn on_a_lost_node_it_is_not_ready_whoever_runs_its_probes() {
    for sandbox in [standby(), with_probe(standby())] {
        for rung in [Rung::Running, Rung::Frozen] {
            let wish = Wish::Wait(rung);
            let mut guest = born(rung);
            guest.probes = Some(crate::agents::GuestProbes {
                ready: true,
                message: String::new(),
            });
            let before = decide(&seen(&sandbox, guest.clone(), wish));
            assert_eq!(said(&before, "Ready").unwrap().0, "True");
            let mut sandbox = sandbox.clone();
            sandbox.status = Some(before.status);
            let mut observed = seen(&sandbox, guest.clone(), wish);
            observed.guest = Sight::Unreachable;
            // Its agent alone is away.
            assert_eq!(said(&decide(&observed), "Ready").unwrap().0, "True");
            observed.node.ready = false;
            // This is what the cluster does for a lost node.
            let pod = Arc::make_mut(&mut observed.pods[0]);
            for condition in pod.status.as_mut().unwrap().conditions.as_mut().unwrap() {
                if condition.type_ == "Ready" {
                    condition.status = "False".to_owned();
                }
            }
            for _ in 0..2 {
                let lost = decide(&observed);
                assert_eq!(said(&lost, "Ready").unwrap().0, "False");
                observed.sandbox = Arc::new(Sandbox {
                    status: Some(lost.status),
                    ..sandbox.clone()
                });
            }
            // It comes back, as it was.
            let back = decide(&seen(&observed.sandbox, guest, wish));
            assert_eq!(said(&back, "Ready").unwrap().0, "True");
            let asleep = said(&back, "Dormant").map(|(status, reason, _)| (status, reason));
            assert_eq!(asleep, (rung != Rung::Running).then_some(("True", rung.as_str())));
        }
    }
}

fn rung() -> impl Strategy<Value = Rung> {
    prop::sample::select(Rung::ALL[..4].to_vec())
}

proptest! {
    /// Whatever is refused, and wherever it begins: an agent that does what it does not refuse is at rest after a few
    /// orders, and the standby is ready all the time.
    #[test]
    fn a_standby_comes_to_rest(
        begins in rung(), wanted in rung(), refused in prop::collection::btree_set(0..4_usize, 0..=4),
    ) {
        let orders = ["wake the guest", "freeze the guest", "let the guest doze", "hibernate the guest"];
        let mut refuses: BTreeMap<&'static str, Timestamp> = BTreeMap::new();
        let mut guest = born(begins);
        let mut sandbox = standby();
        let mut at_rest = false;
        for _ in 0..8 {
            let mut observed = seen(&sandbox, guest.clone(), Wish::Wait(wanted));
            observed.refused = refuses.clone();
            let next = decide(&observed);
            if next.steps.is_empty() {
                prop_assert_eq!(said(&next, "Ready").unwrap().0, "True");
                sandbox.status = Some(next.status);
                at_rest = true;
                break;
            }
            for step in &next.steps {
                let what = step.what();
                let place = orders.iter().position(|order| *order == what).unwrap();
                if refused.contains(&place) {
                    prop_assert!(!refuses.contains_key(what), "{what} was refused before");
                    refuses.insert(orders[place], now() + SignedDuration::from_secs(60));
                } else {
                    guest.rung = Rung::ALL[place];
                    guest.snapshot = (guest.rung == Rung::Hibernated).then(|| "snap-1".to_owned());
                }
            }
        }
        prop_assert!(at_rest);
        // Refused or not: never deeper than wanted, unless it was before.
        prop_assert!(guest.rung <= wanted.max(begins));
        if refused.is_empty() {
            prop_assert!(guest.rung == wanted || (wanted != Rung::Running && guest.rung > wanted));
        }
        let asleep = (guest.rung != Rung::Running).then_some(guest.rung);
        prop_assert_eq!(asleep_on(&sandbox), asleep);
    }
}
