//! Whoever a hibernation depends on is killed at its steps: the guest, the shim, the waiters, containerd. Afterwards the
//! pod runs or wakes with the memory of before; or, where the kill has ended it, it is gone like any pod that such a kill
//! ends: containerd says so, it can be deleted, and nothing is left over. Nobody else comes to harm.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_core::Reason;
use dormouse_rpc::{NodeClient, v1};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::memory::{self, Part};
use dormouse_testkit::rig::{Rig, reason, reference};
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, http};
use k8s_cri::v1::ContainerState;
use nix::sys::signal::Signal;

use crate::support::{LIMIT, address, ask, beside_others};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Sentry,
    Shim,
    /// The processes that wait for the containers on the shim's behalf.
    Waiters,
    Containerd,
}

/// Which order passes a fail point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Snapshot,
    Hibernate,
    Wake,
}

use Victim::{Containerd, Sentry, Shim, Waiters};

/// Everybody.
const ALL: &[Victim] = &[Sentry, Shim, Waiters, Containerd];

/// The same where there is no guest.
const REST: &[Victim] = &[Shim, Waiters, Containerd];

/// The fail points, and who is killed at each. Where the guest is what it was at the point before, those whose end is the
/// pod's are left out.
const POINTS: &[(On, &str, &[Victim])] = &[
    (On::Snapshot, "agent::snapshot::staged", &[Sentry, Waiters]),
    (On::Snapshot, "gvisor::snapshot::written", ALL),
    (On::Snapshot, "agent::snapshot::saved", &[Sentry]),
    (On::Snapshot, "agent::snapshot::committed", &[Sentry]),
    (On::Hibernate, "agent::save::staged", ALL),
    (On::Hibernate, "gvisor::save::cut", &[Sentry, Shim]),
    (On::Hibernate, "switch::checkpoint::before_call", &[Sentry]),
    (
        On::Hibernate,
        "switch::checkpoint::after_call",
        &[Sentry, Containerd],
    ),
    (On::Hibernate, "gvisor::save::written", &[Sentry]),
    (On::Hibernate, "agent::save::saved", &[Sentry, Waiters]),
    (
        On::Hibernate,
        "agent::hibernate::committed",
        &[Sentry, Containerd],
    ),
    (
        On::Hibernate,
        "gvisor::release::streams_put_by",
        &[Sentry, Shim, Waiters],
    ),
    (On::Hibernate, "switch::release::noted", ALL),
    (On::Hibernate, "gvisor::release::ended", REST),
    (On::Hibernate, "gvisor::release::forgotten", &[Containerd]),
    (On::Hibernate, "switch::hibernation::phase_noted", &[Shim]),
    (On::Hibernate, "agent::hibernate::released", &[Waiters]),
    (On::Wake, "agent::restore::opened", REST),
    (On::Wake, "switch::hibernation::phase_noted", &[Containerd]),
    (On::Wake, "gvisor::restore::root_created", &[Sentry, Shim]),
    (On::Wake, "gvisor::restore::addressed", &[Sentry, Containerd]),
    (On::Wake, "gvisor::restore::root_restored", ALL),
    (On::Wake, "gvisor::restore::started", &[Sentry, Waiters]),
    (On::Wake, "gvisor::restore::noted", &[Sentry, Containerd]),
    (On::Wake, "agent::restore::restored", &[Sentry, Shim]),
    (On::Wake, "agent::restore::on_wire", &[Sentry, Containerd]),
];

async fn pod(rig: &Rig, name: &str) -> Pod {
    let spec = AgentGuest::mib(16).pod(name).handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    http::post(address(&pod), "/history", "kept", LIMIT)
        .await
        .unwrap();
    pod
}

/// Lets the agent halt at a point; it waits there until the file that is returned is removed.
pub(crate) async fn arm(rig: &mut Rig, point: &str, file: &Path) {
    rig.agent.kill().unwrap();
    let halt = format!("{point}={}", file.display());
    rig.agent
        .restart(&rig.stack, Some(vec![("DORMOUSE_HALT_AT".to_owned(), halt)]))
        .await
        .unwrap_or_else(|error| panic!("{point}: {error:#}"));
    rig.reconnect().await.unwrap();
}

pub(crate) async fn order(
    mut client: NodeClient,
    pod: Option<v1::PodRef>,
    on: On,
) -> Result<(), tonic::Status> {
    match on {
        On::Snapshot => {
            let request = v1::CreateSnapshotRequest {
                pod,
                ..Default::default()
            };
            client.create_snapshot(request).await.map(drop)
        }
        On::Hibernate => {
            let request = v1::HibernateRequest {
                pod,
                ..Default::default()
            };
            client.hibernate(request).await.map(drop)
        }
        On::Wake => {
            let request = v1::WakeRequest {
                pod,
                ..Default::default()
            };
            client.wake(request).await.map(drop)
        }
    }
}

