//! The index of pods and its events, on a real containerd with runc and gVisor.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dormouse_cri::{ContainerRequest, ContainerState, Index, PodEvent, PodRequest, RunError, Runtime};
use dormouse_testkit::{BUSYBOX, ContainerSpec, GVISOR, PodSpec, RUNC, Stack, StackOptions};
use nix::sys::signal::Signal;
use tokio::sync::mpsc::Receiver;

/// How long an event may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Reads events until one fits; returns it and all before it.
async fn until(
    events: &mut Receiver<PodEvent>,
    what: &str,
    fits: impl Fn(&PodEvent) -> bool,
) -> Result<(PodEvent, Vec<PodEvent>)> {
    let mut before = Vec::new();
    let end = Instant::now() + SOON;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, events.recv()).await {
            Ok(Some(event)) if fits(&event) => return Ok((event, before)),
            Ok(Some(event)) => before.push(event),
            Ok(None) => bail!("the index ended before {what}; seen: {before:#?}"),
            Err(_) => bail!("no {what} within {SOON:?}; seen: {before:#?}"),
        }
    }
}

fn runtime_of(stack: &Stack) -> Result<Runtime> {
    Ok(Runtime::lazy(stack.socket().to_str().context("socket path")?)?)
}

fn request(stack: &Stack, name: &str, handler: &str) -> PodRequest {
    PodRequest {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        uid: uuid::Uuid::now_v7().to_string(),
        handler: handler.to_owned(),
        log_root: stack.dir().join("podlogs"),
        memory_limit: Some(256 << 20),
        annotations: [("dormouse.dev/managed".to_owned(), "true".to_owned())].into(),
        containers: vec![ContainerRequest {
            name: "main".to_owned(),
            image: BUSYBOX.to_owned(),
            command: [
                "/bin/sh",
                "-c",
                "trap 'exit 0' TERM; while true; do sleep 1; done",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..ContainerRequest::default()
        }],
        ..PodRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_life_is_told_in_order() -> Result<()> {
    let stack = Stack::start(StackOptions::default()).await?;
    let runtime = runtime_of(&stack)?;
    for handler in [RUNC, GVISOR] {
        let (index, mut events) = Index::start(runtime.clone());
        until(&mut events, "Synced", |e| *e == PodEvent::Synced).await?;
        let pod = runtime.run_pod(&request(&stack, "life", handler)).await?;
        let (_, before) = until(
            &mut events,
            "a running container",
            |e| matches!(e, PodEvent::Added(p) | PodEvent::Changed(p) if p.running().count() == 1),
        )
        .await?;
        ensure!(
            before.iter().all(|e| e.sandbox_id() == Some(&pod.sandbox_id)),
            "events of other pods: {before:#?}"
        );
        let seen = index
            .get(&pod.sandbox_id)
            .context("the pod is not in the index")?;
        ensure!(seen.ready && seen.full_name() == "default/life" && seen.uid == pod.uid);
        ensure!(seen.addresses == pod.addresses && !pod.addresses.is_empty());
        ensure!(
            seen.cgroup_parent == format!("/dormouse/pod{}", pod.uid),
            "{}",
            seen.cgroup_parent
        );
        ensure!(
            seen.netns.as_ref().is_some_and(|path| path.exists()),
            "{:?}",
            seen.netns
        );
        ensure!(seen.annotations["dormouse.dev/managed"] == "true");
        let main = &seen.containers[0];
        for pid in [seen.sandbox_pid, main.pid] {
            ensure!(
                std::path::Path::new(&format!("/proc/{pid}")).exists(),
                "no process {pid}"
            );
        }
        if handler == GVISOR {
            ensure!(
                seen.runtime_roots[0] == stack.runsc_root().join("k8s.io")
                    || seen.runtime_roots[0] == stack.runsc_root(),
                "{:?}",
                seen.runtime_roots
            );
            ensure!(seen.runtime_roots[0].is_dir());
        }
        ensure!(
            index
                .by_container(&main.id)
                .is_some_and(|p| p.sandbox_id == pod.sandbox_id)
        );

        let output = runtime
            .exec_sync(&main.id, &["/bin/sh", "-c", "echo hi"], SOON)
            .await?;
        ensure!(output.exit_code == 0 && output.stdout == b"hi\n", "{output:?}");
        let (started, _) = until(&mut events, "ExecStarted", |e| {
            matches!(e, PodEvent::ExecStarted { .. })
        })
        .await?;
        let PodEvent::ExecStarted {
            exec_id,
            container_id,
            ..
        } = started
        else {
            bail!("{started:?}")
        };
        ensure!(container_id == main.id);
        until(
            &mut events,
            "ExecEnded",
            |e| matches!(e, PodEvent::ExecEnded { exec_id: id, .. } if *id == exec_id),
        )
        .await?;

        runtime.stop_pod(&pod.sandbox_id, Duration::from_secs(10)).await?;
        until(&mut events, "ContainerExited", |e| {
            matches!(e, PodEvent::ContainerExited { container_id, exit_status: 0, .. } if *container_id == main.id)
        })
        .await?;
        let (stopped, _) = until(
            &mut events,
            "an unready pod",
            |e| matches!(e, PodEvent::Changed(p) if !p.ready),
        )
        .await?;
        let PodEvent::Changed(stopped) = stopped else {
            bail!("{stopped:?}")
        };
        ensure!(stopped.containers[0].state == ContainerState::Exited);
        runtime.remove_pod(&pod.sandbox_id).await?;
        until(
            &mut events,
            "Removed",
            |e| matches!(e, PodEvent::Removed { uid, .. } if *uid == pod.uid),
        )
        .await?;
        ensure!(index.pods().is_empty());
        ensure!(!pod.log_directory.exists(), "the log directory stays");
    }
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_containerd_what_was_missed_is_told() -> Result<()> {
    let mut stack = Stack::start(StackOptions::default()).await?;
    let runtime = runtime_of(&stack)?;
    let stays = runtime.run_pod(&request(&stack, "stays", RUNC)).await?;
    let (index, mut events) = Index::start(runtime.clone());
    until(&mut events, "Synced", |e| *e == PodEvent::Synced).await?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        stack.restart_containerd(signal).await?;
        until(&mut events, "RuntimeLost", |e| *e == PodEvent::RuntimeLost).await?;
        until(&mut events, "RuntimeBack", |e| *e == PodEvent::RuntimeBack).await?;
        let (_, between) = until(&mut events, "Synced", |e| *e == PodEvent::Synced).await?;
        ensure!(
            between
                .iter()
                .all(|e| !matches!(e, PodEvent::Added(_) | PodEvent::Removed { .. })),
            "{between:#?}"
        );
        // The same client and index go on.
        let pod = runtime.run_pod(&request(&stack, "later", RUNC)).await?;
        until(
            &mut events,
            "Added",
            |e| matches!(e, PodEvent::Added(p) if p.uid == pod.uid),
        )
        .await?;
        runtime.remove_pod(&pod.sandbox_id).await?;
        until(
            &mut events,
            "Removed",
            |e| matches!(e, PodEvent::Removed { uid, .. } if *uid == pod.uid),
        )
        .await?;
    }
    let kept = index
        .get(&stays.sandbox_id)
        .context("the pod is not in the index")?;
    ensure!(kept.ready && kept.containers[0].running);
    runtime.remove_pod(&stays.sandbox_id).await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_starts_late_knows_as_much() -> Result<()> {
    let stack = Stack::start(StackOptions::default()).await?;
    let runtime = runtime_of(&stack)?;
    let (early, mut events) = Index::start(runtime.clone());
    until(&mut events, "Synced", |e| *e == PodEvent::Synced).await?;
    let mut pods = Vec::new();
    for (name, handler) in [("a", RUNC), ("b", GVISOR)] {
        let spec = PodSpec::new(name)
            .handler(handler)
            .container(ContainerSpec::shell("main", "while true; do sleep 1; done"));
        pods.push(stack.run_pod(spec).await?);
        until(&mut events, "a running container", |e| {
            matches!(e, PodEvent::Added(p) | PodEvent::Changed(p) if p.name == name && p.running().count() == 1)
        })
        .await?;
    }
    let began = Instant::now();
    let (late, mut events) = Index::start(runtime.clone());
    let (_, added) = until(&mut events, "Synced", |e| *e == PodEvent::Synced).await?;
    println!(
        "an index of {} pods was in step after {:?}",
        pods.len(),
        began.elapsed()
    );
    ensure!(added.len() == pods.len(), "{added:#?}");
    for pod in early.pods() {
        ensure!(
            late.get(&pod.sandbox_id).as_ref() == Some(&pod),
            "{pod:#?} {:#?}",
            late.get(&pod.sandbox_id)
        );
    }
    for pod in pods {
        pod.remove().await?;
    }
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_run_leaves_nothing() -> Result<()> {
    let stack = Stack::start(StackOptions::default()).await?;
    let runtime = runtime_of(&stack)?;
    let mut no_image = request(&stack, "x", RUNC);
    no_image.containers[0].image = "localhost/none:1".to_owned();
    ensure!(matches!(
        runtime.run_pod(&no_image).await,
        Err(RunError::NoImage { .. })
    ));
    let no_handler = request(&stack, "x", "no-such-handler");
    ensure!(matches!(
        runtime.run_pod(&no_handler).await,
        Err(RunError::NoHandler { .. })
    ));
    let mut no_command = request(&stack, "x", GVISOR);
    no_command.containers[0].command = vec!["/no/such/program".to_owned()];
    ensure!(matches!(
        runtime.run_pod(&no_command).await,
        Err(RunError::Call(_))
    ));
    let (index, mut events) = Index::start(runtime.clone());
    until(&mut events, "Synced", |e| *e == PodEvent::Synced).await?;
    ensure!(index.pods().is_empty(), "{:#?}", index.pods());
    ensure!(!no_command.log_directory().exists());
    stack.stop().await
}
