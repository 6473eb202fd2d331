//! The pod's wire: which frames matter now.

use dormouse_core::{Input, PodState, Reason, ResumePolicy, Rung, Transition, WakeSource};
use dormouse_cri::Pod;
use dormouse_net::{PodKey, Ports, WireMode, WireSpec};

use super::Actor;
use crate::context::Context;
use crate::view::NewsKind;

/// The runtime type whose network stack lives in the guest's own, frozen process.
const GVISOR: &str = "io.containerd.runsc.v1";

/// A pod's end of the wire loop.
#[derive(Debug)]
pub(super) struct Wire {
    key: PodKey,
    attached: Result<(), Reason>,
    mode: Option<WireMode>,
}

impl Wire {
    pub(super) fn new(sandbox_id: &str) -> Self {
        Self {
            key: PodKey::from(sandbox_id),
            attached: Err(Reason::PodNotReady),
            mode: None,
        }
    }

    /// Whether packets can wake the pod.
    pub(super) const fn ability(&self) -> Result<(), Reason> {
        self.attached
    }

    /// Opens the pod's packet socket, if it has none and may need one.
    pub(super) fn attach(&mut self, ctx: &Context, pod: &Pod, state: &PodState) {
        if self.attached.is_ok() || state.abilities.freeze.is_err() {
            return;
        }
        let Some(netns) = pod.netns.clone() else {
            self.attached = Err(Reason::NetworkUnsupported);
            return;
        };
        // The right mode from the first frame on: a sleeper found at the agent's start may be wanted already.
        let mode = mode_for(state, pod.runtime_type == GVISOR).unwrap_or(WireMode::Mute);
        let spec = WireSpec {
            netns,
            interface: None,
            addresses: pod.addresses.clone(),
            mode,
            ports: ports_of(state),
        };
        self.mode = None;
        self.attached = match ctx.wires.add(&self.key, &spec) {
            Ok(_) => {
                self.mode = Some(mode);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(
                    pod = %pod.full_name(), reason = %error.reason(),
                    "packets cannot wake this pod: {error}"
                );
                Err(error.reason())
            }
        };
    }

    /// Follows a change of the policy's ports without closing the wire.
    pub(super) fn follow_ports(&self, ctx: &Context, state: &PodState) {
        if self.attached.is_ok()
            && let Err(error) = ctx.wires.set_ports(&self.key, ports_of(state))
        {
            tracing::warn!(sandbox = %self.key, reason = %error.reason(), "the pod's ports cannot be watched: {error}");
        }
    }

    pub(super) fn detach(&mut self, ctx: &Context) {
        if self.attached.is_ok() {
            // The wire may have been lost already; then there is nothing to remove.
            let _ = ctx.wires.remove(&self.key);
            self.attached = Err(Reason::PodNotReady);
            self.mode = None;
        }
    }
}

/// The ports whose traffic wakes the pod.
fn ports_of(state: &PodState) -> Ports {
    Ports {
        udp: state.policy.wake_udp_ports.iter().copied().collect(),
        ..Ports::default()
    }
}

/// Which frames matter in this state; `None` = leave it as it is.
///
/// A guest whose network stack sleeps with it (gVisor's, in the frozen sentry) has its neighbours answered
/// for it while it dozes; any other stack (the host kernel's for runc, the VM's for Kata) answers for itself.
fn mode_for(state: &PodState, stack_sleeps: bool) -> Option<WireMode> {
    let dozing = if stack_sleeps {
        WireMode::Dozing
    } else {
        WireMode::Frozen
    };
    let asleep_mode = |mode| match state.policy.resume_policy {
        ResumePolicy::OnDemand => mode,
        ResumePolicy::Manual => WireMode::Mute,
    };
    match (state.transition, state.rung) {
        // Until the guest runs, frames still count as asleep; the loop reports no second wake meanwhile.
        (Some(Transition::Wake(_)), _) => None,
        (Some(Transition::Freeze), _) => Some(asleep_mode(WireMode::Frozen)),
        (Some(Transition::Doze | Transition::HousekeepingFreeze), _) => Some(asleep_mode(dozing)),
        (Some(Transition::HousekeepingThaw), _) => Some(asleep_mode(WireMode::Housekeeping)),
        (None, Rung::Frozen) => Some(asleep_mode(WireMode::Frozen)),
        (None, Rung::Dozing) if state.housekeeping_until.is_some() => {
            Some(asleep_mode(WireMode::Housekeeping))
        }
        (None, Rung::Dozing) => Some(asleep_mode(dozing)),
        (None, _) if state.managed && state.policy.idle_timeout.is_some() => Some(WireMode::Watch),
        (None, _) => Some(WireMode::Mute),
    }
}

