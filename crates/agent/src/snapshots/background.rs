//! What is done for the store while nobody waits: hashes, limits, scrubs.

use std::time::Duration;

use dormouse_snapshot::SnapshotState;
use tokio_util::sync::CancellationToken;

use super::{Snapshots, now_ms, ours};

/// How often limits are looked at, and scrubs that are due.
const PERIOD: Duration = Duration::from_secs(3600);

/// How often pods are looked at that cannot come back from their snapshots.
const WITHHELD: Duration = Duration::from_secs(5);

/// Looks after the store until `stop`.
pub async fn run(snapshots: Snapshots, stop: CancellationToken) {
    if snapshots.usable().is_err() {
        return;
    }
    tokio::select! {
        () = every(PERIOD, || once(&snapshots)) => {}
        () = every(WITHHELD, || snapshots.retry_withheld()) => {}
        () = stop.cancelled() => {}
    }
}

async fn every<F: Future<Output = ()>>(period: Duration, work: impl Fn() -> F) {
    loop {
        work().await;
        tokio::time::sleep(period).await;
    }
}

async fn once(snapshots: &Snapshots) {
    snapshots.drop_expired_grants();
    snapshots.sweep_releases().await;
    let Ok(_turn) = snapshots.0.behind.acquire().await else {
        return;
    };
    let (budget, scrub_after) = (snapshots.background_budget(), snapshots.config().scrub_after);
    let done = snapshots
        .blocking(move |store| {
            let now = now_ms();
            for snapshot in store.list() {
                if snapshot.state == SnapshotState::PendingHashes
                    && let Err(error) = store.finish_hashes(snapshot.id(), budget, now)
                {
                    tracing::warn!(id = %snapshot.id(), reason = %error.reason(), "snapshot cannot be hashed: {error}");
                }
            }
            let pruned = store.prune(None, now).map_err(ours!())?;
            if !pruned.removed.is_empty() {
                tracing::info!(removed = pruned.removed.len(), "snapshots beyond their limits were removed");
            }
            if !scrub_after.is_zero() {
                let age = u64::try_from(scrub_after.as_millis()).unwrap_or(u64::MAX);
                for (id, error) in store.scrub(age, budget, now).bad {
                    tracing::error!(%id, reason = %error.reason(), "snapshot is damaged: {error}");
                }
            }
            Ok(())
        })
        .await;
    if let Err(error) = done {
        tracing::warn!(reason = %error.reason, "the snapshot store could not be looked after: {error}");
    }
}
