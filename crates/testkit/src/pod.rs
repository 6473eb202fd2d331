//! Pods, made through the CRI as kubelet makes them.

mod spec;
mod volumes;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStats, ContainerStatsRequest, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, DnsConfig, ExecSyncRequest, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListPodSandboxRequest, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest,
};
use tonic::transport::Channel;

pub use spec::{ContainerSpec, MountSpec, PodSpec};

use crate::host::{cgroup, wait};
use crate::stack::Stack;
pub(crate) use volumes::remove as remove_volumes;

/// A pod of a stack.
#[derive(Debug, Clone)]
pub struct Pod {
    /// containerd's id of the pod sandbox.
    pub id: String,
    /// Kubernetes UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Runtime handler.
    pub handler: String,
    /// Address, as CNI gave it.
    pub ip: IpAddr,
    /// containerd's ids of the containers, in the order of the spec.
    pub containers: Vec<String>,
    /// The network namespace's file.
    pub netns: PathBuf,
    /// The pod's cgroup, absolute within each hierarchy.
    pub cgroup: String,
    /// Where the containers' logs are.
    pub log_dir: PathBuf,
    log_files: Vec<PathBuf>,
    cri: RuntimeServiceClient<Channel>,
    spec: PodSpec,
}

/// What a command in a container wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

pub(crate) async fn run(stack: &Stack, spec: PodSpec) -> Result<Pod> {
    let mut pod = sandbox(stack, spec).await?;
    for index in 0..pod.spec.containers.len() {
        if let Err(error) = pod.add_container(stack, index, pod.spec.attempt).await {
            let _ = remove_sandbox(&mut pod.cri, &pod.id).await;
            let _ = cgroup::remove(&pod.cgroup);
            volumes::remove(&pod.uid);
            return Err(error.context(format!("pod {}", pod.name)));
        }
    }
    Ok(pod)
}

/// A pod without its containers.
pub(crate) async fn sandbox(stack: &Stack, spec: PodSpec) -> Result<Pod> {
    let uid = spec
        .uid
        .clone()
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let cgroup = stack.pod_cgroup(&uid);
    cgroup::create(&cgroup)?;
    if let Some(limit) = spec.memory_limit {
        cgroup::limit_memory(&cgroup, limit)?;
    }
    let log_dir = stack
        .dir()
        .join("logs")
        .join(format!("{}_{}_{uid}", spec.namespace, spec.name));
    std::fs::create_dir_all(&log_dir).with_context(|| format!("create {}", log_dir.display()))?;
    volumes::create(&spec, &uid)?;
    let config = sandbox_config(&spec, &uid, &cgroup, &log_dir);
    let mut cri = stack.cri();
    let id = cri
        .run_pod_sandbox(RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: spec.handler.clone(),
        })
        .await;
    let id = match id {
        Ok(answer) => answer.into_inner().pod_sandbox_id,
        Err(status) => {
            let _ = cgroup::remove(&cgroup);
            volumes::remove(&uid);
            return Err(status).with_context(|| format!("run pod sandbox {}", spec.name));
        }
    };
    match network(&mut cri, &id).await {
        Ok((ip, netns)) => Ok(Pod {
            id,
            uid,
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            handler: spec.handler.clone(),
            ip,
            netns,
            containers: Vec::new(),
            log_files: Vec::new(),
            cgroup,
            log_dir,
            cri,
            spec,
        }),
        Err(error) => {
            let _ = remove_sandbox(&mut cri, &id).await;
            let _ = cgroup::remove(&cgroup);
            volumes::remove(&uid);
            Err(error.context(format!("pod {}", spec.name)))
        }
    }
}

/// A pod's address and the file of its network namespace.
async fn network(cri: &mut RuntimeServiceClient<Channel>, id: &str) -> Result<(IpAddr, PathBuf)> {
    let answer = cri
        .pod_sandbox_status(PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        })
        .await
        .context("ask for the pod sandbox")?
        .into_inner();
    let netns = netns(&answer.info).context("containerd's verbose status names no network namespace")?;
    let ip = answer
        .status
        .and_then(|status| status.network)
        .context("the pod has no network")?
        .ip;
    let ip = ip.parse().with_context(|| format!("the pod's address {ip:?}"))?;
    Ok((ip, netns))
}

