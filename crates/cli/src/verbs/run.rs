//! `dormouse run`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use dormouse_core::{
    ANNOTATION_DOZE_AFTER, ANNOTATION_DURABLE, ANNOTATION_FALLBACK, ANNOTATION_FREEZE_AFTER,
    ANNOTATION_HIBERNATE_AFTER, ANNOTATION_IDLE_TIMEOUT, ANNOTATION_MANAGED, ANNOTATION_RESTORE_FROM,
    ANNOTATION_RESUME_POLICY, ANNOTATION_SHELL, ANNOTATION_WAKE_SCHEDULE, ANNOTATION_WAKE_UDP_PORTS,
    BirthWish, Fallback, Policy, ResumePolicy, ShellPolicy, format_duration,
};
use dormouse_cri::{ContainerRequest, PodRequest, RunningPod, Runtime};
use serde::Serialize;

use super::policy::from_flags;
use super::source::Source;
use crate::args::{Global, PolicyFlags, RunArgs};
use crate::error::CliError;
use crate::output::print;

/// The label that says that a pod is ours to remove.
pub(super) const RUN_LABEL: &str = "dormouse.dev/run";

/// Lets a saved guest keep its connections. It has to be there from the pod's birth; freeze and doze do without.
const KEEP_CONNECTIONS: &str = "dev.gvisor.flag.allow-connected-on-save";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Started {
    namespace: String,
    name: String,
    uid: String,
    sandbox_id: String,
    container_id: String,
    addresses: Vec<String>,
    log: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
}

