//! Orders to an agent.

use std::time::Duration;

use dormouse_core::{Policy, Variables};
use dormouse_rpc::{NodeClient, reason_of, v1};
use thiserror::Error;

use super::Guest;

/// How long an order may take; a hibernation of a large guest takes longest.
const DEADLINE: Duration = Duration::from_secs(60);

/// The moment for which a guest has to be quiet: an exec that woke it has begun by then.
const QUIET: Duration = Duration::from_millis(500);

/// One order. Each can be given again: it has been done already then, and nothing happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// When a guest sleeps, and what wakes it.
    SetPolicy {
        /// UID of the pod.
        pod: String,
        /// The policy.
        policy: Box<Policy>,
        /// Greater than that of the one before.
        generation: u64,
    },
    /// Has the guest stopped.
    Freeze {
        /// UID of the pod.
        pod: String,
        /// What must not go on in it.
        quiet: Quiet,
    },
    /// Has the guest's memory pushed out.
    Doze {
        /// UID of the pod.
        pod: String,
        /// What must not go on in it.
        quiet: Quiet,
    },
    /// Has the guest run.
    Wake {
        /// UID of the pod.
        pod: String,
    },
    /// Gives environment variables to a container that runs.
    DeliverEnvironment {
        /// UID of the pod.
        pod: String,
        /// Name of the container.
        container: String,
        /// The variables.
        variables: Variables,
    },
    /// Has the guest saved and ended.
    Hibernate {
        /// UID of the pod.
        pod: String,
        /// What must not go on in it.
        quiet: Quiet,
    },
    /// Has the guest saved; it runs on.
    Snapshot {
        /// UID of the pod.
        pod: String,
        /// Names the order, so that the same one given again leads to the same snapshot.
        operation: String,
    },
    /// Asks what a snapshot is.
    Describe {
        /// The snapshot.
        snapshot: String,
    },
    /// Keeps a snapshot from being removed for want of room, or not any more.
    Pin {
        /// The snapshot.
        snapshot: String,
        /// Whether it is kept.
        pinned: bool,
    },
    /// Removes a snapshot, also one that is pinned; the only state of a pod that the node knows is refused.
    Remove {
        /// The snapshot.
        snapshot: String,
    },
    /// Allows a pod to be filled from a snapshot.
    Grant {
        /// UID of the pod.
        pod: String,
        /// Its namespace.
        namespace: String,
        /// The snapshot.
        snapshot: String,
    },
}

/// What must not go on in a guest for a moment before it is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// Anything may.
    Never,
    /// Execs.
    OfExecs,
    /// Execs, and work of its own.
    OfAll,
}

impl Quiet {
    /// What an agent is asked for.
    fn wanted(self) -> Option<v1::Quiet> {
        (self != Self::Never).then(|| v1::Quiet {
            time: QUIET.try_into().ok(),
            of_execs_only: self == Self::OfExecs,
        })
    }
}

/// What came of an order.
#[derive(Debug, Clone, Default)]
pub struct Ordered {
    /// The guest as it is now.
    pub guest: Option<Guest>,
    /// The snapshot that was made.
    pub snapshot: Option<v1::Snapshot>,
    /// Its name, where that is all that is said of it.
    pub snapshot_id: Option<String>,
    /// What a snapshot is that was asked for.
    pub description: Option<Box<v1::GetSnapshotResponse>>,
    /// How long it took on the node.
    pub took: Duration,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, Error)]
pub enum OrderError {
    /// The agent cannot be reached.
    #[error("the agent of node {node} cannot be reached")]
    Unreachable {
        /// The node.
        node: String,
    },
    /// The agent refuses, or failed.
    #[error("the agent of node {node} could not {what}: {message} ({reason})")]
    Refused {
        /// The node.
        node: String,
        /// What was ordered.
        what: &'static str,
        /// A stable reason code.
        reason: String,
        /// The same in words.
        message: String,
        /// Whether another try may go better although nothing changes.
        may_pass: bool,
    },
}

impl Order {
    /// What it is, for messages and metrics.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::SetPolicy { .. } => "set the policy",
            Self::Freeze { .. } => "freeze the guest",
            Self::Doze { .. } => "let the guest doze",
            Self::Wake { .. } => "wake the guest",
            Self::DeliverEnvironment { .. } => "deliver the environment",
            Self::Hibernate { .. } => "hibernate the guest",
            Self::Snapshot { .. } => "take a snapshot",
            Self::Describe { .. } => "describe the snapshot",
            Self::Pin { pinned: true, .. } => "pin the snapshot",
            Self::Pin { pinned: false, .. } => "unpin the snapshot",
            Self::Remove { .. } => "remove the snapshot",
            Self::Grant { .. } => "grant the restore",
        }
    }

    /// Whether a guest stands otherwise after it.
    #[must_use]
    pub const fn moves_guest(&self) -> bool {
        !matches!(self, Self::Pin { .. } | Self::DeliverEnvironment { .. })
    }

    /// Whether a guest sleeps after it.
    #[must_use]
    pub const fn puts_to_sleep(&self) -> bool {
        matches!(
            self,
            Self::Freeze { .. } | Self::Doze { .. } | Self::Hibernate { .. }
        )
    }
}

fn by_uid(uid: String) -> Option<v1::PodRef> {
    Some(v1::PodRef {
        uid,
        ..v1::PodRef::default()
    })
}

