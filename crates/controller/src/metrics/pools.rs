//! How many standbys the pools have, by rung, and how many they are to have, counted when it is asked.

use std::fmt;
use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::labels;
use dormouse_core::Rung;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};

use super::counted::{Counted, gauges, tally};
use crate::objects::{self, controller_of_kind, is_true};
use crate::pool::Pools;
use crate::sandbox::asleep_on;

/// Counts standbys once it is told where the sandboxes are.
#[derive(Debug, Clone, Default)]
pub(super) struct StandbyCounts(pub(super) Counted<Store<Sandbox>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    pool: String,
    rung: &'static str,
}

impl Collector for StandbyCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(store) = self.0.get() else {
            return Ok(());
        };
        let counts = tally(store.state().iter().filter_map(|sandbox| labels_of(sandbox)));
        gauges(
            encoder,
            "dormouse_pool_standbys",
            "Standbys that a claim could have now",
            counts,
        )
    }
}

/// Says how many standbys the pools are to have, once it is told where that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct WantedStandbys(pub(super) Counted<Arc<Pools>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    namespace: String,
    pool: String,
}

impl Collector for WantedStandbys {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(pools) = self.0.get() else {
            return Ok(());
        };
        let counts = pools.wanted().into_iter().map(|((namespace, pool), count)| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            (PoolLabels { namespace, pool }, count)
        });
        gauges(
            encoder,
            "dormouse_pool_wanted_standbys",
            "Standbys that there are to be",
            counts,
        )
    }
}

/// `None`: it is no standby, or not ready.
fn labels_of(sandbox: &Sandbox) -> Option<Labels> {
    let meta = &sandbox.metadata;
    let pool = controller_of_kind::<SandboxWarmPool>(meta)?;
    let is_ready = is_true(&sandbox.status.as_ref()?.conditions, READY);
    let is_there = meta.deletion_timestamp.is_none() && objects::label(meta, labels::WARM_POOL).is_some();
    (is_ready && is_there).then(|| Labels {
        namespace: objects::namespace(meta).to_owned(),
        pool: pool.name.clone(),
        rung: asleep_on(sandbox).unwrap_or(Rung::Running).as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standbys_that_can_be_claimed_count_on_their_rung() {
        use crate::claim::tests::{asleep, pool, standby};
        let of = |sandbox: &Sandbox| labels_of(sandbox).map(|labels| (labels.pool, labels.rung));
        let awake = standby(&pool(), "a", true);
        assert_eq!(of(&awake), Some(("pool".to_owned(), "Running")));
        assert_eq!(of(&asleep(awake, "Dozing")), Some(("pool".to_owned(), "Dozing")));
        assert_eq!(of(&standby(&pool(), "b", false)), None);
        let mut claimed = standby(&pool(), "c", true);
        claimed.metadata.owner_references = None;
        assert_eq!(of(&claimed), None);
    }
}
