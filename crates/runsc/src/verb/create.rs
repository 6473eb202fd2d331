//! `create`: filtered annotations, and a place in the pod's record.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_sentry::switch::{RegisterError, Registration};
use dormouse_sentry::{ContainerId, ContainerKind, ContainerRecord, Launch, Record, RunDir, Switch};

use super::restore::Creation;
use super::{Context, restore, wake};
use serde_json::value::RawValue;

use crate::annotations::Bundle;
use crate::cri::{self, Place};
use crate::outcome::{Failure, Outcome, log};
use crate::volumes;

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
    let place = cri::place(&bundle.annotations);
    let volumes = match &place {
        Some(place) if place.kind == ContainerKind::Sandbox => {
            volumes::share(&mut bundle).map_err(|e| Failure::from_error(&e))?
        }
        _ => Vec::new(),
    };
    if let (Some(container), Some(place), Some(run_dir)) = (context.container(), place, context.config.dir())
    {
        match before(context, &run_dir, &place, &bundle)? {
            Creation::Real => {}
            Creation::Played => return play(context, &run_dir, container, place, &dir),
        }
        // A pod that could not be registered runs all the same; it is just never put to sleep deeply.
        match register(context, &run_dir, container, place, &dir, &bundle, volumes) {
            Ok(record) => {
                fail::fail_point!(
                    match record.root().map(|root| &root.id) == context.container().as_ref() {
                        true => "runsc::create::sandbox_registered",
                        false => "runsc::create::container_registered",
                    }
                );
                show_identity(context, &run_dir, &record, &mut bundle);
            }
            Err(error) => log(
                invocation,
                "warning",
                &format!("dormouse-runsc: pod not registered: {error}"),
            ),
        }
    }
    context.run_swiftly()
}

/// What has to be known of a container's pod before it is made.
fn before(context: &Context<'_>, dir: &RunDir, place: &Place, bundle: &Bundle) -> Result<Creation, Failure> {
    if place.kind == ContainerKind::Sandbox {
        return restore::before_sandbox(context, dir, &place.pod.uid, &bundle.annotations)
            .map(|()| Creation::Real);
    }
    let switch = Switch::open(dir, &place.sandbox);
    match switch.record() {
        Ok(record) => {
            context.runs_under(&record.runsc);
            volumes::refuse_lost(&record, &place.name, bundle)?;
            restore::create_container(context, &switch, &record, &place.name)
        }
        Err(_) => Ok(Creation::Real),
    }
}

/// Registers a container that is only played.
fn play(
    context: &Context<'_>,
    dir: &RunDir,
    container: ContainerId,
    place: Place,
    directory: &Path,
) -> Result<Outcome, Failure> {
    let switch = Switch::open(dir, &place.sandbox);
    let mut held = switch.lock(LOCK).map_err(|e| Failure::from_error(&e))?;
    held.put_container(ContainerRecord {
        id: container,
        name: place.name,
        kind: place.kind,
        bundle: directory.to_owned(),
        last_known: None,
        launch: None,
        ended: None,
        played: true,
    })
    .map_err(|e| Failure::from_error(&e))?;
    restore::played::create(context, held.record())
}

/// Lets the container see who its pod is, where the pod asks for it.
fn show_identity(context: &Context<'_>, dir: &RunDir, record: &Record, bundle: &mut Bundle) {
    if !record.identity {
        return;
    }
    let is_sandbox = context
        .container()
        .is_some_and(|c| c.as_str() == record.sandbox_id.as_str());
    let done = if is_sandbox {
        restore::identity::write(dir, record).map_err(|e| e.to_string())
    } else {
        let mount = restore::identity::mount(&dir.identity_dir(&record.sandbox_id));
        bundle.add_mount(&mount).map_err(|e| e.to_string())
    };
    if let Err(error) = done {
        let text = format!("dormouse-runsc: the pod's identity cannot be shown to it: {error}");
        log(context.invocation, "warning", &text);
    }
}

fn register(
    context: &Context<'_>,
    dir: &RunDir,
    container: ContainerId,
    place: Place,
    directory: &Path,
    bundle: &Bundle,
    volumes: Vec<PathBuf>,
) -> Result<Record, RegisterError> {
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
    let uid = place.pod.uid.clone();
    let runsc = match place.kind {
        ContainerKind::Sandbox => restore::born_under(context, dir, &uid, &bundle.annotations),
        // For a record that was lost.
        ContainerKind::Container => switch
            .record()
            .map_or_else(|_| context.born_under(&context.releases()), |record| record.runsc),
    };
    let fresh = Record::new(
        place.pod,
        place.sandbox,
        context.invocation.root().into(),
        runsc,
        true,
    );
    // Before runsc takes the addresses off the interface, and without the pod's lock.
    let network = (place.kind == ContainerKind::Sandbox)
        .then(|| network(context, bundle))
        .flatten();
    let mut held = switch.register(fresh, how, LOCK)?;
    // A container goes into the sandbox that is there.
    context.runs_under(&held.record().runsc);
    if place.kind == ContainerKind::Sandbox {
        let (restore, identity) = restore::asked(context, &uid, &bundle.annotations);
        held.update(|record| {
            record.network = network;
            record.volumes = volumes;
            record.restore = restore;
            record.identity = identity;
        })?;
    }
    held.put_container(ContainerRecord {
        id: container,
        name: place.name,
        kind: place.kind,
        bundle: directory.to_owned(),
        last_known: None,
        launch: launch(context),
        ended: None,
        played: false,
    })?;
    Ok(held.record().clone())
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