/// Gives an order.
pub(super) async fn give(mut client: NodeClient, node: &str, order: Order) -> Result<Ordered, OrderError> {
    let what = order.what();
    let failed = |status: tonic::Status| refusal(node, what, &status);
    let ordered = |pod: Option<v1::Pod>, outcome: Option<v1::Outcome>| Ordered {
        guest: pod.and_then(|pod| Guest::from_agent(node, pod)),
        took: outcome
            .and_then(|outcome| outcome.took?.try_into().ok())
            .unwrap_or_default(),
        ..Ordered::default()
    };
    macro_rules! call {
        ($verb:ident, $message:expr) => {{
            let mut request = tonic::Request::new($message);
            request.set_timeout(DEADLINE);
            client.$verb(request).await.map_err(failed)?.into_inner()
        }};
    }
    Ok(match order {
        Order::SetPolicy {
            pod,
            policy,
            generation,
        } => {
            let request = v1::SetPolicyRequest {
                pod: by_uid(pod),
                policy: Some((&*policy).into()),
                policy_generation: generation,
                operation_id: String::new(),
            };
            ordered(call!(set_policy, request).pod, None)
        }
        Order::Freeze { pod, quiet } => {
            let done = call!(
                freeze,
                v1::FreezeRequest {
                    pod: by_uid(pod),
                    quiet: quiet.wanted(),
                    ..Default::default()
                }
            );
            ordered(done.pod, done.outcome)
        }
        Order::Doze { pod, quiet } => {
            let done = call!(
                doze,
                v1::DozeRequest {
                    pod: by_uid(pod),
                    quiet: quiet.wanted(),
                    ..Default::default()
                }
            );
            ordered(done.pod, done.outcome)
        }
        Order::Wake { pod } => {
            let done = call!(
                wake,
                v1::WakeRequest {
                    pod: by_uid(pod),
                    ..Default::default()
                }
            );
            ordered(done.pod, done.outcome)
        }
        Order::DeliverEnvironment {
            pod,
            container,
            variables,
        } => {
            let pairs = variables.pairs().iter().cloned();
            let request = v1::DeliverEnvironmentRequest {
                pod: by_uid(pod),
                container,
                variables: pairs
                    .map(|(name, value)| v1::deliver_environment_request::Variable { name, value })
                    .collect(),
            };
            let done = call!(deliver_environment, request);
            Ordered {
                took: done
                    .took
                    .and_then(|took| took.try_into().ok())
                    .unwrap_or_default(),
                ..ordered(done.pod, None)
            }
        }
        Order::Hibernate { pod, quiet } => {
            let done = call!(
                hibernate,
                v1::HibernateRequest {
                    pod: by_uid(pod),
                    quiet: quiet.wanted(),
                    ..Default::default()
                }
            );
            Ordered {
                snapshot_id: Some(done.snapshot_id).filter(|id| !id.is_empty()),
                ..ordered(done.pod, done.outcome)
            }
        }
        Order::Snapshot { pod, operation } => {
            let done = call!(
                create_snapshot,
                v1::CreateSnapshotRequest {
                    pod: by_uid(pod),
                    operation_id: operation,
                }
            );
            Ordered {
                snapshot_id: done.snapshot.as_ref().map(|snapshot| snapshot.id.clone()),
                snapshot: done.snapshot,
                ..ordered(done.pod, done.outcome)
            }
        }
        Order::Describe { snapshot: id } => Ordered {
            description: Some(Box::new(call!(get_snapshot, v1::GetSnapshotRequest { id }))),
            ..Ordered::default()
        },
        Order::Pin { snapshot: id, pinned } => {
            if pinned {
                call!(pin_snapshot, v1::PinSnapshotRequest { id });
            } else {
                call!(unpin_snapshot, v1::UnpinSnapshotRequest { id });
            }
            Ordered::default()
        }
        Order::Remove { snapshot: id } => {
            call!(remove_snapshot, v1::RemoveSnapshotRequest { id, force: true });
            Ordered::default()
        }
        Order::Grant {
            pod,
            namespace,
            snapshot,
        } => {
            let request = v1::GrantRestoreRequest {
                id: snapshot,
                pod_uid: pod,
                namespace,
                ..v1::GrantRestoreRequest::default()
            };
            let done = call!(grant_restore, request);
            Ordered {
                snapshot_id: Some(done.snapshot_id),
                ..Ordered::default()
            }
        }
    })
}

fn refusal(node: &str, what: &'static str, status: &tonic::Status) -> OrderError {
    use tonic::Code;
    let reason = reason_of(status);
    // The connection broke: the agent ends, or the network does.
    if reason.is_none() && matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown) {
        return OrderError::Unreachable {
            node: node.to_owned(),
        };
    }
    OrderError::Refused {
        node: node.to_owned(),
        what,
        reason: reason.map_or_else(
            || format!("{:?}", status.code()),
            |reason| reason.as_str().to_owned(),
        ),
        message: status.message().to_owned(),
        // A pod that is not found may not be known to the agent yet; a snapshot does not appear.
        may_pass: reason != Some(dormouse_core::Reason::SnapshotNotFound)
            && !matches!(
                status.code(),
                Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::PermissionDenied
                    | Code::DataLoss
                    // An agent of an earlier version.
                    | Code::Unimplemented
            ),
    }
}
