//! Who works.
//!
//! A Lease says which of several controllers works. Its holder gives it up as the last thing it does, so that the next one
//! need not wait for its end; one that could not renew it in time stops at once and ends. That is told by this end's own
//! clock: an API server that does not answer, or turns the renewal away, says nothing about the Lease.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseCreateMode, LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::client::Written;

/// Name of the Lease: agent-sandbox's, so that its controller and this one do not work at once while the one replaces the other.
const LEASE: &str = "a3317529.agent-sandbox.x-k8s.io";

/// How long a Lease holds, and how long before its end it is renewed, in seconds.
const HOLDS: u64 = 15;
const RENEWED: u64 = 10;

/// For how long its holder relies on it: somebody else may begin when it has ended.
const RELIED_ON: Duration = Duration::from_secs(HOLDS - 1);

/// How long a failure is let rest.
const REST: Duration = Duration::from_secs(1);

/// How long the last renewal may take.
const GIVE_UP: Duration = Duration::from_secs(5);

/// The way to be the one that works.
#[derive(Debug)]
pub(crate) struct Leadership {
    leads: watch::Receiver<bool>,
    written: Arc<Written>,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Applies for it. The client is for the Lease alone: it tries nothing twice, waits for no answer for long, and says when
    /// it has last `written`.
    pub(crate) async fn apply(
        client: Client,
        written: Arc<Written>,
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
        let (leads, receiver) = watch::channel(false);
        let task = tokio::spawn(look_after(manager, leads));
        Ok(Self {
            leads: receiver,
            written,
            task,
        })
    }

    /// Waits until this one works; `false` if it never will.
    pub(crate) async fn won(&mut self) -> bool {
        self.leads.wait_for(|leads| *leads).await.is_ok()
    }

    /// Waits until this one must no longer work.
    pub(crate) async fn lost(&mut self) {
        tokio::select! {
            // An error: nobody renews it any more.
            _ = self.leads.wait_for(|leads| !*leads) => {}
            () = self.written.is_older_than(RELIED_ON) => warn!("the lease could not be renewed in time"),
        }
    }

    /// Gives it up.
    pub(crate) async fn give_up(self) {
        drop(self.leads);
        if tokio::time::timeout(GIVE_UP, self.task).await.is_err() {
            warn!("the lease could not be given up in time; another controller waits for its end");
        }
    }
}

/// Tells whether this one leads, until nobody listens any more, and then gives the Lease up.
async fn look_after(manager: LeaseManager, leads: watch::Sender<bool>) {
    loop {
        let changed = tokio::select! {
            biased;
            () = leads.closed() => {
                if let Err(error) = manager.release().await {
                    warn!(%error, "the lease could not be given up");
                }
                return;
            }
            changed = manager.changed() => changed,
        };
        match changed {
            // Nobody listens: seen above.
            Ok(now) => drop(leads.send(now)),
            Err(error) => {
                warn!(%error, "the lease could not be looked after");
                tokio::time::sleep(REST).await;
            }
        }
    }
}
