//! The pod's shell: when it is wanted, whether it lives, and what it takes.
//!
//! Fail points (feature `failpoints`): `agent::shell::{made, ended}`.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_core::{
    Input, MOST_WAKES, Moment, Reason, Rung, ShellPolicy, ShellSight, ShellSpan, ShellTime, WakeSource,
    shell_span,
};
use dormouse_runtime::{Driver as _, ShellFound, StandingShell};
use dormouse_sentry::ProcessId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::step::Running;
use super::{Actor, Message};
use crate::clock::{self, now_ms};
use crate::shells::{Place, ShellView};
use crate::step_report::StepReport;
use crate::view::NewsKind;

/// How often the wall clock is looked at again while a shell may be wanted by it: it may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// What the actor knows of its pod's shell beside the state.
#[derive(Debug, Default)]
pub(super) struct OwnShell {
    /// Its place among the node's.
    place: Option<Place>,
    /// What the last look at it found.
    pub(super) view: Option<ShellView>,
    /// When a wake is expected, ms since 1970.
    pub(super) expected_ms: Option<u64>,
    /// The span that the state was told of.
    told: Option<ShellSpan>,
    /// When it is to be planned again.
    due: Option<Moment>,
    /// Whether shells of pods that had none may be made, as far as the actor has heard.
    pub(super) opened: bool,
    /// Watches its process.
    watch: Option<Watch>,
    /// Why the one that stands was made.
    reason: Option<Reason>,
}

