//! The pod's probes, where the agent runs them in the kubelet's place.
//!
//! They run while the guest runs and nothing is done to it. Before a step begins, what is on its way is ended and waited for:
//! no frame and no command of a probe may meet a guest that is about to be stopped, or be taken for a wish to wake it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_core::{
    ANNOTATION_PROBES, Input, Moment, Probe, ProbeKind, ProbeOutcome, ProbeState, ProbeVerdict, Probes,
    Reason, Rung, Ticket,
};
use dormouse_cri::Container;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Actor, Message};
use crate::clock;
use crate::journal::ProbedEntry;
use crate::probe::{Answer, Run, Target};
use crate::view::{NewsKind, ProbesView};

/// How long a container has to end where nobody says so; the kubelet's default.
const GRACE: Duration = Duration::from_secs(30);

/// First and longest wait before containerd is asked again to stop a container.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How often it may be told that probes fail for another reason than before, as those of a program that is still starting do.
const RETOLD: Duration = Duration::from_secs(10);

/// How a run of a probe ended.
#[derive(Debug)]
pub struct ProbeEnd {
    container_id: String,
    kind: ProbeKind,
    ticket: Ticket,
    /// `None` if it was given up.
    answer: Option<Answer>,
}

/// What is known of a pod's probes.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// What the annotation asks for, or why it cannot be read; `None` without one.
    wanted: Option<Result<Arc<Probes>, String>>,
    /// The containers that run, by name.
    containers: BTreeMap<String, Probed>,
    /// Whether the guest runs, and nothing is done to it.
    awake: bool,
    /// Runs on their way, with all that is left of them, and how many of them have not told how they ended.
    runs: TaskTracker,
    untold: usize,
    stop: CancellationToken,
    pub(super) view: Option<ProbesView>,
    /// Which failure that keeps the pod from being ready was told last, and when.
    told: Option<(String, Moment)>,
}

/// One container that runs.
#[derive(Debug)]
struct Probed {
    id: String,
    state: ProbeState,
    /// Why it is not ready, where a probe said so.
    failure: Option<(ProbeKind, String)>,
    /// Ends the attempts to stop it: it has gone.
    _stopping: Option<DropGuard>,
}

impl Probing {
    /// When the next run is due.
    pub(super) fn due(&self) -> Option<Moment> {
        let due = self.containers.values().filter_map(|probed| probed.state.due());
        due.min().filter(|_| self.awake)
    }

    /// What is on its way; nothing is added while the guest is to be left alone.
    pub(super) fn runs(&self) -> TaskTracker {
        self.runs.clone()
    }

    /// The probes of this kind of the containers that run, with the containers' ids.
    pub(super) fn running(&self, kind: ProbeKind) -> impl Iterator<Item = (&str, &Probe)> {
        self.containers
            .values()
            .filter_map(move |probed| Some((probed.id.as_str(), probed.state.probe(kind)?)))
    }

    fn probes(&self) -> Option<Arc<Probes>> {
        self.wanted.as_ref()?.as_ref().ok().cloned()
    }

    /// Looks after these containers from now on, and after no others. `remembered`: what was known of them before.
    fn sync(&mut self, running: &[Container], remembered: &[ProbedEntry], now: Moment) {
        let Some(probes) = self.probes() else { return };
        for wanted in probes.containers() {
            let running = running
                .iter()
                .filter(|container| container.running && container.name == wanted.name)
                .max_by_key(|container| container.attempt);
            let Some(running) = running else {
                self.containers.remove(&wanted.name);
                continue;
            };
            let known = self.containers.get(&wanted.name);
            if known.is_some_and(|known| known.id == running.id) {
                continue;
            }
            let before = remembered.iter().find(|entry| entry.container_id == running.id);
            let mut state = match before {
                Some(before) => ProbeState::recalled(wanted, before.started, before.passed),
                None => ProbeState::new(wanted, now),
            };
            if self.awake {
                state.resume(now);
            } else {
                state.pause();
            }
            let probed = Probed {
                id: running.id.clone(),
                state,
                failure: None,
                _stopping: None,
            };
            self.containers.insert(wanted.name.clone(), probed);
        }
    }

