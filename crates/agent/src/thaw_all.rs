//! Wakes every sleeper of the node and takes down the agent's swap: the way out, for uninstalling.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use dormouse_sentry::{RunDir, Switch};

use crate::config::Config;
use crate::swap::SwapManager;

/// How long one pod's lock may be held by somebody else.
const LOCK: Duration = Duration::from_secs(5);

/// Wakes all, then takes the swap down.
///
/// # Errors
/// Some pods could not be woken (each is named), or the swap could not be taken down.
pub fn thaw_all(config: &Config) -> anyhow::Result<()> {
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
    if failed > 0 {
        bail!("{failed} pods could not be woken; delete them, or look at the messages above");
    }
    let manager = Arc::new(SwapManager::new(config.swap.clone(), &config.state_dir)?);
    manager.take_down().context("cannot take down the agent's swap")?;
    Ok(())
}
