use proptest::prelude::*;

use super::*;
use crate::{Policy, PolicyDefaults, ResumePolicy};

const START: Moment = Moment::from_start(Duration::from_secs(1000));

fn sleepy() -> PodState {
    let policy = Policy {
        idle_timeout: Some(Duration::from_secs(10)),
        doze_after: Some(Duration::from_secs(30)),
        ..Policy::default()
    };
    PodState::found(
        Rung::Running,
        true,
        policy,
        PolicyDefaults::default(),
        Abilities::default(),
        START,
    )
}

fn at(seconds: u64) -> Moment {
    START.after(Duration::from_secs(seconds))
}

/// Applies an input and returns the actions.
fn feed(state: &mut PodState, input: Input, now: Moment) -> Vec<Action> {
    let step = next(state, input, now);
    *state = step.state;
    step.actions
}

fn ok(transition: Transition) -> Input {
    Input::Ended(StepEnd {
        transition,
        // Only a snapshot depends on where it was taken; the tests say so themselves.
        rung: transition.leads_to(Rung::Frozen),
        failure: None,
    })
}

fn failed(transition: Transition, rung: Rung, reason: Reason) -> Input {
    Input::Ended(StepEnd {
        transition,
        rung,
        failure: Some(reason),
    })
}

const PACKET: Transition = Transition::Wake(WakeSource::Packet);

#[test]
fn idleness_leads_down_the_ladder() {
    let mut pod = sleepy();
    assert_eq!(pod.deadline(), Some(at(10)));
    assert_eq!(feed(&mut pod, Input::Timer, at(9)), []);
    let actions = feed(&mut pod, Input::Timer, at(10));
    assert_eq!(
        actions,
        [
            Action::StopPrefetch,
            Action::Start(Transition::Freeze, Reason::IdleTimeout)
        ]
    );
    feed(&mut pod, ok(Transition::Freeze), at(10));
    assert_eq!((pod.rung, pod.deadline()), (Rung::Frozen, Some(at(30))));
    let actions = feed(&mut pod, Input::Timer, at(30));
    assert_eq!(actions, [Action::Start(Transition::Doze, Reason::IdleTimeout)]);
    feed(&mut pod, ok(Transition::Doze), at(31));
    assert_eq!((pod.rung, pod.deadline()), (Rung::Dozing, None));
    let actions = feed(&mut pod, Input::Wake(WakeSource::Packet), at(40));
    assert_eq!(actions, [Action::Start(PACKET, Reason::PacketReceived)]);
    let actions = feed(&mut pod, ok(PACKET), at(40));
    assert!(actions.contains(&Action::Prefetch(WakeSource::Packet)));
    assert_eq!((pod.rung, pod.deadline()), (Rung::Running, Some(at(50))));
}

#[test]
fn pages_come_back_as_whoever_woke_it_needs_them() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    feed(
        &mut pod,
        Input::Order(OrderId(1), Order::Wake(WakeSource::Api)),
        at(1),
    );
    let actions = feed(&mut pod, ok(Transition::Wake(WakeSource::Api)), at(1));
    assert!(actions.contains(&Action::Prefetch(WakeSource::Api)));
}

#[test]
fn activity_and_execs_keep_it_awake() {
    let mut pod = sleepy();
    feed(&mut pod, Input::Activity, at(8));
    assert_eq!(pod.deadline(), Some(at(18)));
    feed(&mut pod, Input::ExecStarted, at(9));
    assert_eq!(pod.deadline(), None);
    assert_eq!(feed(&mut pod, Input::Timer, at(100)), []);
    feed(&mut pod, Input::ExecEnded, at(100));
    assert_eq!(pod.deadline(), Some(at(110)));
}

#[test]
fn who_is_not_ready_yet_does_not_fall_asleep_by_itself() {
    let mut pod = sleepy();
    feed(&mut pod, Input::Probed(false), at(1));
    assert_eq!(pod.deadline(), None);
    assert_eq!(feed(&mut pod, Input::Timer, at(100)), []);
    feed(&mut pod, Input::Probed(true), at(100));
    assert_eq!(pod.deadline(), Some(at(110)), "from when it was of use");
    feed(&mut pod, Input::Probed(true), at(105));
    assert_eq!(pod.deadline(), Some(at(110)), "which is no use of it");
    // An order counts all the same, and one that sleeps goes on down.
    feed(&mut pod, Input::Probed(false), at(106));
    let actions = feed(&mut pod, Input::Order(OrderId(1), Order::Freeze), at(106));
    assert_eq!(
        actions,
        [
            Action::StopPrefetch,
            Action::Start(Transition::Freeze, Reason::Ordered)
        ]
    );
    feed(&mut pod, ok(Transition::Freeze), at(106));
    assert!(pod.deadline().is_some());
}

#[test]
fn a_wake_during_page_out_wins_at_once() {
    let mut pod = sleepy();
    pod.rung = Rung::Frozen;
    let order = OrderId(1);
    feed(&mut pod, Input::Order(order, Order::Doze), at(1));
    assert_eq!(pod.transition, Some(Transition::Doze));
    let actions = feed(&mut pod, Input::Wake(WakeSource::Packet), at(2));
    assert_eq!(
        actions,
        [
            Action::Reply(order, Err(Refusal(Reason::WakeWon))),
            Action::Cancel
        ]
    );
    let end = StepEnd {
        transition: Transition::Doze,
        rung: Rung::Frozen,
        failure: Some(Reason::WakeWon),
    };
    let actions = feed(&mut pod, Input::Ended(end), at(2));
    assert_eq!(actions, [Action::Start(PACKET, Reason::PacketReceived)]);
    feed(&mut pod, ok(PACKET), at(2));
    assert_eq!(pod.rung, Rung::Running);
}

