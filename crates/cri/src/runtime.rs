//! The client of containerd: the CRI, tasks, containers and events over one Unix socket.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1 as ctrd;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::types::Envelope;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::error::{AnswerError, CallError, ConnectError};
use crate::feed::{HELLO_NAMESPACE, HELLO_TOPIC};
use crate::parse::{SandboxRecord, parse_container_info};

/// The endpoint that containerd has unless it was configured otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

/// containerd's namespace for the CRI's containers.
pub const NAMESPACE: &str = "k8s.io";

/// The largest message that is accepted, in bytes: a list of a thousand pods with all their annotations.
const MAX_MESSAGE: usize = 32 << 20;

/// How long containerd may take to answer from its own store.
const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a shim may take to say which process its task is.
const SHIM_DEADLINE: Duration = Duration::from_secs(2);

/// How long a connection attempt may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// What answers behind the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `containerd`.
    pub name: String,
    /// As in `2.3.7`.
    pub version: String,
}

impl RuntimeVersion {
    /// The major version, if the version begins with one.
    #[must_use]
    pub fn major(&self) -> Option<u32> {
        self.version
            .trim_start_matches('v')
            .split('.')
            .next()?
            .parse()
            .ok()
    }
}

/// How containerd names the cgroups that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories, as in `/kubepods/podUID`.
    Cgroupfs,
    /// Slices of systemd, as in `kubepods-podUID.slice`.
    Systemd,
}

/// A client of containerd. Cheap to clone; clones share one connection, which is made anew by the next call
/// after it broke.
#[derive(Debug, Clone)]
pub struct Runtime {
    channel: Channel,
    socket: PathBuf,
}

impl Runtime {
    /// Connects to the containerd behind `endpoint` (`unix:///…` or a path) and asks for its version.
    ///
    /// # Errors
    /// The endpoint is none, nothing answers, or what answers is not containerd.
    pub async fn connect(endpoint: &str) -> Result<Self, ConnectError> {
        let runtime = Self::lazy(endpoint)?;
        let version = runtime
            .version()
            .await
            .map_err(|source| ConnectError::Unreachable {
                path: runtime.socket.clone(),
                source: Box::new(source),
            })?;
        if version.name != "containerd" {
            return Err(ConnectError::NotContainerd {
                path: runtime.socket.clone(),
                name: version.name,
            });
        }
        Ok(runtime)
    }

