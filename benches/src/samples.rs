//! Samples and what is said of them.

use std::time::Duration;

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// Milliseconds of a duration.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// MiB of bytes.
pub(crate) fn mib(bytes: u64) -> f64 {
    // Exact below 2^53 bytes.
    bytes as f64 / f64::from(1u32 << 20)
}

/// Numbers of one kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

impl Samples {
    pub(crate) fn n(&self) -> usize {
        self.0.len()
    }

    /// The value that `share` of the samples do not exceed (nearest rank); NaN without samples.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// `p50 / p95 / p99`, to three digits.
    pub(crate) fn thirds(&self) -> String {
        format!(
            "{} / {} / {}",
            digits(self.p50()),
            digits(self.p95()),
            digits(self.p99())
        )
    }

    pub(crate) fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn p95(&self) -> f64 {
        self.quantile(0.95)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Standard error of the mean.
    pub(crate) fn standard_error(&self) -> f64 {
        let n = self.0.len() as f64;
        let mean = self.mean();
        let squares: f64 = self.0.iter().map(|x| (x - mean).powi(2)).sum();
        (squares / (n - 1.0)).sqrt() / n.sqrt()
    }
}

impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Samples", 8)?;
        out.serialize_field("n", &self.n())?;
        out.serialize_field("min", &tidy(self.min()))?;
        out.serialize_field("p50", &tidy(self.p50()))?;
        out.serialize_field("p95", &tidy(self.p95()))?;
        out.serialize_field("p99", &tidy(self.p99()))?;
        out.serialize_field("max", &tidy(self.max()))?;
        out.serialize_field("mean", &tidy(self.mean()))?;
        out.serialize_field("samples", &self.0.iter().copied().map(tidy).collect::<Vec<_>>())?;
        out.end()
    }
}

/// Microseconds of milliseconds are enough, and readable.
fn tidy(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// What one measured thing took: its parts in order, which add up to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Taken {
    pub(crate) total: f64,
    pub(crate) parts: Vec<(String, f64)>,
}

impl Taken {
    /// Parts that are known to add up.
    pub(crate) fn of(parts: Vec<(String, f64)>) -> Self {
        Self {
            total: parts.iter().map(|(_, value)| value).sum(),
            parts,
        }
    }
}

/// A named series with its parts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    #[serde(flatten)]
    pub(crate) samples: Samples,
    /// What the samples are made of; for each sample the parts add up to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) phases: Vec<Phase>,
    /// What was promised of its median, for the plot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<f64>,
    /// Not in the plot.
    #[serde(skip)]
    pub(crate) plotted: bool,
    /// Its distribution is shown: as a histogram in the report, and in a picture of its group.
    #[serde(skip)]
    pub(crate) distribution: bool,
}

/// A part of a series.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) samples: Samples,
}

impl Series {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            samples: Samples::default(),
            phases: Vec::new(),
            limit: None,
            plotted: false,
            distribution: false,
        }
    }

    /// Milliseconds, shown in the plot.
    pub(crate) fn wait(name: impl Into<String>, limit: Option<f64>) -> Self {
        Self {
            limit,
            plotted: true,
            ..Self::new(name, "ms")
        }
    }

    /// Milliseconds whose distribution is shown.
    pub(crate) fn latency(name: impl Into<String>, limit: Option<f64>) -> Self {
        Self {
            distribution: true,
            ..Self::wait(name, limit)
        }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.samples.0.push(value);
    }

    pub(crate) fn take(&mut self, taken: Taken) {
        self.push(taken.total);
        for (name, value) in taken.parts {
            match self.phases.iter_mut().find(|phase| phase.name == name) {
                Some(phase) => phase.samples.0.push(value),
                None => self.phases.push(Phase {
                    name,
                    samples: Samples(vec![value]),
                }),
            }
        }
    }

    /// `p50 / p95`, to three digits.
    pub(crate) fn halves(&self) -> String {
        format!(
            "{} / {} {}",
            digits(self.samples.p50()),
            digits(self.samples.p95()),
            self.unit
        )
    }

    /// `p50 / p95 / p99`, to three digits.
    pub(crate) fn thirds(&self) -> String {
        format!("{} {}", self.samples.thirds(), self.unit)
    }
}

/// Three significant digits, as people read them.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "-".to_owned()
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// The same with its sign.
pub(crate) fn signed(value: f64) -> String {
    let sign = if value >= 0.0 { "+" } else { "" };
    format!("{sign}{}", digits(value))
}

#[cfg(test)]
mod tests {
    use super::{Samples, Series, Taken, digits, signed};

    #[test]
    fn quantiles_are_nearest_ranks() {
        let samples = Samples((1..=30).map(f64::from).collect());
        assert_eq!(samples.p50(), 15.0);
        assert_eq!(samples.p95(), 29.0);
        assert_eq!(samples.p99(), 30.0);
        assert_eq!(samples.max(), 30.0);
        assert!(Samples::default().p50().is_nan());
    }

    #[test]
    fn parts_stay_beside_their_total() {
        let mut series = Series::wait("x", None);
        series.take(Taken::of(vec![("a".into(), 1.0), ("b".into(), 2.0)]));
        assert_eq!(series.samples.0, [3.0]);
        assert_eq!(series.phases.len(), 2);
    }

    #[test]
    fn digits_are_three() {
        assert_eq!(digits(1234.5), "1234");
        assert_eq!(digits(12.34), "12.3");
        assert_eq!(digits(1.234), "1.23");
        assert_eq!(digits(0.01234), "0.0123");
        assert_eq!(signed(1.234), "+1.23");
        assert_eq!(signed(-1.234), "-1.23");
    }
}
