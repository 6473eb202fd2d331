//! `create`: filtered annotations, and a place in the pod's record.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_sentry::switch::{RegisterError, Registration};
use dormouse_sentry::{ContainerId, ContainerKind, ContainerRecord, Launch, Record, RunDir, Switch};

use super::{Context, wake};
use serde_json::value::RawValue;

use crate::annotations::Bundle;
use crate::cri::{self, Place};
use crate::outcome::{Failure, Outcome, log};
use crate::real;

/// How long the pod's lock is waited for.
const LOCK: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    let invocation = context.invocation;
    let dir = match invocation.flag("bundle").or_else(|| invocation.flag("b")) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => std::env::current_dir().map_err(|e| Failure::from_error(&e))?,
    };
    let mut bundle = Bundle::read(&dir).map_err(|e| Failure::from_error(&e))?;
    let dropped = bundle
        .filter(&context.config.annotations)
        .map_err(|e| Failure::from_error(&e))?;
    if !dropped.is_empty() {
        let text = format!(
            "dormouse-runsc: dropped annotations that pods may not set: {}",
            dropped.join(", ")
        );
        log(invocation, "warning", &text);
    }
    if let (Some(container), Some(place), Some(run_dir)) = (
        context.container(),
        cri::place(&bundle.annotations),
        context.config.dir(),
    ) {
        // A pod that could not be registered runs all the same; it is just never put to sleep deeply.
        if let Err(error) = register(context, &run_dir, container, place, &dir, &bundle) {
            log(
                invocation,
                "warning",
                &format!("dormouse-runsc: pod not registered: {error}"),
            );
        }
    }
    context.exec()
}

fn register(
    context: &Context<'_>,
    dir: &RunDir,
    container: ContainerId,
    place: Place,
    directory: &Path,
    bundle: &Bundle,
) -> Result<(), RegisterError> {
    dir.prepare()?;
    let switch = Switch::open(dir, &place.sandbox);
    let how = match place.kind {
        ContainerKind::Sandbox => Registration::Born,
        ContainerKind::Container => {
            // The sentry is about to be told of its new container, and must be able to answer.
            context.visit(&switch);
            if let Ok(record) = switch.record()
                && record.switch.is_asleep()
            {
                let _ = wake::pod(context, &container, &switch, &record);
            }
            Registration::Adopted
        }
    };
    let fresh = Record::new(
        place.pod,
        place.sandbox,
        context.invocation.root().into(),
        real::describe(context.config, dir),
        true,
    );
    // Before runsc takes the addresses off the interface, and without the pod's lock.
    let network = (place.kind == ContainerKind::Sandbox)
        .then(|| network(context, bundle))
        .flatten();
    let mut held = switch.register(fresh, how, LOCK)?;
    if network.is_some() {
        held.update(|record| record.network = network)?;
    }
    held.put_container(ContainerRecord {
        id: container,
        name: place.name,
        kind: place.kind,
        bundle: directory.to_owned(),
        last_known: None,
        launch: launch(context),
        ended: None,
    })
}

/// The pod's addresses and routes, for the day on which they have to be put back.
fn network(context: &Context<'_>, bundle: &Bundle) -> Option<Box<RawValue>> {
    let netns = bundle.network_namespace()?;
    match dormouse_net::links::record(&netns) {
        Ok(record) if record.has_addresses() => serde_json::value::to_raw_value(&record).ok(),
        Ok(_) => None,
        // Such a pod runs all the same; it is just never hibernated.
        Err(error) => {
            let text =
                format!("dormouse-runsc: the pod cannot be hibernated, its network is not known: {error}");
            log(context.invocation, "warning", &text);
            None
        }
    }
}

/// How the shim called this, to be called the same way again after a hibernation.
fn launch(context: &Context<'_>) -> Option<Launch> {
    let create = context
        .argv
        .iter()
        .map(|a| a.to_str().map(str::to_owned))
        .collect::<Option<Vec<_>>>()?;
    Some(Launch {
        create,
        directory: std::env::current_dir().ok()?,
        stdio: [None; 3],
        started: false,
    })
}
