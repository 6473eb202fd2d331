//! The controller ends at each of its writes and orders, and the next one finishes what it has begun: against a small API
//! server, a small agent, and what a kubelet would make of the pods.

use dormouse_api::agents::{SuspensionStrategy, SuspensionType};
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_core::ANNOTATION_RESTORE_FROM;
use dormouse_rpc::{NodeClient, v1};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;

use super::*;
use crate::agents::{Agents, Guest};
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::objects::{self, label};
use crate::sandbox::{Known, SandboxContext, reconcile};
use crate::test_agent::{Agent, TestGuest};
use crate::test_server::Server;

/// The node that all pods go to.
const NODE: &str = "node-1";

/// More looks than anything needs.
const LOOKS: usize = 64;

/// A cluster with one Sandbox.
struct World {
    server: Server,
    agent: Agent,
    type_: SuspensionType,
}

/// A controller that has just begun, and so knows what the API server and the agent have.
struct Controller {
    context: Arc<SandboxContext>,
    known: Known,
    client: NodeClient,
}

/// What has become of the Sandbox, without what differs from one time to the next.
#[derive(Debug, PartialEq)]
struct End {
    /// Type, status and reason.
    conditions: Vec<(String, String, String)>,
    /// The rungs of the guests of its pods.
    guests: Vec<(i32, String)>,
    /// Whether its pod is the one that it was.
    same_pod: bool,
    /// What was in the memory that is kept for it.
    kept: Option<String>,
}

