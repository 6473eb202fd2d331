//! Pods that are filled from a snapshot at their birth, with whoever is at it killed at every step: the pod's next try
//! succeeds, out of the same grant, and until then the snapshot is whole; what is half made can be deleted.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_core::{ANNOTATION_FALLBACK, ANNOTATION_POST_RESTORE_EXEC, Reason};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::{ProcessId, wait};
use dormouse_testkit::memory::{self, Part};
use dormouse_testkit::rig::{Rig, reason};
use dormouse_testkit::{Agent, ContainerSpec, Pod, PodSpec, Stack, http};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_cri::v1::{ContainerState, ListPodSandboxRequest, PodSandboxState, StopPodSandboxRequest};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{LIMIT, address, ask, beside_others};

/// How long a try to make a pod may take. Where the shim's `start` fails containerd waits for a minute for the end of what
/// never began: with any runtime.
const MADE: Duration = Duration::from_secs(300);

/// The wrapper's steps, in the order in which a pod meets them.
const POINTS: &[&str] = &[
    "runsc::create::sandbox_registered",
    "runsc::fill::granted",
    "runsc::fill::loading",
    "runsc::fill::restored",
    "runsc::create::container_registered",
    "runsc::fill::starting",
    "runsc::fill::started",
    "runsc::fill::followed",
];

/// Those of them that are in the pod sandbox's own `start`.
const START: &[&str] = &[
    "runsc::fill::granted",
    "runsc::fill::loading",
    "runsc::fill::restored",
];

/// What it does where a pod cannot be filled and starts without memory.
const COLD: &[&str] = &[
    "runsc::cold::ended",
    "runsc::cold::forgotten",
    "runsc::cold::created",
    "runsc::cold::noted",
];

fn spec(name: &str) -> PodSpec {
    AgentGuest::mib(8).pod(name)
}

/// The same with a second container.
fn two(name: &str) -> PodSpec {
    spec(name).container(ContainerSpec::shell("other", "while true; do sleep 1; done"))
}

/// A pod, the hash of its memory, and a snapshot of it.
async fn source(rig: &Rig, spec: PodSpec) -> (Pod, Value, String) {
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    let id = rig.snapshot(&pod).await.unwrap().id;
    (pod, hash, id)
}

/// A try to make the pod, as kubelet makes one after the other; within the time of any pod. What is half made is stopped, and
/// not removed while there is no newer one.
async fn attempt(stack: &Stack, spec: &PodSpec, attempt: u32, what: &str) -> anyhow::Result<Pod> {
    let spec = PodSpec {
        attempt,
        ..spec.clone()
    };
    let containers = spec.containers.len();
    let made = async {
        let mut pod = stack.run_sandbox(spec).await?;
        for index in 0..containers {
            if let Err(error) = pod.add_container(stack, index, attempt).await {
                let stopped = pod.stop().await;
                println!(
                    "{what}: stopped: {:?}",
                    stopped.as_ref().map_err(|e| format!("{e:#}"))
                );
                return Err(error);
            }
        }
        Ok(pod)
    };
    let began = std::time::Instant::now();
    let made = tokio::time::timeout(MADE, made).await;
    println!("{what}: attempt {attempt} took {:?}", began.elapsed());
    made.unwrap_or_else(|_| panic!("{what}: attempt {attempt} hangs"))
}

async fn delete(pod: &Pod, what: &str) {
    let deleted = tokio::time::timeout(LIMIT, async {
        pod.stop().await?;
        pod.remove().await
    })
    .await;
    deleted
        .unwrap_or_else(|_| panic!("{what}: its deletion hangs"))
        .unwrap_or_else(|error| panic!("{what}: {error:#}"));
}