    /// A client that connects with its first call; for an agent that may start before containerd.
    ///
    /// # Errors
    /// The endpoint is none.
    pub fn lazy(endpoint: &str) -> Result<Self, ConnectError> {
        let socket = socket_of(endpoint)?;
        let target = socket.clone();
        // The URI is required by HTTP/2 and has no meaning on a Unix socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(CONNECT_DEADLINE)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let target = target.clone();
                async move { UnixStream::connect(target).await.map(TokioIo::new) }
            }));
        Ok(Self { channel, socket })
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The gRPC channel, for services of containerd that this crate does not wrap (as the Kata driver's
    /// `Tasks.Pause`). Requests need the header of [`namespaced`].
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// What answers behind the socket.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn version(&self) -> Result<RuntimeVersion, CallError> {
        let request = cri::VersionRequest {
            version: "v1".to_owned(),
        };
        let answer = self
            .within("Version", "the node", STORE_DEADLINE, async {
                self.cri().version(request).await
            })
            .await?;
        Ok(RuntimeVersion {
            name: answer.runtime_name,
            version: answer.runtime_version.trim_start_matches('v').to_owned(),
        })
    }

    /// The cgroup driver that containerd uses; `None` where it is too old to tell.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>, CallError> {
        let answer = self
            .within("RuntimeConfig", "the node", STORE_DEADLINE, async {
                self.cri().runtime_config(cri::RuntimeConfigRequest {}).await
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_unimplemented() => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answer.linux.map(|linux| match linux.cgroup_driver() {
            cri::CgroupDriver::Systemd => CgroupDriver::Systemd,
            cri::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        }))
    }

    /// The names of the runtime handlers that containerd is configured with; empty where it does not tell.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn handlers(&self) -> Result<Vec<String>, CallError> {
        let answer = self
            .within("Status", "the node", STORE_DEADLINE, async {
                self.cri().status(cri::StatusRequest { verbose: false }).await
            })
            .await?;
        // The empty name stands for the default handler, which has a name of its own, too.
        Ok(answer
            .runtime_handlers
            .into_iter()
            .map(|handler| handler.name)
            .filter(|name| !name.is_empty())
            .collect())
    }

    /// The configuration that containerd's CRI runs with, as JSON; `None` where it does not tell. Its files may say
    /// something else by now.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn running_config(&self) -> Result<Option<String>, CallError> {
        let mut answer = self
            .within("Status", "the node", STORE_DEADLINE, async {
                self.cri().status(cri::StatusRequest { verbose: true }).await
            })
            .await?;
        Ok(answer.info.remove("config"))
    }

    /// Whether the image is on this node.
    ///
    /// # Errors
    /// containerd does not answer, or refuses.
    pub async fn has_image(&self, image: &str) -> Result<bool, CallError> {
        let request = cri::ImageStatusRequest {
            image: Some(cri::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            }),
            verbose: false,
        };
        let answer = self
            .within("ImageStatus", image, STORE_DEADLINE, async {
                ImageServiceClient::new(self.channel())
                    .image_status(request)
                    .await
            })
            .await?;
        Ok(answer.image.is_some())
    }

    pub(crate) async fn sandboxes(&self) -> Result<Vec<cri::PodSandbox>, CallError> {
        let request = cri::ListPodSandboxRequest { filter: None };
        let answer = self
            .within("ListPodSandbox", "the node", STORE_DEADLINE, async {
                self.cri().list_pod_sandbox(request).await
            })
            .await?;
        Ok(answer.items)
    }

    /// The containers of one pod sandbox, or of all.
    pub(crate) async fn containers(
        &self,
        sandbox_id: Option<&str>,
    ) -> Result<Vec<cri::Container>, CallError> {
        let filter = sandbox_id.map(|id| cri::ContainerFilter {
            pod_sandbox_id: id.to_owned(),
            ..Default::default()
        });
        let answer = self
            .within(
                "ListContainers",
                sandbox_id.unwrap_or("the node"),
                STORE_DEADLINE,
                async {
                    self.cri()
                        .list_containers(cri::ListContainersRequest { filter })
                        .await
                },
            )
            .await?;
        Ok(answer.containers)
    }

    /// The pod sandbox that a container belongs to; `None` if there is no such container.
    pub(crate) async fn sandbox_of(&self, container_id: &str) -> Result<Option<String>, CallError> {
        let filter = cri::ContainerFilter {
            id: container_id.to_owned(),
            ..Default::default()
        };
        let answer = self
            .within("ListContainers", container_id, STORE_DEADLINE, async {
                self.cri()
                    .list_containers(cri::ListContainersRequest { filter: Some(filter) })
                    .await
            })
            .await?;
        Ok(answer
            .containers
            .into_iter()
            .find(|c| c.id == container_id)
            .map(|c| c.pod_sandbox_id))
    }

    /// The sandbox's status from containerd's store. Never verbose: the verbose one asks the shim, and the
    /// shim asks the guest.
    pub(crate) async fn sandbox_status(&self, sandbox_id: &str) -> Result<cri::PodSandboxStatus, CallError> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            verbose: false,
        };
        let answer = self
            .within("PodSandboxStatus", sandbox_id, STORE_DEADLINE, async {
                self.cri().pod_sandbox_status(request).await
            })
            .await?;
        answer.status.ok_or_else(|| CallError::BadAnswer {
            call: "PodSandboxStatus",
            subject: sandbox_id.to_owned(),
            what: AnswerError::Missing("status"),
        })
    }

    /// A container's process id from containerd's store; 0 if it does not run.
    pub(crate) async fn container_pid(&self, container_id: &str) -> Result<i32, CallError> {
        let request = cri::ContainerStatusRequest {
            container_id: container_id.to_owned(),
            verbose: true,
        };
        let answer = self
            .within("ContainerStatus", container_id, STORE_DEADLINE, async {
                self.cri().container_status(request).await
            })
            .await?;
        let bad = |what| CallError::BadAnswer {
            call: "ContainerStatus",
            subject: container_id.to_owned(),
            what,
        };
        let info = answer
            .info
            .get("info")
            .ok_or_else(|| bad(AnswerError::Missing("info")))?;
        parse_container_info(info).map(|info| info.pid).map_err(bad)
    }

    /// What containerd's own record of a sandbox says; `None` if there is no such record.
    pub(crate) async fn sandbox_record(&self, sandbox_id: &str) -> Result<Option<SandboxRecord>, CallError> {
        let request = namespaced(ctrd::GetContainerRequest {
            id: sandbox_id.to_owned(),
        });
        let answer = self
            .within("Containers.Get", sandbox_id, STORE_DEADLINE, async {
                ContainersClient::new(self.channel())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .get(request)
                    .await
            })
            .await;
        let container = match answer {
            Ok(answer) => answer.container,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let bad = |what| CallError::BadAnswer {
            call: "Containers.Get",
            subject: sandbox_id.to_owned(),
            what,
        };
        let container = container.ok_or_else(|| bad(AnswerError::Missing("container")))?;
        SandboxRecord::from_container(&container).map(Some).map_err(bad)
    }

    /// The task's process id, from its shim; 0 if there is no task.
    ///
    /// # Errors
    /// The shim does not answer in time, or containerd does not.
    pub async fn task_pid(&self, container_id: &str) -> Result<i32, CallError> {
        let request = namespaced(ctrd::GetRequest {
            container_id: container_id.to_owned(),
            exec_id: String::new(),
        });
        let answer = self
            .within("Tasks.Get", container_id, SHIM_DEADLINE, async {
                TasksClient::new(self.channel()).get(request).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.process.map_or(0, |p| i32::try_from(p.pid).unwrap_or(0))),
            Err(error) if error.is_not_found() => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// containerd's events about tasks and containers of the CRI's namespace, and our own greeting.
    ///
    /// Without a deadline: containerd's server sends a stream's header with its first event.
    pub(crate) async fn task_events(&self) -> Result<Streaming<Envelope>, CallError> {
        let filters = [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
            "/tasks/delete",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/oom",
            "/tasks/paused",
            "/tasks/resumed",
            "/containers/create",
            "/containers/update",
            "/containers/delete",
            "/sandboxes/create",
            "/sandboxes/start",
            "/sandboxes/exit",
        ]
        .iter()
        .map(|topic| format!("namespace=={NAMESPACE},topic==\"{topic}\""))
        .chain([format!("namespace=={HELLO_NAMESPACE},topic==\"{HELLO_TOPIC}\"")])
        .collect();
        EventsClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .subscribe(ctrd::SubscribeRequest { filters })
            .await
            .map(Response::into_inner)
            .map_err(|status| refused("Events.Subscribe", "the node", status))
    }

    /// The CRI's own events. They come after the CRI has updated its store, which containerd's do not.
    ///
    /// Without a deadline, for the same reason as [`Self::task_events`].
    pub(crate) async fn container_events(&self) -> Result<Streaming<cri::ContainerEventResponse>, CallError> {
        self.cri()
            .get_container_events(cri::GetEventsRequest {})
            .await
            .map(Response::into_inner)
            .map_err(|status| refused("GetContainerEvents", "the node", status))
    }

    pub(crate) fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Runs one call under a deadline and names it in its errors.
    pub(crate) async fn within<T>(
        &self,
        call: &'static str,
        subject: &str,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refused(call, subject, status)),
            Err(_) => Err(CallError::Timeout {
                call,
                subject: subject.to_owned(),
                limit,
            }),
        }
    }
}

