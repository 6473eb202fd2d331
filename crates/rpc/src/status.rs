//! Reason codes on the wire.

use std::str::FromStr;

use dormouse_core::Reason;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The metadata key that carries the stable reason code of a failed call.
pub const REASON_KEY: &str = "dormouse-reason";

/// The status of a call that failed for `reason`.
#[must_use]
pub fn status(reason: Reason, message: impl Into<String>) -> Status {
    let mut status = Status::new(code(reason), message);
    status
        .metadata_mut()
        .insert(REASON_KEY, MetadataValue::from_static(reason.as_str()));
    status
}

/// The reason that a status carries; `None` if it carries none that this version knows.
#[must_use]
pub fn reason_of(status: &Status) -> Option<Reason> {
    status
        .metadata()
        .get(REASON_KEY)?
        .to_str()
        .ok()
        .and_then(|text| Reason::from_str(text).ok())
}

/// The gRPC code that says best what a client may do next.
const fn code(reason: Reason) -> Code {
    match reason {
        Reason::PodNotFound | Reason::SnapshotNotFound => Code::NotFound,
        Reason::InvalidRequest
        | Reason::InvalidAnnotation
        | Reason::SnapshotInvalid
        | Reason::SnapshotFormatUnknown => Code::InvalidArgument,
        Reason::OperationIdReused => Code::AlreadyExists,
        Reason::PermissionDenied => Code::PermissionDenied,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::PodGone | Reason::Superseded | Reason::WakeWon => Code::Aborted,
        Reason::ShuttingDown
        | Reason::RuntimeUnavailable
        | Reason::ControlSocketTimeout
        | Reason::GuestBusy
        | Reason::NotQuiet
        | Reason::LockTimeout => Code::Unavailable,
        Reason::SwapFull
        | Reason::InsufficientMemory
        | Reason::NodeBusy
        | Reason::SnapshotQuotaExceeded
        | Reason::DiskFull => Code::ResourceExhausted,
        Reason::SnapshotDamaged | Reason::SnapshotForged | Reason::SnapshotUnverified => Code::DataLoss,
        Reason::NotManaged
        | Reason::StaleGeneration
        | Reason::RuntimeUnsupported
        | Reason::RuntimeCannotSnapshot
        | Reason::WrapperMissing
        | Reason::PodNotReady
        | Reason::NetworkUnsupported
        | Reason::NoSwap
        | Reason::PlainSwapRefused
        | Reason::KubeletForbidsSwap
        | Reason::SnapshotsOff
        | Reason::SnapshotInUse
        | Reason::SnapshotPinned
        | Reason::SnapshotHeld
        | Reason::SnapshotNamespaceMismatch
        | Reason::SnapshotKeyMissing
        | Reason::RuntimeVersionMismatch
        | Reason::RuntimeVersionNotAllowed
        | Reason::RuntimeVersionEnded
        | Reason::CpuMismatch
        | Reason::NetworkKindMismatch
        | Reason::ContainersMismatch
        | Reason::RestoreNotGranted
        | Reason::EnvironmentNotTaken
        | Reason::EnvironmentNotDelivered
        | Reason::GuestGone => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_wire() {
        for reason in Reason::ALL.iter().copied() {
            assert_eq!(reason_of(&status(reason, "x")), Some(reason));
        }
        assert_eq!(reason_of(&Status::internal("x")), None);
    }
}