/// Nothing of a pod is left that was given up.
async fn gone(stack: &Stack, uid: &str, what: &str) {
    let cgroup = stack.pod_cgroup(uid);
    wait::until("what was half made to go", LIMIT, async || {
        let left = memory::processes_of(&cgroup, &[]);
        anyhow::ensure!(left.is_empty(), "{what}: {left:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Tries to make each pod, and has the wrapper killed at its point; all at once, because where the shim's `start` is killed it
/// takes containerd a minute to give up.
async fn break_all(stack: &Stack, pods: &[(&'static str, PodSpec)], number: u32) {
    let (mut running, mut broken) = (FuturesUnordered::new(), Vec::new());
    for (point, spec) in pods {
        stack.arm_wrapper(point, "kill").unwrap();
        running.push(async move { (*point, attempt(stack, spec, number, point).await) });
        let killed = wait::until("a wrapper to be killed", LIMIT, async || {
            anyhow::ensure!(!stack.is_wrapper_armed(), "{point} was passed");
            Ok(())
        });
        tokio::pin!(killed);
        loop {
            tokio::select! {
                Some(done) = running.next() => broken.push(done),
                killed = &mut killed => break killed.unwrap(),
            }
        }
    }
    broken.extend(running.collect::<Vec<_>>().await);
    for (point, made) in broken {
        println!("{point}: {:#}", made.expect_err(point));
    }
    for (point, spec) in pods {
        let uid = spec.uid.as_deref().unwrap();
        clear(stack, uid, point, point).await;
        gone(stack, uid, point).await;
    }
}

/// Ends what containerd cannot end by itself, as docs/operations/troubleshooting.md has it: the shim of a sandbox whose
/// `start` was killed waits for something that never began.
async fn clear(stack: &Stack, uid: &str, point: &str, what: &str) {
    for id in sandboxes_of(stack, uid).await {
        if START.contains(&point) {
            for (process, part) in memory::processes_of("/nowhere", &[&id]) {
                if part == Part::Shim {
                    process.signal(Signal::SIGKILL);
                }
            }
        }
        let mut cri = stack.cri();
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        };
        tokio::time::timeout(LIMIT, cri.stop_pod_sandbox(request))
            .await
            .unwrap_or_else(|_| panic!("{what}: it cannot be stopped within the time"))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

async fn sandboxes_of(stack: &Stack, uid: &str) -> Vec<String> {
    let request = ListPodSandboxRequest { filter: None };
    let pods = stack.cri().list_pod_sandbox(request).await.unwrap().into_inner();
    pods.items
        .into_iter()
        .filter(|pod| pod.metadata.as_ref().is_some_and(|m| m.uid == uid))
        .map(|pod| pod.id)
        .collect()
}

/// The same pods, tried once more.
async fn make_all(stack: &Stack, pods: &[(&'static str, PodSpec)], number: u32) -> Vec<(&'static str, Pod)> {
    let mut made = Vec::new();
    for (point, spec) in pods {
        let pod = attempt(stack, spec, number, point)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error:#}"));
        made.push((*point, pod));
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapper_is_killed_at_every_step_of_a_birth() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let (source, hash, id) = source(&rig, spec("source")).await;
    let mut pods = Vec::new();
    for (index, point) in POINTS.iter().enumerate() {
        let clone = spec(&format!("clone-{index}"));
        pods.push((*point, rig.granted(&id, clone).await.unwrap()));
    }
    break_all(&rig.stack, &pods, 0).await;
    for (point, pod) in make_all(&rig.stack, &pods, 1).await {
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        delete(&pod, point).await;
    }
    assert_eq!(ask(&source, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapper_is_killed_at_every_step_of_a_cold_start() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let (_source, hash, id) = source(&rig, spec("source")).await;
    let mut pods = Vec::new();
    for (index, point) in COLD.iter().enumerate() {
        let failing = spec(&format!("cold-{index}"))
            .annotation(ANNOTATION_FALLBACK, "ColdStart")
            .annotation(ANNOTATION_POST_RESTORE_EXEC, r#"["/bin/false"]"#);
        pods.push((*point, rig.granted(&id, failing).await.unwrap()));
    }
    break_all(&rig.stack, &pods, 0).await;
    for (point, pod) in make_all(&rig.stack, &pods, 1).await {
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        assert_ne!(ask(&pod, "/hash").await, hash, "{point}");
        delete(&pod, point).await;
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_back_after_a_reboot_wherever_the_wrapper_is_killed() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let (mut pods, mut hashes) = (Vec::new(), Vec::new());
    for (index, point) in POINTS.iter().enumerate() {
        let spec = spec(&format!("sleeper-{index}"));
        let pod = rig.run_pod(spec.clone()).await.unwrap();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        hashes.push(ask(&pod, "/hash").await);
        rig.hibernate(&pod)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error}"));
        let spec = PodSpec {
            uid: Some(pod.uid.clone()),
            ..spec
        };
        pods.push((*point, spec));
    }
    rig.agent.kill().unwrap();
    rig.stack.reboot().await.unwrap();
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    break_all(&rig.stack, &pods, 1).await;
    let made = make_all(&rig.stack, &pods, 2).await;
    for ((point, pod), hash) in made.iter().zip(&hashes) {
        assert_eq!(&ask(pod, "/hash").await, hash, "{point}");
    }
    rig.stop().await.unwrap();
}

/// The agent has ended the guest and could not say so any more; then the pod is made anew before an agent is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_down_in_the_middle_of_a_hibernation_loses_no_memory() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let halt: PathBuf = rig.stack.dir().join("halted");
    for point in [
        "agent::hibernate::committed",
        "switch::release::noted",
        "gvisor::release::ended",
        "agent::hibernate::released",
    ] {
        let spec = spec("sleeper");
        let pod = rig.run_pod(spec.clone()).await.unwrap();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        let hash = ask(&pod, "/hash").await;
        rig.agent.kill().unwrap();
        let arm = vec![("DORMOUSE_KILL_AT".to_owned(), point.to_owned())];
        rig.agent.restart(&rig.stack, Some(arm)).await.unwrap();
        rig.reconnect().await.unwrap();
        rig.hibernate(&pod).await.expect_err(point);
        let status = rig.agent.wait_exit(LIMIT).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");
        rig.stack.reboot().await.unwrap();
        let next = PodSpec {
            uid: Some(pod.uid.clone()),
            ..spec
        };
        let line = format!("halt {}", halt.display());
        rig.stack.arm_wrapper("runsc::fill::awaited", &line).unwrap();
        let Rig { stack, agent, .. } = &mut rig;
        let agent_comes_up_late = async {
            halted(&halt, point).await;
            std::fs::remove_file(&halt).unwrap();
            agent.restart(stack, Some(Vec::new())).await.unwrap();
        };
        let (made, ()) = tokio::join!(attempt(stack, &next, 1, point), agent_comes_up_late);
        let made = made.unwrap_or_else(|error| panic!("{point}: {error:#}"));
        rig.reconnect().await.unwrap();
        assert_eq!(ask(&made, "/hash").await, hash, "{point}");
        delete(&made, point).await;
    }
    rig.stop().await.unwrap();
}

/// As kubelet does, a container is tried again in the same sandbox: with the memory, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_start_was_broken_off_is_not_started_without_its_memory() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let (source, hash, id) = source(&rig, two("source")).await;
    for fallback in ["Hold", "Fail", "ColdStart"] {
        for point in [
            "runsc::create::container_registered",
            "runsc::fill::starting",
            "runsc::fill::started",
        ] {
            let what = format!("{fallback}, {point}");
            let clone = rig
                .granted(&id, two("clone").annotation(ANNOTATION_FALLBACK, fallback))
                .await
                .unwrap();
            let mut pod = rig.stack.run_sandbox(clone.clone()).await.unwrap();
            pod.add_container(&rig.stack, 0, 0).await.unwrap();
            rig.stack.arm_wrapper(point, "kill").unwrap();
            pod.add_container(&rig.stack, 1, 0).await.unwrap_err();
            assert!(!rig.stack.disarm_wrapper(), "{what} was passed");
            let registered_only = point == "runsc::create::container_registered";
            let again = pod.add_container(&rig.stack, 1, 1).await;
            println!("{what}: {:?}", again.as_ref().map_err(|e| format!("{e:#}")));
            let is_refused = |e: &anyhow::Error| format!("{e:#}").contains("was broken off");
            if again.as_ref().is_err_and(|e| !is_refused(e)) {
                // What containerd did to the container that was broken off has ended the sandbox. That was not the pod's:
                // its next one has the memory, whatever its fallback.
                wait::until("containerd to see the sandbox's end", LIMIT, async || {
                    let state = pod.status().await?.state();
                    anyhow::ensure!(state != PodSandboxState::SandboxReady, "{what}: {again:?}");
                    Ok(())
                })
                .await
                .unwrap();
                tokio::time::timeout(LIMIT, pod.stop()).await.unwrap().unwrap();
                let next = attempt(&rig.stack, &clone, 2, &what)
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error:#}"));
                assert_eq!(ask(&next, "/hash").await, hash, "{what}");
                delete(&next, &what).await;
                pod.remove().await.unwrap();
                continue;
            }
            if fallback == "Fail" && !registered_only {
                let words = format!("{:#}", again.unwrap_err());
                assert!(words.contains("was broken off"), "{what}: {words}");
                delete(&pod, &what).await;
                continue;
            }
            again.unwrap_or_else(|error| panic!("{what}: {error:#}"));
            if !registered_only {
                // The other one has ended with the sandbox that it was started in.
                wait::until("the other container to end", LIMIT, async || {
                    let state = pod.container_status().await?.state();
                    anyhow::ensure!(state == ContainerState::ContainerExited, "{state:?}");
                    Ok(())
                })
                .await
                .unwrap();
                pod.restart_container(&rig.stack, 0, 1).await.unwrap();
            }
            pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
            let found = ask(&pod, "/hash").await;
            let cold = fallback == "ColdStart" && !registered_only;
            assert_eq!(found != hash, cold, "{what}");
            let output = pod.exec_in(1, &["echo", "here"], LIMIT).await.unwrap();
            assert_eq!(output.stdout, "here\n", "{what}");
            delete(&pod, &what).await;
        }
    }
    assert_eq!(ask(&source, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// The sandbox is lost and the pod is not: it is made anew, and has the memory that it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_hibernated_pod_outlives_its_sandbox_again_and_again() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let (_source, hash, id) = source(&rig, spec("source")).await;
    let clone = rig.granted(&id, spec("clone")).await.unwrap();
    let mut pod = rig.run_pod(clone.clone()).await.unwrap();
    for round in 1..4 {
        let said = round.to_string();
        http::post(address(&pod), "/history", &said, LIMIT).await.unwrap();
        rig.hibernate(&pod).await.unwrap();
        for (process, part) in memory::processes(&pod) {
            if part == Part::Shim {
                process.signal(Signal::SIGKILL);
            }
        }
        wait::until("containerd to see the end", LIMIT, async || {
            let state = pod.status().await?.state();
            anyhow::ensure!(state == PodSandboxState::SandboxNotready, "{state:?}");
            // One that is stopped before is running for ever, as far as containerd knows.
            let state = pod.container_status().await?.state();
            anyhow::ensure!(state == ContainerState::ContainerExited, "{state:?}");
            Ok(())
        })
        .await
        .unwrap();
        // As kubelet: the old one is stopped, and removed when there is a newer one.
        let old = pod;
        tokio::time::timeout(LIMIT, old.stop()).await.unwrap().unwrap();
        pod = attempt(&rig.stack, &clone, round, &said).await.unwrap();
        assert_eq!(ask(&pod, "/hash").await, hash, "round {round}");
        let history = ask(&pod, "/history").await;
        assert_eq!(history[round as usize - 1], said.as_str(), "{history}");
        rig.wait_able(&pod).await.unwrap();
    }
    rig.stop().await.unwrap();
}

/// Who is killed while the wrapper halts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Sentry,
    Shim,
    Containerd,
    Agent,
}

/// containerd's id of the sandbox that is being made for a pod: the wrapper has a record of it.
fn sandbox_of(stack: &Stack, uid: &str) -> Option<String> {
    let pods = std::fs::read_dir(stack.run_dir().join("pods")).ok()?;
    pods.flatten().find_map(|entry| {
        let record = std::fs::read(entry.path().join("record.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).ok()?;
        (record["pod"]["uid"] == uid).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// Kills it, with all that is made of it waiting.
async fn kill(stack: &Stack, agent: &mut Agent, uid: &str, victim: Victim, what: &str) {
    let part = match victim {
        Victim::Agent => {
            agent.kill().unwrap();
            return agent.restart(stack, None).await.unwrap();
        }
        Victim::Containerd => None,
        Victim::Sentry => Some(Part::Sentry),
        Victim::Shim => Some(Part::Shim),
    };
    let found: Vec<ProcessId> = match part {
        None => stack.containerd().into_iter().collect(),
        Some(part) => {
            let id = sandbox_of(stack, uid).unwrap_or_else(|| panic!("{what}: no record"));
            memory::processes_of(&stack.pod_cgroup(uid), &[&id])
                .into_iter()
                .filter_map(|(process, found)| (found == part).then_some(process))
                .collect()
        }
    };
    assert!(!found.is_empty(), "{what}: there is none");
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

async fn halted(halt: &Path, what: &str) {
    wait::until("the wrapper to come to the point", LIMIT, async || {
        anyhow::ensure!(halt.exists(), "{what}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_during_a_birth_the_next_try_succeeds() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let (source, hash, id) = source(&rig, spec("source")).await;
    let halt: PathBuf = rig.stack.dir().join("halted");
    // containerd, which takes half a minute to come back to a shim that does not answer, once.
    for (point, victims) in [
        ("runsc::fill::loading", &[Victim::Sentry, Victim::Shim][..]),
        ("runsc::fill::restored", &[Victim::Containerd, Victim::Agent]),
        ("runsc::fill::starting", &[Victim::Sentry, Victim::Agent]),
        ("runsc::fill::started", &[Victim::Agent]),
    ] {
        for &victim in victims {
            let what = format!("{victim:?} at {point}");
            let clone = rig.granted(&id, spec("clone")).await.unwrap();
            let uid = clone.uid.clone().unwrap();
            let line = format!("halt {}", halt.display());
            rig.stack.arm_wrapper(point, &line).unwrap();
            let Rig { stack, agent, .. } = &mut rig;
            let killed = async {
                halted(&halt, &what).await;
                kill(stack, agent, &uid, victim, &what).await;
                std::fs::remove_file(&halt).unwrap();
            };
            let (made, ()) = tokio::join!(attempt(stack, &clone, 0, &what), killed);
            if victim == Victim::Containerd {
                rig.stack.restart_containerd(Signal::SIGKILL).await.unwrap();
            }
            rig.reconnect().await.unwrap();
            let pod = match made {
                Ok(pod) => pod,
                Err(error) => {
                    println!("{what}: {error:#}");
                    clear(&rig.stack, &uid, point, &what).await;
                    gone(&rig.stack, &uid, &what).await;
                    attempt(&rig.stack, &clone, 1, &what)
                        .await
                        .unwrap_or_else(|error| panic!("{what}: {error:#}"))
                }
            };
            assert_eq!(ask(&pod, "/hash").await, hash, "{what}");
            assert_eq!(ask(&source, "/hash").await, hash, "{what}");
            delete(&pod, &what).await;
        }
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_deleted_while_it_is_being_filled() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let (source, hash, id) = source(&rig, two("source")).await;
    for containers in 0..=2 {
        let what = format!("with {containers} of 2 containers");
        let clone = rig.granted(&id, two("clone")).await.unwrap();
        let mut pod = rig.stack.run_sandbox(clone).await.unwrap();
        for index in 0..containers {
            pod.add_container(&rig.stack, index, 0).await.unwrap();
        }
        delete(&pod, &what).await;
        gone(&rig.stack, &pod.uid, &what).await;
        wait::until("the agent to forget it", LIMIT, async || {
            match rig.wake(&pod).await {
                Err(status) if reason(&status) == Some(Reason::PodNotFound) => Ok(()),
                other => anyhow::bail!("{what}: {other:?}"),
            }
        })
        .await
        .unwrap();
    }
    let pod = rig.run_clone(&id, two("clone")).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert_eq!(ask(&source, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// The wrapper's steps at a hibernated pod, and what comes to them.
const AT_A_SLEEPER: &[(&str, Verb)] = &[
    ("runsc::wake::asked", Verb::Exec),
    ("runsc::kill::locked", Verb::Stop),
    ("runsc::kill::noted", Verb::Stop),
    ("runsc::delete::locked", Verb::Stop),
    ("runsc::delete::deleted", Verb::Stop),
    ("runsc::delete::forgotten", Verb::Stop),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Exec,
    Stop,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapper_is_killed_at_every_step_at_a_hibernated_pod() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    for (point, verb) in AT_A_SLEEPER {
        let pod = rig.run_pod(spec("sleeper")).await.unwrap();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        let hash = ask(&pod, "/hash").await;
        rig.hibernate(&pod)
            .await
            .unwrap_or_else(|error| panic!("{point}: {error}"));
        rig.stack.arm_wrapper(point, "kill").unwrap();
        match verb {
            Verb::Exec => {
                let ended = pod.exec(&["true"], LIMIT).await;
                println!("{point}: {ended:?}");
                // It has been asked for, and comes.
                assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
            }
            Verb::Stop => {
                let stopped = tokio::time::timeout(LIMIT, pod.stop())
                    .await
                    .unwrap_or_else(|_| panic!("{point}: it hangs"));
                println!("{point}: {stopped:?}");
            }
        }
        if !rig.stack.disarm_wrapper() {
            delete(&pod, point).await;
            continue;
        }
        panic!("{point} was passed");
    }
    rig.stop().await.unwrap();
}
