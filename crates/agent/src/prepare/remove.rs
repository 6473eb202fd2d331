//! Leaving a node as it was.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_cri::{Index, PodEvent, Runtime};

use super::{HANDLER, NodeSettings, PrepareError, containerd, files};
use crate::config::Config;
use crate::thaw_all;

/// How long a change is waited for before a look is taken anyway.
const LOOK: Duration = Duration::from_secs(60);

/// Changes come in groups.
const SETTLE: Duration = Duration::from_secs(2);

/// What could not be removed yet, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Left {
    /// Pods of the handler: their shims call the wrapper by its path until they are deleted.
    pub pods: Vec<String>,
    /// The files that are kept for them.
    pub files: Vec<PathBuf>,
    /// Whether containerd was restarted.
    pub restarted: bool,
}

/// Wakes everybody, takes the agent's swap down, takes the handler back, and removes what was installed. The agent must not
/// run any more.
///
/// As long as pods of the handler are left, the wrapper, its configuration and the run directory stay: with nobody asleep
/// and no agent to put anybody to sleep, the wrapper passes every verb through to the release of runsc that the pod was born
/// under. The next call removes them once these pods are gone.
///
/// # Errors
/// Somebody could not be woken, or the swap does not fit into memory: nothing was removed then. Or a file could not be
/// removed, or containerd not be restarted.
pub async fn remove(settings: &NodeSettings, config: &Config) -> Result<Left, PrepareError> {
    thaw_all(config).await.map_err(PrepareError::Awake)?;
    let runtime = Runtime::connect(&config.runtime_endpoint).await?;
    let mut left = Left::default();
    if files::is_ours(&settings.drop_in) {
        files::remove(&settings.drop_in)?;
    }
    if !settings.drop_in.exists() {
        left.restarted = containerd::unload(&runtime, settings).await?;
    }
    left.pods = pods_of_handler(runtime).await;
    let installed = [
        settings.shim_config_path(),
        settings.wrapper_path(),
        settings.wrapper_config_path(),
    ];
    // Whoever waits for a container's end is the wrapper as well, a moment longer than the pod is listed.
    if left.pods.is_empty() && !runs(&settings.wrapper_path()) {
        for path in &installed {
            files::remove(path)?;
        }
        files::remove_empty(&settings.directory);
        if let Err(error) = std::fs::remove_dir_all(&config.run_dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            // It may be mounted into this very pod; then only what was in it is gone.
            tracing::debug!("{} stays: {error}", config.run_dir.display());
        }
    } else {
        left.files = installed.into_iter().filter(|path| path.exists()).collect();
        left.files.push(config.run_dir.clone());
    }
    Ok(left)
}

/// Waits until something has become of a pod, and then for as long as its shim may take to end; a minute at the most.
///
/// # Errors
/// containerd cannot be reached.
pub async fn pods_changed(config: &Config) -> Result<(), PrepareError> {
    let runtime = Runtime::connect(&config.runtime_endpoint).await?;
    let (_index, mut events) = Index::start(runtime);
    let change = async {
        let mut synced = false;
        while let Some(event) = events.recv().await {
            if synced {
                return;
            }
            synced = event == PodEvent::Synced;
        }
    };
    // The last of a pod is told before its processes are gone; that nobody tells.
    let _ = tokio::time::timeout(LOOK, change).await;
    tokio::time::sleep(SETTLE).await;
    Ok(())
}

/// The pods that were born under the handler, as containerd lists them.
async fn pods_of_handler(runtime: Runtime) -> Vec<String> {
    let (index, mut events) = Index::start(runtime);
    while let Some(event) = events.recv().await {
        if event == PodEvent::Synced {
            break;
        }
    }
    index
        .pods()
        .iter()
        .filter(|pod| pod.handler == HANDLER)
        .map(|pod| pod.full_name())
        .collect()
}

/// Whether a process executes that file.
fn runs(program: &Path) -> bool {
    let Ok(processes) = procfs::process::all_processes() else {
        return false;
    };
    processes
        .filter_map(Result::ok)
        .filter_map(|process| process.exe().ok())
        .any(|exe| exe == program)
}
