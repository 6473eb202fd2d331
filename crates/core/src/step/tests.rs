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
        rung: transition.leads_to(),
        failure: None,
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
    assert!(actions.contains(&Action::Prefetch));
    assert_eq!((pod.rung, pod.deadline()), (Rung::Running, Some(at(50))));
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
    assert!(actions.contains(&Action::Prefetch));
    assert_eq!(pod.idle_since, at(5));
    pod.rung = Rung::Dozing;
    let actions = feed(&mut pod, Input::FoundRunning(WakeSource::Kill), at(6));
    assert!(!actions.contains(&Action::Prefetch), "it is about to end");
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
        source.clone().prop_map(Order::Wake)
    ];
    let input = prop_oneof![
        order.prop_map(|order| Input::Order(OrderId(0), order)),
        source.clone().prop_map(Input::Wake),
        Just(Input::Activity),
        Just(Input::ExecStarted),
        Just(Input::ExecEnded),
        Just(Input::Keepalive),
        Just(Input::Answered),
        Just(Input::Timer),
        source.prop_map(Input::FoundRunning),
        any::<bool>().prop_map(Input::SetManaged),
        prop_oneof![Just(Ok(())), Just(Err(Reason::NoSwap))]
            .prop_map(|doze| Input::SetAbilities(Abilities { freeze: Ok(()), doze })),
    ];
    let event = prop_oneof![
        4 => input.prop_map(Event::Input),
        3 => prop_oneof![
            4 => Just(None),
            1 => Just(Some(Reason::SwapFull)),
            1 => Just(Some(Reason::WakeWon)),
            1 => Just(Some(Reason::ControlSocketTimeout)),
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
                    if *transition == Transition::Freeze {
                        prop_assert_eq!(step.state.rung, Rung::Running);
                        prop_assert!(step.state.managed || step.state.down_to.is_some());
                    }
                    if matches!(transition, Transition::Wake(_)) {
                        prop_assert!(step.state.rung.is_asleep());
                    }
                }
                Action::Reply(id, _) => prop_assert!(self.open.remove(id), "answered twice"),
                _ => {}
            }
        }
        prop_assert!(starts <= 1);
        let waiting: Vec<_> = step.state.waiting.iter().map(|w| w.id).collect();
        for id in &self.open {
            prop_assert!(waiting.contains(id), "an order was forgotten");
        }
        prop_assert_eq!(waiting.len(), self.open.len());
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
            transition.leads_to()
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
    fn the_invariants_hold(events in events()) {
        let mut world = World { state: sleepy(), now: START, open: Default::default(), orders: 0 };
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
        let orders_down = world.state.waiting.iter().any(|w| !matches!(w.order, Order::Wake(_)));
        prop_assert!(!orders_down);
        prop_assert!(world.open.is_empty(), "{:?}", world.state);
    }
}
