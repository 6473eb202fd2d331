//! Clones: one snapshot in many pods. What is the same in them and what is not is one contract (`docs/guide/clones.md`);
//! each of its lines is tested here.

use std::path::{Path, PathBuf};

use dormouse_core::{
    ANNOTATION_FALLBACK, ANNOTATION_IDENTITY, ANNOTATION_POST_RESTORE_EXEC, ANNOTATION_POST_RESTORE_SIGNAL,
    ANNOTATION_RESTORE_FROM, Reason, Rung,
};
use dormouse_rpc::v1;
use dormouse_testkit::guest::{AgentGuest, WorldGuest};
use dormouse_testkit::host::wait;
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::{Rig, reason};
use dormouse_testkit::{ContainerSpec, Pod, PodSpec, http};
use k8s_cri::v1::{ContainerState, ContainerStatusRequest};
use serde_json::Value;

use crate::hibernate::connected;
use crate::matrix::Projected;
use crate::support::{LIMIT, address, ask, at_work, swap};

/// What the command after a restore leaves in the guest.
const HOOK: &str = r#"["/bin/sh","-c","env > /tmp/hook; echo ran >> /tmp/hooks"]"#;

fn spec(name: &str) -> PodSpec {
    let mut spec = AgentGuest::mib(16)
        .pod(name)
        .annotation(ANNOTATION_IDENTITY, "true");
    if let Some(container) = spec.containers.first_mut() {
        container.env.push(("WHO".into(), name.into()));
    }
    spec
}

/// What a file in the guest holds.
async fn file(pod: &Pod, path: &str) -> String {
    let output = pod.exec(&["cat", path], LIMIT).await.unwrap();
    assert_eq!(output.code, 0, "{path} in {}: {}", pod.name, output.stderr);
    output.stdout.trim().to_owned()
}

