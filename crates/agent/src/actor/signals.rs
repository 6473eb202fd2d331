//! Has the pending signals of a sleeper watched that no wrapper wakes.

use dormouse_core::{Input, WakeSource};

use super::{Actor, Message};

impl Actor {
    /// Begins and ends the watch as the pod falls asleep and wakes.
    pub(super) fn follow_signals(&mut self) {
        let asleep =
            self.state.rung.is_asleep() && self.state.transition.is_none() && self.state.wake.is_none();
        let blind = self.capabilities.is_some_and(|c| !c.wrapper);
        let wanted = asleep && blind;
        if wanted == self.signals_watched {
            return;
        }
        self.signals_watched = wanted;
        if !wanted {
            self.ctx.signals.remove(&self.pod.sandbox_id);
            return;
        }
        let first = self.guest.containers.iter().map(|c| c.pid);
        let actor = self.self_sender.downgrade();
        self.ctx.signals.add(
            &self.pod.sandbox_id,
            first.chain([self.guest.sandbox_pid]),
            move || {
                // With a full queue it is told again in a moment.
                if let Some(actor) = actor.upgrade() {
                    let _ = actor.try_send(Message::Input(Input::Wake(WakeSource::Kill)));
                }
            },
        );
    }

    /// Begins the watch anew, where the guest's processes have changed.
    pub(super) fn refollow_signals(&mut self) {
        if std::mem::take(&mut self.signals_watched) {
            self.ctx.signals.remove(&self.pod.sandbox_id);
        }
        self.follow_signals();
    }
}
