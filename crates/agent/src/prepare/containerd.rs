//! The containerd that runs, which need not be the one that its files describe.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use dormouse_cri::Runtime;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::Instant;

use super::files::Wanted;
use super::{HANDLER, NodeSettings, PrepareError};

/// How long containerd may take to be there again.
const RESTART: Duration = Duration::from_secs(90);

/// How often it is looked for meanwhile: there is nothing that would say it.
const LOOK: Duration = Duration::from_millis(200);

/// How long containers may take to be started before containerd is restarted all the same.
const STARTS: Duration = Duration::from_secs(10);

/// For how long there must be none: between two containers of one pod there is none to be seen.
const NO_STARTS: Duration = Duration::from_millis(500);

/// How often it is looked whether there are.
const LOOK_AT_STARTS: Duration = Duration::from_millis(50);

/// File times are as coarse as this, and so is a process's start.
const COARSE: Duration = Duration::from_secs(1);

/// Where the node's tools are; the container's own search path has none of them.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the running containerd knows of the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loaded {
    /// Exactly what the drop-in says.
    AsWanted,
    /// Something else, or nothing.
    Otherwise,
}

/// A containerd process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    started: SystemTime,
}

/// Has the drop-in take effect, by a restart of containerd if it has to be; says whether it was restarted.
pub(super) async fn load(
    runtime: &Runtime,
    settings: &NodeSettings,
    wanted: &Wanted,
) -> Result<bool, PrepareError> {
    if loaded(runtime, wanted).await? == Loaded::AsWanted {
        return Ok(false);
    }
    if read_since_written(runtime.socket(), &settings.drop_in)? {
        // It has read its configuration since, and another restart changes nothing.
        return Err(PrepareError::HandlerMissing {
            drop_in: settings.drop_in.clone(),
        });
    }
    restart(runtime, settings).await?;
    if loaded(runtime, wanted).await? == Loaded::AsWanted {
        return Ok(true);
    }
    Err(PrepareError::HandlerMissing {
        drop_in: settings.drop_in.clone(),
    })
}

/// Has containerd forget the handler, whose drop-in is gone; says whether it was restarted.
pub(super) async fn unload(runtime: &Runtime, settings: &NodeSettings) -> Result<bool, PrepareError> {
    let handlers = runtime.handlers().await?;
    if !handlers.iter().any(|handler| handler == HANDLER) {
        return Ok(false);
    }
    restart(runtime, settings).await?;
    Ok(true)
}

/// Compares what runs with what is wanted.
pub(super) async fn loaded(runtime: &Runtime, wanted: &Wanted) -> Result<Loaded, PrepareError> {
    let handlers = runtime.handlers().await?;
    if !handlers.iter().any(|handler| handler == HANDLER) {
        return Ok(Loaded::Otherwise);
    }
    let wanted = std::str::from_utf8(&wanted.content)
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok());
    let running = runtime.running_config().await?;
    let running = running.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    Ok(match (running, wanted) {
        (Some(running), Some(wanted)) if !agrees(&running, &wanted) => Loaded::Otherwise,
        // One that does not tell has the handler, at least.
        _ => Loaded::AsWanted,
    })
}

/// Whether the running configuration, as the CRI's status has it, is what the drop-in says.
fn agrees(running: &Value, wanted: &toml::Table) -> bool {
    let cri = wanted
        .get("plugins")
        .and_then(|plugins| plugins.get("io.containerd.cri.v1.runtime"));
    let of_handler = |key: &str| {
        cri.and_then(|cri| cri.get("containerd")?.get("runtimes")?.get(HANDLER)?.get(key))
            .and_then(|value| serde_json::to_value(value).ok())
    };
    let handler = running.pointer(&format!("/containerd/runtimes/{HANDLER}"));
    let same = |name: &str, wanted: Option<Value>| match handler.and_then(|handler| handler.get(name)) {
        Some(value) => Some(value) == wanted.as_ref(),
        // Another release may call it something else: nothing can be said.
        None => true,
    };
    let period = cri
        .and_then(|cri| cri.get("stats_collect_period"))
        .and_then(toml::Value::as_str);
    let running_period = running.get("statsCollectPeriod").and_then(Value::as_str);
    same("PodAnnotations", of_handler("pod_annotations"))
        && same("ContainerAnnotations", of_handler("container_annotations"))
        && same("options", of_handler("options"))
        && (running_period.is_none() || running_period == period)
}

