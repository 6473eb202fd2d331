//! From an actor's state to what is shown.

use std::sync::Arc;
use std::time::SystemTime;

use dormouse_core::{Moment, Policy, Rung};
use dormouse_cri::Pod;

use super::Actor;
use crate::view::PodView;

/// A pod of which nothing is known yet but what the CRI says.
pub(super) fn blank(pod: &Pod) -> PodView {
    PodView {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        sandbox_id: pod.sandbox_id.clone(),
        runtime: "",
        handler: pod.handler.clone(),
        labels: Arc::new(pod.labels.clone()),
        addresses: pod.addresses.clone(),
        managed: false,
        rung: Rung::Running,
        moving_to: None,
        waking: false,
        policy: Policy::default(),
        policy_generation: 0,
        resident: 0,
        resident_before: 0,
        idle_since: Moment::default(),
        last_wake: None,
        reason: None,
        message: String::new(),
        capabilities: Vec::new(),
        since: SystemTime::now(),
        snapshot: None,
        shell: None,
        wake_expected_ms: None,
        probes: None,
    }
}

/// The pod as its actor knows it.
pub(super) fn of(actor: &Actor) -> PodView {
    let state = &actor.state;
    let (reason, message) = match &actor.left_alone {
        Some((reason, message)) => (Some(*reason), message.clone()),
        None if state.rung.is_asleep() || state.failures > 0 => {
            (Some(state.reason), state.reason.meaning().trim().to_owned())
        }
        None => (None, String::new()),
    };
    let wire = actor.wire.ability();
    PodView {
        runtime: actor.runtime(),
        managed: state.managed,
        rung: state.rung,
        moving_to: state.moving_to(),
        waking: state.wake.is_some(),
        policy: state.policy.clone(),
        policy_generation: actor.entry.policy_generation,
        resident: actor.resident,
        resident_before: actor.entry.resident_before,
        idle_since: state.idle_since,
        last_wake: actor.entry.last_wake,
        reason,
        message,
        capabilities: vec![
            ("freeze", state.abilities.freeze),
            ("doze", state.abilities.doze),
            ("hibernate", state.abilities.hibernate),
            ("packet-wake", wire),
        ],
        since: actor.since,
        snapshot: actor.entry.snapshot.clone(),
        shell: actor.shell.view.filter(|_| state.shell.stands()),
        wake_expected_ms: actor.shell.expected_ms,
        probes: actor.probing.view.clone(),
        ..blank(&actor.pod)
    }
}
