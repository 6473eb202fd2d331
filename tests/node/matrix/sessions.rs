//! Commands that run in a guest from outside while it is saved.

use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;

use super::run;
use crate::hibernate::hibernated;
use crate::support::{LIMIT, ask};

#[tokio::test(flavor = "multi_thread")]
async fn exec_sessions_end_with_an_error_and_not_with_a_hang() {
    let rig = Rig::plain().await.unwrap();
    let pod = run(&rig, AgentGuest::mib(8).pod("busy")).await;
    let hash = ask(&pod, "/hash").await;
    for round in 0..2 {
        // One that is there when the guest is saved, and one that has written something before.
        let mark = format!("/tmp/mark{round}");
        let script = format!("echo begun; touch {mark}; sleep 3600");
        let session = {
            let pod = pod.clone();
            tokio::spawn(async move { pod.exec(&["sh", "-c", &script], Duration::from_secs(120)).await })
        };
        wait::until("the session to begin", LIMIT, async || {
            let seen = pod.exec(&["ls", &mark], LIMIT).await?;
            anyhow::ensure!(seen.code == 0, "{}", seen.stderr);
            Ok(())
        })
        .await
        .unwrap();
        // A snapshot leaves it alone.
        rig.snapshot(&pod).await.unwrap();
        assert!(!session.is_finished());
        hibernated(&rig, &pod).await;
        let ended = tokio::time::timeout(LIMIT, session).await.unwrap().unwrap();
        println!("{ended:?}");
        assert!(
            ended.is_err() || ended.as_ref().is_ok_and(|o| o.code != 0),
            "{ended:?}"
        );
        assert_eq!(
            rig.rung(&pod).await.unwrap(),
            Rung::Hibernated,
            "its end woke nobody"
        );
        assert_eq!(ask(&pod, "/hash").await, hash);
        // Nothing of it is left in the guest.
        wait::until("the session's process to go", LIMIT, async || {
            let list = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
            let seen = pod.exec(&["sh", "-c", list], LIMIT).await?;
            anyhow::ensure!(!seen.stdout.contains("sleep 3600 "), "{}", seen.stdout);
            Ok(())
        })
        .await
        .unwrap();
    }
    rig.stop().await.unwrap();
}
