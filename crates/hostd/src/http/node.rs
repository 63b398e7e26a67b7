//! The host itself: is it ready, what has it left, what does it serve.

use super::auth::Caller;
use super::error::ApiError;
use super::files::query::Query;
use crate::app::App;
use crate::template::Availability;
use crate::template::variant::Variant;
use crate::tenant::Tenant;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use podflare_api::capacity::{Capacity, TemplateCapacity};
use podflare_api::openapi;
use podflare_api::usage::UsageList;
use std::sync::Arc;
use std::time::Duration;

const BASIS_POINTS: u64 = 10_000;

pub(super) async fn healthz(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    match app.templates.default().availability() {
        Availability::Ready(_) => Ok("ok"),
        Availability::Not(why) => Err(ApiError::unavailable(why.into_owned())),
        // The default one never is.
        Availability::Gone(_) => Err(ApiError::unavailable("the template is gone".to_owned())),
    }
}

pub(super) async fn capacity(State(app): State<Arc<App>>) -> Json<Capacity> {
    Json(Capacity {
        sandboxes: count(app.registry.len()),
        checkpoints: count(app.registry.visible_checkpoints(&Tenant::operator()).len()),
        sandboxes_max: app.settings.sandboxes_max,
        templates: app.templates.variants().iter().map(|variant| template_capacity(variant)).collect(),
    })
}

fn template_capacity(variant: &Variant) -> TemplateCapacity {
    let counters = variant.pool.counters();
    let creates = counters.hits + counters.misses;
    let hit_rate_bp = (counters.hits * BASIS_POINTS).checked_div(creates).unwrap_or(0);
    let availability = variant.availability();
    let (hot_pages, rested) = match &availability {
        Availability::Ready(template) => (template.hot_pages, template.rested),
        Availability::Not(_) | Availability::Gone(_) => (0, false),
    };
    TemplateCapacity {
        template: variant.shape.template.clone(),
        ram_mib: variant.shape.memory_mib,
        vcpus: variant.shape.vcpus,
        available: matches!(availability, Availability::Ready(_)),
        rested,
        hot_pages,
        pool_size: count(counters.levels.wanted),
        pool_target: count(counters.levels.target),
        pool_ready: count(counters.levels.ready),
        pool_starting: count(counters.levels.starting),
        pool_hits: counters.hits,
        pool_misses: counters.misses,
        pool_hit_rate_bp: u32::try_from(hit_rate_bp).unwrap_or(u32::MAX),
        on_demand_boot_ms_mean: counters.on_demand_mean.map(milliseconds),
        pool_refill_ms_mean: counters.refill_mean.map(milliseconds),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A month.
const USAGE_DAYS: u32 = 31;

pub(super) async fn usage(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    query: Query,
) -> Result<Json<UsageList>, ApiError> {
    let days = query.number("days")?.unwrap_or(USAGE_DAYS);
    Ok(Json(UsageList { days: app.usage.days(&tenant, days).await? }))
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let text = app.metrics.text(&app)?;
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS))], text))
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], openapi::document())
}
