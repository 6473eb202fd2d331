//! Warm pools and how they would serve the claims that came. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_api::extensions::{PoolDemand, SandboxTemplate, SandboxWarmPool, Standby};
use dormouse_api::quantity::{MEMORY_ASLEEP, bytes, memory_requests};
use dormouse_core::{PoolAdvice, PoolRecord, Rung};
use dormouse_output::{mib, or_dash, span, table};
use serde::Serialize;

/// A pool, what is known of its claims, and what follows from that, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolView {
    namespace: String,
    name: String,
    now: Now,
    /// What its controller has recorded; absent if no claim came, or nobody records.
    #[serde(skip_serializing_if = "Option::is_none")]
    demand: Option<PoolDemand>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<Advised>,
}

/// How it is sized now.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Now {
    replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_ready: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ready: Option<i32>,
    standby: &'static str,
    awake: i32,
}

/// How it would serve the same claims.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Advised {
    claims_per_second: f64,
    min_ready: usize,
    max_ready: usize,
    standby: &'static str,
    awake: usize,
    /// Whether the record is short.
    little_to_go_by: bool,
    /// What `maxReady` standbys request if all run; absent if the template is not known, or requests no memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    running_bytes: Option<u64>,
    /// What they request where they sleep as advised.
    #[serde(skip_serializing_if = "Option::is_none")]
    asleep_bytes: Option<u64>,
}

impl PoolView {
    /// All of them, by name. `templates`: by namespace and name, as far as they are known.
    pub(crate) fn all(
        pools: &[SandboxWarmPool],
        templates: &BTreeMap<(String, String), SandboxTemplate>,
    ) -> Vec<Self> {
        let mut views: Vec<Self> = pools
            .iter()
            .map(|pool| {
                let namespace = pool.metadata.namespace.clone().unwrap_or_default();
                let template = (namespace, pool.spec.sandbox_template_ref.name.clone());
                Self::new(pool, templates.get(&template))
            })
            .collect();
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        views
    }

    fn new(pool: &SandboxWarmPool, template: Option<&SandboxTemplate>) -> Self {
        let spec = &pool.spec;
        let demand = pool.status.as_ref().and_then(|status| status.demand.clone());
        let record = demand.as_ref().map(record);
        let advice = record.and_then(|record| Some(Advised::new(&record, &record.advice()?, template)));
        Self {
            namespace: pool.metadata.namespace.clone().unwrap_or_default(),
            name: pool.metadata.name.clone().unwrap_or_default(),
            now: Now {
                replicas: spec.replicas,
                min_ready: spec.min_ready,
                max_ready: spec.max_ready,
                standby: rung(spec.standby.unwrap_or_default()).as_str(),
                awake: spec.awake.unwrap_or_default(),
            },
            demand,
            advice,
        }
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![or_dash(&self.namespace), or_dash(&self.name), self.now.text()];
        let (Some(demand), Some(advice)) = (&self.demand, &self.advice) else {
            row.extend(std::iter::repeat_n("-".to_owned(), 9));
            return row;
        };
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), mib);
        let mark = if advice.little_to_go_by { "*" } else { "" };
        row.extend([
            format!("{}{mark}", rate(advice.claims_per_second)),
            demand.blocked.to_string(),
            span(refill(demand)),
            advice.min_ready.to_string(),
            advice.max_ready.to_string(),
            advice.standby.to_owned(),
            advice.awake.to_string(),
            bytes(advice.running_bytes),
            bytes(advice.asleep_bytes),
        ]);
        row
    }
}

impl Now {
    fn text(&self) -> String {
        let size = match (self.min_ready, self.max_ready) {
            (None, None) => self.replicas.to_string(),
            (Some(least), Some(most)) => format!("{least}..{most}"),
            (Some(least), None) => format!("{least}..{}", self.replicas.max(least)),
            (None, Some(most)) => format!("{}..{most}", self.replicas.min(most)),
        };
        format!("{size} {}", self.standby)
    }
}

impl Advised {
    fn new(record: &PoolRecord, advice: &PoolAdvice, template: Option<&SandboxTemplate>) -> Self {
        let containers = template.map(|template| template.spec.pod_template.spec.containers.as_slice());
        let full = containers.and_then(memory_requests);
        let gives_away = matches!(advice.standby, Rung::Dozing | Rung::Hibernated);
        let small = containers.and_then(|containers| {
            let small = bytes(MEMORY_ASLEEP).filter(|_| gives_away).unwrap_or(u64::MAX);
            let each = containers
                .iter()
                .filter_map(|container| memory_requests(std::slice::from_ref(container)));
            each.map(|each| each.min(small)).reduce(u64::saturating_add)
        });
        let of = |count: usize, each: u64| u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(each);
        let asleep = advice.max_ready.saturating_sub(advice.awake);
        Self {
            claims_per_second: record.rate(),
            min_ready: advice.min_ready,
            max_ready: advice.max_ready,
            standby: advice.standby.as_str(),
            awake: advice.awake,
            little_to_go_by: advice.little_to_go_by,
            running_bytes: full.map(|full| of(advice.max_ready, full)),
            asleep_bytes: full
                .zip(small)
                .map(|(full, small)| of(advice.awake, full).saturating_add(of(asleep, small))),
        }
    }
}

