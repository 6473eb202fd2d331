//! containerd's task API, as far as this driver needs it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{GetRequest, PauseTaskRequest, ResumeTaskRequest};
use containerd_client::types::v1::Status as TaskStatus;
use dormouse_core::Reason;
use tokio::sync::OnceCell;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// How long one call may take. The agent inside the guest freezes a cgroup in milliseconds on real hardware and in
/// some hundreds of them under emulation.
const CALL: Duration = Duration::from_secs(10);
/// The namespace of the CRI's containers.
const NAMESPACE: &str = "k8s.io";

/// A call on a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// containerd cannot be reached.
    #[error("containerd cannot be reached at {}: {source}", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// What failed.
        source: tonic::transport::Error,
    },
    /// No answer in time.
    #[error("containerd did not answer Task.{call} of container {id} within {} s", CALL.as_secs())]
    Timeout {
        /// The call.
        call: &'static str,
        /// The container.
        id: String,
    },
    /// There is no such task.
    #[error("container {id} has no task any more")]
    Gone {
        /// The container.
        id: String,
    },
    /// containerd or the shim refused.
    #[error("Task.{call} of container {id} failed: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The container.
        id: String,
        /// The shim's words.
        message: String,
    },
}

impl TaskError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unreachable { .. } => Reason::RuntimeUnavailable,
            Self::Timeout { .. } | Self::Refused { .. } => Reason::RuntimeCallFailed,
            Self::Gone { .. } => Reason::GuestGone,
        }
    }
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Its state.
    pub status: TaskStatus,
    /// For Kata the virtual machine monitor's process id, the same for every container of the pod.
    pub pid: i32,
}

/// A client of the task API; connects when it is first used.
#[derive(Debug)]
pub struct Tasks {
    socket: PathBuf,
    channel: OnceCell<Channel>,
}

impl Tasks {
    /// A client of the containerd that listens on this socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            channel: OnceCell::new(),
        }
    }

    /// containerd's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn client(&self) -> Result<TasksClient<Channel>, TaskError> {
        let channel = self
            .channel
            .get_or_try_init(|| containerd_client::connect(&self.socket))
            .await
            .map_err(|source| TaskError::Unreachable {
                path: self.socket.clone(),
                source,
            })?;
        // The channel connects anew by itself after a restart of containerd.
        Ok(TasksClient::new(channel.clone()))
    }

    /// Where a task stands.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn get(&self, id: &str) -> Result<Task, TaskError> {
        let mut client = self.client().await?;
        let request = GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let response = call("Get", id, client.get(of_cri(request))).await?;
        let gone = || TaskError::Gone { id: id.to_owned() };
        let process = response.process.ok_or_else(gone)?;
        Ok(Task {
            status: process.status(),
            pid: i32::try_from(process.pid).unwrap_or(0),
        })
    }

    /// Pauses a task. Not idempotent: shims differ in what they say of one that is paused.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn pause(&self, id: &str) -> Result<(), TaskError> {
        let mut client = self.client().await?;
        let request = of_cri(PauseTaskRequest {
            container_id: id.to_owned(),
        });
        call("Pause", id, client.pause(request)).await.map(drop)
    }

    /// Resumes a task. Not idempotent either.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn resume(&self, id: &str) -> Result<(), TaskError> {
        let mut client = self.client().await?;
        let request = of_cri(ResumeTaskRequest {
            container_id: id.to_owned(),
        });
        call("Resume", id, client.resume(request)).await.map(drop)
    }
}

fn of_cri<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

async fn call<T>(
    name: &'static str,
    id: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, TaskError> {
    match tokio::time::timeout(CALL, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if status.code() == Code::NotFound => Err(TaskError::Gone { id: id.to_owned() }),
        Ok(Err(status)) => Err(TaskError::Refused {
            call: name,
            id: id.to_owned(),
            message: shortened(status.message()),
        }),
        Err(_) => Err(TaskError::Timeout {
            call: name,
            id: id.to_owned(),
        }),
    }
}

/// A shim's words can be long.
fn shortened(message: &str) -> String {
    message.chars().take(300).collect()
}