async fn snapshot(rig: &Rig, pod: &Pod) -> String {
    rig.snapshot(pod).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_its_source_under_a_name_and_an_address_of_its_own() {
    let _swap = swap();
    let (rig, source) = at_work(spec("source")).await;
    http::post(address(&source), "/history", "before", LIMIT)
        .await
        .unwrap();
    let (hash, files, me) = (
        ask(&source, "/hash").await,
        ask(&source, "/file").await,
        ask(&source, "/self").await,
    );
    let boot = file(&source, "/proc/sys/kernel/random/boot_id").await;
    let id = snapshot(&rig, &source).await;
    let taken = ask(&source, "/self").await;
    let asked = |name: &str| {
        spec(name)
            .annotation(ANNOTATION_POST_RESTORE_EXEC, HOOK)
            .annotation(ANNOTATION_POST_RESTORE_SIGNAL, "SIGUSR1")
    };
    let (one, two) = tokio::join!(rig.run_clone(&id, asked("one")), rig.run_clone(&id, asked("two")));
    let clones = [one.unwrap(), two.unwrap()];
    let mut drawn: Vec<Value> = vec![ask(&source, "/self").await["urandom"].clone()];
    for clone in &clones {
        let view = ask(clone, "/self").await;
        // The same: what the processes have in memory and on their disk.
        assert_eq!(ask(clone, "/hash").await, hash);
        assert_eq!(ask(clone, "/history").await[0], "before");
        assert_eq!(ask(clone, "/file").await, files);
        assert_eq!((&view["nonce"], &view["pid"]), (&me["nonce"], &me["pid"]));
        assert_eq!(
            view["environ"], me["environ"],
            "also what a new pod would have in its environment"
        );
        assert_eq!(
            view["generated"], taken["generated"],
            "a generator in memory goes on where it was"
        );
        assert_eq!(file(clone, "/proc/sys/kernel/random/boot_id").await, boot);
        // Its own: address, host name, randomness, and the clock, which is the node's.
        assert_ne!(clone.ip, source.ip);
        assert_ne!(view["mac"], me["mac"]);
        assert_eq!(view["hostname"], clone.name);
        assert_eq!(file(clone, "/etc/hostname").await, clone.name);
        assert!(view["time"].as_f64() > taken["time"].as_f64());
        drawn.push(view["urandom"].clone());
        // What it is told of that, before it counts as started.
        assert_eq!(view["signals"], 1);
        assert_eq!(file(clone, "/tmp/hooks").await, "ran");
        let told = file(clone, "/tmp/hook").await;
        for line in [
            format!("DORMOUSE_POD_NAME={}", clone.name),
            format!("DORMOUSE_POD_UID={}", clone.uid),
            format!("DORMOUSE_POD_IP={}", clone.ip),
            format!("DORMOUSE_SNAPSHOT_ID={id}"),
            "WHO=".to_owned() + &clone.name,
        ] {
            assert!(told.lines().any(|l| l == line), "{line} is not in {told}");
        }
        let identity: Value =
            serde_json::from_str(&file(clone, "/run/dormouse/identity.json").await).unwrap();
        assert_eq!(identity["name"], clone.name);
        assert_eq!(identity["addresses"][0], clone.ip.to_string());
        assert_eq!(identity["snapshot"], id);
        assert!(clone.logs().is_ok());
        // A pod like any other: it hibernates, and is woken by a packet.
        assert!(rig.hibernate(clone).await.unwrap().moved);
        assert_eq!(ask(clone, "/hash").await, hash);
        rig.wait_rung(clone, Rung::Running, LIMIT).await.unwrap();
        let parent = rig.get(clone).await.unwrap().snapshot_id;
        println!(
            "{} was restored from {id}, and from {parent} after its own hibernation",
            clone.name
        );
    }
    drawn.sort_by_key(ToString::to_string);
    drawn.dedup();
    assert_eq!(drawn.len(), 3, "the kernel's randomness is nobody else's");
    let identity = file(&source, "/run/dormouse/identity.json").await;
    assert!(identity.contains(&source.uid) && !identity.contains("snapshot"));
    assert_eq!(ask(&source, "/hash").await, hash, "the source goes on");
    rig.stop().await.unwrap();
}

/// A pod that holds one of everything, with volumes and files of the node of its own.
fn world(name: &str, node: &Path) -> PodSpec {
    let own = node.join(name);
    std::fs::create_dir_all(own.join("data")).unwrap();
    std::fs::write(own.join("data/who"), name).unwrap();
    // As kubelet makes it.
    std::fs::write(
        own.join("hosts"),
        format!("127.0.0.1 localhost\n192.0.2.1 {name}.example\n"),
    )
    .unwrap();
    let mut config = Projected::new(&own.join("config"));
    config.rotate(&format!("token of {name}"));
    let container = WorldGuest::default()
        .folder("volume", "/shared")
        .container()
        .mount(own.join("data"), "/data", false)
        .mount(own.join("config"), "/config", true)
        .mount(own.join("hosts"), "/etc/hosts", false);
    let mut spec = PodSpec::new(name)
        .empty_dir("shared", "/shared")
        .container(container);
    spec.name_servers = vec![format!("192.0.2.{}", name.len())];
    connected(spec)
}

async fn text(pod: &Pod, path: &str) -> String {
    let answer = ask(pod, &format!("/read?path={path}")).await;
    answer["text"]
        .as_str()
        .unwrap_or_else(|| panic!("{path}: {answer}"))
        .to_owned()
}

/// Everything that was prepared before the snapshot is there.
async fn holds_everything(pod: &Pod, armed: u64) {
    let verdicts = ask(pod, "/check").await;
    let verdicts = verdicts.as_object().unwrap();
    let wrong: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict != "ok").collect();
    assert!(wrong.is_empty(), "{}: {wrong:#?}", pod.name);
    assert_eq!(verdicts.len() as u64, armed, "{}", pod.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_what_its_source_held_and_the_volumes_and_routes_of_its_own() {
    let _swap = swap();
    let node = tempfile::tempdir_in("/var/tmp").unwrap();
    let (mut rig, source) = at_work(world("source", node.path())).await;
    let write = async |pod: &Pod, text: &str| {
        let script =
            format!("echo {text} > /shared/said; echo {text} > /var/tmp/said; echo {text} > /data/said");
        let output = pod.exec(&["sh", "-c", &script], LIMIT).await.unwrap();
        assert_eq!(output.code, 0, "{}", output.stderr);
    };
    write(&source, "source").await;
    let armed = ask(&source, "/arm").await["armed"].as_u64().unwrap();
    let clock = ask(&source, "/clock").await;
    let id = snapshot(&rig, &source).await;
    rig.stack.set_routes(&["198.51.100.0/24"]).await.unwrap();
    let clone = rig.run_clone(&id, world("clone", node.path())).await.unwrap();
    // The processes and all that they held: threads, open and unlinked files, pipes, timers, signals, sockets within.
    holds_everything(&clone, armed).await;
    holds_everything(&source, armed).await;
    let now = ask(&clone, "/clock").await;
    for name in ["clock", "monotonic"] {
        assert!(
            now[name].as_f64() > clock[name].as_f64(),
            "{name}: {clock}, then {now}"
        );
    }
    // What the containers wrote, and volumes within the sandbox: the source's, from then on its own.
    for path in ["/shared/said", "/var/tmp/said"] {
        assert_eq!(text(&clone, path).await, "source\n");
    }
    write(&clone, "clone").await;
    for pod in [&source, &clone] {
        for path in ["/shared/said", "/var/tmp/said", "/data/said"] {
            assert_eq!(text(pod, path).await, format!("{}\n", pod.name), "{path}");
        }
        // Volumes of the node, and what the node puts into /etc.
        assert_eq!(text(pod, "/data/who").await, pod.name);
        assert_eq!(text(pod, "/config/token").await, format!("token of {}", pod.name));
        let hosts = text(pod, "/etc/hosts").await;
        assert!(hosts.contains(&format!("{}.example", pod.name)), "{hosts}");
        let resolver = text(pod, "/etc/resolv.conf").await;
        let server = format!("nameserver 192.0.2.{}\n", pod.name.len());
        assert!(resolver.contains(&server), "{resolver}");
        // 198.51.100.0, as the kernel writes it.
        let routes = text(pod, "/proc/net/route").await;
        assert_eq!(
            routes.contains("006433C6"),
            pod.name == "clone",
            "{}: {routes}",
            pod.name
        );
        assert!(
            routes
                .lines()
                .any(|l| l.split_whitespace().nth(1) == Some("00000000")),
            "{routes}"
        );
    }
    // They are rotated like any pod's.
    let mut config = Projected::at(&node.path().join("clone/config"), 2);
    config.rotate("rotated");
    assert_eq!(text(&clone, "/config/token").await, "rotated");
    assert_eq!(text(&source, "/config/token").await, "token of source");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_without_a_grant_restores_nothing() {
    let _swap = swap();
    let (rig, source) = at_work(spec("source")).await;
    let id = snapshot(&rig, &source).await;
    let hash = ask(&source, "/hash").await;
    // By itself it is refused, in words that a `kubectl describe pod` shows.
    let asking = spec("thief").annotation(ANNOTATION_RESTORE_FROM, &id);
    let refused = rig.stack.run_pod(asking.clone()).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("RestoreNotGranted"),
        "{refused:#}"
    );
    // With a fallback it is a pod like any other.
    let cold = rig
        .stack
        .run_pod(asking.annotation(ANNOTATION_FALLBACK, "ColdStart"))
        .await
        .unwrap();
    cold.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&cold, "/hash").await, hash);
    // A grant is for one pod, in one namespace.
    let granted = rig.granted(&id, spec("one")).await.unwrap();
    let other = PodSpec {
        uid: None,
        ..granted.clone()
    };
    assert!(rig.stack.run_pod(other).await.is_err());
    let elsewhere = PodSpec {
        namespace: "elsewhere".into(),
        ..spec("elsewhere")
    };
    let refused = rig.granted(&id, elsewhere).await.unwrap_err();
    let status = refused.downcast_ref::<tonic::Status>().unwrap();
    assert_eq!(reason(status), Some(Reason::SnapshotNamespaceMismatch));
    // And it is for these containers.
    let mut renamed = spec("renamed");
    renamed.containers[0].name = "other".into();
    let refused = rig.granted(&id, renamed).await.unwrap_err();
    let status = refused.downcast_ref::<tonic::Status>().unwrap();
    assert_eq!(reason(status), Some(Reason::ContainersMismatch));
    let one = rig.run_pod(granted).await.unwrap();
    assert_eq!(ask(&one, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_of_a_clone_have_run_already() {
    let _swap = swap();
    let with_init = |name: &str| {
        let mut spec = spec(name);
        // Once more would show in the clone's own root directory, which is the source's.
        let init = ContainerSpec::shell("init", "echo once");
        spec.containers.insert(0, init);
        spec
    };
    let (rig, source) = at_work(with_init("source")).await;
    let hash = ask(&source, "/hash").await;
    let id = snapshot(&rig, &source).await;
    let request = v1::GetSnapshotRequest { id: id.clone() };
    let described = rig
        .client
        .clone()
        .get_snapshot(request)
        .await
        .unwrap()
        .into_inner();
    let containers: Vec<(&str, bool)> = described
        .containers
        .iter()
        .map(|c| (c.name.as_str(), c.ended))
        .collect();
    assert_eq!(containers, [("", false), ("init", true), ("agent", false)]);
    let clone = rig.run_clone(&id, with_init("clone")).await.unwrap();
    assert_eq!(ask(&clone, "/hash").await, hash);
    let init = clone.containers[0].clone();
    wait::until("the init container to have ended", LIMIT, async || {
        let status = rig
            .stack
            .cri()
            .container_status(ContainerStatusRequest {
                container_id: init.clone(),
                verbose: false,
            })
            .await?
            .into_inner()
            .status
            .unwrap_or_default();
        anyhow::ensure!(
            status.state() == ContainerState::ContainerExited,
            "{:?}",
            status.state()
        );
        assert_eq!(status.exit_code, 0);
        Ok(())
    })
    .await
    .unwrap();
    // A clone of a clone knows of it, too.
    let second = rig
        .run_clone(&snapshot(&rig, &clone).await, with_init("second"))
        .await
        .unwrap();
    assert_eq!(ask(&second, "/hash").await, hash);
    clone.stop().await.unwrap();
    clone.remove().await.unwrap();
    rig.stop().await.unwrap();
}

fn image(rig: &Rig, id: &str) -> PathBuf {
    rig.agent.paths().state_dir.join("snapshots/snapshots").join(id)
}

/// Damages the snapshot's pages behind the store's back, so that nobody has noticed yet.
fn damage(rig: &Rig, id: &str) {
    let pages = image(rig, id).join("pages.img");
    let file = std::fs::OpenOptions::new().write(true).open(&pages).unwrap();
    file.set_len(4096).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_cannot_be_filled_starts_cold_or_not_at_all() {
    let _swap = swap();
    let (rig, source) = at_work(spec("source")).await;
    let hash = ask(&source, "/hash").await;
    let id = snapshot(&rig, &source).await;
    let cold = rig
        .granted(&id, spec("cold").annotation(ANNOTATION_FALLBACK, "ColdStart"))
        .await
        .unwrap();
    let held = rig.granted(&id, spec("held")).await.unwrap();
    let bare = snapshot(&rig, &source).await;
    let (bare_cold, bare_held) = (
        rig.granted(
            &bare,
            spec("bare-cold").annotation(ANNOTATION_FALLBACK, "ColdStart"),
        )
        .await
        .unwrap(),
        rig.granted(&bare, spec("bare-held")).await.unwrap(),
    );
    let failing = spec("failing")
        .annotation(ANNOTATION_FALLBACK, "ColdStart")
        .annotation(ANNOTATION_POST_RESTORE_EXEC, r#"["/bin/false"]"#);
    let failing = rig.run_clone(&id, failing).await.unwrap();
    failing.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(
        ask(&failing, "/hash").await,
        hash,
        "what follows on a restore is part of it"
    );
    damage(&rig, &id);
    let refused = rig.stack.run_pod(held).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("RuntimeCallFailed"),
        "{refused:#}"
    );
    let cold = rig.run_pod(cold).await.unwrap();
    cold.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&cold, "/hash").await, hash);
    // It is a pod like any other from here on.
    let own = ask(&cold, "/hash").await;
    assert!(rig.hibernate(&cold).await.unwrap().moved);
    assert_eq!(ask(&cold, "/hash").await, own);
    let log = rig.agent.log();
    assert!(log.contains("reason=ColdStarted"), "{log}");
    // Where the sandbox itself cannot be restored its `start` goes well all the same; it is its containers that are refused.
    std::fs::remove_file(image(&rig, &bare).join("pages.img")).unwrap();
    let refused = rig.stack.run_pod(bare_held).await.unwrap_err();
    let words = format!("{refused:#}");
    assert!(
        words.contains("start container agent") && words.contains("RuntimeCallFailed"),
        "{words}"
    );
    let cold = rig.run_pod(bare_cold).await.unwrap();
    cold.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&cold, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hibernated_pod_whose_snapshot_is_damaged_starts_cold_if_it_may() {
    let _swap = swap();
    let (rig, pod) = at_work(spec("sleeper").annotation(ANNOTATION_FALLBACK, "ColdStart")).await;
    let hash = ask(&pod, "/hash").await;
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    damage(&rig, &rig.get(&pod).await.unwrap().snapshot_id);
    // A packet wakes it; a guest that has forgotten everything answers, as soon as it listens.
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&pod, "/hash").await, hash);
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    let log = rig.agent.log();
    assert!(log.contains("to=Running reason=ColdStarted"), "{log}");
    let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
    assert_eq!(output.stdout, "hello\n");
    assert!(
        pod.logs()
            .unwrap()
            .lines()
            .filter(|line| line.contains("listening"))
            .count()
            >= 2
    );
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_a_clones_source_are_its_sources() {
    const KEEP: &str = "dev.gvisor.flag.allow-connected-on-save";
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    // The bridge, and with it the peer's address, comes with the first pod.
    rig.stack
        .run_pod(PodSpec::new("first").container(ContainerSpec::shell("sh", "sleep 600")))
        .await
        .unwrap();
    let peer = Peer::listen(rig.stack.bridge().1.into(), None).await.unwrap();
    let guest = AgentGuest {
        connect: Some(peer.address()),
        mib: 8,
        ..AgentGuest::default()
    };
    let linked = |name: &str| {
        let mut spec = guest.pod(name).annotation(KEEP, "true");
        spec.container_annotations.insert(KEEP.into(), "true".into());
        spec
    };
    let source = rig.run_pod(linked("source")).await.unwrap();
    source.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_eq!(ask(&source, "/say?text=before").await["echo"], "before");
    let clone = rig
        .run_clone(&snapshot(&rig, &source).await, linked("clone"))
        .await
        .unwrap();
    assert_eq!(ask(&source, "/say?text=after").await["echo"], "after");
    let said = http::get(address(&clone), "/say?text=mine", LIMIT).await;
    println!("the clone: {said:?}");
    assert!(
        said.is_err() || said.unwrap().status != 200,
        "it is not the clone's"
    );
    assert_eq!(ask(&source, "/say?text=still").await["echo"], "still");
    let links = peer.links();
    assert_eq!(
        (links.len(), links[0].lines, &links[0].ended),
        (1, 3, &None),
        "{links:?}"
    );
    rig.stop().await.unwrap();
}