async fn add_container(
    cri: &mut RuntimeServiceClient<Channel>,
    spec: &PodSpec,
    container: &ContainerSpec,
    attempt: u32,
    stack: &Stack,
    sandbox: &str,
    config: &PodSandboxConfig,
) -> Result<String> {
    let uid = config.metadata.as_ref().map_or("", |m| m.uid.as_str());
    let created = cri
        .create_container(CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container_config(spec, container, attempt, stack, uid)),
            sandbox_config: Some(config.clone()),
        })
        .await
        .with_context(|| format!("create container {}", container.name))?
        .into_inner()
        .container_id;
    cri.start_container(StartContainerRequest {
        container_id: created.clone(),
    })
    .await
    .with_context(|| format!("start container {}", container.name))?;
    Ok(created)
}

fn netns(info: &HashMap<String, String>) -> Option<PathBuf> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    info.pointer("/runtimeSpec/linux/namespaces")?
        .as_array()?
        .iter()
        .find(|namespace| namespace.get("type").is_some_and(|kind| kind == "network"))?
        .get("path")?
        .as_str()
        .map(PathBuf::from)
}

fn kubelet_labels(spec: &PodSpec, uid: &str) -> HashMap<String, String> {
    let mut labels = spec.labels.clone();
    labels.insert("io.kubernetes.pod.name".into(), spec.name.clone());
    labels.insert("io.kubernetes.pod.namespace".into(), spec.namespace.clone());
    labels.insert("io.kubernetes.pod.uid".into(), uid.to_owned());
    labels
}

fn sandbox_config(spec: &PodSpec, uid: &str, cgroup: &str, log_dir: &std::path::Path) -> PodSandboxConfig {
    let mut annotations = spec.annotations.clone();
    annotations.insert("kubernetes.io/config.source".into(), "api".into());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: spec.name.clone(),
            uid: uid.to_owned(),
            namespace: spec.namespace.clone(),
            attempt: spec.attempt,
        }),
        hostname: spec.name.clone(),
        log_directory: log_dir.display().to_string(),
        labels: kubelet_labels(spec, uid),
        annotations,
        dns_config: (!spec.name_servers.is_empty()).then(|| DnsConfig {
            servers: spec.name_servers.clone(),
            ..Default::default()
        }),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            resources: Some(resources(spec)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn resources(spec: &PodSpec) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_shares: 102,
        memory_limit_in_bytes: spec
            .memory_limit
            .and_then(|bytes| i64::try_from(bytes).ok())
            .unwrap_or(0),
        ..Default::default()
    }
}

