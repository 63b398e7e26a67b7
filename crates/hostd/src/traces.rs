//! Requests as OpenTelemetry spans, for a collector that the operator names: one span each, in its client's trace.
//!
//! Spans are made when their request has been answered, and sent by a thread of their own in batches; nobody waits for
//! that, and where the collector does not answer they are dropped.

use crate::phases::Phases;
use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::{Request, Response};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

/// How long the collector has for one answer, and the host at its end for what is left.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where spans go.
#[derive(Clone, PartialEq, Eq)]
pub struct Collector {
    /// Its address for traces, as `http://127.0.0.1:4318/v1/traces`.
    pub url: String,
    /// They may hold secrets.
    pub headers: HashMap<String, String>,
    /// What the host is called there.
    pub service: String,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("url", &self.url)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// A client's place in a trace, from its `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    /// Whether its client wants it told.
    pub sampled: bool,
}

/// A request and its answer.
#[derive(Debug)]
pub struct Answered<'a> {
    pub method: &'a str,
    /// As the API's description has it; none of what is not in it.
    pub route: Option<&'a str>,
    pub path: &'a str,
    pub status: u16,
    pub parent: Option<Parent>,
    pub began: SystemTime,
    pub took: Duration,
    pub phases: &'a Phases,
}

/// Tells the collector, if there is one.
#[derive(Debug, Default)]
pub struct Traces(Option<Export>);

#[derive(Debug)]
struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    pub fn new(collector: Option<&Collector>) -> Traces {
        let Some(Collector { url, headers, service }) = collector else { return Traces::default() };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(EXPORT_TIMEOUT)
            .with_headers(headers.clone())
            .build();
        let exporter = match exporter {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(%error, "No spans are sent: the collector cannot be used");
                return Traces::default();
            }
        };
        let resource = Resource::builder().with_service_name(service.clone()).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("podflare-hostd");
        Traces(Some(Export { provider, tracer }))
    }

    pub fn record(&self, answered: &Answered<'_>) {
        let Some(Export { tracer, .. }) = &self.0 else { return };
        let Answered { method, route, path, status, parent, began, took, phases } = *answered;
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(status)),
            KeyValue::new("url.path", path.to_owned()),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
        attributes.extend(phases.iter().map(|(name, duration)| {
            KeyValue::new(format!("podflare.phase.{name}_ms"), duration.as_secs_f64() * 1e3)
        }));
        let span = tracer
            .span_builder(format!("{method} {}", route.unwrap_or("other")))
            .with_kind(SpanKind::Server)
            .with_start_time(began)
            .with_attributes(attributes);
        let context = parent
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent.context()));
        let mut span = tracer.build_with_context(span, &context);
        if status >= 500 {
            span.set_status(Status::error(""));
        }
        span.end_with_timestamp(began + took);
    }

    /// Sends what is left, for as long as the collector has for one answer.
    pub fn finish(&self) {
        if let Some(Export { provider, .. }) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(EXPORT_TIMEOUT)
        {
            tracing::warn!(%error, "The last spans were not sent");
        }
    }
}

impl Parent {
    fn context(self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, span) = (TraceId::from_bytes(self.trace), SpanId::from_bytes(self.span));
        SpanContext::new(trace, span, flags, true, TraceState::default())
    }
}

/// hostd's HTTP client; it is called on the thread that sends, and blocks it.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // It is the operator's own.
            .proxy(None)
            .timeout_global(Some(EXPORT_TIMEOUT));
        Client(config.build().into())
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, body.to_vec());
        let answer = self.0.run(request)?;
        let (parts, mut body) = answer.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}
