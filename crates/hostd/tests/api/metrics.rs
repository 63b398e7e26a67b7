//! What Prometheus is told.

use crate::host::{Host, until};
use axum::http::StatusCode;

/// The value of the line that begins so.
fn value(text: &str, line: &str) -> Option<f64> {
    text.lines().find_map(|found| found.strip_prefix(line)).map(|rest| rest.trim().parse().unwrap())
}

#[tokio::test]
async fn metrics_count_what_has_been_done_and_what_there_is() {
    let host = Host::start(&["--pool-size", "2"]).await;
    let id = host.create().await;
    host.fork(&id, 2).await;
    host.get("/v1/sandboxes/sbx_00000000000000000000000000000000").await;
    host.delete(&id).await;
    let metric = async |line: &str| value(&host.get("/metrics").await.body, line);
    until("the end is counted", async || {
        metric("podflare_sandboxes_ended_total{cause=\"deleted\"}").await == Some(1.0)
    })
    .await;
    let answers = |method: &str, path: &str, status: u16| {
        format!(
            "podflare_http_answer_seconds_count{{method=\"{method}\",path=\"{path}\",status=\"{status}\"}}"
        )
    };
    assert_eq!(metric(&answers("POST", "/v1/sandboxes", 200)).await, Some(1.0));
    assert_eq!(metric(&answers("POST", "/v1/sandboxes/{id}/fork", 200)).await, Some(1.0));
    assert_eq!(metric(&answers("GET", "/v1/sandboxes/{id}", 404)).await, Some(1.0));
    assert_eq!(metric("podflare_sandboxes ").await, Some(2.0));
    let hits = host.get("/metrics").await.body;
    assert!(hits.contains("podflare_pool_hits_total{template=\"default\""), "{hits}");
    assert!(hits.ends_with("# EOF\n"));
}

#[tokio::test]
async fn metrics_are_the_operators() {
    let host = Host::start(&["--api-keys", "pf_live_a", "--admin-key", "pf_admin_b"]).await;
    assert_eq!(host.ask("pf_live_a", "GET", "/metrics", None).await.status, StatusCode::FORBIDDEN);
    assert_eq!(host.ask("pf_admin_b", "GET", "/metrics", None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_clients_own_words_make_no_label() {
    let host = Host::start(&[]).await;
    for path in ["/nowhere/a", "/nowhere/b"] {
        host.get(path).await;
    }
    let text = host.get("/metrics").await.body;
    assert!(!text.contains("nowhere"), "{text}");
    assert_eq!(
        value(&text, "podflare_http_answer_seconds_count{method=\"GET\",path=\"none\",status=\"404\"}"),
        Some(2.0)
    );
}
