//! Who works.
//!
//! A Lease says which of several controllers works. Its holder gives it up as the last thing it does, so that the next one
//! need not wait for its end; one that could not renew it in time stops at once and ends.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseCreateMode, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

/// Name of the Lease: agent-sandbox's, so that its controller and this one do not work at once while the one replaces the other.
const LEASE: &str = "a3317529.agent-sandbox.x-k8s.io";

/// How long a Lease holds, and how long before its end it is renewed, in seconds.
const HOLDS: u64 = 15;
const RENEWED: u64 = 5;

/// How long the last renewal may take.
const GIVE_UP: Duration = Duration::from_secs(5);

/// The way to be the one that works.
#[derive(Debug)]
pub(crate) struct Leadership {
    leads: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Applies for it.
    pub(crate) async fn apply(
        client: Client,
        namespace: &str,
        identity: String,
    ) -> Result<Self, LeaseManagerError> {
        let manager = LeaseManagerBuilder::new(client, LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_duration(HOLDS)
            .with_grace(RENEWED)
            .with_create_mode(LeaseCreateMode::AutoCreate)
            .build()
            .await?;
        let (leads, task) = manager.watch().await;
        let task = tokio::spawn(async move {
            match task.await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => warn!(%error, "the lease could not be kept"),
                Err(error) => warn!(%error, "the lease is no longer looked after"),
            }
        });
        Ok(Self { leads, task })
    }

    /// Waits until this one works; `false` if it never will.
    pub(crate) async fn won(&mut self) -> bool {
        self.leads.wait_for(|leads| *leads).await.is_ok()
    }

    /// Waits until this one must no longer work.
    pub(crate) async fn lost(&mut self) {
        // An error: nobody renews it any more.
        let _ = self.leads.wait_for(|leads| !*leads).await;
    }

    /// Gives it up.
    pub(crate) async fn give_up(self) {
        drop(self.leads);
        if tokio::time::timeout(GIVE_UP, self.task).await.is_err() {
            warn!("the lease could not be given up in time; another controller waits for its end");
        }
    }
}
