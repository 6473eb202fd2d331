//! `kubectl dormouse suspend` and `resume`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use dormouse_api::agents::{OperatingMode, Sandbox};
use dormouse_api::conditions::{FINISHED, READY, RESTORED, SUSPENDED, ready, suspended};
use dormouse_output::{Format, clean, complain, json, line, millis_number, span, yaml};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::json;

use super::wait::until;
use crate::args::{Global, OperateArgs};
use crate::cluster::{Cluster, Name};
use crate::error::PluginError;
use crate::view::{sandbox_condition, stand};

/// How many are told and waited for at once.
const AT_ONCE: usize = 16;

/// What became of one sandbox, as `-o json` and `-o yaml` print it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    sandbox: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// Whether it had to be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<bool>,
    /// From when it was told until it was seen to be so, by the clock of this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip)]
    took: Option<Duration>,
    #[serde(skip)]
    code: u8,
}

/// Tells sandboxes to run or not to, and waits until it is so.
pub(super) async fn operate(
    cluster: &Cluster,
    global: &Global,
    args: OperateArgs,
    mode: OperatingMode,
) -> Result<ExitCode, PluginError> {
    let names = meant(cluster, global, &args).await?;
    let wait = (!args.no_wait).then_some(global.timeout);
    let mut outcomes = Vec::new();
    let mut under_way = futures::stream::iter(names)
        .map(|name| async move {
            let outcome = one(cluster, &name, mode, wait).await;
            outcome.unwrap_or_else(|error| Outcome::failure(&name, &error))
        })
        .buffer_unordered(AT_ONCE);
    while let Some(outcome) = under_way.next().await {
        outcome.print(global.output)?;
        outcomes.push(outcome);
    }
    match global.output {
        Format::Json => line(&json(&outcomes)?)?,
        Format::Yaml => line(yaml(&outcomes)?.trim_end())?,
        Format::Table | Format::Wide if outcomes.is_empty() => line("no sandboxes")?,
        Format::Table | Format::Wide => {}
    }
    let worst = outcomes.iter().map(|outcome| outcome.code).max();
    Ok(ExitCode::from(worst.unwrap_or_default()))
}

