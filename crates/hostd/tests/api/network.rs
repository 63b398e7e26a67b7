//! What sandboxes may reach: set at the create, changed while they run, inherited by copies.

use crate::host::Host;
use axum::http::StatusCode;
use podflare_hostd::network::egress::Egress;
use podflare_hostd::network::fake::Interface;
use serde_json::{Value, json};
use std::time::Duration;

async fn set_egress(host: &Host, id: &str, egress: &Value) -> (StatusCode, Value) {
    let answer = host.put(&format!("/v1/sandboxes/{id}/egress"), &json!({ "egress": egress })).await;
    (answer.status, answer.json())
}

async fn network(host: &Host, id: &str) -> Value {
    host.get(&format!("/v1/sandboxes/{id}/network")).await.json()
}

async fn egress(host: &Host, id: &str) -> Value {
    let inspected = host.get(&format!("/v1/sandboxes/{id}")).await.json()["egress"].clone();
    assert_eq!(inspected, network(host, id).await["egress"]);
    inspected
}

/// What the host's kernel was told of a sandbox.
async fn interface(host: &Host, id: &str) -> Interface {
    let address = network(host, id).await["address"].as_str().unwrap().to_owned();
    let interfaces = host.network.interfaces();
    let ours = interfaces.values().find(|interface| interface.identity.address.to_string() == address);
    ours.unwrap().clone()
}

async fn enforced(host: &Host, id: &str) -> Egress {
    interface(host, id).await.egress
}

#[tokio::test]
async fn a_sandbox_reaches_what_is_public_unless_it_is_told_otherwise() {
    let host = Host::start(&[]).await;
    let open = host.create_with(&json!({})).await;
    assert_eq!(open["egress"], true);
    let cut_off = host.create_with(&json!({ "egress": false })).await;
    assert_eq!(cut_off["egress"], false);
    let listed =
        host.create_with(&json!({ "egress": { "allow": ["example.org:443", "10.1.0.0/16"] } })).await;
    assert_eq!(listed["egress"], json!({ "allow": ["example.org:443", "10.1.0.0/16"] }));
    for (created, is_off) in [(open, false), (cut_off, true), (listed, false)] {
        let id = created["id"].as_str().unwrap();
        assert_eq!(egress(&host, id).await, created["egress"]);
        assert_eq!(enforced(&host, id).await == Egress::Off, is_off);
    }
}

#[tokio::test]
async fn what_is_no_list_is_refused_and_nothing_is_made() {
    let host = Host::start(&[]).await;
    for bad in [
        json!({ "allow": ["169.254.169.254"] }),
        json!({ "allow": ["no such thing"] }),
        json!({ "deny": [] }),
    ] {
        let answer = host.post("/v1/sandboxes", &json!({ "egress": bad })).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
    }
    assert_eq!(host.get("/v1/sandboxes").await.json()["sandboxes"], json!([]));
}

#[tokio::test]
async fn what_a_sandbox_may_reach_is_changed_while_it_runs() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    for wanted in [json!(false), json!({ "allow": ["example.org"] }), json!({ "allow": [] }), json!(true)] {
        let (status, view) = set_egress(&host, &id, &wanted).await;
        assert_eq!((status, &view["egress"]), (StatusCode::OK, &wanted));
        assert_eq!(
            Egress::parse(&serde_json::from_value(wanted).unwrap()).unwrap(),
            enforced(&host, &id).await
        );
    }
    let (status, error) = set_egress(&host, &id, &json!({ "allow": ["127.0.0.1"] })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error["error"].as_str().unwrap().contains("127.0.0.1"), "{error}");
    assert_eq!(egress(&host, &id).await, true, "nothing has changed");
    assert_eq!(set_egress(&host, "sbx_none", &json!(true)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn children_inherit_what_may_be_reached_and_get_addresses_of_their_own() {
    let host = Host::start(&[]).await;
    let parent = host.create_with(&json!({ "egress": { "allow": ["example.org"] } })).await;
    let id = parent["id"].as_str().unwrap();
    let forked = host.post(&format!("/v1/sandboxes/{id}/fork"), &json!({ "n": 3 })).await.json();
    let mut addresses = vec![network(&host, id).await["address"].clone()];
    for child in forked["children"].as_array().unwrap() {
        let child = child.as_str().unwrap();
        assert_eq!(egress(&host, child).await, parent["egress"]);
        assert!(matches!(enforced(&host, child).await, Egress::Allow(_)));
        addresses.push(network(&host, child).await["address"].clone());
    }
    addresses.sort_by_key(Value::to_string);
    addresses.dedup();
    assert_eq!(addresses.len(), 4);
}

#[tokio::test]
async fn a_winner_may_reach_what_its_parent_may() {
    let host = Host::start(&[]).await;
    let parent = host.create_with(&json!({ "egress": false })).await["id"].as_str().unwrap().to_owned();
    let winner = host.create().await;
    assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NO_CONTENT);
    assert_eq!(egress(&host, &parent).await, false);
    assert_eq!(enforced(&host, &parent).await, Egress::Off);
}

#[tokio::test]
async fn a_restored_sandbox_may_reach_no_more_than_before_and_a_checkpoints_child_what_it_might_then() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let taken = host.post(&format!("/v1/sandboxes/{id}/checkpoints"), &json!({})).await.json();
    let checkpoint = taken["id"].as_str().unwrap();
    set_egress(&host, &id, &json!(false)).await;
    let restored =
        host.post(&format!("/v1/sandboxes/{id}/restore"), &json!({ "checkpoint": checkpoint })).await;
    assert_eq!(restored.status, StatusCode::NO_CONTENT, "{}", restored.body);
    assert_eq!(egress(&host, &id).await, false);
    let forked = host.post(&format!("/v1/checkpoints/{checkpoint}/fork"), &json!({})).await.json();
    assert_eq!(egress(&host, forked["children"][0].as_str().unwrap()).await, true);
}

