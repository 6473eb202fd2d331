//! What runs on this node.
//!
//! A client of containerd ([`Runtime`]: the CRI, tasks, containers and events over one Unix socket), an
//! index of this node's pods that is kept up to date by events ([`Index`]), and what it takes to run a pod
//! on a node without Kubernetes ([`PodRequest`]).
//!
//! Nothing here polls, and nothing that keeps the index up to date asks a guest: a sleeping pod cannot hold
//! it up.

mod backoff;
mod error;
mod event;
mod exec;
mod feed;
mod index;
mod launch;
mod look;
mod parse;
mod pod;
mod podcgroup;
mod runtime;
mod session;
mod signal;
mod starts;
mod state;

pub use error::{AnswerError, CallError, ConnectError, RunError};
pub use event::PodEvent;
pub use exec::ExecEnd;
pub use index::Index;
pub use launch::{
    ContainerRequest, ExecOutput, ListedPod, MountRequest, PodRequest, RunningPod, pod_cgroup_parent,
};
pub use pod::{Container, ContainerState, Pod};
pub use runtime::{CgroupDriver, DEFAULT_ENDPOINT, NAMESPACE, Runtime, RuntimeVersion, namespaced};