async fn meant(cluster: &Cluster, global: &Global, args: &OperateArgs) -> Result<Vec<Name>, PluginError> {
    if args.sandboxes.is_empty() {
        let mut sandboxes: Vec<Sandbox> = cluster.list(cluster.scope(), args.selector.as_deref()).await?;
        super::ps::sort(&mut sandboxes);
        let name = |sandbox: &Sandbox| Name {
            namespace: sandbox.metadata.namespace.clone().unwrap_or_default(),
            name: sandbox.metadata.name.clone().unwrap_or_default(),
        };
        return Ok(sandboxes.iter().map(name).collect());
    }
    if global.all_namespaces {
        return Err(PluginError::Usage(
            "-A goes with --all or -l; name a sandbox of another namespace as NAMESPACE/NAME",
        ));
    }
    let mut names = Vec::new();
    for given in &args.sandboxes {
        let name = cluster.name("SANDBOX", given)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

async fn one(
    cluster: &Cluster,
    name: &Name,
    mode: OperatingMode,
    wait: Option<Duration>,
) -> Result<Outcome, PluginError> {
    let before: Sandbox = cluster.get(name).await?;
    let changed = before.spec.operating_mode != mode;
    let began = Instant::now();
    let told: Sandbox = if changed {
        cluster
            .merge(name, &json!({"spec": {"operatingMode": mode}}))
            .await?
    } else {
        before
    };
    let Some(limit) = wait else {
        return Ok(Outcome::told(name, changed));
    };
    let generation = told.metadata.generation;
    // Kept for when it is not so in time.
    let mut last = None;
    let judged = until::<Sandbox, _>(cluster, name, limit, |sandbox| {
        let Some(sandbox) = sandbox else {
            return Some(Judged::Never(
                "Gone".to_owned(),
                "the sandbox was deleted".to_owned(),
            ));
        };
        let judged = judge(sandbox, mode, generation);
        match judged {
            Judged::NotYet => {
                last = Some(said(sandbox, mode));
                None
            }
            judged => Some(judged),
        }
    })
    .await?;
    let took = began.elapsed();
    Ok(match judged {
        Some(Judged::Is(state, remark)) => Outcome {
            state: Some(state),
            changed: Some(changed),
            took_ms: Some(millis_number(took)),
            message: remark,
            took: Some(took),
            ..Outcome::told(name, changed)
        },
        Some(Judged::Never(reason, message)) => Outcome::failed(name, reason, message),
        Some(Judged::NotYet) | None => {
            let what = match mode {
                OperatingMode::Suspended => "suspended",
                OperatingMode::Running => "running",
            };
            Outcome::failed(
                name,
                "DeadlineExceeded".to_owned(),
                format!(
                    "not {what} within {}, and may still become so (--timeout waits longer): {}",
                    span(limit),
                    last.unwrap_or_else(|| "nothing was heard of it".to_owned())
                ),
            )
        }
    })
}

/// What a look at a sandbox says.
#[derive(Debug, PartialEq)]
enum Judged {
    /// It is so; how it stands, and a remark.
    Is(&'static str, Option<String>),
    /// Waiting is of no use: reason and message.
    Never(String, String),
    NotYet,
}

/// Whether the sandbox is as it was told, from what has been said since.
fn judge(sandbox: &Sandbox, mode: OperatingMode, generation: Option<i64>) -> Judged {
    if sandbox.metadata.generation < generation {
        // From before it was told.
        return Judged::NotYet;
    }
    if sandbox.spec.operating_mode != mode {
        return Judged::Never(
            "Superseded".to_owned(),
            "somebody has told it otherwise meanwhile".to_owned(),
        );
    }
    let found = |type_: &str| {
        // What was said before it was told is about something else.
        sandbox_condition(sandbox, type_).filter(|condition| condition.observed_generation >= generation)
    };
    let never = |reason: &str, message: &str| Judged::Never(reason.to_owned(), message.to_owned());
    if let Some(condition) = found(READY)
        && matches!(
            condition.reason.as_str(),
            ready::INVALID_CONFIGURATION | ready::MULTIPLE_PODS | ready::SANDBOX_EXPIRED
        )
    {
        return never(&condition.reason, &condition.message);
    }
    match mode {
        OperatingMode::Suspended => match found(SUSPENDED) {
            Some(condition) if condition.status == "True" => Judged::Is(stand(sandbox).as_str(), None),
            Some(condition) if condition.reason == suspended::POD_NOT_OWNED => {
                never(&condition.reason, &condition.message)
            }
            _ => Judged::NotYet,
        },
        OperatingMode::Running => match found(READY) {
            Some(condition) if condition.status == "True" => {
                Judged::Is(stand(sandbox).as_str(), remark(sandbox))
            }
            _ => match found(FINISHED) {
                Some(finished) if finished.status == "True" => never(&finished.reason, &finished.message),
                _ => Judged::NotYet,
            },
        },
    }
}

/// That it came back without its memory, if it did.
fn remark(sandbox: &Sandbox) -> Option<String> {
    let restored = sandbox_condition(sandbox, RESTORED)?;
    (restored.status == "False")
        .then(|| format!("without its memory ({}): {}", restored.reason, restored.message))
}

/// What the sandbox says of itself.
fn said(sandbox: &Sandbox, mode: OperatingMode) -> String {
    let type_ = match mode {
        OperatingMode::Suspended => SUSPENDED,
        OperatingMode::Running => READY,
    };
    sandbox_condition(sandbox, type_).map_or_else(
        || "it says nothing of itself; does the controller run?".to_owned(),
        |condition| {
            format!(
                "{type_}={} {}: {}",
                condition.status, condition.reason, condition.message
            )
        },
    )
}

impl Outcome {
    fn told(name: &Name, changed: bool) -> Self {
        Self {
            sandbox: format!("{}/{}", name.namespace, name.name),
            ok: true,
            state: None,
            changed: Some(changed),
            took_ms: None,
            reason: None,
            message: None,
            took: None,
            code: 0,
        }
    }

    fn failed(name: &Name, reason: String, message: String) -> Self {
        Self {
            ok: false,
            changed: None,
            reason: Some(reason),
            message: Some(message),
            code: 1,
            ..Self::told(name, false)
        }
    }

    fn failure(name: &Name, error: &PluginError) -> Self {
        let text = error.full_text();
        let (reason, message) = text.split_once(": ").unwrap_or(("Failure", &text));
        Self {
            code: error.exit_code(),
            ..Self::failed(name, reason.to_owned(), message.to_owned())
        }
    }

    /// Prints the result as soon as it is known, if the format has lines.
    fn print(&self, format: Format) -> Result<(), PluginError> {
        if matches!(format, Format::Json | Format::Yaml) {
            return Ok(());
        }
        match self.text() {
            (true, text) => line(&text)?,
            (false, text) => complain(&text),
        }
        Ok(())
    }

    /// In one line; whether it is good news.
    fn text(&self) -> (bool, String) {
        let sandbox = clean(&self.sandbox);
        let message = self.message.as_deref().map(clean).unwrap_or_default();
        if !self.ok {
            let reason = self.reason.as_deref().unwrap_or_default();
            return (false, format!("{sandbox}  {reason}: {message}"));
        }
        let mut text = match (self.state, self.changed) {
            (Some(state), Some(false)) => format!("{sandbox}  {state} already"),
            (Some(state), _) => format!("{sandbox}  {state}"),
            (None, Some(false)) => format!("{sandbox}  told already"),
            (None, _) => format!("{sandbox}  told"),
        };
        if let Some(took) = self.took.filter(|_| self.changed == Some(true)) {
            text.push_str(&format!("  {}", dormouse_output::millis(took)));
        }
        if !message.is_empty() {
            text.push_str(&format!("  {message}"));
        }
        (true, text)
    }
}

#[cfg(test)]
mod tests {
    use dormouse_api::conditions::{finished, messages, restored};

    use super::*;
    use crate::view::tests::{sandbox, with};

    #[test]
    fn only_what_was_said_since_counts() {
        let asleep = with(
            sandbox(OperatingMode::Suspended),
            SUSPENDED,
            "True",
            suspended::GUEST_ASLEEP,
            &messages::guest_asleep("Frozen"),
        );
        let judged = |generation| judge(&asleep, OperatingMode::Suspended, Some(generation));
        assert_eq!(judged(2), Judged::Is("Frozen", None));
        assert_eq!(judged(3), Judged::NotYet);
        assert!(matches!(
            judge(&asleep, OperatingMode::Running, Some(2)),
            Judged::Never(reason, _) if reason == "Superseded"
        ));
        assert_eq!(judge(&asleep, OperatingMode::Running, Some(3)), Judged::NotYet);
    }

    #[test]
    fn what_cannot_become_is_not_waited_for() {
        let running = || sandbox(OperatingMode::Running);
        let invalid = with(
            running(),
            READY,
            "False",
            ready::INVALID_CONFIGURATION,
            "no such class",
        );
        let judged = judge(&invalid, OperatingMode::Running, Some(2));
        assert_eq!(
            judged,
            Judged::Never("InvalidConfiguration".into(), "no such class".into())
        );
        let ended = with(
            with(running(), READY, "False", finished::POD_FAILED, ""),
            FINISHED,
            "True",
            finished::POD_FAILED,
            "Pod failed",
        );
        assert!(matches!(
            judge(&ended, OperatingMode::Running, Some(2)),
            Judged::Never(..)
        ));
        let foreign = with(
            sandbox(OperatingMode::Suspended),
            SUSPENDED,
            "False",
            suspended::POD_NOT_OWNED,
            "not ours",
        );
        assert!(matches!(
            judge(&foreign, OperatingMode::Suspended, Some(2)),
            Judged::Never(..)
        ));
    }

    #[test]
    fn a_resume_without_the_memory_says_so() {
        let up = with(
            with(
                sandbox(OperatingMode::Running),
                READY,
                "True",
                ready::DEPENDENCIES_READY,
                "",
            ),
            RESTORED,
            "False",
            restored::COLD_START,
            "CpuMismatch",
        );
        let Judged::Is(state, Some(remark)) = judge(&up, OperatingMode::Running, Some(2)) else {
            panic!("it runs");
        };
        assert_eq!(state, "Running");
        assert!(
            remark.contains("ColdStart") && remark.contains("CpuMismatch"),
            "{remark}"
        );
    }

    #[test]
    fn results_in_a_line() {
        let name = Name {
            namespace: "team".into(),
            name: "box".into(),
        };
        let done = Outcome {
            state: Some("Frozen"),
            took: Some(Duration::from_micros(31_240)),
            ..Outcome::told(&name, true)
        };
        assert_eq!(done.text(), (true, "team/box  Frozen  31.2 ms".into()));
        let already = Outcome {
            state: Some("Frozen"),
            ..Outcome::told(&name, false)
        };
        assert_eq!(already.text().1, "team/box  Frozen already");
        assert_eq!(Outcome::told(&name, true).text().1, "team/box  told");
        let failed = Outcome::failed(&name, "SwapFull".into(), "swap is full".into());
        assert_eq!(failed.text(), (false, "team/box  SwapFull: swap is full".into()));
    }
}