    /// Whether the pod is ready, and why not; `None` without probes.
    fn judge(&self) -> Option<ProbesView> {
        let probes = match self.wanted.as_ref()? {
            Ok(probes) => probes,
            Err(message) => return Some(not_ready(Reason::InvalidAnnotation, message.clone())),
        };
        for wanted in probes.containers() {
            let name = &wanted.name;
            let probed = match self.containers.get(name) {
                None => {
                    let message = format!("container {name} does not run");
                    return Some(not_ready(Reason::PodNotReady, message));
                }
                Some(probed) if probed.state.is_ready() => continue,
                Some(probed) => probed,
            };
            let message = match &probed.failure {
                Some((kind, message)) => format!("{kind} probe of container {name} failed: {message}"),
                None => {
                    let kind = if probed.state.is_started() {
                        ProbeKind::Readiness
                    } else {
                        ProbeKind::Startup
                    };
                    format!("{kind} probe of container {name} has not succeeded yet")
                }
            };
            return Some(not_ready(Reason::ProbesNotPassed, message));
        }
        Some(ProbesView {
            ready: true,
            reason: Reason::ProbesPassed,
            message: String::new(),
        })
    }

    /// Whether a failure is to be told: of what keeps on failing, the beginning, and that it is for another reason now.
    fn is_news(&mut self, failure: Option<&String>, now: Moment) -> bool {
        let Some(message) = failure else {
            self.told = None;
            return false;
        };
        let is_known = self
            .told
            .as_ref()
            .is_some_and(|(told, at)| told == message || now.since(*at) < RETOLD);
        if !is_known {
            self.told = Some((message.clone(), now));
        }
        !is_known
    }

    fn to_remember(&self) -> Vec<ProbedEntry> {
        let entry = |probed: &Probed| ProbedEntry {
            container_id: probed.id.clone(),
            started: probed.state.is_started(),
            passed: probed.state.has_passed(),
        };
        self.containers.values().map(entry).collect()
    }
}

const fn not_ready(reason: Reason, message: String) -> ProbesView {
    ProbesView {
        ready: false,
        reason,
        message,
    }
}

impl Actor {
    /// Reads what the pod was born with, and begins where an agent before this one ended.
    pub(super) fn begin_probes(&mut self) {
        let wanted = self.pod.annotations.get(ANNOTATION_PROBES).map(|text| {
            Probes::from_json(text)
                .map(Arc::new)
                .map_err(|error| error.to_string())
        });
        if let Some(Err(message)) = &wanted {
            let (reason, message) = (Reason::InvalidAnnotation, message.clone());
            tracing::warn!(pod = %self.pod.full_name(), %reason, "its probes are not run: {message}");
            self.tell_news(NewsKind::Warning, Some(reason), message, None, None);
        }
        self.probing.wanted = wanted;
        // So that their end can be waited for, at any time.
        self.probing.runs.close();
        self.probing.awake = self.may_be_probed();
        self.sync_probes();
    }

    fn may_be_probed(&self) -> bool {
        self.state.rung == Rung::Running && self.state.transition.is_none()
    }

    /// Follows the pod's containers as they come and go.
    pub(super) fn sync_probes(&mut self) {
        if self.probing.wanted.is_none() {
            return;
        }
        self.probing
            .sync(&self.pod.containers, &self.entry.probed, clock::now());
        self.judge_probes();
    }

    /// Ends what is on its way when the guest is to be left alone, and begins anew when it runs again.
    pub(super) fn follow_probes(&mut self) {
        let awake = self.may_be_probed();
        if self.probing.wanted.is_none() || std::mem::replace(&mut self.probing.awake, awake) == awake {
            return;
        }
        let probing = &mut self.probing;
        if awake {
            let now = clock::now();
            for probed in probing.containers.values_mut() {
                probed.state.resume(now);
            }
        } else {
            for probed in probing.containers.values_mut() {
                probed.state.pause();
            }
            probing.stop.cancel();
            probing.stop = CancellationToken::new();
        }
    }