/// Runs a pod through the CRI. Works with the agent down: it finds the pod when it comes up.
pub(super) async fn run(global: &Global, args: &RunArgs) -> Result<ExitCode, CliError> {
    let uid = uuid::Uuid::now_v7().to_string();
    let source = match &args.from_snapshot {
        Some(id) => Some(Source::find(global, id).await?),
        None => None,
    };
    let request = request(global, args, uid, source.as_ref())?;
    if let Some(source) = &source {
        source.grant(&request, args.from_namespace.as_deref()).await?;
    }
    let started = start(args, &request).await;
    if let (Some(source), Err(_) | Ok(None)) = (&source, &started) {
        source.revoke(&request.uid).await;
    }
    let Some(pod) = started? else {
        return Ok(ExitCode::from(130));
    };
    let started = started_of(&request, pod, source.map(|source| source.id));
    print(global.output, &started, |_| {
        let address = started.addresses.first().map_or("-", String::as_str);
        format!("{}/{}  {address}", started.namespace, started.name)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the pod; `None` if that was called off.
async fn start(args: &RunArgs, request: &PodRequest) -> Result<Option<RunningPod>, CliError> {
    let runtime = Runtime::connect(&args.runtime.runtime_endpoint).await?;
    let pod = tokio::select! {
        pod = runtime.run_pod(request) => pod?,
        _ = tokio::signal::ctrl_c() => {
            // Whatever was made so far goes again.
            runtime.roll_back(request).await;
            return Ok(None);
        }
    };
    Ok(Some(pod))
}

fn started_of(request: &PodRequest, pod: RunningPod, snapshot: Option<String>) -> Started {
    let (container, container_id) = pod.containers.into_iter().next().unwrap_or_default();
    Started {
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        uid: pod.uid,
        sandbox_id: pod.sandbox_id,
        container_id,
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        log: pod
            .log_directory
            .join(container)
            .join("0.log")
            .display()
            .to_string(),
        snapshot,
    }
}

fn request(
    global: &Global,
    args: &RunArgs,
    uid: String,
    source: Option<&Source>,
) -> Result<PodRequest, CliError> {
    let mut annotations: BTreeMap<String, String> = policy_annotations(&args.policy, !args.unmanaged)?;
    annotations.insert(KEEP_CONNECTIONS.to_owned(), "true".to_owned());
    annotations.extend(args.annotation.iter().cloned());
    if let Some(source) = source {
        annotations.insert(ANNOTATION_RESTORE_FROM.to_owned(), source.id.clone());
    }
    // What the flags and annotations say together is what the agent and the wrapper will read.
    Policy::from_annotations(&annotations)?;
    BirthWish::from_annotations(&annotations)?;
    let mut labels: BTreeMap<String, String> = args.label.iter().cloned().collect();
    labels.insert(RUN_LABEL.to_owned(), "true".to_owned());
    let name = args.name.clone().unwrap_or_else(|| {
        // The end of a version 7 UUID is its random part.
        let tail: String = uid.chars().rev().take(8).collect();
        format!("pod-{tail}")
    });
    Ok(PodRequest {
        name,
        namespace: global.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        uid,
        handler: args.runtime_handler.clone(),
        labels,
        annotations,
        log_root: args.log_root.clone(),
        memory_limit: args.memory,
        containers: containers(args, source)?,
        ..PodRequest::default()
    })
}

/// One container of the flags, or those of the snapshot.
fn containers(args: &RunArgs, source: Option<&Source>) -> Result<Vec<ContainerRequest>, CliError> {
    let container = |name: &str, image: String, command: Vec<String>| ContainerRequest {
        name: name.to_owned(),
        image,
        command,
        env: args.env.clone(),
        mounts: args.volume.clone(),
        ..ContainerRequest::default()
    };
    let Some(source) = source else {
        let image = args.image.clone().unwrap_or_default();
        return Ok(vec![container("main", image, args.command.clone())]);
    };
    source
        .live()
        .map(|saved| {
            let image = args.image.clone().unwrap_or_else(|| saved.image.clone());
            if image.is_empty() {
                return Err(CliError::NoImage {
                    id: source.id.clone(),
                    container: saved.name.clone(),
                });
            }
            let command = if args.command.is_empty() {
                &saved.args
            } else {
                &args.command
            };
            Ok(container(&saved.name, image, command.clone()))
        })
        .collect()
}

/// The annotations that say what the flags say.
fn policy_annotations(flags: &PolicyFlags, managed: bool) -> Result<BTreeMap<String, String>, CliError> {
    let policy = from_flags(flags)?;
    if !managed {
        return Ok(BTreeMap::new());
    }
    let mut annotations = BTreeMap::from([(ANNOTATION_MANAGED.to_owned(), "true".to_owned())]);
    for (key, value) in [
        (ANNOTATION_IDLE_TIMEOUT, policy.idle_timeout),
        (ANNOTATION_FREEZE_AFTER, policy.freeze_after),
        (ANNOTATION_DOZE_AFTER, policy.doze_after),
        (ANNOTATION_HIBERNATE_AFTER, policy.hibernate_after),
    ] {
        if let Some(value) = value {
            annotations.insert(key.to_owned(), format_duration(value));
        }
    }
    if policy.durable {
        annotations.insert(ANNOTATION_DURABLE.to_owned(), "true".to_owned());
    }
    if policy.fallback != Fallback::default() {
        annotations.insert(
            ANNOTATION_FALLBACK.to_owned(),
            policy.fallback.as_str().to_owned(),
        );
    }
    if policy.resume_policy == ResumePolicy::Manual {
        annotations.insert(ANNOTATION_RESUME_POLICY.to_owned(), "Manual".to_owned());
    }
    if !policy.wake_udp_ports.is_empty() {
        let ports: Vec<String> = policy.wake_udp_ports.iter().map(u16::to_string).collect();
        annotations.insert(ANNOTATION_WAKE_UDP_PORTS.to_owned(), ports.join(","));
    }
    if policy.shell != ShellPolicy::default() {
        annotations.insert(ANNOTATION_SHELL.to_owned(), policy.shell.as_str().to_owned());
    }
    if let Some(schedule) = policy.wake_schedule {
        annotations.insert(ANNOTATION_WAKE_SCHEDULE.to_owned(), schedule.into());
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Verb};

    fn parsed(line: &str) -> Result<PodRequest, CliError> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Verb::Run(args) = cli.verb else {
            panic!("not run")
        };
        request(
            &cli.global,
            &args,
            "0192f4a0-0000-7000-8000-0000deadbeef".into(),
            None,
        )
    }

    #[test]
    fn flags_become_annotations() {
        let request = parsed(
            "dormouse run --image x:1 -n agents --idle-timeout 90s --doze-after 5m --resume-policy Manual \
             --hibernate-after 1h --durable --fallback Fail --shell Predicted \
             --wake-udp-ports 53,5353 -e A=b=c --memory 256Mi -- /bin/sh -c true",
        )
        .unwrap();
        assert_eq!(request.namespace, "agents");
        assert_eq!(request.name, "pod-feebdaed");
        assert_eq!(request.memory_limit, Some(256 << 20));
        let (managed, policy) = Policy::from_annotations(&request.annotations).unwrap();
        assert_eq!(managed, Some(true));
        assert_eq!(policy.idle_timeout.unwrap().as_secs(), 90);
        assert_eq!(policy.wake_udp_ports, [53, 5353]);
        assert_eq!(policy.hibernate_after.unwrap().as_secs(), 3600);
        assert!(policy.durable && policy.fallback == Fallback::Fail);
        assert_eq!(policy.resume_policy, ResumePolicy::Manual);
        assert_eq!(policy.shell, ShellPolicy::Predicted);
        let main = &request.containers[0];
        assert_eq!(main.command, ["/bin/sh", "-c", "true"]);
        assert_eq!(main.env, [("A".to_owned(), "b=c".to_owned())]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "dormouse run --image x --doze-after 5m",
            "dormouse run --image x --annotation dormouse.dev/post-restore-signal=SIGUSR1",
            "dormouse run --image x --idle-timeout 5m --doze-after 1m",
            "dormouse run --image x --annotation dormouse.dev/idle-timeout=soon",
        ] {
            let error = parsed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }
}
