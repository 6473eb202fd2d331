//! Saying how much of what a StandbyQuota limits there is.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::conditions::{LIMITING, quota as reasons};
use dormouse_api::dormouse::{StandbyQuota, StandbyQuotaStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use thiserror::Error;
use tracing::warn;

use super::{FIELD_MANAGER, Pools, Usage};
use crate::cache::Cache;
use crate::objects::{self, set};
use crate::patch::status_patch;
use crate::write::{Writer, is_not_found};

/// How often it is counted. Pools hold to it at once; nobody waits for what is said of it, and it would be one more write
/// with each claim.
const COUNT: Duration = Duration::from_secs(15);
/// Most pools that are named in a message.
const NAMED: usize = 5;

/// What quotas are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct QuotaContext {
    writer: Writer,
    quotas: Arc<Cache<StandbyQuota>>,
    state: Arc<Pools>,
}

impl QuotaContext {
    /// A context for all quotas.
    #[must_use]
    pub const fn new(client: Client, quotas: Arc<Cache<StandbyQuota>>, state: Arc<Pools>) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            quotas,
            state,
        }
    }
}

/// Why a quota is looked at again.
#[derive(Debug, Error)]
pub enum QuotaError {
    /// The status could not be written.
    #[error("failed to patch StandbyQuota status: {0}")]
    Status(#[source] kube::Error),
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(quota: Arc<StandbyQuota>, error: &QuotaError, _: Arc<QuotaContext>) -> Action {
    warn!(namespace = objects::namespace(&quota.metadata), name = quota.name_any(), %error, "quota is tried again");
    Action::requeue(COUNT)
}

/// Brings the status of one quota up to date.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(quota: Arc<StandbyQuota>, context: Arc<QuotaContext>) -> Result<Action, QuotaError> {
    let (namespace, name) = (
        objects::namespace(&quota.metadata),
        objects::name(&quota.metadata),
    );
    let Some(quota) = context.quotas.get(namespace, name) else {
        return Ok(Action::await_change());
    };
    let usage = context.state.usage(namespace);
    let old = quota.status.clone().unwrap_or_default();
    if let Some(patch) = status_patch(&old, &status(&quota, &usage, Timestamp::now())) {
        let written = context
            .writer
            .patch_status(&context.quotas, namespace, name, &patch)
            .await;
        match written {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => return Ok(Action::await_change()),
            Err(error) => return Err(QuotaError::Status(error)),
        }
    }
    Ok(Action::requeue(COUNT))
}

fn status(quota: &StandbyQuota, usage: &Usage, now: Timestamp) -> StandbyQuotaStatus {
    let mut status = quota.status.clone().unwrap_or_default();
    status.standbys = Some(i32::try_from(usage.standbys).unwrap_or(i32::MAX));
    status.memory_bytes = Some(i64::try_from(usage.bytes).unwrap_or(i64::MAX));
    let named: Vec<&str> = usage.waiting.iter().take(NAMED).map(String::as_str).collect();
    let (holds, reason, message) = if named.is_empty() {
        let message =
            "all pools of this namespace have the standbys that they are to have, or another reason not to";
        ("False", reasons::ROOM_LEFT, message.to_owned())
    } else {
        let more = usage.waiting.len().saturating_sub(named.len());
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let message = format!(
            "the quotas of this namespace leave no room for all standbys of: {}{more}",
            named.join(", ")
        );
        ("True", reasons::POOLS_WAIT, message)
    };
    let limiting = Condition {
        type_: LIMITING.to_owned(),
        status: holds.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: quota.metadata.generation,
        last_transition_time: Time(now),
    };
    set(&mut status.conditions, limiting, now);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::is_true;

    #[test]
    fn it_names_the_pools_that_wait_and_is_written_only_when_that_changes() {
        let mut quota = StandbyQuota::default();
        let usage = Usage {
            standbys: 20,
            bytes: 1 << 30,
            waiting: (0..7).map(|number| format!("p{number}")).collect(),
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let said = status(&quota, &usage, at(1));
        assert_eq!((said.standbys, said.memory_bytes), (Some(20), Some(1 << 30)));
        assert!(is_true(&said.conditions, LIMITING));
        let message =
            "the quotas of this namespace leave no room for all standbys of: p0, p1, p2, p3, p4 and 2 more";
        assert_eq!(said.conditions[0].message, message);
        quota.status = Some(said.clone());
        assert_eq!(status_patch(&said, &status(&quota, &usage, at(2))), None);
        let after = status(&quota, &Usage::default(), at(3));
        assert_eq!(
            (after.standbys, is_true(&after.conditions, LIMITING)),
            (Some(0), false)
        );
    }
}
