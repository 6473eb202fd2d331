//! The pod's wire: which frames matter now.

use dormouse_core::{Input, PodState, Reason, ResumePolicy, Rung, Transition, WakeSource};
use dormouse_cri::Pod;
use dormouse_net::{PodKey, Ports, ReplayWindow, WireMode, WireSpec};

use super::Actor;
use super::save::Line;
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
    /// The step under way has put the guest back on the wire already.
    back: bool,
}

impl Wire {
    pub(super) fn new(sandbox_id: &str) -> Self {
        Self {
            key: PodKey::from(sandbox_id),
            attached: Err(Reason::PodNotReady),
            mode: None,
            back: false,
        }
    }

    /// The step is over: the next one may have frames held again.
    pub(super) const fn step_ended(&mut self) {
        self.back = false;
    }

    /// By which the wire loop knows it.
    pub(super) const fn key(&self) -> &PodKey {
        &self.key
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
        let mode = mode_for(state, pod.runtime_type == GVISOR, self.back).unwrap_or(WireMode::Mute);
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
///
/// `back`: the step under way has put the guest back on the wire, so that nothing is to be held for it any more.
fn mode_for(state: &PodState, stack_sleeps: bool, back: bool) -> Option<WireMode> {
    let dozing = if stack_sleeps {
        WireMode::Dozing
    } else {
        WireMode::Frozen
    };
    let asleep_mode = |mode| match state.policy.resume_policy {
        ResumePolicy::OnDemand => mode,
        ResumePolicy::Manual => WireMode::Mute,
    };
    let transition = state.transition.filter(|transition| {
        !(back
            && matches!(
                transition,
                Transition::Hibernate | Transition::Save | Transition::Snapshot
            ))
    });
    match (transition, state.rung) {
        // Until the guest runs, frames still count as asleep; the loop reports no second wake meanwhile.
        (Some(Transition::Wake(_) | Transition::ColdStart(_)), _) => None,
        (Some(Transition::Freeze), _) => Some(asleep_mode(WireMode::Frozen)),
        (Some(Transition::Doze), _) if state.exact => Some(asleep_mode(WireMode::Hibernated)),
        (Some(Transition::Doze | Transition::HousekeepingFreeze), _) => Some(asleep_mode(dozing)),
        // A running pod misses nothing, whatever may wake it once it sleeps.
        (Some(Transition::Snapshot), Rung::Running) => Some(WireMode::Cut),
        (Some(Transition::Hibernate | Transition::Save | Transition::Snapshot), _) => {
            Some(asleep_mode(WireMode::Cut))
        }
        (Some(Transition::HousekeepingThaw), _) => Some(asleep_mode(WireMode::Housekeeping)),
        // With a shell a pod is hibernated as without one; for a wake that waits frames are held already.
        (Some(Transition::MakeShell | Transition::EndShell), _) if state.wake.is_some() => None,
        (Some(Transition::MakeShell | Transition::EndShell), _) => Some(asleep_mode(WireMode::Hibernated)),
        // A wake that failed is tried again: what is held is held until then.
        (None, rung) if rung.is_asleep() && state.wake.is_some() => None,
        (None, Rung::Hibernated) => Some(asleep_mode(WireMode::Hibernated)),
        (None, _) if state.exact => Some(asleep_mode(WireMode::Hibernated)),
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
        let Some(mode) = mode_for(&self.state, self.stack_sleeps(), self.wire.back) else {
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

    fn stack_sleeps(&self) -> bool {
        self.pod.runtime_type == GVISOR
    }

    /// What a step needs to know of the wire.
    pub(super) fn line(&self) -> Line {
        let attached = self.wire.attached.is_ok();
        let mode_of = |state: &PodState| {
            mode_for(state, self.stack_sleeps(), false).filter(|mode| attached && !mode.holds())
        };
        let mut still = self.state.clone();
        still.transition = None;
        still.wake = None;
        still.exact = false;
        // A guest that was saved while it dozed has its memory in RAM.
        still.rung = still.rung.min(Rung::Frozen);
        let mut awake = still.clone();
        awake.rung = Rung::Running;
        Line {
            key: self.wire.key.clone(),
            before: mode_of(&still),
            awake: mode_of(&awake),
            actor: self.self_sender.clone(),
        }
    }

    /// The step under way has put the guest back on the wire.
    pub(super) fn on_wire(&mut self, mode: WireMode) {
        self.wire.mode = Some(mode);
        self.wire.back = true;
        self.follow_wire();
    }

    /// The guest was put back on the wire by somebody else: it gets what was held for it.
    pub(super) fn release_held(&mut self) {
        let Some(mode) = self.line().awake else { return };
        match self
            .ctx
            .wires
            .release_held(&self.wire.key, mode, ReplayWindow::default())
        {
            Ok(_) => self.wire.mode = Some(mode),
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), "held frames are lost: {error}");
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
        let mode = |rung, transition| mode_for(&state(rung, transition), true, false);
        assert_eq!(mode(Rung::Running, None), Some(WireMode::Watch));
        assert_eq!(
            mode(Rung::Running, Some(Transition::Freeze)),
            Some(WireMode::Frozen)
        );
        assert_eq!(mode(Rung::Frozen, Some(Transition::Doze)), Some(WireMode::Dozing));
        assert_eq!(mode(Rung::Dozing, Some(Transition::Wake(WakeSource::Api))), None);
        assert_eq!(
            mode_for(&state(Rung::Dozing, None), false, false),
            Some(WireMode::Frozen),
            "runc's stack is awake"
        );
        let mut manual = state(Rung::Dozing, None);
        manual.policy.resume_policy = ResumePolicy::Manual;
        assert_eq!(mode_for(&manual, true, false), Some(WireMode::Mute));
    }

    #[test]
    fn nothing_is_lost_around_a_save() {
        let mode = |rung, transition| mode_for(&state(rung, transition), true, false);
        for step in [Transition::Hibernate, Transition::Save, Transition::Snapshot] {
            assert_eq!(mode(Rung::Frozen, Some(step)), Some(WireMode::Cut), "{step:?}");
            assert_eq!(
                mode_for(&state(Rung::Frozen, Some(step)), true, true),
                Some(WireMode::Frozen),
                "{step:?} that put the guest back holds nothing any more"
            );
        }
        assert_eq!(mode(Rung::Hibernated, None), Some(WireMode::Hibernated));
        let mut exact = state(Rung::Frozen, Some(Transition::Doze));
        exact.exact = true;
        assert_eq!(mode_for(&exact, true, false), Some(WireMode::Hibernated));
        let mut waiting = state(Rung::Hibernated, None);
        waiting.wake = Some(WakeSource::Packet);
        assert_eq!(mode_for(&waiting, true, false), None, "held until it wakes");
        for step in [Transition::MakeShell, Transition::EndShell] {
            assert_eq!(mode(Rung::Hibernated, Some(step)), Some(WireMode::Hibernated));
            waiting.transition = Some(step);
            assert_eq!(mode_for(&waiting, true, false), None, "{step:?}");
        }
    }

    #[test]
    fn a_pod_that_frames_do_not_wake_has_them_held_only_while_it_runs() {
        let mut manual = state(Rung::Hibernated, None);
        manual.policy.resume_policy = ResumePolicy::Manual;
        assert_eq!(mode_for(&manual, true, false), Some(WireMode::Mute));
        manual.rung = Rung::Frozen;
        manual.transition = Some(Transition::Hibernate);
        assert_eq!(mode_for(&manual, true, false), Some(WireMode::Mute));
        manual.rung = Rung::Running;
        manual.transition = Some(Transition::Snapshot);
        assert_eq!(mode_for(&manual, true, false), Some(WireMode::Cut));
    }
}
