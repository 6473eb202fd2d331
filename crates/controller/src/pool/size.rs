//! How large a pool is, where the controller sizes it.
//!
//! It grows at once to what is needed. It shrinks only below what was needed at no time within the last five minutes, as
//! a HorizontalPodAutoscaler by default does, and step by step: claims that come again find most of it.

use std::collections::VecDeque;
use std::time::Duration;

use dormouse_api::extensions::SandboxWarmPool;
use jiff::{SignedDuration, Timestamp};

/// How long nothing is given up that was needed.
const WINDOW: SignedDuration = SignedDuration::from_mins(5);
/// How long it is from one step down to the next.
const STEP: SignedDuration = SignedDuration::from_mins(1);
/// This part of the pool goes with a step.
const PART: usize = 4;

/// The fewest and the most standbys of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    least: usize,
    most: usize,
}

impl Bounds {
    /// Those of a pool that the controller sizes; `None`: `replicas` says how many there are to be.
    ///
    /// Where one of the two is not said, `replicas` takes its place. So whoever scales the pool moves the bound that it
    /// has left open, and never works against this.
    pub(super) fn of(pool: &SandboxWarmPool) -> Option<Self> {
        let spec = &pool.spec;
        let (least, most) = match (spec.min_ready, spec.max_ready) {
            (None, None) => return None,
            (Some(least), None) => (least, spec.replicas.max(least)),
            (None, Some(most)) => (spec.replicas.min(most), most),
            (Some(least), Some(most)) => (least, most),
        };
        let least = usize::try_from(least).unwrap_or_default();
        let most = usize::try_from(most).unwrap_or_default();
        // The API server refuses what is the wrong way round.
        Some(Self {
            least,
            most: most.max(least),
        })
    }

    fn within(self, count: usize) -> usize {
        count.max(self.least).min(self.most)
    }
}

/// How large one pool is.
#[derive(Debug, Clone, Default)]
pub(super) struct Size {
    now: Option<usize>,
    /// What was needed within the window, and when: each is less than the one before, as what came before more was
    /// needed than that counts no more.
    needs: VecDeque<(Timestamp, usize)>,
    stepped: Option<Timestamp>,
}

impl Size {
    /// How many standbys there are to be where `need` are needed. With a controller that begins it is as many as are
    /// `there`, as if they had been needed: nothing is known of what came before.
    pub(super) fn decide(&mut self, need: usize, there: usize, bounds: Bounds, now: Timestamp) -> usize {
        if self.now.is_none() {
            self.needed(bounds.within(there), now);
        }
        self.needed(bounds.within(need), now);
        let floor = bounds.within(self.highest());
        let size = bounds.within(self.now.unwrap_or(floor));
        let size = if floor >= size {
            floor
        } else if self
            .stepped
            .is_none_or(|stepped| now.duration_since(stepped) >= STEP)
        {
            self.stepped = Some(now);
            size.saturating_sub(size.div_ceil(PART)).max(floor)
        } else {
            size
        };
        self.now = Some(size);
        size
    }

    /// In what time it may shrink although nothing has changed.
    pub(super) fn wait(&self, bounds: Bounds, now: Timestamp) -> Option<Duration> {
        let size = self.now.filter(|size| *size > bounds.least)?;
        let (since, wait) = match (self.needs.front(), self.stepped) {
            (Some((at, need)), _) if *need >= size => (*at, WINDOW),
            (_, Some(stepped)) => (stepped, STEP),
            _ => (now, STEP),
        };
        let left = wait.saturating_sub(now.duration_since(since));
        Some(
            Duration::try_from(left)
                .unwrap_or_default()
                .max(Duration::from_secs(1)),
        )
    }

    fn needed(&mut self, need: usize, now: Timestamp) {
        while self.needs.back().is_some_and(|(_, before)| *before <= need) {
            self.needs.pop_back();
        }
        self.needs.push_back((now, need));
        while self
            .needs
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        {
            self.needs.pop_front();
        }
    }

