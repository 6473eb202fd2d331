//! What is told: moves, failures, and what the wrapper did behind the agent's back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormouse_core::{Input, Reason, Rung, Transition};
use dormouse_runtime::Driver as _;
use dormouse_sentry::WakeNote;

use super::{Actor, report};
use crate::clock::{self, now_ms};
use crate::journal::WakeEntry;
use crate::step_report::StepReport;
use crate::view::{NewsKind, PodNews};

impl Actor {
    pub(super) fn moved(&mut self, from: Rung, to: Rung, reason: Reason) {
        self.since = SystemTime::now();
        self.entry.rung = to;
        self.entry.moving_to = None;
        let took = self.last_report.as_ref().map(StepReport::took);
        let with_shell = to == Rung::Running && self.last_report.as_ref().is_some_and(|report| report.shell);
        tracing::info!(
            pod = %self.pod.full_name(), sandbox = %self.pod.sandbox_id,
            %from, %to, %reason, took_ms = took.map(|t| t.as_secs_f64() * 1e3),
            shell = with_shell.then_some(true), "pod moved"
        );
        self.ctx.metrics.moved(from, to, self.runtime());
        self.remember();
        self.publish();
        let message = if with_shell {
            "in the shell that stood by"
        } else {
            ""
        };
        self.tell_news(
            NewsKind::Changed,
            Some(reason),
            message.to_owned(),
            Some(from),
            took,
        );
        if to == Rung::Running {
            self.idle.reset();
        }
    }

    pub(super) fn failed(&mut self, transition: Transition, reason: Reason, rung: Rung) {
        let message = self.explain(reason);
        tracing::warn!(
            pod = %self.pod.full_name(), sandbox = %self.pod.sandbox_id,
            ?transition, %rung, %reason, "step failed: {message}"
        );
        self.entry.moving_to = None;
        self.publish();
        self.tell_news(NewsKind::Warning, Some(reason), message, None, None);
    }

    /// The wrapper woke the pod, or is about to work on it.
    pub(super) async fn note(&mut self, note: &WakeNote) {
        if !self.state.rung.is_asleep() && self.state.transition.is_none() {
            self.apply(Input::Activity);
            return;
        }
        let hibernates = matches!(self.state.transition, Some(Transition::Hibernate));
        if (self.state.rung == Rung::Hibernated || hibernates) && !note.woken {
            // The wrapper cannot restore it, nor take back its release: it asks us to.
            self.wake_asked.get_or_insert_with(clock::now);
            self.apply(Input::Wake(note.source));
            return;
        }
        if note.woken {
            self.entry.last_wake = Some(WakeEntry {
                source: note.source,
                took_us: note.wake_us,
                at_ms: now_ms(),
            });
            self.ctx.metrics.woken(
                note.source,
                true,
                Duration::from_micros(note.wake_us),
                self.runtime(),
            );
        }
        self.apply(Input::FoundRunning(note.source));
        if self.state.rung == Rung::Running {
            if self.deaf {
                // The wrapper knows nothing of that.
                self.hear_again().await;
            } else if self.state.transition.is_none() {
                self.ctx.snapshots.unhold(&self.pod.uid, None);
            }
        }
        if note.woken
            && let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind))
            && let Err(error) = driver.wake(&self.guest).await
        {
            // The guest runs already; this puts back what the agent changed of its cgroup while it slept.
            tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
        }
        self.look_at_memory().await;
        self.publish();
    }

    /// Puts a guest that runs, and was cut off since it was saved, back on the wire.
    pub(super) async fn hear_again(&mut self) {
        if let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) {
            let kept = driver.keep(&self.guest).await;
            self.deaf = kept.is_err();
            if let Err(error) = kept {
                tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
            }
        }
        self.release_held();
        // What was saved is not its only state any more; a node that crashes must not set it back.
        self.ctx.snapshots.unhold(&self.pod.uid, None);
    }

    pub(super) fn tell_news(
        &self,
        kind: NewsKind,
        reason: Option<Reason>,
        message: String,
        from: Option<Rung>,
        took: Option<Duration>,
    ) {
        self.ctx.news(PodNews {
            kind,
            pod: Arc::new(report::of(self)),
            reason,
            message,
            from,
            took,
            at: SystemTime::now(),
        });
    }

    pub(super) fn publish(&self) {
        self.view.send_replace(Arc::new(report::of(self)));
    }

    /// Writes the journal behind a step: nothing waits for it.
    pub(super) fn remember(&self) {
        self.ctx.writer.remember(self.entry.clone());
    }
}
