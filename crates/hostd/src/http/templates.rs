//! Templates: what there is, taking what has been built, letting go.

use super::error::ApiError;
use super::exec::{HEARTBEAT, ndjson};
use super::path::Ids;
use crate::app::App;
use crate::sandbox::events::write_line;
use crate::template::definition::Definition;
use crate::template::take;
use crate::template::variant::{Availability, Variant};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream::{self, Stream};
use podflare_api::template::{TemplateList, TemplateProgress, TemplateSize, TemplateState, TemplateView};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<TemplateList> {
    let variants = app.templates.variants();
    let templates = app.templates.definitions();
    Json(TemplateList { templates: templates.iter().map(|template| view(template, &variants)).collect() })
}

pub(super) async fn inspect(
    State(app): State<Arc<App>>,
    Ids(name): Ids<String>,
) -> Result<Json<TemplateView>, ApiError> {
    let template = app.templates.find(&name)?;
    Ok(Json(view(&template, &app.templates.variants())))
}

pub(super) async fn take(State(app): State<Arc<App>>, Ids(name): Ids<String>) -> Result<Response, ApiError> {
    let progress = take::take(&app, &name).await?;
    Ok(ndjson(Body::from_stream(lines(progress, app.settings.heartbeat))))
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Ids(name): Ids<String>,
) -> Result<StatusCode, ApiError> {
    app.templates.remove(&name)?;
    app.spaces.forget_template(name).await;
    Ok(StatusCode::NO_CONTENT)
}

fn lines(
    progress: mpsc::Receiver<TemplateProgress>,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((progress, heartbeat), async |(mut progress, heartbeat)| {
        let bytes = match timeout(heartbeat, progress.recv()).await {
            Ok(line) => {
                let mut text = Vec::new();
                write_line(&line?, &mut text);
                Bytes::from(text)
            }
            Err(_) => Bytes::from_static(HEARTBEAT),
        };
        Some((Ok(bytes), (progress, heartbeat)))
    })
}

fn view(template: &Arc<Definition>, variants: &[Arc<Variant>]) -> TemplateView {
    let of_it = variants.iter().filter(|variant| Arc::ptr_eq(&variant.definition, template));
    let sizes: Vec<TemplateSize> = of_it
        .filter_map(|variant| {
            let state = match variant.availability() {
                Availability::Ready(_) => TemplateState::Ready,
                Availability::Not(_) => TemplateState::Booting,
                Availability::Gone(_) => return None,
            };
            let size = variant.size();
            Some(TemplateSize { ram_mib: size.ram_mib, vcpus: size.vcpus, state })
        })
        .collect();
    let size = template.size;
    let own = sizes.iter().find(|known| (known.ram_mib, known.vcpus) == (size.ram_mib, size.vcpus));
    TemplateView {
        name: template.name.clone(),
        description: template.description.clone(),
        ram_mib: size.ram_mib,
        vcpus: size.vcpus,
        rootfs_gb: template.disk_gib,
        built_at_ms: template.built_at_ms,
        state: own.map_or(TemplateState::Cold, |known| known.state),
        sizes,
    }
}
