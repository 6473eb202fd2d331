//! Budgets for wakes, so that a scan cannot wake a node.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::time::Duration;

use dormouse_core::Moment;
use lru::LruCache;

/// A token bucket's size and speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketLimits {
    /// How many tokens it holds: what may happen at once after a quiet time. 0 lets nothing happen, ever.
    pub burst: u32,
    /// How long one token takes to come back.
    pub refill: Duration,
}

/// How many wakes packets may cause. A pod that is woken costs its source and its node one token each; a
/// frame for a pod whose wake was already reported costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Per source: one IPv4 address, or one IPv6 /64. Default: 32 at once, then 4 a second. Behind a
    /// source-rewriting load balancer every client is one source.
    pub per_source: BucketLimits,
    /// For all sources together, which matters because a source can be forged. Default: 128 at once, then
    /// 32 a second.
    pub per_node: BucketLimits,
    /// How many sources are remembered; the one unheard of for longest is forgotten. Default: 1024.
    pub sources: NonZeroUsize,
}

impl Default for Budget {
    fn default() -> Self {
        const SOURCES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
        Self {
            per_source: BucketLimits {
                burst: 32,
                refill: Duration::from_millis(250),
            },
            per_node: BucketLimits {
                burst: 128,
                refill: Duration::from_micros(31_250),
            },
            sources: SOURCES,
        }
    }
}

/// Which budget a wake was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suppressed {
    /// Its source's.
    Source,
    /// The node's.
    Node,
}

/// One token bucket, kept as the moment at which it will be full again (the generic cell rate algorithm):
/// one number, exact, and no work while nothing happens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    full_at: Moment,
}

impl Bucket {
    pub(crate) fn has_token(self, limits: BucketLimits, now: Moment) -> bool {
        let missing = self.full_at.since(now);
        limits.burst > 0 && missing <= limits.refill.saturating_mul(limits.burst - 1)
    }

    fn take(&mut self, limits: BucketLimits, now: Moment) {
        self.full_at = self.full_at.max(now).after(limits.refill);
    }

    pub(crate) fn try_take(&mut self, limits: BucketLimits, now: Moment) -> bool {
        let has = self.has_token(limits, now);
        if has {
            self.take(limits, now);
        }
        has
    }
}

/// The buckets of one node.
#[derive(Debug)]
pub struct Budgets {
    limits: Budget,
    node: Bucket,
    sources: LruCache<IpAddr, Bucket>,
}

impl Budgets {
    /// Full buckets.
    #[must_use]
    pub fn new(limits: Budget) -> Self {
        // Grown as needed: most nodes never see that many sources.
        Self {
            limits,
            node: Bucket::default(),
            sources: LruCache::unbounded(),
        }
    }

    /// Takes one token from the source's bucket and one from the node's, or none from either.
    ///
    /// # Errors
    /// [`Suppressed`] names the bucket that was empty.
    pub fn try_take(&mut self, source: IpAddr, now: Moment) -> Result<(), Suppressed> {
        let key = subject(source);
        let mut bucket = self.sources.get(&key).copied().unwrap_or_default();
        if !bucket.has_token(self.limits.per_source, now) {
            return Err(Suppressed::Source);
        }
        if !self.node.try_take(self.limits.per_node, now) {
            return Err(Suppressed::Node);
        }
        bucket.take(self.limits.per_source, now);
        self.sources.put(key, bucket);
        while self.sources.len() > self.limits.sources.get() {
            self.sources.pop_lru();
        }
        Ok(())
    }

    /// How many sources are remembered.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.len()
    }
}

/// Who is counted: a host owns one IPv4 address, but usually a whole IPv6 /64.
fn subject(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits())),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() & (u128::MAX << 64)).into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(1_000_000 + ms))
    }

    fn budgets(source_burst: u32, node_burst: u32, sources: usize) -> Budgets {
        Budgets::new(Budget {
            per_source: BucketLimits {
                burst: source_burst,
                refill: Duration::from_millis(100),
            },
            per_node: BucketLimits {
                burst: node_burst,
                refill: Duration::from_millis(10),
            },
            sources: NonZeroUsize::new(sources).unwrap(),
        })
    }

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn a_source_runs_dry_alone_and_comes_back() {
        let mut b = budgets(3, 100, 8);
        for _ in 0..3 {
            assert_eq!(b.try_take(A, at(0)), Ok(()));
        }
        assert_eq!(b.try_take(A, at(0)), Err(Suppressed::Source));
        assert_eq!(b.try_take(B, at(0)), Ok(()));
        assert_eq!(b.try_take(A, at(99)), Err(Suppressed::Source));
        assert_eq!(b.try_take(A, at(100)), Ok(()));
        assert_eq!(b.try_take(A, at(100)), Err(Suppressed::Source));
    }

    #[test]
    fn forged_sources_meet_the_nodes_budget() {
        let mut b = budgets(3, 20, 16);
        let woken = (0..10_000_u32)
            .filter(|n| {
                b.try_take(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | n)), at(0))
                    .is_ok()
            })
            .count();
        assert_eq!(woken, 20);
        assert!(b.sources() <= 16);
    }

    #[test]
    fn a_node_that_is_dry_costs_the_source_nothing() {
        let mut b = budgets(1, 1, 8);
        assert_eq!(b.try_take(A, at(0)), Ok(()));
        assert_eq!(b.try_take(B, at(0)), Err(Suppressed::Node));
        assert_eq!(b.try_take(B, at(10)), Ok(()));
    }

    #[test]
    fn one_v6_prefix_is_one_source() {
        let mut b = budgets(1, 100, 8);
        assert_eq!(b.try_take("2001:db8::1".parse().unwrap(), at(0)), Ok(()));
        assert_eq!(
            b.try_take("2001:db8::2".parse().unwrap(), at(0)),
            Err(Suppressed::Source)
        );
        assert_eq!(b.try_take("2001:db8:0:1::2".parse().unwrap(), at(0)), Ok(()));
    }

    #[test]
    fn nothing_means_nothing() {
        assert_eq!(budgets(0, 5, 1).try_take(A, at(0)), Err(Suppressed::Source));
        assert_eq!(budgets(5, 0, 1).try_take(A, at(0)), Err(Suppressed::Node));
    }

    proptest! {
        /// Over any time, no more than the burst and what came back meanwhile.
        #[test]
        fn never_more_than_promised(
            burst in 0_u32..20,
            steps in prop::collection::vec((0_u64..300, 1_u32..10), 1..50),
        ) {
            let limits = BucketLimits { burst, refill: Duration::from_millis(100) };
            let mut bucket = Bucket::default();
            let (mut now, mut taken) = (0, 0_u64);
            for (wait, tries) in steps {
                now += wait;
                taken += (0..tries).filter(|_| bucket.try_take(limits, at(now))).count() as u64;
                let promised = if burst == 0 { 0 } else { u64::from(burst) + now / 100 };
                prop_assert!(taken <= promised, "{taken} of {promised} after {now} ms");
            }
        }
    }
}