#[test]
fn an_order_to_doze_freezes_first() {
    let mut pod = sleepy();
    let order = OrderId(7);
    feed(&mut pod, Input::Order(order, Order::Doze), at(1));
    let actions = feed(&mut pod, ok(Transition::Freeze), at(1));
    assert!(actions.contains(&Action::Start(Transition::Doze, Reason::Ordered)));
    let actions = feed(&mut pod, ok(Transition::Doze), at(2));
    assert!(actions.contains(&Action::Reply(order, Ok(true))));
}

#[test]
fn a_full_swap_leaves_it_frozen_and_says_so() {
    let mut pod = sleepy();
    pod.rung = Rung::Frozen;
    let order = OrderId(3);
    feed(&mut pod, Input::Order(order, Order::Doze), at(1));
    let end = StepEnd {
        transition: Transition::Doze,
        rung: Rung::Frozen,
        failure: Some(Reason::SwapFull),
    };
    let actions = feed(&mut pod, Input::Ended(end), at(2));
    assert!(actions.contains(&Action::Reply(order, Err(Refusal(Reason::SwapFull)))));
    assert_eq!((pod.rung, pod.reason), (Rung::Frozen, Reason::SwapFull));
    assert!(
        pod.deadline().is_some_and(|retry| retry > at(2)),
        "the policy tries again later"
    );
}

#[test]
fn a_step_down_that_failed_does_not_delay_a_wake() {
    let mut pod = sleepy();
    pod.rung = Rung::Frozen;
    feed(&mut pod, Input::Order(OrderId(3), Order::Doze), at(1));
    feed(
        &mut pod,
        failed(Transition::Doze, Rung::Frozen, Reason::SwapFull),
        at(2),
    );
    assert_eq!(
        feed(&mut pod, Input::Wake(WakeSource::Packet), at(3)),
        [Action::Start(PACKET, Reason::PacketReceived)]
    );
}

#[test]
fn a_failed_wake_is_tried_again() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    let order = OrderId(3);
    feed(&mut pod, Input::Order(order, Order::Wake(WakeSource::Api)), at(1));
    let transition = Transition::Wake(WakeSource::Api);
    let end = StepEnd {
        transition,
        rung: Rung::Dozing,
        failure: Some(Reason::ControlSocketTimeout),
    };
    let actions = feed(&mut pod, Input::Ended(end), at(2));
    assert!(actions.contains(&Action::Reply(order, Err(Refusal(Reason::ControlSocketTimeout)))));
    let retry = pod.deadline().unwrap();
    assert_eq!(
        feed(&mut pod, Input::Timer, retry),
        [Action::Start(transition, Reason::Ordered)]
    );
}

#[test]
fn manual_pods_are_not_woken_by_packets() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    pod.policy.resume_policy = ResumePolicy::Manual;
    assert_eq!(feed(&mut pod, Input::Wake(WakeSource::Packet), at(1)), []);
    assert_ne!(feed(&mut pod, Input::Wake(WakeSource::Api), at(1)), []);
}

#[test]
fn housekeeping_does_not_wake() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    let actions = feed(&mut pod, Input::Keepalive, at(1));
    assert_eq!(
        actions,
        [Action::Start(Transition::HousekeepingThaw, Reason::Ordered)]
    );
    assert_eq!(feed(&mut pod, ok(Transition::HousekeepingThaw), at(1)), []);
    let actions = feed(&mut pod, Input::Answered, at(1));
    assert_eq!(
        actions,
        [Action::Start(Transition::HousekeepingFreeze, Reason::Ordered)]
    );
    assert_eq!(feed(&mut pod, ok(Transition::HousekeepingFreeze), at(1)), []);
    assert_eq!((pod.rung, pod.idle_since), (Rung::Dozing, START));
    assert_eq!(feed(&mut pod, Input::Keepalive, at(1)), [], "not twice at once");
}

#[test]
fn housekeeping_ends_without_an_answer_too() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    feed(&mut pod, Input::Keepalive, at(1));
    feed(&mut pod, ok(Transition::HousekeepingThaw), at(1));
    let due = pod.deadline().unwrap();
    let actions = feed(&mut pod, Input::Timer, due);
    assert_eq!(
        actions,
        [Action::Start(Transition::HousekeepingFreeze, Reason::Ordered)]
    );
}

#[test]
fn letting_a_pod_go_wakes_it() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    let actions = feed(&mut pod, Input::SetManaged(false), at(1));
    assert_eq!(
        actions,
        [Action::Start(Transition::Wake(WakeSource::Api), Reason::Ordered)]
    );
}

#[test]
fn what_a_pod_cannot_do_is_refused() {
    let mut pod = sleepy();
    pod.abilities.doze = Err(Reason::NoSwap);
    let actions = feed(&mut pod, Input::Order(OrderId(1), Order::Doze), at(1));
    assert_eq!(actions, [Action::Reply(OrderId(1), Err(Refusal(Reason::NoSwap)))]);
    pod.rung = Rung::Frozen;
    assert_eq!(pod.deadline(), None);
}

#[test]
fn the_wrapper_may_wake_it_behind_our_back() {
    let mut pod = sleepy();
    pod.rung = Rung::Dozing;
    let actions = feed(&mut pod, Input::FoundRunning(WakeSource::Exec), at(5));
    assert!(actions.contains(&Action::Moved {
        from: Rung::Dozing,
        to: Rung::Running,
        reason: Reason::ExecRequested
    }));
    assert!(actions.contains(&Action::Prefetch(WakeSource::Exec)));
    assert_eq!(pod.idle_since, at(5));
    pod.rung = Rung::Dozing;
    let actions = feed(&mut pod, Input::FoundRunning(WakeSource::Kill), at(6));
    let prefetches = actions.iter().any(|a| matches!(a, Action::Prefetch(_)));
    assert!(!prefetches, "it is about to end");
}

