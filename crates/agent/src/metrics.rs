//! Prometheus metrics: base units, bounded labels.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dormouse_core::{ProbeKind, ProbeOutcome, Reason, Rung, Transition, WakeSource};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::step_report::StepReport;

/// From half a millisecond to half a minute.
const BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    runtime: &'static str,
    from: &'static str,
    to: &'static str,
    phase: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WakeLabels {
    runtime: &'static str,
    source: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    runtime: &'static str,
    step: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RungLabels {
    rung: &'static str,
    runtime: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuntimeLabels {
    runtime: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLabels {
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunscLabels {
    version: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShellLabels {
    event: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    kind: &'static str,
    result: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// The agent's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    transition: Family<StepLabels, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
    wake: Family<WakeLabels, Counter>,
    wake_seconds: Family<WakeLabels, Histogram, fn() -> Histogram>,
    pause_window: Family<RuntimeLabels, Histogram, fn() -> Histogram>,
    sandboxes: Family<RungLabels, Gauge>,
    shell_events: Family<ShellLabels, Counter>,
    probes: Family<ProbeLabels, Counter>,
    shells: Gauge,
    shell_bytes: Gauge,
    snapshots: Family<KindLabels, Gauge>,
    snapshot_bytes: Family<KindLabels, Gauge>,
    runscs: Family<RunscLabels, Gauge>,
    save_bytes: Family<ByLabels, Counter>,
    saves_waited: Counter<f64, AtomicU64>,
    saves_waiting: Gauge,
    paged_out: Counter,
    prefetched: Counter,
    saved: Gauge,
    gauges: NodeGauges,
}

/// A save that is held up.
#[derive(Debug)]
pub struct Waits(Metrics);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.saves_waiting.dec();
    }
}

/// Figures that are read when somebody asks for them.
#[derive(Debug, Default)]
struct NodeGauges {
    steps_running: Gauge,
    steps_waiting: Gauge,
    swap_free: Gauge,
    swap_total: Gauge,
    zram_used: Gauge,
    frames_seen: Gauge,
    wakes_suppressed: Gauge,
    events_refused: Gauge,
}

/// Figures of the node at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct NodeFigures {
    /// Steps under way.
    pub steps_running: usize,
    /// Steps that wait for their turn.
    pub steps_waiting: usize,
    /// Free swap, in bytes.
    pub swap_free: u64,
    /// All swap, in bytes.
    pub swap_total: u64,
    /// RAM that zram occupies, in bytes.
    pub zram_used: u64,
    /// Bytes that sleepers had resident and have not now.
    pub saved: u64,
    /// Frames that reached the wire loop.
    pub frames_seen: u64,
    /// Wakes that a budget suppressed.
    pub wakes_suppressed: u64,
    /// Events that the wire loop could not hand over at once.
    pub events_refused: u64,
    /// Shells that stand by: how many, and what their processes have in memory, in bytes.
    pub shells: (usize, u64),
    /// Snapshots by kind: how many, and what they take on the disk, in bytes.
    pub snapshots: Vec<(&'static str, u64, u64)>,
    /// Releases of runsc: how each stands, what it is called, and how many snapshots need it.
    pub runscs: Vec<(&'static str, String, u64)>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that nothing has been counted in.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("dormouse");
        let transition = Family::new_with_constructor(histogram as fn() -> Histogram);
        let failures = Family::default();
        let wake = Family::default();
        let wake_seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let pause_window = Family::new_with_constructor(histogram as fn() -> Histogram);
        let sandboxes = Family::default();
        let shell_events = Family::default();
        let probes = Family::default();
        let (shells, shell_bytes) = (Gauge::default(), Gauge::default());
        let (snapshots, snapshot_bytes) = (Family::default(), Family::default());
        let runscs = Family::default();
        let save_bytes = Family::default();
        let (saves_waited, saves_waiting) = (Counter::default(), Gauge::default());
        let (paged_out, prefetched, saved) = (Counter::default(), Counter::default(), Gauge::default());
        let gauges = NodeGauges::default();
        registry.register(
            "build",
            "The agent's version",
            Info::new(vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        );
        registry.register_with_unit(
            "transition",
            "Time of steps on the ladder, by phase; the phases of a step add up to it",
            Unit::Seconds,
            transition.clone(),
        );
        registry.register("step_failures", "Steps that failed, by reason", failures.clone());
        registry.register("wake", "Wakes, by what asked for them", wake.clone());
        registry.register_with_unit(
            "wake",
            "Time from the frame or the order until the guest ran",
            Unit::Seconds,
            wake_seconds.clone(),
        );
        registry.register_with_unit(
            "pause_window",
            "How long running applications stood still for a snapshot",
            Unit::Seconds,
            pause_window.clone(),
        );
        registry.register("sandboxes", "Pods by rung", sandboxes.clone());
        registry.register(
            "shells",
            "Shells that stand by for hibernated pods",
            shells.clone(),
        );
        registry.register_with_unit(
            "shell",
            "What the shells that stand by have in memory",
            Unit::Bytes,
            shell_bytes.clone(),
        );
        registry.register(
            "shell_events",
            "Shells that were made, used and given up, by why",
            shell_events.clone(),
        );
        registry.register(
            "probe",
            "Probes that the agent ran in the kubelet's place, by how they ended",
            probes.clone(),
        );
        registry.register(
            "snapshots",
            "Snapshots on this node, by why they were taken",
            snapshots.clone(),
        );
        registry.register_with_unit(
            "snapshot",
            "What snapshots take on the disk, by why they were taken",
            Unit::Bytes,
            snapshot_bytes.clone(),
        );
        registry.register(
            "runsc_snapshots",
            "Snapshots by the release of runsc that they need, and whether this node can restore with it",
            runscs.clone(),
        );
        registry.register_with_unit(
            "save",
            "What saves brought to the disk, by what asked for them",
            Unit::Bytes,
            save_bytes.clone(),
        );
        registry.register_with_unit(
            "saves_paced",
            "How long saves that nobody waits for were held up by the budget for saves",
            Unit::Seconds,
            saves_waited.clone(),
        );
        registry.register(
            "saves_waiting",
            "Saves that the budget for saves holds up",
            saves_waiting.clone(),
        );
        registry.register_with_unit(
            "paged_out",
            "Memory that sleepers let go of",
            Unit::Bytes,
            paged_out.clone(),
        );
        registry.register_with_unit(
            "prefetched",
            "Memory that the kernel was asked to bring back behind woken guests",
            Unit::Bytes,
            prefetched.clone(),
        );
        registry.register_with_unit(
            "memory_saved",
            "Memory that sleepers had resident before and have not now",
            Unit::Bytes,
            saved.clone(),
        );
        registry.register("steps_running", "Steps under way", gauges.steps_running.clone());
        registry.register(
            "steps_waiting",
            "Steps that wait for admission",
            gauges.steps_waiting.clone(),
        );
        registry.register_with_unit("swap_free", "Free swap", Unit::Bytes, gauges.swap_free.clone());
        registry.register_with_unit("swap_size", "All swap", Unit::Bytes, gauges.swap_total.clone());
        registry.register_with_unit(
            "zram_used",
            "RAM that zram occupies",
            Unit::Bytes,
            gauges.zram_used.clone(),
        );
        registry.register(
            "packet_frames_seen",
            "Frames that the kernel's filters let through since the agent's start",
            gauges.frames_seen.clone(),
        );
        registry.register(
            "packet_wakes_suppressed",
            "Wakes by packet that a budget suppressed since the agent's start",
            gauges.wakes_suppressed.clone(),
        );
        registry.register(
            "packet_events_refused",
            "Events of the wire loop that had to be offered again since the agent's start",
            gauges.events_refused.clone(),
        );
        Self(Arc::new(Inner {
            registry,
            transition,
            failures,
            wake,
            wake_seconds,
            pause_window,
            sandboxes,
            shell_events,
            probes,
            shells,
            shell_bytes,
            snapshots,
            snapshot_bytes,
            runscs,
            save_bytes,
            saves_waited,
            saves_waiting,
            paged_out,
            prefetched,
            saved,
            gauges,
        }))
    }

    /// A step ended on `to`.
    pub fn step(&self, runtime: &'static str, from: Rung, to: Rung, report: &StepReport) {
        let outcome = if report.failure.is_none() { "ok" } else { "failed" };
        let to = if report.failure.is_none() {
            to
        } else {
            report.transition.leads_to(from)
        };
        for phase in &report.phases {
            let labels = StepLabels {
                runtime,
                from: from.as_str(),
                to: to.as_str(),
                phase: phase.name,
                outcome,
            };
            self.0
                .transition
                .get_or_create(&labels)
                .observe(phase.took.as_secs_f64());
        }
        if let Some(failure) = &report.failure {
            self.failed(runtime, report.transition, failure.reason);
        }
        if let Some((before, after)) = report.resident {
            self.0.paged_out.inc_by(before.saturating_sub(after));
        }
    }

    fn failed(&self, runtime: &'static str, transition: Transition, reason: Reason) {
        let step = match transition {
            Transition::Freeze => "freeze",
            Transition::Doze => "doze",
            Transition::Hibernate => "hibernate",
            Transition::Save => "save",
            Transition::Snapshot => "snapshot",
            Transition::Wake(_) => "wake",
            Transition::ColdStart(_) => "cold-start",
            Transition::HousekeepingThaw | Transition::HousekeepingFreeze => "housekeeping",
            Transition::MakeShell => "make-shell",
            Transition::EndShell => "end-shell",
        };
        let labels = FailureLabels {
            runtime,
            step,
            reason: reason.as_str(),
        };
        self.0.failures.get_or_create(&labels).inc();
    }

    /// A shell was made, used or given up.
    pub fn shell(&self, event: &'static str, reason: Reason) {
        let labels = ShellLabels {
            event,
            reason: reason.as_str(),
        };
        self.0.shell_events.get_or_create(&labels).inc();
    }

    /// A probe was run.
    pub fn probed(&self, kind: ProbeKind, outcome: ProbeOutcome) {
        let labels = ProbeLabels {
            kind: kind.as_str(),
            result: outcome.as_str(),
        };
        self.0.probes.get_or_create(&labels).inc();
    }

    /// A running application stood still for a snapshot.
    pub fn paused(&self, runtime: &'static str, window: Duration) {
        self.0
            .pause_window
            .get_or_create(&RuntimeLabels { runtime })
            .observe(window.as_secs_f64());
    }

    /// A wake ended.
    pub fn woken(&self, source: WakeSource, ok: bool, took: Duration, runtime: &'static str) {
        let outcome = if ok { "ok" } else { "failed" };
        let labels = WakeLabels {
            runtime,
            source: source.as_str(),
            outcome,
        };
        self.0.wake.get_or_create(&labels).inc();
        self.0
            .wake_seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// A pod is new, on `rung`.
    pub fn came(&self, rung: Rung, runtime: &'static str) {
        self.0
            .sandboxes
            .get_or_create(&RungLabels {
                rung: rung.as_str(),
                runtime,
            })
            .inc();
    }

    /// A pod moved.
    pub fn moved(&self, from: Rung, to: Rung, runtime: &'static str) {
        if from != to {
            self.gone(from, runtime);
            self.came(to, runtime);
        }
    }

    /// A pod is gone.
    pub fn gone(&self, rung: Rung, runtime: &'static str) {
        self.0
            .sandboxes
            .get_or_create(&RungLabels {
                rung: rung.as_str(),
                runtime,
            })
            .dec();
    }

    /// Pages were brought back.
    pub fn prefetched(&self, bytes: u64, _took: Duration) {
        self.0.prefetched.inc_by(bytes);
    }

    /// Bytes of a save were let through to the disk.
    pub fn save_passed(&self, by: &'static str, bytes: u64) {
        self.0.save_bytes.get_or_create(&ByLabels { by }).inc_by(bytes);
    }

    /// A save is held up, until what this returns is dropped.
    #[must_use]
    pub fn save_waits(&self) -> Waits {
        self.0.saves_waiting.inc();
        Waits(self.clone())
    }

    /// A save was held up for so long.
    pub fn save_waited(&self, time: Duration) {
        self.0.saves_waited.inc_by(time.as_secs_f64());
    }

    /// Saves that are held up now.
    #[must_use]
    pub fn saves_waiting(&self) -> i64 {
        self.0.saves_waiting.get()
    }

    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn render(&self, figures: &NodeFigures) -> String {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let gauges = &self.0.gauges;
        set(&gauges.steps_running, figures.steps_running as u64);
        set(&gauges.steps_waiting, figures.steps_waiting as u64);
        set(&gauges.swap_free, figures.swap_free);
        set(&gauges.swap_total, figures.swap_total);
        set(&gauges.zram_used, figures.zram_used);
        set(&self.0.saved, figures.saved);
        set(&gauges.frames_seen, figures.frames_seen);
        set(&gauges.wakes_suppressed, figures.wakes_suppressed);
        set(&gauges.events_refused, figures.events_refused);
        set(&self.0.shells, figures.shells.0 as u64);
        set(&self.0.shell_bytes, figures.shells.1);
        for (kind, count, bytes) in &figures.snapshots {
            let labels = KindLabels { kind };
            set(&self.0.snapshots.get_or_create(&labels), *count);
            set(&self.0.snapshot_bytes.get_or_create(&labels), *bytes);
        }
        // How a release stands changes, and so do the releases.
        self.0.runscs.clear();
        for (state, version, count) in &figures.runscs {
            let labels = RunscLabels {
                version: version.clone(),
                state,
            };
            set(&self.0.runscs.get_or_create(&labels), *count);
        }
        let mut text = String::new();
        match encode(&mut text, &self.0.registry) {
            Ok(()) => text,
            // Writing to a String fails only if a collector does, and there is none.
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_counted() {
        let metrics = Metrics::new();
        metrics.came(Rung::Running, "gvisor");
        metrics.moved(Rung::Running, Rung::Frozen, "gvisor");
        metrics.woken(WakeSource::Packet, true, Duration::from_millis(3), "gvisor");
        let text = metrics.render(&NodeFigures {
            saved: 5,
            shells: (1, 9),
            snapshots: vec![("hibernate", 2, 7)],
            ..NodeFigures::default()
        });
        assert!(
            text.contains(r#"dormouse_sandboxes{rung="Frozen",runtime="gvisor"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"dormouse_wake_total{runtime="gvisor",source="Packet",outcome="ok"} 1"#),
            "{text}"
        );
        assert!(text.contains("dormouse_memory_saved_bytes 5"), "{text}");
        assert!(
            text.contains(r#"dormouse_snapshot_bytes{kind="hibernate"} 7"#),
            "{text}"
        );
        assert!(text.contains("dormouse_shells 1\n"), "{text}");
        assert!(text.contains("dormouse_shell_bytes 9\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
