//! A guest whose control socket is gone or mute, and a guest that dies in its sleep.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use dormouse_core::{Reason, Rung};
use dormouse_testkit::host::wait;
use dormouse_testkit::memory;
use dormouse_testkit::rig::{Rig, reason};
use nix::sys::signal::Signal;

use crate::support::{LIMIT, alone, ask, beside_others, pod, swap};

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_mute_control_socket_fails_the_order_and_not_the_pod() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, 8).await;
    let socket = rig.stack.runsc_root().join(format!("runsc-{}.sock", pod.id));
    let aside = socket.with_extension("aside");

    std::fs::rename(&socket, &aside).unwrap();
    let refused = rig.freeze(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::ControlSocketMissing), "{refused}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);

    // Somebody listens and never answers.
    let mute = UnixListener::bind(&socket).unwrap();
    let began = Instant::now();
    let refused = rig.freeze(&pod).await.unwrap_err();
    println!(
        "a mute socket: {:?} after {:?}",
        reason(&refused),
        began.elapsed()
    );
    assert!(matches!(
        reason(&refused),
        Some(Reason::ControlSocketTimeout | Reason::StopStateUnknown | Reason::GuestRefused)
    ));
    drop(mute);
    std::fs::remove_file(&socket).unwrap();
    std::fs::rename(&aside, &socket).unwrap();
    ask(&pod, "/answer").await;
    rig.freeze(&pod).await.unwrap();

    // A wake that fails is tried again by itself.
    std::fs::rename(&socket, &aside).unwrap();
    let refused = rig.wake(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::ControlSocketMissing), "{refused}");
    std::fs::rename(&aside, &socket).unwrap();
    rig.wait_rung(&pod, Rung::Running, Duration::from_secs(20))
        .await
        .unwrap();
    ask(&pod, "/answer").await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_dies_in_its_sleep_is_cleared_away() {
    let _alone = alone().await;
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    for rung in [Rung::Frozen, Rung::Dozing] {
        let pod = pod(&rig, 8).await;
        let sentry = memory::sentry(&pod).unwrap();
        match rung {
            Rung::Frozen => rig.freeze(&pod).await.unwrap(),
            _ => rig.doze(&pod).await.unwrap(),
        };
        // v1 cannot kill what is frozen, so a kill of a dozing sentry takes effect with the thaw.
        sentry.signal(Signal::SIGKILL);
        let _ = rig.wake(&pod).await;
        wait::until("containerd to see the end", LIMIT, async || {
            let state = pod.container_status().await?.state();
            anyhow::ensure!(state == k8s_cri::v1::ContainerState::ContainerExited, "{state:?}");
            Ok(())
        })
        .await
        .unwrap();
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
        wait::until("the agent to forget it", LIMIT, async || {
            match rig.wake(&pod).await {
                Err(status) if reason(&status) == Some(Reason::PodNotFound) => Ok(()),
                other => anyhow::bail!("{other:?}"),
            }
        })
        .await
        .unwrap();
    }
    rig.stop().await.unwrap();
}
