//! `dormouse snapshot ls`, `inspect` and `diff`.

use std::process::ExitCode;

use dormouse_rpc::v1;
use serde::Serialize;

use crate::agent::{Agent, refused};
use crate::args::Global;
use crate::error::CliError;
use crate::output::{print, table};
use crate::view::units::mib;
use crate::view::{DetailView, SnapshotView, clean, describe_snapshot, snapshot_table};

pub(super) async fn ls(global: &Global, pod: Option<String>) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let request = v1::ListSnapshotsRequest {
        namespace: global.namespace.clone().unwrap_or_default(),
        pod: pod.unwrap_or_default(),
    };
    let answer = agent
        .order(request, |mut client, request| async move {
            client.list_snapshots(request).await
        })
        .await
        .map_err(|status| refused("list of snapshots", status))?;
    let views: Vec<SnapshotView> = answer.snapshots.iter().map(SnapshotView::from).collect();
    print(global.output, &views, |wide| {
        let free = format!(
            "store: {}; free on its disk: {}",
            mib(answer.store_bytes),
            mib(answer.free_bytes)
        );
        if wide {
            format!("{}\n{free}", snapshot_table(&answer.snapshots, true))
        } else {
            snapshot_table(&answer.snapshots, false)
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn inspect(global: &Global, id: String) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let what = format!("description of snapshot {id}");
    let answer = agent
        .order(v1::GetSnapshotRequest { id }, |mut client, request| async move {
            client.get_snapshot(request).await
        })
        .await
        .map_err(|status| refused(&what, status))?;
    let Some(view) = DetailView::of(&answer) else {
        return Err(CliError::Empty {
            what: "GetSnapshot".to_owned(),
            lacks: "snapshot",
        });
    };
    print(global.output, &view, |wide| describe_snapshot(&answer, wide))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Diff {
    files: Vec<FileDiff>,
    facts: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FileDiff {
    name: String,
    same_bytes: u64,
    changed_bytes: u64,
    only_a_bytes: u64,
    only_b_bytes: u64,
}

pub(super) async fn diff(global: &Global, a: String, b: String) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let what = format!("comparison of {a} and {b}");
    let answer = agent
        .order(
            v1::DiffSnapshotsRequest { a, b },
            |mut client, request| async move { client.diff_snapshots(request).await },
        )
        .await
        .map_err(|status| refused(&what, status))?;
    let diff = Diff {
        files: answer
            .files
            .into_iter()
            .map(|file| FileDiff {
                name: file.name,
                same_bytes: file.same_bytes,
                changed_bytes: file.changed_bytes,
                only_a_bytes: file.only_a_bytes,
                only_b_bytes: file.only_b_bytes,
            })
            .collect(),
        facts: answer.facts,
    };
    print(global.output, &diff, |_| {
        let rows = diff.files.iter().map(|file| {
            vec![
                clean(&file.name),
                mib(file.same_bytes),
                mib(file.changed_bytes),
                mib(file.only_a_bytes),
                mib(file.only_b_bytes),
            ]
        });
        let mut text = table(
            &["FILE", ">SAME", ">CHANGED", ">ONLY A", ">ONLY B"],
            rows.collect(),
        );
        for fact in &diff.facts {
            text.push_str(&format!("\n{}", clean(fact)));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}
