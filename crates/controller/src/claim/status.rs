//! The status of a claim. Clients compare reasons and messages literally, so they are agent-sandbox's.

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{FINISHED, READY, claim as reasons, ready};
use dormouse_api::extensions::{ClaimedSandbox, SandboxClaim, SandboxClaimStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Trouble;
use crate::objects::{self, condition, is_true, mirror, remove, set};

/// Name of the sandbox that the status shows.
pub(super) fn sandbox_name(status: &SandboxClaimStatus) -> Option<&str> {
    let name = status.sandbox.as_ref()?.name.as_deref()?;
    Some(name).filter(|name| !name.is_empty())
}

/// Shows the sandbox as it is; `sleeps`: its guest still sleeps as that of a standby, which is ready for nobody yet.
pub(super) fn follow(
    status: &mut SandboxClaimStatus,
    claim: &SandboxClaim,
    sandbox: &Sandbox,
    sleeps: bool,
    now: Timestamp,
) {
    show(status, sandbox);
    let ready = ready_of(claim, sandbox);
    let condition = if sleeps && ready.status == "True" {
        let message = "Sandbox is not ready: its guest is being woken".to_owned();
        no(claim, reasons::SANDBOX_NOT_READY, message)
    } else {
        ready
    };
    set(&mut status.conditions, condition, now);
}

/// Whether the claim has been told that it is ready.
pub(super) fn is_told(claim: &SandboxClaim) -> bool {
    let status = claim.status.as_ref();
    status.is_some_and(|status| is_true(&status.conditions, READY))
}

/// Shows that the sandbox is there and does not have its environment yet; `why` it has not, if that is known.
pub(super) fn lack_environment(
    status: &mut SandboxClaimStatus,
    claim: &SandboxClaim,
    why: &str,
    now: Timestamp,
) {
    let message = if why.is_empty() {
        "Sandbox is not ready: its environment is being delivered".to_owned()
    } else {
        format!("Sandbox is not ready: its environment could not be delivered yet: {why}")
    };
    let condition = no(claim, reasons::SANDBOX_NOT_READY, message);
    set(&mut status.conditions, condition, now);
}

/// Shows which sandbox it is, and whether it has finished.
pub(super) fn show(status: &mut SandboxClaimStatus, sandbox: &Sandbox) {
    let of = sandbox.status.clone().unwrap_or_default();
    status.sandbox = Some(ClaimedSandbox {
        name: sandbox.metadata.name.clone(),
        pod_ips: of.pod_ips,
        service_fqdn: of.service_fqdn,
    });
    match condition(&of.conditions, FINISHED) {
        // A claim's life after the end of its sandbox is counted from that end.
        Some(finished) => mirror(&mut status.conditions, finished.clone()),
        None => remove(&mut status.conditions, FINISHED),
    }
}

/// Shows what is in the way. Which sandbox the claim has stays: a failure does not take it away.
pub(super) fn complain(
    status: &mut SandboxClaimStatus,
    claim: &SandboxClaim,
    trouble: &Trouble,
    now: Timestamp,
) {
    let condition = no(claim, trouble.reason(), trouble.message());
    set(&mut status.conditions, condition, now);
    remove(&mut status.conditions, FINISHED);
}

/// Shows that the claim has ended.
pub(super) fn expire(status: &mut SandboxClaimStatus, claim: &SandboxClaim, now: Timestamp) {
    let message = "Claim expired. Sandbox cleanup initiated.".to_owned();
    set(
        &mut status.conditions,
        no(claim, reasons::CLAIM_EXPIRED, message),
        now,
    );
}

/// Shows that the claim has ended, and that the sandbox of its name stays, since it is not its own.
pub(super) fn not_ours(
    status: &mut SandboxClaimStatus,
    claim: &SandboxClaim,
    sandbox: &Sandbox,
    now: Timestamp,
) {
    let message = format!(
        "Claim expired. sandbox not owned by this claim: sandbox {:?} is not owned by claim {:?}; deletion skipped.",
        objects::name(&sandbox.metadata),
        objects::name(&claim.metadata)
    );
    set(
        &mut status.conditions,
        no(claim, reasons::CLAIM_EXPIRED, message),
        now,
    );
}

fn ready_of(claim: &SandboxClaim, sandbox: &Sandbox) -> Condition {
    let of = sandbox.status.as_ref();
    match of.and_then(|status| condition(&status.conditions, READY)) {
        Some(condition) if condition.reason == ready::SANDBOX_EXPIRED => no(
            claim,
            ready::SANDBOX_EXPIRED,
            "Underlying Sandbox resource has expired independently of the Claim.".to_owned(),
        ),
        Some(condition) => Condition {
            observed_generation: claim.metadata.generation,
            ..condition.clone()
        },
        None => no(
            claim,
            reasons::SANDBOX_NOT_READY,
            "Sandbox is not ready".to_owned(),
        ),
    }
}

fn no(claim: &SandboxClaim, reason: &str, message: String) -> Condition {
    Condition {
        type_: READY.to_owned(),
        status: "False".to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: claim.metadata.generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}
