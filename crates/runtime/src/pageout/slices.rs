//! Cuts mappings into slices that one kernel call may take.

use crate::kernel::Range;

/// The most memory that one call may work on, so that a wake never waits for a long call: 8 MiB.
pub const SLICE: u64 = 8 << 20;
/// The kernel's limit on ranges in one call (`UIO_MAXIOV`).
pub const MAX_RANGES: usize = 1024;

/// A range, and how much memory below it a call would work on at most, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighed {
    /// The range.
    pub range: Range,
    /// Resident (or swapped) bytes below it, as last counted.
    pub weight: u64,
}

/// Batches of ranges, each with at most [`SLICE`] bytes to work on and [`MAX_RANGES`] entries.
///
/// A range that is sparse (a Go arena, a gigabyte chunk of the guest's memory file with a few pages in it) is taken
/// whole; a dense one is cut.
#[derive(Debug)]
pub struct Slices<I> {
    source: I,
    /// What is left of a range that is being cut.
    rest: Option<Weighed>,
}

impl<I: Iterator<Item = Weighed>> Slices<I> {
    /// Cuts these ranges.
    pub const fn new(source: I) -> Self {
        Self { source, rest: None }
    }

    /// The next piece with at most [`SLICE`] bytes below it.
    fn piece(&mut self) -> Option<Weighed> {
        let next = match self.rest.take() {
            Some(rest) => rest,
            None => self.source.next()?,
        };
        if next.weight <= SLICE || next.range.len <= SLICE {
            return Some(Weighed {
                range: next.range,
                weight: next.weight.min(next.range.len),
            });
        }
        let rest = Range {
            start: next.range.start + SLICE,
            len: next.range.len - SLICE,
        };
        // The rest keeps the whole weight: nobody knows how much of it lay in this piece.
        self.rest = Some(Weighed {
            range: rest,
            weight: next.weight,
        });
        Some(Weighed {
            range: Range {
                start: next.range.start,
                len: SLICE,
            },
            weight: SLICE,
        })
    }
}

impl<I: Iterator<Item = Weighed>> Iterator for Slices<I> {
    type Item = Vec<Range>;

    fn next(&mut self) -> Option<Vec<Range>> {
        let mut batch = Vec::new();
        let mut weight = 0_u64;
        while batch.len() < MAX_RANGES {
            let Some(piece) = self.piece() else { break };
            let sum = weight.saturating_add(piece.weight);
            if sum > SLICE && !batch.is_empty() {
                // It opens the next batch. `piece` returns it unchanged, as it is small enough already; what was
                // left of a cut range must stay behind it.
                self.put_back(piece);
                break;
            }
            weight = sum;
            batch.push(piece.range);
        }
        (!batch.is_empty()).then_some(batch)
    }
}

impl<I: Iterator<Item = Weighed>> Slices<I> {
    fn put_back(&mut self, piece: Weighed) {
        self.rest = Some(match self.rest.take() {
            // The piece was cut from the front of what is left: join them again.
            Some(rest) => Weighed {
                range: Range {
                    start: piece.range.start,
                    len: piece.range.len + rest.range.len,
                },
                weight: rest.weight,
            },
            None => piece,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weighed() -> impl Strategy<Value = Vec<Weighed>> {
        prop::collection::vec((1_u64..20_000, 0_u64..=100), 0..300).prop_map(|v| {
            let mut start = 4096;
            v.into_iter()
                .map(|(pages, percent)| {
                    let range = Range {
                        start,
                        len: pages * 4096,
                    };
                    start += range.len + 4096;
                    Weighed {
                        range,
                        weight: pages * percent / 100 * 4096,
                    }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn covers_everything_once_in_order(input in weighed()) {
            let mut at = input.iter().map(|w| w.range).collect::<Vec<_>>().into_iter();
            let mut left: Option<Range> = None;
            for batch in Slices::new(input.clone().into_iter()) {
                prop_assert!(batch.len() <= MAX_RANGES && !batch.is_empty());
                for piece in batch {
                    let whole = left.take().or_else(|| at.next()).expect("more than went in");
                    prop_assert_eq!(piece.start, whole.start);
                    prop_assert!(piece.len <= whole.len && piece.len > 0);
                    if piece.len < whole.len {
                        left = Some(Range { start: whole.start + piece.len, len: whole.len - piece.len });
                    }
                }
            }
            prop_assert!(left.is_none() && at.next().is_none());
        }

        #[test]
        fn no_batch_is_heavier_than_a_slice(input in weighed()) {
            for batch in Slices::new(input.clone().into_iter()) {
                let weight: u64 = batch.iter().map(|piece| {
                    let whole = input.iter().find(|w| w.range.start <= piece.start
                        && piece.start < w.range.start + w.range.len).expect("from nowhere");
                    whole.weight.min(piece.len)
                }).sum();
                prop_assert!(weight <= SLICE, "{weight}");
            }
        }
    }
}
