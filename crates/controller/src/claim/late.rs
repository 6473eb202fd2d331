//! The environment of a claim on a standby that runs already: what can be given to it, and what is still to be given.
//!
//! The variables go into the Sandbox with the write that makes it the claim's, so that every later pod is started with them.
//! The pod that is there gets them as a file, where it has said at its birth that it takes them; which pod that is stands in
//! an annotation of the same write.

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::extensions::{InjectionPolicy, SandboxClaim, SandboxTemplate};
use dormouse_api::names::annotations;
use dormouse_core::{LateEnv, Variables};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::deliver::Attempt;
use super::{Observed, cold, status};
use crate::objects::{self, is_true};

/// What one container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its name.
    pub(super) container: String,
    /// The variables.
    pub(super) variables: Variables,
}

/// What the write says of the environment that makes a standby the claim's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Taken {
    /// The containers as every later pod is to have them.
    pub(super) containers: Vec<Container>,
    /// UID of the pod that there is, which was started without.
    pub(super) pod: String,
}

/// How the environment of the claim's sandbox stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Environment {
    /// It has not been delivered in this look.
    #[default]
    Untried,
    /// It is on its way, or could not be delivered yet.
    UnderWay {
        /// Why it is not there yet; empty = it is on its way.
        why: String,
    },
    /// It is there.
    Delivered {
        /// UID of the pod.
        pod: String,
    },
}

impl Environment {
    /// How it stands after that attempt.
    pub(super) fn of(attempt: Option<&Attempt>) -> Self {
        match attempt.and_then(Attempt::delivered) {
            Some(pod) => Self::Delivered { pod: pod.to_owned() },
            None => Self::Untried,
        }
    }
}

/// Whether a standby may do for a claim that brings an environment. Whether the template allows the variables at all is
/// another matter, and the same on every way.
pub(super) fn may_be_late(observed: &Observed, template: &SandboxTemplate) -> bool {
    let claim = &*observed.claim;
    let pod = &template.spec.pod_template;
    claim.spec.volume_claim_templates.is_empty()
        && !observed.env_fails
        && refusal(claim).is_none()
        && asks_for_it(pod.metadata.as_ref().and_then(|meta| meta.annotations.as_ref()))
        && parts(claim, &pod.spec).is_some()
}

/// What a standby takes of a claim's environment; `None`: it would not do. It may be of an older template than the claim's.
pub(super) fn taken(
    standby: &Sandbox,
    pod: Option<String>,
    claim: &SandboxClaim,
    policy: InjectionPolicy,
) -> Option<Taken> {
    let template = &standby.spec.pod_template;
    let meta = template.metadata.as_ref();
    if !asks_for_it(meta.and_then(|meta| meta.annotations.as_ref())) {
        return None;
    }
    parts(claim, &template.spec)?;
    let mut spec = template.spec.clone();
    cold::inject(&mut spec, &claim.spec.env, policy).ok()?;
    Some(Taken {
        containers: spec.containers,
        pod: pod?,
    })
}

fn asks_for_it(annotations: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    annotations.is_some_and(|all| matches!(LateEnv::from_annotations(all), Ok(Some(_))))
}

/// What each container gets; `None` if only a pod that is started with the environment has what the claim asks for.
pub(super) fn parts(claim: &SandboxClaim, spec: &PodSpec) -> Option<Vec<Part>> {
    let first = spec.containers.first()?;
    let mut parts: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for variable in &claim.spec.env {
        let named = variable.container_name.as_deref().filter(|name| !name.is_empty());
        let container = named.unwrap_or(&first.name);
        // One for an init container comes too late.
        if is_expanded(&variable.value) || !spec.containers.iter().any(|there| there.name == container) {
            return None;
        }
        let pair = (variable.name.clone(), variable.value.clone());
        match parts.iter_mut().find(|(name, _)| *name == container) {
            Some((_, pairs)) => pairs.push(pair),
            None => parts.push((container, vec![pair])),
        }
    }
    let parts = parts.into_iter().map(|(container, pairs)| {
        Some(Part {
            container: container.to_owned(),
            variables: Variables::new(pairs).ok()?,
        })
    });
    parts.collect()
}

