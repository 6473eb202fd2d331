//! Traces of looks at objects, to a collector by OTLP over gRPC, in agent-sandbox's names. Only with `--enable-tracing`:
//! without, the spans below are disabled where they stand.
//!
//! Spans wait in a queue of bounded length for a thread of its own that hands them on. A collector that is away, or slow,
//! costs spans and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use dormouse_api::names::annotations;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::field::{Empty, display};
use tracing::{Span, info, info_span};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::objects;

/// The spans' target: they are for the collector, and never in the log.
pub(crate) const TARGET: &str = "dormouse_trace";

/// Who traces, unless `OTEL_SERVICE_NAME` says otherwise.
const SERVICE: &str = "agent-sandbox-controller";

/// How long the last spans may take to be handed on.
const LAST: Duration = Duration::from_secs(3);

/// The way to the collector.
pub struct Tracing(SdkTracerProvider);

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracing").finish()
    }
}

impl Tracing {
    /// Makes it, within a runtime, which carries the connection. Where the collector is, and all else, is said by the
    /// `OTEL_*` variables that are usual.
    ///
    /// # Errors
    ///
    /// If these variables say what cannot be.
    pub fn new() -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_tonic().build()?;
        Ok(Self::with(exporter))
    }

    /// The same to a collector at this address.
    ///
    /// # Errors
    ///
    /// If it is no address.
    pub fn to(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()?;
        Ok(Self::with(exporter))
    }

    fn with(exporter: SpanExporter) -> Self {
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        Self(provider)
    }

    /// What hands the spans over, as part of a subscriber.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer: Tracer = self.0.tracer(SERVICE);
        // Where a span stands in our source, and on which thread it ran, says nothing to those who read traces.
        OpenTelemetryLayer::new(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.target() == TARGET))
    }

    /// Hands the last spans on, and waits for that, but not for long. The runtime still has to run.
    pub fn end(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            info!(%error, "the last spans could not be handed on");
        }
    }
}

/// The span of a look at an object of a kind, `name` being `Reconcile` and the kind. It belongs to the trace that the object
/// names.
pub(crate) fn look(name: &str, kind: &str, meta: &ObjectMeta) -> Span {
    let (of_namespace, of_name) = (objects::namespace(meta), objects::name(meta));
    let span = info_span!(
        target: TARGET,
        parent: None,
        "Reconcile",
        otel.name = name,
        otel.status_code = Empty,
        otel.status_description = Empty,
        k8s.namespace.name = of_namespace,
        k8s.object.name = of_name,
        sandbox.namespace = Empty,
        sandbox.name = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    if kind == "Sandbox" {
        span.record("sandbox.namespace", of_namespace);
        span.record("sandbox.name", of_name);
    }
    if let Some(parent) = objects::annotation(meta, annotations::TRACE_CONTEXT).and_then(parent) {
        // An error: nobody traces.
        let _ = span.set_parent(parent);
    }
    span
}

/// Takes note that a look has failed.
pub(crate) fn failed(span: &Span, error: &dyn std::error::Error) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", display(error));
    }
}

/// The span of one step of a look.
pub(crate) fn step(what: &str) -> Span {
    info_span!(target: TARGET, "step", otel.name = what)
}

