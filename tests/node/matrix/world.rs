//! Three containers that hold one of everything, connected both ways.

use std::time::SystemTime;

use dormouse_core::Rung;
use dormouse_testkit::guest::WorldGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{ContainerSpec, Pod, PodSpec};
use k8s_cri::v1::ContainerState;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};

use super::{Projected, run};
use crate::hibernate::hibernated;
use crate::support::{LIMIT, ask};

/// Every check of the guest's, or what it says is wrong.
async fn check(pod: &Pod, armed: u64, round: &str) {
    let verdicts = ask(pod, "/check").await;
    let verdicts = verdicts.as_object().unwrap();
    let wrong: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict != "ok").collect();
    assert!(wrong.is_empty(), "{round}: {wrong:#?}");
    assert_eq!(verdicts.len() as u64, armed, "{round}");
}

async fn say(stream: &mut BufReader<TcpStream>, text: &str) {
    stream.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    tokio::time::timeout(std::time::Duration::from_secs(20), stream.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(line.trim_end(), text);
}

/// Datagrams may be lost, so it is said until it comes back.
async fn say_by_datagram(socket: &UdpSocket, text: &str) {
    wait::until("a datagram to come back", LIMIT, async || {
        socket.send(text.as_bytes()).await?;
        let mut buffer = [0; 100];
        let second = std::time::Duration::from_secs(1);
        let length = tokio::time::timeout(second, socket.recv(&mut buffer)).await??;
        anyhow::ensure!(&buffer[..length] == text.as_bytes(), "something else");
        Ok(())
    })
    .await
    .unwrap();
}

/// Waits until a container's log grows, and that it goes on where it was.
async fn counts_on(pod: &Pod, container: usize) {
    let seen = || {
        let log = pod.logs_of(container).unwrap();
        let numbers: Vec<u64> = log
            .lines()
            .filter_map(|l| l.rsplit(' ').next()?.parse().ok())
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "container {container}: {numbers:?}"
        );
        numbers.len()
    };
    let before = seen();
    wait::until("a container's log to grow", LIMIT, async || {
        anyhow::ensure!(seen() > before, "not yet");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_everything_outlives_a_hibernation() {
    let rig = Rig::plain().await.unwrap();
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut projected = Projected::new(&host.path().join("config"));
    std::fs::create_dir(host.path().join("data")).unwrap();
    let count = "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.3; done";
    let world = WorldGuest::default()
        .folder("volume", "/shared")
        .folder("bind", "/data")
        .container()
        .mount(host.path().join("config"), "/config", true)
        .mount(host.path().join("data"), "/data", false);
    let spec = PodSpec::new("world")
        .empty_dir("shared", "/shared")
        .container(world)
        .container(ContainerSpec::shell("counter", count))
        .container(ContainerSpec::shell(
            "neighbour",
            "exec 3>/shared/neighbour; echo here >&3; while true; do sleep 1; done",
        ));
    let pod = run(&rig, spec).await;
    let echo = (pod.ip, WorldGuest::ECHO_PORT);
    let mut stream = BufReader::new(TcpStream::connect(echo).await.unwrap());
    let datagrams = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    datagrams.connect(echo).await.unwrap();
    for round in ["by packet", "snapshot", "by order", "by packet again"] {
        let armed = ask(&pod, "/arm").await["armed"].as_u64().expect(round);
        say(&mut stream, round).await;
        say_by_datagram(&datagrams, round).await;
        let text = format!("token for {round}");
        if round == "snapshot" {
            rig.snapshot(&pod).await.unwrap();
            projected.rotate(&text);
        } else {
            hibernated(&rig, &pod).await;
            projected.rotate(&text);
            std::fs::write(host.path().join("data/from-the-host"), &text).unwrap();
            if round == "by order" {
                rig.wake(&pod).await.unwrap();
            } else {
                // The packet that wakes it, on the connection of before.
                say(&mut stream, "are you there?").await;
            }
            assert_eq!(
                ask(&pod, "/read?path=/data/from-the-host").await["text"],
                text.as_str()
            );
        }
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        check(&pod, armed, round).await;
        say(&mut stream, "still there").await;
        say_by_datagram(&datagrams, "still there").await;
        assert_eq!(ask(&pod, "/read?path=/config/token").await["text"], text.as_str());
        // Each container has its own end of things, and the volume is one.
        counts_on(&pod, 1).await;
        let read = pod
            .exec_in(2, &["cat", "/shared/neighbour"], LIMIT)
            .await
            .unwrap();
        assert_eq!((read.code, read.stdout.as_str()), (0, "here\n"), "{round}");
        assert_eq!(ask(&pod, "/read?path=/shared/neighbour").await["text"], "here\n");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let clock = ask(&pod, "/clock").await["clock"].as_f64().unwrap();
        assert!(
            (clock - now.as_secs_f64()).abs() < 30.0,
            "{round}: the clock says {clock}"
        );
    }
    assert_eq!(
        pod.container_status().await.unwrap().state(),
        ContainerState::ContainerRunning
    );
    rig.stop().await.unwrap();
}