/// Ends the watching of a process when dropped.
#[derive(Debug)]
struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Actor {
    /// When [`Actor::plan_shell`] is due.
    pub(super) fn shell_due(&self) -> Option<Moment> {
        self.shell.due.filter(|_| self.state.transition.is_none())
    }

    /// Says from when until when a shell is to stand, by the wall clock as it is now.
    pub(super) fn plan_shell(&mut self) {
        let (now, now_ms) = (clock::now(), now_ms());
        let policy = &self.state.policy;
        // A shell that stands is not to lose its place to one that does not, only because its pod was found later.
        let may = self.state.shell.there != ShellSight::None || self.ctx.shells.is_open();
        let wanted = self.state.rung == Rung::Hibernated && self.ctx.config.shells.max > 0 && may;
        let span = wanted
            .then(|| shell_span(policy, &self.entry.wakes, self.ctx.config.shells.times(), now_ms))
            .flatten();
        let clocked = wanted && policy.shell == ShellPolicy::Predicted;
        let moment = |at: u64| now.after(Duration::from_millis(at.saturating_sub(now_ms)));
        let until = span.and_then(|span| span.until_ms).map(moment);
        self.shell.due = clocked.then(|| {
            let again = now.after(LOOK_AGAIN);
            until.map_or(again, |until| until.min(again))
        });
        self.shell.expected_ms = span.and_then(|span| span.expected_ms);
        if self.shell.told == span && span.is_none_or(|span| span.until_ms.is_none()) {
            return;
        }
        self.shell.told = span;
        self.apply(Input::WantShell(span.map(|span| ShellTime {
            from: moment(span.from_ms),
            until,
            reason: span.reason,
        })));
    }

    /// Remembers a wake, for what it says of the next one.
    pub(super) fn learn_wake(&mut self, source: WakeSource, from: Rung) {
        // Shorter sleeps say nothing that a shell would be of use for, and an end is no use of the pod.
        if from != Rung::Hibernated || source == WakeSource::Kill {
            return;
        }
        let wakes = &mut self.entry.wakes;
        wakes.push(now_ms());
        let surplus = wakes.len().saturating_sub(MOST_WAKES);
        wakes.drain(..surplus);
    }

    /// Takes a place on the node for a shell that is about to be made.
    pub(super) fn take_shell_place(&mut self) -> Result<(), Reason> {
        if self.shell.place.is_none() {
            self.shell.place = Some(self.ctx.shells.take()?);
        }
        Ok(())
    }

    /// Takes over the shell that stands by, if one does, from whoever had the pod before, and plans on.
    pub(super) async fn begin_shell(&mut self) {
        let found = self.find_shell().await;
        // Where it cannot be told there may be something: whoever makes one, or ends it, finds out.
        self.state.shell.there = found.map_or(ShellSight::Parts, sight);
        self.plan_shell();
        if let Some(found) = found {
            self.keep_shell(found);
        }
    }

    /// Looks what there is of a shell, where that may have changed, and follows it; `None` if it cannot be told.
    pub(super) async fn look_at_shell(&mut self) -> Option<ShellSight> {
        let found = self.find_shell().await?;
        let there = sight(found);
        if self.state.shell.there != there {
            self.apply(Input::FoundShell(there));
        }
        self.keep_shell(found);
        Some(there)
    }

    /// Measures a shell that stands by.
    pub(super) async fn measure_shell(&mut self) {
        if self.state.shell.stands() && self.state.transition.is_none() {
            self.look_at_shell().await;
        }
    }

    /// `None` if it cannot be told, which changes nothing.
    async fn find_shell(&self) -> Option<ShellFound> {
        if self.state.rung != Rung::Hibernated {
            return Some(ShellFound::None);
        }
        let driver = self.kind.and_then(|kind| self.ctx.driver(kind))?;
        match driver.find_shell(&self.guest).await {
            Ok(found) => Some(found),
            Err(error) => {
                tracing::debug!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
                None
            }
        }
    }

    /// Keeps a place for as long as there is anything, and an eye on what stands.
    fn keep_shell(&mut self, found: ShellFound) {
        match found {
            ShellFound::Whole(standing) => return self.keep_standing(standing),
            // What is left of one takes its room until it is ended.
            ShellFound::Parts => drop(self.take_shell_place()),
            ShellFound::None => self.shell.place = None,
        }
        self.shell.view = None;
        self.shell.watch = None;
        self.shell.reason = None;
    }

    fn keep_standing(&mut self, found: StandingShell) {
        let wanted = self.state.shell.wanted.map(|time| time.reason);
        let reason = *self
            .shell
            .reason
            .get_or_insert_with(|| wanted.unwrap_or(Reason::Ordered));
        let since = UNIX_EPOCH + Duration::from_millis(found.since_ms);
        self.shell.view = Some(ShellView {
            since: since.min(SystemTime::now()),
            bytes: found.bytes,
            reason,
        });
        if self.take_shell_place().is_err() {
            // One that an earlier agent made, under a configuration that allowed for more.
            self.apply(Input::GiveUpShell(Reason::ShellsFull));
        }
        if self.shell.watch.is_none() {
            self.shell.watch = self.watch_shell(found.sentry);
        }
    }

    /// Tells the actor when the shell ends by itself.
    fn watch_shell(&self, sentry: ProcessId) -> Option<Watch> {
        let handle = sentry.open().ok()?;
        let actor = self.self_sender.downgrade();
        let task = tokio::spawn(async move {
            if has_ended(handle).await
                && let Some(actor) = actor.upgrade()
            {
                let message = Message::Input(Input::GiveUpShell(Reason::ShellLost));
                let _ = actor.send(message).await;
            }
        });
        Some(Watch(task.abort_handle()))
    }

    /// A step leaves the shell to itself no more: its end is expected from here on.
    pub(super) fn unwatch_shell(&mut self) {
        self.shell.watch = None;
    }

    /// A shell stands by from now on, or not any more.
    pub(super) fn tell_shell(&mut self, stands: bool, reason: Reason) {
        self.ctx
            .metrics
            .shell(if stands { "made" } else { "given-up" }, reason);
        self.shell.reason = stands.then_some(reason);
        if let Some(view) = &mut self.shell.view {
            view.reason = reason;
        }
        let message = if stands {
            "a shell stands by"
        } else {
            "the shell was given up"
        };
        tracing::info!(pod = %self.pod.full_name(), sandbox = %self.pod.sandbox_id, %reason, "{message}");
        self.publish();
        self.tell_news(NewsKind::Changed, Some(reason), message.to_owned(), None, None);
    }
}

const fn sight(found: ShellFound) -> ShellSight {
    match found {
        ShellFound::None => ShellSight::None,
        ShellFound::Parts => ShellSight::Parts,
        ShellFound::Whole(_) => ShellSight::Whole,
    }
}

/// Waits for the end of a process; `false` where that cannot be done.
async fn has_ended(handle: OwnedFd) -> bool {
    // SAFETY: the descriptor is owned by what it is handed to, and neither replaced nor closed before that is dropped.
    #[allow(unsafe_code)]
    let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    match handle {
        Ok(handle) => handle.readable().await.is_ok(),
        Err(_) => false,
    }
}

impl Running {
    /// Hibernated, and a shell stands by.
    pub(super) async fn make_shell(&self, report: &mut StepReport) -> Result<(), super::save::StepFailed> {
        let done = self.driver.make_shell(&self.guest, &self.cancel).await?;
        fail::fail_point!("agent::shell::made");
        report.phase("lock", done.lock);
        report.phase("create", done.create);
        report.phase("containers", done.containers);
        Ok(())
    }

    /// Hibernated, and no shell stands by.
    pub(super) async fn end_shell(&self, report: &mut StepReport) -> Result<(), super::save::StepFailed> {
        let mut lap = super::save::Lap::new();
        self.driver.end_shell(&self.guest).await?;
        fail::fail_point!("agent::shell::ended");
        report.phase("end", lap.took());
        Ok(())
    }
}
