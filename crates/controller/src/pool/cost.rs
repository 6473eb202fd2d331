//! What a standby costs, and would cost awake.

use dormouse_api::agents::Sandbox;
use dormouse_api::quantity::memory_requests;
use dormouse_core::Rung;
use k8s_openapi::api::core::v1::Pod;

use crate::agents::GuestMemory;

/// What one standby costs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cost {
    /// In memory, by its agent.
    pub(crate) resident: u64,
    /// The same, and before it went to sleep where it sleeps.
    pub(crate) awake: u64,
    /// Out of memory in swap, before it was compressed.
    pub(crate) swapped: u64,
    /// In snapshots on its node's disk.
    pub(crate) snapshots: u64,
    /// Requested now.
    pub(crate) requested: u64,
    /// Requested where it runs.
    pub(crate) requested_awake: u64,
}

impl Cost {
    pub(crate) fn of(
        sandbox: &Sandbox,
        pod: Option<&Pod>,
        memory: Option<GuestMemory>,
        snapshots: u64,
    ) -> Self {
        let wanted = memory_requests(&sandbox.spec.pod_template.spec.containers).unwrap_or_default();
        let now = pod
            .and_then(|pod| pod.spec.as_ref())
            .and_then(|spec| memory_requests(&spec.containers));
        let resident = memory.map_or(0, |memory| memory.resident);
        let awake = memory.map_or(0, |memory| match memory.rung {
            // What the last sleep left out may have come back since, and more.
            Rung::Running => memory.resident,
            _ => memory.resident_before.max(memory.resident),
        });
        let dozes = memory.is_some_and(|memory| memory.rung == Rung::Dozing);
        Self {
            resident,
            awake,
            swapped: if dozes { awake.saturating_sub(resident) } else { 0 },
            snapshots,
            requested: now.unwrap_or(wanted),
            requested_awake: wanted,
        }
    }

    pub(crate) const fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("resident", self.resident),
            ("awake", self.awake),
            ("swapped", self.swapped),
            ("snapshots", self.snapshots),
            ("requested", self.requested),
            ("requested_awake", self.requested_awake),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_costs_what_is_left_of_it_and_would_cost_what_it_had() {
        let cost = |rung, resident, resident_before| {
            let memory = GuestMemory {
                rung,
                resident,
                resident_before,
            };
            let cost = Cost::of(&Sandbox::default(), None, Some(memory), 5);
            (cost.resident, cost.awake, cost.swapped, cost.snapshots)
        };
        assert_eq!(cost(Rung::Running, 60, 50), (60, 60, 0, 5));
        assert_eq!(cost(Rung::Frozen, 60, 61), (60, 61, 0, 5));
        assert_eq!(cost(Rung::Dozing, 8, 60), (8, 60, 52, 5));
        assert_eq!(cost(Rung::Hibernated, 0, 60), (0, 60, 0, 5));
        // An agent that has never seen it awake does not say.
        assert_eq!(cost(Rung::Dozing, 8, 0), (8, 8, 0, 5));
        assert_eq!(Cost::of(&Sandbox::default(), None, None, 0), Cost::default());
    }

    #[test]
    fn requests_are_the_pods_and_those_of_its_template() {
        let containers = |memory: &str| {
            let container = serde_json::json!([{"name": "c", "resources": {"requests": {"memory": memory}}}]);
            serde_json::from_value(container).unwrap()
        };
        let mut sandbox = Sandbox::default();
        sandbox.spec.pod_template.spec.containers = containers("512");
        let mut pod = Pod::default();
        pod.spec.get_or_insert_default().containers = containers("16");
        let cost = Cost::of(&sandbox, Some(&pod), None, 0);
        assert_eq!((cost.requested, cost.requested_awake), (16, 512));
        let cost = Cost::of(&sandbox, None, None, 0);
        assert_eq!((cost.requested, cost.requested_awake), (512, 512));
    }
}
