//! `dormouse snapshot verify`.

use std::process::ExitCode;

use dormouse_rpc::v1;
use serde::Serialize;

use crate::agent::Agent;
use crate::args::{Format, Global};
use crate::error::{CliError, message_text, reason_text};
use crate::output::{complain, json, line, yaml};
use crate::verbs::bar;
use crate::view::clean;
use crate::view::units::mib;

/// What became of one snapshot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    id: String,
    whole: bool,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

pub(super) async fn verify(global: &Global, ids: &[String]) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let mut all = Vec::new();
    for id in ids {
        let bar = bar::bytes(global, &format!("reading {}", clean(id)), 0);
        let result = one(&agent, id, &bar).await;
        bar.finish_and_clear();
        let verified = match result {
            Ok(bytes) => Verified {
                id: id.clone(),
                whole: true,
                bytes,
                reason: None,
                message: None,
            },
            Err(status) => Verified {
                id: id.clone(),
                whole: false,
                bytes: 0,
                reason: Some(reason_text(&status)),
                message: Some(message_text(&status)),
            },
        };
        if matches!(global.output, Format::Table | Format::Wide) {
            say(&verified)?;
        }
        all.push(verified);
    }
    match global.output {
        Format::Json => line(&json(&all)?)?,
        Format::Yaml => line(yaml(&all)?.trim_end())?,
        Format::Table | Format::Wide => {}
    }
    Ok(if all.iter().all(|verified| verified.whole) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn say(verified: &Verified) -> Result<(), CliError> {
    let id = clean(&verified.id);
    match (&verified.reason, &verified.message) {
        (Some(reason), Some(message)) => {
            complain(&format!("{id}  {}: {}", clean(reason), clean(message)));
            Ok(())
        }
        _ => Ok(line(&format!("{id}  whole  {}", mib(verified.bytes)))?),
    }
}

/// Follows the check of one snapshot to its end; says how many bytes were read.
async fn one(agent: &Agent, id: &str, bar: &indicatif::ProgressBar) -> Result<u64, tonic::Status> {
    let request = v1::VerifySnapshotRequest { id: id.to_owned() };
    let mut progress = agent.client().verify_snapshot(request).await?.into_inner();
    let mut last = v1::VerifySnapshotResponse::default();
    while let Some(step) = progress.message().await? {
        if bar.length() != Some(step.total_bytes) {
            bar::measure(bar, step.total_bytes);
        }
        bar.set_position(step.done_bytes);
        last = step;
    }
    if last.whole {
        Ok(last.total_bytes)
    } else {
        Err(tonic::Status::unavailable("the agent broke off before the end"))
    }
}