    fn highest(&self) -> usize {
        self.needs.front().map_or(0, |(_, need)| *need)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE_TO_TEN: Bounds = Bounds { least: 1, most: 10 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn bounds(replicas: i32, least: Option<i32>, most: Option<i32>) -> Option<(usize, usize)> {
        let mut pool = SandboxWarmPool::default();
        pool.spec.replicas = replicas;
        pool.spec.min_ready = least;
        pool.spec.max_ready = most;
        Bounds::of(&pool).map(|bounds| (bounds.least, bounds.most))
    }

    #[test]
    fn replicas_is_the_bound_that_is_not_said() {
        assert_eq!(bounds(3, None, None), None);
        assert_eq!(bounds(3, None, Some(10)), Some((3, 10)));
        assert_eq!(bounds(30, None, Some(10)), Some((10, 10)));
        assert_eq!(bounds(30, Some(2), None), Some((2, 30)));
        assert_eq!(bounds(1, Some(2), None), Some((2, 2)));
        assert_eq!(bounds(30, Some(2), Some(10)), Some((2, 10)));
        assert_eq!(bounds(30, Some(0), Some(0)), Some((0, 0)));
        // The API server lets none of these through.
        assert_eq!(bounds(-1, Some(5), Some(2)), Some((5, 5)));
        assert_eq!(bounds(-1, None, Some(2)), Some((0, 2)));
    }

    #[test]
    fn it_grows_at_once_and_shrinks_late_and_by_steps() {
        let mut size = Size::default();
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(0)), 1);
        assert_eq!(size.wait(ONE_TO_TEN, at(0)), None);
        assert_eq!(size.decide(8, 0, ONE_TO_TEN, at(10)), 8);
        assert_eq!(size.decide(20, 0, ONE_TO_TEN, at(20)), 10);
        assert_eq!(size.decide(4, 0, ONE_TO_TEN, at(30)), 10);
        assert_eq!(size.wait(ONE_TO_TEN, at(30)), Some(Duration::from_secs(290)));
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(319)), 10);
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(320)), 7);
        assert_eq!(size.wait(ONE_TO_TEN, at(321)), Some(Duration::from_secs(59)));
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(379)), 7);
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(380)), 5);
        assert_eq!(size.decide(2, 0, ONE_TO_TEN, at(440)), 3);
        // Two were needed less than five minutes ago.
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(500)), 2);
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(739)), 2);
        assert_eq!(size.decide(0, 0, ONE_TO_TEN, at(740)), 1);
        assert_eq!(size.wait(ONE_TO_TEN, at(740)), None);
    }

    #[test]
    fn a_controller_begins_with_what_is_there() {
        let mut size = Size::default();
        assert_eq!(size.decide(0, 7, ONE_TO_TEN, at(0)), 7);
        // They were claimed; that does not make it smaller.
        assert_eq!(size.decide(1, 2, ONE_TO_TEN, at(200)), 7);
        assert_eq!(size.decide(0, 7, ONE_TO_TEN, at(300)), 5);
        assert_eq!(Size::default().decide(0, 50, ONE_TO_TEN, at(0)), 10);
    }

    #[test]
    fn bounds_that_change_count_at_once() {
        let mut size = Size::default();
        assert_eq!(size.decide(9, 0, ONE_TO_TEN, at(0)), 9);
        assert_eq!(size.decide(0, 0, Bounds { least: 1, most: 4 }, at(1)), 4);
        assert_eq!(size.decide(0, 0, Bounds { least: 6, most: 8 }, at(400)), 6);
    }

    proptest! {
        #[test]
        fn it_is_within_its_bounds_follows_at_once_and_rests(
            least in 0..20_usize,
            more in 0..50_usize,
            there in 0..100_usize,
            looks in prop::collection::vec((0..200_i64, 0..100_usize), 1..100),
        ) {
            let bounds = Bounds { least, most: least + more };
            let mut size = Size::default();
            let mut second = 0;
            let mut before = Vec::<(i64, usize)>::new();
            let mut last = None;
            for (passed, need) in looks {
                second += passed;
                let now = size.decide(need, there, bounds, at(second));
                prop_assert!((bounds.least..=bounds.most).contains(&now));
                prop_assert!(now >= bounds.within(need));
                before.push((second, bounds.within(need)));
                // Nothing that was needed within the window is given up, and so nothing comes and goes within it.
                let needed = before.iter().filter(|(then, _)| second - then < 300).map(|(_, need)| *need).max();
                prop_assert!(Some(now) >= needed);
                // It grows only to what is needed, and shrinks by a step at most.
                if let Some(last) = last {
                    prop_assert!(now <= last || Some(now) == needed);
                    prop_assert!(now >= last - last.div_ceil(PART));
                }
                prop_assert!(size.needs.len() <= bounds.most - bounds.least + 1);
                last = Some(now);
            }
            // Looked at when it asks for it, and when nobody comes, it comes to its least.
            let mut rounds = 0;
            let mut now = size.decide(0, there, bounds, at(second));
            while let Some(wait) = size.wait(bounds, at(second)) {
                second += i64::try_from(wait.as_secs()).unwrap();
                let smaller = size.decide(0, there, bounds, at(second));
                prop_assert!(smaller <= now);
                now = smaller;
                rounds += 1;
                prop_assert!(rounds < 200);
            }
            prop_assert_eq!(now, bounds.least);
        }
    }
}