fn refused(call: &'static str, subject: &str, status: Status) -> CallError {
    CallError::Refused {
        call,
        subject: subject.to_owned(),
        status: Box::new(status),
    }
}

/// A request to containerd's own services, with the header that names the CRI's namespace.
#[must_use]
pub fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

/// The socket's path behind an endpoint.
fn socket_of(endpoint: &str) -> Result<PathBuf, ConnectError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(ConnectError::BadEndpoint {
            endpoint: endpoint.chars().take(200).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(socket_of("unix:///run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert_eq!(socket_of("/run/x.sock").unwrap(), Path::new("/run/x.sock"));
        for bad in ["", "run/x.sock", "unix://run/x", "tcp://1.2.3.4:5", "http://x"] {
            assert!(socket_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions() {
        let version = |v: &str| {
            RuntimeVersion {
                name: "containerd".into(),
                version: v.into(),
            }
            .major()
        };
        assert_eq!(version("2.3.7"), Some(2));
        assert_eq!(version("1.7.0-rc.1+unknown"), Some(1));
        assert_eq!(version("devel"), None);
    }

    #[tokio::test]
    async fn nobody_there_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.sock");
        let error = Runtime::connect(path.to_str().unwrap()).await.unwrap_err();
        assert_eq!(error.reason(), dormouse_core::Reason::RuntimeUnavailable);
        assert!(error.to_string().contains("none.sock"));
    }
}
