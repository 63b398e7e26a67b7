//! Tells webhooks of events: each in the events' order, again and again until it takes them, over restarts of the host.

mod rows;
mod send;
mod signature;

use crate::chain::chain;
use crate::journal::Journal;
use crate::sandbox::events::unix_time_ms;
use crate::store::{Store, StoreError};
use crate::tenant::Tenant;
use podflare_api::event::LifecycleEvent;
use podflare_api::id::WebhookId;
use podflare_api::webhook::{CreateWebhook, WEBHOOK_URL_LEN_MAX, WEBHOOKS_MAX, WebhookCreated, WebhookView};
use rows::Webhook;
use send::{Delivery, Sender};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

/// Deliveries under way at once: each has a thread.
const SENDS_MAX: usize = 8;

/// Events that are looked at in one go.
const BATCH: u32 = 100;

/// The pauses between attempts at one event; after the last it is passed over. A day and a half in all.
const PAUSES: [Duration; 12] = {
    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
    [
        seconds(1),
        seconds(5),
        seconds(15),
        seconds(60),
        seconds(300),
        seconds(900),
        seconds(3600),
        seconds(7200),
        seconds(14_400),
        seconds(28_800),
        seconds(28_800),
        seconds(43_200),
    ]
};

const EVENT_TYPES_MAX: usize = 32;
const EVENT_TYPE_LEN_MAX: usize = 64;

#[derive(Debug)]
pub struct Webhooks {
    store: Store,
    sender: Sender,
    sends: Arc<Semaphore>,
    /// A plain mutex: held for look-ups and swaps, never across an await.
    all: Mutex<HashMap<WebhookId, Kept>>,
    /// Makes changes come one after the other.
    changing: tokio::sync::Mutex<()>,
    added: Notify,
}