/// Whether containerd was started after its file was written.
fn read_since_written(socket: &Path, drop_in: &Path) -> Result<bool, PrepareError> {
    let written = std::fs::metadata(drop_in)
        .and_then(|meta| meta.modified())
        .map_err(|source| PrepareError::File {
            verb: "look at",
            path: drop_in.to_owned(),
            source,
        })?;
    Ok(process(socket).is_some_and(|process| process.started > written + COARSE))
}

/// Who listens at the socket; `None` while nobody does.
fn process(socket: &Path) -> Option<Process> {
    let stream = UnixStream::connect(socket).ok()?;
    let pid = getsockopt(&stream, PeerCredentials).ok()?.pid();
    // The directory of a process bears the time of its first look-up, not of its start.
    let ticks = procfs::process::Process::new(pid).ok()?.stat().ok()?.starttime;
    let since_boot = ticks.checked_div(procfs::ticks_per_second())?;
    let since = procfs::boot_time_secs().ok()?.checked_add(since_boot)?;
    Some(Process {
        pid,
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(since),
    })
}

/// Waits until no container is about to be started: a restart would break that off, this agent's own start included.
async fn await_starts(runtime: &Runtime) {
    let begun = Instant::now();
    let mut none_since = None;
    let left = loop {
        let left = match runtime.starts().await {
            Ok(starts) if starts.is_empty() => {
                let since: Instant = *none_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= NO_STARTS {
                    return;
                }
                None
            }
            Ok(starts) => Some(starts.join(" ")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(left) = left {
            none_since = None;
            if begun.elapsed() > STARTS {
                break left;
            }
        }
        tokio::time::sleep(LOOK_AT_STARTS).await;
    };
    tracing::warn!(
        left,
        "containerd is restarted although not all containers that it has made are known to be started"
    );
}

/// Restarts containerd, and waits until another process answers.
async fn restart(runtime: &Runtime, settings: &NodeSettings) -> Result<(), PrepareError> {
    let failed = |problem: String| PrepareError::NotRestarted { problem };
    let by_pid_file = !settings.restart_pid_file.as_os_str().is_empty();
    if !by_pid_file && settings.restart.is_empty() {
        return Err(failed(
            "it has to be restarted by hand, as this node's settings say (restart = [])".to_owned(),
        ));
    }
    await_starts(runtime).await;
    let before = process(runtime.socket());
    if by_pid_file {
        signal(&settings.restart_pid_file)?;
    } else if let Some((program, arguments)) = settings.restart.split_first() {
        tracing::info!(
            command = settings.restart.join(" "),
            "restarting containerd; running pods are not touched"
        );
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(RESTART, output)
            .await
            .map_err(|_| failed(format!("{program} did not end within {} s", RESTART.as_secs())))?
            .map_err(|error| failed(format!("cannot start {program}: {error}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!(
                "{program} failed ({}): {}",
                output.status,
                said.trim()
            )));
        }
    }
    let begun = Instant::now();
    loop {
        let now = process(runtime.socket());
        if now.is_some()
            && now != before
            && runtime.version().await.is_ok()
            && runtime.handlers().await.is_ok()
        {
            return Ok(());
        }
        if begun.elapsed() > RESTART {
            return Err(failed(format!(
                "no other containerd answers at {} within {} s",
                runtime.socket().display(),
                RESTART.as_secs()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the process in a pid file to end; something on the node starts it again.
fn signal(pid_file: &Path) -> Result<(), PrepareError> {
    let text = std::fs::read_to_string(pid_file).map_err(|source| PrepareError::File {
        verb: "read",
        path: pid_file.to_owned(),
        source,
    })?;
    let failed = |problem: String| PrepareError::NotRestarted { problem };
    let pid: i32 = text
        .trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| failed(format!("{} holds no pid", pid_file.display())))?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|errno| {
        failed(format!(
            "cannot end process {pid} of {}: {errno}",
            pid_file.display()
        ))
    })
}

/// Where containerd looks for shims: its own search path.
pub(super) fn search_path(socket: &Path) -> Vec<std::path::PathBuf> {
    let own = process(socket)
        .and_then(|process| std::fs::read(format!("/proc/{}/environ", process.pid)).ok())
        .and_then(|environment| {
            environment
                .split(|byte| *byte == 0)
                .find_map(|variable| variable.strip_prefix(b"PATH="))
                .map(|path| String::from_utf8_lossy(path).into_owned())
        });
    std::env::split_paths(own.as_deref().unwrap_or(PATH)).collect()
}

/// Whether a file belongs to root, and nobody else may write it, nor put another in its place.
pub(super) fn is_roots(path: &Path) -> bool {
    [Some(path), path.parent()]
        .into_iter()
        .flatten()
        .all(|path| std::fs::metadata(path).is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::files::drop_in;
    use serde_json::json;

    fn running(settings: &NodeSettings) -> (Value, toml::Table) {
        let wanted: toml::Table = String::from_utf8(drop_in(settings).content)
            .unwrap()
            .parse()
            .unwrap();
        let handler = &wanted["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"][HANDLER];
        let running = json!({
            "statsCollectPeriod": "10s",
            "containerd": {"runtimes": {"runc": {}, HANDLER: {
                "runtimeType": "io.containerd.runsc.v1",
                "PodAnnotations": handler["pod_annotations"],
                "ContainerAnnotations": handler["container_annotations"],
                "options": handler["options"],
            }}},
        });
        (running, wanted)
    }

    #[test]
    fn what_runs_is_compared_key_by_key() {
        let (running, wanted) = running(&NodeSettings::default());
        assert!(agrees(&running, &wanted));
        for (pointer, other) in [
            ("/statsCollectPeriod", json!("1s")),
            (
                "/containerd/runtimes/dormouse-gvisor/PodAnnotations/0",
                json!("dev.gvisor.*"),
            ),
            (
                "/containerd/runtimes/dormouse-gvisor/options/ConfigPath",
                json!("/etc/other.toml"),
            ),
        ] {
            let mut changed = running.clone();
            *changed.pointer_mut(pointer).unwrap() = other;
            assert!(!agrees(&changed, &wanted), "{pointer}");
        }
        assert!(
            agrees(&json!({}), &wanted),
            "one that does not tell is taken as it is"
        );
    }

    #[test]
    fn whoever_listens_is_found_with_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        assert_eq!(process(&socket), None);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let process = process(&socket).unwrap();
        assert_eq!(process.pid, i32::try_from(std::process::id()).unwrap());
        assert!(process.started <= SystemTime::now() + COARSE);
        let old = dir.path().join("old");
        std::fs::write(&old, "").unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(86_400);
        std::fs::File::options()
            .write(true)
            .open(&old)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        assert!(read_since_written(&socket, &old).unwrap());
        std::fs::write(&old, "new").unwrap();
        assert!(!read_since_written(&socket, &old).unwrap() || process.started > SystemTime::now() - COARSE);
    }

    #[test]
    fn a_pid_file_that_names_nobody_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        assert!(matches!(signal(&file), Err(PrepareError::File { .. })));
        for text in ["", "1", "-1", "0", "all"] {
            std::fs::write(&file, text).unwrap();
            assert!(
                matches!(signal(&file), Err(PrepareError::NotRestarted { .. })),
                "{text}"
            );
        }
    }
}
