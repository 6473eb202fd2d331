//! Connections of a sleeper.

use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{ContainerSpec, DORMOUSE_GVISOR, PodSpec};

use crate::support::{LIMIT, ask, swap};

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_outlives_the_keepalives_of_its_peer() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    // The bridge, and with it the peer's address, comes with the first pod.
    rig.stack
        .run_pod(
            PodSpec::new("first")
                .handler(DORMOUSE_GVISOR)
                .container(ContainerSpec::shell("sh", "sleep 600")),
        )
        .await
        .unwrap();
    let (_, host) = rig.stack.bridge();
    // A keepalive a second: three without an answer would end the connection.
    let peer = Peer::listen(host.into(), Some(Duration::from_secs(1)))
        .await
        .unwrap();
    let guest = AgentGuest {
        connect: Some(peer.address()),
        mib: 8,
        ..AgentGuest::default()
    };
    let pod = rig
        .run_pod(guest.pod("linked").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_eq!(ask(&pod, "/say?text=before").await["echo"], "before");
    rig.doze(&pod).await.unwrap();
    // Many times what the connection would survive without housekeeping.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let view = rig.get(&pod).await.unwrap();
    assert_eq!(
        view.rung().to_core(),
        Some(Rung::Dozing),
        "keepalives do not wake: {view:?}"
    );
    assert!(view.last_wake.is_none(), "{view:?}");
    assert_eq!(ask(&pod, "/say?text=after").await["echo"], "after");
    let links = peer.links();
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(links[0].ended, None);
    rig.stop().await.unwrap();
}