/// Sleeps to the foot of the node's ladder.
fn deep() -> PodState {
    let mut pod = sleepy();
    pod.policy.hibernate_after = Some(Duration::from_secs(60));
    pod
}

#[test]
fn a_dozing_pod_is_hibernated_when_its_time_comes() {
    let mut pod = deep();
    pod.rung = Rung::Dozing;
    assert_eq!(pod.deadline(), Some(at(60)));
    let actions = feed(&mut pod, Input::Timer, at(60));
    assert_eq!(
        actions,
        [Action::Start(Transition::Hibernate, Reason::IdleTimeout)]
    );
    feed(&mut pod, ok(Transition::Hibernate), at(61));
    assert_eq!((pod.rung, pod.deadline()), (Rung::Hibernated, None));
    assert_eq!(
        feed(&mut pod, Input::Keepalive, at(62)),
        [],
        "nobody is there to answer"
    );
    let actions = feed(&mut pod, Input::Wake(WakeSource::Packet), at(70));
    assert_eq!(actions, [Action::Start(PACKET, Reason::PacketReceived)]);
    feed(&mut pod, ok(PACKET), at(70));
    assert_eq!(pod.rung, Rung::Running);
}

#[test]
fn without_swap_the_ladder_goes_from_frozen_to_hibernated() {
    let mut pod = deep();
    pod.abilities.doze = Err(Reason::NoSwap);
    pod.rung = Rung::Frozen;
    assert_eq!(pod.deadline(), Some(at(60)));
    let actions = feed(&mut pod, Input::Timer, at(60));
    assert_eq!(
        actions,
        [Action::Start(Transition::Hibernate, Reason::IdleTimeout)]
    );
}

#[test]
fn a_step_that_failed_does_not_bar_the_other_way_down() {
    let mut pod = deep();
    pod.rung = Rung::Frozen;
    feed(&mut pod, Input::Timer, at(30));
    assert_eq!(pod.transition, Some(Transition::Doze));
    let full = failed(Transition::Doze, Rung::Frozen, Reason::SwapFull);
    feed(&mut pod, full, at(55));
    assert_eq!(pod.deadline(), Some(at(65)), "only after a while");
    feed(&mut pod, Input::Timer, at(65));
    assert_eq!(
        pod.transition,
        Some(Transition::Hibernate),
        "both are due, and the doze failed"
    );
    let full = failed(Transition::Hibernate, Rung::Frozen, Reason::DiskFull);
    feed(&mut pod, full, at(66));
    let due = pod.deadline().unwrap();
    feed(&mut pod, Input::Timer, due);
    assert_eq!(pod.transition, Some(Transition::Doze));
}

#[test]
fn an_order_to_hibernate_freezes_first_and_does_not_doze() {
    let mut pod = sleepy();
    let order = OrderId(7);
    feed(&mut pod, Input::Order(order, Order::Hibernate), at(1));
    assert_eq!(pod.transition, Some(Transition::Freeze));
    let actions = feed(&mut pod, ok(Transition::Freeze), at(1));
    assert!(actions.contains(&Action::Start(Transition::Hibernate, Reason::Ordered)));
    let actions = feed(&mut pod, ok(Transition::Hibernate), at(2));
    assert!(actions.contains(&Action::Reply(order, Ok(true))));
    let again = feed(&mut pod, Input::Order(OrderId(8), Order::Snapshot), at(3));
    assert_eq!(
        again,
        [Action::Reply(OrderId(8), Ok(false))],
        "it is in a snapshot already"
    );
}

#[test]
fn a_wake_during_the_save_wins_and_after_the_release_follows() {
    for released in [false, true] {
        let mut pod = sleepy();
        pod.rung = Rung::Dozing;
        let order = OrderId(1);
        feed(&mut pod, Input::Order(order, Order::Hibernate), at(1));
        let actions = feed(&mut pod, Input::Wake(WakeSource::Packet), at(2));
        assert_eq!(
            actions,
            [
                Action::Reply(order, Err(Refusal(Reason::WakeWon))),
                Action::Cancel
            ]
        );
        let end = if released {
            ok(Transition::Hibernate)
        } else {
            failed(Transition::Hibernate, Rung::Dozing, Reason::WakeWon)
        };
        let actions = feed(&mut pod, end, at(2));
        assert_eq!(
            actions.last(),
            Some(&Action::Start(PACKET, Reason::PacketReceived)),
            "released: {released}"
        );
        assert!(
            !actions.iter().any(|a| matches!(a, Action::Failed { .. })),
            "{actions:?}"
        );
        feed(&mut pod, ok(PACKET), at(2));
        assert_eq!(pod.rung, Rung::Running);
    }
}

#[test]
fn a_snapshot_of_a_running_pod_changes_nothing() {
    let mut pod = sleepy();
    let order = OrderId(1);
    let actions = feed(&mut pod, Input::Order(order, Order::Snapshot), at(1));
    assert_eq!(actions, [Action::Start(Transition::Snapshot, Reason::Ordered)]);
    assert_eq!(pod.moving_to(), None);
    let wake = feed(
        &mut pod,
        Input::Order(OrderId(2), Order::Wake(WakeSource::Api)),
        at(2),
    );
    assert_eq!(wake, [Action::Reply(OrderId(2), Ok(false))], "it runs");
    feed(&mut pod, Input::Order(OrderId(3), Order::Freeze), at(2));
    let end = StepEnd {
        transition: Transition::Snapshot,
        rung: Rung::Running,
        failure: None,
    };
    let actions = feed(&mut pod, Input::Ended(end), at(3));
    assert_eq!(
        actions,
        [
            Action::Reply(order, Ok(true)),
            Action::StopPrefetch,
            Action::Start(Transition::Freeze, Reason::Ordered)
        ],
        "what was asked meanwhile comes next"
    );
    assert_eq!(
        pod.idle_since,
        at(2),
        "a snapshot is no use of the pod, a wake is"
    );
}

