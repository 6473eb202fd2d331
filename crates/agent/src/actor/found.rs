//! What is found out about the pod: what was remembered, what can be done, where it stands.

use std::sync::Arc;

use dormouse_core::{Abilities, Input, Reason, Rung};
use dormouse_cri::Pod;
use dormouse_runtime::{AnyDriver, Birth, Driver as _, RuntimeKind};

use super::step::rung_of;
use super::{Actor, guest_of};
use crate::view::NewsKind;

impl Actor {
    /// What is known from before a restart of the agent.
    pub(super) fn recall(&mut self) {
        match self.ctx.journal.read(&self.pod.uid) {
            Ok(Some(entry)) => {
                self.recalled = true;
                let same = entry.sandbox_id == self.pod.sandbox_id;
                self.entry = entry;
                self.entry.sandbox_id.clone_from(&self.pod.sandbox_id);
                if !same {
                    // A new pod sandbox of the same pod: its memory is another.
                    self.entry.rung = Rung::Running;
                    self.entry.moving_to = None;
                    self.entry.resident_before = 0;
                    self.entry.born_from = None;
                    self.entry.exact = None;
                    self.entry.probed = Vec::new();
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason(), "{error}");
            }
        }
    }

    /// Asks the driver what it can do to this guest.
    pub(super) async fn learn_abilities(&mut self) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            let message = format!("no driver serves runtime type {:?}", self.pod.runtime_type);
            self.left_alone = Some((Reason::RuntimeUnsupported, message));
            self.set_abilities(Abilities::none(Reason::RuntimeUnsupported));
            return;
        };
        if !self.pod.ready || self.guest.containers.is_empty() {
            self.capabilities = None;
            self.set_abilities(Abilities::none(Reason::PodNotReady));
            return;
        }
        let capabilities = driver.capabilities(&self.guest).await;
        self.capabilities = Some(capabilities);
        let mut abilities = Abilities {
            freeze: capabilities.freeze,
            doze: capabilities.freeze.and(capabilities.doze),
            hibernate: capabilities.freeze.and(capabilities.hibernate),
        };
        if abilities.hibernate.is_ok() {
            abilities.hibernate = self.ctx.snapshots.usable();
        }
        if abilities.doze.is_ok() {
            abilities.doze = self.ctx.swap.usable();
        }
        if self.kind == Some(RuntimeKind::Gvisor) && !capabilities.wrapper && abilities.freeze.is_ok() {
            // Without the wrapper nothing wakes the guest for a kill: a deletion would hang to its deadline.
            abilities = Abilities::none(Reason::WrapperMissing);
        }
        if self.guest.netns.is_none() && abilities.freeze.is_ok() {
            abilities = Abilities::none(Reason::NetworkUnsupported);
        }
        self.set_abilities(abilities);
    }

    pub(super) fn set_abilities(&mut self, abilities: Abilities) {
        if self.state.abilities != abilities {
            self.apply(Input::SetAbilities(abilities));
        }
    }

    /// Swap comes and goes while pods live.
    pub(super) fn refresh_abilities(&mut self) {
        let Some(capabilities) = self.capabilities else {
            return;
        };
        let mut abilities = self.state.abilities;
        if abilities.freeze.is_ok() && capabilities.doze.is_ok() {
            abilities.doze = self.ctx.swap.usable();
            self.set_abilities(abilities);
        }
    }

    /// Where the pod really stands, whatever anybody remembers.
    pub(super) async fn find_rung(&mut self) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        match driver.probe(&self.guest).await {
            Ok(probe) => {
                self.state.rung = rung_of(probe.stop);
                self.state.exact = false;
                let refused = probe.birth.as_ref().is_some_and(Birth::is_refused);
                self.find_snapshot(&driver, probe.snapshot, refused, probe.wakes)
                    .await;
                if let Some(birth) = probe.birth {
                    self.born(&birth);
                }
                if probe.settled {
                    tracing::info!(
                        pod = %self.pod.full_name(), rung = %self.state.rung,
                        "a step that did not end was settled"
                    );
                }
                if probe.limit_restored {
                    let message = Reason::LimitRestored.meaning().trim().to_owned();
                    tracing::warn!(pod = %self.pod.full_name(), reason = %Reason::LimitRestored, "{message}");
                    self.tell_news(
                        NewsKind::Warning,
                        Some(Reason::LimitRestored),
                        message,
                        None,
                        None,
                    );
                }
                // A doze that was cut short leaves its cgroup frozen with most pages in RAM; the pod is asleep
                // and wakes like any other.
                self.entry.moving_to = None;
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
                self.left_alone = Some((error.reason, error.to_string()));
                self.set_abilities(Abilities::none(error.reason));
            }
        }
    }

    /// The pod's sandbox is gone and its memory is not: a new sandbox of the same pod may have it.
    fn may_come_back(&self) {
        let (snapshots, uid) = (self.ctx.snapshots.clone(), self.pod.uid.clone());
        let newest = self.entry.newest_snapshot();
        tokio::spawn(async move {
            if let Err(error) = snapshots.grant_own(&uid, newest.as_deref()).await {
                tracing::warn!(%uid, reason = %error.reason, "the pod cannot come back from its snapshot: {error}");
            }
        });
    }

    /// The pod asked to be filled from a snapshot at its birth: tells once what became of that.
    fn born(&mut self, birth: &Birth) {
        if self.entry.born_from.as_ref() == Some(&birth.snapshot) {
            return;
        }
        self.entry.born_from = Some(birth.snapshot.clone());
        if !birth.is_refused() {
            self.ctx.snapshots.grant_spent(&self.pod.uid);
        }
        let (kind, reason, message, took) = match &birth.outcome {
            Ok(took) => {
                self.entry.restored_from = Some(birth.snapshot.clone());
                let message = format!("restored from snapshot {}", birth.snapshot);
                (NewsKind::Changed, Reason::Restored, message, Some(*took))
            }
            Err(failed) if failed.cold_started => {
                let message = format!(
                    "started without the memory of snapshot {}: {}: {}",
                    birth.snapshot, failed.reason, failed.message
                );
                (NewsKind::Warning, Reason::ColdStarted, message, None)
            }
            Err(failed) => {
                let message = format!(
                    "not restored from snapshot {}: {}",
                    birth.snapshot, failed.message
                );
                (NewsKind::Warning, failed.reason, message, None)
            }
        };
        if birth.outcome.is_ok() {
            tracing::info!(pod = %self.pod.full_name(), %reason, took_ms = took.map(|t| t.as_secs_f64() * 1e3), "{message}");
        } else {
            tracing::warn!(pod = %self.pod.full_name(), %reason, "{message}");
        }
        self.remember();
        self.tell_news(kind, Some(reason), message, None, took);
    }

    /// Compares what the store holds for the pod with where it stands.
    /// `refused`: the pod was to be filled and was not, so its memory is where it was.
    async fn find_snapshot(
        &mut self,
        driver: &AnyDriver,
        recorded: Option<String>,
        refused: bool,
        wakes: u64,
    ) {
        let can = self.capabilities.is_some_and(|c| c.hibernate.is_ok());
        match self.state.rung {
            Rung::Hibernated => {
                // The record is nearer to the guest than the journal.
                if recorded.is_some() {
                    self.entry.snapshot = recorded;
                }
                let snapshot = self.entry.snapshot.clone().unwrap_or_default();
                let held = self.ctx.snapshots.hold(&snapshot, &self.pod.uid).await;
                self.ctx.snapshots.unhold(&self.pod.uid, Some(&snapshot));
                if let Err(error) = held {
                    let message = format!("hibernated, but its snapshot cannot be used: {error}");
                    tracing::error!(pod = %self.pod.full_name(), reason = %error.reason, "{message}");
                    self.left_alone = Some((error.reason, message.clone()));
                    self.tell_news(NewsKind::Warning, Some(error.reason), message, None, None);
                }
            }
            rung if rung.is_asleep() && can && self.is_still(wakes).await => {
                // It heard nothing since it was saved, also while no agent was there.
                self.state.exact = true;
                self.deaf = true;
                self.ctx
                    .snapshots
                    .unhold(&self.pod.uid, self.entry.snapshot.as_deref());
            }
            rung => {
                self.entry.exact = None;
                if !refused {
                    self.ctx.snapshots.unhold(&self.pod.uid, None);
                }
                // An agent that was killed may have cut it off to save it; it is deaf until this.
                if (rung.is_asleep() || self.recalled) && can {
                    let kept = driver.keep(&self.guest).await;
                    self.deaf = kept.is_err();
                    if let Err(error) = kept {
                        tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
                    }
                }
            }
        }
    }

    /// Whether the guest is what was saved before an earlier agent ended, by the count of its wakes.
    async fn is_still(&self, wakes: u64) -> bool {
        match &self.entry.snapshot {
            Some(snapshot) if self.entry.exact == Some(wakes) => {
                self.ctx.snapshots.hold(snapshot, &self.pod.uid).await.is_ok()
            }
            _ => false,
        }
    }

    /// The pod's containers, addresses or state changed.
    pub(super) async fn updated(&mut self, pod: Arc<Pod>) {
        let readdressed = pod.addresses != self.pod.addresses || pod.netns != self.pod.netns;
        let guest = guest_of(&pod);
        let changed = guest != *self.guest || pod.ready != self.pod.ready;
        self.pod = pod;
        if !self.pod.ready && self.state.rung == Rung::Hibernated {
            // Its sandbox is lost, or the pod is about to be deleted, and with it this.
            self.may_come_back();
        }
        if readdressed {
            self.wire.detach(&self.ctx);
        }
        if changed {
            let first = self.state.abilities.freeze.is_err();
            self.guest = Arc::new(guest);
            self.learn_abilities().await;
            // A container that starts is the wrapper's or the shim's doing, and wakes the pod first.
            if first && self.state.abilities.freeze.is_ok() && self.state.transition.is_none() {
                let before = self.state.rung;
                self.find_rung().await;
                self.ctx.metrics.moved(before, self.state.rung, self.runtime());
                self.begin_shell().await;
                self.apply(Input::Activity);
            }
        }
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        if changed {
            self.refollow_signals();
        }
        self.sync_probes();
        self.publish();
    }

    pub(super) async fn look_at_memory(&mut self) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        if self.capabilities.is_none() {
            return;
        }
        match driver.resident(&self.guest).await {
            Ok(resident) => self.resident = resident.cgroup,
            // There is no guest that could have any.
            Err(_) if self.state.rung == Rung::Hibernated => self.resident = 0,
            Err(_) => {}
        }
    }
}