/// The context that an annotation names, as W3C has it in headers, in JSON.
fn parent(annotation: &str) -> Option<Context> {
    let headers: HashMap<String, String> = serde_json::from_str(annotation).ok()?;
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    let is_one = context.span().span_context().is_valid();
    is_one.then_some(context)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use dormouse_api::agents::Sandbox;
    use kube::runtime::controller::Action;
    use kube::runtime::watcher::Event;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
        TraceService, TraceServiceServer,
    };
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::tonic::trace::v1::Span as Received;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic::{Request, Response, Status};
    use tracing::Instrument as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::queue::Queue;
    use crate::worker::work;

    /// A collector.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            self.0.lock().unwrap().push(request.into_inner());
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    impl Collector {
        async fn serve(&self) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(
                Server::builder()
                    .add_service(TraceServiceServer::new(self.clone()))
                    .serve_with_incoming(TcpIncoming::from(listener)),
            );
            endpoint
        }

        /// Name of the service and the spans.
        fn received(&self) -> (Vec<String>, Vec<Received>) {
            let (mut services, mut spans) = (vec![], vec![]);
            for part in self.0.lock().unwrap().iter().flat_map(|all| &all.resource_spans) {
                let resource = part.resource.as_ref().unwrap();
                let named = resource
                    .attributes
                    .iter()
                    .filter(|pair| pair.key == "service.name");
                services.extend(named.map(|pair| format!("{:?}", pair.value)));
                spans.extend(part.scope_spans.iter().flat_map(|scope| scope.spans.clone()));
            }
            (services, spans)
        }
    }

    /// Looks at a Sandbox once, with a step.
    async fn look_at(sandbox: Sandbox) {
        let (store, mut writer) = kube::runtime::reflector::store();
        for event in [Event::Init, Event::InitApply(sandbox), Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        let stop = CancellationToken::new();
        let reconcile = |_: Arc<Sandbox>, stop: Arc<CancellationToken>| async move {
            tokio::task::yield_now().instrument(step("create pod")).await;
            stop.cancel();
            Ok::<_, std::fmt::Error>(Action::await_change())
        };
        work(
            Queue::default(),
            store,
            1,
            reconcile,
            |_, _, _| Action::await_change(),
            Arc::new(stop.clone()),
            Arc::default(),
            stop,
        )
        .await;
    }

    fn sandbox(trace_context: &str) -> Sandbox {
        let mut sandbox = Sandbox::default();
        sandbox.metadata.name = Some("box".to_owned());
        sandbox.metadata.namespace = Some("ns".to_owned());
        let annotation = (annotations::TRACE_CONTEXT.to_owned(), trace_context.to_owned());
        sandbox.metadata.annotations = Some([annotation].into());
        sandbox
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_collector_gets_looks_as_parts_of_the_trace_that_the_object_names() {
        let collector = Collector::default();
        let tracing = Tracing::to(&collector.serve().await).unwrap();
        let subscriber = tracing_subscriber::registry().with(tracing.layer());
        // Worked on by this thread.
        let traced = tracing::subscriber::set_default(subscriber);
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let annotation = format!(r#"{{"traceparent":"00-{trace}-{parent}-01"}}"#);
        look_at(sandbox(&annotation)).await;
        drop(traced);
        tokio::task::spawn_blocking(move || tracing.end()).await.unwrap();

        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let (services, spans) = collector.received();
        let named = |name: &str| {
            let found = spans.iter().find(|span| span.name == name);
            found.unwrap_or_else(|| panic!("{name} is not in {spans:?}"))
        };
        let (look, step) = (named("ReconcileSandbox"), named("create pod"));
        assert_eq!(
            (hex(&look.trace_id), hex(&look.parent_span_id)),
            (trace.to_owned(), parent.to_owned())
        );
        assert_eq!(
            (&step.trace_id, &step.parent_span_id),
            (&look.trace_id, &look.span_id)
        );
        // What others trace is not ours to hand on.
        assert_eq!(spans.len(), 2, "{spans:?}");
        assert!(look.attributes.iter().any(|pair| pair.key == "sandbox.name"));
        assert!(services.iter().all(|name| name.contains(SERVICE)), "{services:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_goes_on_without_a_collector() {
        // A port that nobody listens on any more.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let tracing = Tracing::to(&endpoint).unwrap();
        let subscriber = tracing_subscriber::registry().with(tracing.layer());
        let traced = tracing::subscriber::set_default(subscriber);
        for _ in 0..3 {
            look_at(sandbox("no JSON")).await;
        }
        drop(traced);
        tokio::task::spawn_blocking(move || tracing.end()).await.unwrap();
    }

    #[test]
    fn a_context_that_is_none_is_left_out() {
        let good = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
        assert!(parent(good).is_some());
        for bad in [
            "",
            "{}",
            "no JSON",
            r#"{"traceparent":"00-0-0-01"}"#,
            r#"{"traceparent":1}"#,
        ] {
            assert!(parent(bad).is_none(), "{bad}");
        }
    }
}
