//! More time for a sandbox, or less.

use super::registry::FindError;
use super::state::Terms;
use crate::app::App;
use podflare_api::event::Happening;
use podflare_api::sandbox::{ExtendSandbox, SandboxView};
use std::time::{Duration, Instant};

pub fn extend(app: &App, id: &str, request: &ExtendSandbox) -> Result<SandboxView, FindError> {
    let sandbox = app.registry.find(id)?;
    let (terms, started, tenant) = {
        let identity = sandbox.identity();
        (identity.terms, identity.started, identity.tenant.clone())
    };
    let asked = asked(request, terms, Instant::now().saturating_duration_since(started));
    let offered = app.settings.terms.lowered(asked);
    let terms = tenant.tier().map_or(offered, |tier| tier.terms(offered));
    sandbox.set_terms(terms);
    let view = sandbox.view();
    let SandboxView { timeout_seconds, idle_timeout_seconds, .. } = view;
    app.journal.record(
        &tenant,
        Happening::Extended { sandbox: view.id.clone(), timeout_seconds, idle_timeout_seconds },
    );
    Ok(view)
}

/// Terms count from the sandbox's start, and clients from now.
fn asked(request: &ExtendSandbox, terms: Terms, age: Duration) -> Terms {
    let seconds = |asked: u64| Duration::from_secs(asked.max(1));
    Terms {
        life: request.timeout_seconds.map_or(terms.life, |life| age.saturating_add(seconds(life))),
        idle: request.idle_timeout_seconds.map_or(terms.idle, seconds),
        persistent: request.persistent.unwrap_or(terms.persistent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_life_counts_from_now_and_what_is_not_asked_for_stays() {
        let life = Duration::from_secs(1800);
        let terms = Terms { life, idle: Duration::from_secs(300), persistent: false };
        let age = Duration::from_secs(1000);
        let life = ExtendSandbox { timeout_seconds: Some(1000), ..ExtendSandbox::default() };
        assert_eq!(asked(&life, terms, age), Terms { life: Duration::from_secs(2000), ..terms });
        let idle = ExtendSandbox { idle_timeout_seconds: Some(0), ..ExtendSandbox::default() };
        assert_eq!(asked(&idle, terms, age), Terms { idle: Duration::from_secs(1), ..terms });
        let endless = ExtendSandbox { timeout_seconds: Some(u64::MAX), ..ExtendSandbox::default() };
        assert!(asked(&endless, terms, age).life > Duration::from_secs(1 << 40));
        let lasting = ExtendSandbox { persistent: Some(true), ..ExtendSandbox::default() };
        assert_eq!(asked(&lasting, terms, age), Terms { persistent: true, ..terms });
    }
}
