//! What is watched, and who is concerned of what.

mod extensions;
mod gke;
mod nodes;
mod snapshots;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxSnapshot, StandbyQuota};
use dormouse_api::extensions::SandboxTemplate;
use dormouse_api::names::labels;
use k8s_openapi::api::core::v1::{Container, Node, PersistentVolumeClaim, Pod, PodSpec, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use tokio::time::timeout;
use tracing::warn;

use crate::agents::Agents;
use crate::args::Args;
use crate::budget::Budgets;
use crate::cache::{Cache, Feed, feed, watch};
use crate::nodes::Nodes;
use crate::objects::{self, controller_of, controller_of_kind, label};
use crate::overcommit::Ledger;
use crate::queue::Queue;
pub(super) use extensions::Extensions;
use gke::Gke;
pub(super) use snapshots::Snapshots;

/// The agents' pods, and where they listen.
const AGENT_PODS: &str = "app.kubernetes.io/name=dormouse,app.kubernetes.io/component=agent";
const AGENT_PORT: u16 = 9466;

/// How long the nodes are waited for.
const NODES: Duration = Duration::from_secs(10);

/// What is watched.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) sandboxes: Arc<Cache<Sandbox>>,
    pub(super) pods: Arc<Cache<Pod>>,
    pub(super) services: Arc<Cache<Service>>,
    pub(super) volume_claims: Arc<Cache<PersistentVolumeClaim>>,
    pub(super) agents: Agents,
    pub(super) nodes: Nodes,
    pub(super) budgets: Budgets,
    pub(super) ledger: Arc<Ledger>,
    node_cache: Arc<Cache<Node>>,
    pub(super) templates: Option<Arc<Cache<SandboxTemplate>>>,
    network_policies: Option<Arc<Cache<NetworkPolicy>>>,
    pub(super) sandbox_queue: Queue<Sandbox>,
    pub(super) template_queue: Queue<SandboxTemplate>,
    pub(super) extensions: Option<Arc<Extensions>>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) gke: Option<Arc<Gke>>,
}

