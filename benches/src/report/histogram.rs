//! Latencies in buckets whose edges grow by the same factor: a text for people, and what the picture is drawn from.

use crate::samples::{Samples, digits};

/// Buckets per power of ten.
const PER_DECADE: i32 = 8;
/// Letters of the longest bar.
const WIDTH: usize = 50;

/// How many samples lie between two edges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) count: usize,
}

/// The buckets from the lowest sample to the highest, empty ones between them too; what is not above zero has no place
/// on a logarithmic axis and is left out.
pub(super) fn buckets(samples: &Samples) -> Vec<Bucket> {
    let places: Vec<i32> = samples.0.iter().filter_map(|value| place(*value)).collect();
    let (Some(first), Some(last)) = (places.iter().min(), places.iter().max()) else {
        return Vec::new();
    };
    (*first..=*last)
        .map(|at| Bucket {
            low: edge(at),
            high: edge(at + 1),
            count: places.iter().filter(|place| **place == at).count(),
        })
        .collect()
}

/// The histogram as lines of text.
pub(super) fn text(samples: &Samples, unit: &str) -> String {
    let buckets = buckets(samples);
    let most = buckets
        .iter()
        .map(|bucket| bucket.count)
        .max()
        .unwrap_or_default()
        .max(1);
    let mut text = String::new();
    for bucket in buckets {
        // A bucket that is not empty is seen.
        let bar = "#".repeat((bucket.count * WIDTH).div_ceil(most));
        text.push_str(&format!(
            "{:>8} - {:>8} {unit} |{bar:<WIDTH$}| {}\n",
            digits(bucket.low),
            digits(bucket.high),
            bucket.count
        ));
    }
    text
}

fn edge(place: i32) -> f64 {
    10f64.powf(f64::from(place) / f64::from(PER_DECADE))
}

/// Bounded to what can be measured here: a microsecond to eleven days, in milliseconds.
fn place(value: f64) -> Option<i32> {
    (value > 0.0 && value.is_finite())
        .then(|| (value.clamp(1e-3, 1e9).log10() * f64::from(PER_DECADE)).floor() as i32)
}

#[cfg(test)]
mod tests {
    use super::{buckets, edge, text};
    use crate::samples::Samples;

    #[test]
    fn every_sample_is_in_one_bucket_between_its_edges() {
        let samples = Samples((0..200).map(|n| 0.7 * 1.05f64.powi(n)).collect());
        let all = buckets(&samples);
        assert_eq!(all.iter().map(|bucket| bucket.count).sum::<usize>(), 200);
        for pair in all.windows(2) {
            assert_eq!(pair[0].high, pair[1].low);
            assert!((pair[1].low / pair[0].low - edge(1)).abs() < 1e-9);
        }
        for bucket in &all {
            let inside = |value: &&f64| bucket.low <= **value && **value < bucket.high;
            assert_eq!(samples.0.iter().filter(inside).count(), bucket.count);
        }
    }

    #[test]
    fn the_ends_are_not_empty_and_gaps_are_shown() {
        let all = buckets(&Samples(vec![1.0, 1000.0]));
        assert_eq!(all.len(), 25);
        assert_eq!((all[0].count, all[1].count, all[24].count), (1, 0, 1));
    }

    #[test]
    fn what_cannot_be_shown_is_left_out() {
        assert!(buckets(&Samples::default()).is_empty());
        assert!(buckets(&Samples(vec![0.0, -1.0, f64::NAN, f64::INFINITY])).is_empty());
        assert_eq!(buckets(&Samples(vec![f64::MAX])).len(), 1);
    }

    #[test]
    fn a_single_sample_among_many_is_seen() {
        let mut values = vec![2.0; 1000];
        values.push(30.0);
        let text = text(&Samples(values), "ms");
        let last = text.lines().last().unwrap_or_default();
        assert!(last.contains("|# ") && last.ends_with("| 1"), "{text}");
    }
}