    /// Begins what is due.
    pub(super) async fn run_probes(&mut self, now: Moment) {
        let probing = &mut self.probing;
        let address = self.pod.addresses.first().copied();
        let mut begun = Vec::new();
        for probed in probing.containers.values_mut() {
            for (kind, ticket) in probed.state.begin(now) {
                if let Some(probe) = probed.state.probe(kind).cloned() {
                    begun.push((probed.id.clone(), kind, ticket, probe));
                }
            }
        }
        if begun.is_empty() {
            return;
        }
        if self.probing.untold == 0 {
            self.excuse_cpu(true).await;
        }
        for (container_id, kind, ticket, probe) in begun {
            self.probing.untold += 1;
            let run = Run {
                flows: Arc::clone(&self.ctx) as _,
                runtime: self.ctx.runtime.clone(),
                target: Target {
                    wire: self.wire.key().clone(),
                    address,
                    container_id: container_id.clone(),
                },
                stop: self.probing.stop.clone(),
                alive: self.probing.runs.token(),
            };
            let actor = self.self_sender.clone();
            tokio::spawn(async move {
                let answer = run.probe(&probe).await;
                drop(run);
                let end = ProbeEnd {
                    container_id,
                    kind,
                    ticket,
                    answer,
                };
                // An actor that has ended needs to know nothing.
                let _ = actor.send(Message::Probed(end)).await;
            });
        }
    }

    /// A run ended.
    pub(super) async fn probed(&mut self, end: ProbeEnd) {
        self.probing.untold = self.probing.untold.saturating_sub(1);
        if self.probing.untold == 0 {
            self.excuse_cpu(false).await;
        }
        let ProbeEnd {
            container_id,
            kind,
            ticket,
            answer: Some(answer),
        } = end
        else {
            return;
        };
        self.ctx.metrics.probed(kind, answer.outcome);
        let all = &mut self.probing.containers;
        let Some((name, probed)) = all.iter_mut().find(|(_, probed)| probed.id == container_id) else {
            return;
        };
        let verdict = probed.state.ended(kind, ticket, answer.outcome, clock::now());
        match answer.outcome {
            ProbeOutcome::Failure => {
                tracing::debug!(pod = %self.pod.full_name(), container = name, %kind, "probe failed: {}", answer.message);
                probed.failure = Some((kind, answer.message));
            }
            ProbeOutcome::Success if probed.failure.as_ref().is_some_and(|(of, _)| *of == kind) => {
                probed.failure = None;
            }
            ProbeOutcome::Success | ProbeOutcome::Unknown => {}
        }
        if let Some(ProbeVerdict::Stop(kind)) = verdict {
            let name = name.clone();
            self.stop_container(&name, kind);
        }
        self.judge_probes();
    }

    /// A container has failed: it is stopped, and what the kubelet then does is its pod's restart policy.
    fn stop_container(&mut self, name: &str, kind: ProbeKind) {
        let Some(probed) = self.probing.containers.get_mut(name) else {
            return;
        };
        let reason = match kind {
            ProbeKind::Startup => Reason::StartupProbeFailed,
            ProbeKind::Liveness | ProbeKind::Readiness => Reason::LivenessProbeFailed,
        };
        let own = probed.state.probe(kind).and_then(|probe| probe.termination_grace);
        let grace = own.or(self.pod.termination_grace).unwrap_or(GRACE);
        let why = probed.failure.as_ref().map_or("", |(_, why)| why);
        let message = format!("{kind} probe of container {name} failed, and it is stopped: {why}");
        tracing::warn!(pod = %self.pod.full_name(), container = probed.id, %reason, "{message}");
        let gone = CancellationToken::new();
        let (runtime, id, pod) = (self.ctx.runtime.clone(), probed.id.clone(), self.pod.full_name());
        probed._stopping = Some(gone.clone().drop_guard());
        tokio::spawn(async move {
            let mut again = AGAIN.0;
            let stop = async {
                while let Err(error) = runtime.stop_container(&id, grace).await {
                    tracing::warn!(%pod, container = id, reason = %error.reason(), "it cannot be stopped: {error}");
                    tokio::time::sleep(again).await;
                    again = (again * 2).min(AGAIN.1);
                }
            };
            tokio::select! {
                () = stop => {}
                () = gone.cancelled() => {}
            }
        });
        self.tell_news(NewsKind::Warning, Some(reason), message, None, None);
    }

