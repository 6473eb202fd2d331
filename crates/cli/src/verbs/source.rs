//! The snapshot that a new pod is to be filled from.

use dormouse_cri::PodRequest;
use dormouse_rpc::v1;

use crate::agent::{Agent, refused};
use crate::args::Global;
use crate::error::CliError;

/// A snapshot on this node.
#[derive(Debug)]
pub(super) struct Source {
    agent: Agent,
    /// The whole id.
    pub(super) id: String,
    containers: Vec<v1::SnapshotContainer>,
}

impl Source {
    /// Looks the snapshot up.
    pub(super) async fn find(global: &Global, id: &str) -> Result<Self, CliError> {
        let agent = Agent::connect(global).await?;
        let answer = agent
            .order(
                v1::GetSnapshotRequest { id: id.to_owned() },
                |mut client, request| async move { client.get_snapshot(request).await },
            )
            .await
            .map_err(|status| refused(&format!("snapshot {id}"), status))?;
        Ok(Self {
            agent,
            id: answer.snapshot.map(|snapshot| snapshot.id).unwrap_or_default(),
            containers: answer.containers,
        })
    }

    /// The containers that ran when it was taken.
    pub(super) fn live(&self) -> impl Iterator<Item = &v1::SnapshotContainer> {
        self.containers.iter().filter(|c| !c.name.is_empty() && !c.ended)
    }

    /// Has the agent give leave to fill this pod.
    pub(super) async fn grant(
        &self,
        pod: &PodRequest,
        source_namespace: Option<&str>,
    ) -> Result<(), CliError> {
        let request = v1::GrantRestoreRequest {
            id: self.id.clone(),
            pod_uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            source_namespace: source_namespace.unwrap_or_default().to_owned(),
            containers: pod
                .containers
                .iter()
                .map(|container| v1::grant_restore_request::Container {
                    name: container.name.clone(),
                    // A name is not compared: only containerd knows what it stands for.
                    image: Some(&container.image)
                        .filter(|image| image.starts_with("sha256:"))
                        .cloned()
                        .unwrap_or_default(),
                })
                .collect(),
            ttl: None,
        };
        self.agent
            .order(request, |mut client, request| async move {
                client.grant_restore(request).await
            })
            .await
            .map(drop)
            .map_err(|status| refused(&format!("restore of snapshot {}", self.id), status))
    }

    /// The pod was not made after all. What cannot be taken back runs out by itself.
    pub(super) async fn revoke(&self, pod_uid: &str) {
        let request = v1::RevokeRestoreRequest {
            pod_uid: pod_uid.to_owned(),
        };
        let _ = self
            .agent
            .order(request, |mut client, request| async move {
                client.revoke_restore(request).await
            })
            .await;
    }
}