fn container_config(
    spec: &PodSpec,
    container: &ContainerSpec,
    attempt: u32,
    stack: &Stack,
    uid: &str,
) -> ContainerConfig {
    let mut annotations = spec.container_annotations.clone();
    annotations.insert("io.kubernetes.container.restartCount".into(), attempt.to_string());
    annotations.insert("io.kubernetes.pod.terminationGracePeriod".into(), "30".into());
    let mut labels = spec.labels.clone();
    labels.insert("io.kubernetes.container.name".into(), container.name.clone());
    labels.insert("io.kubernetes.pod.name".into(), spec.name.clone());
    labels.insert("io.kubernetes.pod.namespace".into(), spec.namespace.clone());
    let mut mounts: Vec<Mount> = container
        .mounts
        .iter()
        .map(|mount| Mount {
            container_path: mount.guest.display().to_string(),
            host_path: mount.host.display().to_string(),
            readonly: mount.readonly,
            ..Default::default()
        })
        .collect();
    mounts.extend(spec.empty_dirs.iter().map(|(name, guest)| Mount {
        container_path: guest.display().to_string(),
        host_path: volumes::path(uid, name).display().to_string(),
        ..Default::default()
    }));
    if container.guest_programs {
        mounts.push(Mount {
            container_path: crate::guest::FOLDER.into(),
            host_path: stack.dir().join("guests").display().to_string(),
            readonly: true,
            ..Default::default()
        });
    }
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt,
        }),
        image: Some(ImageSpec {
            image: container.image.clone(),
            ..Default::default()
        }),
        command: container.command.clone(),
        args: container.args.clone(),
        envs: container
            .env
            .iter()
            .map(|(key, value)| KeyValue {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        mounts,
        labels,
        annotations,
        log_path: log_path(container, attempt),
        tty: container.tty,
        stdin: container.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(spec)),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn log_path(container: &ContainerSpec, attempt: u32) -> String {
    format!("{}/{attempt}.log", container.name)
}

impl Pod {
    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// The first container's id.
    ///
    /// # Errors
    /// When the pod has no container.
    pub fn container(&self) -> Result<&str> {
        self.containers
            .first()
            .map(String::as_str)
            .context("the pod has no container")
    }

    /// Makes the next container of the spec, or this one again, and starts it.
    ///
    /// # Errors
    /// When containerd cannot.
    pub async fn add_container(&mut self, stack: &Stack, index: usize, attempt: u32) -> Result<()> {
        let Some(container) = self.spec.containers.get(index) else {
            anyhow::bail!("pod {} has no container {index}", self.name);
        };
        let config = sandbox_config(&self.spec, &self.uid, &self.cgroup, &self.log_dir);
        let log = self.log_dir.join(log_path(container, attempt));
        let id = add_container(
            &mut self.cri,
            &self.spec,
            container,
            attempt,
            stack,
            &self.id,
            &config,
        )
        .await?;
        match (self.containers.get_mut(index), self.log_files.get_mut(index)) {
            (Some(old), Some(old_log)) => {
                *old = id;
                *old_log = log;
            }
            _ => {
                self.containers.push(id);
                self.log_files.push(log);
            }
        }
        Ok(())
    }

    /// Makes a container again that has ended or is to end, as kubelet restarts it: the old one is removed first.
    ///
    /// # Errors
    /// When containerd cannot.
    pub async fn restart_container(&mut self, stack: &Stack, index: usize, attempt: u32) -> Result<()> {
        let Some(old) = self.containers.get(index) else {
            anyhow::bail!("pod {} has no container {index}", self.name);
        };
        self.cri
            .stop_container(StopContainerRequest {
                container_id: old.clone(),
                timeout: 5,
            })
            .await
            .context("stop the container")?;
        self.cri
            .remove_container(RemoveContainerRequest {
                container_id: old.clone(),
            })
            .await
            .context("remove the container")?;
        self.add_container(stack, index, attempt).await
    }

    /// Runs a command in the first container and waits for its end.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than `limit`.
    pub async fn exec(&self, command: &[&str], limit: Duration) -> Result<ExecOutput> {
        self.exec_in(0, command, limit).await
    }

    /// The same in any container.
    ///
    /// # Errors
    /// As [`Self::exec`]; when there is no such container.
    pub async fn exec_in(&self, index: usize, command: &[&str], limit: Duration) -> Result<ExecOutput> {
        let container = self
            .containers
            .get(index)
            .context("the pod has no such container")?;
        let request = ExecSyncRequest {
            container_id: container.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: i64::try_from(limit.as_secs().max(1))?,
        };
        let answer = tokio::time::timeout(limit, self.cri.clone().exec_sync(request))
            .await
            .with_context(|| format!("{command:?} in {} took longer than {limit:?}", self.name))?
            .with_context(|| format!("{command:?} in {}", self.name))?
            .into_inner();
        Ok(ExecOutput {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// The first container's log so far, in the CRI's format (time, stream, tag, text).
    ///
    /// # Errors
    /// When there is none.
    pub fn logs(&self) -> Result<String> {
        self.logs_of(0)
    }

    /// The same of any container.
    ///
    /// # Errors
    /// When there is none.
    pub fn logs_of(&self, index: usize) -> Result<String> {
        let path = self
            .log_files
            .get(index)
            .context("the pod has no such container")?;
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    }

    /// The pod sandbox as the CRI sees it.
    ///
    /// # Errors
    /// When it does not know it.
    pub async fn status(&self) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        self.cri
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner()
            .status
            .context("a status without status")
    }

    /// The first container as the CRI sees it.
    ///
    /// # Errors
    /// When it does not know it.
    pub async fn container_status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: self.container()?.to_owned(),
            verbose: false,
        };
        self.cri
            .clone()
            .container_status(request)
            .await?
            .into_inner()
            .status
            .context("a status without status")
    }

    /// The first container's statistics; for gVisor this asks the sentry, through runsc.
    ///
    /// # Errors
    /// When containerd cannot get them.
    pub async fn stats(&self) -> Result<ContainerStats> {
        let request = ContainerStatsRequest {
            container_id: self.container()?.to_owned(),
        };
        self.cri
            .clone()
            .container_stats(request)
            .await?
            .into_inner()
            .stats
            .context("an answer without statistics")
    }

    /// Stops the first container: TERM, KILL after `grace`.
    ///
    /// # Errors
    /// When containerd cannot stop it.
    pub async fn stop_container(&self, grace: Duration) -> Result<()> {
        let request = StopContainerRequest {
            container_id: self.container()?.to_owned(),
            timeout: i64::try_from(grace.as_secs())?,
        };
        self.cri
            .clone()
            .stop_container(request)
            .await
            .map(drop)
            .context("stop the container")
    }

    /// Sets the first container's CPU shares, as kubelet does when the pod is resized.
    ///
    /// # Errors
    /// When containerd cannot.
    pub async fn set_cpu_shares(&self, shares: i64) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.container()?.to_owned(),
            linux: Some(LinuxContainerResources {
                cpu_shares: shares,
                ..LinuxContainerResources::default()
            }),
            ..UpdateContainerResourcesRequest::default()
        };
        self.cri
            .clone()
            .update_container_resources(request)
            .await
            .map(drop)
            .context("set the container's CPU shares")
    }

    /// Stops the whole pod: its containers are killed, its network is taken away.
    ///
    /// # Errors
    /// When containerd cannot stop it.
    pub async fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.cri
            .clone()
            .stop_pod_sandbox(request)
            .await
            .map(drop)
            .context("stop the pod sandbox")
    }

    /// Stops and removes the pod, then its cgroup, as kubelet does.
    ///
    /// # Errors
    /// When containerd cannot remove it, or processes of it are left.
    pub async fn remove(&self) -> Result<()> {
        remove_sandbox(&mut self.cri.clone(), &self.id).await?;
        let left = cgroup::processes(&self.cgroup);
        anyhow::ensure!(
            left.is_empty(),
            "processes {left:?} are left of pod {}",
            self.name
        );
        let left = cgroup::remove(&self.cgroup);
        anyhow::ensure!(left.is_empty(), "cgroups {left:?} are left of pod {}", self.name);
        volumes::remove(&self.uid);
        Ok(())
    }

    /// This pod's cgroup directory in the hierarchy of a controller (`"memory"`, `"freezer"`, ...).
    ///
    /// # Errors
    /// When the controller is not mounted.
    pub fn cgroup_dir(&self, controller: &str) -> Result<PathBuf> {
        cgroup::dir(controller, &self.cgroup)
    }

    /// Waits until `GET path` on the pod's address answers 200, and returns the time of the answer that did.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn wait_http(&self, port: u16, path: &str, limit: Duration) -> Result<crate::http::Answer> {
        let address = (self.ip, port).into();
        wait::until(&format!("http://{address}{path}"), limit, async || {
            let answer = crate::http::get(address, path, Duration::from_secs(5)).await?;
            anyhow::ensure!(answer.status == 200, "status {}", answer.status);
            Ok(answer)
        })
        .await
    }
}

