//! The switch, interrupted at every fail point. A file of its own: fail points are the whole process's.
#![cfg(feature = "failpoints")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use dormouse_sentry::CgroupState;
use support::{Sandbox, hold, runsc};

#[test]
fn killed_at_every_step_the_guest_wakes() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let scenario = fail::FailScenario::setup();
    let steps = [
        (
            "switch::pause",
            &["before_intent", "before_call", "after_call", "after_outcome"][..],
        ),
        (
            "switch::freeze_cgroup",
            &["before_intent", "before_freeze", "after_freeze", "after_outcome"],
        ),
        ("switch::thaw_cgroup", &["before_thaw", "after_thaw"]),
        (
            "switch::resume",
            &["before_intent", "before_call", "after_call", "after_outcome"],
        ),
    ];
    for (step, points) in steps {
        for point in points {
            let name = format!("{step}::{point}");
            fail::cfg(&name, "panic").unwrap();
            // Nothing here has a destructor that writes: a panic leaves what a kill leaves.
            let crashed = std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        let mut held = hold(&switch);
                        held.pause().unwrap();
                        held.freeze_cgroup().unwrap();
                        held.wake().unwrap();
                    })
                    .join()
                    .is_err()
            });
            assert!(crashed, "{name} was not passed");
            fail::remove(&name);
            hold(&switch).wake().unwrap();
            assert!(!hold(&switch).probe().unwrap(), "{name}");
            assert_eq!(
                hold(&switch).find_cgroup().unwrap().state().unwrap(),
                CgroupState::Thawed,
                "{name}"
            );
        }
    }
    scenario.teardown();
    sandbox.ok(&runsc, &["exec", sandbox.id.as_str(), "/bin/true"]);
}
