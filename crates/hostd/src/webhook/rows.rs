//! Webhooks as rows of the store.

use podflare_api::id::{KeyId, WebhookId};
use podflare_api::webhook::WebhookView;
use rusqlite::{Transaction, params};

#[derive(Debug, Clone)]
pub(super) struct Webhook {
    pub(super) view: WebhookView,
    pub(super) secret: String,
}

pub(super) fn insert(db: &Transaction<'_>, webhook: &Webhook) -> rusqlite::Result<usize> {
    let Webhook { view, secret } = webhook;
    let insert = "INSERT INTO webhooks (id, key, url, secret, events, created_at_ms, told_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let events = view.events.join(" ");
    let key = view.key.as_ref().map(KeyId::as_str);
    let values = params![view.id.as_str(), key, view.url, secret, events, view.created_at_ms, view.told_seq];
    db.execute(insert, values)
}

pub(super) fn delete(db: &Transaction<'_>, id: &WebhookId) -> rusqlite::Result<usize> {
    db.execute("DELETE FROM webhooks WHERE id = ?1", [id.as_str()])
}

pub(super) fn set_told(db: &Transaction<'_>, id: &WebhookId, seq: u64) -> rusqlite::Result<usize> {
    db.execute("UPDATE webhooks SET told_seq = ?2 WHERE id = ?1", params![id.as_str(), seq])
}

pub(super) fn all(db: &Transaction<'_>) -> rusqlite::Result<Vec<Webhook>> {
    let mut select = db.prepare("SELECT id, key, url, secret, events, created_at_ms, told_seq FROM webhooks ORDER BY created_at_ms, id")?;
    let rows = select.query_map([], |row| {
        let (id, key, events): (String, Option<String>, String) = (row.get(0)?, row.get(1)?, row.get(4)?);
        let Ok(id) = id.parse::<WebhookId>() else { return Ok(None) };
        let view = WebhookView {
            id,
            url: row.get(2)?,
            events: events.split_whitespace().map(str::to_owned).collect(),
            created_at_ms: row.get(5)?,
            told_seq: row.get(6)?,
            failures: 0,
            key: key.and_then(|key| key.parse().ok()),
        };
        Ok(Some(Webhook { view, secret: row.get(3)? }))
    })?;
    let rows: Vec<Option<Webhook>> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(rows.into_iter().flatten().collect())
}
