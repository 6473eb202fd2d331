//! Runs, stops and removes pods through the CRI, on a node without Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1 as cri;

use crate::error::{CallError, RunError};
use crate::look::addresses;
use crate::podcgroup;
use crate::runtime::{CgroupDriver, Runtime};

/// How long containerd may take to make a sandbox, a container, or a process in it; a cold gVisor start on a
/// busy node takes seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How much longer than the grace period a stop may take.
const STOP_SLACK: Duration = Duration::from_secs(30);

/// The longest name of a pod or container, as in Kubernetes (RFC 1123 subdomain and label).
const MAX_POD_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A directory or file of the node that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// The path on the node.
    pub host_path: PathBuf,
    /// The path in the container.
    pub container_path: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// A container to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerRequest {
    /// The container's name, an RFC 1123 label.
    pub name: String,
    /// The image; it has to be on the node already.
    pub image: String,
    /// What replaces the image's entry point; empty = the image's.
    pub command: Vec<String>,
    /// What replaces the image's arguments; empty = the image's.
    pub args: Vec<String>,
    /// The working directory; empty = the image's.
    pub working_dir: String,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Annotations of the container alone; it also gets the pod's that begin with `dev.gvisor.`.
    pub annotations: BTreeMap<String, String>,
    /// What of the node it sees.
    pub mounts: Vec<MountRequest>,
}

/// A pod to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRequest {
    /// The pod's name, an RFC 1123 subdomain.
    pub name: String,
    /// The pod's namespace, an RFC 1123 label.
    pub namespace: String,
    /// The pod's UID; a UUID, new for every pod.
    pub uid: String,
    /// The CRI runtime handler; empty = containerd's default.
    pub handler: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The cgroup parent; empty = `/dormouse/pod<UID>`, or the slice that says the same where containerd
    /// leaves cgroups to systemd.
    pub cgroup_parent: String,
    /// The directory below which the pod gets its log directory; as kubelet's `/var/log/pods`.
    pub log_root: PathBuf,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// The most memory that the pod may use, its runtime's included, in bytes.
    pub memory_limit: Option<u64>,
    /// Its containers; at least one.
    pub containers: Vec<ContainerRequest>,
}

/// A pod that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningPod {
    /// The pod's UID.
    pub uid: String,
    /// The pod sandbox's id.
    pub sandbox_id: String,
    /// The pod's addresses, the primary one first; empty for host network.
    pub addresses: Vec<IpAddr>,
    /// The containers' names and ids, in the order of the request.
    pub containers: Vec<(String, String)>,
    /// Where the containers' logs are: `<name>/0.log` below it.
    pub log_directory: PathBuf,
}

/// A pod as containerd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPod {
    /// The pod's UID.
    pub uid: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod sandbox's id.
    pub sandbox_id: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// Whether the sandbox is ready.
    pub ready: bool,
}

impl ListedPod {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What a command in a container said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code.
    pub exit_code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl PodRequest {
    /// The pod's log directory, named as kubelet does (the gVisor shim finds the pod's volumes by it).
    #[must_use]
    pub fn log_directory(&self) -> PathBuf {
        self.log_root
            .join(format!("{}_{}_{}", self.namespace, self.name, self.uid))
    }

    /// Checks what becomes part of paths and names.
    fn check(&self) -> Result<(), RunError> {
        check_name("pod name", &self.name, MAX_POD_NAME, true)?;
        check_name("namespace", &self.namespace, MAX_LABEL, false)?;
        if self.uid.is_empty()
            || self.uid.len() > 64
            || !self.uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(bad("uid", &self.uid, "it must be a UUID"));
        }
        if !self.log_root.is_absolute() {
            return Err(bad(
                "log root",
                &self.log_root.display().to_string(),
                "it must be an absolute path",
            ));
        }
        if self.memory_limit.is_some_and(|limit| limit < MIN_MEMORY) {
            return Err(bad("memory limit", "", "a sandbox needs 32 MiB at least"));
        }
        if self.containers.is_empty() {
            return Err(bad("containers", "", "a pod needs one at least"));
        }
        for (nth, container) in self.containers.iter().enumerate() {
            check_name("container name", &container.name, MAX_LABEL, false)?;
            if container.image.is_empty() {
                return Err(bad("image", "", "it is empty"));
            }
            if self
                .containers
                .iter()
                .take(nth)
                .any(|other| other.name == container.name)
            {
                return Err(bad("container name", &container.name, "another container has it"));
            }
            if container
                .env
                .iter()
                .any(|(key, _)| key.is_empty() || key.contains(['=', '\0']))
            {
                return Err(bad("environment", "", "a variable's name is empty or holds '='"));
            }
        }
        Ok(())
    }

