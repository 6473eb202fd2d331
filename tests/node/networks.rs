//! Packet wake on several kinds of pod networks, and from clients that never talked to the pod before.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{Cni, DORMOUSE_GVISOR, Pod, StackOptions, http};

use crate::hibernate::hibernated;
use crate::support::{LIMIT, address, ask, swap};

async fn wakes_by_packet(rig: &Rig, forget_neighbours: bool) {
    let pod = rig
        .run_pod(AgentGuest::mib(8).pod("wanted").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    for rung in [Rung::Frozen, Rung::Dozing] {
        // A machine that is too slow to wake a pod within the second after which the client tries again is given some
        // chances.
        let mut slow = 0;
        while !wakes_at_once(rig, &pod, rung, forget_neighbours).await {
            slow += 1;
            assert!(slow < 5, "{rung}: something was sent again each time");
        }
    }
}

async fn wakes_at_once(rig: &Rig, pod: &Pod, rung: Rung, forget_neighbours: bool) -> bool {
    match rung {
        Rung::Frozen => rig.freeze(pod).await.unwrap(),
        _ => rig.doze(pod).await.unwrap(),
    };
    if forget_neighbours {
        let status = Command::new("ip")
            .args(["neigh", "flush", "to", &pod.ip.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }
    let answer = http::get(address(pod), "/answer", LIMIT).await.unwrap();
    println!(
        "{rung}: connected {:?}, answered {:?}",
        answer.connected, answer.first_byte
    );
    assert_eq!(rig.woken(pod, LIMIT).await.unwrap().source, "Packet");
    answer.first_byte < Duration::from_millis(900)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_bridge_with_an_empty_neighbour_table() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    wakes_by_packet(&rig, true).await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_ptp() {
    let _swap = swap();
    let stack = StackOptions {
        cni: Cni::Ptp,
        ..StackOptions::default()
    };
    let rig = Rig::start(RigOptions {
        stack,
        ..RigOptions::default()
    })
    .await
    .unwrap();
    wakes_by_packet(&rig, true).await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_another_pod_that_never_talked_to_it() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let client = rig
        .run_pod(AgentGuest::default().pod("client").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    let pod = rig
        .run_pod(AgentGuest::mib(8).pod("server").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    client.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.doze(&pod).await.unwrap();
    let script = format!(
        "import urllib.request as u; print(u.urlopen('http://{}:8080/answer', timeout=10).read().decode())",
        pod.ip
    );
    let out = client.exec(&["python3", "-c", &script], LIMIT).await.unwrap();
    assert!(out.stdout.contains("42"), "{out:?}");
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}

/// What the guest sees of its network: addresses, routes, and the interface's MTU.
const SEEN: &str = "
import fcntl, socket, struct
for name in ('if_inet6', 'route', 'dev'):
    for line in open('/proc/net/' + name):
        # Counters grow.
        print(' '.join(line.split()[:1 if name == 'dev' else 11]))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for code in (0x8915, 0x891b, 0x8921):  # SIOCGIFADDR, SIOCGIFNETMASK, SIOCGIFMTU
        print(fcntl.ioctl(sock, code, struct.pack('256s', b'eth0'))[16:24].hex())
    sock.connect(('203.0.113.1', 9))
    print(sock.getsockname()[0])
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.connect(('2001:db8::1', 9))
    print(sock.getsockname()[0])
";

async fn seen(pod: &Pod) -> String {
    let output = pod.exec(&["python3", "-c", SEEN], LIMIT).await.unwrap();
    assert_eq!(output.code, 0, "{}", output.stderr);
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_routes_and_mtu_are_what_they_were_after_a_hibernation() {
    let _swap = swap();
    for cni in [Cni::Bridge, Cni::Ptp] {
        let stack = StackOptions {
            cni,
            dual_stack: true,
            mtu: Some(1400),
            routes: vec!["198.51.100.0/24".into(), "2001:db8:1::/48".into()],
            ..StackOptions::default()
        };
        let options = RigOptions {
            stack,
            ..RigOptions::default()
        };
        let rig = Rig::start(options).await.unwrap();
        let guest = AgentGuest {
            dual_stack: true,
            ..AgentGuest::mib(8)
        };
        let pod = rig
            .run_pod(guest.pod("wanted").handler(DORMOUSE_GVISOR))
            .await
            .unwrap();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        let hash = ask(&pod, "/hash").await;
        let before = seen(&pod).await;
        assert!(before.contains("78050000"), "MTU 1400: {before}");
        let status = pod.status().await.unwrap();
        let second = &status.network.unwrap().additional_ips[0].ip;
        let second: IpAddr = second.parse().unwrap();
        assert!(second.is_ipv6(), "{second}");
        for to in [pod.ip, second] {
            hibernated(&rig, &pod).await;
            let links = dormouse_net::links::record(&pod.netns).unwrap();
            assert!(!links.has_addresses(), "{links:?}");
            for address in [pod.ip, second] {
                let family = if address.is_ipv4() { "-4" } else { "-6" };
                let flushed = Command::new("ip")
                    .args([family, "neigh", "flush", "to", &address.to_string()])
                    .status()
                    .unwrap();
                assert!(flushed.success());
            }
            // From a client that has to ask for its neighbour, in either family.
            let answer = http::get(SocketAddr::new(to, 8080), "/hash", LIMIT)
                .await
                .unwrap();
            assert_eq!(answer.json().unwrap(), hash, "{to}");
            assert_eq!(rig.woken(&pod, LIMIT).await.unwrap().source, "Packet");
            rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
            assert_eq!(seen(&pod).await, before, "{to}");
        }
        rig.stop().await.unwrap();
    }
}
