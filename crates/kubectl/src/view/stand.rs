//! How a sandbox stands, by what its object says. Pure.

use dormouse_api::agents::{OperatingMode, Sandbox, SuspensionType};
use dormouse_api::conditions::{DORMANT, FINISHED, READY, SUSPENDED, messages, ready, suspended};
use dormouse_core::{ANNOTATION_MANAGED, Rung};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// How a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// On a rung of the ladder.
    On(Rung),
    /// It is to sleep, and does not yet.
    Suspending,
    /// It is to run, and its guest sleeps still.
    Waking,
    /// It is to run, and is not ready yet.
    Starting,
    /// Its pod has come to its end.
    Finished,
    /// Its time is over.
    Expired,
    /// Its pod is managed by annotations, of which the controller knows nothing: only the node's agent knows its rung.
    Unknown,
}

impl Stand {
    /// In one word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::On(rung) => rung.as_str(),
            Self::Suspending => "Suspending",
            Self::Waking => "Waking",
            Self::Starting => "Starting",
            Self::Finished => "Finished",
            Self::Expired => "Expired",
            Self::Unknown => "Unknown",
        }
    }

    /// The rung, where it stands on one.
    pub(crate) const fn rung(self) -> Option<Rung> {
        match self {
            Self::On(rung) => Some(rung),
            _ => None,
        }
    }
}

/// A condition of a sandbox.
pub(crate) fn sandbox_condition<'a>(sandbox: &'a Sandbox, type_: &str) -> Option<&'a Condition> {
    let conditions = &sandbox.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// How a sandbox stands.
pub(crate) fn stand(sandbox: &Sandbox) -> Stand {
    let found = |type_: &str| sandbox_condition(sandbox, type_);
    if found(READY).is_some_and(|ready| ready.reason == ready::SANDBOX_EXPIRED) {
        return Stand::Expired;
    }
    if sandbox.spec.operating_mode == OperatingMode::Suspended {
        return found(SUSPENDED).map_or(Stand::Suspending, |condition| suspended(sandbox, condition));
    }
    if found(FINISHED).is_some_and(|finished| finished.status == "True") {
        return Stand::Finished;
    }
    if let Some(rung) = dormant_rung(sandbox) {
        return Stand::On(rung);
    }
    match found(READY) {
        Some(ready) if ready.status == "True" => {
            if is_managed_by_annotation(sandbox) {
                Stand::Unknown
            } else {
                Stand::On(Rung::Running)
            }
        }
        // What it was told last may not have been seen yet.
        Some(_) if was_put_to_sleep(sandbox) => Stand::Waking,
        Some(ready) if ready.message.starts_with(messages::POD_IS_ASLEEP) => Stand::Waking,
        _ => Stand::Starting,
    }
}

fn suspended(sandbox: &Sandbox, condition: &Condition) -> Stand {
    if condition.status != "True" {
        return Stand::Suspending;
    }
    if condition.reason == suspended::GUEST_ASLEEP {
        let rung = messages::rung_of_guest_asleep(&condition.message);
        return rung
            .and_then(|rung| rung.parse().ok())
            .map_or(Stand::Unknown, Stand::On);
    }
    // The pod is gone: its memory with it, unless that has become a snapshot.
    if strategy(sandbox) == SuspensionType::Hibernate && snapshot_is_kept(sandbox) {
        Stand::On(Rung::Hibernated)
    } else {
        Stand::On(Rung::Stopped)
    }
}

fn was_put_to_sleep(sandbox: &Sandbox) -> bool {
    sandbox_condition(sandbox, SUSPENDED).is_some_and(|condition| condition.reason == suspended::GUEST_ASLEEP)
}

fn dormant_rung(sandbox: &Sandbox) -> Option<Rung> {
    let condition = sandbox_condition(sandbox, DORMANT)?;
    (condition.status == "True")
        .then(|| condition.reason.parse().ok())
        .flatten()
}

/// What `operatingMode: Suspended` keeps.
pub(crate) fn strategy(sandbox: &Sandbox) -> SuspensionType {
    sandbox
        .spec
        .suspension_strategy
        .as_ref()
        .map(|strategy| strategy.type_)
        .unwrap_or_default()
}

fn snapshot_is_kept(sandbox: &Sandbox) -> bool {
    sandbox
        .status
        .as_ref()
        .is_some_and(|status| status.snapshot.is_some())
}

/// Whether only the agent of the node knows of it: by annotations of its pod, and without a field of ours.
pub(crate) fn is_managed_by_annotation(sandbox: &Sandbox) -> bool {
    !sandbox.spec.sleeps() && template_annotation(sandbox, ANNOTATION_MANAGED) == Some("true")
}

