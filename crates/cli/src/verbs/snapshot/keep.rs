//! `dormouse snapshot pin`, `unpin`, `rm`, `prune` and `fsck`.

use std::process::ExitCode;

use dormouse_rpc::v1;
use indicatif::ProgressBar;
use serde::Serialize;
use tonic::Status;

use crate::agent::{Agent, refused};
use crate::args::{Format, Global};
use crate::error::{CliError, message_text, reason_text};
use crate::output::{complain, json, line, print, table, yaml};
use crate::verbs::bar;
use crate::view::units::mib;
use crate::view::{clean, or_dash};

/// What became of one snapshot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    id: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    freed_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Does the same to each snapshot and says what became of each.
async fn each<F>(
    global: &Global,
    ids: &[String],
    done: &str,
    call: impl Fn(Agent, String) -> F,
) -> Result<ExitCode, CliError>
where
    F: Future<Output = Result<(String, Option<u64>), Status>>,
{
    let agent = Agent::connect(global).await?;
    let people = matches!(global.output, Format::Table | Format::Wide);
    let mut all = Vec::new();
    for id in ids {
        let result = match call(agent.clone(), id.clone()).await {
            Ok((id, freed_bytes)) => {
                if people {
                    let freed = freed_bytes.map_or_else(String::new, |bytes| format!("  {}", mib(bytes)));
                    line(&format!("{}  {done}{freed}", clean(&id)))?;
                }
                Done {
                    id,
                    ok: true,
                    freed_bytes,
                    reason: None,
                    message: None,
                }
            }
            Err(status) => {
                let (reason, message) = (reason_text(&status), message_text(&status));
                if people {
                    complain(&format!("{}  {}: {}", clean(id), clean(&reason), clean(&message)));
                }
                Done {
                    id: id.clone(),
                    ok: false,
                    freed_bytes: None,
                    reason: Some(reason),
                    message: Some(message),
                }
            }
        };
        all.push(result);
    }
    match global.output {
        Format::Json => line(&json(&all)?)?,
        Format::Yaml => line(yaml(&all)?.trim_end())?,
        Format::Table | Format::Wide => {}
    }
    Ok(if all.iter().all(|done| done.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn id_of(snapshot: Option<v1::Snapshot>) -> String {
    snapshot.map(|snapshot| snapshot.id).unwrap_or_default()
}

pub(super) async fn pin(global: &Global, ids: &[String]) -> Result<ExitCode, CliError> {
    each(global, ids, "pinned", |agent, id| async move {
        let answer = agent
            .order(v1::PinSnapshotRequest { id }, |mut client, request| async move {
                client.pin_snapshot(request).await
            })
            .await?;
        Ok((id_of(answer.snapshot), None))
    })
    .await
}

pub(super) async fn unpin(global: &Global, ids: &[String]) -> Result<ExitCode, CliError> {
    each(global, ids, "unpinned", |agent, id| async move {
        let answer = agent
            .order(
                v1::UnpinSnapshotRequest { id },
                |mut client, request| async move { client.unpin_snapshot(request).await },
            )
            .await?;
        Ok((id_of(answer.snapshot), None))
    })
    .await
}

pub(super) async fn rm(global: &Global, ids: &[String], force: bool) -> Result<ExitCode, CliError> {
    each(global, ids, "removed", |agent, id| async move {
        let answer = agent
            .order(
                v1::RemoveSnapshotRequest { id, force },
                |mut client, request| async move { client.remove_snapshot(request).await },
            )
            .await?;
        Ok((answer.id, Some(answer.freed_bytes)))
    })
    .await
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pruned {
    dry_run: bool,
    removed: Vec<Removed>,
    freed_bytes: u64,
    unmet: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Removed {
    id: String,
    bytes: u64,
    why: String,
}

pub(super) async fn prune(global: &Global, dry_run: bool, all: bool) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let answer = agent
        .order(
            v1::PruneSnapshotsRequest { dry_run, all },
            |mut client, request| async move { client.prune_snapshots(request).await },
        )
        .await
        .map_err(|status| refused("removal of snapshots", status))?;
    let pruned = Pruned {
        dry_run,
        removed: answer
            .removed
            .into_iter()
            .map(|removed| Removed {
                id: removed.id,
                bytes: removed.bytes,
                why: removed.why,
            })
            .collect(),
        freed_bytes: answer.freed_bytes,
        unmet: answer.unmet,
    };
    print(global.output, &pruned, |_| {
        let mut lines: Vec<String> = pruned
            .removed
            .iter()
            .map(|removed| {
                format!(
                    "{}  {}  {}",
                    clean(&removed.id),
                    mib(removed.bytes),
                    clean(&removed.why)
                )
            })
            .collect();
        for unmet in &pruned.unmet {
            lines.push(format!(
                "{} all the same: what is left is held, pinned, damaged or in use",
                clean(unmet)
            ));
        }
        let would = if dry_run { "would be " } else { "" };
        lines.push(format!(
            "{} snapshots {would}removed, {} freed",
            pruned.removed.len(),
            mib(pruned.freed_bytes)
        ));
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    whole: u64,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    class: String,
    message: String,
    action: String,
    done: bool,
}

/// Follows the check of the store to its end.
async fn follow(
    agent: &Agent,
    request: v1::FsckSnapshotsRequest,
    bar: &ProgressBar,
) -> Result<v1::FsckSnapshotsResponse, Status> {
    let mut steps = agent.client().fsck_snapshots(request).await?.into_inner();
    while let Some(step) = steps.message().await? {
        if step.finished {
            return Ok(step);
        }
        if bar.length() != Some(step.total_bytes) {
            bar::measure(bar, step.total_bytes);
        }
        bar.set_position(step.done_bytes);
    }
    Err(Status::unavailable("the agent broke off before the end"))
}

pub(super) async fn fsck(global: &Global, repair: bool, full: bool) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let request = v1::FsckSnapshotsRequest { repair, full };
    let bar = bar::wait(global, "looking through the store");
    let answer = follow(&agent, request, &bar).await;
    bar.finish_and_clear();
    let answer = answer.map_err(|status| refused("check of the snapshot store", status))?;
    let checked = Checked {
        whole: answer.whole,
        findings: answer
            .findings
            .into_iter()
            .map(|finding| Finding {
                path: finding.path,
                id: finding.id,
                class: finding.class,
                message: finding.message,
                action: finding.action,
                done: finding.done,
            })
            .collect(),
    };
    print(global.output, &checked, |_| {
        let summary = format!(
            "{} snapshots are whole, {} findings",
            checked.whole,
            checked.findings.len()
        );
        if checked.findings.is_empty() {
            return summary;
        }
        let rows = checked.findings.iter().map(|finding| {
            vec![
                clean(&finding.path),
                clean(&finding.class),
                or_dash(&finding.message),
                or_dash(&finding.action),
                if finding.done { "yes" } else { "no" }.to_owned(),
            ]
        });
        let header = ["PATH", "STATE", "WHAT", "REPAIR", "DONE"];
        format!("{}\n{summary}", table(&header, rows.collect()))
    })?;
    let bad = |finding: &Finding| match finding.class.as_str() {
        "Ok" => false,
        // Marking it does not make it whole.
        "Damaged" => true,
        _ => !finding.done,
    };
    Ok(if checked.findings.iter().any(bad) {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}
