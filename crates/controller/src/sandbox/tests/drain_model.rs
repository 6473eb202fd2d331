//! A world in which nodes are cordoned, agents go away, guests are woken and evictions are asked for, in any order: within
//! the bound no pod goes whose memory is not in a snapshot that is kept and known.

use dormouse_api::agents::{SleepAfter, SuspensionType};
use dormouse_core::{ResumePolicy, Rung};
use proptest::prelude::*;

use super::memory::{guest, pod_of, with_strategy};
use super::*;
use crate::agents::{Guest, Order};

#[derive(Debug, Clone, Copy)]
enum Event {
    Cordon(bool),
    Link(bool),
    /// The agent refuses to save, with this reason.
    Refuse(Option<&'static str>),
    /// The agent refuses whatever it is ordered.
    Busy(bool),
    /// The guest changes its memory.
    Work,
    Packet,
    Exec,
    Wait(u64),
    /// The controller looks, without anything having happened.
    Look,
    Evict,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Cordon),
        any::<bool>().prop_map(Event::Link),
        prop_oneof![
            Just(None),
            Just(None),
            Just(Some("NodeBusy")),
            Just(Some("RuntimeCannotSnapshot"))
        ]
        .prop_map(Event::Refuse),
        any::<bool>().prop_map(Event::Busy),
        Just(Event::Work),
        Just(Event::Packet),
        Just(Event::Exec),
        (1_u64..400).prop_map(Event::Wait),
        Just(Event::Look),
        Just(Event::Look),
        Just(Event::Evict),
    ]
}

struct World {
    sandbox: Sandbox,
    pod: Pod,
    guest: Guest,
    /// How often the guest has changed its memory, and had when it was last saved.
    memory: u64,
    saved: u64,
    snapshots: u64,
    pinned: Vec<String>,
    draining: bool,
    linked: bool,
    refuses: Option<&'static str>,
    busy: bool,
    now: Timestamp,
    cordoned_at: Timestamp,
}

impl World {
    fn new(suspended: bool, idle: bool) -> Self {
        let mut sandbox = if idle {
            let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
            sandbox.spec.idle_timeout = Some("5m".to_owned());
            sandbox.spec.sleep = Some(SleepAfter {
                hibernate_after: Some("1h".to_owned()),
                ..SleepAfter::default()
            });
            sandbox
        } else {
            with_strategy(SuspensionType::Freeze)
        };
        if suspended && !idle {
            sandbox.spec.operating_mode = OperatingMode::Suspended;
        }
        let Sight::Seen(guest) = guest(Rung::Running, 0) else {
            panic!()
        };
        Self {
            pod: pod_of(&sandbox),
            sandbox,
            guest: *guest,
            memory: 0,
            saved: 0,
            snapshots: 0,
            pinned: vec![],
            draining: false,
            linked: true,
            refuses: None,
            busy: false,
            now: now(),
            cordoned_at: now(),
        }
    }

    fn is_held(&self) -> bool {
        self.pod
            .metadata
            .labels
            .as_ref()
            .unwrap()
            .contains_key(labels::HOLDS_MEMORY)
    }