fn record(demand: &PoolDemand) -> PoolRecord {
    let over = demand.until.0.duration_since(demand.since.0);
    PoolRecord {
        over: Duration::try_from(over).unwrap_or_default(),
        claims: u64::try_from(demand.claims).unwrap_or_default(),
        refill: refill(demand),
        most_needed: usize::try_from(demand.most_needed).unwrap_or_default(),
    }
}

fn refill(demand: &PoolDemand) -> Duration {
    Duration::from_millis(u64::try_from(demand.refill_milliseconds).unwrap_or_default())
}

const fn rung(standby: Standby) -> Rung {
    match standby {
        Standby::Running => Rung::Running,
        Standby::Frozen => Rung::Frozen,
        Standby::Dozing => Rung::Dozing,
        Standby::Hibernated => Rung::Hibernated,
    }
}

/// By the second, minute or hour, so that it is a number that people can read.
fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 1.0 => format!("{rate:.1}/s"),
        rate if rate * 60.0 >= 1.0 => format!("{:.1}/min", rate * 60.0),
        rate => format!("{:.1}/h", rate * 3600.0),
    }
}

/// For people.
pub(crate) fn advice_table(views: &[PoolView]) -> String {
    if views.is_empty() {
        return "no warm pools".to_owned();
    }
    let header = [
        "NAMESPACE",
        "POOL",
        "NOW",
        ">CLAIMS",
        ">BLOCKED",
        ">REFILL",
        ">MINREADY",
        ">MAXREADY",
        "STANDBY",
        ">AWAKE",
        ">IF RUNNING",
        ">ASLEEP",
    ];
    let mut text = table(&header, views.iter().map(PoolView::row).collect());
    let any = |of: fn(&PoolView) -> bool| views.iter().any(of);
    if any(|view| view.advice.is_some()) {
        text.push_str(
            "\n\nFrom MINREADY on: what would serve the claims of the last day. IF RUNNING, ASLEEP: memory that MAXREADY standbys \
             request. Nothing is changed.",
        );
    }
    if any(|view| view.advice.as_ref().is_some_and(|advice| advice.little_to_go_by)) {
        text.push_str("\n* fewer than ten claims, or a record of less than ten minutes: little to go by");
    }
    if any(|view| view.advice.is_none()) {
        text.push_str("\n-: no claim has come since the controller began, or it is none of Dormouse");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(name: &str, spec: &Value, demand: Option<Value>) -> SandboxWarmPool {
        let mut pool = json!({
            "metadata": {"name": name, "namespace": "team"},
            "spec": {"sandboxTemplateRef": {"name": "python"}},
            "status": {"replicas": 3},
        });
        for (key, value) in spec.as_object().unwrap() {
            pool["spec"][key] = value.clone();
        }
        if let Some(demand) = demand {
            pool["status"]["demand"] = demand;
        }
        serde_json::from_value(pool).unwrap()
    }

    fn demand(claims: u64) -> Option<Value> {
        Some(json!({
            "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T01:00:00Z", "claims": claims, "blocked": 4,
            "refillMilliseconds": 40_000, "mostNeeded": 14,
        }))
    }

    fn views(pools: &[SandboxWarmPool], memory: &str) -> Vec<PoolView> {
        let mut template = SandboxTemplate::default();
        template.spec.pod_template.spec.containers =
            serde_json::from_value(json!([{"name": "c", "resources": {"requests": {"memory": memory}}}]))
                .unwrap();
        let templates = BTreeMap::from([(("team".to_owned(), "python".to_owned()), template)]);
        PoolView::all(pools, &templates)
    }

    #[test]
    fn what_is_advised_is_made_of_the_record() {
        let pools = [
            pool("used", &json!({"replicas": 50}), demand(450)),
            pool(
                "idle",
                &json!({"minReady": 1, "maxReady": 4, "standby": "Dozing"}),
                None,
            ),
        ];
        let views = views(&pools, "256Mi");
        let value = serde_json::to_value(&views).unwrap();
        assert_eq!(value[0]["name"], "idle");
        assert!(value[0].get("advice").is_none());
        let advice = &value[1]["advice"];
        // One in eight seconds for forty: a mean of 5.
        assert_eq!(
            (&advice["minReady"], &advice["maxReady"]),
            (&json!(10), &json!(14))
        );
        assert_eq!(
            (&advice["standby"], &advice["awake"]),
            (&json!("Dozing"), &json!(1))
        );
        assert_eq!(advice["runningBytes"], json!((14_u64 * 256) << 20));
        assert_eq!(advice["asleepBytes"], json!((256 + 13 * 16) << 20));
        let text = advice_table(&views);
        assert!(text.contains("1..4 Dozing"), "{text}");
        assert!(text.contains("50 Running") && text.contains("7.5/min"), "{text}");
        assert!(
            text.contains("no claim has come") && !text.contains('*'),
            "{text}"
        );
    }

    #[test]
    fn little_to_go_by_is_said_and_what_is_not_known_is_not_invented() {
        let views = views(&[pool("used", &json!({}), demand(3))], "none");
        let text = advice_table(&views);
        assert!(
            text.contains("3.0/h*") && text.contains("little to go by"),
            "{text}"
        );
        assert!(
            serde_json::to_value(&views).unwrap()[0]["advice"]
                .get("runningBytes")
                .is_none()
        );
        assert_eq!(advice_table(&[]), "no warm pools");
    }
}
