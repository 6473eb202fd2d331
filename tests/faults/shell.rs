//! The agent dies at every step of the making, the filling and the end of a shell. Afterwards the pod is hibernated as
//! before, its snapshot is whole, and it wakes with its memory; and nothing is left of what nobody needs.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use dormouse_core::{Policy, Rung, ShellPolicy};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::memory::{Part, processes, sentry};
use dormouse_testkit::rig::{Rig, reference};
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, http};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::neighbours::{self, arm, order};
use crate::support::{LIMIT, address, ask, beside_others};

/// What passes a fail point.
#[derive(Debug, Clone, Copy)]
enum On {
    Make,
    End,
    Wake,
}

/// The fail points, in the order in which a shell meets them.
const POINTS: &[(On, &str)] = &[
    (On::Make, "switch::shell::noted"),
    (On::Make, "gvisor::shell::begun"),
    (On::Make, "gvisor::shell::root_created"),
    (On::Make, "gvisor::shell::created"),
    (On::Make, "gvisor::shell::made"),
    (On::Make, "agent::shell::made"),
    (On::End, "switch::shell::noted"),
    (On::End, "gvisor::shell::ending"),
    (On::End, "gvisor::shell::ended"),
    (On::End, "agent::shell::ended"),
    (On::Wake, "agent::restore::opened"),
    (On::Wake, "switch::hibernation::phase_noted"),
    (On::Wake, "gvisor::restore::root_created"),
    (On::Wake, "gvisor::restore::addressed"),
    (On::Wake, "gvisor::restore::root_restored"),
    (On::Wake, "gvisor::restore::started"),
    (On::Wake, "gvisor::restore::noted"),
    (On::Wake, "agent::restore::restored"),
    (On::Wake, "agent::restore::on_wire"),
];

fn policy(shell: ShellPolicy) -> Policy {
    Policy {
        shell,
        ..Policy::default()
    }
}

fn sentries(pod: &Pod) -> usize {
    let all = processes(pod);
    all.iter().filter(|(_, part)| *part == Part::Sentry).count()
}

async fn restart(rig: &mut Rig, kill_at: Option<&str>) {
    let env = kill_at.map(|point| ("DORMOUSE_KILL_AT".to_owned(), point.to_owned()));
    rig.agent
        .restart(&rig.stack, Some(env.into_iter().collect()))
        .await
        .unwrap_or_else(|error| panic!("{kill_at:?}: {error:#}"));
    rig.reconnect().await.unwrap();
}

/// A pod that remembers something, and the hash of its memory.
async fn victim(rig: &Rig) -> (Pod, Value) {
    let spec = AgentGuest::mib(24)
        .pod("victim")
        .handler(DORMOUSE_GVISOR)
        .annotation("dormouse.dev/managed", "true");
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    http::post(address(&pod), "/history", "kept", LIMIT)
        .await
        .unwrap();
    (pod, hash)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_a_shell() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let (pod, hash) = victim(&rig).await;
    for (on, point) in POINTS {
        let before = match on {
            On::Make => ShellPolicy::Never,
            On::End | On::Wake => ShellPolicy::Always,
        };
        rig.set_policy(&pod, &policy(before)).await.unwrap();
        rig.hibernate(&pod)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error}"));
        rig.wait_shell(&pod, before == ShellPolicy::Always, LIMIT)
            .await
            .unwrap();
        rig.agent.kill().unwrap();
        restart(&mut rig, Some(point)).await;
        // The answer may come before the end, or not.
        let _ = match on {
            On::Make => rig.set_policy(&pod, &policy(ShellPolicy::Always)).await.map(drop),
            On::End => rig.set_policy(&pod, &policy(ShellPolicy::Never)).await.map(drop),
            On::Wake => rig.wake(&pod).await.map(drop),
        };
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");
        restart(&mut rig, None).await;
        let view = rig.get(&pod).await.unwrap();
        println!("{on:?} {point}: found {:?} with {:?}", view.rung(), view.shell);
        match on {
            // It is made, or made again.
            On::Make => drop(rig.wait_shell(&pod, true, LIMIT).await.unwrap()),
            On::End => {
                rig.wait_shell(&pod, false, LIMIT).await.unwrap();
                assert_eq!(sentries(&pod), 0, "{point}");
            }
            On::Wake => {}
        }
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(ask(&pod, "/history").await[0], "kept", "{point}");
        assert_eq!(sentries(&pod), 1, "{point}");
        let output = pod.exec(&["echo", "alive"], LIMIT).await.unwrap();
        assert_eq!(output.stdout.trim(), "alive", "{point}");
    }
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    rig.stop().await.unwrap();
}

/// Where the shell that is being filled ends.
const FILLING: [&str; 4] = [
    "switch::hibernation::phase_noted",
    "gvisor::restore::root_created",
    "gvisor::restore::addressed",
    "gvisor::restore::root_restored",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_ends_while_it_is_filled_is_done_without() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let (pod, hash) = victim(&rig).await;
    let halt = rig.stack.dir().join("halted");
    rig.set_policy(&pod, &policy(ShellPolicy::Always)).await.unwrap();
    for (round, point) in FILLING.iter().enumerate() {
        rig.hibernate(&pod)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error}"));
        rig.wait_shell(&pod, true, LIMIT).await.unwrap();
        arm(&mut rig, point, &halt).await;
        rig.wait_shell(&pod, true, LIMIT).await.unwrap();
        let ordered = order(rig.client.clone(), Some(reference(&pod)), neighbours::On::Wake);
        let ordered = tokio::spawn(ordered);
        wait::until("the agent to come to the point", LIMIT, async || {
            anyhow::ensure!(halt.exists(), "{point}");
            Ok(())
        })
        .await
        .unwrap();
        sentry(&pod).unwrap().signal(Signal::SIGKILL);
        std::fs::remove_file(&halt).unwrap();
        let woken = tokio::time::timeout(LIMIT, ordered).await.expect(point).unwrap();
        woken.unwrap_or_else(|error| panic!("{point}: {error}"));
        let log = rig.agent.log();
        let without = log.matches("the shell could not be filled").count();
        assert_eq!(without, round + 1, "{point}: {log}");
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        assert_eq!(ask(&pod, "/history").await[0], "kept", "{point}");
        assert_eq!(sentries(&pod), 1, "{point}");
        let output = pod.exec(&["echo", "alive"], LIMIT).await.unwrap();
        assert_eq!(output.stdout.trim(), "alive", "{point}");
    }
    rig.stop().await.unwrap();
}