async fn kill(rig: &mut Rig, pod: &Pod, victim: Victim) {
    let part = match victim {
        Containerd => {
            rig.stack.restart_containerd(Signal::SIGKILL).await.unwrap();
            return;
        }
        Sentry => Part::Sentry,
        Shim => Part::Shim,
        Waiters => Part::Wait,
    };
    let found: Vec<_> = memory::processes(pod)
        .into_iter()
        .filter_map(|(id, found)| (found == part).then_some(id))
        .collect();
    assert!(!found.is_empty(), "there is no {victim:?}");
    for process in &found {
        process.signal(Signal::SIGKILL);
    }
    wait::until("the killed to be gone", LIMIT, async || {
        anyhow::ensure!(!found.iter().any(|p| p.alive()), "still there");
        Ok(())
    })
    .await
    .unwrap();
}

async fn is_running(pod: &Pod) -> bool {
    pod.container_status()
        .await
        .is_ok_and(|status| status.state() == ContainerState::ContainerRunning)
}

/// The pod has its memory, or containerd says that it has ended.
async fn alive_or_ended(pod: &Pod, hash: &serde_json::Value) -> Option<()> {
    let mut ended = None;
    wait::until(
        "the pod to answer, or to have ended",
        LIMIT,
        async || match http::get(address(pod), "/hash", Duration::from_secs(3)).await {
            Ok(answer) => {
                assert_eq!(&answer.json()?, hash, "its memory is not what it was");
                ended = Some(());
                Ok(())
            }
            Err(_) if !is_running(pod).await => Ok(()),
            Err(error) => Err(error),
        },
    )
    .await
    .unwrap();
    ended
}

/// What is there of the pod goes, within the time of any pod.
async fn delete(rig: &Rig, pod: &Pod) {
    tokio::time::timeout(LIMIT, async {
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    })
    .await
    .expect("a deletion that does not hang");
    wait::until("the pod's processes to go", LIMIT, async || {
        let left = memory::processes(pod);
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    wait::until("the agent to forget it", LIMIT, async || {
        match rig.wake(pod).await {
            Err(status) if reason(&status) == Some(Reason::PodNotFound) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await
    .unwrap();
}

/// Whether the pod has to be alive afterwards: nothing that its life depends on was killed, or its snapshot counted.
fn must_live(on: On, point: &str, victim: Victim) -> bool {
    match victim {
        Containerd => true,
        Sentry => {
            point == "switch::release::noted"
                || on == On::Wake
                    && matches!(
                        point,
                        "gvisor::restore::root_created"
                            | "gvisor::restore::addressed"
                            | "gvisor::restore::root_restored"
                    )
        }
        Shim | Waiters => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_the_pod_lives_or_ends_cleanly() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let bystander = pod(&rig, "bystander").await;
    let unharmed = ask(&bystander, "/hash").await;
    rig.hibernate(&bystander).await.unwrap();
    let mut victim_pod: Option<(Pod, serde_json::Value)> = None;
    let halt: PathBuf = rig.stack.dir().join("halted");
    for (on, point, victims) in POINTS {
        for victim in *victims {
            let what = format!("{victim:?} at {point} of {on:?}");
            let (subject, hash) = match victim_pod.take() {
                Some(there) => there,
                None => {
                    let subject = pod(&rig, "subject").await;
                    let hash = ask(&subject, "/hash").await;
                    (subject, hash)
                }
            };
            if *on == On::Wake {
                rig.hibernate(&subject)
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            arm(&mut rig, point, &halt).await;
            let ordered = order(rig.client.clone(), Some(reference(&subject)), *on);
            let ordered = tokio::spawn(ordered);
            wait::until("the agent to come to the point", LIMIT, async || {
                anyhow::ensure!(halt.exists(), "{what}");
                Ok(())
            })
            .await
            .unwrap();
            kill(&mut rig, &subject, *victim).await;
            std::fs::remove_file(&halt).unwrap();
            let outcome = tokio::time::timeout(LIMIT, ordered).await.expect(&what).unwrap();
            if matches!(victim, Shim | Waiters) {
                // It ends with these, as soon as containerd has noticed.
                wait::until("containerd to notice", LIMIT, async || {
                    anyhow::ensure!(!is_running(&subject).await, "{what}");
                    Ok(())
                })
                .await
                .unwrap();
            }
            let lives = alive_or_ended(&subject, &hash).await.is_some();
            println!(
                "{what}: {:?}, {}",
                outcome.map_err(|e| reason(&e)),
                if lives { "lives" } else { "ended" }
            );
            assert!(lives || !must_live(*on, point, *victim), "{what}");
            if lives && is_running(&subject).await {
                // Nothing of it is left over: one more of each.
                rig.hibernate(&subject)
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(ask(&subject, "/hash").await, hash, "{what}");
                assert_eq!(ask(&subject, "/history").await[0], "kept", "{what}");
                victim_pod = Some((subject, hash));
            } else {
                delete(&rig, &subject).await;
            }
        }
    }
    assert_eq!(ask(&bystander, "/hash").await, unharmed);
    rig.stop().await.unwrap();
}
