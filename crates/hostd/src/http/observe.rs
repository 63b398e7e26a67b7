//! What every request gets: a span that joins the caller's trace, and `Server-Timing`.

use crate::app::App;
use crate::phases::Phases;
use crate::traces::{Answered, Parent};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tracing::Instrument;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let (began, path) = (SystemTime::now(), request.uri().path().to_owned());
    let parent = parent(request.headers());
    let (trace_id, parent_span_id) = trace_parent(request.headers()).unwrap_or_default();
    let span = tracing::info_span!(
        "http_request",
        method = %request.method(),
        path,
        trace_id,
        parent_span_id,
    );
    async {
        let mut response = next.run(request).await;
        let phases = response.extensions_mut().remove::<Phases>().unwrap_or_default();
        let took = begun.elapsed();
        if let Ok(value) = HeaderValue::try_from(server_timing(&phases, took)) {
            response.headers_mut().insert(SERVER_TIMING, value);
        }
        let status = response.status().as_u16();
        app.metrics.count_answer(method.as_str(), route.as_deref().unwrap_or("none"), status, took);
        let answered = Answered {
            method: method.as_str(),
            route: route.as_deref(),
            path: &path,
            status,
            parent,
            began,
            took,
            phases: &phases,
        };
        app.traces.record(&answered);
        tracing::debug!(status = response.status().as_u16(), took_us = took.as_micros(), "Answered");
        response
    }
    .instrument(span)
    .await
}

fn server_timing(phases: &Phases, total: Duration) -> String {
    let mut text = String::new();
    for (name, duration) in phases.iter().chain([&("total", total)]) {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        write!(text, "{separator}{name};dur={:.3}", duration.as_secs_f64() * 1e3).ok();
    }
    text
}

/// The same, as numbers.
fn parent(headers: &HeaderMap) -> Option<Parent> {
    let (trace, span) = trace_parent(headers)?;
    let flags = headers.get(TRACEPARENT)?.to_str().ok()?.rsplit('-').next()?;
    Some(Parent {
        trace: u128::from_str_radix(trace, 16).ok()?.to_be_bytes(),
        span: u64::from_str_radix(span, 16).ok()?.to_be_bytes(),
        sampled: u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1),
    })
}

/// Trace and span of the W3C header, if it is well formed.
fn trace_parent(headers: &HeaderMap) -> Option<(&str, &str)> {
    let mut parts = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (_version, trace_id, span_id) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex(trace_id, 32) && hex(span_id, 16)).then_some((trace_id, span_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_written_in_milliseconds_with_the_total_last() {
        let phases = Phases::default().with("pause", Duration::from_micros(1_500));
        let text = server_timing(&phases, Duration::from_millis(20));
        assert_eq!(text, "pause;dur=1.500, total;dur=20.000");
    }

    #[test]
    fn only_a_well_formed_traceparent_is_taken() {
        let mut headers = HeaderMap::new();
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert(TRACEPARENT, HeaderValue::from_static(good));
        assert_eq!(trace_parent(&headers), Some(("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")));
        headers.insert(TRACEPARENT, HeaderValue::from_static("00-x-y-01"));
        assert_eq!(trace_parent(&headers), None);
    }
}
