//! What happens to sandboxes, told as a list and as a stream; and more time for one.

use crate::host::{Host, Stream, until};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

async fn events(host: &Host, query: &str) -> Vec<Value> {
    let answer = host.get(&format!("/v1/events{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.json()["events"].as_array().unwrap().clone()
}

/// Types and sandboxes of all events, when there are so many.
async fn told(host: &Host, count: usize) -> Vec<(String, String)> {
    until("the events are kept", async || events(host, "").await.len() >= count).await;
    let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    events(host, "").await.iter().map(|event| (text(event, "type"), text(event, "sandbox"))).collect()
}

#[tokio::test]
async fn a_sandboxs_life_is_told_in_its_order() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let child = host.fork(&id, 1).await.remove(0);
    let checkpoint = host.checkpoint(&id).await;
    assert_eq!(host.restore(&id, &checkpoint).await.status, StatusCode::NO_CONTENT);
    assert_eq!(host.merge(&id, &child).await.status, StatusCode::NO_CONTENT);
    host.delete(&id).await;
    let happened = |kind: &str, id: &str| (format!("sandbox.{kind}"), id.to_owned());
    let expected = [
        happened("created", &id),
        happened("forked", &child),
        happened("restored", &id),
        happened("merged", &id),
        happened("closed", &id),
    ];
    assert_eq!(told(&host, 5).await, expected);
    let all = events(&host, "").await;
    assert_eq!(all[1]["parent"], *id);
    assert_eq!(all[3]["winner"], *child);
    assert_eq!(all[4]["reason"], "it was deleted");
    let since = all[2]["seq"].as_u64().unwrap();
    assert_eq!(events(&host, &format!("?since={since}&limit=1")).await, all[3..4]);
    for bad in ["?since=x", "?limit=0", "?follow=yes"] {
        assert_eq!(host.get(&format!("/v1/events{bad}")).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn members_of_the_pool_come_and_go_unheard() {
    let host = Host::start(&["--pool-size", "3"]).await;
    host.vmm.kill_newest();
    host.pool_is_full().await;
    let id = host.create().await;
    assert_eq!(told(&host, 1).await, [("sandbox.created".to_owned(), id)]);
}

#[tokio::test]
async fn who_follows_hears_what_has_been_and_what_comes_and_that_the_host_is_there() {
    let host = Host::start(&["--heartbeat", "1"]).await;
    let first = host.create().await;
    told(&host, 1).await;
    let request = Request::get("/v1/events?follow=true").body(Body::empty()).unwrap();
    let response = host.router().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut stream = Stream::of(response.into_body());
    let mut next = async || loop {
        let bytes = stream.next_bytes().await.unwrap();
        if &bytes[..] != b"\n" {
            break serde_json::from_slice::<Value>(&bytes).unwrap();
        }
    };
    assert_eq!(next().await["sandbox"], *first);
    host.delete(&first).await;
    assert_eq!(next().await["type"], "sandbox.closed");
    assert_eq!(&stream.next_bytes().await.unwrap()[..], b"\n", "a sign of life");
}

#[tokio::test]
async fn a_host_has_only_so_many_followers() {
    let host = Host::start(&[]).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(host.open("/v1/events?follow=true").await);
    }
    assert_eq!(host.get("/v1/events?follow=true").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(host.get("/v1/events").await.status, StatusCode::OK);
}

async fn extend(host: &Host, id: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::patch(format!("/v1/sandboxes/{id}")).header("content-type", "application/json");
    let answer = host.send(request.body(body.to_string().into()).unwrap()).await;
    (answer.status, answer.json())
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_given_more_time_lives_longer_and_one_with_less_ends_sooner() {
    let host = Host::start(&["--pool-size", "0"]).await;
    let asked = json!({"timeout_seconds": 60, "idle_timeout_seconds": 3600});
    let [longer, shorter] = [host.create_with(&asked).await, host.create_with(&asked).await];
    let [longer, shorter] = [&longer, &shorter].map(|created| created["id"].as_str().unwrap());
    let (status, view) = extend(&host, longer, &json!({"timeout_seconds": 600})).await;
    assert_eq!((status, &view["timeout_seconds"]), (StatusCode::OK, &json!(600)));
    assert_eq!(view["idle_timeout_seconds"], 3600, "what is left out stays");
    extend(&host, shorter, &json!({"idle_timeout_seconds": 5})).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let ended = host.get(&format!("/v1/sandboxes/{shorter}")).await;
    assert!(ended.error().contains("nothing was run in it for 5 s"), "{}", ended.body);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(host.get(&format!("/v1/sandboxes/{longer}")).await.status, StatusCode::OK);

    let (_, view) = extend(&host, longer, &json!({"timeout_seconds": u64::MAX})).await;
    assert_eq!(view["timeout_seconds"], 604_800, "no more than the host offers");
    assert_eq!(extend(&host, longer, &json!({"forever": true})).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(extend(&host, "sbx_none", &json!({})).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_host_tells_which_sandboxes_the_killed_one_before_it_has_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = podflare_hostd::store::Store::open(folder.path()).unwrap();
    let host = Host::start_with_store(&[], store.clone()).await;
    let (id, ended) = (host.create().await, host.create().await);
    host.delete(&ended).await;
    told(&host, 3).await;
    let host = host.start_again_with_store(store).await;
    let all = events(&host, "").await;
    assert_eq!(all.len(), 4);
    assert_eq!((&all[3]["type"], &all[3]["sandbox"]), (&json!("sandbox.closed"), &json!(id)));
    assert!(all[3]["reason"].as_str().unwrap().contains("its host ended"), "{}", all[3]);
}
