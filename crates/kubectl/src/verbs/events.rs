//! `kubectl dormouse events`.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot};
use dormouse_api::names::{annotations, labels};
use dormouse_output::{Format, json_line, line, print, yaml};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::runtime::{WatchStreamExt as _, watcher};

use super::wait::read;
use crate::args::{EventsArgs, Global};
use crate::cluster::{Cluster, Name, call_of, optional};
use crate::error::PluginError;
use crate::view::{Columns, EventView, Interest, event_header, event_table, key, sorted};

/// Where Kubernetes puts the events of what has no namespace.
const CLUSTERS_OWN: &str = "default";

pub(super) async fn events(
    cluster: &Cluster,
    global: &Global,
    args: &EventsArgs,
) -> Result<ExitCode, PluginError> {
    let sandbox = args.sandbox.as_deref();
    let sandbox = sandbox.map(|given| cluster.name("SANDBOX", given)).transpose()?;
    let scope = sandbox
        .as_ref()
        .map(|name| name.namespace.as_str())
        .or(cluster.scope());
    let interest = match &sandbox {
        Some(name) => {
            let object: Sandbox = cluster.get(name).await?;
            of_one(cluster, name, &object).await?
        }
        None => of_all(cluster).await?,
    };
    let found = all(cluster, scope, &interest).await?;
    let views = sorted(&found, &interest);
    let now = Timestamp::now();
    if !args.watch {
        print(global.output, &views, |_| event_table(&views, now))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = views.iter().map(|view| view.row(now)).collect();
    let mut columns = Columns::new(&event_header(), &rows);
    if matches!(global.output, Format::Table | Format::Wide) {
        line(&columns.line(&event_header().map(str::to_owned)))?;
    }
    for view in &views {
        say(global.output, view, &mut columns)?;
    }
    follow(cluster, global, scope, interest, &found, columns).await
}

/// The events of the scope, and those of the cluster's own objects that are of interest.
pub(super) async fn all(
    cluster: &Cluster,
    scope: Option<&str>,
    interest: &Interest,
) -> Result<Vec<Event>, PluginError> {
    let mut found: Vec<Event> = cluster.list(scope, None).await?;
    if is_elsewhere(scope, interest) {
        let nodes = cluster.list(Some(CLUSTERS_OWN), None).await;
        found.extend(optional("what happened to nodes", nodes)?);
    }
    Ok(found)
}

/// Whether events of interest are in another namespace than those of the scope.
fn is_elsewhere(scope: Option<&str>, interest: &Interest) -> bool {
    scope.is_some_and(|scope| scope != CLUSTERS_OWN)
        && interest
            .objects
            .iter()
            .any(|(_, namespace, _)| namespace.is_empty())
}

/// A sandbox, its pod, its snapshots and its node.
pub(super) async fn of_one(
    cluster: &Cluster,
    name: &Name,
    sandbox: &Sandbox,
) -> Result<Interest, PluginError> {
    let snapshots: Vec<SandboxSnapshot> =
        optional("snapshots", cluster.list(Some(&name.namespace), None).await)?;
    let mut interest = Interest::default();
    interest.add("Sandbox", &name.namespace, &name.name);
    interest.add("Pod", &name.namespace, pod_name(sandbox));
    for snapshot in snapshots {
        if snapshot.spec.sandbox_name == name.name
            && let Some(snapshot) = &snapshot.metadata.name
        {
            interest.add("SandboxSnapshot", &name.namespace, snapshot);
        }
    }
    let node = sandbox
        .status
        .as_ref()
        .and_then(|status| status.node_name.as_deref());
    if let Some(node) = node {
        interest.add("Node", "", node);
        interest.add("SandboxNode", "", node);
    }
    Ok(interest)
}

/// Everything of our kinds, the sandboxes' pods, and the nodes that have an agent.
async fn of_all(cluster: &Cluster) -> Result<Interest, PluginError> {
    let sandboxes: Vec<Sandbox> = cluster.list(cluster.scope(), None).await?;
    let pods = cluster
        .list::<Pod>(cluster.scope(), Some(labels::SANDBOX_NAME_HASH))
        .await;
    let pods = optional("the pods' names", pods)?;
    let nodes: Vec<SandboxNode> = optional("nodes", cluster.list_cluster().await)?;
    let mut interest = Interest {
        kinds: true,
        ..Interest::default()
    };
    for sandbox in &sandboxes {
        let namespace = sandbox.metadata.namespace.as_deref().unwrap_or_default();
        interest.add("Pod", namespace, pod_name(sandbox));
    }
    for pod in &pods {
        let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
        if let (Some(namespace), Some(name)) = (namespace, name) {
            interest.add("Pod", namespace, name);
        }
    }
    for node in nodes.iter().filter_map(|node| node.metadata.name.as_deref()) {
        interest.add("Node", "", node);
    }
    Ok(interest)
}

/// The name of a sandbox's pod: its own, unless it was taken over with another.
pub(super) fn pod_name(sandbox: &Sandbox) -> &str {
    let noted = sandbox.metadata.annotations.as_ref();
    noted
        .and_then(|noted| noted.get(annotations::POD_NAME))
        .or(sandbox.metadata.name.as_ref())
        .map_or("", String::as_str)
}

fn say(format: Format, view: &EventView, columns: &mut Columns) -> Result<(), PluginError> {
    match format {
        Format::Json => line(&json_line(view)?)?,
        Format::Yaml => line(&format!("---\n{}", yaml(view)?.trim_end()))?,
        Format::Table | Format::Wide => line(&columns.line(&view.row(Timestamp::now())))?,
    }
    Ok(())
}

/// Tells of every event that is new, until the user ends it.
async fn follow(
    cluster: &Cluster,
    global: &Global,
    scope: Option<&str>,
    mut interest: Interest,
    told: &[Event],
    mut columns: Columns,
) -> Result<ExitCode, PluginError> {
    let version = |event: &Event| event.metadata.resource_version.clone().unwrap_or_default();
    let uid = |event: &Event| event.metadata.uid.clone().unwrap_or_default();
    let mut told: HashMap<String, String> = told.iter().map(|event| (uid(event), version(event))).collect();
    let mut strangers = HashSet::new();
    let call = call_of::<Event>("watch", scope, None);
    let changes = |scope: Option<&str>| {
        watcher(cluster.scoped::<Event>(scope), watcher::Config::default())
            .default_backoff()
            .boxed()
    };
    let mut streams = vec![changes(scope)];
    if is_elsewhere(scope, &interest) {
        streams.push(changes(Some(CLUSTERS_OWN)));
    }
    let mut all = stream::select_all(streams);
    loop {
        let change = tokio::select! {
            change = all.next() => change,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let event = match change {
            Some(Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event))) => event,
            Some(Ok(_)) => continue,
            Some(Err(error)) => match read(&call, error) {
                (error, true) => return Err(error),
                (error, false) => {
                    dormouse_output::complain(&error.full_text());
                    continue;
                }
            },
            None => return Ok(ExitCode::SUCCESS),
        };
        let (uid, version) = (uid(&event), version(&event));
        if told.get(&uid) == Some(&version) {
            continue;
        }
        told.insert(uid, version);
        if interest.kinds && is_new_pod(cluster, &event, &interest, &mut strangers).await? {
            let (kind, namespace, name) = key(&event.involved_object);
            interest.add(&kind, &namespace, &name);
        }
        if interest.holds(&event) {
            say(global.output, &EventView::new(&event), &mut columns)?;
        }
    }
}

/// Whether the event is about the pod of a sandbox that was not there at the beginning.
async fn is_new_pod(
    cluster: &Cluster,
    event: &Event,
    interest: &Interest,
    strangers: &mut HashSet<(String, String, String)>,
) -> Result<bool, PluginError> {
    let about = key(&event.involved_object);
    if about.0 != "Pod" || interest.holds(event) || strangers.contains(&about) {
        return Ok(false);
    }
    let name = Name {
        namespace: about.1.clone(),
        name: about.2.clone(),
    };
    let Some(pod) = optional("a pod", cluster.find::<Pod>(&name).await)? else {
        return Ok(false);
    };
    let is_ours = pod
        .metadata
        .labels
        .is_some_and(|all| all.contains_key(labels::SANDBOX_NAME_HASH));
    if !is_ours {
        strangers.insert(about);
    }
    Ok(is_ours)
}
