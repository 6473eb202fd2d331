//! One look at one pod.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_cri::v1 as cri;
use tokio::io::AsyncReadExt as _;

use crate::error::CallError;
use crate::parse::{MAX_SHIM_CONFIG, SandboxRecord, is_id, runtime_roots};
use crate::pod::{Container, ContainerState, Pod};
use crate::runtime::Runtime;

/// kubelet's annotation on containers with the pod's termination grace period in seconds.
const GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Process ids that events have told, by container id.
pub(crate) type Pids = Arc<HashMap<String, i32>>;

/// Looks at one pod sandbox; `None` if it is gone.
///
/// What cannot change in a sandbox's life is taken from `before`.
pub(crate) async fn look(
    runtime: &Runtime,
    sandbox_id: &str,
    before: Option<Arc<Pod>>,
    pids: &Pids,
    listed: Option<Vec<cri::Container>>,
) -> Result<Option<Pod>, CallError> {
    let status = match runtime.sandbox_status(sandbox_id).await {
        Ok(status) => status,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let containers = match listed {
        Some(containers) => containers,
        None => runtime.containers(Some(sandbox_id)).await?,
    };
    let before = before.filter(|pod| !pod.runtime_type.is_empty());
    let fixed = match &before {
        Some(pod) => Fixed::of(pod),
        None => Fixed::read(runtime, sandbox_id).await?,
    };
    let ready = status.state() == cri::PodSandboxState::SandboxReady;
    let sandbox_pid = if ready {
        sandbox_pid(runtime, sandbox_id, before.as_deref(), pids).await
    } else {
        0
    };
    let mut pod = assemble(status, fixed, sandbox_pid, &containers);
    for container in pod.containers.iter_mut().filter(|c| c.running) {
        container.pid = known_pid(&container.id, before.as_deref(), pids);
        if container.pid == 0 {
            container.pid = match runtime.container_pid(&container.id).await {
                Ok(pid) => pid,
                // It ended between the list and now; an event says so soon.
                Err(error) if error.is_not_found() => 0,
                Err(error) => return Err(error),
            };
        }
    }
    Ok(Some(pod))
}

/// What does not change in a sandbox's life.
struct Fixed {
    record: SandboxRecord,
    runtime_roots: Vec<PathBuf>,
}

impl Fixed {
    fn of(pod: &Pod) -> Self {
        Self {
            record: SandboxRecord {
                runtime_type: pod.runtime_type.clone(),
                shim_config: None,
                cgroup_parent: pod.cgroup_parent.clone(),
                netns: pod.netns.clone(),
                log_directory: pod.log_directory.clone(),
            },
            runtime_roots: pod.runtime_roots.clone(),
        }
    }

    async fn read(runtime: &Runtime, sandbox_id: &str) -> Result<Self, CallError> {
        let record = runtime.sandbox_record(sandbox_id).await?.unwrap_or_default();
        let config = match &record.shim_config {
            Some(path) => read_bounded(path).await,
            None => None,
        };
        let runtime_roots = runtime_roots(&record.runtime_type, config.as_deref());
        Ok(Self {
            record,
            runtime_roots,
        })
    }
}

/// A shim's configuration file, or `None` if it cannot be read: its default then counts.
async fn read_bounded(path: &Path) -> Option<String> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the shim's configuration");
            return None;
        }
    };
    let mut text = String::new();
    let limit = u64::try_from(MAX_SHIM_CONFIG).unwrap_or(u64::MAX);
    match file.take(limit).read_to_string(&mut text).await {
        Ok(_) => Some(text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the shim's configuration");
            None
        }
    }
}

/// The sandbox task's process id. It never changes while the sandbox is ready, so the shim is asked once at
/// most, and a shim that does not answer costs the pod its id but not its place in the index.
async fn sandbox_pid(runtime: &Runtime, sandbox_id: &str, before: Option<&Pod>, pids: &Pids) -> i32 {
    let known = before.map_or(0, |pod| pod.sandbox_pid);
    if known != 0 {
        return known;
    }
    if let Some(pid) = pids.get(sandbox_id) {
        return *pid;
    }
    match runtime.task_pid(sandbox_id).await {
        Ok(pid) => pid,
        Err(error) => {
            tracing::warn!(sandbox_id, %error, "cannot learn the process id of the pod sandbox");
            0
        }
    }
}

/// A container's process id if it was told before. An id is used for one task only, so it stays true.
fn known_pid(container_id: &str, before: Option<&Pod>, pids: &Pids) -> i32 {
    before
        .and_then(|pod| pod.container(container_id))
        .map(|container| container.pid)
        .filter(|pid| *pid != 0)
        .or_else(|| pids.get(container_id).copied())
        .unwrap_or(0)
}