#[derive(Debug)]
struct Kept {
    webhook: Webhook,
    /// Of the task that tells it.
    teller: Option<AbortHandle>,
}

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error(
        "`url` must be an address that begins with https:// or http://, of at most {WEBHOOK_URL_LEN_MAX} bytes"
    )]
    Url,
    #[error("`events` must be at most {EVENT_TYPES_MAX} types of events, such as sandbox.closed")]
    Events,
    #[error("there are {WEBHOOKS_MAX} webhooks already; that is the most")]
    TooMany,
    #[error("webhook not found")]
    Unknown,
    #[error("Could not make a random secret")]
    Random(#[source] getrandom::Error),
    #[error("Could not keep the webhook; nothing has changed")]
    Store(#[from] StoreError),
}

impl Webhooks {
    pub fn load(store: Store) -> Result<Webhooks, StoreError> {
        let webhooks = store.run_blocking(rows::all)?;
        let kept = |webhook: Webhook| (webhook.view.id.clone(), Kept { webhook, teller: None });
        Ok(Webhooks {
            store,
            sender: Sender::new(),
            sends: Arc::new(Semaphore::new(SENDS_MAX)),
            all: Mutex::new(webhooks.into_iter().map(kept).collect()),
            changing: tokio::sync::Mutex::default(),
            added: Notify::new(),
        })
    }

    /// It is told of what comes from now on: events above `since`.
    pub async fn create(
        &self,
        tenant: &Tenant,
        request: CreateWebhook,
        since: u64,
    ) -> Result<WebhookCreated, WebhookError> {
        let CreateWebhook { url, events } = request;
        check_url(&url)?;
        check_events(&events)?;
        let _changing = self.changing.lock().await;
        if self.list(tenant).iter().filter(|view| view.key.as_ref() == tenant.key()).count() >= WEBHOOKS_MAX {
            return Err(WebhookError::TooMany);
        }
        let secret = signature::make_secret().map_err(WebhookError::Random)?;
        let view = WebhookView {
            id: WebhookId::random(),
            url,
            events,
            created_at_ms: unix_time_ms(),
            told_seq: since,
            failures: 0,
            key: tenant.key().cloned(),
        };
        let webhook = Webhook { view: view.clone(), secret: secret.clone() };
        let row = webhook.clone();
        self.store.run(move |db| rows::insert(db, &row)).await?;
        self.lock().insert(view.id.clone(), Kept { webhook, teller: None });
        self.added.notify_one();
        Ok(WebhookCreated { secret, view })
    }

    /// Those that are there for a tenant, oldest first.
    pub fn list(&self, tenant: &Tenant) -> Vec<WebhookView> {
        let is_visible = |view: &WebhookView| tenant.is_operator() || view.key.as_ref() == tenant.key();
        let all = self.lock();
        let mut views: Vec<WebhookView> =
            all.values().map(|kept| kept.webhook.view.clone()).filter(is_visible).collect();
        views.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
        views
    }

    pub async fn delete(&self, tenant: &Tenant, id: &str) -> Result<(), WebhookError> {
        let _changing = self.changing.lock().await;
        let view = self.list(tenant).into_iter().find(|view| view.id.as_str() == id);
        let id = view.ok_or(WebhookError::Unknown)?.id;
        let row = id.clone();
        self.store.run(move |db| rows::delete(db, &row)).await?;
        if let Some(Kept { teller: Some(teller), .. }) = self.lock().remove(&id) {
            teller.abort();
        }
        Ok(())
    }

    /// Tells all webhooks, for as long as it is polled.
    pub async fn tell(self: &Arc<Webhooks>, journal: &Arc<Journal>) -> Infallible {
        let mut tellers = JoinSet::new();
        loop {
            for kept in self.lock().values_mut().filter(|kept| kept.teller.is_none()) {
                let (webhooks, journal) = (self.clone(), journal.clone());
                let id = kept.webhook.view.id.clone();
                kept.teller = Some(tellers.spawn(async move { webhooks.tell_one(&id, &journal).await }));
            }
            // Those whose webhooks are gone.
            while tellers.try_join_next().is_some() {}
            self.added.notified().await;
        }
    }

    async fn tell_one(&self, id: &WebhookId, journal: &Journal) {
        let mut changes = journal.watch();
        loop {
            changes.borrow_and_update();
            let Some(Webhook { view, secret }) = self.find(id) else { return };
            let events = match journal.of_key(view.key.as_ref(), view.told_seq, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::error!(%id, error = %chain(&error), "Could not read what a webhook is to be told");
                    sleep(PAUSES[2]).await;
                    continue;
                }
            };
            if events.is_empty() && changes.changed().await.is_err() {
                return;
            }
            for event in events {
                if view.events.is_empty() || view.events.iter().any(|wanted| *wanted == kind(&event)) {
                    self.tell_event(&view, &secret, &event).await;
                }
                self.set_told(id, event.seq).await;
            }
        }
    }

    /// Until it is taken, or has been tried often enough.
    async fn tell_event(&self, view: &WebhookView, secret: &str, event: &LifecycleEvent) {
        let id = &view.id;
        let Ok(body) = serde_json::to_vec(event) else { return };
        let delivery = Delivery {
            url: view.url.clone(),
            secret: secret.to_owned(),
            name: format!("{id}-{}", event.seq),
            body,
        };
        for pause in PAUSES.into_iter().map(Some).chain([None]) {
            let Err(error) = self.send(delivery.clone(), view.key.is_none()).await else { return };
            if let Some(kept) = self.lock().get_mut(id) {
                kept.webhook.view.failures += 1;
            }
            let Some(pause) = pause else { break };
            tracing::debug!(%id, seq = event.seq, error, "A webhook did not take an event; it is told again");
            sleep(pause).await;
        }
        tracing::warn!(%id, seq = event.seq, "A webhook has not taken an event; it is passed over");
    }

    async fn send(&self, delivery: Delivery, may_go_anywhere: bool) -> Result<(), String> {
        // Never closed.
        let _turn = self.sends.acquire().await.ok();
        let (sender, at) = (self.sender.clone(), unix_time_ms() / 1000);
        let sent = tokio::task::spawn_blocking(move || sender.send(&delivery, may_go_anywhere, at)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(chain(&error)),
        }
    }

    async fn set_told(&self, id: &WebhookId, seq: u64) {
        if let Some(kept) = self.lock().get_mut(id) {
            kept.webhook.view.told_seq = seq;
            kept.webhook.view.failures = 0;
        }
        let row = id.clone();
        if let Err(error) = self.store.run(move |db| rows::set_told(db, &row, seq)).await {
            tracing::error!(%id, error = %chain(&error), "Could not note that a webhook was told; it may be told again");
        }
    }

    fn find(&self, id: &WebhookId) -> Option<Webhook> {
        self.lock().get(id).map(|kept| kept.webhook.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WebhookId, Kept>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_url(url: &str) -> Result<(), WebhookError> {
    let uri: Option<ureq::http::Uri> =
        Some(url).filter(|url| url.len() <= WEBHOOK_URL_LEN_MAX).and_then(|url| url.parse().ok());
    let uri = uri.ok_or(WebhookError::Url)?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri
        .authority()
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    if is_http && has_host { Ok(()) } else { Err(WebhookError::Url) }
}

/// Types that there are not yet may be asked for.
fn check_events(events: &[String]) -> Result<(), WebhookError> {
    let is_type = |event: &String| {
        (1..=EVENT_TYPE_LEN_MAX).contains(&event.len())
            && event.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'.' || byte == b'_')
    };
    let are_types = events.len() <= EVENT_TYPES_MAX && events.iter().all(is_type);
    if are_types { Ok(()) } else { Err(WebhookError::Events) }
}

/// The type that an event has in its own words.
fn kind(event: &LifecycleEvent) -> String {
    let value = serde_json::to_value(&event.what).unwrap_or_default();
    value["type"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_of_a_server_is_refused() {
        for good in ["https://example.org/hook?x=1", "http://127.0.0.1:8080/"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "example.org",
            "ftp://example.org",
            "https://",
            "file:///etc/passwd",
            "https://user:pass@example.org",
            "/x",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        assert!(check_url(&format!("https://example.org/{}", "x".repeat(WEBHOOK_URL_LEN_MAX))).is_err());
        assert!(check_events(&["sandbox.closed".into()]).is_ok());
        assert!(check_events(&["a b".into()]).is_err());
        assert!(check_events(&vec!["a".into(); EVENT_TYPES_MAX + 1]).is_err());
    }
}
