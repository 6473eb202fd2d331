//! When the API server has last taken a write.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tokio::time::Instant;
use tower::{Layer, Service};

/// When the last write was begun that the API server has taken.
#[derive(Debug)]
pub(crate) struct Written(Mutex<Instant>);

impl Default for Written {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Written {
    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, begun: Instant) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = begun.max(*last);
    }

    /// Waits until that is longer ago.
    pub(crate) async fn is_older_than(&self, most: Duration) {
        loop {
            let end = self.last() + most;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Takes note of writes.
#[derive(Debug, Clone)]
pub(super) struct WrittenLayer(Arc<Written>);

impl WrittenLayer {
    pub(super) const fn new(written: Arc<Written>) -> Self {
        Self(written)
    }
}

impl<S> Layer<S> for WrittenLayer {
    type Service = Write<S>;

    fn layer(&self, inner: S) -> Write<S> {
        Write {
            inner,
            written: Arc::clone(&self.0),
        }
    }
}

/// Takes note of writes.
#[derive(Debug, Clone)]
pub(super) struct Write<S> {
    inner: S,
    written: Arc<Written>,
}

impl<S, B, R> Service<Request<B>> for Write<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let begun = (request.method() != Method::GET).then(Instant::now);
        let answer = self.inner.call(request);
        let written = Arc::clone(&self.written);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(begun) = begun.filter(|_| answer.status().is_success()) {
                written.note(begun);
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::service_fn;

    #[tokio::test]
    async fn only_writes_that_were_taken_count_and_from_when_they_were_begun() {
        let written = Arc::new(Written::default());
        let layer = WrittenLayer::new(Arc::clone(&written));
        let answer = |status: u16| {
            layer.layer(service_fn(move |_: Request<()>| async move {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(Response::builder().status(status).body(()).unwrap())
            }))
        };
        let request = |method| Request::builder().method(method).body(()).unwrap();
        let before = written.last();
        answer(429).call(request(Method::PATCH)).await.unwrap();
        answer(200).call(request(Method::GET)).await.unwrap();
        assert_eq!(written.last(), before);
        let mut slow = layer.layer(service_fn(|_: Request<()>| async {
            // Longer than it took to begin.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, Infallible>(Response::new(()))
        }));
        let begun = Instant::now();
        slow.call(request(Method::PATCH)).await.unwrap();
        let last = written.last();
        assert!(begun <= last && last + Duration::from_millis(20) <= Instant::now());
        written.is_older_than(Duration::from_millis(50)).await;
        assert!(last + Duration::from_millis(50) <= Instant::now());
    }
}
