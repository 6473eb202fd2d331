//! A wire loop with its events, and a pod on a veth.
#![allow(dead_code, unreachable_pub)]

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_net::{
    AttachError, Attached, BucketLimits, Budget, Event, PodKey, WakeKind, WireConfig, WireLoop, WireMode,
    WireSpec, WireStats,
};

use crate::netns::{FrameSender, Netns};
use crate::support::{PEER4, PEER6, POD4, POD6, udp_ports};

pub const SOON: Duration = Duration::from_secs(5);
pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// No budget in the way.
pub fn generous() -> WireConfig {
    let much = BucketLimits {
        burst: 1_000_000,
        refill: Duration::from_nanos(1),
    };
    WireConfig {
        budget: Budget {
            per_source: much,
            per_node: much,
            sources: NonZeroUsize::new(64).unwrap(),
        },
        sweep: ms(100),
        ..WireConfig::default()
    }
}

pub struct Wires {
    pub wires: WireLoop,
    pub events: Receiver<Event>,
}

impl Wires {
    pub fn new(config: WireConfig) -> Self {
        let (sender, events) = mpsc::sync_channel(4096);
        Self {
            wires: WireLoop::start(sender, config).unwrap(),
            events,
        }
    }

    pub fn attach(&self, pod: &str, netns: &Netns, mode: WireMode) -> Attached {
        self.try_attach(pod, netns.path(), None, mode).unwrap()
    }

    pub fn try_attach(
        &self,
        pod: &str,
        netns: PathBuf,
        interface: Option<&str>,
        mode: WireMode,
    ) -> Result<Attached, AttachError> {
        let spec = WireSpec {
            netns,
            interface: interface.map(str::to_owned),
            addresses: vec![IpAddr::V4(POD4), IpAddr::V6(POD6)],
            ports: udp_ports(&[53]),
            mode,
        };
        self.wires.add(&PodKey::from(pod), &spec)
    }

    pub fn mode(&self, pod: &str, mode: WireMode) {
        self.wires.set_mode(&PodKey::from(pod), mode).unwrap();
    }

    #[track_caller]
    pub fn next(&self) -> Event {
        self.events.recv_timeout(SOON).expect("no event")
    }

    #[track_caller]
    pub fn next_wake(&self) -> (PodKey, WakeKind, SocketAddr) {
        let next = std::iter::repeat_with(|| self.next()).find(|e| !matches!(e, Event::Activity { .. }));
        match next.unwrap() {
            Event::Wake { pod, frame, .. } => (
                pod,
                frame.kind,
                SocketAddr::new(frame.source, frame.destination_port),
            ),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is waiting. Call it when something later has already arrived.
    #[track_caller]
    pub fn assert_silent(&self) {
        if let Ok(event) = self.events.try_recv() {
            panic!("{event:?}");
        }
    }

    pub fn stats(&self) -> WireStats {
        self.wires.stats()
    }

    /// Waits until a counter has got there.
    #[track_caller]
    pub fn until(&self, what: &str, reached: impl Fn(&WireStats) -> bool) {
        let start = Instant::now();
        while !reached(&self.stats()) {
            assert!(start.elapsed() < SOON, "{what}: {:?}", self.stats());
            thread::sleep(ms(1));
        }
    }
}

/// A pod whose guest does not run, on a veth as the CNI plugin ptp makes it.
pub struct Ptp {
    pub node: Netns,
    pub pod: Netns,
}

impl Ptp {
    pub fn new() -> Self {
        let (node, pod) = (Netns::new("node"), Netns::new("pod"));
        node.ip(&format!(
            "link add veth0 type veth peer name eth0 netns {}",
            pod.name
        ));
        pod.ip("link set lo up");
        pod.ip("link set eth0 address 02:00:00:00:00:02 up");
        node.ip("link set veth0 address 02:00:00:00:00:01 up");
        node.ip(&format!("addr add {PEER4}/32 dev veth0"));
        node.ip(&format!("-6 addr add {PEER6}/128 dev veth0 nodad"));
        node.ip(&format!("route add {POD4}/32 dev veth0 src {PEER4}"));
        node.ip(&format!("-6 route add {POD6}/128 dev veth0 src {PEER6}"));
        Self { node, pod }
    }

    pub fn peer(&self) -> FrameSender {
        self.node.sender("veth0")
    }

    pub fn guest(&self) -> FrameSender {
        self.pod.sender("eth0")
    }
}
