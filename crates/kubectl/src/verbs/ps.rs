//! `kubectl dormouse ps`.

use std::collections::HashMap;
use std::process::ExitCode;

use dormouse_api::agents::Sandbox;
use dormouse_output::{Format, json_line, line, print, yaml};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::runtime::{WatchStreamExt as _, watcher};

use super::wait::read;
use crate::args::{Global, PsArgs};
use crate::cluster::{Cluster, call_of};
use crate::error::PluginError;
use crate::view::{Columns, SandboxView, sandbox_header, sandbox_table};

pub(super) async fn ps(cluster: &Cluster, global: &Global, args: &PsArgs) -> Result<ExitCode, PluginError> {
    if args.watch {
        return watch(cluster, global, args).await;
    }
    let mut sandboxes: Vec<Sandbox> = cluster.list(cluster.scope(), args.selector.as_deref()).await?;
    sort(&mut sandboxes);
    let now = Timestamp::now();
    let views: Vec<SandboxView> = sandboxes
        .iter()
        .map(|sandbox| SandboxView::new(sandbox, now))
        .collect();
    print(global.output, &views, |wide| sandbox_table(&views, wide))?;
    Ok(ExitCode::SUCCESS)
}

/// By namespace and name.
pub(super) fn sort(sandboxes: &mut [Sandbox]) {
    sandboxes.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
}

/// Prints all, and then each whose row has changed, until the user ends it.
async fn watch(cluster: &Cluster, global: &Global, args: &PsArgs) -> Result<ExitCode, PluginError> {
    let wide = global.output == Format::Wide;
    let header = sandbox_header(wide);
    let mut columns = Columns::new(&header, &[]);
    let mut shown: HashMap<(String, String), Vec<String>> = HashMap::new();
    let mut config = watcher::Config::default();
    config.label_selector.clone_from(&args.selector);
    let call = call_of::<Sandbox>("watch", cluster.scope(), None);
    let mut changes = watcher(cluster.scoped::<Sandbox>(cluster.scope()), config)
        .default_backoff()
        .boxed();
    if matches!(global.output, Format::Table | Format::Wide) {
        let names: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
        line(&columns.line(&names))?;
    }
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let (sandbox, deleted) = match change {
            Some(Ok(watcher::Event::Apply(sandbox) | watcher::Event::InitApply(sandbox))) => (sandbox, false),
            Some(Ok(watcher::Event::Delete(sandbox))) => (sandbox, true),
            Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => continue,
            Some(Err(error)) => match read(&call, error) {
                (error, true) => return Err(error),
                (error, false) => {
                    dormouse_output::complain(&error.full_text());
                    continue;
                }
            },
            None => return Ok(ExitCode::SUCCESS),
        };
        let view = SandboxView::new(&sandbox, Timestamp::now());
        let key = (view.namespace.clone(), view.name.clone());
        if deleted {
            shown.remove(&key);
            if matches!(global.output, Format::Table | Format::Wide) {
                line(&format!("{}/{} is gone", key.0, key.1))?;
            }
            continue;
        }
        let row = view.row(wide);
        // Its age alone is no news.
        if shown.get(&key).is_some_and(|before| is_same(before, &row)) {
            continue;
        }
        match global.output {
            Format::Json => line(&json_line(&view)?)?,
            Format::Yaml => line(&format!("---\n{}", yaml(&view)?.trim_end()))?,
            Format::Table | Format::Wide => line(&columns.line(&row))?,
        }
        shown.insert(key, row);
    }
}

/// Whether two rows say the same, but for the age.
fn is_same(before: &[String], after: &[String]) -> bool {
    let age = sandbox_header(false).iter().position(|name| *name == "AGE");
    let rest = |row: &[String]| -> Vec<String> {
        let cells = row.iter().enumerate();
        cells
            .filter(|(place, _)| Some(*place) != age)
            .map(|(_, cell)| cell.clone())
            .collect()
    };
    rest(before) == rest(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_only_grew_older_is_no_news() {
        let row = |state: &str, age: &str| -> Vec<String> {
            ["ns", "box", "Running", "True", state, "node-1", "box", age, "5m"]
                .map(str::to_owned)
                .to_vec()
        };
        assert!(is_same(&row("Frozen", "1m"), &row("Frozen", "2m")));
        assert!(!is_same(&row("Frozen", "1m"), &row("Dozing", "1m")));
    }
}
