//! `dormouse rm`.

use std::process::ExitCode;

use dormouse_cri::{ListedPod, Runtime};
use dormouse_rpc::v1;
use futures::StreamExt as _;

use super::run::RUN_LABEL;
use crate::args::{Global, RmArgs};
use crate::error::CliError;
use crate::output::{complain, line};
use crate::select::find;
use crate::view::clean;

/// How many pods are removed at once.
const AT_ONCE: usize = 8;

/// Stops and removes pods through the CRI. Works with the agent down: the wrapper wakes what sleeps.
pub(super) async fn rm(global: &Global, args: RmArgs) -> Result<ExitCode, CliError> {
    let runtime = Runtime::connect(&args.runtime.runtime_endpoint).await?;
    let pods = runtime.list_pods().await?;
    let all: Vec<v1::Pod> = pods.iter().map(name_of).collect();
    let mut failed = false;
    let mut meant: Vec<&ListedPod> = Vec::new();
    for name in &args.pods {
        match find(&all, name, global.namespace.as_deref()) {
            Err(error) => {
                failed = true;
                complain(&clean(&error.to_string()));
            }
            Ok(found) => {
                let Some(pod) = pods.iter().find(|pod| pod.sandbox_id == found.sandbox_id) else {
                    continue;
                };
                if !args.force && !pod.labels.contains_key(RUN_LABEL) {
                    failed = true;
                    complain(&format!(
                        "{}  PermissionDenied: it was not started with \"dormouse run\"; its owner would start it \
                         again (--force removes it all the same)",
                        clean(&pod.full_name())
                    ));
                } else if !meant.iter().any(|other| other.sandbox_id == pod.sandbox_id) {
                    meant.push(pod);
                }
            }
        }
    }
    let mut removals = futures::stream::iter(meant)
        .map(|pod| {
            let (runtime, grace) = (&runtime, args.grace);
            async move {
                let result = async {
                    runtime.stop_pod(&pod.sandbox_id, grace).await?;
                    runtime.remove_pod(&pod.sandbox_id).await
                };
                (pod.full_name(), result.await)
            }
        })
        .buffer_unordered(AT_ONCE);
    while let Some((name, result)) = removals.next().await {
        match result {
            Ok(()) => line(&format!("{}  removed", clean(&name)))?,
            Err(error) => {
                failed = true;
                complain(&format!(
                    "{}  {}: {}",
                    clean(&name),
                    error.reason(),
                    clean(&error.to_string())
                ));
            }
        }
    }
    Ok(if failed {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

fn name_of(pod: &ListedPod) -> v1::Pod {
    v1::Pod {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        sandbox_id: pod.sandbox_id.clone(),
        ..v1::Pod::default()
    }
}
