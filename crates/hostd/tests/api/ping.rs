//! `ping`: a round trip to the guest, whatever runs in it.

use crate::host::{Host, exit, until};
use axum::http::StatusCode;
use serde_json::json;
use std::time::Duration;

fn ping(id: &str) -> String {
    format!("/v1/sandboxes/{id}/ping")
}

#[tokio::test]
async fn a_guest_answers_while_code_runs_in_it() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let running = host.start_exec(&id, "sleep 3600000").await;
    let answer = host.get(&ping(&id)).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""));
    let timing = answer.headers["server-timing"].to_str().unwrap();
    assert!(timing.starts_with("guest;dur="), "{timing}");
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stands_still_is_said_to() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let running = host.start_exec(&id, "stall").await;
    until("it stands still", async || host.get(&ping(&id)).await.status != StatusCode::NO_CONTENT).await;
    let answer = host.get(&ping(&id)).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(answer.error().contains("not answered within 10 s"), "{}", answer.body);
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_only_pinged_is_idle() {
    let host = Host::start(&[]).await;
    let id = host.create_with(&json!({"idle_timeout_seconds": 60})).await["id"].as_str().unwrap().to_owned();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(host.get(&ping(&id)).await.status, StatusCode::NO_CONTENT);
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let answer = host.get(&ping(&id)).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().contains("nothing was run in it for 60 s"), "{}", answer.body);
}

#[tokio::test]
async fn a_ping_finds_the_machine_that_a_merge_has_put_there() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    for _ in 0..20 {
        let winner = host.fork(&id, 1).await.remove(0);
        let path = ping(&id);
        let (answer, merged) = tokio::join!(host.get(&path), host.merge(&id, &winner));
        assert_eq!(merged.status, StatusCode::NO_CONTENT);
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.body);
    }
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
}

#[tokio::test]
async fn an_agent_that_dies_leaves_a_guest_that_answers() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.exec(&id, "crash").await;
    let answer = host.get(&ping(&id)).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.body);
}
