//! What follows on a restore, before the pod counts as started: a signal, and a command with the new identity.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::file::write_atomic;
use dormouse_sentry::{ContainerKind, ContainerRecord, GrantedContainer, Record, Restore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CannotFill, identity};
use crate::annotations::Bundle;
use crate::verb::{Context, again};

/// How long the command may take.
const COMMAND: Duration = Duration::from_secs(10);

/// How long it may take to end after that.
const ENDS: Duration = Duration::from_secs(1);

/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Runs it all; the pod is as good as not restored where it fails.
pub(super) fn run(
    context: &Context<'_>,
    record: &Record,
    restore: &Restore,
    containers: &[GrantedContainer],
) -> Result<(), CannotFill> {
    let failed = |what: String| CannotFill::new(Reason::PostRestoreFailed, what);
    let live = |name: &str| {
        record
            .containers
            .iter()
            .find(|c| c.kind == ContainerKind::Container && !c.played && c.name == name)
    };
    if let Some(signal) = &restore.wish.signal {
        for container in containers.iter().filter_map(|c| live(&c.name)) {
            let status = runsc(context, container, "kill", &[], &[signal])
                .and_then(|mut child| child.wait().map_err(|e| e.to_string()))
                .map_err(failed)?;
            if !status.success() {
                return Err(failed(format!(
                    "cannot send {signal} to container {}: {status}",
                    container.name
                )));
            }
        }
    }
    if restore.wish.exec.is_empty() {
        return Ok(());
    }
    let wanted = restore.wish.container.as_deref();
    let container = match wanted {
        Some(name) => live(name),
        None => containers.iter().filter(|c| !c.ended).find_map(|c| live(&c.name)),
    }
    .ok_or_else(|| {
        failed(format!(
            "there is no container {:?} to run the command in",
            wanted.unwrap_or_default()
        ))
    })?;
    let shown = restore.wish.exec.join(" ");
    let status = command(context, record, restore, container)
        .map_err(|e| failed(format!("cannot run {shown:?}: {e}")))?;
    match status {
        None => Err(failed(format!("{shown:?} did not end within {COMMAND:?}"))),
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(format!("{shown:?} ended with {status}"))),
    }
}

/// Runs the command as the container's own process is run, with the new identity in its environment.
fn command(
    context: &Context<'_>,
    record: &Record,
    restore: &Restore,
    container: &ContainerRecord,
) -> Result<Option<ExitStatus>, String> {
    let mut process = Bundle::read(&container.bundle)
        .map_err(|e| e.to_string())?
        .process()
        .ok_or("the container's bundle has no process")?;
    let fields = process
        .as_object_mut()
        .ok_or("the bundle's process is no object")?;
    let mut env = fields
        .get("env")
        .and_then(|env| env.as_array().cloned())
        .unwrap_or_default();
    env.extend(
        identity::of(record, restore.wish.snapshot.as_deref())
            .environment()
            .into_iter()
            .map(|(key, value)| format!("{key}={value}").into()),
    );
    fields.insert("env".to_owned(), env.into());
    fields.insert("args".to_owned(), restore.wish.exec.clone().into());
    fields.insert("terminal".to_owned(), false.into());
    let path = context
        .config
        .dir()
        .ok_or("there is no run directory")?
        .pod_dir(&record.sandbox_id)
        .join("post-restore.json");
    write_atomic(&path, process.to_string().as_bytes(), 0o600).map_err(|e| e.to_string())?;
    let flags = [format!("--process={}", path.display())];
    let status = runsc(context, container, "exec", &flags, &[]).and_then(wait);
    let _ = std::fs::remove_file(&path);
    status
}

fn runsc(
    context: &Context<'_>,
    container: &ContainerRecord,
    verb: &str,
    flags: &[String],
    rest: &[&str],
) -> Result<Child, String> {
    let launch = container
        .launch
        .as_ref()
        .ok_or("it is not known how the container was created")?;
    let mut args = again::globals(launch)?;
    args.push(verb.to_owned());
    args.extend_from_slice(flags);
    args.push(container.id.to_string());
    args.extend(rest.iter().map(|word| (*word).to_owned()));
    let program = context.program().map_err(|e| e.message().to_owned())?;
    Command::new(program)
        .args(args)
        .current_dir(&launch.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())
}

/// `None` for a command that did not end in time. runsc hands signals on to it.
fn wait(mut child: Child) -> Result<Option<ExitStatus>, String> {
    let pid = i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(|e| e.to_string())?;
    let began = Instant::now();
    let mut told = None;
    loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Ok(told.is_none().then_some(status));
        }
        let next = match began.elapsed() {
            late if late > COMMAND + ENDS => Some(Signal::SIGKILL),
            late if late > COMMAND => Some(Signal::SIGTERM),
            _ => None,
        };
        if next != told {
            told = next;
            if let Some(signal) = next {
                let _ = kill(pid, signal);
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
