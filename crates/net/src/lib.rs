//! What a sleeping pod's network namespace sees, and what is done about it.
//!
//! Waking by traffic works without a proxy: [`WireLoop`] keeps one packet socket inside each managed
//! pod's network namespace, on the pod's own interface, and sees exactly what the guest's own packet
//! socket sees. One thread serves all pods. A filter in the kernel lets only frames through that the
//! pod's present [`WireMode`] cares about, and one pure classifier, [`classify()`], says what a frame
//! means; the same classifier decides idleness and waking.
//!
//! ```no_run
//! use std::sync::mpsc;
//! use dormouse_net::{Event, PodKey, WireConfig, WireLoop, WireMode, WireSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (events, incoming) = mpsc::sync_channel::<Event>(1024);
//! let wires = WireLoop::start(events, WireConfig::default())?;
//! let pod = PodKey::from("0c5a…");
//! wires.add(&pod, &WireSpec {
//!     netns: "/run/netns/cni-1234".into(),
//!     interface: None,
//!     addresses: vec!["10.88.0.7".parse()?],
//!     ports: Default::default(),
//!     mode: WireMode::Watch,
//! })?;
//! // First the mode, then the freeze: no frame falls between the two.
//! wires.set_mode(&pod, WireMode::Frozen)?;
//! if let Event::Wake { pod, frame, .. } = incoming.recv()? {
//!     println!("{pod} is wanted: {frame}");
//! }
//! # Ok(()) }
//! ```
//!
//! # Order of calls
//! * going to sleep: `set_mode(Frozen)` **before** the guest is paused, `set_mode(Dozing)` **before** its
//!   cgroup is frozen. A wake that is reported in between cancels the step.
//! * housekeeping thaw: `set_mode(Housekeeping)`, thaw, wait for [`Event::Answered`] or some 20 ms,
//!   `set_mode(Dozing)`, freeze.
//! * waking: thaw and resume the guest first, then `set_mode(Watch)`.
//! * a pod that goes away: `remove`. An open socket keeps the network namespace alive.
//!
//! Nothing here puts an address, a route or a neighbour on anything.

mod answer;
mod attach;
mod budget;
mod classify;
mod clock;
mod event;
pub mod filter;
pub mod guest_socket;
mod hold;
mod host_side;
mod interest;
pub mod links;
mod mac;
mod netlink;
mod netns;
mod stats;
mod sys;
mod vnet;
mod wire;
mod wire_loop;

pub use answer::answer;
pub use attach::{AttachError, Attached, WireSpec};
pub use budget::{BucketLimits, Budget, Budgets, Suppressed};
pub use classify::{
    ArpRequest, Ignored, NeighbourSolicit, PacketType, Resolve, Verdict, Wake, WakeKind, classify,
};
pub use clock::monotonic;
pub use event::{Delivery, Event, EventSink, FrameSummary, LostCause, PodKey};
pub use hold::HoldLimits;
pub use host_side::NoHostSide;
pub use interest::{Interest, InterestError, MAX_ADDRESSES, MAX_PORTS, Ports, TcpPorts};
pub use mac::{MacAddress, NotAMacAddress};
pub use netns::NamespaceError;
pub use stats::WireStats;
pub use wire::WireMode;
pub use wire_loop::{Held, ReplayReport, ReplayWindow, StartError, WireConfig, WireError, WireLoop};
