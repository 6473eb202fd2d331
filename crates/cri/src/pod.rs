//! What the index knows of a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Where a container stands, in the CRI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerState {
    /// Created, not started yet.
    Created,
    /// Its process runs (or is stopped by a freeze; the CRI does not tell).
    Running,
    /// Its process has ended.
    Exited,
    /// The CRI runtime does not know.
    Unknown,
}

/// One application container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The container's id in containerd.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// The image that it was made from: its digest, where the CRI runtime says it (`image_ref`), otherwise what was asked for.
    pub image: String,
    /// The task's process id on the host; 0 where it is not known or the container does not run.
    pub pid: i32,
    /// Whether it runs; the same as `state == ContainerState::Running`.
    pub running: bool,
    /// Where it stands.
    pub state: ContainerState,
    /// How often it was started before, as its metadata says.
    pub attempt: u32,
}

/// One pod of this node, as the CRI and containerd describe it.
///
/// Everything comes from containerd's own store, so nothing here needed an answer of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The pod's UID.
    pub uid: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace in Kubernetes.
    pub namespace: String,
    /// The pod sandbox's id in containerd.
    pub sandbox_id: String,
    /// How often the sandbox was made before for the same pod.
    pub attempt: u32,
    /// The CRI runtime handler; empty for the default one.
    pub handler: String,
    /// containerd's runtime type, as in `io.containerd.runsc.v1`; empty where it is not known.
    pub runtime_type: String,
    /// Directories in which the runtime's state files of this pod may lie, most likely first.
    ///
    /// For gVisor: `root` of the shim's configuration file and the shim's default, each with the containerd
    /// namespace below; empty for other runtimes.
    pub runtime_roots: Vec<PathBuf>,
    /// The pod's annotations at its birth (the CRI never tells of later changes).
    pub annotations: BTreeMap<String, String>,
    /// The pod's labels at its birth.
    pub labels: BTreeMap<String, String>,
    /// The cgroup parent that the CRI was given, as in `/kubepods/burstable/podUID` or a systemd slice's name.
    pub cgroup_parent: String,
    /// The pod's network namespace, as in `/run/netns/cni-…`; `None` for host network.
    pub netns: Option<PathBuf>,
    /// The pod sandbox task's process id on the host; 0 where it is not known.
    pub sandbox_pid: i32,
    /// The pod's addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// The application containers, by creation.
    pub containers: Vec<Container>,
    /// Whether the CRI calls the sandbox ready; `false` once it is being stopped or its task has ended.
    pub ready: bool,
    /// When the sandbox was created.
    pub created: SystemTime,
    /// The time that a deletion gives the containers to end, where kubelet wrote it down.
    pub termination_grace: Option<Duration>,
    /// Where the containers' logs go; empty if nowhere.
    pub log_directory: PathBuf,
}

impl Pod {
    /// Whether the pod uses the node's own network.
    #[must_use]
    pub const fn host_network(&self) -> bool {
        self.netns.is_none()
    }

    /// The container with this id.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.id == id)
    }

    /// The containers that run.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| c.running)
    }

    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
