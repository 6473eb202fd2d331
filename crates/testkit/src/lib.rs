//! The real node stack for tests, the demo and measurements: a private containerd with gVisor, runc and CNI,
//! pods made as kubelet makes them, the node agent, guests, and ways to look at all of it from the host.
//!
//! Everything a [`Stack`] makes is below one directory, one cgroup and one network name, so several of them run
//! side by side and each can be removed without a trace, also after a crash ([`Stack::sweep`]).
//!
//! A [`Cluster`] is a real Kubernetes on machines made of namespaces, with such a containerd on each node.
//!
//! `cargo xtask` builds what is needed and says where it is in `DORMOUSE_STACK_DIR`, `DORMOUSE_CLUSTER_DIR` and `DORMOUSE_BIN_DIR`.

mod agent;
mod built;
pub mod cluster;
pub mod guest;
pub mod host;
pub mod http;
pub mod memory;
pub mod peer;
mod place;
pub mod pod;
pub mod rig;
mod stack;
pub mod swap;
pub mod vm;

pub use agent::{Agent, AgentOptions, AgentPaths};
pub use built::{Built, Image};
pub use cluster::{Cluster, ClusterOptions};
pub use pod::{ContainerSpec, ExecOutput, MountSpec, Pod, PodSpec};
pub use stack::{Cni, Stack, StackOptions};

/// containerd runtime handler of plain runc.
pub const RUNC: &str = "runc";
/// containerd runtime handler of gVisor as it comes, without Dormouse's wrapper.
pub const GVISOR: &str = "runsc";
/// containerd runtime handler of gVisor behind Dormouse's wrapper.
pub const DORMOUSE_GVISOR: &str = "dormouse-gvisor";

/// Test image: busybox with all its applets.
pub const BUSYBOX: &str = "localhost/busybox:1";
/// Test image: Python 3.11 with its standard library, and busybox for a shell.
pub const PYTHON: &str = "localhost/python:3.11";
