//! Sees variants through their lives: boots them, has them come to rest, and notices when they are lost.

use super::boot::BootError;
use super::variant::{Availability, Variant};
use crate::app::App;
use crate::chain::chain;
use crate::sandbox::state::EndCause;
use crate::template::Template;
use crate::vmm::Ending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep};

/// The pause before the default variant is booted again after a failure.
const REBOOT_PAUSE: Duration = Duration::from_secs(5);

/// How long the keeping of a template on the disk may wait for a moment in which it disturbs nobody.
const KEEPING_PATIENCE: Duration = Duration::from_secs(60);

/// Boots the default variant and, if it is ever lost, boots it again. Returns if the first boot fails.
pub(crate) async fn keep_always(app: &Arc<App>) -> BootError {
    let variant = app.templates.default();
    let mut template = match boot(app, variant, None).await {
        Ok(template) => template,
        Err(error) => return error,
    };
    loop {
        let ending = keep_until_lost(app, variant, template).await;
        tracing::error!(%ending, "The template's machine ended; it is booted again");
        variant.set(Availability::Not("starting: the template boots again".into()));
        template = loop {
            match boot(app, variant, None).await {
                Ok(template) => break template,
                Err(error) => tracing::error!(error = %chain(&error), "Could not boot the template again"),
            }
            sleep(REBOOT_PAUSE).await;
        };
    }
}

/// Boots any other variant once, in its turn, and keeps it until it is lost or has to go.
pub(super) async fn keep_while_needed(app: Arc<App>, variant: Arc<Variant>) {
    let failed = tokio::select! {
        () = variant.until_let_go() => None,
        failed = keep_once(&app, &variant) => failed,
    };
    // Before anyone hears of it: who tries again finds it gone.
    app.templates.drop_variant(&variant);
    variant.set(Availability::Gone(failed.map(Arc::new)));
    for member in variant.pool.close() {
        member.end(EndCause::Surplus);
    }
}

/// Returns when there is nothing left to keep, with the reason if it did not boot.
async fn keep_once(app: &Arc<App>, variant: &Arc<Variant>) -> Option<BootError> {
    let (template, size) = (variant.shape.template.as_str(), variant.size());
    // The semaphore is never closed.
    let turn = app.templates.boots.acquire().await.ok();
    match boot(app, variant, turn).await {
        Ok(booted) => {
            let ending = keep_until_lost(app, variant, booted).await;
            tracing::warn!(template, ?size, %ending, "A template's machine ended; the next create boots it again");
            None
        }
        Err(error) => {
            tracing::warn!(template, ?size, error = %chain(&error), "Could not boot a template");
            Some(error)
        }
    }
}

/// Has the template come to rest, and puts the rested one in its place, for which it lets go of the first. Then keeps it
/// on the disk for the next start. Resolves when the machine has ended.
async fn keep_until_lost(app: &App, variant: &Variant, template: Arc<Template>) -> Arc<Ending> {
    let template = if template.rested {
        template
    } else {
        let ended = template.machine.ended();
        tokio::select! {
            ending = ended => return ending,
            rested = rest(variant, template) => rested,
        }
    };
    let kept = async {
        app.quiet(KEEPING_PATIENCE).await;
        if let Err(error) = app.spaces.keep_template(&template).await {
            let error = chain(&error);
            tracing::warn!(
                template = template.shape.template,
                error,
                "The next start boots the template again"
            );
        }
    };
    tokio::select! {
        ending = template.machine.ended() => return ending,
        () = kept => {}
    }
    template.machine.ended().await
}

/// The template as it is when it has come to rest, in its place.
async fn rest(variant: &Variant, mut template: Arc<Template>) -> Arc<Template> {
    let rested = template.rest().await;
    let name = template.shape.template.as_str();
    match rested {
        Ok(Some(rested)) => {
            template = Arc::new(rested);
            variant.set(Availability::Ready(template.clone()));
            tracing::info!(template = template.shape.template, "The template has come to rest");
        }
        Ok(None) => {}
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(
                template = name,
                error,
                "The template did not come to rest; each copy does it by itself"
            );
        }
    }
    template
}

async fn boot(
    app: &Arc<App>,
    variant: &Variant,
    turn: Option<SemaphorePermit<'_>>,
) -> Result<Arc<Template>, BootError> {
    let begun = Instant::now();
    let template = Arc::new(app.boot_template(variant, turn).await?);
    variant.set(Availability::Ready(template.clone()));
    let took_ms = begun.elapsed().as_millis();
    tracing::info!(template = variant.shape.template, size = ?variant.size(), took_ms, "The template is ready");
    Ok(template)
}
