//! Holding requests back.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use tower::{Layer, Service};

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: f64,
}

impl Rate {
    /// `None` if there is no limit: `per_second` is not above zero.
    #[must_use]
    pub fn new(per_second: f64, burst: u32) -> Option<Self> {
        (per_second > 0.0 && per_second.is_finite()).then(|| Self {
            per_second,
            burst: f64::from(burst.max(1)),
        })
    }
}

/// Holds requests back.
#[derive(Debug, Clone)]
pub(super) struct LimitLayer(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Tokens, and when they were counted. Below zero: so many are waited for.
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// Takes a token; how long until it is there.
    fn take(&self, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, counted) = *state;
        let grown = now.saturating_duration_since(counted).as_secs_f64() * self.rate.per_second;
        let left = (tokens + grown).min(self.rate.burst) - 1.0;
        *state = (left, now.max(counted));
        Duration::try_from_secs_f64((-left / self.rate.per_second).max(0.0)).unwrap_or_default()
    }
}

impl LimitLayer {
    pub(super) fn new(rate: Option<Rate>) -> Self {
        Self(rate.map(|rate| {
            let state = Mutex::new((rate.burst, Instant::now()));
            Arc::new(Bucket { rate, state })
        }))
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit {
            inner,
            bucket: self.0.clone(),
            wait: None,
        }
    }
}

/// Holds requests back.
#[derive(Debug)]
pub(super) struct Limit<S> {
    inner: S,
    bucket: Option<Arc<Bucket>>,
    /// Until the token for the next request is there; `None`: none has been taken.
    wait: Option<Pin<Box<Sleep>>>,
}

impl<S: Service<R>, R> Service<R> for Limit<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if let Some(bucket) = &self.bucket {
            let wait = self
                .wait
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(bucket.take(Instant::now()))));
            ready!(wait.as_mut().poll(cx));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.wait = None;
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_waits_its_turn() {
        let begin = Instant::now();
        let rate = Rate::new(10.0, 2).unwrap();
        let bucket = Bucket {
            rate,
            state: Mutex::new((rate.burst, begin)),
        };
        let waits: Vec<u128> = (0..4).map(|_| bucket.take(begin).as_millis()).collect();
        assert_eq!(waits, [0, 0, 100, 200]);
        assert_eq!(bucket.take(begin + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(Rate::new(-1.0, 10), None);
    }
}
