//! containerd's events, decoded. Pure.

use containerd_client::events as ev;
use containerd_client::types::Envelope;
use prost::Message as _;

use crate::parse::is_id;
use crate::runtime::NAMESPACE;

/// What an event of containerd means to the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Something about this container, or sandbox, has changed.
    Touched { container_id: String },
    /// A task began; its process id is known now.
    TaskStarted { container_id: String, pid: i32 },
    /// A task ended.
    TaskExited { container_id: String, exit_status: u32 },
    /// An exec session is about to begin.
    ExecAdded { container_id: String, exec_id: String },
    /// An exec session began.
    ExecStarted { container_id: String, exec_id: String },
    /// An exec session ended.
    ExecEnded { container_id: String, exec_id: String },
    /// A container ran out of memory.
    OutOfMemory { container_id: String },
    /// A task was paused or resumed through containerd.
    Paused { container_id: String, paused: bool },
}

impl Signal {
    /// The container that the event is about.
    pub(crate) fn container_id(&self) -> &str {
        match self {
            Self::Touched { container_id }
            | Self::TaskStarted { container_id, .. }
            | Self::TaskExited { container_id, .. }
            | Self::ExecAdded { container_id, .. }
            | Self::ExecStarted { container_id, .. }
            | Self::ExecEnded { container_id, .. }
            | Self::OutOfMemory { container_id }
            | Self::Paused { container_id, .. } => container_id,
        }
    }

    /// Decodes an event; `None` for one of another namespace, of no interest, or that cannot be decoded.
    pub(crate) fn decode(envelope: &Envelope) -> Option<Self> {
        if envelope.namespace != NAMESPACE {
            return None;
        }
        let value = envelope.event.as_ref()?.value.as_slice();
        let signal = match envelope.topic.as_str() {
            "/tasks/create" => {
                let event = ev::TaskCreate::decode(value).ok()?;
                Self::TaskStarted {
                    container_id: event.container_id,
                    pid: pid(event.pid),
                }
            }
            "/tasks/start" => {
                let event = ev::TaskStart::decode(value).ok()?;
                Self::TaskStarted {
                    container_id: event.container_id,
                    pid: pid(event.pid),
                }
            }
            "/tasks/exit" => {
                let event = ev::TaskExit::decode(value).ok()?;
                if event.id.is_empty() || event.id == event.container_id {
                    Self::TaskExited {
                        container_id: event.container_id,
                        exit_status: event.exit_status,
                    }
                } else {
                    Self::ExecEnded {
                        container_id: event.container_id,
                        exec_id: event.id,
                    }
                }
            }
            "/tasks/delete" => {
                let event = ev::TaskDelete::decode(value).ok()?;
                Self::Touched {
                    container_id: event.container_id,
                }
            }
            "/tasks/exec-added" => {
                let event = ev::TaskExecAdded::decode(value).ok()?;
                Self::ExecAdded {
                    container_id: event.container_id,
                    exec_id: event.exec_id,
                }
            }
            "/tasks/exec-started" => {
                let event = ev::TaskExecStarted::decode(value).ok()?;
                Self::ExecStarted {
                    container_id: event.container_id,
                    exec_id: event.exec_id,
                }
            }
            "/tasks/oom" => {
                let event = ev::TaskOom::decode(value).ok()?;
                Self::OutOfMemory {
                    container_id: event.container_id,
                }
            }
            "/tasks/paused" => {
                let event = ev::TaskPaused::decode(value).ok()?;
                Self::Paused {
                    container_id: event.container_id,
                    paused: true,
                }
            }
            "/tasks/resumed" => {
                let event = ev::TaskResumed::decode(value).ok()?;
                Self::Paused {
                    container_id: event.container_id,
                    paused: false,
                }
            }
            "/containers/create" => Self::Touched {
                container_id: ev::ContainerCreate::decode(value).ok()?.id,
            },
            "/containers/update" => Self::Touched {
                container_id: ev::ContainerUpdate::decode(value).ok()?.id,
            },
            "/containers/delete" => Self::Touched {
                container_id: ev::ContainerDelete::decode(value).ok()?.id,
            },
            // containerd-client lacks the sandbox events; all of them have the id as field 1.
            "/sandboxes/create" | "/sandboxes/start" | "/sandboxes/exit" => Self::Touched {
                container_id: SandboxEvent::decode(value).ok()?.sandbox_id,
            },
            _ => return None,
        };
        is_id(signal.container_id()).then_some(signal)
    }
}

/// What `SandboxCreate`, `SandboxStart` and `SandboxExit` have in common.
///
/// Source: containerd, api/events/sandbox.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct SandboxEvent {
    #[prost(string, tag = "1")]
    sandbox_id: String,
}

/// A process id of the wire; 0 if it is none.
fn pid(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    fn envelope(topic: &str, event: &impl prost::Message) -> Envelope {
        Envelope {
            namespace: NAMESPACE.into(),
            topic: topic.into(),
            event: Some(Any {
                type_url: String::new(),
                value: event.encode_to_vec(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_exit_is_of_the_task_or_of_an_exec() {
        let task = ev::TaskExit {
            container_id: "c1".into(),
            id: "c1".into(),
            exit_status: 137,
            ..Default::default()
        };
        assert_eq!(
            Signal::decode(&envelope("/tasks/exit", &task)),
            Some(Signal::TaskExited {
                container_id: "c1".into(),
                exit_status: 137
            })
        );
        let exec = ev::TaskExit {
            container_id: "c1".into(),
            id: "e1".into(),
            ..Default::default()
        };
        assert_eq!(
            Signal::decode(&envelope("/tasks/exit", &exec)),
            Some(Signal::ExecEnded {
                container_id: "c1".into(),
                exec_id: "e1".into()
            })
        );
    }

    #[test]
    fn other_namespaces_topics_and_garbage_are_ignored() {
        let event = ev::TaskStart {
            container_id: "c1".into(),
            pid: 7,
        };
        let mut other = envelope("/tasks/start", &event);
        assert_eq!(
            Signal::decode(&other),
            Some(Signal::TaskStarted {
                container_id: "c1".into(),
                pid: 7
            })
        );
        other.namespace = "moby".into();
        assert_eq!(Signal::decode(&other), None);
        assert_eq!(Signal::decode(&envelope("/images/create", &event)), None);
        let mut garbage = envelope("/tasks/start", &event);
        garbage.event = Some(Any {
            type_url: String::new(),
            value: vec![0xff; 9],
        });
        assert_eq!(Signal::decode(&garbage), None);
        let hostile = ev::TaskStart {
            container_id: "../../etc".into(),
            pid: 7,
        };
        assert_eq!(Signal::decode(&envelope("/tasks/start", &hostile)), None);
    }
}