#[test]
fn a_snapshot_of_a_sleeper_gives_way_to_a_wake_and_is_taken_then() {
    let mut pod = sleepy();
    pod.rung = Rung::Frozen;
    let order = OrderId(1);
    feed(&mut pod, Input::Order(order, Order::Snapshot), at(1));
    let actions = feed(&mut pod, Input::Wake(WakeSource::Packet), at(2));
    assert_eq!(actions, [Action::Cancel]);
    let end = failed(Transition::Snapshot, Rung::Frozen, Reason::WakeWon);
    assert_eq!(
        feed(&mut pod, end, at(2)),
        [Action::Start(PACKET, Reason::PacketReceived)]
    );
    let actions = feed(&mut pod, ok(PACKET), at(2));
    assert!(actions.contains(&Action::Start(Transition::Snapshot, Reason::Ordered)));
}

#[test]
fn a_failed_snapshot_fails_its_order_alone() {
    let mut pod = sleepy();
    let order = OrderId(1);
    feed(&mut pod, Input::Order(order, Order::Snapshot), at(1));
    let end = failed(Transition::Snapshot, Rung::Running, Reason::DiskFull);
    let actions = feed(&mut pod, end, at(2));
    assert!(actions.contains(&Action::Reply(order, Err(Refusal(Reason::DiskFull)))));
    assert_eq!(
        (pod.failures, pod.deadline()),
        (0, Some(at(10))),
        "its policy goes on"
    );
}

#[test]
fn a_durable_pod_is_saved_before_it_dozes() {
    let mut pod = deep();
    pod.policy.durable = true;
    pod.rung = Rung::Frozen;
    let actions = feed(&mut pod, Input::Timer, at(30));
    assert_eq!(actions, [Action::Start(Transition::Save, Reason::IdleTimeout)]);
    let actions = feed(&mut pod, ok(Transition::Save), at(31));
    assert_eq!(actions, [Action::Start(Transition::Doze, Reason::IdleTimeout)]);
    feed(&mut pod, ok(Transition::Doze), at(32));
    assert!(pod.exact);
    assert_eq!(
        feed(&mut pod, Input::Keepalive, at(33)),
        [],
        "it would not be exact any more"
    );
    let order = Input::Order(OrderId(1), Order::Snapshot);
    assert_eq!(
        feed(&mut pod, order, at(34)),
        [Action::Reply(OrderId(1), Ok(false))]
    );
    feed(&mut pod, Input::Wake(WakeSource::Packet), at(40));
    assert!(!pod.exact);
}

#[test]
fn who_waits_behind_a_policys_save_hurries_it() {
    let mut pod = deep();
    pod.policy.durable = true;
    pod.rung = Rung::Frozen;
    feed(&mut pod, Input::Timer, at(30));
    assert_eq!(pod.transition, Some(Transition::Save));
    let order = |id| Input::Order(OrderId(id), Order::Hibernate);
    assert_eq!(feed(&mut pod, order(1), at(31)), [Action::Hurry]);
    assert_eq!(feed(&mut pod, order(2), at(31)), [], "it hurries already");
    let actions = feed(&mut pod, ok(Transition::Save), at(32));
    assert_eq!(actions, [Action::Start(Transition::Hibernate, Reason::Ordered)]);
    assert_eq!(feed(&mut pod, order(3), at(32)), [], "this one was ordered");
}

#[test]
fn a_durable_pod_that_cannot_be_saved_stays_frozen() {
    let mut pod = sleepy();
    pod.policy.durable = true;
    pod.rung = Rung::Frozen;
    let order = OrderId(1);
    feed(&mut pod, Input::Order(order, Order::Doze), at(1));
    let actions = feed(
        &mut pod,
        failed(Transition::Save, Rung::Frozen, Reason::DiskFull),
        at(2),
    );
    assert!(actions.contains(&Action::Reply(order, Err(Refusal(Reason::DiskFull)))));
    assert_eq!((pod.rung, pod.transition), (Rung::Frozen, None));
    pod.abilities.hibernate = Err(Reason::RuntimeCannotSnapshot);
    feed(&mut pod, Input::Order(OrderId(2), Order::Doze), at(3));
    assert_eq!(
        pod.transition,
        Some(Transition::Doze),
        "one that never can is not held up"
    );
}

#[test]
fn memory_pressure_hibernates_a_sleeper_and_nobody_else() {
    let hibernate = Action::Start(Transition::Hibernate, Reason::MemoryPressure);
    for rung in [Rung::Frozen, Rung::Dozing] {
        let mut pod = deep();
        pod.rung = rung;
        assert_eq!(
            feed(&mut pod, Input::Pressure, at(1)),
            std::slice::from_ref(&hibernate)
        );
        feed(&mut pod, ok(Transition::Hibernate), at(2));
        assert_eq!((pod.rung, pod.reason), (Rung::Hibernated, Reason::MemoryPressure));
        assert_eq!(feed(&mut pod, Input::Pressure, at(3)), []);
    }
    let left_alone: [fn(&mut PodState); 4] = [
        |pod| pod.rung = Rung::Running,
        |pod| pod.managed = false,
        |pod| pod.execs = 1,
        |pod| pod.abilities.hibernate = Err(Reason::SnapshotsOff),
    ];
    for change in left_alone {
        let mut pod = deep();
        pod.rung = Rung::Dozing;
        change(&mut pod);
        assert!(!feed(&mut pod, Input::Pressure, at(1)).contains(&hibernate));
    }
    // A wake that comes meanwhile wins, and what failed is not tried again at once.
    let mut pod = deep();
    pod.rung = Rung::Dozing;
    feed(&mut pod, Input::Pressure, at(1));
    feed(
        &mut pod,
        failed(Transition::Hibernate, Rung::Frozen, Reason::DiskFull),
        at(2),
    );
    assert_eq!(feed(&mut pod, Input::Pressure, at(3)), []);
}

