//! An object, as a client that watches it sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream::BoxStream};
use kube::Api;
use kube::api::{DynamicObject, WatchEvent, WatchParams};

use crate::ask::LIMIT;

/// Seen at a time.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) object: DynamicObject,
}

/// A plain watch of one object, as an SDK holds it.
pub(super) struct Watched {
    what: String,
    last: Option<Seen>,
    events: BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>,
}

impl Watched {
    /// Begins to watch; the object as it is now comes first.
    pub(super) async fn begin(api: Api<DynamicObject>, name: &str) -> Result<Self> {
        let params = WatchParams::default()
            .fields(&format!("metadata.name={name}"))
            .timeout(290);
        let events = api.watch(&params, "0").await.context("begin to watch")?;
        Ok(Self {
            what: name.to_owned(),
            last: None,
            events: events.boxed(),
        })
    }

    /// Waits until the object is so, as it was seen last or is seen next.
    pub(super) async fn until(&mut self, what: &str, is_so: impl Fn(&DynamicObject) -> bool) -> Result<Seen> {
        self.until_within(LIMIT, what, is_so).await
    }

    /// The same for what may take longer, or may not; the watch ends after some minutes.
    pub(super) async fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        is_so: impl Fn(&DynamicObject) -> bool,
    ) -> Result<Seen> {
        let wait = async {
            loop {
                if let Some(seen) = self.last.as_ref().filter(|seen| is_so(&seen.object)) {
                    return Ok(seen.clone());
                }
                self.last = Some(self.next().await?);
            }
        };
        let waited = tokio::time::timeout(limit, wait).await;
        match waited {
            Ok(seen) => seen,
            Err(_) => bail!(
                "waited in vain for {} {what}: {:?}",
                self.what,
                self.last
                    .as_ref()
                    .map(|seen| seen.object.data["status"].to_string())
            ),
        }
    }

    async fn next(&mut self) -> Result<Seen> {
        while let Some(event) = self.events.next().await {
            let at = Instant::now();
            match event.with_context(|| format!("watch {}", self.what))? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => return Ok(Seen { at, object }),
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => bail!("watch {}: {status:?}", self.what),
            }
        }
        bail!("the watch of {} ended", self.what)
    }
}