async fn remove_sandbox(cri: &mut RuntimeServiceClient<Channel>, id: &str) -> Result<()> {
    let pod_sandbox_id = id.to_owned();
    cri.stop_pod_sandbox(StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    })
    .await
    .context("stop the pod sandbox")?;
    cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
        .await
        .context("remove the pod sandbox")?;
    Ok(())
}

/// Removes every pod, several at once, within a bound.
pub(crate) async fn remove_all(stack: &Stack) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    let mut cri = stack.cri();
    let remove = async {
        let pods = cri
            .list_pod_sandbox(ListPodSandboxRequest { filter: None })
            .await?
            .into_inner()
            .items;
        let removals = pods.into_iter().map(|pod| {
            let mut cri = stack.cri();
            async move {
                remove_sandbox(&mut cri, &pod.id)
                    .await
                    .with_context(|| format!("pod {}", pod.id))?;
                if let Some(metadata) = &pod.metadata {
                    volumes::remove(&metadata.uid);
                }
                anyhow::Ok(())
            }
        });
        let outcomes: Vec<Result<()>> = futures::StreamExt::collect(futures::StreamExt::buffer_unordered(
            futures::stream::iter(removals),
            8,
        ))
        .await;
        outcomes.into_iter().collect::<Result<()>>()
    };
    tokio::time::timeout(LIMIT, remove)
        .await
        .with_context(|| format!("not within {LIMIT:?}"))?
}