#[test]
fn what_cannot_be_restored_is_held_or_given_up_for_now() {
    let wake = Transition::Wake(WakeSource::Packet);
    for (fallback, reason, first_wait) in [
        (Fallback::Hold, Reason::GuestRefused, Duration::from_millis(250)),
        (Fallback::Hold, Reason::SnapshotDamaged, Duration::from_secs(10)),
        (Fallback::Fail, Reason::SnapshotDamaged, Duration::MAX),
    ] {
        let mut pod = deep();
        pod.policy.fallback = fallback;
        pod.rung = Rung::Hibernated;
        feed(&mut pod, Input::Wake(WakeSource::Packet), at(1));
        let actions = feed(&mut pod, failed(wake, Rung::Hibernated, reason), at(2));
        assert!(actions.iter().any(|a| matches!(a, Action::Failed { .. })));
        assert_eq!(pod.rung, Rung::Hibernated);
        if fallback == Fallback::Fail {
            assert_eq!((pod.wake, pod.deadline()), (None, None));
            let order = Input::Order(OrderId(1), Order::Wake(WakeSource::Api));
            assert_ne!(feed(&mut pod, order, at(3)), [], "an order tries at once");
        } else {
            assert_eq!(pod.deadline(), Some(at(2).after(first_wait)));
        }
    }
}

#[test]
fn what_cannot_be_restored_starts_cold_where_the_policy_says_so() {
    let cold = Transition::ColdStart(WakeSource::Packet);
    let mut pod = deep();
    pod.policy.fallback = Fallback::ColdStart;
    pod.rung = Rung::Hibernated;
    feed(
        &mut pod,
        Input::Order(OrderId(1), Order::Wake(WakeSource::Packet)),
        at(1),
    );
    // What passes is tried again first.
    let actions = feed(
        &mut pod,
        failed(PACKET, Rung::Hibernated, Reason::GuestRefused),
        at(2),
    );
    assert!(!actions.iter().any(|a| matches!(a, Action::Start(..))));
    let due = pod.deadline().unwrap();
    feed(&mut pod, Input::Timer, due);
    let actions = feed(
        &mut pod,
        failed(PACKET, Rung::Hibernated, Reason::SnapshotDamaged),
        at(10),
    );
    assert!(
        actions.iter().any(|a| matches!(a, Action::Failed { .. })),
        "it is told why"
    );
    assert!(actions.contains(&Action::Start(cold, Reason::PacketReceived)));
    assert!(pod.retry_at.is_none());
    let actions = feed(&mut pod, ok(cold), at(11));
    assert_eq!(pod.rung, Rung::Running);
    assert_eq!(pod.reason, Reason::ColdStarted);
    assert!(!actions.iter().any(|a| matches!(a, Action::Start(..))));
}

#[test]
fn a_restore_that_keeps_failing_is_tried_ever_less_often() {
    let mut pod = deep();
    pod.rung = Rung::Hibernated;
    feed(&mut pod, Input::Wake(WakeSource::Packet), at(1));
    let mut now = at(1);
    let mut waits = Vec::new();
    for _ in 0..12 {
        feed(
            &mut pod,
            failed(PACKET, Rung::Hibernated, Reason::GuestRefused),
            now,
        );
        let due = pod.deadline().unwrap();
        waits.push(due.since(now));
        now = due;
        feed(&mut pod, Input::Timer, now);
        assert_eq!(pod.transition, Some(PACKET));
    }
    assert!(waits.is_sorted(), "{waits:?}");
    assert_eq!(waits.last(), Some(&LONGEST_SLEEP_BACKOFF));
}

/// A hibernated pod that wants a shell from 10 s to 100 s.
fn awaited() -> PodState {
    let mut pod = deep();
    pod.rung = Rung::Hibernated;
    let time = ShellTime {
        from: at(10),
        until: Some(at(100)),
        reason: Reason::WakeExpected,
    };
    feed(&mut pod, Input::WantShell(Some(time)), at(0));
    pod
}

const MAKE: Action = Action::Start(Transition::MakeShell, Reason::WakeExpected);

#[test]
fn a_shell_stands_by_in_its_time() {
    let mut pod = awaited();
    assert_eq!(pod.deadline(), Some(at(10)));
    assert_eq!(feed(&mut pod, Input::Timer, at(9)), []);
    assert_eq!(feed(&mut pod, Input::Timer, at(10)), [MAKE]);
    let stands = |stands, reason| Action::Shell { stands, reason };
    assert_eq!(
        feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11)),
        [stands(true, Reason::WakeExpected)]
    );
    assert_eq!(
        (pod.rung, pod.shell.stands(), pod.deadline()),
        (Rung::Hibernated, true, Some(at(100)))
    );
    assert_eq!(
        feed(&mut pod, Input::Timer, at(100)),
        [Action::Start(Transition::EndShell, Reason::ShellUnused)]
    );
    assert_eq!(
        feed(&mut pod, ok_hibernated(Transition::EndShell), at(101)),
        [stands(false, Reason::ShellUnused)]
    );
    assert_eq!((pod.shell.stands(), pod.deadline()), (false, None));
    // The same where no other is expected; only what is called off before is an order.
    for (now, reason) in [(100, Reason::ShellUnused), (99, Reason::Ordered)] {
        let mut pod = awaited();
        feed(&mut pod, Input::Timer, at(10));
        feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
        assert_eq!(
            feed(&mut pod, Input::WantShell(None), at(now)),
            [Action::Start(Transition::EndShell, reason)]
        );
    }
}