impl Actor {
    /// Lets the wire loop look for what matters now.
    pub(super) fn follow_wire(&mut self) {
        if self.wire.attached.is_err() {
            return;
        }
        let Some(mode) = mode_for(&self.state, self.pod.runtime_type == GVISOR) else {
            return;
        };
        if self.wire.mode == Some(mode) {
            return;
        }
        match self.ctx.wires.set_mode(&self.wire.key, mode) {
            Ok(()) => self.wire.mode = Some(mode),
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), "the pod's wire cannot be set to {mode:?}: {error}");
                self.wire.mode = None;
            }
        }
    }

    /// The wire was lost. A sleeper that no packet could wake any more is woken now, and stays awake.
    pub(super) async fn wire_lost(&mut self, message: String) {
        self.wire.attached = Err(Reason::NetworkUnsupported);
        self.wire.mode = None;
        if self.pod.running().next().is_none() {
            // The pod is being taken down, its network first.
            tracing::debug!(pod = %self.pod.full_name(), "the pod's wire is gone: {message}");
            return;
        }
        tracing::warn!(
            pod = %self.pod.full_name(), reason = %Reason::NetworkUnsupported,
            "packets cannot wake this pod any more: {message}"
        );
        self.tell_news(
            NewsKind::Warning,
            Some(Reason::NetworkUnsupported),
            message,
            None,
            None,
        );
        if self.state.rung.is_asleep() && self.state.policy.resume_policy == ResumePolicy::OnDemand {
            self.apply(Input::Wake(WakeSource::Packet));
        }
        self.publish();
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::{Abilities, Moment, Policy, PolicyDefaults};

    use super::*;

    fn state(rung: Rung, transition: Option<Transition>) -> PodState {
        let policy = Policy {
            idle_timeout: Some(std::time::Duration::from_secs(1)),
            ..Policy::default()
        };
        let mut state = PodState::found(
            rung,
            true,
            policy,
            PolicyDefaults::default(),
            Abilities::default(),
            Moment::default(),
        );
        state.transition = transition;
        state
    }

    #[test]
    fn the_wire_goes_ahead_of_the_guest() {
        assert_eq!(mode_for(&state(Rung::Running, None), true), Some(WireMode::Watch));
        assert_eq!(
            mode_for(&state(Rung::Running, Some(Transition::Freeze)), true),
            Some(WireMode::Frozen)
        );
        assert_eq!(
            mode_for(&state(Rung::Frozen, Some(Transition::Doze)), true),
            Some(WireMode::Dozing)
        );
        assert_eq!(
            mode_for(
                &state(Rung::Dozing, Some(Transition::Wake(WakeSource::Api))),
                true
            ),
            None
        );
        assert_eq!(
            mode_for(&state(Rung::Dozing, None), false),
            Some(WireMode::Frozen),
            "runc's stack is awake"
        );
        let mut manual = state(Rung::Dozing, None);
        manual.policy.resume_policy = ResumePolicy::Manual;
        assert_eq!(mode_for(&manual, true), Some(WireMode::Mute));
    }
}
