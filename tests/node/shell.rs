//! Shells: empty guests that stand by for hibernated pods.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_core::{Policy, Reason, Rung, ShellPolicy};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::memory::{Part, processes, sentry};
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{Pod, PodSpec, http};
use k8s_cri::v1::{ContainerState, PodSandboxState};
use nix::sys::signal::Signal;

use crate::hibernate::{connected, hibernated, listed};
use crate::support::{LIMIT, address, ask, swap};
use crate::upgrades::{self, OLD, install, kept, record, runs_under};

pub(crate) fn shelled(mib: u32, shell: &str) -> PodSpec {
    connected(AgentGuest::mib(mib).pod("sleeper"))
        .annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/shell", shell)
}

async fn at_work(rig: &Rig, spec: PodSpec) -> Pod {
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}

/// How many wakes the agent says were by a shell.
fn filled(rig: &Rig) -> usize {
    rig.agent.log().matches("shell=true").count()
}

async fn node(rig: &Rig) -> v1::get_node_response::Node {
    let answer = rig.client.clone().get_node(v1::GetNodeRequest {}).await;
    answer.unwrap().into_inner().node.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_fills_the_shell_that_stands_by() {
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    let pod = at_work(&rig, shelled(64, "Always")).await;
    let hash = ask(&pod, "/hash").await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    for round in 0..6 {
        hibernated(&rig, &pod).await;
        let view = rig.wait_shell(&pod, true, LIMIT).await.unwrap();
        let shell = view.shell.as_ref().unwrap();
        println!("round {round}: {shell:?}, resident {}", view.resident_bytes);
        assert_eq!(shell.reason, Reason::ShellWanted.as_str());
        assert!(shell.bytes > 0);
        let node = node(&rig).await;
        assert!(node.shells == 1 && node.shell_bytes > 0, "{node:?}");
        // What the pod takes is counted, though its guest is gone.
        let listed = rig.get(&pod).await.unwrap();
        assert!(listed.resident_bytes > 0, "{listed:?}");
        // To everybody else it is a hibernated pod.
        assert_eq!(view.rung().to_core(), Some(Rung::Hibernated));
        assert_eq!(
            pod.container_status().await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        assert_eq!(pod.status().await.unwrap().state(), PodSandboxState::SandboxReady);
        pod.stats().await.unwrap();
        match round % 3 {
            0 => {
                let woken = rig.wake(&pod).await.unwrap();
                println!("order: {woken:?}");
            }
            1 => {
                let answer = http::get(address(&pod), "/answer", LIMIT).await.unwrap();
                println!("packet: {:?}", answer.first_byte);
                assert_eq!(rig.woken(&pod, LIMIT).await.unwrap().source, "Packet");
            }
            _ => {
                // The agent that comes back finds it, and uses it.
                rig.crash_and_restart().await.unwrap();
                rig.wait_shell(&pod, true, LIMIT).await.unwrap();
                let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
                assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
            }
        }
        let view = rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(view.shell, None);
        assert_eq!(ask(&pod, "/hash").await, hash);
        assert_eq!(ask(&pod, "/history").await[0], "before");
        let awake = filled(&rig);
        assert_eq!(awake, round + 1, "{}", rig.agent.log());
        assert_eq!(
            processes(&pod)
                .iter()
                .filter(|(_, part)| *part == Part::Sentry)
                .count(),
            1
        );
    }
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_shell_is_deleted_like_any_other() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let pod = at_work(&rig, shelled(8, "Always")).await;
    hibernated(&rig, &pod).await;
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    let root = record(&rig, &pod).runtime_root;
    pod.stop_container(Duration::from_secs(10)).await.unwrap();
    let status = pod.container_status().await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 143)
    );
    // Its shell is cleared away though nobody waits for the container any more.
    rig.wait_shell(&pod, false, LIMIT).await.unwrap();
    wait::until("the shell to be cleared away", LIMIT, async || {
        anyhow::ensure!(record(&rig, &pod).shell().is_none());
        Ok(())
    })
    .await
    .unwrap();
    let log = rig.agent.log();
    assert!(!log.contains("WrapperMissing"), "{log}");
    pod.stop().await.unwrap();
    assert!(processes(&pod).iter().all(|(_, part)| *part != Part::Sentry));
    pod.remove().await.unwrap();
    let left: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(&pod.id) || pod.containers.iter().any(|id| name.contains(id)))
        .collect();
    assert!(left.is_empty(), "runsc keeps {left:?}");
    wait::until("the snapshot to go", LIMIT, async || {
        let left = listed(&rig).await;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        anyhow::ensure!(node(&rig).await.shells == 0);
        Ok(())
    })
    .await
    .unwrap();
    // The whole pod at once, and its shell in the making.
    let pod = at_work(&rig, shelled(8, "Always")).await;
    hibernated(&rig, &pod).await;
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_dies_is_no_loss() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let pod = at_work(&rig, shelled(24, "Always")).await;
    let hash = ask(&pod, "/hash").await;
    hibernated(&rig, &pod).await;
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    // It is noticed, told, and another one is made after a while.
    sentry(&pod).unwrap().signal(Signal::SIGKILL);
    wait::until("the agent to say so", LIMIT, async || {
        anyhow::ensure!(rig.agent.log().contains("reason=ShellLost"));
        Ok(())
    })
    .await
    .unwrap();
    rig.wait_shell(&pod, false, LIMIT).await.unwrap();
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    // And in the same moment as a wake; what if it is within one, `tests/faults/shell.rs` asks.
    sentry(&pod).unwrap().signal(Signal::SIGKILL);
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_of_the_runsc_that_a_wake_fills_it_with() {
    let _swap = swap();
    let rig = upgrades::node().await;
    let pod = at_work(&rig, shelled(16, "Always")).await;
    let hash = ask(&pod, "/hash").await;
    hibernated(&rig, &pod).await;
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    let policy = |shell| Policy {
        shell,
        ..Policy::default()
    };
    rig.set_policy(&pod, &policy(ShellPolicy::Never)).await.unwrap();
    hibernated(&rig, &pod).await;
    // From now on a kept copy serves the pod, and nobody has told its record.
    install(&rig, "runsc-next");
    rig.set_policy(&pod, &policy(ShellPolicy::Always)).await.unwrap();
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    assert_eq!(runs_under(&rig, &pod), (kept(&rig, OLD), OLD.to_owned()));
    assert!(!rig.agent.log().contains("ShellLost"), "{}", rig.agent.log());
    assert_eq!(ask(&pod, "/hash").await, hash);
    // The answer may be here before the agent has said how it came to be.
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    assert_eq!(filled(&rig), 2, "{}", rig.agent.log());
    // And it goes when none is wanted any more.
    hibernated(&rig, &pod).await;
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    rig.set_policy(&pod, &policy(ShellPolicy::Never)).await.unwrap();
    rig.wait_shell(&pod, false, LIMIT).await.unwrap();
    assert!(processes(&pod).iter().all(|(_, part)| *part != Part::Sentry));
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_there_when_the_schedule_says_so() {
    let _swap = swap();
    let options = RigOptions {
        config: "[shells]\nahead = \"4s\"\nkeep = \"15s\"\n".into(),
        ..RigOptions::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let spec = shelled(8, "Predicted");
    let pod = at_work(&rig, spec).await;
    let hash = ask(&pod, "/hash").await;
    // The next full minute that is not too near: the pod is to be hibernated well before.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let minute = (now + 40).div_ceil(60);
    let policy = Policy {
        shell: ShellPolicy::Predicted,
        wake_schedule: Some(format!("{} * * * *", minute % 60).parse().unwrap()),
        ..Policy::default()
    };
    rig.set_policy(&pod, &policy).await.unwrap();
    hibernated(&rig, &pod).await;
    let view = rig.get(&pod).await.unwrap();
    assert_eq!(view.shell, None);
    let expected = view.wake_expected.unwrap();
    assert_eq!(u64::try_from(expected.seconds).unwrap(), minute * 60);
    let limit = Duration::from_secs(120);
    let view = rig.wait_shell(&pod, true, limit).await.unwrap();
    assert_eq!(view.shell.unwrap().reason, Reason::WakeExpected.as_str());
    let early = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(early < minute * 60 + 15, "made for the moment, not after it");
    // Nobody comes.
    rig.wait_shell(&pod, false, limit).await.unwrap();
    let log = rig.agent.log();
    assert!(log.contains("reason=ShellUnused"), "{log}");
    let next = rig.get(&pod).await.unwrap().wake_expected.unwrap();
    assert_eq!(next.seconds, expected.seconds + 3600);
    // By order it comes and goes at once.
    let always = Policy {
        shell: ShellPolicy::Always,
        ..Policy::default()
    };
    rig.set_policy(&pod, &always).await.unwrap();
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    rig.set_policy(&pod, &Policy::default()).await.unwrap();
    rig.wait_shell(&pod, false, LIMIT).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_gets_the_room_of_others_shells() {
    let _swap = swap();
    let options = RigOptions {
        config: "[admission]\nmemory_reserve_mib = 257\n".into(),
        ..RigOptions::default()
    };
    let mut rig = Rig::start(options).await.unwrap();
    let shelled = at_work(&rig, shelled(8, "Always")).await;
    let sleeper = at_work(&rig, connected(AgentGuest::mib(8).pod("other"))).await;
    hibernated(&rig, &shelled).await;
    hibernated(&rig, &sleeper).await;
    rig.wait_shell(&shelled, true, LIMIT).await.unwrap();
    // The same node, and there is never room enough.
    rig.agent.kill().unwrap();
    let config = rig.agent.paths().config.clone();
    let text = std::fs::read_to_string(&config).unwrap();
    let full = text.replace("memory_reserve_mib = 257", "memory_reserve_mib = 100000000");
    std::fs::write(&config, full).unwrap();
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    rig.wait_shell(&shelled, true, LIMIT).await.unwrap();
    // It is not refused before everybody else's shell has gone for it.
    let refused = rig.wake(&sleeper).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InsufficientMemory), "{refused}");
    assert_eq!(rig.get(&shelled).await.unwrap().shell, None);
    let log = rig.agent.log();
    assert!(log.contains("a wake lacks memory; a shell is given up"), "{log}");
    rig.agent.kill().unwrap();
    std::fs::write(&config, text).unwrap();
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    for pod in [&shelled, &sleeper] {
        ask(pod, "/hash").await;
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_short_of_memory_gives_its_shells_up_first() {
    let _swap = swap();
    let options = |percent: u32| RigOptions {
        config: format!("[pressure]\navailable_percent = {percent}\nperiod = \"100ms\"\n[shells]\nmax = 1\n"),
        ..RigOptions::default()
    };
    let mut rig = Rig::start(options(0)).await.unwrap();
    let pod = at_work(&rig, shelled(8, "Always")).await;
    let second = at_work(&rig, shelled(8, "Always")).await;
    let dozing = at_work(
        &rig,
        AgentGuest::mib(8)
            .pod("dozing")
            .annotation("dormouse.dev/managed", "true"),
    )
    .await;
    hibernated(&rig, &pod).await;
    rig.wait_shell(&pod, true, LIMIT).await.unwrap();
    // There is room for one.
    hibernated(&rig, &second).await;
    wait::until("the agent to say so", LIMIT, async || {
        anyhow::ensure!(
            rig.agent.log().contains("reason=ShellsFull"),
            "{}",
            rig.agent.log()
        );
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(rig.get(&second).await.unwrap().shell, None);
    // However often the agent comes back: the one that stands keeps its place.
    let first = sentry(&pod).unwrap();
    for _ in 0..3 {
        rig.crash_and_restart().await.unwrap();
        rig.wait_shell(&pod, true, LIMIT).await.unwrap();
        assert_eq!(sentry(&pod).unwrap(), first);
        assert_eq!(rig.get(&second).await.unwrap().shell, None);
    }
    // The same node, short of all but everything.
    rig.agent.kill().unwrap();
    let config = std::fs::read_to_string(&rig.agent.paths().config).unwrap();
    let short = config.replace("available_percent = 0", "available_percent = 100");
    std::fs::write(&rig.agent.paths().config, short).unwrap();
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    rig.wait_shell(&pod, false, LIMIT).await.unwrap();
    let log = rig.agent.log();
    assert!(log.contains("a shell is given up"), "{log}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Hibernated);
    // Then come sleepers, as ever.
    rig.doze(&dozing).await.unwrap();
    rig.wait_rung(&dozing, Rung::Hibernated, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}