fn ok_hibernated(transition: Transition) -> Input {
    Input::Ended(StepEnd {
        transition,
        rung: Rung::Hibernated,
        failure: None,
    })
}

#[test]
fn a_wake_follows_on_the_step_of_the_shell_that_is_under_way() {
    for transition in [Transition::MakeShell, Transition::EndShell] {
        let mut pod = awaited();
        feed(&mut pod, Input::Timer, at(10));
        if transition == Transition::EndShell {
            feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
            feed(&mut pod, Input::Pressure, at(12));
        }
        assert_eq!(pod.transition, Some(transition));
        // Orders that are met are answered without a wait.
        assert_eq!(
            feed(&mut pod, Input::Order(OrderId(1), Order::Hibernate), at(12)),
            [Action::Reply(OrderId(1), Ok(false))]
        );
        assert_eq!(
            feed(&mut pod, Input::Wake(WakeSource::Packet), at(12)),
            [Action::Cancel]
        );
        let actions = feed(&mut pod, ok_hibernated(transition), at(13));
        assert_eq!(
            actions.last(),
            Some(&Action::Start(PACKET, Reason::PacketReceived))
        );
        feed(&mut pod, ok(PACKET), at(14));
        assert_eq!((pod.rung, pod.shell.stands()), (Rung::Running, false));
    }
}

#[test]
fn pressure_takes_the_shell_first_and_keeps_it_away() {
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
    assert_eq!(
        feed(&mut pod, Input::Pressure, at(12)),
        [Action::Start(Transition::EndShell, Reason::MemoryPressure)]
    );
    feed(&mut pod, ok_hibernated(Transition::EndShell), at(13));
    assert_eq!(feed(&mut pod, Input::Timer, at(20)), []);
    assert!(pod.deadline().is_some_and(|due| due > at(100)));
    let due = pod.deadline().unwrap();
    assert_eq!(feed(&mut pod, Input::Timer, due), []);
    assert_eq!(pod.deadline(), None, "its time is over by then");
}

#[test]
fn a_shell_that_cannot_be_made_bars_nothing() {
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    let actions = feed(
        &mut pod,
        failed(
            Transition::MakeShell,
            Rung::Hibernated,
            Reason::InsufficientMemory,
        ),
        at(11),
    );
    assert!(matches!(actions[..], [Action::Failed { .. }]));
    assert_eq!((pod.failures, pod.deadline()), (0, Some(at(21))));
    assert_eq!(
        feed(&mut pod, Input::Wake(WakeSource::Packet), at(12)),
        [Action::Start(PACKET, Reason::PacketReceived)]
    );
    // Nor is one tried again soon that takes too long.
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    let slow = failed(Transition::MakeShell, Rung::Hibernated, Reason::ShellSlow);
    feed(&mut pod, slow, at(15));
    assert_eq!(pod.deadline(), Some(at(615)));
    // A lost one is made again, but not at once.
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
    assert_eq!(
        feed(&mut pod, Input::GiveUpShell(Reason::ShellLost), at(12)),
        [Action::Start(Transition::EndShell, Reason::ShellLost)]
    );
    feed(&mut pod, ok_hibernated(Transition::EndShell), at(13));
    assert_eq!(pod.deadline(), Some(at(23)));
    assert_eq!(feed(&mut pod, Input::Timer, at(23)), [MAKE]);
    // An unmanaged pod has none.
    let mut pod = awaited();
    pod.managed = false;
    assert_eq!(feed(&mut pod, Input::Timer, at(10)), []);
    assert_eq!(pod.deadline(), None);
}

#[test]
fn a_shell_that_is_not_found_again_is_not_made_at_once() {
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
    assert_eq!(feed(&mut pod, Input::FoundShell(ShellSight::None), at(11)), []);
    assert_eq!((pod.shell.stands(), pod.deadline()), (false, Some(at(21))));
    assert_eq!(feed(&mut pod, Input::Timer, at(21)), [MAKE]);
}

#[test]
fn a_shell_that_dies_each_time_is_made_ever_more_seldom() {
    for found in [true, false] {
        let mut pod = awaited();
        let always = ShellTime {
            from: START,
            until: None,
            reason: Reason::WakeExpected,
        };
        let mut now = at(10);
        let mut round = |pod: &mut PodState, stands: Duration| {
            let made = now;
            feed(pod, Input::WantShell(Some(always)), now);
            assert_eq!(pod.transition, Some(Transition::MakeShell));
            feed(pod, ok_hibernated(Transition::MakeShell), now);
            now = now.after(stands);
            if found {
                feed(pod, Input::FoundShell(ShellSight::None), now);
            } else {
                feed(pod, Input::GiveUpShell(Reason::ShellLost), now);
                feed(pod, ok_hibernated(Transition::EndShell), now);
            }
            now = pod.deadline().unwrap();
            now.since(made.after(stands))
        };
        let short = Duration::from_millis(500);
        let waits: Vec<_> = (0..8).map(|_| round(&mut pod, short).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600]);
        // One that had stood for long was good.
        assert_eq!(round(&mut pod, Duration::from_secs(600)).as_secs(), 10);
        assert_eq!(round(&mut pod, short).as_secs(), 20);
    }
}

