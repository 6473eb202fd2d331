//! What is counted of suspends and resumes, against a small API server.

use dormouse_api::conditions::SUSPENDED;
use dormouse_api::dormouse::SandboxSnapshot;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;

use super::*;
use crate::agents::Agents;
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::objects::{self, is_true};
use crate::sandbox::{FIELD_MANAGER, Known, SandboxContext, SandboxError, reconcile};
use crate::test_server::Server;

/// A controller that has just begun, and so knows what the API server has.
struct Controller {
    context: Arc<SandboxContext>,
    known: Known,
    metrics: Arc<Metrics>,
}

impl Controller {
    fn of(server: &Server) -> Self {
        let nodes = Arc::new(Cache::new(reflector::store().0, |_: &Node| None));
        let known = Known {
            sandboxes: Arc::new(Cache::new(reflector::store().0, |_: &Sandbox| None)),
            pods: Arc::new(Cache::new(reflector::store().0, |pod: &Pod| {
                objects::label(&pod.metadata, labels::SANDBOX_NAME_HASH)
            })),
            services: Arc::new(Cache::new(reflector::store().0, |_: &Service| None)),
            volume_claims: Arc::new(Cache::new(reflector::store().0, |_: &PersistentVolumeClaim| None)),
            agents: Agents::new(|_, _| {}, |_| {}),
            nodes: Nodes::new(nodes, vec![]),
            ledger: Arc::default(),
            snapshots: Arc::new(Cache::new(reflector::store().0, |_: &SandboxSnapshot| None)),
            pod_snapshots: None,
            pooled: None,
        };
        let metrics = Arc::new(Metrics::default());
        let context = SandboxContext::new(
            server.client(),
            Recorder::new(server.client(), Reporter::from(FIELD_MANAGER.to_owned())),
            settings(),
            "2".parse().unwrap(),
            known.clone(),
            Arc::clone(&metrics),
        );
        let controller = Self {
            context: Arc::new(context),
            known,
            metrics,
        };
        controller.hear(server);
        controller
    }

    /// The watches tell what there is.
    fn hear(&self, server: &Server) {
        for sandbox in server.all("sandboxes") {
            self.known.sandboxes.wrote(sandbox);
        }
        for pod in server.all("pods") {
            self.known.pods.wrote(pod);
        }
    }

    async fn look(&self) -> Result<(), SandboxError> {
        let looked = reconcile(Arc::new(sandbox()), Arc::clone(&self.context)).await;
        looked.map(|_| ())
    }

    /// Time and phases of transitions in this direction, of which there are to be so many.
    fn counted(&self, direction: &str, count: u32) -> (f64, Vec<(&'static str, f64)>) {
        let text = self.metrics.text().unwrap();
        let of = |what: &str, labels: &str| -> Option<f64> {
            let start = format!("{what}{{direction=\"{direction}\",strategy=\"Stop\"{labels}}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&start))?;
            Some(value.parse().unwrap())
        };
        let times = of("dormouse_sandbox_transition_seconds_count", "").unwrap_or_default();
        assert!((times - f64::from(count)).abs() < f64::EPSILON, "{times}\n{text}");
        let phases = ["order", "pod", "grant", "guest", "status"]
            .into_iter()
            .filter_map(|phase| {
                let labels = format!(",phase=\"{phase}\"");
                let sum = of("dormouse_sandbox_transition_phase_seconds_sum", &labels)?;
                Some((phase, sum))
            });
        let all = of("dormouse_sandbox_transition_seconds_sum", "").unwrap_or_default();
        (all, phases.collect())
    }

    fn assert_phases(&self, direction: &str, expected: &[&str]) {
        let (all, phases) = self.counted(direction, 1);
        let names: Vec<&str> = phases.iter().map(|(phase, _)| *phase).collect();
        assert_eq!(names, expected);
        let sum: f64 = phases.iter().map(|(_, took)| took).sum();
        assert!((sum - all).abs() < 1e-6, "{phases:?} do not add up to {all}");
    }
}

/// Somebody changes the sandbox.
fn change(server: &Server, controller: &Controller, how: impl FnOnce(&mut Sandbox)) {
    let mut sandbox: Sandbox = server.all("sandboxes").remove(0);
    how(&mut sandbox);
    server.put("sandboxes", &sandbox);
    controller.hear(server);
}

fn is_suspended(server: &Server) -> bool {
    let sandbox: Sandbox = server.all("sandboxes").remove(0);
    is_true(&sandbox.status.unwrap().conditions, SUSPENDED)
}

#[tokio::test]
async fn a_suspend_and_a_resume_count_once_and_by_phase() {
    let server = Server::empty();
    server.put("sandboxes", &sandbox());
    server.put("pods", &ready(own_pod(&sandbox())));
    let controller = Controller::of(&server);
    controller.look().await.unwrap();

    change(&server, &controller, |sandbox| {
        sandbox.spec.operating_mode = OperatingMode::Suspended;
    });
    controller.look().await.unwrap();
    assert!(server.all::<Pod>("pods").is_empty());
    controller.counted("suspend", 0);
    // It is looked whether there is somebody else's pod, and the pod's name is taken away; the write that says so fails.
    server.takes(2);
    let error = controller.look().await.unwrap_err();
    assert!(matches!(error, SandboxError::Status(_)), "{error}");
    controller.counted("suspend", 0);
    server.takes(usize::MAX);
    controller.look().await.unwrap();
    assert!(is_suspended(&server));
    controller.assert_phases("suspend", &["order", "pod", "status"]);
    controller.look().await.unwrap();
    controller.counted("suspend", 1);

    change(&server, &controller, |sandbox| {
        sandbox.spec.operating_mode = OperatingMode::Running;
    });
    let asleep: Sandbox = server.all("sandboxes").remove(0);
    controller.look().await.unwrap();
    controller.counted("resume", 0);
    let pod: Pod = server.all("pods").remove(0);
    server.put("pods", &ready(pod));
    controller.hear(&server);
    controller.look().await.unwrap();
    assert!(!is_suspended(&server));
    controller.assert_phases("resume", &["pod", "guest", "status"]);

    // Another controller finds it running, and the status as it was before: there is nothing to be timed.
    server.put("sandboxes", &asleep);
    let other = Controller::of(&server);
    other.look().await.unwrap();
    assert!(!is_suspended(&server));
    other.counted("resume", 0);
}
