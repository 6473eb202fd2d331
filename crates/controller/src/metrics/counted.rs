//! Gauges that are counted when it is asked.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// What is counted, once it is told where that is.
pub(super) struct Counted<T>(Arc<OnceLock<T>>);

impl<T> Counted<T> {
    /// Where it is; it is said once.
    pub(super) fn set(&self, place: T) {
        // There is one of each in a process.
        let _ = self.0.set(place);
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.0.get()
    }
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> fmt::Debug for Counted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counted").finish()
    }
}

/// How often each occurs.
pub(super) fn tally<L: Eq + Hash>(all: impl IntoIterator<Item = L>) -> HashMap<L, i64> {
    let mut counts = HashMap::new();
    for labels in all {
        *counts.entry(labels).or_default() += 1;
    }
    counts
}

/// Writes one gauge for each.
pub(super) fn gauges<L: EncodeLabelSet>(
    mut encoder: DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    counts: impl IntoIterator<Item = (L, i64)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, count) in counts {
        ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