/// An annotation that the pod is born with.
pub(crate) fn template_annotation<'a>(sandbox: &'a Sandbox, key: &str) -> Option<&'a str> {
    let metadata = sandbox.spec.pod_template.metadata.as_ref()?;
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
pub(crate) mod tests {
    use dormouse_api::agents::{SandboxStatus, SnapshotRef, SuspensionStrategy};
    use dormouse_api::conditions::{dormant, finished};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    /// A sandbox for tests, without a status.
    pub(crate) fn sandbox(mode: OperatingMode) -> Sandbox {
        let mut sandbox = Sandbox::default();
        sandbox.metadata.namespace = Some("team".into());
        sandbox.metadata.name = Some("box".into());
        sandbox.metadata.uid = Some("uid-1".into());
        sandbox.metadata.generation = Some(2);
        sandbox.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1000).unwrap()));
        sandbox.spec.operating_mode = mode;
        sandbox
    }

    /// Gives it a condition that holds since second 2000.
    pub(crate) fn with(
        mut sandbox: Sandbox,
        type_: &str,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Sandbox {
        sandbox
            .status
            .get_or_insert_with(SandboxStatus::default)
            .conditions
            .push(Condition {
                type_: type_.into(),
                status: status.into(),
                reason: reason.into(),
                message: message.into(),
                observed_generation: sandbox.metadata.generation,
                last_transition_time: Time(Timestamp::from_second(2000).unwrap()),
            });
        sandbox
    }

    fn keeps(mut sandbox: Sandbox, type_: SuspensionType) -> Sandbox {
        sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
            type_,
            fallback: None,
        });
        sandbox
    }

    #[test]
    fn of_a_sandbox_that_is_to_run() {
        let new = sandbox(OperatingMode::Running);
        assert_eq!(stand(&new), Stand::Starting);
        let up = with(new.clone(), READY, "True", ready::DEPENDENCIES_READY, "");
        assert_eq!(stand(&up), Stand::On(Rung::Running));
        let asleep = with(up.clone(), DORMANT, "True", "Dozing", "");
        assert_eq!(stand(&asleep), Stand::On(Rung::Dozing));
        let awake = with(up.clone(), DORMANT, "False", dormant::AWAKE, "");
        assert_eq!(stand(&awake), Stand::On(Rung::Running));
        let message = format!("{}: the guest is being woken", messages::POD_IS_ASLEEP);
        let waking = with(
            new.clone(),
            READY,
            "False",
            ready::DEPENDENCIES_NOT_READY,
            &message,
        );
        assert_eq!(stand(&waking), Stand::Waking);
        let ended = with(up.clone(), FINISHED, "True", finished::POD_FAILED, "");
        assert_eq!(stand(&ended), Stand::Finished);
        let expired = with(new, READY, "False", ready::SANDBOX_EXPIRED, "");
        assert_eq!(stand(&expired), Stand::Expired);
        let mut annotated = up;
        annotated
            .spec
            .pod_template
            .metadata
            .get_or_insert_default()
            .annotations = Some([(ANNOTATION_MANAGED.to_owned(), "true".to_owned())].into());
        assert_eq!(stand(&annotated), Stand::Unknown);
        annotated.spec.idle_timeout = Some("5m".into());
        assert_eq!(stand(&annotated), Stand::On(Rung::Running));
    }

    #[test]
    fn of_a_sandbox_that_is_not_to_run() {
        let told = sandbox(OperatingMode::Suspended);
        assert_eq!(stand(&told), Stand::Suspending);
        let falling = with(
            told.clone(),
            SUSPENDED,
            "False",
            suspended::GUEST_FALLING_ASLEEP,
            "",
        );
        assert_eq!(stand(&falling), Stand::Suspending);
        let message = messages::guest_asleep("Dozing");
        let asleep = with(told.clone(), SUSPENDED, "True", suspended::GUEST_ASLEEP, &message);
        assert_eq!(stand(&asleep), Stand::On(Rung::Dozing));
        let gone = with(told, SUSPENDED, "True", suspended::POD_TERMINATED, "");
        assert_eq!(stand(&gone), Stand::On(Rung::Stopped));
        // A snapshot of another day is not what it is resumed from.
        let mut gone = keeps(gone, SuspensionType::Hibernate);
        assert_eq!(stand(&gone), Stand::On(Rung::Stopped));
        gone.status.as_mut().unwrap().snapshot = Some(SnapshotRef::default());
        assert_eq!(stand(&gone), Stand::On(Rung::Hibernated));
        assert_eq!(
            stand(&keeps(gone, SuspensionType::Stop)),
            Stand::On(Rung::Stopped)
        );
    }
}
