//! Claims, many of them, and when a client that watches sees each of them ready.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kube::Api;
use kube::api::{DynamicObject, ListParams, WatchEvent, WatchParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::pool::claim;
use crate::rows::cluster::site::{Site, create, is};
use crate::samples::{Samples, ms};

/// How long claims may take, all together, after the last was sent.
const LONG: Duration = Duration::from_secs(300);

/// Claims of a pool.
pub(super) struct Load<'a> {
    site: &'a Site,
    pool: &'a str,
}

/// A claim that was sent, and became ready.
struct Done {
    name: String,
    sent: Instant,
    ready: Instant,
}

/// Claims that were sent, and became ready.
pub(super) struct Outcome {
    done: Vec<Done>,
    /// How late the latest was sent.
    pub(super) latest_ms: f64,
}

impl Outcome {
    pub(super) fn latencies(&self) -> Samples {
        Samples(self.done.iter().map(|one| ms(one.ready - one.sent)).collect())
    }

    /// The latencies of those that were sent first, so many at most.
    pub(super) fn first(&self, count: usize) -> Samples {
        let mut all: Vec<&Done> = self.done.iter().collect();
        all.sort_by_key(|one| one.sent);
        let first = all.into_iter().take(count);
        Samples(first.map(|one| ms(one.ready - one.sent)).collect())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.done.iter().map(|one| one.name.clone()).collect()
    }

    /// From before the first was sent until the last was ready.
    pub(super) fn per_second(&self) -> f64 {
        let first = self.done.iter().map(|one| one.sent).min();
        let last = self.done.iter().map(|one| one.ready).max();
        match first.zip(last) {
            Some((first, last)) => self.done.len() as f64 / (last - first).as_secs_f64(),
            None => f64::NAN,
        }
    }
}

/// Moments from the beginning at which claims come by chance: `rate` per second on average, for so many seconds.
fn arrivals(rate: f64, seconds: u32, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let mut all = Vec::new();
    loop {
        // Never the logarithm of nothing.
        at -= (1.0 - random.f64()).ln() / rate;
        if at >= f64::from(seconds) {
            return all;
        }
        all.push(Duration::from_secs_f64(at));
    }
}

impl<'a> Load<'a> {
    pub(super) const fn of(site: &'a Site, pool: &'a str) -> Self {
        Self { site, pool }
    }

    /// Sends claims by chance.
    pub(super) async fn poisson(&self, rate: f64, seconds: u32, seed: u64) -> Result<Outcome> {
        self.send(&format!("steady-{rate:.0}"), arrivals(rate, seconds, seed))
            .await
    }

    /// Sends so many claims at once.
    pub(super) async fn burst(&self, count: u32) -> Result<Outcome> {
        self.send("burst", vec![Duration::ZERO; usize::try_from(count)?])
            .await
    }

    /// Sends a claim at each of these moments, and waits until all are ready.
    async fn send(&self, kind: &str, at: Vec<Duration>) -> Result<Outcome> {
        let count = at.len();
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut watching = JoinSet::new();
        watching.spawn(Watch::begin(self.site.claims()).await?.follow(tell));
        let began = Instant::now();
        let (mut sending, mut sent, mut latest) = (JoinSet::new(), HashMap::new(), Duration::ZERO);
        for (index, at) in at.into_iter().enumerate() {
            tokio::time::sleep_until((began + at).into()).await;
            let name = format!("{}-{kind}-{index}", self.pool);
            let object = claim(&name, self.pool);
            let api = self.site.claims();
            let now = Instant::now();
            latest = latest.max(now - (began + at));
            sent.insert(name, now);
            sending.spawn(async move { create(&api, &object).await });
        }
        while let Some(one) = sending.join_next().await {
            one.context("send a claim")??;
        }
        let mut done = Vec::with_capacity(count);
        let wait = async {
            while done.len() < count {
                let Some((name, ready)) = told.recv().await else {
                    // It says why.
                    match watching.join_next().await {
                        Some(Ok(Err(error))) => return Err(error),
                        _ => bail!("the watch of all claims ended"),
                    }
                };
                if let Some(sent) = sent.remove(&name) {
                    done.push(Done { name, sent, ready });
                }
            }
            Ok(())
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        match waited {
            Ok(outcome) => outcome?,
            Err(_) => bail!("{} of {count} claims are not ready", sent.len()),
        }
        ensure!(sent.is_empty(), "{} claims are not ready", sent.len());
        Ok(Outcome {
            done,
            latest_ms: ms(latest),
        })
    }
}

/// A plain watch of all claims.
struct Watch {
    api: Api<DynamicObject>,
    version: String,
    events: BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>,
}

impl Watch {
    /// From now on: those that there are would come first, and in the way of what is measured.
    async fn begin(api: Api<DynamicObject>) -> Result<Self> {
        let listed = api.list(&ListParams::default().limit(1)).await;
        let version = listed.context("list claims")?.metadata.resource_version;
        let version = version.context("a list without a version")?;
        let events = again(&api, &version).await?;
        Ok(Self { api, version, events })
    }

    /// Tells of each claim that is ready, whenever it changes.
    async fn follow(mut self, tell: mpsc::UnboundedSender<(String, Instant)>) -> Result<()> {
        loop {
            while let Some(event) = self.events.try_next().await.context("watch all claims")? {
                let at = Instant::now();
                match event {
                    WatchEvent::Added(claim) | WatchEvent::Modified(claim) => {
                        if let Some(now) = &claim.metadata.resource_version {
                            self.version.clone_from(now);
                        }
                        let is_ready = is(&claim, "Ready", "True");
                        // Nobody listens any more: all that were sent are ready.
                        if is_ready && tell.send((claim.metadata.name.unwrap_or_default(), at)).is_err() {
                            return Ok(());
                        }
                    }
                    WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
                    WatchEvent::Error(status) => bail!("watch all claims: {status:?}"),
                }
            }
            self.events = again(&self.api, &self.version).await?;
        }
    }
}

async fn again(
    api: &Api<DynamicObject>,
    version: &str,
) -> Result<BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>> {
    let events = api.watch(&WatchParams::default().timeout(290), version).await;
    Ok(events.context("begin to watch")?.boxed())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Done, Outcome, arrivals};

    #[test]
    fn arrivals_are_as_many_as_the_rate_says_and_the_same_for_a_seed() {
        let all = arrivals(45.0, 60, 3);
        // 2,700 on average, with a standard deviation of 52.
        assert!((2500..2900).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted() && all.iter().all(|at| *at < Duration::from_secs(60)));
        assert_eq!(all, arrivals(45.0, 60, 3));
        assert_ne!(all, arrivals(45.0, 60, 4));
        // By chance, and not at regular intervals: gaps of exponential distribution vary as much as they last.
        let gaps: Vec<f64> = all
            .windows(2)
            .map(|two| (two[1] - two[0]).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((0.85..1.15).contains(&(variance.sqrt() / mean)));
    }

    #[test]
    fn throughput_is_from_the_first_to_the_last() {
        let began = Instant::now();
        let done = |sent: u64, ready: u64| Done {
            name: String::new(),
            sent: began + Duration::from_millis(sent),
            ready: began + Duration::from_millis(ready),
        };
        let outcome = Outcome {
            done: vec![done(100, 200), done(0, 300), done(50, 500)],
            latest_ms: 0.0,
        };
        assert_eq!(outcome.per_second(), 6.0);
        assert_eq!(outcome.latencies().0, [100.0, 300.0, 450.0]);
    }
}