#[tokio::test(start_paused = true)]
async fn an_ended_sandboxs_place_in_the_network_is_given_back() {
    let host = Host::start(&["--pool-size", "0", "--subnet", "198.18.0.0/24"]).await;
    // In all more than there are addresses.
    for _ in 0..30 {
        for _ in 0..10 {
            let id = host.create().await;
            host.delete(&id).await;
        }
        host.machines_are(1).await;
    }
    let places = host.network.interfaces().len();
    assert!(places < 100, "{places} are left");
}

#[tokio::test]
async fn a_change_that_fails_leaves_nothing_that_is_reached_until_one_succeeds() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    host.network.refuse_changes(true);
    let (status, error) = set_egress(&host, &id, &json!({ "allow": ["example.org"] })).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(error["error"].as_str().unwrap().contains("reaches nothing"), "{error}");
    assert_eq!(egress(&host, &id).await, false);
    assert!(interface(&host, &id).await.is_shut);
    host.network.refuse_changes(false);
    // Also what it may reach already, for all that hostd knows.
    assert_eq!(set_egress(&host, &id, &json!(false)).await.0, StatusCode::OK);
    assert_eq!(enforced(&host, &id).await, Egress::Off);
    assert_eq!(set_egress(&host, &id, &json!(true)).await.0, StatusCode::OK);
    assert!(!interface(&host, &id).await.is_shut);
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_while_a_sandbox_is_restored_stays_forbidden() {
    let host = Host::start(&[]).await;
    let id = host.create().await;
    let taken = host.post(&format!("/v1/sandboxes/{id}/checkpoints"), &json!({})).await.json();
    host.vmm.set_renewal_time(Duration::from_secs(2));
    let path = format!("/v1/sandboxes/{id}/restore");
    let body = json!({ "checkpoint": taken["id"] });
    let restore = host.post(&path, &body);
    let forbid = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        set_egress(&host, &id, &json!(false)).await
    };
    let (restored, forbidden) = tokio::join!(restore, forbid);
    assert_eq!((restored.status, forbidden.0), (StatusCode::NO_CONTENT, StatusCode::OK));
    assert_eq!(egress(&host, &id).await, false);
    assert_eq!(enforced(&host, &id).await, Egress::Off);
}

#[tokio::test]
async fn a_merge_that_comes_to_nothing_leaves_the_winner_what_it_may_reach() {
    let host = Host::start(&[]).await;
    let parent = host.create_with(&json!({ "egress": false })).await["id"].as_str().unwrap().to_owned();
    let winner = host.create().await;
    host.delete(&parent).await;
    assert_eq!(host.merge(&parent, &winner).await.status, StatusCode::NOT_FOUND);
    assert_eq!(egress(&host, &winner).await, true);
}

#[tokio::test]
async fn no_two_lists_have_the_same_mark() {
    let host = Host::start(&[]).await;
    let mut marks = Vec::new();
    for _ in 0..3 {
        let listed = host.create_with(&json!({ "egress": { "allow": ["example.org"] } })).await;
        marks.push(interface(&host, listed["id"].as_str().unwrap()).await.revision);
    }
    marks.dedup();
    assert_eq!(marks.len(), 3, "{marks:?}");
    assert!(!marks.contains(&0));
}
