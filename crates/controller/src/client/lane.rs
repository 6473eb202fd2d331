//! Writes that give way to those of claims.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::rush::Rush;

/// Has writes give way.
#[derive(Debug, Clone)]
pub(super) struct LaneLayer(Rush);

impl LaneLayer {
    pub(super) const fn new(rush: Rush) -> Self {
        Self(rush)
    }
}

impl<S> Layer<S> for LaneLayer {
    type Service = Lane<S>;

    fn layer(&self, inner: S) -> Lane<S> {
        Lane {
            inner,
            rush: self.0.clone(),
        }
    }
}

/// Has writes give way.
#[derive(Debug, Clone)]
pub(super) struct Lane<S> {
    inner: S,
    rush: Rush,
}

impl<S, B, R> Service<Request<B>> for Lane<S>
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
        // What is read is read for what is written then, and a watch has no end.
        let is_write = request.method() != Method::GET;
        let rush = self.rush.clone();
        // Nothing is sent before somebody waits for it.
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _leave = if is_write {
                Some(rush.give_way().await)
            } else {
                None
            };
            answer.await
        })
    }
}