/// Whether kubelet makes something else of a value before it starts a container with it: `$(NAME)` is replaced, and `$$` is
/// a `$`.
fn is_expanded(value: &str) -> bool {
    value.contains("$(") || value.contains("$$")
}

/// UID of the pod that was started before the sandbox had its environment; `None` if there never was one.
pub(super) fn born_without(sandbox: &Sandbox) -> Option<&str> {
    objects::annotation(&sandbox.metadata, annotations::LATE_ENV_POD).filter(|pod| !pod.is_empty())
}

/// Why the environment could not be delivered, if it was given up.
pub(super) fn refusal(claim: &SandboxClaim) -> Option<&str> {
    objects::annotation(&claim.metadata, annotations::LATE_ENV_REFUSED)
}

/// UID of the pod of a sandbox that runs without the environment that it was born without, as far as is known, and whose
/// claim has not been told otherwise.
pub(super) fn due<'a>(observed: &Observed, sandbox: &'a Sandbox) -> Option<&'a str> {
    let born = born_without(sandbox)?;
    let claim = &*observed.claim;
    let is_another = observed.pod_of(sandbox).is_some_and(|pod| pod != born);
    let is_noted = objects::annotation(&claim.metadata, annotations::LATE_ENV_DELIVERED) == Some(born);
    let is_done = matches!(&observed.environment, Environment::Delivered { pod } if pod == born);
    // A claim is told that it is ready only after that, so this is a record, too.
    let is_told = claim.status.as_ref().is_some_and(|said| {
        is_true(&said.conditions, READY) && status::sandbox_name(said) == sandbox.metadata.name.as_deref()
    });
    (!is_another && !is_noted && !is_done && !is_told).then_some(born)
}

#[cfg(test)]
mod tests {
    use dormouse_api::extensions::ClaimEnv;

    use super::*;

    fn asking(all: &[(&str, &str, Option<&str>)]) -> SandboxClaim {
        let mut claim = SandboxClaim::default();
        let env = all.iter().map(|&(name, value, container)| ClaimEnv {
            name: name.to_owned(),
            value: value.to_owned(),
            container_name: container.map(str::to_owned),
        });
        claim.spec.env = env.collect();
        claim
    }

    fn of(names: &[&str], init: &str) -> PodSpec {
        let container = |name: &str| Container {
            name: name.to_owned(),
            ..Container::default()
        };
        PodSpec {
            containers: names.iter().map(|name| container(name)).collect(),
            init_containers: Some(vec![container(init)]),
            ..PodSpec::default()
        }
    }

    #[test]
    fn each_container_gets_what_is_for_it_and_the_first_one_the_rest() {
        let claim = asking(&[
            ("A", "1", None),
            ("B", "2", Some("side")),
            ("C", "3", Some("main")),
            ("D", "4", Some("")),
        ]);
        let parts = parts(&claim, &of(&["main", "side"], "init")).unwrap();
        let shown: Vec<(&str, String)> = parts
            .iter()
            .map(|part| (part.container.as_str(), part.variables.to_file()))
            .collect();
        assert_eq!(
            shown,
            [
                ("main", "A='1'\nC='3'\nD='4'\n".to_owned()),
                ("side", "B='2'\n".to_owned())
            ]
        );
    }

    #[test]
    fn what_only_a_new_pod_can_have_is_not_given_late() {
        let spec = of(&["main"], "init");
        for (name, value, container) in [
            ("A", "1", Some("init")),
            ("A", "1", Some("nowhere")),
            ("A", "$(HOME)/x", None),
            ("A", "a$$b", None),
            ("not.a.name", "1", None),
            ("A", "a\0b", None),
        ] {
            assert_eq!(
                parts(&asking(&[(name, value, container)]), &spec),
                None,
                "{name}={value:?}"
            );
        }
        assert!(parts(&asking(&[("A", "a$b `c` $", None)]), &spec).is_some());
        assert_eq!(parts(&asking(&[("A", "1", None)]), &PodSpec::default()), None);
    }
}
