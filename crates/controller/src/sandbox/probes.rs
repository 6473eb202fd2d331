//! Probes of sandboxes that sleep: the kubelet is not told of them, the agent of the node is.
//!
//! The kubelet would restart a guest for not answering in its sleep. So the probes move from the containers into an
//! annotation, which the agent reads at the pod's birth; what they say comes back with what else it says of the guest.

use dormouse_api::agents::Sandbox;
use dormouse_core::{ANNOTATION_PROBES, ContainerProbes, Probe, ProbeFault, ProbeKind, Probes, ProbesError};
use k8s_openapi::api::core::v1::{self, Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::guest::{READINESS_GATE, has_readiness_gate, node_of};
use super::{Observed, Trouble};
use crate::agents::Sight;
use crate::objects;

/// What the probes of a pod say that the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Probed {
    /// That it is ready, or there are none.
    #[default]
    Ready,
    /// That it is not, or nothing yet; why.
    NotReady(String),
}

/// Takes the probes out of the containers of a sandbox that sleeps; the annotation that they become, if there are any.
///
/// `stands_by`: it sleeps as a standby, whatever its own fields say.
///
/// The startup probe of an init container that goes on beside the others stays as well: the kubelet starts the next
/// container by it. It is over before anything sleeps, as nothing does before it is ready.
///
/// # Errors
/// The agent cannot run one of them, or there are too many.
pub(super) fn move_out(
    sandbox: &Sandbox,
    stands_by: bool,
    spec: &mut PodSpec,
) -> Result<Option<String>, Trouble> {
    if !sandbox.spec.sleeps() && !stands_by {
        return Ok(None);
    }
    let template = sandbox.spec.pod_template.metadata.as_ref();
    let given = template
        .and_then(|metadata| metadata.annotations.as_ref())
        .and_then(|all| all.get(ANNOTATION_PROBES));
    let mut moved = Vec::new();
    for container in spec.init_containers.iter_mut().flatten() {
        let startup = container.startup_probe.clone();
        moved.extend(take(container)?);
        container.startup_probe = startup;
    }
    for container in &mut spec.containers {
        moved.extend(take(container)?);
    }
    let probes = match given {
        Some(_) if !moved.is_empty() => return Err(Trouble::ProbesTwice),
        Some(given) => Probes::from_json(given),
        None if moved.is_empty() => return Ok(None),
        None => Probes::new(moved),
    };
    probes
        .and_then(|probes| probes.to_json())
        .map(Some)
        .map_err(Trouble::Probes)
}

/// The probes of one container, which has none any more.
fn take(container: &mut Container) -> Result<Option<ContainerProbes>, Trouble> {
    let mut probe = |kind| {
        let field = match kind {
            ProbeKind::Liveness => &mut container.liveness_probe,
            ProbeKind::Readiness => &mut container.readiness_probe,
            ProbeKind::Startup => &mut container.startup_probe,
        };
        let Some(mut probe) = field.take() else {
            return Ok(None);
        };
        let ports = container.ports.as_deref().unwrap_or_default();
        number_port(&mut probe, ports);
        let read = serde_json::to_value(probe)
            .map_err(|error| ProbeFault::Malformed {
                what: error.to_string(),
            })
            .and_then(|probe| Probe::from_kubernetes(kind, probe));
        read.map(Some).map_err(|fault| {
            Trouble::Probes(ProbesError::Probe {
                name: container.name.clone(),
                kind,
                fault,
            })
        })
    };
    let (liveness, readiness, startup) = (
        probe(ProbeKind::Liveness)?,
        probe(ProbeKind::Readiness)?,
        probe(ProbeKind::Startup)?,
    );
    let has_any = liveness.is_some() || readiness.is_some() || startup.is_some();
    Ok(has_any.then(|| ContainerProbes {
        name: container.name.clone(),
        liveness,
        readiness,
        startup,
    }))
}

/// Puts the number of a port in the place of its name. A name that the container does not have stays, and is refused.
fn number_port(probe: &mut v1::Probe, ports: &[v1::ContainerPort]) {
    let http = probe.http_get.as_mut().map(|http| &mut http.port);
    let tcp = probe.tcp_socket.as_mut().map(|tcp| &mut tcp.port);
    for port in [http, tcp].into_iter().flatten() {
        let IntOrString::String(name) = &*port else {
            continue;
        };
        let named = ports.iter().find(|port| port.name.as_deref() == Some(name));
        let number = named.map_or_else(|| name.parse().ok(), |port| Some(port.container_port));
        if let Some(number) = number {
            *port = IntOrString::Int(number);
        }
    }
}

/// What the pod's probes say.
pub(super) fn probed(observed: &Observed, pod: &Pod) -> Probed {
    if !has_readiness_gate(pod) || objects::annotation(&pod.metadata, ANNOTATION_PROBES).is_none() {
        return Probed::Ready;
    }
    let node = node_of(pod);
    match &observed.guest {
        Sight::Seen(guest) => match &guest.probes {
            Some(probes) if probes.ready => Probed::Ready,
            Some(probes) => Probed::NotReady(probes.message.clone()),
            None => Probed::NotReady(format!("the agent of node {node} does not run its probes")),
        },
        // Nothing is concluded from that: it is what it was.
        Sight::Unreachable | Sight::Unknown if was_ready(pod) => Probed::Ready,
        Sight::Unreachable | Sight::Unknown => {
            Probed::NotReady(format!("the agent of node {node} does not answer for the pod"))
        }
    }
}

fn was_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == READINESS_GATE && condition.status == "True")
}