    fn happens(&mut self, event: Event) -> Result<bool, TestCaseError> {
        match event {
            Event::Cordon(draining) => {
                if draining && !self.draining {
                    self.cordoned_at = self.now;
                }
                self.draining = draining;
            }
            Event::Link(linked) => self.linked = linked,
            Event::Refuse(why) => self.refuses = why,
            Event::Busy(busy) => self.busy = busy,
            Event::Work => self.memory += u64::from(self.guest.rung == Rung::Running),
            Event::Packet if self.linked && !self.guest.only_by_order() => self.guest.rung = Rung::Running,
            Event::Exec if self.linked => self.guest.rung = Rung::Running,
            Event::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Event::Evict if !self.is_held() => {
                self.check()?;
                return Ok(true);
            }
            Event::Packet | Event::Exec | Event::Look | Event::Evict => {}
        }
        // Whatever happens, the controller hears of it.
        self.look()?;
        Ok(false)
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        let mut refusal = None;
        for _ in 0..8 {
            let mut observed = with(self.sandbox.clone());
            observed.pods = vec![Arc::new(self.pod.clone())];
            observed.guest = if self.linked {
                Sight::Seen(Box::new(self.guest.clone()))
            } else {
                Sight::Unreachable
            };
            observed.node.draining = self.draining;
            observed.refusal = refusal.clone();
            let next = next(&observed, &settings(), self.now);
            let mut moved = false;
            for step in &next.steps {
                match self.does(step) {
                    Ok(moves) => moved |= moves,
                    Err(why) => {
                        refusal = Some(why);
                        moved = true;
                        break;
                    }
                }
            }
            if moved {
                continue;
            }
            self.sandbox.status = Some(next.status);
            for step in &next.later {
                let _ = self.does(step);
            }
            if next.requeue != Some(Duration::ZERO) {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it does not come to rest"))
    }

    /// Does a step; whether it moved the guest.
    fn does(&mut self, step: &Step) -> Result<bool, Refusal> {
        let refused = |reason: &str| {
            Err(Refusal {
                reason: reason.to_owned(),
                message: "no".to_owned(),
                may_pass: false,
            })
        };
        match step {
            Step::PatchPod { patch, .. } => {
                let labels = self.pod.metadata.labels.as_mut().unwrap();
                match patch["metadata"]["labels"].get(labels::HOLDS_MEMORY) {
                    Some(Value::Null) => labels.remove(labels::HOLDS_MEMORY),
                    Some(_) => labels.insert(labels::HOLDS_MEMORY.to_owned(), "true".to_owned()),
                    None => None,
                };
                Ok(false)
            }
            Step::Order { .. } if !self.linked => refused("Unreachable"),
            Step::Order { .. } if self.busy => refused("NodeBusy"),
            Step::Order { order, .. } => {
                match order {
                    Order::SetPolicy {
                        policy, generation, ..
                    } => {
                        if *generation <= self.guest.generation {
                            return refused("StaleGeneration");
                        }
                        self.guest.policy = (**policy).clone();
                        self.guest.generation = *generation;
                    }
                    Order::Freeze { .. } => self.guest.rung = Rung::Frozen,
                    Order::Doze { .. } => self.guest.rung = Rung::Dozing,
                    Order::Wake { .. } => self.guest.rung = Rung::Running,
                    Order::Hibernate { .. } => {
                        if let Some(why) = self.refuses {
                            return refused(why);
                        }
                        if self.guest.rung != Rung::Hibernated {
                            self.snapshots += 1;
                            self.guest.snapshot = Some(format!("snap-{}", self.snapshots));
                            self.guest.rung = Rung::Hibernated;
                            self.saved = self.memory;
                        }
                    }
                    Order::Pin { snapshot, pinned } => {
                        self.pinned.retain(|there| there != snapshot);
                        if *pinned {
                            self.pinned.push(snapshot.clone());
                        }
                    }
                    _ => return refused("InvalidRequest"),
                }
                Ok(order.moves_guest())
            }
            _ => Ok(false),
        }
    }

    /// Its pod goes: is all well?
    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.draining, "it is held on a node that is not drained");
        let took = Duration::try_from(self.now.duration_since(self.cordoned_at)).unwrap();
        let status = self.sandbox.status.as_ref().unwrap();
        let reason = &condition(&status.conditions, "Draining").unwrap().reason;
        if took >= settings().drain_timeout || reason == "CannotBeSaved" {
            return Ok(());
        }
        let known = status.snapshot.as_ref().map(|snapshot| &snapshot.name);
        prop_assert_eq!(self.guest.rung, Rung::Hibernated);
        prop_assert_eq!(known, self.guest.snapshot.as_ref());
        prop_assert_eq!(self.saved, self.memory);
        prop_assert!(
            self.pinned.contains(known.unwrap()),
            "{known:?} goes with its pod"
        );
        prop_assert_eq!(self.guest.policy.resume_policy, ResumePolicy::Manual);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn no_pod_goes_before_its_memory_is_safe_or_the_bound_is_over(
        suspended in any::<bool>(),
        idle in any::<bool>(),
        events in proptest::collection::vec(events(), 1..60),
    ) {
        let mut world = World::new(suspended, idle);
        world.look()?;
        for event in events {
            if world.happens(event)? {
                return Ok(());
            }
        }
        // What was put aside for a drain is put back after it.
        world.happens(Event::Link(true))?;
        world.happens(Event::Busy(false))?;
        world.happens(Event::Cordon(false))?;
        prop_assert!(world.is_held());
        let status = world.sandbox.status.as_ref().unwrap();
        prop_assert!(condition(&status.conditions, "Draining").is_none());
        let is_suspended = world.sandbox.spec.operating_mode == OperatingMode::Suspended;
        prop_assert_eq!(world.guest.only_by_order(), is_suspended);
        prop_assert!(is_suspended || idle || world.guest.rung == Rung::Running);
    }
}