    /// What every object of the pod is labelled with, as kubelet does.
    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert("io.kubernetes.pod.name".to_owned(), self.name.clone());
        labels.insert("io.kubernetes.pod.namespace".to_owned(), self.namespace.clone());
        labels.insert("io.kubernetes.pod.uid".to_owned(), self.uid.clone());
        labels
    }

    fn sandbox_config(&self, cgroup_parent: &str) -> cri::PodSandboxConfig {
        let network = if self.host_network {
            cri::NamespaceMode::Node
        } else {
            cri::NamespaceMode::Pod
        };
        let namespaces = cri::NamespaceOption {
            network: network.into(),
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let hostname = self.name.chars().take(MAX_LABEL).collect::<String>();
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            hostname: if self.host_network {
                String::new()
            } else {
                hostname
            },
            log_directory: self.log_directory().display().to_string(),
            labels: self.labels().into_iter().collect(),
            annotations: self.annotations.clone().into_iter().collect(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: cgroup_parent.to_owned(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container_config(&self, request: &ContainerRequest) -> cri::ContainerConfig {
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".to_owned(), request.name.clone());
        // gVisor compares the hints on the pod with those on its containers.
        let mut annotations: BTreeMap<String, String> = self
            .annotations
            .iter()
            .filter(|(key, _)| key.starts_with("dev.gvisor."))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        annotations.extend(request.annotations.clone());
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: request.name.clone(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: request.image.clone(),
                ..Default::default()
            }),
            command: request.command.clone(),
            args: request.args.clone(),
            working_dir: request.working_dir.clone(),
            envs: request
                .env
                .iter()
                .map(|(key, value)| cri::KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
            mounts: request
                .mounts
                .iter()
                .map(|mount| cri::Mount {
                    host_path: mount.host_path.display().to_string(),
                    container_path: mount.container_path.display().to_string(),
                    readonly: mount.read_only,
                    ..Default::default()
                })
                .collect(),
            labels: labels.into_iter().collect(),
            annotations: annotations.into_iter().collect(),
            log_path: format!("{}/0.log", request.name),
            linux: Some(cri::LinuxContainerConfig {
                resources: self.memory_limit.map(|limit| cri::LinuxContainerResources {
                    memory_limit_in_bytes: i64::try_from(limit).unwrap_or(i64::MAX),
                    ..Default::default()
                }),
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(cri::NamespaceOption {
                        pid: cri::NamespaceMode::Container.into(),
                        network: if self.host_network {
                            cri::NamespaceMode::Node.into()
                        } else {
                            cri::NamespaceMode::Pod.into()
                        },
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }
}

/// The least memory limit that is accepted: below it a sentry cannot start.
const MIN_MEMORY: u64 = 32 << 20;

/// The cgroup parent of a pod that Dormouse runs itself.
#[must_use]
pub fn pod_cgroup_parent(driver: CgroupDriver, uid: &str) -> String {
    match driver {
        CgroupDriver::Cgroupfs => format!("/dormouse/pod{uid}"),
        // In a slice's name, "-" stands for a level.
        CgroupDriver::Systemd => format!("dormouse-pod{}.slice", uid.replace('-', "_")),
    }
}

impl Runtime {
    /// Runs a pod from images that are on the node. If anything fails, what was made of it is removed again.
    ///
    /// # Errors
    /// The request cannot be used, an image or handler is missing, or containerd fails.
    pub async fn run_pod(&self, request: &PodRequest) -> Result<RunningPod, RunError> {
        request.check()?;
        for container in &request.containers {
            if !self.has_image(&container.image).await? {
                return Err(RunError::NoImage {
                    image: container.image.clone(),
                });
            }
        }
        let handlers = self.handlers().await?;
        if !request.handler.is_empty() && !handlers.is_empty() && !handlers.contains(&request.handler) {
            return Err(RunError::NoHandler {
                handler: request.handler.clone(),
            });
        }
        let driver = self.cgroup_driver().await?.unwrap_or(CgroupDriver::Cgroupfs);
        let cgroup_parent = if request.cgroup_parent.is_empty() {
            pod_cgroup_parent(driver, &request.uid)
        } else {
            request.cgroup_parent.clone()
        };
        let log_directory = request.log_directory();
        make_log_directory(&log_directory).await?;
        // With systemd, the runtime makes the slice; a limit then holds per container.
        if driver == CgroupDriver::Cgroupfs
            && let Some(limit) = request.memory_limit
            && let Err((path, source)) = podcgroup::limit_memory(&cgroup_parent, limit)
        {
            tidy(&log_directory, &cgroup_parent).await;
            return Err(RunError::Prepare { path, source });
        }
        match self.start_all(request, &cgroup_parent).await {
            Ok(pod) => Ok(pod),
            Err(error) => {
                self.roll_back(request).await;
                Err(error.into())
            }
        }
    }

    /// The pods of the node as containerd lists them, without asking any shim.
    ///
    /// # Errors
    /// containerd fails.
    pub async fn list_pods(&self) -> Result<Vec<ListedPod>, CallError> {
        let listed = self.sandboxes().await?.into_iter().map(|sandbox| {
            let metadata = sandbox.metadata.unwrap_or_default();
            ListedPod {
                uid: metadata.uid,
                name: metadata.name,
                namespace: metadata.namespace,
                sandbox_id: sandbox.id,
                labels: sandbox.labels.into_iter().collect(),
                ready: sandbox.state == i32::from(cri::PodSandboxState::SandboxReady),
            }
        });
        Ok(listed.collect())
    }

    async fn start_all(&self, request: &PodRequest, cgroup_parent: &str) -> Result<RunningPod, CallError> {
        let config = request.sandbox_config(cgroup_parent);
        let sandbox_id = self
            .within("RunPodSandbox", &request.name, START_DEADLINE, async {
                self.cri()
                    .run_pod_sandbox(cri::RunPodSandboxRequest {
                        config: Some(config.clone()),
                        runtime_handler: request.handler.clone(),
                    })
                    .await
            })
            .await?
            .pod_sandbox_id;
        let mut containers = Vec::new();
        for container in &request.containers {
            let create = cri::CreateContainerRequest {
                pod_sandbox_id: sandbox_id.clone(),
                config: Some(request.container_config(container)),
                sandbox_config: Some(config.clone()),
            };
            let id = self
                .within("CreateContainer", &container.name, START_DEADLINE, async {
                    self.cri().create_container(create).await
                })
                .await?
                .container_id;
            self.within("StartContainer", &container.name, START_DEADLINE, async {
                self.cri()
                    .start_container(cri::StartContainerRequest {
                        container_id: id.clone(),
                    })
                    .await
            })
            .await?;
            containers.push((container.name.clone(), id));
        }
        let status = self.sandbox_status(&sandbox_id).await?;
        Ok(RunningPod {
            uid: request.uid.clone(),
            sandbox_id,
            addresses: status.network.map(addresses).unwrap_or_default(),
            containers,
            log_directory: request.log_directory(),
        })
    }

    /// Removes whatever exists of a pod that could not be started, or whose start was called off. By UID: the
    /// sandbox's id is not known then. What cannot be removed is logged.
    pub async fn roll_back(&self, request: &PodRequest) {
        self.remove_by_uid(&request.uid).await;
        tidy(
            &request.log_directory(),
            &pod_cgroup_parent(CgroupDriver::Cgroupfs, &request.uid),
        )
        .await;
    }

    async fn remove_by_uid(&self, uid: &str) {
        let sandboxes = match self.sandboxes().await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::warn!(uid, %error, "cannot remove what was made of a pod that failed to start");
                return;
            }
        };
        for sandbox in sandboxes {
            if sandbox
                .metadata
                .as_ref()
                .is_some_and(|metadata| metadata.uid == uid)
                && let Err(error) = self.remove_sandbox(&sandbox.id).await
            {
                tracing::warn!(uid, sandbox_id = sandbox.id, %error, "cannot remove a pod that failed to start");
            }
        }
    }

    /// Stops a pod: its containers get `grace` to end, then they are killed. The pod sandbox stays.
    ///
    /// # Errors
    /// containerd fails, or takes longer than `grace` and half a minute. A pod that is gone is no error.
    pub async fn stop_pod(&self, sandbox_id: &str, grace: Duration) -> Result<(), CallError> {
        for container in self.containers(Some(sandbox_id)).await? {
            if container.state() == cri::ContainerState::ContainerRunning {
                self.stop_container(&container.id, grace).await?;
            }
        }
        self.within("StopPodSandbox", sandbox_id, STOP_SLACK, async {
            self.cri()
                .stop_pod_sandbox(cri::StopPodSandboxRequest {
                    pod_sandbox_id: sandbox_id.to_owned(),
                })
                .await
        })
        .await?;
        Ok(())
    }

    /// Stops one container: it gets `grace` to end, then it is killed.
    ///
    /// # Errors
    /// containerd fails, or takes longer than `grace` and half a minute. A container that is gone is no error.
    pub async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<(), CallError> {
        let request = cri::StopContainerRequest {
            container_id: container_id.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let stopped = self
            .within(
                "StopContainer",
                container_id,
                grace.saturating_add(STOP_SLACK),
                async { self.cri().stop_container(request).await },
            )
            .await;
        match stopped {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a pod: its sandbox, containers, log directory, and its cgroup if Dormouse made it.
    ///
    /// # Errors
    /// containerd fails. A pod that is gone is no error.
    pub async fn remove_pod(&self, sandbox_id: &str) -> Result<(), CallError> {
        let record = self.sandbox_record(sandbox_id).await?;
        self.remove_sandbox(sandbox_id).await?;
        if let Some(record) = record {
            tidy(&record.log_directory, &record.cgroup_parent).await;
        }
        Ok(())
    }

    async fn remove_sandbox(&self, sandbox_id: &str) -> Result<(), CallError> {
        self.within("StopPodSandbox", sandbox_id, STOP_SLACK, async {
            self.cri()
                .stop_pod_sandbox(cri::StopPodSandboxRequest {
                    pod_sandbox_id: sandbox_id.to_owned(),
                })
                .await
        })
        .await?;
        self.within("RemovePodSandbox", sandbox_id, STOP_SLACK, async {
            self.cri()
                .remove_pod_sandbox(cri::RemovePodSandboxRequest {
                    pod_sandbox_id: sandbox_id.to_owned(),
                })
                .await
        })
        .await?;
        Ok(())
    }

    /// Runs a command in a container and waits for its end.
    ///
    /// # Errors
    /// containerd fails, or the command takes longer than `limit`.
    pub async fn exec_sync(
        &self,
        container_id: &str,
        command: &[&str],
        limit: Duration,
    ) -> Result<ExecOutput, CallError> {
        let request = cri::ExecSyncRequest {
            container_id: container_id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let answer = self
            .within(
                "ExecSync",
                container_id,
                limit.saturating_add(Duration::from_secs(2)),
                async { self.cri().exec_sync(request).await },
            )
            .await?;
        Ok(ExecOutput {
            exit_code: answer.exit_code,
            stdout: answer.stdout,
            stderr: answer.stderr,
        })
    }
}

async fn make_log_directory(path: &Path) -> Result<(), RunError> {
    tokio::fs::create_dir_all(path)
        .await
        .map_err(|source| RunError::Prepare {
            path: path.to_owned(),
            source,
        })
}

/// Removes what containerd leaves behind of a pod of ours. Only a directory of kubelet's form is removed.
async fn tidy(log_directory: &Path, cgroup_parent: &str) {
    let ours = cgroup_parent.starts_with("/dormouse/pod");
    let named = log_directory
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.split('_').count() == 3);
    if ours && named && log_directory.is_absolute() {
        if let Err(error) = tokio::fs::remove_dir_all(log_directory).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %log_directory.display(), %error, "cannot remove a pod's log directory");
        }
        podcgroup::remove(cgroup_parent);
    }
}

fn bad(field: &'static str, value: &str, why: &'static str) -> RunError {
    RunError::BadRequest {
        field,
        value: value.chars().take(80).collect(),
        why,
    }
}

/// Checks an RFC 1123 label, or subdomain if `dots`.
fn check_name(field: &'static str, name: &str, max: usize, dots: bool) -> Result<(), RunError> {
    let good = !name.is_empty()
        && name.len() <= max
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric());
    if good {
        Ok(())
    } else {
        Err(bad(
            field,
            name,
            "use lower-case letters, digits and '-', beginning and ending with a letter or digit",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PodRequest {
        PodRequest {
            name: "api".into(),
            namespace: "default".into(),
            uid: "0192-ab".into(),
            log_root: "/var/log/pods".into(),
            annotations: [
                (
                    "dev.gvisor.flag.allow-connected-on-save".to_owned(),
                    "true".to_owned(),
                ),
                ("dormouse.dev/managed".to_owned(), "true".to_owned()),
            ]
            .into(),
            containers: vec![ContainerRequest {
                name: "main".into(),
                image: "x:1".into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_request_becomes_cri_messages() {
        let request = request();
        assert!(request.check().is_ok());
        let config = request.sandbox_config("/dormouse/pod0192-ab");
        assert_eq!(config.log_directory, "/var/log/pods/default_api_0192-ab");
        assert_eq!(config.hostname, "api");
        assert_eq!(config.linux.unwrap().cgroup_parent, "/dormouse/pod0192-ab");
        let container = request.container_config(&request.containers[0]);
        assert_eq!(container.log_path, "main/0.log");
        assert_eq!(container.annotations.len(), 1);
        assert_eq!(container.labels["io.kubernetes.container.name"], "main");
    }

    #[test]
    fn hostile_requests_are_refused() {
        let change: [fn(&mut PodRequest); 8] = [
            |r| r.name = "../x".into(),
            |r| r.name = String::new(),
            |r| r.namespace = "A".into(),
            |r| r.uid = "a/b".into(),
            |r| r.log_root = "logs".into(),
            |r| r.containers.clear(),
            |r| r.memory_limit = Some(1),
            |r| r.containers.push(r.containers[0].clone()),
        ];
        for change in change {
            let mut request = request();
            change(&mut request);
            assert!(request.check().is_err(), "{request:?}");
        }
    }

    #[test]
    fn cgroup_parents() {
        assert_eq!(
            pod_cgroup_parent(CgroupDriver::Cgroupfs, "a-b"),
            "/dormouse/poda-b"
        );
        assert_eq!(
            pod_cgroup_parent(CgroupDriver::Systemd, "a-b"),
            "dormouse-poda_b.slice"
        );
    }
}
