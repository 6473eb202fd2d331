//! What is on its way to run on the node at this moment.
//!
//! A containerd that is restarted meanwhile breaks the start off, and what the shim has begun by then goes on: the kubelet tries
//! again in the same sandbox, where a second process of the container may find the first one's ports taken.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use k8s_cri::v1::{Container, ContainerState, PodSandbox, PodSandboxState};

use crate::error::CallError;
use crate::runtime::Runtime;

/// A pod sandbox without containers is about to get one for as long as this; one that is older waits for something else, as an
/// image that does not come.
const YOUNG: Duration = Duration::from_secs(5);

impl Runtime {
    /// The containers that are made and not started, and the pod sandboxes whose first container is still to come, by name.
    ///
    /// A sandbox that is being made itself cannot be seen, nor can what comes between two containers of one pod.
    ///
    /// # Errors
    /// containerd does not answer, or refuses.
    pub async fn starts(&self) -> Result<Vec<String>, CallError> {
        let (sandboxes, containers) = tokio::try_join!(self.sandboxes(), self.containers(None))?;
        Ok(on_their_way(&sandboxes, &containers, SystemTime::now()))
    }
}

fn on_their_way(sandboxes: &[PodSandbox], containers: &[Container], now: SystemTime) -> Vec<String> {
    let made = containers
        .iter()
        .filter(|container| container.state() == ContainerState::ContainerCreated)
        .map(|container| {
            let name = container.metadata.as_ref().map(|metadata| metadata.name.clone());
            name.unwrap_or_else(|| container.id.clone())
        });
    let furnished: HashSet<&str> = containers.iter().map(|c| c.pod_sandbox_id.as_str()).collect();
    let empty = sandboxes
        .iter()
        .filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady)
        .filter(|sandbox| !furnished.contains(sandbox.id.as_str()) && is_young(sandbox.created_at, now))
        .map(|sandbox| {
            let name = sandbox.metadata.as_ref().map(|metadata| metadata.name.clone());
            name.unwrap_or_else(|| sandbox.id.clone())
        });
    made.chain(empty).collect()
}

/// `created` in nanoseconds since 1970. A clock that was set back makes nothing young for good: who waits for this has a limit.
fn is_young(created: i64, now: SystemTime) -> bool {
    let created = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(created).unwrap_or(0));
    now.duration_since(created).map_or(true, |age| age < YOUNG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{ContainerMetadata, PodSandboxMetadata};

    fn sandbox(id: &str, state: PodSandboxState, age: u64) -> PodSandbox {
        let created = i64::try_from((1000 - age) * 1_000_000_000).unwrap();
        PodSandbox {
            id: id.to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: format!("pod-{id}"),
                ..Default::default()
            }),
            state: state.into(),
            created_at: created,
            ..Default::default()
        }
    }

    fn container(sandbox: &str, state: ContainerState) -> Container {
        Container {
            id: format!("c-{sandbox}"),
            pod_sandbox_id: sandbox.to_owned(),
            metadata: Some(ContainerMetadata {
                name: format!("main-{sandbox}"),
                attempt: 0,
            }),
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn who_is_made_and_does_not_run_is_on_its_way() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let (ready, not_ready) = (PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready);
        let sandboxes = [
            sandbox("runs", ready, 1),
            sandbox("starts", ready, 100),
            sandbox("new", ready, 1),
            sandbox("waits", ready, 100),
            sandbox("gone", not_ready, 1),
        ];
        let containers = [
            container("runs", ContainerState::ContainerRunning),
            container("runs", ContainerState::ContainerExited),
            container("starts", ContainerState::ContainerCreated),
        ];
        assert_eq!(
            on_their_way(&sandboxes, &containers, now),
            ["main-starts", "pod-new"]
        );
        assert!(on_their_way(&[], &[], now).is_empty());
    }
}
