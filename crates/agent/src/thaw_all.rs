//! Wakes every sleeper of the node and takes down the agent's swap: the way out, for uninstalling.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use dormouse_cri::{Index, PodEvent, Runtime};
use dormouse_runtime::{AnyDriver, Driver as _, Guest, RuntimeKind, StopState};
use dormouse_sentry::{RunDir, Switch};

use crate::actor::guest_of;
use crate::config::{Config, DozeConfig};
use crate::drivers;
use crate::snapshots::Snapshots;
use crate::swap::SwapManager;

/// How long one pod's lock may be held by somebody else.
const LOCK: Duration = Duration::from_secs(5);

/// Wakes all, then takes the swap down.
///
/// # Errors
/// Some pods could not be woken (each is named), or the swap could not be taken down.
pub async fn thaw_all(config: &Config) -> anyhow::Result<()> {
    let dir = RunDir::new(&config.run_dir)?;
    // First those whose guest is in a snapshot: after it they have one like the others.
    let mut failed = thaw_listed(config, &dir).await;
    for id in dir.pods().context("cannot list the run directory")? {
        let woken = Switch::open(&dir, &id)
            .lock(LOCK)
            .map_err(anyhow::Error::from)
            .and_then(|mut held| {
                if held.record().hibernation.is_some() {
                    bail!("its guest is in a snapshot, and containerd does not list the pod");
                }
                Ok(held.wake()?)
            });
        match woken {
            Ok(_) => tracing::info!(sandbox = %id, "awake"),
            Err(error) => {
                failed += 1;
                tracing::error!(sandbox = %id, "cannot be woken: {error:#}");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} pods could not be woken; delete them, or look at the messages above");
    }
    let manager = Arc::new(SwapManager::new(config.swap.clone(), &config.state_dir)?);
    tokio::task::spawn_blocking(move || manager.take_down())
        .await?
        .context("cannot take down the agent's swap")?;
    Ok(())
}

/// Wakes what a look at its record is not enough for, as containerd lists it: the sleepers of the other runtimes, and
/// hibernated pods. Returns how many could not be woken.
async fn thaw_listed(config: &Config, dir: &RunDir) -> usize {
    let runtime = match Runtime::connect(&config.runtime_endpoint).await {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!("only gVisor pods were looked at: {error}");
            return 0;
        }
    };
    let drivers = drivers::all(
        dir,
        runtime.socket(),
        &config.wrapper_config,
        &DozeConfig::default(),
    );
    let (index, mut events) = Index::start(runtime);
    while let Some(event) = events.recv().await {
        if event == PodEvent::Synced {
            break;
        }
    }
    let mut failed = 0;
    let mut snapshots: Option<Snapshots> = None;
    for pod in index.pods() {
        let kind = RuntimeKind::from_runtime_type(&pod.runtime_type);
        let Some(driver) = drivers.iter().find(|driver| Some(driver.kind()) == kind) else {
            continue;
        };
        let guest = guest_of(&pod);
        if guest.containers.is_empty() {
            continue;
        }
        let Ok(probe) = driver.probe(&guest).await else {
            continue;
        };
        let woken = match probe.stop {
            StopState::Running => continue,
            StopState::Hibernated => {
                let store = match &snapshots {
                    Some(store) => store,
                    None => snapshots.insert(Snapshots::open(config).await),
                };
                restore(store, driver, &guest, probe.snapshot.as_deref()).await
            }
            // Its record is enough.
            _ if driver.kind() == RuntimeKind::Gvisor => continue,
            _ => driver.wake(&guest).await.map(drop).map_err(anyhow::Error::from),
        };
        match woken {
            Ok(()) => tracing::info!(pod = %pod.full_name(), "awake"),
            Err(error) => {
                failed += 1;
                tracing::error!(pod = %pod.full_name(), "cannot be woken: {error:#}");
            }
        }
    }
    failed
}

/// Makes a hibernated pod's guest anew out of its snapshot, which stays.
async fn restore(
    snapshots: &Snapshots,
    driver: &AnyDriver,
    guest: &Guest,
    snapshot: Option<&str>,
) -> anyhow::Result<()> {
    let id = snapshot.context("its record does not say which snapshot holds it")?;
    let image = snapshots.open_image(id, &guest.pod).await?;
    driver.restore(guest, image.dir()).await?;
    Ok(())
}
