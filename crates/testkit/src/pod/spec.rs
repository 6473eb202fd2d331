//! What a pod is to be.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::{BUSYBOX, DORMOUSE_GVISOR, PYTHON};

/// A pod to be made.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Name, also the host name inside.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes UID; a random one if none is given.
    pub uid: Option<String>,
    /// Which sandbox of the pod this is: kubelet counts them from 0.
    pub attempt: u32,
    /// Runtime handler.
    pub handler: String,
    /// The pod's labels.
    pub labels: HashMap<String, String>,
    /// The pod's annotations.
    pub annotations: HashMap<String, String>,
    /// Annotations of every container.
    pub container_annotations: HashMap<String, String>,
    /// The containers, started in this order.
    pub containers: Vec<ContainerSpec>,
    /// Memory limit of the pod's cgroup, bytes.
    pub memory_limit: Option<u64>,
    /// The name servers that its `/etc/resolv.conf` names; the node's if none is given.
    pub name_servers: Vec<String>,
    /// Volumes of the pod's own, by name, and where its containers have them; with gVisor's mount hints they are in the
    /// sandbox, and in its snapshots.
    pub empty_dirs: Vec<(String, PathBuf)>,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Name.
    pub name: String,
    /// Image, one of [`BUSYBOX`], [`PYTHON`].
    pub image: String,
    /// Entry point.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Host directories inside.
    pub mounts: Vec<MountSpec>,
    /// Put the guest programs at [`crate::guest::FOLDER`].
    pub guest_programs: bool,
    /// With a terminal.
    pub tty: bool,
}

/// A host directory inside a container.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// On the host.
    pub host: PathBuf,
    /// In the container.
    pub guest: PathBuf,
    /// Read-only.
    pub readonly: bool,
}

impl PodSpec {
    /// A pod without containers, in namespace `default`, for [`DORMOUSE_GVISOR`].
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            uid: None,
            attempt: 0,
            handler: DORMOUSE_GVISOR.into(),
            labels: HashMap::new(),
            annotations: HashMap::new(),
            container_annotations: HashMap::new(),
            containers: Vec::new(),
            memory_limit: None,
            name_servers: Vec::new(),
            empty_dirs: Vec::new(),
        }
    }

    /// With this runtime handler.
    #[must_use]
    pub fn handler(mut self, handler: impl Into<String>) -> Self {
        self.handler = handler.into();
        self
    }

    /// With one more pod annotation.
    #[must_use]
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// With one more pod label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With one more container.
    #[must_use]
    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// With one more annotation on the pod and on its containers, where gVisor's have to be.
    #[must_use]
    pub fn annotate_all(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.container_annotations.insert(key.clone(), value.clone());
        self.annotation(key, value)
    }

    /// With one more volume of its own, in all containers at the same place.
    #[must_use]
    pub fn empty_dir(mut self, name: &str, guest: impl Into<PathBuf>) -> Self {
        self.empty_dirs.push((name.to_owned(), guest.into()));
        for (field, value) in [("type", "bind"), ("share", "pod"), ("options", "rw")] {
            self = self.annotate_all(format!("dev.gvisor.spec.mount.{name}.{field}"), value);
        }
        self
    }

    /// With a memory limit, bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }
}

impl ContainerSpec {
    /// A container that runs `command` in `image`.
    #[must_use]
    pub fn new(name: impl Into<String>, image: impl Into<String>, command: &[&str]) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            args: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            guest_programs: false,
            tty: false,
        }
    }

    /// A shell script in busybox.
    #[must_use]
    pub fn shell(name: impl Into<String>, script: &str) -> Self {
        Self::new(name, BUSYBOX, &["/bin/sh", "-c", script])
    }

    /// With one more host directory inside.
    #[must_use]
    pub fn mount(mut self, host: impl Into<PathBuf>, guest: impl Into<PathBuf>, readonly: bool) -> Self {
        self.mounts.push(MountSpec {
            host: host.into(),
            guest: guest.into(),
            readonly,
        });
        self
    }

    /// One of the guest programs, in Python, with arguments.
    #[must_use]
    pub fn guest(name: impl Into<String>, program: &str, args: &[String]) -> Self {
        let path = format!("{}/{program}", crate::guest::FOLDER);
        let mut container = Self::new(name, PYTHON, &["/usr/bin/python3", "-u", &path]);
        container.args = args.to_vec();
        container.guest_programs = true;
        container
    }
}
