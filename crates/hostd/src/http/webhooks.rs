//! Who is told of events: parse, pass on, answer.

use super::auth::Caller;
use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use crate::app::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use podflare_api::webhook::{CreateWebhook, WebhookCreated, WebhookList};
use std::sync::Arc;

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    JsonBody(request): JsonBody<CreateWebhook>,
) -> Result<Json<WebhookCreated>, ApiError> {
    Ok(Json(app.webhooks.create(&tenant, request, app.journal.last()).await?))
}

pub(super) async fn list(State(app): State<Arc<App>>, Caller(tenant): Caller) -> Json<WebhookList> {
    Json(WebhookList { webhooks: app.webhooks.list(&tenant) })
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    Ids(webhook): Ids<String>,
) -> Result<StatusCode, ApiError> {
    app.webhooks.delete(&tenant, &webhook).await?;
    Ok(StatusCode::NO_CONTENT)
}
