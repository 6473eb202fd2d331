//! Wakes every sleeper of the node and takes down the agent's swap: the way out, for uninstalling.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use dormouse_cri::{Index, PodEvent, Runtime};
use dormouse_runtime::{Driver as _, RuntimeKind, StopState};
use dormouse_sentry::{RunDir, Switch};

use crate::actor::guest_of;
use crate::config::{Config, DozeConfig};
use crate::drivers;
use crate::swap::SwapManager;

/// How long one pod's lock may be held by somebody else.
const LOCK: Duration = Duration::from_secs(5);

/// Wakes all, then takes the swap down.
///
/// # Errors
/// Some pods could not be woken (each is named), or the swap could not be taken down.
pub async fn thaw_all(config: &Config) -> anyhow::Result<()> {
    let dir = RunDir::new(&config.run_dir)?;
    let mut failed = 0;
    for id in dir.pods().context("cannot list the run directory")? {
        let woken = Switch::open(&dir, &id)
            .lock(LOCK)
            .map_err(anyhow::Error::from)
            .and_then(|mut held| Ok(held.wake()?));
        match woken {
            Ok(_) => tracing::info!(sandbox = %id, "awake"),
            Err(error) => {
                failed += 1;
                tracing::error!(sandbox = %id, "cannot be woken: {error:#}");
            }
        }
    }
    failed += thaw_listed(config, &dir).await;
    if failed > 0 {
        bail!("{failed} pods could not be woken; delete them, or look at the messages above");
    }
    let manager = Arc::new(SwapManager::new(config.swap.clone(), &config.state_dir)?);
    tokio::task::spawn_blocking(move || manager.take_down())
        .await?
        .context("cannot take down the agent's swap")?;
    Ok(())
}

/// Wakes what has no record of its own: the sleepers of the other runtimes, as containerd lists them. Returns
/// how many could not be woken.
async fn thaw_listed(config: &Config, dir: &RunDir) -> usize {
    let runtime = match Runtime::connect(&config.runtime_endpoint).await {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!("only gVisor pods were looked at: {error}");
            return 0;
        }
    };
    let drivers = drivers::all(dir, runtime.socket(), &DozeConfig::default());
    let (index, mut events) = Index::start(runtime);
    while let Some(event) = events.recv().await {
        if event == PodEvent::Synced {
            break;
        }
    }
    let mut failed = 0;
    for pod in index.pods() {
        let kind = RuntimeKind::from_runtime_type(&pod.runtime_type);
        let Some(driver) = drivers.iter().find(|driver| Some(driver.kind()) == kind) else {
            continue;
        };
        let guest = guest_of(&pod);
        if guest.containers.is_empty() || driver.kind() == RuntimeKind::Gvisor {
            continue;
        }
        let asleep = driver
            .probe(&guest)
            .await
            .is_ok_and(|probe| probe.stop != StopState::Running);
        if asleep {
            match driver.wake(&guest).await {
                Ok(_) => tracing::info!(pod = %pod.full_name(), "awake"),
                Err(error) => {
                    failed += 1;
                    tracing::error!(pod = %pod.full_name(), reason = %error.reason, "{error}");
                }
            }
        }
    }
    failed
}