impl World {
    /// With a Sandbox that runs.
    async fn new(type_: SuspensionType) -> Self {
        let server = Server::empty();
        server.0.lock().unwrap().tells_apart = true;
        let agent = Agent::default();
        agent.0.lock().unwrap().counts = Some(server.clone());
        let mut sandbox = sandbox();
        sandbox.metadata.generation = Some(1);
        sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
            type_,
            fallback: None,
        });
        server.put("sandboxes", &sandbox);
        let world = Self { server, agent, type_ };
        world.comes_to_rest().await;
        assert_eq!(
            world.says("Ready"),
            ("True".to_owned(), "DependenciesReady".to_owned())
        );
        world
    }

    fn sandbox(&self) -> Sandbox {
        self.server.all("sandboxes").remove(0)
    }

    fn pods(&self) -> Vec<Pod> {
        self.server.all("pods")
    }

    /// Status and reason of a condition.
    fn says(&self, type_: &str) -> (String, String) {
        let status = self.sandbox().status.unwrap_or_default();
        let said = condition(&status.conditions, type_);
        said.map(|said| (said.status.clone(), said.reason.clone()))
            .unwrap_or_default()
    }

    /// Somebody says that it is to run, or not to.
    fn operate(&self, mode: OperatingMode) {
        let mut sandbox = self.sandbox();
        sandbox.spec.operating_mode = mode;
        *sandbox.metadata.generation.get_or_insert_default() += 1;
        self.server.put("sandboxes", &sandbox);
    }

    /// What the scheduler and a kubelet make of the pods.
    fn kubelet(&self) {
        for pod in self.pods() {
            let uid = objects::uid(&pod.metadata).to_owned();
            if pod.metadata.deletion_timestamp.is_some() {
                self.server.remove("pods", "box");
                self.agent.0.lock().unwrap().guests.remove(&uid);
                continue;
            }
            let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
            if gates.is_none_or(Vec::is_empty) {
                self.run(pod, &uid);
            }
        }
    }

    /// A kubelet has the pod run, and says how it is.
    fn run(&self, mut pod: Pod, uid: &str) {
        let before = serde_json::to_value(&pod).unwrap();
        pod.metadata.finalizers = Some(vec!["test/kubelet".to_owned()]);
        let filled_from = objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM).map(str::to_owned);
        let spec = pod.spec.get_or_insert_default();
        spec.node_name = Some(NODE.to_owned());
        let gates = spec.readiness_gates.clone().unwrap_or_default();
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Running".to_owned());
        status.pod_ips = Some(vec![PodIP {
            ip: "10.0.0.1".to_owned(),
        }]);
        let conditions = status.conditions.get_or_insert_default();
        conditions
            .retain(|said| !["PodScheduled", "ContainersReady", "Ready"].contains(&said.type_.as_str()));
        let is_open = gates.iter().all(|gate| {
            let said = conditions.iter().find(|said| said.type_ == gate.condition_type);
            said.is_some_and(|said| said.status == "True")
        });
        for (type_, is) in [
            ("PodScheduled", true),
            ("ContainersReady", true),
            ("Ready", is_open),
        ] {
            conditions.push(PodCondition {
                type_: type_.to_owned(),
                status: if is { "True" } else { "False" }.to_owned(),
                ..PodCondition::default()
            });
        }
        self.begin(uid, filled_from.as_deref());
        if serde_json::to_value(&pod).unwrap() != before {
            self.server.put("pods", &pod);
        }
    }

    /// The guest of a pod is there from now on, with the memory that it is filled with, or with one of its own.
    fn begin(&self, uid: &str, filled_from: Option<&str>) {
        let mut store = self.agent.0.lock().unwrap();
        if store.guests.contains_key(uid) {
            return;
        }
        let memory = match filled_from {
            Some(snapshot) => {
                let granted = store.grants.get(uid).map(String::as_str);
                assert_eq!(granted, Some(snapshot), "it was let go without leave");
                store.saved[snapshot].clone()
            }
            None => format!("the memory of {uid}"),
        };
        let pod = v1::Pod {
            uid: uid.to_owned(),
            namespace: "ns".to_owned(),
            name: "box".to_owned(),
            rung: v1::Rung::Running.into(),
            managed: true,
            ..v1::Pod::default()
        };
        store.guests.insert(uid.to_owned(), TestGuest { pod, memory });
    }

    /// A controller begins.
    async fn controller(&self) -> Controller {
        // Only what is none of its business is not counted.
        let aside = Server::empty().client();
        let known = Known {
            sandboxes: Arc::new(Cache::new(reflector::store().0, |_: &Sandbox| None)),
            pods: Arc::new(Cache::new(reflector::store().0, |pod: &Pod| {
                label(&pod.metadata, labels::SANDBOX_NAME_HASH)
            })),
            services: Arc::new(Cache::new(reflector::store().0, |service: &Service| {
                label(&service.metadata, labels::SANDBOX_NAME_HASH)
            })),
            volume_claims: Arc::new(Cache::new(reflector::store().0, |_: &PersistentVolumeClaim| None)),
            agents: Agents::new(|_, _| {}, |_| {}),
            nodes: Nodes::new(
                Arc::new(Cache::new(reflector::store().0, |_: &Node| None)),
                vec![],
            ),
            ledger: Arc::default(),
            snapshots: Arc::new(Cache::new(reflector::store().0, |snapshot: &SandboxSnapshot| {
                Some(&snapshot.spec.sandbox_name)
            })),
            pod_snapshots: None,
            pooled: None,
        };
        let context = SandboxContext::new(
            self.server.client(),
            Recorder::new(aside, Reporter::from("test".to_owned())),
            settings(),
            "2".parse().unwrap(),
            known.clone(),
            Arc::new(Metrics::default()),
        );
        Controller {
            context: Arc::new(context),
            known,
            client: self.agent.client().await,
        }
    }

    /// Everything that there is.
    fn all(&self) -> String {
        let objects = format!("{:?}", self.server.0.lock().unwrap().objects);
        format!("{objects} {:?}", self.agent.0.lock().unwrap().guests)
    }

    /// A controller works until there is nothing left to do, or it dies; whether it lived.
    async fn lives(&self) -> bool {
        let controller = self.controller().await;
        for _ in 0..LOOKS {
            let before = self.all();
            let outcome = controller.look(self).await;
            if self.server.is_spent() {
                return false;
            }
            self.kubelet();
            if outcome.is_ok() && self.all() == before {
                return true;
            }
        }
        panic!("it comes to no end: {}", self.all());
    }

    /// A controller that lives brings all to rest.
    async fn comes_to_rest(&self) {
        self.server.takes(usize::MAX);
        assert!(self.lives().await);
    }

    /// What has become of it. `before`: the pod that it had.
    fn end(&self, before: &[String]) -> End {
        let status = self.sandbox().status.unwrap_or_default();
        let mut conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|said| (said.type_.clone(), said.status.clone(), said.reason.clone()))
            .collect();
        conditions.sort();
        let store = self.agent.0.lock().unwrap();
        let uids = uids(&self.server.all("pods"));
        let memory = |memory: &str| {
            // That of another pod is named after that.
            if uids.iter().any(|uid| memory.ends_with(uid)) && uids != before {
                "another".to_owned()
            } else {
                memory.to_owned()
            }
        };
        End {
            conditions,
            guests: store
                .guests
                .values()
                .map(|guest| (guest.pod.rung, memory(&guest.memory)))
                .collect(),
            same_pod: uids == before,
            kept: status
                .snapshot
                .map(|snapshot| store.saved[&snapshot.name].clone()),
        }
    }

    fn memory(&self) -> String {
        let store = self.agent.0.lock().unwrap();
        let guests: Vec<&TestGuest> = store.guests.values().collect();
        assert_eq!(guests.len(), 1, "{guests:?}");
        guests[0].memory.clone()
    }
}

