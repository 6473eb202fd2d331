//! `kubectl dormouse snapshot`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use dormouse_api::conditions::FAILED;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, SandboxSnapshotSpec};
use dormouse_output::{Format, clean, line, mib, millis, print, span};
use jiff::Timestamp;

use super::wait::until;
use crate::args::{Global, SnapshotCreateArgs, SnapshotVerb};
use crate::cluster::{Cluster, Name, optional};
use crate::error::PluginError;
use crate::refusal::Refusal;
use crate::view::{SnapshotView, condition, describe_snapshot, snapshot_table};

pub(super) async fn snapshot(
    cluster: &Cluster,
    global: &Global,
    verb: SnapshotVerb,
) -> Result<ExitCode, PluginError> {
    match verb {
        SnapshotVerb::Create(args) => create(cluster, global, &args).await,
        SnapshotVerb::Ls { sandbox } => ls(cluster, global, sandbox.as_deref()).await,
        SnapshotVerb::Describe { name } => describe(cluster, global, &name).await,
        SnapshotVerb::Rm { names, no_wait } => {
            let wait = (!no_wait).then_some(global.timeout);
            rm(cluster, &names, wait).await
        }
    }
}

async fn create(
    cluster: &Cluster,
    global: &Global,
    args: &SnapshotCreateArgs,
) -> Result<ExitCode, PluginError> {
    let sandbox = cluster.name("SANDBOX", &args.sandbox)?;
    let began = Instant::now();
    let made: SandboxSnapshot = cluster
        .create(&sandbox.namespace, &wanted(&sandbox, args))
        .await?;
    let name = Name {
        namespace: sandbox.namespace,
        name: made.metadata.name.clone().unwrap_or_default(),
    };
    if args.no_wait {
        return show(global, &name, &made, None);
    }
    let mut last = None;
    let judged = until::<SandboxSnapshot, _>(cluster, &name, global.timeout, |snapshot| {
        let Some(snapshot) = snapshot else {
            return Some(Judged::Never("NotFound", "it was deleted meanwhile".to_owned()));
        };
        match judge(snapshot) {
            Judged::NotYet(said) => {
                last = Some(said);
                None
            }
            judged => Some(judged),
        }
    })
    .await?;
    match judged {
        Some(Judged::Is(snapshot)) => show(global, &name, &snapshot, Some(began.elapsed())),
        Some(Judged::Never(reason, message)) => Err(failure(&name, reason, &message)),
        Some(Judged::NotYet(_)) | None => Err(failure(
            &name,
            "DeadlineExceeded",
            &format!(
                "not ready within {}, and may still become so (--timeout waits longer): {}",
                span(global.timeout),
                last.unwrap_or_else(|| "nothing was heard of it; does the controller run?".to_owned())
            ),
        )),
    }
}

/// The object that asks for it.
fn wanted(sandbox: &Name, args: &SnapshotCreateArgs) -> SandboxSnapshot {
    let mut snapshot = SandboxSnapshot {
        spec: SandboxSnapshotSpec {
            sandbox_name: sandbox.name.clone(),
            pinned: args.pin,
            time_to_live: args.ttl.clone(),
            ..SandboxSnapshotSpec::default()
        },
        ..SandboxSnapshot::default()
    };
    match &args.name {
        Some(name) => snapshot.metadata.name = Some(name.clone()),
        None => snapshot.metadata.generate_name = Some(format!("{}-", sandbox.name)),
    }
    snapshot
}

/// What a look at a snapshot says.
enum Judged {
    Is(Box<SandboxSnapshot>),
    /// It was given up: reason and message.
    Never(&'static str, String),
    /// What it waits for.
    NotYet(String),
}

fn judge(snapshot: &SandboxSnapshot) -> Judged {
    let conditions = snapshot
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice());
    let conditions = conditions.unwrap_or_default();
    if let Some(failed) = condition(conditions, FAILED)
        && failed.status == "True"
    {
        return Judged::Never(FAILED, format!("{}: {}", failed.reason, failed.message));
    }
    match condition(conditions, "Ready") {
        Some(ready) if ready.status == "True" => Judged::Is(Box::new(snapshot.clone())),
        Some(ready) => Judged::NotYet(format!("{}: {}", ready.reason, ready.message)),
        None => Judged::NotYet("it says nothing of itself; does the controller run?".to_owned()),
    }
}