#[test]
fn what_is_left_of_a_shell_is_ended() {
    // By the next one, where one is wanted.
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
    assert_eq!(feed(&mut pod, Input::FoundShell(ShellSight::Parts), at(11)), []);
    assert_eq!((pod.shell.stands(), pod.deadline()), (false, Some(at(21))));
    assert_eq!(feed(&mut pod, Input::Timer, at(21)), [MAKE]);
    // Else by itself, as soon as none is wanted; what was begun is gone on with.
    feed(&mut pod, Input::FoundShell(ShellSight::Parts), at(22));
    let failure = failed(Transition::MakeShell, Rung::Hibernated, Reason::Internal);
    feed(&mut pod, failure, at(22));
    let end = Action::Start(Transition::EndShell, Reason::Ordered);
    assert_eq!(
        feed(&mut pod, Input::WantShell(None), at(23)),
        std::slice::from_ref(&end)
    );
    feed(
        &mut pod,
        failed(Transition::EndShell, Rung::Hibernated, Reason::Internal),
        at(24),
    );
    assert_eq!(pod.deadline(), Some(at(34)));
    assert_eq!(feed(&mut pod, Input::Timer, at(34)), [end]);
    feed(&mut pod, ok_hibernated(Transition::EndShell), at(35));
    assert_eq!((pod.shell.there, pod.deadline()), (ShellSight::None, None));
}

#[test]
fn a_failed_wake_leaves_the_shell_to_what_is_found() {
    let mut pod = awaited();
    feed(&mut pod, Input::Timer, at(10));
    feed(&mut pod, ok_hibernated(Transition::MakeShell), at(11));
    feed(&mut pod, Input::Wake(WakeSource::Packet), at(12));
    feed(&mut pod, Input::FoundShell(ShellSight::None), at(13));
    feed(
        &mut pod,
        failed(PACKET, Rung::Hibernated, Reason::GuestRefused),
        at(13),
    );
    assert!(!pod.shell.stands());
    let due = pod.deadline().unwrap();
    assert_eq!(
        feed(&mut pod, Input::Timer, due),
        [Action::Start(PACKET, Reason::PacketReceived)],
        "who waits for a wake needs no shell"
    );
}

#[derive(Debug, Clone)]
enum Event {
    Input(Input),
    /// The step under way ends: well, or with this failure on the rung it came from.
    End(Option<Reason>),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let source = prop_oneof![
        Just(WakeSource::Packet),
        Just(WakeSource::Api),
        Just(WakeSource::Exec)
    ];
    let order = prop_oneof![
        Just(Order::Freeze),
        Just(Order::Doze),
        Just(Order::Hibernate),
        Just(Order::Snapshot),
        source.clone().prop_map(Order::Wake)
    ];
    let input = prop_oneof![
        order.prop_map(|order| Input::Order(OrderId(0), order)),
        source.clone().prop_map(Input::Wake),
        Just(Input::Activity),
        Just(Input::ExecStarted),
        Just(Input::ExecEnded),
        any::<bool>().prop_map(Input::Probed),
        Just(Input::Keepalive),
        Just(Input::Answered),
        Just(Input::Timer),
        source.prop_map(Input::FoundRunning),
        Just(Input::Pressure),
        proptest::option::of((0u64..60, proptest::option::of(0u64..120))).prop_map(|time| {
            Input::WantShell(time.map(|(from, until)| ShellTime {
                from: at(from),
                until: until.map(|until| at(from + until)),
                reason: Reason::WakeExpected,
            }))
        }),
        Just(Input::GiveUpShell(Reason::ShellLost)),
        prop_oneof![
            Just(ShellSight::None),
            Just(ShellSight::Parts),
            Just(ShellSight::Whole)
        ]
        .prop_map(Input::FoundShell),
        any::<bool>().prop_map(Input::SetManaged),
        (any::<bool>(), any::<bool>()).prop_map(|(doze, hibernate)| Input::SetAbilities(Abilities {
            freeze: Ok(()),
            doze: if doze { Ok(()) } else { Err(Reason::NoSwap) },
            hibernate: if hibernate { Ok(()) } else { Err(Reason::DiskFull) },
        })),
    ];
    let event = prop_oneof![
        4 => input.prop_map(Event::Input),
        3 => prop_oneof![
            4 => Just(None),
            1 => Just(Some(Reason::SwapFull)),
            1 => Just(Some(Reason::WakeWon)),
            1 => Just(Some(Reason::ControlSocketTimeout)),
            1 => Just(Some(Reason::SnapshotDamaged)),
        ].prop_map(Event::End),
        2 => (1u64..20_000).prop_map(Event::Pass),
    ];
    proptest::collection::vec(event, 1..120)
}

/// The model's world: what really is under way, and who waits.
struct World {
    state: PodState,
    now: Moment,
    open: std::collections::BTreeSet<OrderId>,
    orders: u64,
}

