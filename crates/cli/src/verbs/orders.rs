//! What all orders have in common: whom they are for, several at once, and a result for each.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use dormouse_rpc::v1;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use serde::Serialize;
use tonic::Status;

use super::bar;
use crate::agent::Agent;
use crate::args::{Format, Global, OrderArgs};
use crate::error::{AGENT_UNREACHABLE, CliError, message_text, reason_text};
use crate::output::{complain, json, line, yaml};
use crate::select::{find, reference};
use crate::view::units::{duration, millis, millis_number};
use crate::view::{clean, rung_name};

/// How many orders are under way at once. The agent has its own, smaller, bounds per kind of step.
const AT_ONCE: usize = 16;

/// What the agent answered to an order.
pub(super) struct Answer {
    pub(super) pod: Option<v1::Pod>,
    /// Absent for orders that do not move the pod.
    pub(super) outcome: Option<v1::Outcome>,
    /// The snapshot that was taken, for orders that take one.
    pub(super) snapshot: Option<String>,
}

/// What became of one order, as `-o json` and `-o yaml` print it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    pod: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rung: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    phases: Vec<Phase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip)]
    took: Option<Duration>,
    #[serde(skip)]
    unreachable: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: String,
    took_ms: f64,
}

/// A new operation id: the agent carries an order with the same id out once only.
pub(super) fn operation_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Gives an order to every pod that `args` means. `call` gives one order; `long` says what is done for it, where that takes
/// longer than a moment.
pub(super) async fn to_all<F>(
    global: &Global,
    args: OrderArgs,
    long: Option<&str>,
    call: impl Fn(Agent, v1::PodRef, String) -> F,
) -> Result<ExitCode, CliError>
where
    F: Future<Output = Result<Answer, Status>>,
{
    let agent = Agent::connect(global).await?;
    let by_name = !args.pods.is_empty();
    let pods = agent
        .list(v1::ListRequest {
            managed_only: !by_name,
            label_selector: args.selector.unwrap_or_default(),
            namespace: global.namespace.clone().unwrap_or_default(),
        })
        .await?;
    let mut outcomes = Vec::new();
    let mut meant: Vec<&v1::Pod> = Vec::new();
    if by_name {
        for name in &args.pods {
            match find(&pods, name, global.namespace.as_deref()) {
                // Two names of one pod are one order.
                Ok(pod) if meant.iter().any(|other| other.uid == pod.uid) => {}
                Ok(pod) => meant.push(pod),
                Err(error) => {
                    let text = error.to_string();
                    let (reason, message) = text.split_once(": ").unwrap_or(("InvalidRequest", &text));
                    outcomes.push(Outcome::failure(
                        name.clone(),
                        reason.to_owned(),
                        message.to_owned(),
                    ));
                }
            }
        }
    } else {
        meant.extend(&pods);
    }
    for outcome in &outcomes {
        outcome.print(global.output)?;
    }
    let bar = match long {
        Some(what) if !meant.is_empty() => bar::wait(global, &of(what, 0, meant.len())),
        _ => ProgressBar::hidden(),
    };
    let (all, mut ended) = (meant.len(), 0);
    let mut orders = futures::stream::iter(meant)
        .map(|pod| {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let answer = call(agent.clone(), reference(pod), operation_id());
            async move { Outcome::of(name, answer.await) }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(outcome) = orders.next().await {
        ended += 1;
        bar.set_message(of(long.unwrap_or_default(), ended, all));
        bar.suspend(|| outcome.print(global.output))?;
        outcomes.push(outcome);
    }
    bar.finish_and_clear();
    drop(orders);
    finish(global.output, &outcomes)
}

/// How far several orders are.
fn of(what: &str, ended: usize, all: usize) -> String {
    if all > 1 {
        format!("{what} ({ended} of {all})")
    } else {
        what.to_owned()
    }
}

fn finish(format: Format, outcomes: &[Outcome]) -> Result<ExitCode, CliError> {
    match format {
        Format::Json => line(&json(&outcomes)?)?,
        Format::Yaml => line(yaml(&outcomes)?.trim_end())?,
        Format::Table | Format::Wide => {
            if outcomes.is_empty() {
                line("no pods")?;
            }
        }
    }
    Ok(if outcomes.iter().any(|outcome| outcome.unreachable) {
        ExitCode::from(3)
    } else if outcomes.iter().any(|outcome| !outcome.ok) {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

impl Outcome {
    fn failure(pod: String, reason: String, message: String) -> Self {
        Self {
            pod,
            ok: false,
            rung: None,
            moved: None,
            snapshot: None,
            took_ms: None,
            phases: Vec::new(),
            reason: Some(reason),
            message: Some(message),
            took: None,
            unreachable: false,
        }
    }

    fn of(pod: String, answer: Result<Answer, Status>) -> Self {
        match answer {
            Err(status) => {
                let reason = reason_text(&status);
                let unreachable = reason == AGENT_UNREACHABLE;
                Self {
                    unreachable,
                    ..Self::failure(pod, reason, message_text(&status))
                }
            }
            Ok(Answer {
                pod: state,
                outcome,
                snapshot,
            }) => {
                let took = outcome
                    .as_ref()
                    .and_then(|outcome| duration(outcome.took.as_ref()));
                Self {
                    pod,
                    ok: true,
                    rung: state.map(|state| rung_name(state.rung)),
                    moved: outcome.as_ref().map(|outcome| outcome.moved),
                    snapshot,
                    took_ms: took.map(millis_number),
                    phases: outcome
                        .map(|outcome| outcome.phases)
                        .unwrap_or_default()
                        .into_iter()
                        .map(|phase| Phase {
                            took_ms: duration(phase.took.as_ref())
                                .map(millis_number)
                                .unwrap_or_default(),
                            name: phase.name,
                        })
                        .collect(),
                    reason: None,
                    message: None,
                    took,
                    unreachable: false,
                }
            }
        }
    }

    /// Prints the result as soon as it is known, if the format has lines.
    fn print(&self, format: Format) -> Result<(), CliError> {
        let wide = match format {
            Format::Table => false,
            Format::Wide => true,
            Format::Json | Format::Yaml => return Ok(()),
        };
        let pod = clean(&self.pod);
        if !self.ok {
            let reason = self.reason.as_deref().unwrap_or_default();
            complain(&format!(
                "{pod}  {reason}: {}",
                clean(self.message.as_deref().unwrap_or_default())
            ));
            return Ok(());
        }
        let rung = self.rung.unwrap_or("done");
        let mut text = match self.moved {
            Some(false) => format!("{pod}  {rung} already"),
            _ => format!("{pod}  {rung}"),
        };
        if let Some(took) = self.took.filter(|_| self.moved == Some(true)) {
            text.push_str(&format!("  {}", millis(took)));
        }
        if let Some(snapshot) = &self.snapshot {
            text.push_str(&format!("  snapshot {}", clean(snapshot)));
        }
        if wide && !self.phases.is_empty() {
            let phases: Vec<String> = self
                .phases
                .iter()
                .map(|phase| format!("{} {:.1} ms", clean(&phase.name), phase.took_ms))
                .collect();
            text.push_str(&format!("  ({})", phases.join(", ")));
        }
        Ok(line(&text)?)
    }
}