impl Index {
    /// Begins to watch.
    pub(super) fn start(client: &Client, args: &Args) -> Self {
        let snapshots = Arc::new(Snapshots::new());
        let gke = args.enable_podsnapshot_gke.then(|| Arc::new(Gke::new()));
        let sandbox_queue = Queue::default();
        let template_queue = Queue::default();

        let sandboxes = feed::<Sandbox>(extensions::group_of);
        let pods = feed::<Pod>(|pod| name_hash(&pod.metadata));
        let services = feed::<Service>(|_| None);
        let volume_claims = feed::<PersistentVolumeClaim>(|_| None);
        let agents = {
            let (queue, pods) = (sandbox_queue.clone(), Arc::clone(&pods.cache));
            let (known, of_node) = (snapshots.clone(), snapshots.clone());
            let changed = move |namespace: &str, name: &str| {
                if let Some(pod) = pods.get(namespace, name) {
                    push_owner(&queue, &pod.metadata);
                    saw_pod(&known, &pod);
                }
            };
            Agents::new(changed, move |node| of_node.saw_node(node))
        };
        let nodes = feed::<Node>(|_| None);
        let budgets = feed::<PodDisruptionBudget>(|_| None);
        let mut index = Self {
            agents: agents.clone(),
            nodes: Nodes::new(Arc::clone(&nodes.cache), args.drain_taints.clone()),
            budgets: Budgets::new(Arc::clone(&budgets.cache)),
            ledger: Arc::default(),
            node_cache: Arc::clone(&nodes.cache),
            sandboxes: Arc::clone(&sandboxes.cache),
            pods: Arc::clone(&pods.cache),
            services: Arc::clone(&services.cache),
            volume_claims: Arc::clone(&volume_claims.cache),
            templates: None,
            network_policies: None,
            sandbox_queue: sandbox_queue.clone(),
            template_queue: template_queue.clone(),
            extensions: None,
            snapshots: snapshots.clone(),
            gke: gke.clone(),
        };
        let extended = args.extensions.then(|| {
            let templates = feed::<SandboxTemplate>(|_| None);
            let known = Extensions::new(&sandboxes.cache, &pods.cache, &templates.cache);
            (Arc::new(known), templates)
        });
        index.extensions = extended.as_ref().map(|(known, _)| Arc::clone(known));

        let ours = watcher::Config::default().labels(labels::SANDBOX_NAME_HASH);
        let queue = sandbox_queue.clone();
        let concerned = index.extensions.clone();
        index.watch_nodes(client, nodes, budgets);
        let departed = index.departed();
        let known = snapshots.clone();
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            sandboxes,
            |_| {},
            move |sandbox: &Sandbox| {
                queue.push(
                    objects::namespace(&sandbox.metadata),
                    objects::name(&sandbox.metadata),
                );
                departed.saw_sandbox(sandbox);
                known.saw_sandbox(
                    objects::namespace(&sandbox.metadata),
                    objects::name(&sandbox.metadata),
                );
                if let Some(concerned) = &concerned {
                    concerned.saw_sandbox(sandbox);
                }
            },
        ));
        let queue = sandbox_queue.clone();
        let departed = index.departed();
        let (known, vocabulary) = (snapshots.clone(), gke.clone());
        tokio::spawn(watch(
            Api::all(client.clone()),
            ours.clone(),
            pods,
            trim_pod,
            move |pod: &Pod| {
                push_owner(&queue, &pod.metadata);
                departed.saw_pod(pod);
                saw_pod(&known, pod);
                if let Some(vocabulary) = &vocabulary {
                    vocabulary.saw_pod(objects::namespace(&pod.metadata), objects::name(&pod.metadata));
                }
            },
        ));
        let queue = sandbox_queue.clone();
        tokio::spawn(watch(
            Api::all(client.clone()),
            ours.clone(),
            services,
            |_| {},
            move |service: &Service| {
                push_owner(&queue, &service.metadata);
            },
        ));
        let vocabulary = gke.clone();
        let concerned = index.extensions.clone();
        let all = Arc::clone(&snapshots.snapshots);
        snapshots.start(client, &index.sandboxes, &sandbox_queue, move |snapshot| {
            if let Some(concerned) = &concerned {
                let meta = &snapshot.metadata;
                let there = all.get(objects::namespace(meta), objects::name(meta));
                let is_there = there.is_some_and(|there| there.metadata.uid == meta.uid);
                concerned.saw_snapshot(snapshot, is_there);
            }
            if let Some(vocabulary) = &vocabulary {
                vocabulary.saw_snapshot(snapshot);
            }
        });
        if let Some(gke) = &gke {
            gke.start(client, &sandbox_queue);
        }
        let queue = sandbox_queue;
        tokio::spawn(watch(
            Api::all(client.clone()),
            ours,
            volume_claims,
            |_| {},
            move |claim: &PersistentVolumeClaim| push_owner(&queue, &claim.metadata),
        ));
        tokio::spawn(watch(
            Api::namespaced(client.clone(), &args.leader_election_namespace),
            watcher::Config::default().labels(AGENT_PODS),
            feed::<Pod>(|_| None),
            trim_pod,
            move |pod: &Pod| locate(&agents, pod),
        ));
        if let Some((known, templates)) = extended {
            index.start_extensions(client, template_queue, templates, &known);
            known.start(client);
        }
        index
    }

    fn start_extensions(
        &mut self,
        client: &Client,
        queue: Queue<SandboxTemplate>,
        templates: Feed<SandboxTemplate>,
        known: &Arc<Extensions>,
    ) {
        let network_policies = feed::<NetworkPolicy>(|_| None);
        self.templates = Some(Arc::clone(&templates.cache));
        self.network_policies = Some(Arc::clone(&network_policies.cache));
        let own = queue.clone();
        let concerned = Arc::clone(known);
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            templates,
            |_| {},
            move |template: &SandboxTemplate| {
                own.push(
                    objects::namespace(&template.metadata),
                    objects::name(&template.metadata),
                );
                concerned.saw_template(template);
            },
        ));
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            network_policies,
            |_| {},
            move |policy: &NetworkPolicy| push_owner(&queue, &policy.metadata),
        ));
    }

    /// Waits until everything that there is has been seen.
    pub(super) async fn filled(&self, client: &Client) {
        filled(&self.sandboxes).await;
        filled(&self.pods).await;
        filled(&self.services).await;
        filled(&self.volume_claims).await;
        // Sandboxes are served all the same by a controller that may not watch nodes.
        if timeout(NODES, filled(&self.node_cache)).await.is_err() {
            warn!(
                "nodes cannot be watched: no drain is seen, no node that is lost, and sleepers keep their requests"
            );
        }
        if let Some(templates) = &self.templates {
            filled(templates).await;
        }
        if let Some(network_policies) = &self.network_policies {
            filled(network_policies).await;
        }
        if snapshots::is_served::<SandboxSnapshot>(client).await {
            filled(&self.snapshots.snapshots).await;
            filled(&self.snapshots.nodes).await;
            filled(&self.snapshots.stores).await;
        }
        if let Some(gke) = &self.gke {
            filled(&gke.triggers).await;
            filled(&gke.pod_snapshots).await;
            filled(&gke.policies).await;
        }
        if let Some(extensions) = &self.extensions {
            filled(&extensions.claims).await;
            filled(&extensions.pools).await;
            if snapshots::is_served::<StandbyQuota>(client).await {
                filled(&extensions.quotas).await;
            }
        }
    }
}

