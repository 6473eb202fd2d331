//! Putting it together.

mod extensions;
mod index;
mod snapshots;

use std::sync::Arc;

use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use kube_lease_manager::LeaseManagerError;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::args::{Args, address};
use crate::budget;
use crate::client::{Clients, Rate, Written, clients, lease_client};
use crate::http_server::{self, Ready};
use crate::identity::{self, Keeper};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::sandbox::{self, SandboxContext, Settings};
use crate::template::{self, TemplateContext};
use crate::worker::work;
use index::Index;

/// Who writes events.
const REPORTER: &str = "agent-sandbox-controller";

/// The agents' ServiceAccount.
const AGENT_ACCOUNT: &str = "dormouse-agent";

/// Why the controller ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// The API server's address and credentials are not known.
    #[error(
        "the API server's address is not known; run in a pod with a ServiceAccount, or set KUBECONFIG: {0}"
    )]
    Config(#[source] kube::config::InferConfigError),
    /// The way to the API server cannot be made.
    #[error("no client for the API server: {0}")]
    Client(#[source] kube::Error),
    /// An address to serve on is none.
    #[error("{flag} is not an address such as `:8080`: {source}")]
    Address {
        /// Which one.
        flag: &'static str,
        /// What is wrong with it.
        #[source]
        source: std::net::AddrParseError,
    },
    /// An address to serve on cannot be had.
    #[error("{flag} cannot be served on: {source}")]
    Listen {
        /// Which one.
        flag: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Signals cannot be heard.
    #[error("signals cannot be heard: {0}")]
    Signals(#[source] std::io::Error),
    /// The lease cannot be applied for.
    #[error("the lease that says which controller works cannot be applied for: {0}")]
    Lease(#[from] LeaseManagerError),
    /// Another controller works now.
    #[error("the lease was lost; another controller works now")]
    LeaseLost,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// If it cannot begin, or must not go on.
pub async fn run(args: Args) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;

    let metrics = Arc::new(Metrics::default());
    let ready = Ready::default();
    let flags = [
        (
            "--health-probe-bind-address",
            &args.health_probe_bind_address,
            http_server::health(ready.clone()),
        ),
        (
            "--metrics-bind-address",
            &args.metrics_bind_address,
            http_server::metrics(Arc::clone(&metrics)),
        ),
    ];
    let served = CancellationToken::new();
    for (flag, text, router) in flags {
        let address = address(text).map_err(|source| RunError::Address { flag, source })?;
        if let Some(address) = address {
            let serving = http_server::serve(address, router, served.clone()).await;
            serving.map_err(|source| RunError::Listen { flag, source })?;
        }
    }

    let config = Config::infer().await.map_err(RunError::Config)?;
    let rate = Rate::new(args.kube_api_qps, args.kube_api_burst);
    let lease = lease_client(config.clone(), Arc::clone(&metrics)).map_err(RunError::Client)?;
    let clients = clients(config, rate, Arc::clone(&metrics)).map_err(RunError::Client)?;

    let index = Index::start(&clients.others, &args);
    metrics.count_sandboxes(index.sandboxes.store().clone());
    metrics
        .snapshots()
        .count(index.snapshots.snapshots.store().clone());
    tokio::select! {
        () = index.filled(&clients.others) => ready.set(),
        () = stop.cancelled() => return Ok(()),
    }
    info!("the caches are filled");

    let result = lead(&args, &clients, lease, &index, &metrics, &stop).await;
    served.cancel();
    result
}

/// Works as long as this controller is the one to.
async fn lead(
    args: &Args,
    clients: &Clients,
    lease: (Client, Arc<Written>),
    index: &Index,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    if !args.leader_elect {
        metrics.set_leader(true);
        let workers = begin(args, clients, index, metrics, stop);
        workers.wait().await;
        return Ok(());
    }
    let namespace = &args.leader_election_namespace;
    let identity = identity(args);
    let mut leadership = tokio::select! {
        applied = Leadership::apply(lease.0, lease.1, namespace, &identity) => applied?,
        () = stop.cancelled() => return Ok(()),
    };
    let won = tokio::select! {
        won = leadership.won() => won,
        () = stop.cancelled() => false,
    };
    if !won {
        leadership.give_up().await;
        return if stop.is_cancelled() {
            Ok(())
        } else {
            Err(RunError::LeaseLost)
        };
    }
    hold(leadership, metrics, || {
        begin(args, clients, index, metrics, &stop.child_token())
    })
    .await
}

/// Works, as `begin` begins it, until that has come to its end or this controller must no longer. Only then, and at once,
/// another one may.
async fn hold(
    mut leadership: Leadership,
    metrics: &Metrics,
    begin: impl FnOnce() -> TaskTracker,
) -> Result<(), RunError> {
    info!("this controller works now");
    metrics.set_leader(true);
    let workers = begin();
    tokio::select! {
        () = workers.wait() => {}
        () = leadership.lost() => {
            metrics.set_leader(false);
            // Nothing may be written any more, also not what has been begun.
            return Err(RunError::LeaseLost);
        }
    }
    metrics.set_leader(false);
    leadership.give_up().await;
    Ok(())
}

/// Begins to work on all kinds, until `stop`.
fn begin(
    args: &Args,
    clients: &Clients,
    index: &Index,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> TaskTracker {
    let client = &clients.others;
    let tracker = TaskTracker::new();
    let (signs, signing) = tokio::sync::watch::channel(None);
    let namespace = &args.leader_election_namespace;
    let keeper = Keeper::new(client, namespace);
    let lifetime = args.certificate_lifetime;
    tracker.spawn(identity::keep(
        keeper,
        index.agents.clone(),
        signs,
        lifetime,
        stop.clone(),
    ));
    let account = format!("system:serviceaccount:{namespace}:{AGENT_ACCOUNT}");
    tracker.spawn(identity::sign(
        client.clone(),
        account,
        signing,
        lifetime,
        stop.clone(),
    ));
    let reporter = Reporter {
        controller: REPORTER.to_owned(),
        instance: Some(identity(args)),
    };
    let known = sandbox::Known {
        sandboxes: Arc::clone(&index.sandboxes),
        pods: Arc::clone(&index.pods),
        services: Arc::clone(&index.services),
        volume_claims: Arc::clone(&index.volume_claims),
        agents: index.agents.clone(),
        nodes: index.nodes.clone(),
        ledger: Arc::clone(&index.ledger),
        snapshots: Arc::clone(&index.snapshots.snapshots),
        pod_snapshots: index.gke.as_ref().map(|known| Arc::clone(&known.pod_snapshots)),
        pooled: index.extensions.as_ref().map(|known| sandbox::Pooled {
            pools: Arc::clone(&known.pools),
            state: Arc::clone(&known.state),
            candidates: known.candidates.clone(),
        }),
    };
    index.count_given_away();
    tracker.spawn(budget::keep(
        index.budgets.clone(),
        client.clone(),
        !args.drain_timeout.is_zero(),
        stop.clone(),
    ));
    let settings = Settings {
        cluster_domain: args.cluster_domain.clone(),
        drain_timeout: args.drain_timeout,
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = SandboxContext::new(
        client.clone(),
        recorder,
        settings,
        args.max_overcommit,
        known,
        Arc::clone(metrics),
    );
    tracker.spawn(work(
        index.sandbox_queue.clone(),
        index.sandboxes.store().clone(),
        args.sandbox_concurrent_workers,
        sandbox::reconcile,
        sandbox::on_error,
        Arc::new(context),
        Arc::clone(metrics),
        stop.clone(),
    ));
    if let Some(templates) = &index.templates {
        let context = Arc::new(TemplateContext {
            client: client.clone(),
            templates: Arc::clone(templates),
        });
        tracker.spawn(work(
            index.template_queue.clone(),
            templates.store().clone(),
            args.sandbox_template_concurrent_workers,
            template::reconcile,
            template::on_error,
            context,
            Arc::clone(metrics),
            stop.clone(),
        ));
    }
    snapshots::begin(args, client, index, metrics, stop, &tracker);
    if let Some(known) = &index.extensions {
        extensions::begin(args, clients, index, known, metrics, stop, &tracker);
    }
    tracker.close();
    tracker
}

fn identity(args: &Args) -> String {
    args.identity
        .clone()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| REPORTER.to_owned())
}

fn stop_on_signal(stop: &CancellationToken) -> Result<(), RunError> {
    let mut term = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        info!("the controller ends; what has been begun is finished");
        stop.cancel();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::sync::oneshot;

    use super::*;
    use crate::leader::LEASE;
    use crate::test_server::Server;

    fn lease(server: &Server) -> Value {
        let state = server.0.lock().unwrap();
        state.objects[&("leases".to_owned(), LEASE.to_owned())].clone()
    }

    async fn apply(server: &Server, who: &str) -> Leadership {
        let applied = Leadership::apply(server.client(), Arc::default(), "ns", who).await;
        applied.unwrap()
    }

    #[tokio::test]
    async fn one_that_is_to_end_gives_its_lease_up_once_its_work_is_done() {
        let server = Server::empty();
        let mut leadership = apply(&server, "one").await;
        assert!(leadership.won().await);
        // As SIGTERM has it.
        let stop = CancellationToken::new();
        let (told, stops) = oneshot::channel();
        let (may_end, ends) = oneshot::channel::<()>();
        let metrics = Arc::new(Metrics::default());
        let holding = {
            let (stop, metrics) = (stop.clone(), Arc::clone(&metrics));
            tokio::spawn(async move {
                hold(leadership, &metrics, || {
                    let workers = TaskTracker::new();
                    workers.spawn(async move {
                        stop.cancelled().await;
                        told.send(()).unwrap();
                        ends.await.unwrap();
                    });
                    workers.close();
                    workers
                })
                .await
            })
        };
        stop.cancel();
        stops.await.unwrap();
        // What has been begun is being finished.
        assert_eq!(lease(&server)["spec"]["holderIdentity"], "one");
        assert!(metrics.text().unwrap().contains("dormouse_controller_leader 1"));
        may_end.send(()).unwrap();
        holding.await.unwrap().unwrap();
        assert!(metrics.text().unwrap().contains("dormouse_controller_leader 0"));
        let left = &lease(&server)["spec"];
        for field in ["holderIdentity", "renewTime", "leaseDurationSeconds"] {
            assert_eq!(left[field], Value::Null, "{left}");
        }
        // Nobody has to wait for its end.
        assert!(apply(&server, "two").await.won().await);
        assert_eq!(lease(&server)["spec"]["holderIdentity"], "two");
    }

    #[tokio::test]
    async fn one_that_waits_leaves_the_lease_of_another_alone() {
        let server = Server::empty();
        let mut first = apply(&server, "one").await;
        assert!(first.won().await);
        let held = lease(&server);
        let second = apply(&server, "two").await;
        second.give_up().await;
        assert_eq!(lease(&server)["spec"], held["spec"]);
        assert_eq!(held["spec"]["holderIdentity"], json!("one"));
        first.give_up().await;
    }
}
