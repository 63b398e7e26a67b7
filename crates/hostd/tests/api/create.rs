//! Creating, looking at, and ending sandboxes.

use crate::host::{Host, exit, stderr};
use axum::http::StatusCode;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

#[tokio::test]
async fn a_created_sandbox_is_ready_and_keeps_its_variables() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.exec(&id, "set greeting hello").await;
    assert_eq!(host.text(&id, "get greeting").await, "hello");
    let view = host.get(&format!("/v1/sandboxes/{id}")).await.json();
    assert_eq!(view["state"], "ready");
    assert_eq!(view["executions"], 2);
    assert_eq!(view["generation"], 1);
    assert_eq!(view["parent"], json!(null));
    assert_eq!(view["renewed"], true);
}

#[tokio::test]
async fn the_answer_says_what_the_sandbox_really_has() {
    let host = Host::start(&["--timeout-max", "3600"]).await;
    let asked = json!({
        "template": "default", "ram_mib": 65536, "rootfs_gb": 512, "timeout_seconds": 100_000,
        "idle_timeout_seconds": 7, "persistent": true, "egress": true, "from_the_future": 1,
    });
    let created = host.create_with(&asked).await;
    assert_eq!(created["state"], "ready");
    assert_eq!(created["template"], "default");
    assert_eq!(
        (&created["ram_mib"], &created["rootfs_gb"], &created["vcpus"]),
        (&json!(1024), &json!(4), &json!(2))
    );
    assert_eq!(created["timeout_seconds"], 3600);
    assert_eq!(created["idle_timeout_seconds"], 7);
    assert_eq!(created["persistent"], false);
    assert_eq!(created["egress"], false);
}

#[tokio::test]
async fn an_unknown_template_is_answered_with_the_known_ones() {
    let host = Host::start(&[]).await;
    let answer = host.post("/v1/sandboxes", &json!({"template": "windows"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.error(), "template \"windows\" not found; this host has: default");
}

#[tokio::test]
async fn sandboxes_are_listed_oldest_first() {
    let host = Host::start(&[]).await;
    let ids = [host.create().await, host.create().await, host.create().await];
    let list = host.get("/v1/sandboxes").await.json();
    let mut listed: Vec<_> = list["sandboxes"].as_array().unwrap().iter().collect();
    assert!(listed.is_sorted_by_key(|view| view["created_at_ms"].as_u64().unwrap()));
    listed.sort_by_key(|view| ids.iter().position(|id| view["id"] == id.as_str()));
    assert_eq!(listed.len(), ids.len());
}

#[tokio::test]
async fn deleting_is_the_same_however_often_and_ends_the_machine() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    assert_eq!(host.vmm.alive(), 2);
    for id in [id.as_str(), &id, "sbx_00000000000000000000000000000000", "nonsense"] {
        let answer = host.delete(id).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""));
    }
    host.machines_are(1).await;
    let answer = host.get(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.error(), "sandbox not found: it ended 0 s ago because it was deleted");
}

#[tokio::test]
async fn an_execution_is_told_that_its_sandbox_was_deleted() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let running = host.start_exec(&id, "sleep 3600000").await;
    let waiting = host.start_exec(&id, "print never").await;
    host.delete(&id).await;
    let expected = [stderr("the sandbox has ended: it was deleted"), exit(137)];
    assert_eq!(running.rest().await, expected);
    assert_eq!(waiting.rest().await, expected);
}

#[tokio::test]
async fn a_full_host_says_so_until_a_sandbox_ends() {
    let host = Host::start(&["--sandboxes-max", "2"]).await;
    let id = host.create().await;
    host.create().await;
    let answer = host.post("/v1/sandboxes", &json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().contains("limit is 2 sandboxes"), "{}", answer.body);
    let answer = host.post(&format!("/v1/sandboxes/{id}/fork"), &json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    host.delete(&id).await;
    crate::host::until("there is room again", async || {
        host.post("/v1/sandboxes", &json!({})).await.status == StatusCode::OK
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_sandbox_ends_when_its_time_is_over_and_not_before() {
    let host = Host::start(&[]).await;
    let begun = Instant::now();
    let id = host.create_with(&json!({"idle_timeout_seconds": 60})).await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sandboxes/{id}");
    sleep_until(begun + Duration::from_millis(59_500)).await;
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
    sleep_until(begun + Duration::from_millis(119_000)).await;
    assert_eq!(host.get(&path).await.status, StatusCode::OK);
    sleep_until(begun + Duration::from_millis(120_500)).await;
    let answer = host.get(&path).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().ends_with("because nothing was run in it for 60 s"), "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_with_a_running_execution_is_never_idle() {
    let host = Host::start(&[]).await;
    let id = host.create_with(&json!({"idle_timeout_seconds": 5})).await["id"].as_str().unwrap().to_owned();
    assert_eq!(host.exec(&id, "sleep 60000").await, [exit(0)]);
    assert_eq!(host.exec(&id, "pass").await, [exit(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_ends_with_its_lifetime_even_if_it_is_busy() {
    let host = Host::start(&[]).await;
    let begun = Instant::now();
    let id = host.create_with(&json!({"timeout_seconds": 90})).await["id"].as_str().unwrap().to_owned();
    let events = host.exec(&id, "sleep 1000000").await;
    assert_eq!(events, [stderr("the sandbox has ended: its lifetime of 90 s was over"), exit(137)]);
    assert_eq!(begun.elapsed().as_secs(), 90);
}

#[tokio::test]
async fn a_guest_that_panics_is_told_and_remembered() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let reason = "guest kernel panic: Kernel panic - not syncing: asked for";
    let events = host.exec(&id, "partial so far\npanic").await;
    assert_eq!(
        events,
        [crate::host::stdout("so far"), stderr(&format!("the sandbox has ended: {reason}")), exit(137)]
    );
    host.is_gone(&id).await;
    let answer = host.post(&format!("/v1/sandboxes/{id}/exec"), &json!({"code": "pass"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.error().contains(reason), "{}", answer.body);
    host.machines_are(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_agent_is_gone_is_ended() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let id = host.create().await;
    let events = host.exec(&id, "crash").await;
    let told = "the sandbox has ended: its guest no longer answers: the guest's agent closed its stream";
    assert_eq!(events, [stderr(told), exit(137)]);
    host.is_gone(&id).await;
    host.machines_are(1).await;
}
