//! Counting requests.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// Counts requests.
#[derive(Debug, Clone)]
pub(super) struct CountLayer(Arc<Metrics>);

impl CountLayer {
    pub(super) const fn new(metrics: Arc<Metrics>) -> Self {
        Self(metrics)
    }
}

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count {
            inner,
            metrics: Arc::clone(&self.0),
        }
    }
}

/// Counts requests.
#[derive(Debug, Clone)]
pub(super) struct Count<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, B, R> Service<Request<B>> for Count<S>
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
        let counted = request_of(request.method(), request.uri().path(), request.uri().query());
        let answer = self.inner.call(request);
        let metrics = Arc::clone(&self.metrics);
        Box::pin(async move {
            let answer = answer.await;
            if let Some((verb, resource)) = counted {
                let code = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
                metrics.requested(verb, resource, code);
            }
            answer
        })
    }
}

/// Verb and resource, with its subresource; `None` for a watch, which has no end.
fn request_of(method: &Method, path: &str, query: Option<&str>) -> Option<(&'static str, String)> {
    if query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("watch="))) {
        return None;
    }
    let mut parts = path.trim_matches('/').split('/');
    // `api/v1/...` or `apis/GROUP/VERSION/...`
    let skipped = if parts.next() == Some("api") { 1 } else { 2 };
    let mut parts = parts.skip(skipped).peekable();
    let mut resource = parts.next().unwrap_or_default();
    let mut named = parts.next();
    if resource == "namespaces" && parts.peek().is_some() {
        resource = parts.next().unwrap_or_default();
        named = parts.next();
    }
    let verb = match (method, named) {
        (&Method::GET, None) => "list",
        (&Method::GET, Some(_)) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => "other",
    };
    Some((
        verb,
        parts
            .next()
            .map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let of = |method, path, query| request_of(&method, path, query);
        let is = |verb, resource: &str| Some((verb, resource.to_owned()));
        assert_eq!(
            of(Method::GET, "/api/v1/namespaces/n/pods/p", None),
            is("get", "pods")
        );
        assert_eq!(
            of(Method::GET, "/api/v1/pods", Some("limit=5")),
            is("list", "pods")
        );
        assert_eq!(of(Method::GET, "/api/v1/pods", Some("a=b&watch=true")), None);
        assert_eq!(
            of(Method::GET, "/api/v1/namespaces/n", None),
            is("get", "namespaces")
        );
        let path = "/apis/agents.x-k8s.io/v1beta1/namespaces/n/sandboxes/s/status";
        assert_eq!(
            of(Method::PATCH, path, Some("fieldManager=x")),
            is("patch", "sandboxes/status")
        );
        assert_eq!(
            of(Method::POST, "/apis/a/v1/namespaces/n/sandboxes", None),
            is("create", "sandboxes")
        );
    }
}
