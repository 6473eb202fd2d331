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
//! * saving: `set_mode(Cut)`; then cut the guest's own sockets off and wait until they are drained
//!   ([`guest_socket`]); then save. If the guest goes on: let it in again and [`WireLoop::release_held`]. If it
//!   is let go: `set_mode(Hibernated)`, which keeps what is held.
//! * waking a guest that is not there: put the addresses back under a hush ([`links`]), restore the guest,
//!   end the hush, [`WireLoop::release_held`]. What a guest had got before it was cut off, and what a new one
//!   gets because its socket is open already, a [`ReplayWindow`] leaves out: a moment after the cut bounds it
//!   on one side, [`WireLoop::mark`] after the restore on the other. Without a window such frames come twice,
//!   which networks do, too; too narrow a window loses some.
//! * asking a running pod something on the node's own behalf, as a probe does: `leave_out` the flow before the first frame,
//!   `take_in` once the connection is closed. Its frames are no sign that anybody wants the pod.
//! * a pod that goes away: `remove`. An open socket keeps the network namespace alive.
//!
//! Held frames live in this process alone. If it ends, they are lost, and clients repeat what they sent.
//!
//! Nothing puts an address, a route, a neighbour or a rule on anything but the functions of [`links`].

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
pub use interest::{Flow, Interest, InterestError, MAX_ADDRESSES, MAX_FLOWS, MAX_PORTS, Ports, TcpPorts};
pub use mac::{MacAddress, NotAMacAddress};
pub use netns::NamespaceError;
pub use stats::WireStats;
pub use wire::WireMode;
pub use wire_loop::{Held, ReplayReport, ReplayWindow, StartError, WireConfig, WireError, WireLoop};
