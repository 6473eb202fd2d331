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
pub(crate) const LEASE: &str = "a3317529.agent-sandbox.x-k8s.io";

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
    /// it has last `written`. An API server that has too much to do, or is away, is asked again for as long as it takes.
    pub(crate) async fn apply(
        client: Client,
        written: Arc<Written>,
        namespace: &str,
        identity: &str,
    ) -> Result<Self, LeaseManagerError> {
        let manager = loop {
            let built = LeaseManagerBuilder::new(client.clone(), LEASE)
                .with_namespace(namespace)
                .with_identity(identity)
                .with_duration(HOLDS)
                .with_grace(RENEWED)
                .with_create_mode(LeaseCreateMode::AutoCreate)
                .build()
                .await;
            match built {
                Err(error) if may_pass(&error) => {
                    warn!(%error, "the lease cannot be applied for, and is again");
                    tokio::time::sleep(REST).await;
                }
                built => break built?,
            }
        };
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

/// Whether another try may go better although nobody changes anything.
fn may_pass(error: &LeaseManagerError) -> bool {
    match error {
        LeaseManagerError::KubeError(kube::Error::Api(status)) => status.code == 429 || status.code >= 500,
        LeaseManagerError::KubeError(error) => {
            matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_))
        }
        _ => false,
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// A client whose first requests get these answers, and all others a Lease that is nobody's.
    fn answering(codes: Vec<u16>) -> Client {
        let codes = Mutex::new(codes.into_iter());
        let service = tower::service_fn(move |_: Request<Body>| {
            let code = codes.lock().unwrap().next();
            async move {
                let answer = match code {
                    // It does not answer at all.
                    Some(0) => return Err("connection refused".into()),
                    Some(code) => json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Any", "code": code,
                        "message": "any",
                    }),
                    None => json!({
                        "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
                        "metadata": {"name": LEASE, "namespace": "ns", "resourceVersion": "1"}, "spec": {},
                    }),
                };
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                let answer = Response::builder()
                    .status(code.unwrap_or(200))
                    .body(body)
                    .unwrap();
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
            }
        });
        Client::new(service, "ns")
    }

    #[tokio::test]
    async fn a_busy_api_server_is_asked_again_and_one_that_refuses_is_not() {
        let apply = async |codes: Vec<u16>| {
            let applied = Leadership::apply(answering(codes), Arc::default(), "ns", "one").await;
            applied.map(|leadership| leadership.task.abort())
        };
        apply(vec![429, 0, 503]).await.unwrap();
        let error = apply(vec![403]).await.unwrap_err().to_string();
        assert!(error.contains("403"), "{error}");
    }
}
