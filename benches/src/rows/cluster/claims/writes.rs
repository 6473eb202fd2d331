//! What is written for a claim that gets a standby: until it is ready, and in all.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dormouse_testkit::guest::remembers_a_word;
use futures::StreamExt;
use futures::stream::BoxStream;
use kube::Api;
use kube::api::{DynamicObject, WatchEvent, WatchParams};
use serde_json::{Value, json};

use super::pool::{Pool, claim, pod_template};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::rows::cluster::site::{Site, create, is};
use crate::rows::cluster::watched::Watched;
use crate::samples::Series;

/// Longer than all this takes: what the controller writes is for claims, and not for the standbys in their place.
const NO_REFILL: &str = "controller.args[0]=--sandbox-warm-pool-replenish-delay=1h";
/// After everything has settled nothing comes any more: what is there comes at once.
const DRAINED: Duration = Duration::from_millis(200);
/// What agent-sandbox's own controller writes for a warm claim, events apart, by its source at 1.0: the claim's annotation,
/// the Sandbox, the claim's status, the time when it was ready, and at times the Sandbox once more.
const UPSTREAM: &str = "agent-sandbox's: 4 to 5";

pub(super) async fn measure(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    site.upgrade(&[NO_REFILL]).await?;
    for (name, rung) in [("written-running", None), ("written-frozen", Some("Frozen"))] {
        say(format!("writes per claim, {name}"));
        let template = pod_template(8, &remembers_a_word(8));
        let pool = Pool::make(site, name, &template, plan.n_writes, rung, &json!({})).await?;
        pool.settled().await?;
        let shown = rung.unwrap_or("Running");
        let mut until_ready = Series::new(format!("writes until Ready, standby {shown}"), "writes");
        let mut beside = Series::new(
            format!("status of the Sandbox until then, standby {shown}"),
            "writes",
        );
        let mut in_all = Series::new(format!("writes in all, standby {shown}"), "writes");
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        for round in 0..plan.n_writes {
            let name = format!("{name}-{round}");
            let before = site.settled().await?;
            let mut changes = [
                Changes::begin(&site.claims()).await?,
                Changes::begin(&site.sandboxes()).await?,
            ];
            let mut seen = Watched::begin(site.claims(), &name).await?;
            create(&site.claims(), &claim(&name, &pool.name)).await?;
            let ready = seen.until("to be ready", |it| is(it, "Ready", "True")).await?;
            let ready = revision(&ready.object)?;
            let after = site.settled().await?;
            let [of_claims, of_sandboxes] = &mut changes;
            let (of_claims, of_sandboxes) = (of_claims.until(ready).await?, of_sandboxes.until(ready).await?);
            let on_path = of_claims.all + of_sandboxes.all - of_sandboxes.of_status;
            let mut all = 0;
            for (kind, count) in &after {
                let more = count - before.get(kind).copied().unwrap_or_default();
                all += more;
                *kinds.entry(kind.clone()).or_default() += more;
            }
            until_ready.push(f64::from(on_path));
            beside.push(f64::from(of_sandboxes.of_status));
            in_all.push(all as f64);
        }
        row.line(
            Line::new(
                format!("API writes per warm claim, standby {shown}: until Ready; in all"),
                format!("2; {UPSTREAM}"),
            )
            .measured(format!(
                "{} (and {} to {} of the Sandbox's status beside them); {} to {}",
                until_ready.samples.max(),
                beside.samples.min(),
                beside.samples.max(),
                in_all.samples.min(),
                in_all.samples.max()
            ))
            .n(plan.n_writes)
            .at_most("until Ready", until_ready.samples.max(), 2.0),
        );
        let kinds: Vec<String> = kinds
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{kind} {:.1}", count as f64 / f64::from(plan.n_writes)))
            .collect();
        row.note(format!("{}: {}", in_all.name, kinds.join(", ")));
        row.series.extend([until_ready, beside, in_all]);
        pool.remove().await?;
    }
    row.note(
        "Writes until Ready: changes of the claim and of Sandboxes that a watch shows up to the revision in which the claim is \
         ready; what its own reconcile writes to the Sandbox's status in that time is no step towards it, and stands beside. In \
         all: by the controller's own count, until it has written nothing for three seconds; its pool is not filled up meanwhile.",
    );
    Ok(())
}

/// Changes of objects of a kind from now on.
struct Changes {
    events: BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>,
    /// Each object without its status, as it was last seen.
    seen: HashMap<String, Value>,
}

/// How many there were.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    /// Of anything.
    all: u32,
    /// Of nothing but the status.
    of_status: u32,
}

impl Changes {
    async fn begin(api: &Api<DynamicObject>) -> Result<Self> {
        // Those that there are come as added.
        let events = api.watch(&WatchParams::default().timeout(290), "0").await;
        Ok(Self {
            events: events.context("begin to watch")?.boxed(),
            seen: HashMap::new(),
        })
    }

    /// How many there were up to a revision, of all that have come.
    async fn until(&mut self, last: u64) -> Result<Count> {
        let mut count = Count::default();
        while let Ok(Some(event)) = tokio::time::timeout(DRAINED, self.events.next()).await {
            match event.context("watch")? {
                WatchEvent::Added(object) => {
                    self.is_of_status(&object);
                }
                WatchEvent::Modified(object) => {
                    let of_status = self.is_of_status(&object);
                    if revision(&object)? <= last {
                        count.all += 1;
                        count.of_status += u32::from(of_status);
                    }
                }
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => bail!("watch: {status:?}"),
            }
        }
        Ok(count)
    }

    /// Takes note of an object; whether it is as it was but for its status.
    fn is_of_status(&mut self, object: &DynamicObject) -> bool {
        let mut meta = object.metadata.clone();
        (meta.resource_version, meta.managed_fields) = (None, None);
        let name = meta.name.clone().unwrap_or_default();
        let rest = json!({"metadata": meta, "spec": object.data["spec"]});
        self.seen
            .insert(name, rest.clone())
            .is_some_and(|before| before == rest)
    }
}

/// The API server numbers all changes in one row.
fn revision(object: &DynamicObject) -> Result<u64> {
    let version = object.metadata.resource_version.as_deref().unwrap_or_default();
    version.parse().context("a resource version that is no number")
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use kube::api::WatchEvent;
    use serde_json::{Value, json};

    use super::{Changes, Count};

    #[tokio::test]
    async fn changes_of_the_status_are_told_from_others_and_later_ones_do_not_count() {
        let event = |type_: &str, version: u32, label: &str, status: &str| -> WatchEvent<_> {
            let object: Value = json!({
                "apiVersion": "v1", "kind": "Any",
                "metadata": {"name": "one", "resourceVersion": version.to_string(), "labels": {"label": label}},
                "status": status,
            });
            serde_json::from_value(json!({"type": type_, "object": object})).unwrap()
        };
        let all = [
            event("ADDED", 5, "a", "1"),
            event("MODIFIED", 6, "b", "1"),
            event("MODIFIED", 7, "b", "2"),
            event("MODIFIED", 8, "c", "2"),
        ];
        let mut changes = Changes {
            events: stream::iter(all.map(Ok)).boxed(),
            seen: Default::default(),
        };
        let count = changes.until(7).await.unwrap();
        assert_eq!(count, Count { all: 2, of_status: 1 });
    }
}
