//! Who is told of events, how, and how often.

use crate::host::{Host, until};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A server that notes what it is told, and refuses the first so many times.
#[derive(Clone, Default)]
struct Listener {
    heard: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    refusals: Arc<Mutex<u32>>,
}

impl Listener {
    /// Its address.
    async fn start(&self) -> String {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let router = Router::new().route("/hook", post(hear)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(socket, router).await });
        format!("http://{address}/hook")
    }

    fn types(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.iter().map(|(_, event)| event["type"].as_str().unwrap().to_owned()).collect()
    }
}

async fn hear(State(listener): State<Listener>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let event = serde_json::from_slice(&body).unwrap();
    listener.heard.lock().unwrap().push((headers, event));
    let mut refusals = listener.refusals.lock().unwrap();
    if *refusals > 0 {
        *refusals -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    StatusCode::OK
}

async fn webhook(host: &Host, body: &Value) -> Value {
    let created = host.post("/v1/webhooks", body).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    created.json()
}

#[tokio::test]
async fn a_webhook_is_told_of_what_it_asked_for_signed_and_in_order() {
    let host = Host::start(&[]).await;
    let before = host.create().await;
    until("the first event is kept", async || host.app.journal.last() == 1).await;
    let listener = Listener::default();
    let body = json!({ "url": listener.start().await, "events": ["sandbox.created", "sandbox.closed"] });
    let created = webhook(&host, &body).await;
    let id = host.create().await;
    host.fork(&id, 1).await;
    host.delete(&before).await;
    until("both are told", async || listener.types().len() == 2).await;
    assert_eq!(listener.types(), ["sandbox.created", "sandbox.closed"]);
    let heard = listener.heard.lock().unwrap().clone();
    let (headers, event) = &heard[0];
    assert_eq!(event["sandbox"], *id, "what was before is not told");
    assert!(headers["podflare-signature"].to_str().unwrap().starts_with("t="));
    let name = format!("{}-{}", created["id"].as_str().unwrap(), event["seq"]);
    assert_eq!(headers["podflare-delivery"], *name);
    assert!(created["secret"].as_str().unwrap().starts_with("whsec_"));
    let listed = host.get("/v1/webhooks").await;
    assert!(!listed.body.contains("whsec_"), "{}", listed.body);
}

#[tokio::test]
async fn a_webhook_that_refuses_is_told_again() {
    let host = Host::start(&[]).await;
    let listener = Listener::default();
    *listener.refusals.lock().unwrap() = 1;
    webhook(&host, &json!({ "url": listener.start().await })).await;
    host.create().await;
    until("it has failed", async || host.get("/v1/webhooks").await.json()["webhooks"][0]["failures"] == 1)
        .await;
    until("it is told again", async || listener.types().len() == 2).await;
    let heard = listener.heard.lock().unwrap().clone();
    assert_eq!(heard[0].1, heard[1].1);
    assert_eq!(heard[0].0["podflare-delivery"], heard[1].0["podflare-delivery"]);
    until("it has been told", async || {
        let view = host.get("/v1/webhooks").await.json()["webhooks"][0].clone();
        view["told_seq"] == 1 && view["failures"] == 0
    })
    .await;
}

#[tokio::test]
async fn a_webhook_that_is_deleted_is_told_no_more() {
    let host = Host::start(&[]).await;
    let listener = Listener::default();
    let body = json!({ "url": listener.start().await });
    let [gone, stays] = [webhook(&host, &body).await, webhook(&host, &body).await];
    let path = format!("/v1/webhooks/{}", gone["id"].as_str().unwrap());
    assert_eq!(host.delete_at(&path).await.status, StatusCode::NO_CONTENT);
    assert_eq!(host.delete_at(&path).await.status, StatusCode::NOT_FOUND);
    host.create().await;
    until("the other is told", async || {
        host.get("/v1/webhooks").await.json()["webhooks"][0]["told_seq"] == 1
    })
    .await;
    assert_eq!(listener.types().len(), 1);
    assert_eq!(host.get("/v1/webhooks").await.json()["webhooks"][0]["id"], stays["id"]);
}

#[tokio::test]
async fn a_key_has_its_own_webhooks_which_lead_nowhere_but_into_the_public() {
    let host = Host::start(&["--api-keys", "pf_live_a,pf_live_b"]).await;
    let listener = Listener::default();
    let body = json!({ "url": listener.start().await });
    let created = host.ask("pf_live_a", "POST", "/v1/webhooks", Some(&body)).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    let path = format!("/v1/webhooks/{}", created.json()["id"].as_str().unwrap());
    assert_eq!(host.ask("pf_live_b", "DELETE", &path, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(host.ask("pf_live_b", "GET", "/v1/webhooks", None).await.json()["webhooks"], json!([]));
    host.ask("pf_live_a", "POST", "/v1/sandboxes", Some(&json!({}))).await;
    until("it has failed", async || {
        let listed = host.ask("pf_live_a", "GET", "/v1/webhooks", None).await.json();
        listed["webhooks"][0]["failures"].as_u64() >= Some(1)
    })
    .await;
    assert!(listener.types().is_empty());
}

#[tokio::test]
async fn what_is_no_webhook_is_refused_and_there_are_only_so_many() {
    let host = Host::start(&[]).await;
    for bad in [json!({}), json!({ "url": "ftp://x" }), json!({ "url": "http://x", "events": ["A B"] })] {
        assert_eq!(host.post("/v1/webhooks", &bad).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    for _ in 0..16 {
        webhook(&host, &json!({ "url": "http://127.0.0.1:1/" })).await;
    }
    let one_more = host.post("/v1/webhooks", &json!({ "url": "http://127.0.0.1:1/" })).await;
    assert_eq!(one_more.status, StatusCode::CONFLICT);
}
