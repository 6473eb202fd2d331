//! From what the agent knows to what the API says.

use std::time::Duration;

use dormouse_core::Reason;
use dormouse_rpc::v1;

use crate::actor::{OrderDone, OrderFailed};
use crate::pods::{FindError, Wanted, ago};
use crate::snapshots::KnownRelease;
use crate::step_report::Phase;
use crate::view::{NewsKind, PodNews, PodView};

pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: 315_576_000_000,
        nanos: 0,
    })
}

pub(super) fn capability(name: &str, able: Result<(), Reason>) -> v1::Capability {
    v1::Capability {
        name: name.to_owned(),
        available: able.is_ok(),
        reason: able.err().map(|r| r.as_str().to_owned()).unwrap_or_default(),
        message: able
            .err()
            .map(|r| r.meaning().trim().to_owned())
            .unwrap_or_default(),
    }
}

pub(super) fn runsc(release: KnownRelease) -> v1::get_node_response::Runsc {
    let (path, origin) = release
        .binary
        .map(|(path, origin)| (path.display().to_string(), origin.as_str().to_owned()))
        .unwrap_or_default();
    let (able, message) = match release.usable {
        Ok(()) => (Ok(()), String::new()),
        Err(error) => (Err(error.reason), error.message),
    };
    v1::get_node_response::Runsc {
        version: release.version,
        path,
        origin,
        until: release.until.map(|day| day.to_string()).unwrap_or_default(),
        days_left: release.days_left,
        restore: Some(v1::Capability {
            message,
            ..capability("restore", able)
        }),
        snapshots: release.snapshots,
        pods: release.pods,
    }
}

pub(super) fn pod(view: &PodView) -> v1::Pod {
    v1::Pod {
        uid: view.uid.clone(),
        namespace: view.namespace.clone(),
        name: view.name.clone(),
        sandbox_id: view.sandbox_id.clone(),
        runtime: view.runtime.to_owned(),
        handler: view.handler.clone(),
        managed: view.managed,
        rung: v1::Rung::from(view.rung).into(),
        moving_to: view
            .moving_to
            .map_or(v1::Rung::Unspecified, v1::Rung::from)
            .into(),
        policy: Some((&view.policy).into()),
        policy_generation: view.policy_generation,
        resident_bytes: view.resident,
        resident_before_bytes: view.resident_before,
        idle_for: Some(duration(ago(view.idle_since))),
        last_wake: view.last_wake.map(|wake| v1::LastWake {
            source: wake.source.as_str().to_owned(),
            took: Some(duration(Duration::from_micros(wake.took_us))),
            at: Some(timestamp(wake.at_ms)),
        }),
        reason: view.reason.map(|r| r.as_str().to_owned()).unwrap_or_default(),
        message: view.message.clone(),
        capabilities: view
            .capabilities
            .iter()
            .map(|(name, able)| capability(name, *able))
            .collect(),
        labels: view.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        addresses: view.addresses.iter().map(ToString::to_string).collect(),
        since: Some(view.since.into()),
        snapshot_id: view.snapshot.clone().unwrap_or_default(),
        shell: view.shell.map(|shell| v1::Shell {
            since: Some(shell.since.into()),
            bytes: shell.bytes,
            reason: shell.reason.as_str().to_owned(),
        }),
        wake_expected: view.wake_expected_ms.map(timestamp),
        probes: view.probes.as_ref().map(|probes| v1::Probes {
            ready: probes.ready,
            reason: probes.reason.as_str().to_owned(),
            message: probes.message.clone(),
        }),
    }
}

/// A moment in ms since 1970.
/// A moment in ms since 1970.
pub(super) fn timestamp(at_ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(at_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(at_ms % 1000).unwrap_or(0) * 1_000_000,
    }
}

pub(super) fn outcome(done: &OrderDone) -> v1::Outcome {
    v1::Outcome {
        moved: done.moved,
        took: Some(duration(done.phases.iter().map(|phase| phase.took).sum())),
        phases: done
            .phases
            .iter()
            .map(|Phase { name, took }| v1::outcome::Phase {
                name: (*name).to_owned(),
                took: Some(duration(*took)),
            })
            .collect(),
    }
}

pub(super) fn news(news: &PodNews) -> v1::WatchResponse {
    use v1::watch_response::Kind;

    v1::WatchResponse {
        kind: match news.kind {
            NewsKind::Added => Kind::Added,
            NewsKind::Changed => Kind::Changed,
            NewsKind::Removed => Kind::Removed,
            NewsKind::Warning => Kind::Warning,
        }
        .into(),
        pod: Some(pod(&news.pod)),
        reason: news.reason.map(|r| r.as_str().to_owned()).unwrap_or_default(),
        message: news.message.clone(),
        at: Some(news.at.into()),
        from: news.from.map_or(v1::Rung::Unspecified, v1::Rung::from).into(),
        took: news.took.map(duration),
    }
}

pub(super) fn wanted(pod: Option<v1::PodRef>) -> Wanted {
    let v1::PodRef {
        uid,
        namespace,
        name,
        sandbox_id,
    } = pod.unwrap_or_default();
    Wanted {
        uid,
        namespace,
        name,
        sandbox_id,
    }
}

pub(super) fn failed(error: &OrderFailed) -> tonic::Status {
    dormouse_rpc::status(error.reason, error.message.clone())
}

pub(super) fn not_found(error: &FindError) -> tonic::Status {
    dormouse_rpc::status(error.reason(), error.to_string())
}
