//! The stack itself: pods of every runtime start, answer, and leave nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::{cgroup, mounts, process};
use dormouse_testkit::peer::Peer;
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{
    Agent, AgentOptions, Built, Cni, ContainerSpec, DORMOUSE_GVISOR, GVISOR, PodSpec, RUNC, Stack,
    StackOptions, http, memory,
};

const LIMIT: Duration = Duration::from_secs(60);

fn options() -> StackOptions {
    // The wrapper has tests of its own.
    StackOptions {
        wrapper: false,
        ..StackOptions::default()
    }
}

/// Everything that names the stack must be gone.
fn assert_nothing_left(dir: &Path, cgroup: &str, bridge: &str) {
    let inside = format!("{}/", dir.display());
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert!(mounts::below(dir).is_empty());
    assert!(cgroup::processes(cgroup).is_empty());
    for hierarchy in cgroup::hierarchies().unwrap() {
        assert!(
            !hierarchy.path(cgroup).exists(),
            "{cgroup} is still in {}",
            hierarchy.mount.display()
        );
    }
    let left = process::find(|argv| argv.iter().any(|word| word.contains(&inside)));
    assert!(left.is_empty(), "{left:?}");
    assert!(!Path::new("/sys/class/net").join(bridge).exists());
}

async fn life_of_a_pod(stack: &Stack, handler: &str) {
    let (_, host) = stack.bridge();
    // The bridge comes with the first pod, and so does its address.
    let first = stack
        .run_pod(
            PodSpec::new("first")
                .handler(handler)
                .container(ContainerSpec::shell("sh", "echo hello; sleep 600")),
        )
        .await
        .unwrap();
    let peer = Peer::listen(host.into(), None).await.unwrap();
    let guest = AgentGuest {
        mib: 8,
        connect: Some(peer.address()),
        tick_millis: 100,
        ..AgentGuest::default()
    };
    let began = Instant::now();
    let pod = stack.run_pod(guest.pod("agent").handler(handler)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    println!("{handler}: cold start to first answer {:?}", began.elapsed());

    let address = (pod.ip, 8080).into();
    let before = http::get(address, "/hash", LIMIT).await.unwrap().json().unwrap();
    assert_eq!(
        http::post(address, "/history", "one", LIMIT)
            .await
            .unwrap()
            .json()
            .unwrap()["length"],
        1
    );
    assert_eq!(
        http::get(address, "/say?text=hi", LIMIT)
            .await
            .unwrap()
            .json()
            .unwrap()["echo"],
        "hi"
    );
    assert_eq!(peer.links().len(), 1);
    assert_eq!(peer.links()[0].ended, None);
    let status = http::get(address, "/status", LIMIT)
        .await
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(status["file_lines"], 1);
    assert_eq!(status["connection"]["alive"], true);
    assert!(
        http::get(address, "/touch", LIMIT).await.unwrap().json().unwrap()["ms"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert_eq!(
        http::get(address, "/hash", LIMIT).await.unwrap().json().unwrap(),
        before
    );

    let out = first
        .exec(&["sh", "-c", "echo in; echo err >&2; exit 3"], LIMIT)
        .await
        .unwrap();
    assert_eq!((out.code, out.stdout.trim(), out.stderr.trim()), (3, "in", "err"));
    assert!(first.logs().unwrap().contains("hello"));
    assert!(pod.stats().await.unwrap().cpu.is_some());
    assert!(pod.netns.exists());

    let footprint = memory::footprint(&pod).unwrap();
    println!("{handler}: {footprint:?}");
    assert!(footprint.cgroup > 8 << 20);
    assert!(footprint.parts[&memory::Part::Shim].processes >= 1);
    if handler != RUNC {
        assert_eq!(footprint.parts[&memory::Part::Sentry].processes, 1);
        assert_eq!(footprint.parts[&memory::Part::Wait].processes, 2);
        assert!(
            pod.exec(&["dmesg"], LIMIT)
                .await
                .unwrap()
                .stdout
                .contains("gVisor")
        );
        let socket = stack.runsc_root().join(format!("runsc-{}.sock", pod.id));
        assert!(socket.exists(), "{} is not there", socket.display());
    }

    let netns = pod.netns.clone();
    pod.remove().await.unwrap();
    assert!(!netns.exists());
    assert!(!pod.cgroup_dir("memory").unwrap().exists());
    assert!(
        memory::processes(&pod).is_empty(),
        "{:?}",
        memory::processes(&pod)
    );
    // `first` is left to the stack's own removal.
}

#[tokio::test]
async fn pods_of_every_runtime_live_and_leave_nothing() {
    let stack = Stack::start(options()).await.unwrap();
    let (dir, cgroup, bridge) = (
        stack.dir().to_path_buf(),
        stack.cgroup_root().to_owned(),
        stack.bridge().0,
    );
    life_of_a_pod(&stack, RUNC).await;
    stack.stop().await.unwrap();
    assert_nothing_left(&dir, &cgroup, &bridge);
}

#[tokio::test]
async fn gvisor_pods_live_and_leave_nothing() {
    let stack = Stack::start(options()).await.unwrap();
    let (dir, cgroup, bridge) = (
        stack.dir().to_path_buf(),
        stack.cgroup_root().to_owned(),
        stack.bridge().0,
    );
    life_of_a_pod(&stack, GVISOR).await;
    stack.stop().await.unwrap();
    assert_nothing_left(&dir, &cgroup, &bridge);
}

#[tokio::test]
async fn two_stacks_run_at_once() {
    let (a, b) = tokio::join!(Stack::start(options()), Stack::start(options()));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.dir(), b.dir());
    let guest = AgentGuest::default();
    let (p, q) = tokio::join!(
        a.run_pod(guest.pod("p").handler(GVISOR)),
        b.run_pod(guest.pod("q").handler(GVISOR))
    );
    let (p, q) = (p.unwrap(), q.unwrap());
    assert_ne!(p.ip, q.ip);
    p.wait_http(8080, "/answer", LIMIT).await.unwrap();
    q.wait_http(8080, "/answer", LIMIT).await.unwrap();
    a.stop().await.unwrap();
    // The other one is none the worse for it.
    q.wait_http(8080, "/answer", LIMIT).await.unwrap();
    b.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_stack_leaves_nothing() {
    let stack = Stack::start(options()).await.unwrap();
    let (dir, cgroup, bridge) = (
        stack.dir().to_path_buf(),
        stack.cgroup_root().to_owned(),
        stack.bridge().0,
    );
    let pod = stack
        .run_pod(AgentGuest::default().pod("p").handler(GVISOR))
        .await
        .unwrap();
    // The worst case: frozen tasks cannot be killed on cgroup v1.
    let freezer = pod.cgroup_dir("freezer").unwrap().join("freezer.state");
    if freezer.exists() {
        std::fs::write(freezer, "FROZEN").unwrap();
    }
    drop(stack);
    assert_nothing_left(&dir, &cgroup, &bridge);
}

#[tokio::test]
async fn ptp_pods_and_grouped_shims() {
    let options = StackOptions {
        cni: Cni::Ptp,
        shim_grouping: true,
        ..options()
    };
    let stack = Stack::start(options).await.unwrap();
    let pod = stack
        .run_pod(AgentGuest::default().pod("p").handler(GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let footprint = memory::footprint(&pod).unwrap();
    println!("grouped: {footprint:?}");
    assert_eq!(footprint.parts[&memory::Part::Shim].processes, 1);
    let (dir, cgroup, bridge) = (
        stack.dir().to_path_buf(),
        stack.cgroup_root().to_owned(),
        stack.bridge().0,
    );
    stack.stop().await.unwrap();
    assert_nothing_left(&dir, &cgroup, &bridge);
}

#[tokio::test]
async fn containerd_may_restart_under_pods() {
    let began = Instant::now();
    let mut stack = Stack::start(options()).await.unwrap();
    println!("stack up in {:?}", began.elapsed());
    let pod = stack
        .run_pod(AgentGuest::default().pod("p").handler(GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    stack
        .restart_containerd(nix::sys::signal::Signal::SIGKILL)
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    println!("with a pod, containerd restarted: {:?}", began.elapsed());
    stack.stop().await.unwrap();
    println!("and down again: {:?}", began.elapsed());
}

/// The plumbing of the wrapper's handler, with runsc itself in the wrapper's place.
#[tokio::test]
async fn the_wrappers_handler_passes_only_listed_annotations() {
    let wrapper_binary = Some(Built::find().unwrap().part("runsc"));
    let stack = Stack::start(StackOptions {
        wrapper_binary,
        ..StackOptions::default()
    })
    .await
    .unwrap();
    let spec = AgentGuest::default()
        .pod("p")
        .annotation("dormouse.dev/managed", "true")
        .annotation("dev.gvisor.flag.allow-connected-on-save", "true")
        .annotation("dev.gvisor.flag.debug", "true");
    let pod = stack.run_pod(spec).await.unwrap();
    assert_eq!(pod.handler, DORMOUSE_GVISOR);
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();

    let bundle = stack
        .dir()
        .join("state/io.containerd.runtime.v2.task/k8s.io")
        .join(&pod.id);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    let annotations = config["annotations"].as_object().unwrap();
    assert_eq!(annotations["dormouse.dev/managed"], "true");
    assert_eq!(annotations["dev.gvisor.flag.allow-connected-on-save"], "true");
    assert!(!annotations.contains_key("dev.gvisor.flag.debug"));
    assert_eq!(annotations["io.kubernetes.cri.sandbox-uid"], pod.uid);

    let own: serde_json::Value =
        serde_json::from_slice(&std::fs::read(stack.dir().join("w/dormouse-runsc.json")).unwrap()).unwrap();
    assert_eq!(own["run_dir"], stack.run_dir().display().to_string());
    let exe = std::fs::read_link(format!("/proc/{}/exe", memory::sentry(&pod).unwrap().pid)).unwrap();
    println!("sentry runs {}", exe.display());
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_ends_at_once_is_reported_with_its_words() {
    let stack = Stack::start(options()).await.unwrap();
    // `ls --config FILE` refuses the option.
    let options = AgentOptions {
        binary: Some("/bin/ls".into()),
        ..AgentOptions::default()
    };
    let error = Agent::start(&stack, options, |paths| format!("# {}", paths.socket.display()))
        .await
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("the agent ended") && text.contains("--config"),
        "{text}"
    );
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn swap_comes_and_goes() {
    let file = TestSwap::file(32 << 20, 1).unwrap();
    let zram = TestSwap::zram(32 << 20, "lz4", 2).unwrap();
    let paths = [file.path.clone(), zram.path.clone()];
    let active = memory::swaps().unwrap();
    for path in &paths {
        assert!(
            active.iter().any(|swap| &swap.path == path),
            "{path:?} is not in {active:?}"
        );
    }
    assert!(zram.zram_stat().unwrap().used > 0);
    drop((file, zram));
    for path in &paths {
        assert!(!memory::swaps().unwrap().iter().any(|swap| &swap.path == path));
        assert!(!path.exists());
    }
}