/// Puts a pod together. Pure.
fn assemble(
    status: cri::PodSandboxStatus,
    fixed: Fixed,
    sandbox_pid: i32,
    containers: &[cri::Container],
) -> Pod {
    let ready = status.state() == cri::PodSandboxState::SandboxReady;
    let metadata = status.metadata.unwrap_or_default();
    let mut listed: Vec<&cri::Container> = containers
        .iter()
        .filter(|c| c.pod_sandbox_id == status.id && is_id(&c.id))
        .collect();
    listed.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    let termination_grace = listed
        .iter()
        .find_map(|c| c.annotations.get(GRACE_ANNOTATION))
        .and_then(|seconds| seconds.parse::<u32>().ok())
        .map(|seconds| Duration::from_secs(seconds.into()));
    Pod {
        uid: metadata.uid,
        name: metadata.name,
        namespace: metadata.namespace,
        attempt: metadata.attempt,
        sandbox_id: status.id,
        handler: status.runtime_handler,
        runtime_type: fixed.record.runtime_type,
        runtime_roots: fixed.runtime_roots,
        annotations: status.annotations.into_iter().collect(),
        labels: status.labels.into_iter().collect(),
        cgroup_parent: fixed.record.cgroup_parent,
        netns: fixed.record.netns,
        sandbox_pid,
        addresses: status.network.map(addresses).unwrap_or_default(),
        containers: listed.into_iter().map(container).collect(),
        ready,
        created: time_of(status.created_at),
        termination_grace,
        log_directory: fixed.record.log_directory,
    }
}

fn container(container: &cri::Container) -> Container {
    let state = match container.state() {
        cri::ContainerState::ContainerCreated => ContainerState::Created,
        cri::ContainerState::ContainerRunning => ContainerState::Running,
        cri::ContainerState::ContainerExited => ContainerState::Exited,
        cri::ContainerState::ContainerUnknown => ContainerState::Unknown,
    };
    let metadata = container.metadata.clone().unwrap_or_default();
    // What a pod asks for may be a tag, which can come to mean another image.
    let image = if container.image_ref.is_empty() {
        container.image.clone().unwrap_or_default().image
    } else {
        container.image_ref.clone()
    };
    Container {
        id: container.id.clone(),
        name: metadata.name,
        image,
        pid: 0,
        running: state == ContainerState::Running,
        state,
        attempt: metadata.attempt,
    }
}

/// The addresses that can be read, the primary one first.
pub(crate) fn addresses(network: cri::PodSandboxNetworkStatus) -> Vec<IpAddr> {
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip)
        .chain(more)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

/// A CRI time (nanoseconds since 1970); one that is none becomes 1970.
fn time_of(nanos: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, sandbox: &str, created_at: i64) -> cri::Container {
        cri::Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            created_at,
            state: cri::ContainerState::ContainerRunning.into(),
            annotations: [(GRACE_ANNOTATION.to_owned(), "30".to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_is_put_together() {
        let status = cri::PodSandboxStatus {
            id: "s".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "n".into(),
                uid: "u".into(),
                namespace: "ns".into(),
                attempt: 2,
            }),
            state: cri::PodSandboxState::SandboxReady.into(),
            created_at: 1_500_000_000,
            network: Some(cri::PodSandboxNetworkStatus {
                ip: "10.0.0.2".into(),
                additional_ips: vec![
                    cri::PodIp { ip: "fd00::2".into() },
                    cri::PodIp { ip: "garbage".into() },
                ],
            }),
            ..Default::default()
        };
        let fixed = Fixed {
            record: SandboxRecord::default(),
            runtime_roots: vec![],
        };
        let containers = [
            listed("b", "s", 2),
            listed("a", "s", 1),
            listed("x", "other", 0),
            listed("../x", "s", 0),
        ];
        let pod = assemble(status, fixed, 9, &containers);
        assert_eq!(pod.full_name(), "ns/n");
        assert_eq!(pod.attempt, 2);
        assert_eq!(pod.sandbox_pid, 9);
        assert_eq!(
            pod.containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(
            pod.addresses,
            ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]
        );
        assert_eq!(pod.termination_grace, Some(Duration::from_secs(30)));
        assert_eq!(pod.created, UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[test]
    fn a_negative_time_is_no_panic() {
        assert_eq!(time_of(-1), UNIX_EPOCH);
        let _ = time_of(i64::MAX);
    }
}