/// Takes note of where an agent is, by its pod.
fn locate(agents: &Agents, pod: &Pod) {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let Some(node) = node.filter(|node| !node.is_empty()) else {
        return;
    };
    let status = pod.status.as_ref();
    let is_up = pod.metadata.deletion_timestamp.is_none()
        && status.and_then(|status| status.phase.as_deref()) == Some("Running");
    let address = status
        .and_then(|status| status.pod_ip.as_deref()?.parse().ok())
        .filter(|_| is_up)
        .map(|ip| SocketAddr::new(ip, AGENT_PORT));
    // While one pod takes over from another, the one that goes says nothing about where the other is.
    if address.is_some() || pod.metadata.deletion_timestamp.is_none() {
        agents.locate(node, address);
    }
}

async fn filled<K: Resource<DynamicType = ()> + Clone + 'static>(cache: &Cache<K>) {
    // An error: the watch has ended, as it does with the process.
    let _ = cache.store().wait_until_ready().await;
}

fn name_hash(meta: &ObjectMeta) -> Option<&str> {
    label(meta, labels::SANDBOX_NAME_HASH)
}

/// Has the owner of an object looked at.
fn push_owner<K: Resource<DynamicType = ()>>(queue: &Queue<K>, meta: &ObjectMeta) {
    let owner = controller_of(meta).filter(|owner| {
        owner.kind == K::kind(&()) && owner.api_version.split('/').next() == Some(&K::group(&()))
    });
    match owner {
        Some(owner) => queue.push(objects::namespace(meta), &owner.name),
        // It may be in the way of the one of its name, or about to become its own.
        None => queue.push(objects::namespace(meta), objects::name(meta)),
    }
}

/// Has the snapshots of a pod's Sandbox looked at.
fn saw_pod(snapshots: &Snapshots, pod: &Pod) {
    if let Some(owner) = controller_of_kind::<Sandbox>(&pod.metadata) {
        snapshots.saw_sandbox(objects::namespace(&pod.metadata), &owner.name);
    }
}

/// Leaves out what nobody here reads: for thousands of pods it is most of the memory.
fn trim_pod(pod: &mut Pod) {
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        readiness_gates: spec.readiness_gates,
        scheduling_gates: spec.scheduling_gates,
        containers: spec.containers.into_iter().map(trim_container).collect(),
        ..PodSpec::default()
    });
}

fn trim_container(container: Container) -> Container {
    Container {
        name: container.name,
        resources: container.resources,
        ..Container::default()
    }
}
