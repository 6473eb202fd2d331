//! Orders: wrong ones, repeated ones, and several at once.

use std::time::Duration;

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::DORMOUSE_GVISOR;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, reason, reference};

use crate::support::{LIMIT, ask, at_work, swap};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_orders_are_refused_with_a_reason() {
    let rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(AgentGuest::default().pod("one").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    let mut client = rig.client.clone();
    let mut wake = async |pod: v1::PodRef, source: &str, id: String| {
        let request = v1::WakeRequest {
            pod: Some(pod),
            source: source.to_owned(),
            operation_id: id,
        };
        reason(&client.wake(request).await.unwrap_err())
    };
    let unknown = v1::PodRef {
        name: "nobody".into(),
        ..Default::default()
    };
    assert_eq!(wake(unknown, "", String::new()).await, Some(Reason::PodNotFound));
    assert_eq!(
        wake(v1::PodRef::default(), "", String::new()).await,
        Some(Reason::InvalidRequest)
    );
    assert_eq!(
        wake(reference(&pod), "Packet", String::new()).await,
        Some(Reason::InvalidRequest)
    );
    assert_eq!(
        wake(reference(&pod), "", "x".repeat(200)).await,
        Some(Reason::InvalidRequest)
    );
    let hostile = v1::PodRef {
        sandbox_id: "../../etc".into(),
        ..Default::default()
    };
    assert_eq!(wake(hostile, "", String::new()).await, Some(Reason::PodNotFound));
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_operation_twice_is_done_once() {
    let rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(AgentGuest::default().pod("one").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    let request = v1::FreezeRequest {
        pod: Some(reference(&pod)),
        operation_id: "op-1".into(),
        ..Default::default()
    };
    let first = rig
        .client
        .clone()
        .freeze(request.clone())
        .await
        .unwrap()
        .into_inner()
        .outcome
        .unwrap();
    assert!(first.moved);
    rig.wake(&pod).await.unwrap();
    let again = rig
        .client
        .clone()
        .freeze(request)
        .await
        .unwrap()
        .into_inner()
        .outcome
        .unwrap();
    assert_eq!(again, first, "the same answer");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running, "and not done again");
    let other = v1::DozeRequest {
        pod: Some(reference(&pod)),
        operation_id: "op-1".into(),
        ..Default::default()
    };
    let refused = rig.client.clone().doze(other).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::OperationIdReused));
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_computes_is_not_put_to_sleep_by_who_wants_it_quiet() {
    let (rig, pod) = at_work(AgentGuest::default().pod("one").handler(DORMOUSE_GVISOR)).await;
    let freeze = async |quiet: u64| {
        let request = v1::FreezeRequest {
            pod: Some(reference(&pod)),
            quiet: Some(v1::Quiet {
                time: Duration::from_millis(quiet).try_into().ok(),
                of_execs_only: false,
            }),
            ..Default::default()
        };
        rig.client.clone().freeze(request).await
    };
    let (refused, _) = tokio::join!(freeze(1000), ask(&pod, "/busy?ms=3000"));
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::NotQuiet), "{refused}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    let endless = freeze(11_000).await.unwrap_err();
    assert_eq!(reason(&endless), Some(Reason::InvalidRequest));
    wait::until("the guest to be quiet", LIMIT, async || Ok(freeze(500).await?))
        .await
        .unwrap();
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
    // One that sleeps is quiet.
    freeze(500).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_orders_at_once_leave_the_guest_whole() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(16).pod("one").handler(DORMOUSE_GVISOR)).await;
    let hash = ask(&pod, "/hash").await;
    for _ in 0..10 {
        let orders = (0..12).map(|n| {
            let (rig, pod) = (&rig, &pod);
            async move {
                match n % 3 {
                    0 => rig.freeze(pod).await,
                    1 => rig.doze(pod).await,
                    _ => rig.wake(pod).await,
                }
            }
        });
        for outcome in futures::future::join_all(orders).await {
            if let Err(status) = outcome {
                let reason = reason(&status);
                assert!(
                    matches!(reason, Some(Reason::WakeWon | Reason::Superseded)),
                    "{status}"
                );
            }
        }
    }
    rig.wake(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_during_the_page_out_wins() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(256).pod("big").handler(DORMOUSE_GVISOR)).await;
    let hash = ask(&pod, "/hash").await;
    let dozing = tokio::spawn({
        let mut client = rig.client.clone();
        let pod = reference(&pod);
        async move {
            client
                .doze(v1::DozeRequest {
                    pod: Some(pod),
                    ..Default::default()
                })
                .await
        }
    });
    wait::until("the page-out to begin", LIMIT, async || {
        let view = rig.get(&pod).await?;
        anyhow::ensure!(view.moving_to() == v1::Rung::Dozing, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let woken = rig.wake(&pod).await.unwrap();
    println!("woken out of a page-out: {woken:?}");
    let refused = dozing.await.unwrap().unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::WakeWon));
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_on_a_pod_that_goes_away_is_answered() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(128).pod("going").handler(DORMOUSE_GVISOR)).await;
    let dozing = tokio::spawn({
        let mut client = rig.client.clone();
        let pod = reference(&pod);
        async move {
            client
                .doze(v1::DozeRequest {
                    pod: Some(pod),
                    ..Default::default()
                })
                .await
        }
    });
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    // Whatever came first: an answer comes, and the agent knows no such pod afterwards.
    let _ = tokio::time::timeout(LIMIT, dozing).await.unwrap().unwrap();
    wait::until(
        "the agent to forget the pod",
        Duration::from_secs(20),
        async || match rig.wake(&pod).await {
            Err(status) if reason(&status) == Some(Reason::PodNotFound) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        },
    )
    .await
    .unwrap();
    rig.stop().await.unwrap();
}