    /// Says what all of them together say, if that has changed.
    fn judge_probes(&mut self) {
        let Some(view) = self.probing.judge() else { return };
        let probed = self.probing.to_remember();
        if self.entry.probed != probed {
            self.entry.probed = probed;
            self.remember();
        }
        if self.state.unready == view.ready {
            self.apply(Input::Probed(view.ready));
        }
        let failed = self
            .probing
            .containers
            .values()
            .any(|probed| probed.failure.is_some())
            && !view.ready;
        let is_news = self
            .probing
            .is_news(failed.then_some(&view.message), clock::now());
        let before = self.probing.view.replace(view.clone());
        self.publish();
        if is_news || before.is_some_and(|before| before.ready != view.ready) {
            let ProbesView { reason, message, .. } = view;
            tracing::info!(pod = %self.pod.full_name(), %reason, "what the pod's probes say has changed: {message}");
            self.tell_news(NewsKind::Changed, Some(reason), message, None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_cri::ContainerState;

    use super::*;

    fn probing(text: &str) -> Probing {
        Probing {
            wanted: Some(
                Probes::from_json(text)
                    .map(Arc::new)
                    .map_err(|error| error.to_string()),
            ),
            awake: true,
            ..Probing::default()
        }
    }

    fn running(id: &str, name: &str, attempt: u32) -> Container {
        Container {
            id: id.to_owned(),
            name: name.to_owned(),
            image: String::new(),
            pid: 1,
            running: true,
            state: ContainerState::Running,
            attempt,
        }
    }

    const READY: &str = r#"[{"name": "main", "readiness": {"tcpSocket": {"port": 80}}}]"#;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn another_failure_is_told_but_not_each_second() {
        let mut probing = probing(READY);
        let (refused, status) = ("refused".to_owned(), "status 503".to_owned());
        assert!(probing.is_news(Some(&refused), at(1)));
        assert!(!probing.is_news(Some(&refused), at(30)));
        assert!(probing.is_news(Some(&status), at(31)));
        assert!(!probing.is_news(Some(&refused), at(32)), "it goes to and fro");
        assert!(!probing.is_news(Some(&status), at(60)));
        assert!(!probing.is_news(None, at(61)));
        assert!(probing.is_news(Some(&status), at(62)), "it begins anew");
    }

    #[test]
    fn a_pod_is_ready_when_all_its_containers_are() {
        let mut probing = probing(READY);
        assert_eq!(probing.judge().unwrap().reason, Reason::PodNotReady);
        probing.sync(&[running("a", "main", 0), running("b", "side", 0)], &[], at(0));
        assert_eq!(probing.containers.len(), 1, "the other one has no probes");
        assert_eq!(probing.judge().unwrap().reason, Reason::ProbesNotPassed);
        assert_eq!(probing.due(), Some(at(0)));
        let state = &mut probing.containers.get_mut("main").unwrap().state;
        let (kind, ticket) = state.begin(at(0))[0];
        state.ended(kind, ticket, ProbeOutcome::Success, at(0));
        assert!(probing.judge().unwrap().ready);
        // Another container in its place has to show it anew.
        probing.sync(&[running("c", "main", 1)], &[], at(5));
        assert!(!probing.judge().unwrap().ready);
        probing.sync(&[], &[], at(6));
        assert_eq!(probing.judge().unwrap().message, "container main does not run");
    }

    #[test]
    fn what_an_agent_before_this_one_knew_of_a_sleeper_counts() {
        let mut probing = probing(READY);
        probing.awake = false;
        let remembered = ProbedEntry {
            container_id: "a".to_owned(),
            started: true,
            passed: true,
        };
        probing.sync(
            &[running("a", "main", 0)],
            std::slice::from_ref(&remembered),
            at(0),
        );
        assert!(probing.judge().unwrap().ready);
        assert_eq!(probing.due(), None);
        assert_eq!(probing.to_remember(), [remembered]);
    }

    #[test]
    fn without_an_annotation_nothing_is_said_and_with_a_bad_one_the_pod_is_not_ready() {
        assert_eq!(Probing::default().judge(), None);
        let bad = probing("[").judge().unwrap();
        assert_eq!((bad.ready, bad.reason), (false, Reason::InvalidAnnotation));
    }
}
