//! What the index holds, and which events a new look at a pod makes. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::event::PodEvent;
use crate::exec::is_probes;
use crate::pod::Pod;
use crate::signal::Signal;

/// The pods that are known.
#[derive(Debug, Default)]
pub(crate) struct State {
    pods: HashMap<String, Arc<Pod>>,
    /// Container id -> pod sandbox id.
    containers: HashMap<String, String>,
}

impl State {
    pub(crate) fn get(&self, sandbox_id: &str) -> Option<&Arc<Pod>> {
        self.pods.get(sandbox_id)
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// The pod sandbox that a container belongs to, or is.
    pub(crate) fn sandbox_of(&self, container_id: &str) -> Option<&str> {
        if self.pods.contains_key(container_id) {
            return self.pods.get_key_value(container_id).map(|(id, _)| id.as_str());
        }
        self.containers.get(container_id).map(String::as_str)
    }

    /// Takes in a pod as it was just seen.
    pub(crate) fn upsert(&mut self, pod: Pod) -> Option<PodEvent> {
        let before = self.pods.get(&pod.sandbox_id);
        if before.is_some_and(|before| **before == pod) {
            return None;
        }
        let known = before.is_some();
        self.containers.retain(|_, sandbox| *sandbox != pod.sandbox_id);
        for container in &pod.containers {
            self.containers
                .insert(container.id.clone(), pod.sandbox_id.clone());
        }
        let pod = Arc::new(pod);
        self.pods.insert(pod.sandbox_id.clone(), Arc::clone(&pod));
        Some(if known {
            PodEvent::Changed(pod)
        } else {
            PodEvent::Added(pod)
        })
    }

    /// Forgets a pod sandbox that is gone.
    pub(crate) fn remove(&mut self, sandbox_id: &str) -> Option<PodEvent> {
        let pod = self.pods.remove(sandbox_id)?;
        self.containers.retain(|_, sandbox| sandbox != sandbox_id);
        Some(PodEvent::Removed {
            sandbox_id: pod.sandbox_id.clone(),
            uid: pod.uid.clone(),
        })
    }

    /// The pod sandboxes that are known but were not listed.
    pub(crate) fn missing_from(&self, listed: &HashSet<String>) -> Vec<String> {
        self.pods
            .keys()
            .filter(|id| !listed.contains(*id))
            .cloned()
            .collect()
    }

    /// What a signal tells the listener about a known pod; `None` if it tells nothing by itself.
    pub(crate) fn tell(&self, signal: &Signal) -> Option<PodEvent> {
        let sandbox_id = self.sandbox_of(signal.container_id())?.to_owned();
        Some(match signal.clone() {
            Signal::ExecAdded { exec_id, .. }
            | Signal::ExecStarted { exec_id, .. }
            | Signal::ExecEnded { exec_id, .. }
                if is_probes(&exec_id) =>
            {
                return None;
            }
            Signal::Touched { .. } | Signal::TaskStarted { .. } => return None,
            Signal::TaskExited {
                container_id,
                exit_status,
            } => PodEvent::ContainerExited {
                sandbox_id,
                container_id,
                exit_status,
            },
            Signal::ExecAdded {
                container_id,
                exec_id,
            } => PodEvent::ExecAdded {
                sandbox_id,
                container_id,
                exec_id,
            },
            Signal::ExecStarted {
                container_id,
                exec_id,
            } => PodEvent::ExecStarted {
                sandbox_id,
                container_id,
                exec_id,
            },
            Signal::ExecEnded {
                container_id,
                exec_id,
            } => PodEvent::ExecEnded {
                sandbox_id,
                container_id,
                exec_id,
            },
            Signal::OutOfMemory { container_id } => PodEvent::OutOfMemory {
                sandbox_id,
                container_id,
            },
            Signal::Paused { container_id, paused } => PodEvent::TaskPaused {
                sandbox_id,
                container_id,
                paused,
            },
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::*;
    use crate::pod::{Container, ContainerState};

    pub(crate) fn pod(id: &str) -> Pod {
        Pod {
            uid: format!("uid-{id}"),
            name: id.into(),
            namespace: "default".into(),
            sandbox_id: id.into(),
            attempt: 0,
            handler: "dormouse-gvisor".into(),
            runtime_type: crate::parse::GVISOR.into(),
            runtime_roots: vec![],
            annotations: BTreeMap::new(),
            labels: BTreeMap::new(),
            cgroup_parent: "/dormouse/poduid".into(),
            netns: None,
            sandbox_pid: 1,
            addresses: vec![],
            containers: vec![],
            ready: true,
            created: SystemTime::UNIX_EPOCH,
            termination_grace: None,
            log_directory: PathBuf::new(),
        }
    }

    fn container(id: &str) -> Container {
        Container {
            id: id.into(),
            name: id.into(),
            image: String::new(),
            pid: 7,
            running: true,
            state: ContainerState::Running,
            attempt: 0,
        }
    }

    #[test]
    fn added_changed_same_removed() {
        let mut state = State::default();
        assert!(matches!(state.upsert(pod("a")), Some(PodEvent::Added(_))));
        assert_eq!(state.upsert(pod("a")), None);
        let mut changed = pod("a");
        changed.containers.push(container("c"));
        assert!(matches!(state.upsert(changed), Some(PodEvent::Changed(_))));
        assert_eq!(state.sandbox_of("c"), Some("a"));
        assert_eq!(state.sandbox_of("a"), Some("a"));
        assert!(matches!(state.remove("a"), Some(PodEvent::Removed { .. })));
        assert_eq!(state.remove("a"), None);
        assert_eq!(state.sandbox_of("c"), None);
    }

    #[test]
    fn a_signal_about_a_stranger_tells_nothing() {
        let mut state = State::default();
        let exec = Signal::ExecStarted {
            container_id: "c".into(),
            exec_id: "e".into(),
        };
        assert_eq!(state.tell(&exec), None);
        let mut known = pod("a");
        known.containers.push(container("c"));
        state.upsert(known);
        assert_eq!(
            state.tell(&exec),
            Some(PodEvent::ExecStarted {
                sandbox_id: "a".into(),
                container_id: "c".into(),
                exec_id: "e".into()
            })
        );
        assert_eq!(
            state.tell(&Signal::Touched {
                container_id: "c".into()
            }),
            None
        );
        let probe = Signal::ExecStarted {
            container_id: "c".into(),
            exec_id: "dormouse-probe-1-2".into(),
        };
        assert_eq!(state.tell(&probe), None, "nobody wants the pod");
    }

    #[test]
    fn what_was_not_listed_is_missing() {
        let mut state = State::default();
        state.upsert(pod("a"));
        state.upsert(pod("b"));
        assert_eq!(state.missing_from(&HashSet::from(["a".to_owned()])), ["b"]);
    }
}