impl World {
    fn apply(&mut self, input: Input) -> Result<(), TestCaseError> {
        let before = self.state.clone();
        let input = match input {
            Input::Order(_, order) => {
                self.orders += 1;
                self.open.insert(OrderId(self.orders));
                Input::Order(OrderId(self.orders), order)
            }
            other => other,
        };
        let ended = matches!(input, Input::Ended(_));
        let wakes = matches!(input, Input::Wake(_));
        let step = next(&self.state, input, self.now);
        let mut starts = 0;
        for action in &step.actions {
            match action {
                Action::Start(transition, _) => {
                    starts += 1;
                    prop_assert!(
                        before.transition.is_none() || ended,
                        "a step began while one was under way"
                    );
                    if *transition == Transition::Doze {
                        prop_assert!(step.state.abilities.doze.is_ok());
                        prop_assert_eq!(step.state.rung, Rung::Frozen);
                    }
                    if matches!(
                        transition,
                        Transition::Hibernate | Transition::Save | Transition::Snapshot
                    ) {
                        prop_assert!(step.state.abilities.hibernate.is_ok());
                        prop_assert!(step.state.rung < Rung::Hibernated);
                    }
                    if transition.is_of_shell() {
                        prop_assert_eq!(step.state.rung, Rung::Hibernated);
                        prop_assert!(step.state.wake.is_none(), "a wake waits for a shell to begin");
                        let making = *transition == Transition::MakeShell;
                        let there = step.state.shell.there;
                        let meant = if making {
                            ShellSight::Whole
                        } else {
                            ShellSight::None
                        };
                        prop_assert!(there != meant, "{transition:?} of {there:?}");
                        if making {
                            prop_assert!(step.state.managed && step.state.abilities.hibernate.is_ok());
                            prop_assert!(step.state.shell.wanted.is_some_and(|t| t.contains(self.now)));
                        }
                    }
                    if matches!(transition, Transition::Hibernate | Transition::Save) {
                        prop_assert!(step.state.rung.is_asleep());
                        prop_assert!(step.state.managed || step.state.down_to.is_some());
                    }
                    if *transition == Transition::Save {
                        prop_assert!(step.state.policy.durable && !step.state.exact);
                    }
                    if *transition == Transition::Snapshot {
                        prop_assert!(step.state.snapshot_wanted());
                    }
                    if matches!(
                        transition,
                        Transition::HousekeepingThaw | Transition::HousekeepingFreeze
                    ) {
                        prop_assert_eq!(step.state.rung, Rung::Dozing);
                        prop_assert!(!step.state.exact);
                    }
                    if *transition == Transition::Freeze {
                        prop_assert_eq!(step.state.rung, Rung::Running);
                        prop_assert!(step.state.managed || step.state.down_to.is_some());
                    }
                    if transition.wakes_for().is_some() {
                        prop_assert!(step.state.rung.is_asleep());
                    }
                }
                Action::Reply(id, _) => prop_assert!(self.open.remove(id), "answered twice"),
                Action::Hurry => prop_assert!(
                    matches!(before.transition, Some(Transition::Save | Transition::Hibernate))
                        && !ended
                        && !before.ordered
                ),
                _ => {}
            }
        }
        prop_assert!(starts <= 1);
        let waiting: Vec<_> = step.state.waiting.iter().map(|w| w.id).collect();
        for id in &self.open {
            prop_assert!(waiting.contains(id), "an order was forgotten");
        }
        prop_assert_eq!(waiting.len(), self.open.len());
        if step.state.exact {
            prop_assert!(matches!(step.state.rung, Rung::Frozen | Rung::Dozing));
        }
        let there = step.state.shell.there;
        prop_assert!(there == ShellSight::None || step.state.rung == Rung::Hibernated);
        // What there is of a shell is wanted, about to be ended, or waits for its turn behind a wake.
        if there == ShellSight::Parts && step.state.transition.is_none() && step.state.wake.is_none() {
            prop_assert!(
                step.state.deadline().is_some(),
                "parts stay: {:?}",
                step.state.shell
            );
        }
        // A timer that is due leads to something, or is gone: nobody is asked again without an end.
        if step.state.transition.is_none() && step.state.deadline().is_some_and(|due| due <= self.now) {
            let again = next(&step.state, Input::Timer, self.now);
            let due = again.state.deadline().is_some_and(|due| due <= self.now);
            prop_assert!(!due || again.state.transition.is_some(), "{:?}", again.state);
        }
        let leaving = step
            .state
            .transition
            .is_some_and(|t| t != Transition::Snapshot || step.state.rung.is_asleep());
        if wakes
            && before.transition.is_some()
            && leaving
            && before.transition.and_then(Transition::wakes_for).is_none()
        {
            prop_assert!(step.state.cancelled, "a wake waits for {:?}", before.transition);
        }
        if step.state.wake.is_some() {
            let served = step.state.transition.is_some() || step.state.deadline().is_some();
            prop_assert!(served, "a wake waits for nothing: {:?}", step.state);
        }
        self.state = step.state;
        Ok(())
    }

    fn end(&mut self, failure: Option<Reason>) -> Result<(), TestCaseError> {
        let Some(transition) = self.state.transition else {
            return Ok(());
        };
        let rung = if failure.is_none() {
            transition.leads_to(self.state.rung)
        } else {
            self.state.rung
        };
        self.apply(Input::Ended(StepEnd {
            transition,
            rung,
            failure,
        }))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_invariants_hold(events in events(), durable: bool, fallback in 0..3usize) {
        let mut state = deep();
        state.policy.durable = durable;
        state.policy.fallback = [Fallback::Hold, Fallback::Fail, Fallback::ColdStart][fallback];
        let mut world = World { state, now: START, open: Default::default(), orders: 0 };
        for event in events {
            match event {
                Event::Input(input) => world.apply(input)?,
                Event::End(failure) => world.end(failure)?,
                Event::Pass(millis) => {
                    world.now = world.now.after(Duration::from_millis(millis));
                    if world.state.deadline().is_some_and(|due| due <= world.now) {
                        world.apply(Input::Timer)?;
                    }
                }
            }
        }
        // However it stands, a wake brings it to Running once steps succeed.
        world.apply(Input::Order(OrderId(0), Order::Wake(WakeSource::Api)))?;
        for _ in 0..8 {
            if world.state.transition.is_none() && world.state.rung == Rung::Running {
                break;
            }
            if let Some(due) = world.state.deadline().filter(|_| world.state.transition.is_none()) {
                world.now = world.now.max(due);
                world.apply(Input::Timer)?;
            }
            world.end(None)?;
        }
        let orders_down = world.state.waiting.iter().any(|w| !matches!(w.order, Order::Wake(_) | Order::Snapshot));
        prop_assert!(!orders_down);
        prop_assert!(world.open.is_empty(), "{:?}", world.state);
    }
}
