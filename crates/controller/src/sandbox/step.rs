//! Single writes that a sandbox needs.

use dormouse_api::dormouse::SandboxSnapshot;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use serde_json::Value;

use crate::agents::Order;

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Makes a volume claim.
    CreateVolumeClaim(Box<PersistentVolumeClaim>),
    /// Makes a volume claim that is nobody's the sandbox's own.
    PatchVolumeClaim {
        /// Its name.
        name: String,
        /// JSON merge patch.
        patch: Value,
    },
    /// Makes the pod.
    CreatePod(Box<Pod>),
    /// Changes the metadata of the pod.
    PatchPod {
        /// Its name.
        name: String,
        /// JSON merge patch.
        patch: Value,
    },
    /// Changes the status of the pod.
    PatchPodStatus {
        /// Its name.
        name: String,
        /// JSON strategic merge patch.
        patch: Value,
    },
    /// Changes what the pod's containers ask for.
    ResizePod {
        /// Its name.
        name: String,
        /// Its node.
        node: String,
        /// Its UID.
        uid: String,
        /// Memory that it gives away then, in bytes.
        gives: u64,
        /// JSON strategic merge patch.
        patch: Value,
    },
    /// Gives the agent of a node an order. What the guest does then is looked at before anything else is done.
    Order {
        /// The node.
        node: String,
        /// The order.
        order: Order,
    },
    /// Deletes the pod, if it is still this one.
    DeletePod {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Makes the object that shows the sandbox's snapshot.
    CreateSnapshot(Box<SandboxSnapshot>),
    /// Makes the Service.
    CreateService(Box<Service>),
    /// Changes the Service.
    PatchService {
        /// Its name.
        name: String,
        /// JSON merge patch.
        patch: Value,
    },
    /// Deletes the Service, if it is still this one.
    DeleteService {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Changes the metadata of the Sandbox.
    PatchSandbox {
        /// JSON merge patch.
        patch: Value,
    },
    /// Deletes the Sandbox, if it is still this one.
    DeleteSandbox {
        /// Its UID.
        uid: String,
    },
}

impl Step {
    /// Whether it brings a suspend or a resume on.
    #[must_use]
    pub const fn moves(&self) -> bool {
        match self {
            Self::CreatePod(_) | Self::DeletePod { .. } => true,
            Self::Order { order, .. } => order.moves_guest(),
            _ => false,
        }
    }

    /// What it does, for messages.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::CreateVolumeClaim(_) => "create PVC",
            Self::PatchVolumeClaim { .. } => "patch PVC with owner reference",
            Self::CreatePod(_) => "create pod",
            Self::PatchPod { .. } => "patch pod",
            Self::PatchPodStatus { .. } => "patch pod status",
            Self::ResizePod { .. } => "resize pod",
            Self::Order { order, .. } => order.what(),
            Self::DeletePod { .. } => "delete pod",
            Self::CreateSnapshot(_) => "create SandboxSnapshot",
            Self::CreateService(_) => "create service",
            Self::PatchService { .. } => "patch service",
            Self::DeleteService { .. } => "delete service",
            Self::PatchSandbox { .. } => "patch sandbox",
            Self::DeleteSandbox { .. } => "delete sandbox",
        }
    }
}
