//! A clock that jumps. Only the guest's own clock can be moved without harm.

use std::time::Duration;

use dormouse_core::Rung;
use dormouse_rpc::v1::{self, watch_response::Kind};
use dormouse_testkit::Pod;
use dormouse_testkit::rig::{Rig, reference};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

const DAY: i64 = 86_400;
/// For how long a pod is watched for a move that must not come: several rounds of whatever the agent does by time.
const WATCHED: Duration = Duration::from_secs(3);

/// Moves the wall clock.
fn jump(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    let then = TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).unwrap();
}

/// One day ahead and back, while the pod dozes and while it runs under a policy of one hour: it is neither woken nor
/// put to sleep by it. Leaves the pod running.
pub(super) async fn jumps(rig: &Rig, pod: &Pod, limit: Duration) {
    let mut client = rig.client.clone();
    let hour = dormouse_core::Policy {
        idle_timeout: Some(Duration::from_secs(3600)),
        ..dormouse_core::Policy::default()
    };
    let managed = v1::ManageRequest {
        pod: Some(reference(pod)),
        managed: true,
        policy: Some((&hour).into()),
        ..v1::ManageRequest::default()
    };
    client.manage(managed).await.unwrap();
    rig.doze(pod).await.unwrap();
    for rung in [Rung::Dozing, Rung::Running] {
        if rung == Rung::Running {
            let outcome = rig.wake(pod).await.unwrap();
            println!("woken after the clock went a day ahead and back: {outcome:?}");
            assert!(outcome.moved);
        }
        for seconds in [DAY, -DAY] {
            let mut news = client
                .watch(v1::WatchRequest::default())
                .await
                .unwrap()
                .into_inner();
            jump(seconds);
            let moved = async {
                loop {
                    let event = news.message().await.unwrap().expect("the agent goes on");
                    if event.kind() == Kind::Changed {
                        break event;
                    }
                }
            };
            if let Ok(event) = tokio::time::timeout(WATCHED, moved).await {
                panic!("the clock jumped by {seconds} s and the pod moved from {rung}: {event:?}");
            }
            let view = rig.wait_rung(pod, rung, limit).await.unwrap();
            let idle = view.idle_for.map_or(0, |idle| idle.seconds);
            assert!(
                (0..3600).contains(&idle),
                "idle for {idle} s after a jump of {seconds} s"
            );
        }
    }
}