fn show(
    global: &Global,
    name: &Name,
    snapshot: &SandboxSnapshot,
    took: Option<Duration>,
) -> Result<ExitCode, PluginError> {
    let view = SnapshotView::of_object(snapshot, Timestamp::now());
    print(global.output, &view, |_| {
        let status = snapshot.status.clone().unwrap_or_default();
        let mut text = clean(&format!("{}/{}", name.namespace, name.name));
        match took {
            Some(took) => text.push_str(&format!("  ready  {}", millis(took))),
            None => text.push_str("  asked for"),
        }
        if let Some(size) = status.size_bytes.and_then(|bytes| u64::try_from(bytes).ok()) {
            text.push_str(&format!("  {}", mib(size)));
        }
        if let Some(node) = &status.node_name {
            text.push_str(&format!("  on {}", clean(node)));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn failure(name: &Name, reason: &str, message: &str) -> PluginError {
    PluginError::Api(Box::new(Refusal {
        reason: reason.to_owned(),
        message: format!("snapshot {}/{}: {message}", name.namespace, name.name),
        unreachable: false,
    }))
}

async fn ls(cluster: &Cluster, global: &Global, sandbox: Option<&str>) -> Result<ExitCode, PluginError> {
    let sandbox = sandbox.map(|given| cluster.name("SANDBOX", given)).transpose()?;
    let scope = sandbox
        .as_ref()
        .map(|name| name.namespace.as_str())
        .or(cluster.scope());
    let objects: Vec<SandboxSnapshot> = cluster.list(scope, None).await?;
    let nodes: Vec<SandboxNode> = optional("what is only on nodes", cluster.list_cluster().await)?;
    let views = SnapshotView::all(
        &objects,
        &nodes,
        scope,
        sandbox.as_ref().map(|name| name.name.as_str()),
        Timestamp::now(),
    );
    print(global.output, &views, |wide| snapshot_table(&views, wide))?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(cluster: &Cluster, global: &Global, given: &str) -> Result<ExitCode, PluginError> {
    let snapshot: SandboxSnapshot = cluster.get(&cluster.name("SNAPSHOT", given)?).await?;
    match global.output {
        // All that is known is the object itself.
        Format::Json | Format::Yaml => print(global.output, &snapshot, |_| String::new())?,
        Format::Table | Format::Wide => line(&describe_snapshot(&snapshot, Timestamp::now()))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn rm(cluster: &Cluster, given: &[String], wait: Option<Duration>) -> Result<ExitCode, PluginError> {
    let names: Result<Vec<Name>, PluginError> =
        given.iter().map(|name| cluster.name("SNAPSHOT", name)).collect();
    let mut code = 0;
    for name in names? {
        let shown = clean(&format!("{}/{}", name.namespace, name.name));
        match remove(cluster, &name, wait).await {
            Ok(done) => line(&format!("{shown}  {done}"))?,
            Err(error) => {
                dormouse_output::complain(&format!("{shown}  {}", error.full_text()));
                code = code.max(error.exit_code());
            }
        }
    }
    Ok(ExitCode::from(code))
}

async fn remove(cluster: &Cluster, name: &Name, wait: Option<Duration>) -> Result<&'static str, PluginError> {
    let uid = cluster.delete::<SandboxSnapshot>(name).await?;
    let Some(limit) = wait else {
        return Ok("told");
    };
    let mut last = None;
    let gone = until::<SandboxSnapshot, _>(cluster, name, limit, |snapshot| match snapshot {
        // Another one of that name is another one.
        Some(snapshot) if uid.is_none() || snapshot.metadata.uid == uid => {
            if let Judged::NotYet(said) | Judged::Never(_, said) = judge(snapshot) {
                last = Some(said);
            }
            None
        }
        _ => Some(()),
    })
    .await?;
    match gone {
        Some(()) => Ok("removed"),
        None => Err(failure(
            name,
            "DeadlineExceeded",
            &format!(
                "still there after {}, and on its way out (--timeout waits longer){}",
                span(limit),
                last.map(|said| format!(": {said}")).unwrap_or_default()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_api::dormouse::SandboxSnapshotStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;

    fn with(type_: &str, status: &str) -> SandboxSnapshot {
        SandboxSnapshot {
            status: Some(SandboxSnapshotStatus {
                conditions: vec![Condition {
                    type_: type_.into(),
                    status: status.into(),
                    reason: "Why".into(),
                    message: "so".into(),
                    observed_generation: None,
                    last_transition_time: Time(Timestamp::UNIX_EPOCH),
                }],
                ..SandboxSnapshotStatus::default()
            }),
            ..SandboxSnapshot::default()
        }
    }

    #[test]
    fn what_was_given_up_is_not_waited_for() {
        assert!(matches!(judge(&with("Ready", "True")), Judged::Is(_)));
        assert!(matches!(judge(&with("Ready", "False")), Judged::NotYet(said) if said == "Why: so"));
        assert!(matches!(judge(&with(FAILED, "True")), Judged::Never(_, said) if said == "Why: so"));
        assert!(matches!(judge(&SandboxSnapshot::default()), Judged::NotYet(_)));
    }

    #[test]
    fn a_snapshot_has_the_sandboxs_name_unless_it_is_given_one() {
        let sandbox = Name {
            namespace: "team".into(),
            name: "box".into(),
        };
        let mut args = SnapshotCreateArgs {
            sandbox: "box".into(),
            name: None,
            pin: true,
            ttl: Some("72h".into()),
            no_wait: false,
        };
        let made = wanted(&sandbox, &args);
        assert_eq!(made.metadata.generate_name.as_deref(), Some("box-"));
        assert_eq!(made.spec.sandbox_name, "box");
        assert!(made.spec.pinned);
        args.name = Some("first".into());
        assert_eq!(wanted(&sandbox, &args).metadata.name.as_deref(), Some("first"));
    }
}