impl Controller {
    /// The watches and the agent tell what there is, and it is looked at.
    async fn look(&self, world: &World) -> Result<(), crate::sandbox::SandboxError> {
        for sandbox in world.server.all::<Sandbox>("sandboxes") {
            self.known.sandboxes.wrote(sandbox);
        }
        let pods = world.pods();
        if let Some(known) = self.known.pods.get("ns", "box")
            && pods.iter().all(|pod| pod.metadata.uid != known.metadata.uid)
        {
            self.known.pods.gone("ns", "box", objects::uid(&known.metadata));
        }
        for pod in pods {
            self.known.pods.wrote(pod);
        }
        let guests: Vec<Guest> = {
            let store = world.agent.0.lock().unwrap();
            let pods = store.guests.values().map(|guest| guest.pod.clone());
            pods.filter_map(|pod| Guest::from_agent(NODE, pod)).collect()
        };
        self.known.agents.link(NODE, self.client.clone(), &guests);
        let outcome = reconcile(Arc::new(world.sandbox()), Arc::clone(&self.context)).await;
        // What nobody waits for is done, or not any more, before anything else happens: all of it is in this thread.
        for _ in 0..256 {
            tokio::task::yield_now().await;
        }
        outcome.map(|_| ())
    }
}

fn uids(pods: &[Pod]) -> Vec<String> {
    pods.iter()
        .map(|pod| objects::uid(&pod.metadata).to_owned())
        .collect()
}

/// A Sandbox that is about to be suspended, or to be resumed, and what it has: its pods and its memory.
async fn before(type_: SuspensionType, mode: OperatingMode) -> (World, Vec<String>, String) {
    let world = World::new(type_).await;
    let (mut pods, memory) = (uids(&world.pods()), world.memory());
    if mode == OperatingMode::Running {
        world.operate(OperatingMode::Suspended);
        world.comes_to_rest().await;
        pods = uids(&world.pods());
    }
    world.operate(mode);
    (world, pods, memory)
}

/// Whether all is as it is to be when it is suspended, or runs.
fn assert_is(world: &World, mode: OperatingMode, memory: &str, when: &str) {
    let keeps = world.type_ != SuspensionType::Stop;
    if mode == OperatingMode::Running {
        assert_eq!(world.says("Ready").0, "True", "{when}");
        assert_eq!(world.memory() == memory, keeps, "{when}");
        return;
    }
    let status = world.sandbox().status.unwrap_or_default();
    let store = world.agent.0.lock().unwrap();
    let kept = status
        .snapshot
        .map(|snapshot| store.saved[&snapshot.name].clone());
    drop(store);
    let (reason, kept_wanted, has_pod) = match world.type_ {
        SuspensionType::Stop => ("PodTerminated", None, false),
        SuspensionType::Freeze => ("GuestAsleep", None, true),
        SuspensionType::Hibernate => ("PodTerminated", Some(memory), false),
    };
    assert_eq!(
        world.says("Suspended"),
        ("True".to_owned(), reason.to_owned()),
        "{when}"
    );
    assert_eq!(kept.as_deref(), kept_wanted, "{when}");
    assert_eq!(!world.pods().is_empty(), has_pod, "{when}");
    if has_pod {
        assert_eq!(world.memory(), memory, "{when}");
    }
}

#[tokio::test]
async fn wherever_the_controller_ends_the_next_one_comes_to_the_same_end() {
    use SuspensionType::{Freeze, Hibernate, Stop};
    for type_ in [Stop, Freeze, Hibernate] {
        for mode in [OperatingMode::Suspended, OperatingMode::Running] {
            let (world, pods, memory) = before(type_, mode).await;
            world.comes_to_rest().await;
            let expected = world.end(&pods);
            assert_is(&world, mode, &memory, "without an end");
            let mut steps = 0;
            loop {
                let (world, pods, memory) = before(type_, mode).await;
                world.server.takes(steps);
                let lived = world.lives().await;
                world.comes_to_rest().await;
                let when = format!("{type_:?}, {mode:?}, ended after {steps} steps");
                assert_is(&world, mode, &memory, &when);
                assert_eq!(world.end(&pods), expected, "{when}");
                if lived {
                    break;
                }
                steps += 1;
            }
            // Each takes more than one: else this shows nothing.
            assert!(steps > 2, "{type_:?}, {mode:?}: {steps} steps");
        }
    }
}
